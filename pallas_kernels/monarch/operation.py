"""The public functions: y = x W^T with W a Monarch or a block-diagonal matrix."""

from __future__ import annotations

import math
from collections.abc import Callable

import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxpt.core.names import nearest_error
from pallas_kernels.common import chips, tuning
from pallas_kernels.common.call import LANES, mesh_objection, over_mesh, pad_to
from pallas_kernels.common.dispatch import Choice, choose
from pallas_kernels.monarch import pallas_gpu as gpu
from pallas_kernels.monarch import pallas_tpu as tpu
from pallas_kernels.monarch.layout import ORDERS, to_block, to_canonical
from pallas_kernels.monarch.reference import block_diagonal_reference, monarch_reference
from pallas_kernels.monarch.xla import block_diagonal_xla, monarch_xla


def monarch(
    x: Float[Array, "*B I"],
    w1: Float[Array, "L K C p"],
    w2: Float[Array, "L s KC"],
    *,
    out_size: int | None = None,
    order: str = "canonical",
    implementation: str = "auto",
) -> Float[Array, "*B O"]:
    """y[l] = concat_k(x_k w1[l, k]^T) w2[l]^T, for factors in the layout of `pallas_kernels.monarch.layout`.

    Args:
      x: [..., in], in at most K p (zeros are appended).
      w1, w2: [L, K, C, p] and [L, s, K C]; `layout.from_authors` makes them of the authors'.
      out_size: columns of y, L s by default; the rest is cut off.
      order: of y, "canonical" (the authors', s slow and l fast) or "block" (l slow, s fast), which costs nothing to make but
        cannot be cut.
      implementation: "auto", "reference", "xla", "pallas_tpu" or "pallas_gpu" (on a CPU kernels are interpreted).

    Raises:
      ValueError: shapes or sizes that do not fit, an unknown order, or an implementation that cannot run here.
    """
    size = _check(x, w1, w2, out_size, order)
    run = choice(x, w1, w2, implementation=implementation).implementation
    blocks, _, _, p = w1.shape
    if run != "pallas_tpu":
        x = pad_to(x, (*x.shape[:-1], w1.shape[1] * p))
    if run in ("reference", "xla"):
        y = to_block(monarch_reference(x, w1, w2), blocks) if run == "reference" else monarch_xla(x, w1, w2)
    else:
        y = _on_kernel(x, w1.astype(x.dtype), w2.astype(x.dtype), run, size, order == "canonical")
        return y[..., :size]
    return to_canonical(y, blocks)[..., :size] if order == "canonical" else y


def _on_kernel(x: Array, w1: Array, w2: Array, run: str, width: int, canonical: bool) -> Array:
    sizes, chip = _sizes(x, w1, w2, run)

    def local(x: Array, w1: Array, w2: Array) -> Array:
        x2 = x.reshape(-1, x.shape[-1])
        if isinstance(sizes, gpu.Sizes):
            y = gpu.monarch_gpu(x2, w1, w2, sizes)
            y = to_canonical(y, w1.shape[0]) if canonical else y
        else:
            y = tpu.monarch_tpu(x2, w1, w2, width, sizes, chip.scratch, chip.cores, canonical)
        return y.reshape(*x.shape[:-1], -1)

    return over_mesh(local, x, w1, w2)


def choice(
    x: Float[Array, "*B I"],
    w1: Float[Array, "L K C p"],
    w2: Float[Array, "L s KC"],
    *,
    implementation: str = "auto",
) -> Choice:
    """The implementation that `monarch` would run, and why."""
    l, k, c, p = w1.shape  # noqa: E741

    def limit(name: str) -> str | None:
        if name not in ("pallas_tpu", "pallas_gpu"):
            return None
        if x.dtype not in (jnp.float32, jnp.bfloat16):
            return f"x is {x.dtype}, and the kernels multiply float32 and bfloat16"
        if name == "pallas_gpu":
            middle = max(k, l) * gpu.padded_slots(c)
            if middle > gpu.MAX_MIDDLE:
                return (
                    f"a middle of {middle} columns per block does not fit the registers (at most {gpu.MAX_MIDDLE}); "
                    "matrices that large are bound by arithmetic, where fusing gains nothing"
                )
            return None
        sizes, chip = _sizes(x, w1, w2, name)
        assert isinstance(sizes, tpu.Sizes)
        needed = max(tpu.forward_scratch(x.dtype, w1, w2, sizes), tpu.backward_scratch(x.dtype, w1, w2, sizes))
        if needed > chip.scratch:
            return (
                f"it needs {needed / chips.MiB:.0f} MiB of on-chip memory for the weights and their gradients, and may "
                f"use {chip.scratch / chips.MiB:.0f}"
            )
        return None

    def advice(name: str) -> str | None:
        if name == "pallas_tpu" and (p < LANES or w2.shape[1] < LANES or k * c < LANES):
            return f"blocks of {p} and {w2.shape[1]} columns over {k * c} leave most of a {LANES}-wide matrix unit idle"
        return mesh_objection(x.shape[0])

    return choose("monarch", implementation, limit, advice)


def _sizes(x: Array, w1: Array, w2: Array, run: str) -> tuple[tpu.Sizes | gpu.Sizes, chips.Chip]:
    """Tile sizes for the chip this trace is for; on TPU, groups so that weights and their gradients fit,
    or fewer tokens a step: every group reads x once more."""
    chip = chips.current()
    platform = "gpu" if run == "pallas_gpu" else "tpu"
    known = chip if chip and chip.platform == platform else chips.CHIPS["h100" if platform == "gpu" else "v5e"]
    l, k, _, p = w1.shape  # noqa: E741
    shape = {"tokens": math.prod(x.shape[:-1]), "in": k * p, "out": l * w2.shape[1]}
    found = tuning.sizes("monarch", known, shape)
    if platform == "gpu":
        return gpu.Sizes(**found), known
    # a group's columns of y are a block of their own, so they must be whole lanes
    allowed = [g for g in range(1, l + 1) if l % g == 0 and (g == 1 or l // g * w2.shape[1] % LANES == 0)]

    def fit(sizes: tpu.Sizes, groups: str, tokens: str, needed: Callable[..., int]) -> tpu.Sizes:
        first, most = getattr(sizes, groups), getattr(sizes, tokens)
        tried = (sizes._replace(**{groups: g, tokens: most // n}) for g in allowed if g >= first for n in (1, 2, 4))
        return next((z for z in tried if needed(x.dtype, w1, w2, z) <= known.scratch), sizes)

    sizes = fit(tpu.Sizes(**found), "groups", "tokens", tpu.forward_scratch)
    return fit(sizes, "backward_groups", "backward_tokens", tpu.backward_scratch), known


def block_diagonal(
    x: Float[Array, "*B I"],
    w: Float[Array, "N o p"],
    *,
    out_size: int | None = None,
    implementation: str = "auto",
) -> Float[Array, "*B O"]:
    """y[n] = x[n] w[n]^T, blocks side by side: a block-diagonal matrix.

    Args:
      x: [..., in], in at most N p (zeros are appended).
      w: [N, o, p].
      out_size: columns of y, N o by default; the rest is cut off.
      implementation: "auto", "reference" or "xla".

    Raises:
      ValueError: shapes or sizes that do not fit, or an implementation that there is not.
    """
    n, o, p = w.shape
    size = n * o if out_size is None else out_size
    if x.shape[-1] > n * p or not 0 < size <= n * o:
        raise ValueError(f"x {x.shape} and out_size={out_size} do not fit w {w.shape}: at most {n * p} in, {n * o} out")
    run = block_diagonal_choice(implementation=implementation).implementation
    x = pad_to(x, (*x.shape[:-1], n * p))
    return (block_diagonal_reference(x, w) if run == "reference" else block_diagonal_xla(x, w))[..., :size]


def block_diagonal_choice(*_: Array, implementation: str = "auto") -> Choice:
    """The implementation that `block_diagonal` would run, and why."""

    def limit(name: str) -> str | None:
        if not name.startswith("pallas"):
            return None
        return "there is no kernel: XLA makes one batched product of it, which already moves the least bytes"

    return choose("block_diagonal", implementation, limit, lambda _: None)


def _check(x: Array, w1: Array, w2: Array, out_size: int | None, order: str) -> int:
    if order not in ORDERS:
        raise nearest_error("order", order, ORDERS)
    l, k, c, p = w1.shape  # noqa: E741
    if w2.shape[0] != l or w2.shape[2] != k * c:
        raise ValueError(f"w1 {w1.shape} needs w2 of shape [{l}, s, {k * c}], got {w2.shape}")
    if x.shape[-1] > k * p:
        raise ValueError(f"x {x.shape} is wider than the {k} x {p} inputs of w1 {w1.shape}")
    full = l * w2.shape[1]
    size = full if out_size is None else out_size
    if not 0 < size <= full or (order == "block" and size != full):
        raise ValueError(f"out_size={out_size}, but w2 {w2.shape} gives {full} columns" + ", uncut in block order")
    return size
