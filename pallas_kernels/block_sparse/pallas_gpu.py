"""Triton kernels: a program per tile of tokens and line of blocks, which loops over the blocks of that line.

The weight gradient has a program per block and part of the tokens; parts are there to fill the chip where there are few
blocks, and are summed afterwards, in a fixed order.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu
from jaxtyping import Array, Float, Int

from pallas_kernels.block_sparse.layout import Lines, by_column, by_row
from pallas_kernels.common.call import gpu_call, like, round_up

INNER = 32  # entries contracted at a time
PROGRAMS = 264  # two for each of an H100's 132 multiprocessors


class Sizes(NamedTuple):
    """Tokens per tile, warps, pipeline stages."""

    tokens: int
    warps: int
    stages: int


def _dot(a: Any, b: Any) -> Any:
    exact = None if a.dtype != jnp.float32 else jax.lax.Precision.HIGHEST  # else Triton multiplies in TF32
    return jnp.dot(a, b, preferred_element_type=jnp.float32, precision=exact)


def _multiply_kernel(start, block, across, x, w, y, *, tokens, transposed) -> None:  # noqa: ANN001
    line = pl.program_id(1)
    _, bm, bn = w.shape
    wide, length = (bn, bm) if transposed else (bm, bn)
    rows = pl.ds(pl.program_id(0) * tokens, tokens)
    inside = (pl.program_id(0) * tokens + jnp.arange(tokens) < x.shape[0])[:, None]
    step = min(INNER, length)

    def add(place: Any, total: Any) -> Any:
        b, first = block[place], across[place] * length
        for k in range(0, length, step):
            valid = (first + k + jnp.arange(step) < x.shape[1])[None, :]
            x_tile = plgpu.load(x.at[rows, pl.ds(first + k, step)], mask=inside & valid, other=0)
            if transposed:
                w_tile = w[b, pl.ds(k, step), pl.ds(0, bn)]
            else:
                w_tile = w[b, pl.ds(0, bm), pl.ds(k, step)].T
            total += _dot(x_tile, w_tile)
        return total

    total = jax.lax.fori_loop(start[line], start[line + 1], add, jnp.zeros((tokens, wide), jnp.float32))
    columns = line * wide + jnp.arange(wide) < y.shape[1]
    plgpu.store(y.at[rows, pl.ds(line * wide, wide)], total.astype(y.dtype), mask=inside & columns[None, :])


def multiply(
    x: Float[Array, "T I"],
    blocks: Float[Array, "N bm bn"],
    lines: Lines,
    width: int,
    sizes: Sizes,
    transposed: bool,
) -> Float[Array, "T O"]:
    """The first `width` columns of x W^T by the lines of rows, or of x W by those of columns where `transposed`."""
    return gpu_call(
        functools.partial(_multiply_kernel, tokens=sizes.tokens, transposed=transposed),
        like((x.shape[0], width), x.dtype, x, blocks, *lines),
        *lines,
        x,
        blocks,
        grid=(pl.cdiv(x.shape[0], sizes.tokens), lines.start.shape[0] - 1),
        warps=sizes.warps,
        stages=sizes.stages,
        flops=2 * x.shape[0] * blocks.size,
        nbytes=x.nbytes + blocks.nbytes + x.shape[0] * width * x.dtype.itemsize,
        name="block_sparse_" + ("dx" if transposed else "forward"),
    )


def _gradient_kernel(rows, columns, x, dy, dw, *, per_part) -> None:  # noqa: ANN001
    b, part = pl.program_id(0), pl.program_id(1)
    _, _, bm, bn = dw.shape
    first_out, first_in = rows[b] * bm, columns[b] * bn
    out_of, into = pl.ds(first_out, bm), pl.ds(first_in, bn)
    inside_out = (first_out + jnp.arange(bm) < dy.shape[1])[None, :]
    inside_in = (first_in + jnp.arange(bn) < x.shape[1])[None, :]

    def add(step: Any, total: Any) -> Any:
        first = part * per_part + step * INNER
        tokens, inside = pl.ds(first, INNER), (first + jnp.arange(INNER) < x.shape[0])[:, None]
        dy_tile = plgpu.load(dy.at[tokens, out_of], mask=inside & inside_out, other=0)
        x_tile = plgpu.load(x.at[tokens, into], mask=inside & inside_in, other=0)
        return total + _dot(dy_tile.T, x_tile)

    total = jax.lax.fori_loop(0, per_part // INNER, add, jnp.zeros((bm, bn), jnp.float32))
    dw[part, b, pl.ds(0, bm), pl.ds(0, bn)] = total


def gradients(
    x: Float[Array, "T I"],
    dy: Float[Array, "T O"],
    blocks: Float[Array, "N bm bn"],
    rows: Int[Array, " N"],
    columns: Int[Array, " N"],
    sizes: Sizes,
) -> Float[Array, "N bm bn"]:
    """dW of every block."""
    n, bm, bn = blocks.shape
    parts = max(1, min(8, PROGRAMS // n))
    per_part = round_up(-(-x.shape[0] // parts), INNER)
    dw = gpu_call(
        functools.partial(_gradient_kernel, per_part=per_part),
        like((parts, n, bm, bn), jnp.float32, x, dy, rows, columns),
        rows,
        columns,
        x,
        dy,
        grid=(n, parts),
        warps=sizes.warps,
        stages=sizes.stages,
        flops=2 * x.shape[0] * n * bm * bn,
        nbytes=x.nbytes + dy.nbytes + 4 * parts * n * bm * bn,
        name="block_sparse_gradients",
    )
    return dw.sum(0).astype(blocks.dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def block_sparse_gpu(
    x: Float[Array, "T I"],
    blocks: Float[Array, "N bm bn"],
    rows: Int[Array, " N"],
    columns: Int[Array, " N"],
    out_size: int,
    sizes: Sizes,
) -> Float[Array, "T O"]:
    """y = x W^T. Saves x, the blocks and where they are."""
    lines = by_row(rows, columns, -(-out_size // blocks.shape[1]))
    return multiply(x, blocks, lines, out_size, sizes, transposed=False)


def _forward(x, blocks, rows, columns, out_size, sizes):  # noqa: ANN001, ANN202
    return block_sparse_gpu(x, blocks, rows, columns, out_size, sizes), (x, blocks, rows, columns)


def _backward(out_size, sizes, saved, dy):  # noqa: ANN001, ANN202
    x, blocks, rows, columns = saved
    lines = by_column(rows, columns, -(-x.shape[1] // blocks.shape[2]))
    dx = multiply(dy, blocks, lines, x.shape[1], sizes, transposed=True)
    return dx, gradients(x, dy, blocks, rows, columns, sizes), None, None


block_sparse_gpu.defvjp(_forward, _backward)
