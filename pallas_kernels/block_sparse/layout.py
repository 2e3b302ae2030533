"""Block-sparse matrices: the blocks that are there, [N, bm, bn], with their row and column of blocks, sorted by row.

The kernels need the blocks of one row (for y) or of one column (for dX) side by side: `by_row` and `by_column` give where
each line starts, and for each place in it the block and the line across. Empty lines have no places. Both are a few
operations on N integers.
"""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float, Int


class Lines(NamedTuple):
    """`start` [lines + 1]; `block` and `across` [N]: which block, and in which line of the other direction."""

    start: Int[Array, " M"]
    block: Int[Array, " N"]
    across: Int[Array, " N"]


def by_row(rows: Int[Array, " N"], columns: Int[Array, " N"], count: int) -> Lines:
    """The blocks of each of `count` rows of blocks."""
    return _lines(rows, columns, count)


def by_column(rows: Int[Array, " N"], columns: Int[Array, " N"], count: int) -> Lines:
    """The blocks of each of `count` columns of blocks."""
    return _lines(columns, rows, count)


def _lines(along: Int[Array, " N"], across: Int[Array, " N"], count: int) -> Lines:
    along, across = jnp.asarray(along), jnp.asarray(across)  # NumPy arrays cannot be indexed by a traced order
    order = jnp.lexsort((across, along)).astype(jnp.int32)
    start = jnp.searchsorted(along[order], jnp.arange(count + 1)).astype(jnp.int32)
    return Lines(start, order, across[order].astype(jnp.int32))


def densify(
    blocks: Float[Array, "N bm bn"], rows: Int[Array, " N"], columns: Int[Array, " N"], out_size: int, in_size: int
) -> Float[Array, "O I"]:
    """W [out, in]; what the blocks at the edge have beyond it is cut off."""
    _, bm, bn = blocks.shape
    down, across = -(-out_size // bm), -(-in_size // bn)
    grid = jnp.zeros((down, across, bm, bn), blocks.dtype).at[rows, columns].set(blocks, unique_indices=True)
    return grid.swapaxes(1, 2).reshape(down * bm, across * bn)[:out_size, :in_size]
