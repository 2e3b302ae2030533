"""TPU kernels: both factors in one pass over the tokens, the middle activation never in main memory.

The weights stay in VMEM (where they do not fit, those of one group of output blocks at a time). Forward reads x and writes
y; backward reads x and dY, computes the middle activation again, and writes dX and both weight gradients, which are summed
over the tokens in VMEM in float32. The canonical order of y, in which output blocks alternate from lane to lane, comes of a
product with a permutation of 128 lanes: 128 operations per output, where a transposition in main memory costs two passes.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float

from pallas_kernels.common.call import LANES, inside, like, pad_to, precision, round_up, tpu_call
from pallas_kernels.monarch.layout import to_block, to_canonical

ONCE = pl.Buffered(1)  # weights change with the group, a few times in all: no second buffer for the next ones
NT, NN, TN = ((1,), (1,)), ((1,), (0,)), ((0,), (0,))  # which axes of two matrices are contracted


class Sizes(NamedTuple):
    """Tokens per step, forward and backward, and the groups in which the output blocks are taken, forward and backward."""

    tokens: int
    backward_tokens: int
    groups: int
    backward_groups: int


def _dot(a: Any, b: Any, contract: Any) -> Any:
    return jax.lax.dot_general(
        a, b, (contract, ((), ())), preferred_element_type=jnp.float32, precision=precision(a.dtype)
    )


def _input_slices(width: int, w1: Any) -> list[slice]:
    """Columns of x [T, width] that each input block takes; the last blocks may be cut."""
    p = w1.shape[3]
    return [slice(min(i * p, width), min((i + 1) * p, width)) for i in range(w1.shape[1])]


def _first(w1: Any, i: int, width: int) -> Any:
    """What the first factor does to input block i, [L C, width], all output blocks of the group."""
    l, _, c, p = w1.shape  # noqa: E741
    return w1[:, i].reshape(l * c, p)[:, :width]


def _first_factor(x: list[Any], w1: Any) -> list[Any]:
    """z_l [T, K C] for every output block l of the group, from the K blocks of x [T, p]."""
    l, k, c, _ = w1.shape  # noqa: E741
    h = [_dot(x[i], _first(w1, i, x[i].shape[1]), NT).astype(x[i].dtype) for i in range(k)]
    return [jnp.concatenate([h[i][:, j * c : (j + 1) * c] for i in range(k)], axis=1) for j in range(l)]


def _forward_kernel(x, w1, w2, y, *, canonical) -> None:  # noqa: ANN001
    s = w2.shape[1]
    z = _first_factor([x[:, own] for own in _input_slices(x.shape[1], w1)], w1)
    if not canonical:
        for j, z_j in enumerate(z):
            y[:, j * s : (j + 1) * s] = _dot(z_j, w2[j], NT).astype(y.dtype)
        return
    blocks = [_dot(z_j, w2[j], NT).astype(y.dtype) for j, z_j in enumerate(z)]
    for at, wide in _pieces(len(z), s):
        side_by_side = jnp.concatenate([b[:, at : at + wide] for b in blocks], axis=1)
        mixed = _dot(side_by_side, _interleave(len(z), wide, y.dtype), NN)
        end = min((at + wide) * len(z), y.shape[1])
        y[:, at * len(z) : end] = mixed[:, : end - at * len(z)].astype(y.dtype)


def _pieces(blocks: int, s: int) -> list[tuple[int, int]]:
    """(start, width) of the pieces of every output block that together fill the lanes."""
    wide = LANES // blocks
    return [(at, min(wide, s - at)) for at in range(0, s, wide)]


def _interleave(blocks: int, wide: int, dtype: Any) -> Any:
    """The permutation [l, i] -> [i, l] of `blocks` pieces as a matrix: lanes cannot be shuffled that way, but multiplied."""
    row, column = (jax.lax.broadcasted_iota(jnp.int32, (blocks * wide,) * 2, axis) for axis in (0, 1))
    return (row == column % blocks * wide + column // blocks).astype(dtype)


def _output_blocks(dy: Any, blocks: int, s: int, canonical: bool) -> list[Any]:
    """The gradient of y by output block, [T, s] each, with zeros for what was cut off y."""
    if not canonical:
        return [dy[:, j * s : (j + 1) * s] for j in range(blocks)]
    found: list[list[Any]] = [[] for _ in range(blocks)]
    for at, wide in _pieces(blocks, s):
        mixed = dy[:, at * blocks : min((at + wide) * blocks, dy.shape[1])]
        if mixed.shape[1] < wide * blocks:
            cut = jnp.zeros((mixed.shape[0], wide * blocks - mixed.shape[1]), mixed.dtype)
            mixed = jnp.concatenate([mixed, cut], axis=1)
        apart = _dot(mixed, _interleave(blocks, wide, mixed.dtype), NT).astype(mixed.dtype)
        for j in range(blocks):
            found[j].append(apart[:, j * wide : (j + 1) * wide])
    return [jnp.concatenate(pieces, axis=1) for pieces in found]


def _backward_kernel(x, dy, w1, w2, dx, dw1, dw2, *, tokens, canonical) -> None:  # noqa: ANN001
    l, _, c, _ = w1.shape  # noqa: E741
    step = pl.program_id(2)

    @pl.when(step == 0)
    def clear() -> None:
        dw1[...] = jnp.zeros_like(dw1)
        dw2[...] = jnp.zeros_like(dw2)

    start = (pl.program_id(0) * pl.num_programs(2) + step) * x.shape[0]
    columns = _input_slices(x.shape[1], w1)
    x_blocks = [inside(x[:, own], (start, 0), (tokens, own.stop - own.start)) for own in columns]
    dy_tile = inside(dy[...], (start, 0), (tokens, dy.shape[1]))
    dy_blocks = _output_blocks(dy_tile, l, w2.shape[1], canonical)
    dz = []
    for j, (z, dy_j) in enumerate(zip(_first_factor(x_blocks, w1), dy_blocks, strict=True)):
        dw2[0, j] += _dot(dy_j, z, TN)
        dz.append(_dot(dy_j, w2[j], NN).astype(x.dtype))
    for i, own in enumerate(columns):
        dh = jnp.concatenate([d[:, i * c : (i + 1) * c] for d in dz], axis=1)  # [T, L C]
        width = own.stop - own.start
        dx[0, :, own] = _dot(dh, _first(w1, i, width), NN).astype(dx.dtype)
        dw1[0, :, i, :, :width] += _dot(dh, x_blocks[i], TN).reshape(l, c, width)


def forward(
    x: Float[Array, "T I"],
    w1: Float[Array, "L K C p"],
    w2: Float[Array, "L s KC"],
    width: int,
    sizes: Sizes,
    scratch: int,
    canonical: bool,
) -> Float[Array, "T O"]:
    """y [T, width], in block order, or `canonical` where there is one group; only then may the width be below L s."""
    (l, k, c, p), s, t = w1.shape, w2.shape[1], x.shape[0]  # noqa: E741
    g, tokens = sizes.groups, min(sizes.tokens, round_up(t, 16))
    return tpu_call(
        functools.partial(_forward_kernel, canonical=canonical),
        like((t, width), x.dtype, x, w1, w2),
        x,
        w1,
        w2,
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=0,
            grid=(g, pl.cdiv(t, tokens)),
            in_specs=[
                pl.BlockSpec((tokens, x.shape[1]), lambda j, i: (i, 0)),
                pl.BlockSpec((l // g, k, c, p), lambda j, i: (j, 0, 0, 0), pipeline_mode=ONCE),
                pl.BlockSpec((l // g, s, k * c), lambda j, i: (j, 0, 0), pipeline_mode=ONCE),
            ],
            out_specs=pl.BlockSpec((tokens, width // g), lambda j, i: (i, j)),
        ),
        semantics=("parallel", "parallel"),
        scratch=scratch,
        flops=2 * t * (w1.size + w2.size),
        nbytes=g * x.nbytes + w1.nbytes + w2.nbytes + t * width * x.dtype.itemsize,
        name="monarch_forward",
    )


def backward(
    x: Float[Array, "T I"],
    dy: Float[Array, "T O"],
    w1: Float[Array, "L K C p"],
    w2: Float[Array, "L s KC"],
    sizes: Sizes,
    scratch: int,
    cores: int,
    canonical: bool,
) -> tuple[Float[Array, "T I"], Float[Array, "L K C p"], Float[Array, "L s KC"]]:
    """(dX, dw1, dw2) from dy in either order, canonical in one group only.

    Every group gives its part of dX and every core its part of dw, which are then summed.
    """
    (l, k, c, p), s, t = w1.shape, w2.shape[1], x.shape[0]  # noqa: E741
    g, tokens = sizes.backward_groups, min(sizes.backward_tokens, round_up(t, 16))
    steps = pl.cdiv(t, tokens)
    cores = cores if steps % cores == 0 else 1
    per_core = steps // cores
    first = pl.BlockSpec((l // g, k, c, p), lambda m, j, i: (j, 0, 0, 0), pipeline_mode=ONCE)
    second = pl.BlockSpec((l // g, s, k * c), lambda m, j, i: (j, 0, 0), pipeline_mode=ONCE)
    dx, dw1, dw2 = tpu_call(
        functools.partial(_backward_kernel, tokens=t, canonical=canonical),
        [
            like((g, t, x.shape[1]), x.dtype if g == 1 else jnp.float32, x, dy, w1, w2),
            like((cores, *w1.shape), jnp.float32, x, dy, w1, w2),
            like((cores, *w2.shape), jnp.float32, x, dy, w1, w2),
        ],
        x,
        dy,
        w1,
        w2,
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=0,
            grid=(cores, g, per_core),
            in_specs=[
                pl.BlockSpec((tokens, x.shape[1]), lambda m, j, i: (m * per_core + i, 0)),
                pl.BlockSpec((tokens, dy.shape[1] // g), lambda m, j, i: (m * per_core + i, j)),
                first,
                second,
            ],
            out_specs=[
                pl.BlockSpec((1, tokens, x.shape[1]), lambda m, j, i: (j, m * per_core + i, 0)),
                pl.BlockSpec((1, l // g, k, c, p), lambda m, j, i: (m, j, 0, 0, 0), pipeline_mode=ONCE),
                pl.BlockSpec((1, l // g, s, k * c), lambda m, j, i: (m, j, 0, 0), pipeline_mode=ONCE),
            ],
        ),
        semantics=("parallel", "arbitrary", "arbitrary"),
        scratch=scratch,
        flops=6 * t * w1.size + 4 * t * w2.size,
        nbytes=(g * 2 * x.nbytes) + dy.nbytes + (1 + cores * 4 / x.dtype.itemsize) * (w1.nbytes + w2.nbytes),
        name="monarch_backward",
    )
    dx = dx[0] if g == 1 else dx.sum(0)
    return dx.astype(x.dtype), dw1.sum(0).astype(w1.dtype), dw2.sum(0).astype(w2.dtype)


def forward_scratch(dtype: Any, w1: Any, w2: Any, sizes: Sizes) -> int:
    """Bytes of VMEM that the forward kernel needs: its blocks, the resident weights, values between the products."""
    mixing = (
        sizes.tokens * w2.shape[0] * w2.shape[1] * (jnp.dtype(dtype).itemsize + 4)
    )  # y before its order is canonical
    values = _value_bytes(dtype, w1, w2, sizes.tokens, sizes.groups) + (mixing if sizes.groups == 1 else 0)
    return _weight_bytes(dtype, w1, w2, sizes.groups, 0) + values


def backward_scratch(dtype: Any, w1: Any, w2: Any, sizes: Sizes) -> int:
    """The same of the backward kernel, which also holds the weights' gradients in float32."""
    values = _value_bytes(dtype, w1, w2, sizes.backward_tokens, sizes.backward_groups)
    return _weight_bytes(dtype, w1, w2, sizes.backward_groups, 4) + 2 * values


def _weight_bytes(dtype: Any, w1: Any, w2: Any, groups: int, sums: int) -> int:
    (l, k, c, p), s = w1.shape, w2.shape[1]  # noqa: E741
    entries = (l * k * c * round_up(p, LANES) + l * s * round_up(k * c, LANES)) // groups
    return entries * (jnp.dtype(dtype).itemsize + sums)


def _value_bytes(dtype: Any, w1: Any, w2: Any, tokens: int, groups: int) -> int:
    (l, k, c, p), s, item = w1.shape, w2.shape[1], jnp.dtype(dtype).itemsize  # noqa: E741
    middle = tokens * k * round_up(l * c // groups, LANES)
    return 2 * item * tokens * (k * p + l * s // groups) + middle * (4 + 2 * item)


def can_interleave(blocks: int) -> bool:
    """Whether pieces of this many output blocks fill the lanes, which the canonical order in the kernel needs."""
    return LANES % blocks == 0


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4, 5, 6, 7))
def monarch_tpu(
    x: Float[Array, "T I"],
    w1: Float[Array, "L K C p"],
    w2: Float[Array, "L s KC"],
    width: int,
    sizes: Sizes,
    scratch: int,
    cores: int,
    canonical: bool,
) -> Float[Array, "T O"]:
    """The first `width` columns of y, in block or in canonical order. Saves x and the weights."""
    l, full = w1.shape[0], w1.shape[0] * w2.shape[1]  # noqa: E741
    if canonical and not _fuses(sizes.groups, l):
        return to_canonical(forward(x, w1, w2, full, sizes, scratch, False), l)[:, :width]
    return forward(x, w1, w2, width, sizes, scratch, canonical)


def _fuses(groups: int, blocks: int) -> bool:
    """Whether the kernel can make the canonical order: it has all output blocks, and pieces of them fill the lanes."""
    return groups == 1 and LANES % blocks == 0


def _forward(x, w1, w2, width, sizes, scratch, cores, canonical):  # noqa: ANN001, ANN202
    return monarch_tpu(x, w1, w2, width, sizes, scratch, cores, canonical), (x, w1, w2)


def _backward(width, sizes, scratch, cores, canonical, saved, dy):  # noqa: ANN001, ANN202
    x, w1, w2 = saved
    l, full = w1.shape[0], w1.shape[0] * w2.shape[1]  # noqa: E741
    if canonical and not _fuses(sizes.backward_groups, l):
        dy, canonical = to_block(pad_to(dy, (dy.shape[0], full)), l), False
    return backward(x, dy, w1, w2, sizes, scratch, cores, canonical)


monarch_tpu.defvjp(_forward, _backward)
