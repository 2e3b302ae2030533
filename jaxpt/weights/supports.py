"""Random supports of a sparse matrix: positions drawn once, never trained. Each is an initializer of an integer array.

`random_support` is the flat, uniformly random one of SLTrain. The other two are in tile-COO
(`pallas_kernels.sparse_low_rank.layout`), which the TPU kernel needs and which shards with W: `uniform_tiles` follows the
same law; `balanced_tiles` gives every 128 x 128 tile the same share, which is a variant: the chance of each position is the
same, the counts of the tiles no longer vary.
"""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp

from jaxpt.core.types import Array, Int, PRNGKeyArray
from pallas_kernels.sparse_low_rank.layout import EMPTY, TILE, tile_grid


def random_support(positions: int) -> Any:
    """An initializer: for each stacked layer, sorted positions drawn from range(positions) without replacement."""
    if positions >= 2**31:
        raise ValueError(f"a matrix of {positions} entries needs 64-bit positions; split it or lower its size")

    def draw(key: PRNGKeyArray, shape: tuple[int, ...], dtype: Any) -> Int[Array, ...]:
        layers = 1
        for n in shape[:-1]:
            layers *= n

        def one(layer: Int[Array, ""]) -> Int[Array, " N"]:
            order = jax.random.permutation(jax.random.fold_in(key, layer), positions)
            return jnp.sort(order[: shape[-1]]).astype(dtype)

        # One layer at a time: a permutation of all entries of all layers at once would not fit at 7B.
        return jax.lax.map(one, jnp.arange(layers)).reshape(shape)

    return draw


def slots_for_uniform(out_size: int, in_size: int, nnz: int) -> int:
    """Slots per tile that a uniformly random support of nnz entries needs: mean plus six deviations of the fullest tile.

    Whole multiples of 128 where there are that many, since the kernel works in those.
    """
    area = min(TILE, out_size) * min(TILE, in_size)
    mean = nnz * area / max(out_size * in_size, 1)
    deviation = math.sqrt(mean * (1 - area / max(out_size * in_size, 1)))  # hypergeometric, bounded from above
    slots = min(area, math.ceil(mean + 6 * deviation))
    return slots if slots < TILE else min(-(-slots // TILE) * TILE, TILE * TILE)


def uniform_tiles(out_size: int, in_size: int, nnz: int) -> Any:
    """An initializer of [..., R, C, K]: nnz uniformly random positions of W, sorted into tiles.

    An entry for which its tile has no slot left is dropped; with six deviations of room that is one tile in 10^9.
    """
    rows, columns = tile_grid(out_size, in_size)
    flat = random_support(out_size * in_size)

    def draw(key: PRNGKeyArray, shape: tuple[int, ...], dtype: Any) -> Int[Array, ...]:
        *stack, _, _, slots = shape

        def one(support: Int[Array, " N"]) -> Int[Array, "R C K"]:
            row, column = support // in_size, support % in_size
            tile = row // TILE * columns + column // TILE
            order = jnp.argsort(tile, stable=True)
            counts = jnp.bincount(tile, length=rows * columns)
            slot = jnp.arange(nnz) - (jnp.cumsum(counts) - counts)[tile[order]]
            position = (row % TILE * TILE + column % TILE)[order]
            empty = jnp.full((rows * columns, slots), EMPTY, dtype)
            return empty.at[tile[order], slot].set(position.astype(dtype), mode="drop").reshape(rows, columns, slots)

        supports = flat(key, (math.prod(stack), nnz), jnp.int32)
        return jax.lax.map(one, supports).reshape(shape)

    return draw


def balanced_slots(out_size: int, in_size: int, density: float) -> int:
    """Entries of a whole tile (of the largest, where W is smaller than one)."""
    return round(density * min(TILE, out_size) * min(TILE, in_size))


def balanced_tiles(out_size: int, in_size: int, density: float) -> Any:
    """An initializer of [..., R, C, K]: in each tile round(density * its area) random positions; ragged ones have fewer."""
    rows, columns = tile_grid(out_size, in_size)
    numbers = jnp.arange(TILE * TILE)

    def draw(key: PRNGKeyArray, shape: tuple[int, ...], dtype: Any) -> Int[Array, ...]:
        def one(number: Int[Array, ""]) -> Int[Array, " K"]:
            tile = number % (rows * columns)
            tall = jnp.minimum(TILE, out_size - tile // columns * TILE)
            wide = jnp.minimum(TILE, in_size - tile % columns * TILE)
            order = jax.random.uniform(jax.random.fold_in(key, number), (TILE * TILE,))
            inside = (numbers // TILE < tall) & (numbers % TILE < wide)
            first = jnp.argsort(jnp.where(inside, order, 2.0))[: shape[-1]]
            wanted = jnp.round(density * tall * wide)
            return jnp.sort(jnp.where(jnp.arange(shape[-1]) < wanted, first, EMPTY)).astype(dtype)

        return jax.lax.map(one, jnp.arange(math.prod(shape[:-1]))).reshape(shape)

    return draw
