"""TPU kernels: all blocks stay in VMEM, tokens stream past them, and a scalar-prefetched list says which block meets what.

`multiply`, for y and for dX: one grid step per tile of tokens and line of blocks loops over the blocks of that line, each
times the slice of x that its place names. x is read once, and so are the blocks. A line without blocks writes zeros.
`gradients`: dW of every block that is there, [bm, T] x [T, bn], summed over the tokens in VMEM; in groups of blocks where
they do not fit.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float, Int

from pallas_kernels.block_sparse.layout import Lines, by_column, by_row
from pallas_kernels.common.call import inside, like, pad_to, precision, round_up, tpu_call


class Sizes(NamedTuple):
    """Tokens per step of a product and of the gradients, and groups of blocks in the latter."""

    tokens: int
    gradient_tokens: int
    groups: int = 1


def _multiply_kernel(start, block, across, x, w, y, total, *, width, transposed) -> None:  # noqa: ANN001
    line = pl.program_id(1)
    length = w.shape[1 if transposed else 2]  # of the slice of x that a block meets
    total[...] = jnp.zeros_like(total)

    def add(place: Any, _: None) -> None:
        first = pl.multiple_of(across[place] * length, length)
        total[...] += jax.lax.dot_general(
            inside(x[:, pl.ds(first, length)], (0, first), (x.shape[0], width)),
            w[block[place]],
            (((1,), (0 if transposed else 1,)), ((), ())),
            preferred_element_type=jnp.float32,
            precision=precision(x.dtype),
        )

    jax.lax.fori_loop(start[line], start[line + 1], add, None)
    y[...] = total[...].astype(y.dtype)


def multiply(
    x: Float[Array, "T I"],
    blocks: Float[Array, "N bm bn"],
    lines: Lines,
    width: int,
    sizes: Sizes,
    scratch: int,
    transposed: bool,
) -> Float[Array, "T O"]:
    """The first `width` columns of x W^T by the lines of rows, or of x W by those of columns where `transposed`."""
    n, bm, bn = blocks.shape
    length, wide = (bm, bn) if transposed else (bn, bm)
    tokens = min(sizes.tokens, round_up(x.shape[0], 16))
    return tpu_call(
        functools.partial(_multiply_kernel, width=x.shape[1], transposed=transposed),
        like((x.shape[0], width), x.dtype, x, blocks, *lines),
        *lines,
        x,
        blocks,
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=3,
            grid=(pl.cdiv(x.shape[0], tokens), lines.start.shape[0] - 1),
            in_specs=[
                pl.BlockSpec((tokens, round_up(x.shape[1], length)), lambda t, i, *_: (t, 0)),
                pl.BlockSpec((n, bm, bn), lambda t, i, *_: (0, 0, 0), pipeline_mode=pl.Buffered(1)),
            ],
            out_specs=pl.BlockSpec((tokens, wide), lambda t, i, *_: (t, i)),
            scratch_shapes=[pltpu.VMEM((tokens, wide), jnp.float32)],
        ),
        semantics=("parallel", "arbitrary"),
        scratch=scratch,
        flops=2 * x.shape[0] * blocks.size,
        nbytes=x.nbytes + blocks.nbytes + x.shape[0] * width * x.dtype.itemsize,
        name="block_sparse_" + ("dx" if transposed else "forward"),
    )


def _gradient_kernel(rows, columns, x, dy, dw, *, tokens, out_size, in_size) -> None:  # noqa: ANN001
    group, step = pl.program_id(0), pl.program_id(1)
    own, bm, bn = dw.shape

    @pl.when(step == 0)
    def _() -> None:
        dw[...] = jnp.zeros_like(dw)

    def add(i: Any, _: None) -> None:
        b = group * own + i
        out_of, into = pl.multiple_of(rows[b] * bm, bm), pl.multiple_of(columns[b] * bn, bn)
        start = step * x.shape[0]
        dw[i] += jax.lax.dot_general(
            inside(dy[:, pl.ds(out_of, bm)], (start, out_of), (tokens, out_size)),
            inside(x[:, pl.ds(into, bn)], (start, into), (tokens, in_size)),
            (((0,), (0,)), ((), ())),
            preferred_element_type=jnp.float32,
            precision=precision(x.dtype),
        )

    jax.lax.fori_loop(0, own, add, None)


def gradients(
    x: Float[Array, "T I"],
    dy: Float[Array, "T O"],
    blocks: Float[Array, "N bm bn"],
    rows: Int[Array, " N"],
    columns: Int[Array, " N"],
    sizes: Sizes,
    scratch: int,
) -> Float[Array, "N bm bn"]:
    """dW of every block."""
    n, bm, bn = blocks.shape
    groups, tokens = min(sizes.groups, n), min(sizes.gradient_tokens, round_up(x.shape[0], 16))
    padded = round_up(n, groups)  # the last group computes its surplus blocks for nothing
    rows, columns = (pad_to(t.astype(jnp.int32), (padded,)) for t in (rows, columns))
    dw = tpu_call(
        functools.partial(_gradient_kernel, tokens=x.shape[0], out_size=dy.shape[1], in_size=x.shape[1]),
        like((padded, bm, bn), jnp.float32, x, dy, rows, columns),
        rows,
        columns,
        x,
        dy,
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=2,
            grid=(groups, pl.cdiv(x.shape[0], tokens)),
            in_specs=[
                pl.BlockSpec((tokens, round_up(x.shape[1], bn)), lambda g, t, *_: (t, 0)),
                pl.BlockSpec((tokens, round_up(dy.shape[1], bm)), lambda g, t, *_: (t, 0)),
            ],
            out_specs=pl.BlockSpec(
                (padded // groups, bm, bn),
                lambda g, t, *_: (g, 0, 0),
                pipeline_mode=pl.Buffered(1 if groups == 1 else 2),
            ),
        ),
        semantics=("parallel", "arbitrary"),
        scratch=scratch,
        flops=2 * x.shape[0] * padded * bm * bn,
        nbytes=groups * (x.nbytes + dy.nbytes) + 4 * padded * bm * bn,
        name="block_sparse_gradients",
    )
    return dw[:n].astype(blocks.dtype)


def multiply_scratch(dtype: Any, blocks: Any, width: int, sizes: Sizes) -> int:
    """Bytes of VMEM of a product whose wider side is `width`."""
    n, bm, bn = blocks.shape
    item = jnp.dtype(dtype).itemsize
    wide = max(bm, bn)
    return item * n * bm * bn + 2 * item * sizes.tokens * (width + wide) + 2 * 4 * sizes.tokens * wide


def gradient_scratch(dtype: Any, blocks: Any, widths: int, sizes: Sizes) -> int:
    """Bytes of VMEM of the gradients; `widths` is in + out."""
    n, bm, bn = blocks.shape
    own = -(-n // sizes.groups) * (1 if sizes.groups == 1 else 2)
    return 4 * (own + 2) * bm * bn + 2 * jnp.dtype(dtype).itemsize * sizes.gradient_tokens * (widths + bm + bn)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5, 6))
def block_sparse_tpu(
    x: Float[Array, "T I"],
    blocks: Float[Array, "N bm bn"],
    rows: Int[Array, " N"],
    columns: Int[Array, " N"],
    out_size: int,
    sizes: Sizes,
    scratch: int,
) -> Float[Array, "T O"]:
    """y = x W^T. Saves x, the blocks and where they are."""
    lines = by_row(rows, columns, -(-out_size // blocks.shape[1]))
    return multiply(x, blocks, lines, out_size, sizes, scratch, transposed=False)


def _forward(x, blocks, rows, columns, out_size, sizes, scratch):  # noqa: ANN001, ANN202
    return block_sparse_tpu(x, blocks, rows, columns, out_size, sizes, scratch), (x, blocks, rows, columns)


def _backward(out_size, sizes, scratch, saved, dy):  # noqa: ANN001, ANN202
    x, blocks, rows, columns = saved
    lines = by_column(rows, columns, -(-x.shape[1] // blocks.shape[2]))
    dx = multiply(dy, blocks, lines, x.shape[1], sizes, scratch, transposed=True)
    return dx, gradients(x, dy, blocks, rows, columns, sizes, scratch), None, None


block_sparse_tpu.defvjp(_forward, _backward)
