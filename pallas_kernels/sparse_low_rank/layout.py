"""Tile-COO: the entries of S grouped by 128 x 128 tile, so that a kernel can build any tile of W by itself.

A matrix of [out, in] has R x C tiles (the last ones may be ragged). Values v and positions p are [R, C, K], K slots per
tile: p = row * 128 + column inside the tile (it fits int16). Slots beyond a tile's entries hold `EMPTY`, which names no
position: they contribute nothing and their gradient is exactly zero. Since no entry leaves its tile, cutting W into shards
along tile borders cuts v and p with it.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

TILE = 128
EMPTY = TILE * TILE


def tile_grid(out_size: int, in_size: int) -> tuple[int, int]:
    """(R, C): rows and columns of tiles, ragged ones included."""
    return -(-out_size // TILE), -(-in_size // TILE)


def flat_positions(p: Int[Array, "R C K"], out_size: int, in_size: int) -> Int[Array, "R C K"]:
    """Where each slot lies in the row-major order of W; an empty slot gets a number of its own from out * in on."""
    p = p.astype(jnp.int32)
    row = jnp.arange(p.shape[0])[:, None, None] * TILE + p // TILE
    column = jnp.arange(p.shape[1])[None, :, None] * TILE + p % TILE
    beyond = out_size * in_size + jnp.arange(p.size).reshape(p.shape)
    return jnp.where(p == EMPTY, beyond, row * in_size + column)


def to_tiles(
    v: Float[Array | np.ndarray, " N"],
    support: Int[Array | np.ndarray, " N"],
    shape: tuple[int, int],
    slots: int | None = None,
) -> tuple[Float[np.ndarray, "R C K"], Int[np.ndarray, "R C K"]]:
    """Flat values and row-major positions as tile-COO, outside jit. `slots` is K; what the fullest tile needs by default.

    Raises:
      ValueError: a tile has more entries than `slots`.
    """
    flat, values = np.asarray(support), np.asarray(v)
    rows, columns = tile_grid(*shape)
    row, column = np.divmod(flat, shape[1])
    tile = row // TILE * columns + column // TILE
    order = np.argsort(tile, kind="stable")
    counts = np.bincount(tile, minlength=rows * columns)
    needed = int(counts.max(initial=0))
    k = needed if slots is None else slots
    if needed > k:
        raise ValueError(f"a tile holds {needed} entries, more than slots={k}")
    slot = np.arange(flat.size) - np.repeat(np.cumsum(counts) - counts, counts)
    v_tiles = np.zeros((rows * columns, k), values.dtype)
    p_tiles = np.full((rows * columns, k), EMPTY, np.int16)
    v_tiles[tile[order], slot] = values[order]
    p_tiles[tile[order], slot] = (row % TILE * TILE + column % TILE)[order]
    return v_tiles.reshape(rows, columns, k), p_tiles.reshape(rows, columns, k)


def from_tiles(
    v: Float[Array, "R C K"], p: Int[Array, "R C K"], shape: tuple[int, int]
) -> tuple[Float[np.ndarray, " N"], Int[np.ndarray, " N"]]:
    """The inverse of `to_tiles`, outside jit: values and sorted row-major positions, empty slots left out."""
    positions = np.asarray(flat_positions(jnp.asarray(p), *shape)).reshape(-1)
    kept = np.flatnonzero(positions < shape[0] * shape[1])
    kept = kept[np.argsort(positions[kept])]
    return np.asarray(v).reshape(-1)[kept], positions[kept].astype(np.int32)


def is_tiled(support: Int[Array, ...] | jax.ShapeDtypeStruct) -> bool:
    """Whether a support is in tile-COO (three axes) rather than flat (one)."""
    return len(support.shape) == 3
