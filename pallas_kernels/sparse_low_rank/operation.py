"""The public function: y = x (B A + S)^T, computed by whichever implementation fits."""

from __future__ import annotations

import math

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from pallas_kernels.common import chips, tuning
from pallas_kernels.common.call import mesh_objection, over_mesh, same_varying
from pallas_kernels.common.dispatch import Choice, choose
from pallas_kernels.sparse_low_rank import pallas_tpu as tpu
from pallas_kernels.sparse_low_rank.layout import is_tiled, tile_grid
from pallas_kernels.sparse_low_rank.reference import sparse_low_rank_reference
from pallas_kernels.sparse_low_rank.xla import sparse_low_rank_xla

WHY_NOT_GPU = (
    "there is none, because it would lose: a panel of W does not fit the 227 KiB of shared memory of an SM, so each tile "
    "of S would be built again for every tile of tokens, at slots / tokens-per-tile (about 2) times the work of the "
    "product itself, while the XLA version writes and reads W once (4 out in bytes against 2 tokens out in operations)"
)


def sparse_low_rank(
    x: Float[Array, "*B I"],
    b: Float[Array, "O R"],
    a: Float[Array, "R I"],
    v: Float[Array, "*N"],
    support: Int[Array, "*N"],
    *,
    implementation: str = "auto",
) -> Float[Array, "*B O"]:
    """y = x (B A + S)^T. Any scale (alpha / rank) is folded into A by the caller, so its gradient is chained there.

    Nothing of the size of W is saved between forward and backward; rank 0 and no entries at all are allowed.

    Args:
      x: [..., in].
      b, a: [out, rank] and [rank, in].
      v, support: values and positions of S, none twice. Either flat, [nnz] both, with support[k] = row * in + column sorted
        (SLTrain's own), or in tile-COO, [R, C, K] both (`pallas_kernels.sparse_low_rank.layout`), which kernels need.
      implementation: "auto", "reference", "xla", "pallas_tpu" or "pallas_gpu" (on a CPU kernels are interpreted).

    Raises:
      ValueError: shapes that do not fit each other, or an implementation that cannot run here.
    """
    _check(x, b, a, v, support)
    run = choice(x, b, a, v, support, implementation=implementation).implementation
    if run == "reference":
        return sparse_low_rank_reference(x, b, a, v, support)
    if run == "xla":
        return sparse_low_rank_xla(*same_varying(x, b, a, v, support))
    sizes, scratch, cores = _sizes(x, b, a)
    b, a, v = (t.astype(x.dtype) for t in (b, a, v))
    return over_mesh(lambda *t: tpu.sparse_low_rank_tpu(*t, sizes, scratch, cores), x, b, a, v, support)


def choice(
    x: Float[Array, "*B I"],
    b: Float[Array, "O R"],
    a: Float[Array, "R I"],
    v: Float[Array, "*N"],
    support: Int[Array, "*N"],
    *,
    implementation: str = "auto",
) -> Choice:
    """The implementation that `sparse_low_rank` would run, and why."""

    def limit(name: str) -> str | None:
        if name == "pallas_gpu":
            return WHY_NOT_GPU
        if name != "pallas_tpu":
            return None
        if not is_tiled(support):
            return "v and support are flat, and the kernel needs them in tile-COO (layout.to_tiles)"
        if x.dtype not in (jnp.float32, jnp.bfloat16):
            return f"x is {x.dtype}, and a TPU multiplies float32 and bfloat16"
        sizes, scratch, _ = _sizes(x, b, a)
        return _too_large(tpu.scratch_needed(x, b, a, v, sizes), scratch)

    def advice(name: str) -> str | None:
        tokens, overhead = math.prod(x.shape[:-1]), v.shape[-1] + b.shape[1]
        if tokens < 2 * overhead:
            return (
                f"{tokens} tokens are too few: building W costs slots + rank = {overhead} tokens' worth of the product, "
                "which is to be less than half of it"
            )
        return mesh_objection(x.shape[0])

    return choose("sparse_low_rank", implementation, limit, advice)


def _sizes(x: Array, b: Array, a: Array) -> tuple[tpu.Sizes, int, int]:
    """Tile sizes, VMEM bytes and cores of the chip this trace is for."""
    chip = chips.current()
    shape = {"tokens": math.prod(x.shape[:-1]), "out": b.shape[0], "in": a.shape[1]}
    known = chip if chip and chip.platform == "tpu" else chips.CHIPS["v5e"]
    return tpu.Sizes(**tuning.sizes("sparse_low_rank", known, shape)), known.scratch, known.cores


def _too_large(needed: int, scratch: int) -> str | None:
    if needed <= scratch:
        return None
    return f"it needs {needed / chips.MiB:.0f} MiB of on-chip memory, and may use {scratch / chips.MiB:.0f}"


def _check(x: Array, b: Array, a: Array, v: Array, support: Array) -> None:
    if x.shape[-1] != a.shape[-1] or b.shape[-1] != a.shape[0]:
        raise ValueError(f"x {x.shape}, B {b.shape} and A {a.shape} do not fit: expected [..., in], [out, r], [r, in]")
    if v.shape != support.shape:
        raise ValueError(f"v {v.shape} and support {support.shape} should have one shape")
    grid = tile_grid(b.shape[0], a.shape[1])
    if support.ndim != 1 and support.shape[:-1] != grid:
        raise ValueError(f"support {support.shape} should be [nnz], or [{grid[0]}, {grid[1]}, slots] in tile-COO")
