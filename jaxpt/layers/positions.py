"""Positions inside attention: rotary and relative ones.

Rotary (RoFormer, arXiv 2104.09864) in the half-split layout of LLaMA and GPT-NeoX, whole or partial. Relative as in T5
(arXiv 1910.10683, sec. 2.1), a learned bias for each bucket of distances and each head; and `skew`, for all relative ones.
"""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np

from jaxpt.core.types import Array, Float, Int


def rotary(
    x: Float[Array, "B S H K"], positions: Int[Array, "B S"], base: float = 10_000.0, fraction: float = 1.0
) -> Float[Array, "B S H K"]:
    """Rotates the first `fraction` of each head's dimensions by angles position / base^(2i/d); the rest passes through."""
    rotated = int(x.shape[-1] * fraction)
    if rotated % 2:
        raise ValueError(f"rotary needs an even number of dimensions, got {rotated} of {x.shape[-1]} ({fraction=})")
    inverse = base ** (-jnp.arange(0, rotated, 2, dtype=jnp.float32) / rotated)
    angles = positions.astype(jnp.float32)[:, :, None, None] * inverse
    cos, sin = jnp.cos(angles), jnp.sin(angles)
    first, second = x[..., : rotated // 2].astype(jnp.float32), x[..., rotated // 2 : rotated].astype(jnp.float32)
    turned = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], -1).astype(x.dtype)
    return jnp.concatenate([turned, x[..., rotated:]], -1) if rotated < x.shape[-1] else turned


def relative_bias(
    table: Float[Array, "N H"],
    queries: int,
    keys: int,
    max_distance: int,
    *,
    both_ways: bool,
    start: Int[Array, ""] | int = 0,
) -> Float[Array, "1 H S T"]:
    """The bias on the attention logits of T5, in float32.

    Args:
      table: one row a bucket.
      max_distance: from here on all distances share a bucket.
      both_ways: buckets for keys after the query too; without, these share that of distance 0 (a causal decoder).
      start: index of the first query among the keys (a decoding cache).
    """
    known = np.arange(-max_distance, max_distance + 1)
    bucket = jnp.asarray(relative_buckets(known, table.shape[0], max_distance, both_ways=both_ways))
    ahead = jnp.arange(1 - queries, keys) - start  # of the keys, from the last query and the first key on
    of_distance = table.astype(jnp.float32)[bucket[jnp.clip(ahead, -max_distance, max_distance) + max_distance]].T
    rows = jnp.broadcast_to(of_distance[:, None], (table.shape[1], queries, len(ahead)))
    return skew(rows, keys)[None]


def relative_buckets(ahead: np.ndarray, buckets: int, max_distance: int, *, both_ways: bool) -> np.ndarray:
    """The bucket, from 0 to buckets - 1, of each key that is so far ahead of its query (behind it where negative).

    Half of the buckets of a direction are for one distance each, the other half grow logarithmically up to max_distance.
    """
    half = buckets // 2 if both_ways else buckets
    distance = np.abs(ahead) if both_ways else np.maximum(-ahead, 0)
    exact = half // 2
    if exact < 1 or max_distance <= exact:
        raise ValueError(f"{buckets} buckets cannot cover a distance of {max_distance} with {both_ways=}")
    log = np.log(np.maximum(distance, 1).astype(np.float32) / exact) / np.float32(np.log(max_distance / exact))
    far = np.minimum(exact + (log * (half - exact)).astype(np.int64), half - 1)
    return np.where(distance < exact, distance, far) + (half * (ahead > 0) if both_ways else 0)


def skew(x: Float[Array, "*B S N"], columns: int) -> Float[Array, "*B S T"]:
    """[..., i, j] is x[..., i, j - i + S - 1] for j < columns = N - S + 1: diagonals become columns, by a reshape."""
    *lead, s, n = x.shape
    flat = jnp.pad(x, [(0, 0)] * (len(lead) + 1) + [(0, 1)]).reshape(*lead, s * (n + 1))
    return flat[..., s - 1 : s - 1 + s * n].reshape(*lead, s, n)[..., :columns]
