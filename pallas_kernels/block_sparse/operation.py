"""The public function: y = x W^T with W made of blocks, most of which are not there."""

from __future__ import annotations

import math
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxpt.sharding import platform
from pallas_kernels.block_sparse import pallas_gpu as gpu
from pallas_kernels.block_sparse import pallas_tpu as tpu
from pallas_kernels.block_sparse.reference import block_sparse_reference
from pallas_kernels.block_sparse.xla import block_sparse_xla
from pallas_kernels.common import chips, tuning
from pallas_kernels.common.call import LANES, mesh_objection, over_mesh, round_up, same_varying
from pallas_kernels.common.dispatch import Choice, choose

DENSE_ENOUGH = 0.75  # share of blocks from which one dense product is the better plan


def block_sparse(
    x: Float[Array, "*B I"],
    blocks: Float[Array, "N bm bn"],
    rows: Int[Array, " N"],
    columns: Int[Array, " N"],
    *,
    out_size: int,
    implementation: str = "auto",
) -> Float[Array, "*B O"]:
    """y = x W^T, where block (rows[b], columns[b]) of W [out, in] is blocks[b] and all others are zero.

    Rows and columns of blocks may be empty. Blocks at the edge may stick out of W; what does is ignored, and its gradient is
    zero.

    Args:
      x: [..., in].
      blocks: [N, bm, bn], N >= 1; TPU kernels need multiples of 128, GPU kernels powers of two from 16 to 128.
      rows, columns: [N], none twice.
      out_size: rows of W.
      implementation: "auto", "reference", "xla", "pallas_tpu" or "pallas_gpu" (on a CPU kernels are interpreted).

    Raises:
      ValueError: shapes that do not fit each other, or an implementation that cannot run here.
    """
    if not blocks.shape[0] == rows.shape[0] == columns.shape[0] >= 1:
        raise ValueError(f"blocks {blocks.shape}, rows {rows.shape} and columns {columns.shape} should be N >= 1 each")
    run = choice(x, blocks, rows, columns, out_size=out_size, implementation=implementation).implementation
    if run == "reference":
        return block_sparse_reference(x, blocks, rows, columns, out_size)
    if run == "xla":
        return block_sparse_xla(*same_varying(x, blocks.astype(x.dtype), rows, columns), out_size)

    def local(x: Array, blocks: Array, rows: Array, columns: Array) -> Array:
        x2 = x.reshape(-1, x.shape[-1])
        if run == "pallas_gpu":
            y = gpu.block_sparse_gpu(x2, blocks, rows, columns, out_size, _gpu_sizes(x, out_size))
        else:
            sizes, chip = _tpu_sizes(x, blocks, out_size)
            y = tpu.block_sparse_tpu(x2, blocks, rows, columns, out_size, sizes, chip.scratch)
        return y.reshape(*x.shape[:-1], out_size)

    return over_mesh(local, x, blocks.astype(x.dtype), rows, columns)


def choice(x: Any, blocks: Any, rows: Any, columns: Any, *, out_size: int, implementation: str = "auto") -> Choice:
    """The implementation that `block_sparse` would run for these arrays, or for arrays of these shapes, and why."""
    n, bm, bn = blocks.shape

    def limit(name: str) -> str | None:
        if name not in ("pallas_tpu", "pallas_gpu"):
            return None
        if x.dtype not in (jnp.float32, jnp.bfloat16):
            return f"x is {x.dtype}, and the kernels multiply float32 and bfloat16"
        if name == "pallas_gpu":
            fits = all(16 <= b <= 128 and b & (b - 1) == 0 for b in (bm, bn))
            return None if fits else f"blocks of {bm} x {bn} are not powers of two from 16 to 128"
        if platform() == "tpu" and (bm % LANES or bn % LANES):
            return f"blocks of {bm} x {bn} are not multiples of {LANES}"
        sizes, chip = _tpu_sizes(x, blocks, out_size)
        widest = max(round_up(out_size, bm), round_up(x.shape[-1], bn))
        needed = max(
            tpu.multiply_scratch(x.dtype, blocks, widest, sizes),
            tpu.gradient_scratch(x.dtype, blocks, out_size + x.shape[-1], sizes),
        )
        if needed > chip.scratch:
            return (
                f"it needs {needed / chips.MiB:.0f} MiB of on-chip memory, and may use {chip.scratch / chips.MiB:.0f}"
            )
        return None

    def advice(name: str) -> str | None:
        share = n / (-(-out_size // bm) * -(-x.shape[-1] // bn))
        if share >= DENSE_ENOUGH:
            return f"{share:.0%} of the blocks are there, and one dense product is no slower"
        return mesh_objection(x.shape[0])

    return choose("block_sparse", implementation, limit, advice)


def _gpu_sizes(x: Array, out_size: int) -> gpu.Sizes:
    chip = chips.current()
    known = chip if chip and chip.platform == "gpu" else chips.CHIPS["h100"]
    return gpu.Sizes(**tuning.sizes("block_sparse", known, _shape(x, out_size)))


def _tpu_sizes(x: Array, blocks: Array, out_size: int) -> tuple[tpu.Sizes, chips.Chip]:
    """Tile sizes for the chip this trace is for, and groups of blocks whose gradients fit; one per core at least."""
    chip = chips.current()
    known = chip if chip and chip.platform == "tpu" else chips.CHIPS["v5e"]
    sizes = tpu.Sizes(**tuning.sizes("block_sparse", known, _shape(x, out_size)))
    for groups in (known.cores, 2, 4, 8, 16):
        sizes = sizes._replace(groups=groups)
        if tpu.gradient_scratch(x.dtype, blocks, out_size + x.shape[-1], sizes) <= known.scratch:
            break
    return sizes, known


def _shape(x: Array, out_size: int) -> dict[str, int]:
    return {"tokens": math.prod(x.shape[:-1]), "in": x.shape[-1], "out": out_size}
