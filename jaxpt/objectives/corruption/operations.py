"""Tokens swapped, inserted and removed: the corruptions of MCL's courses (arXiv 2305.03981).

No training code was released. Reconstructed: the swap is a random cycle through the chosen positions, so that every one of
them gets another position's token; a row is cut by as many tokens as are inserted, so that its length stays.
"""

from __future__ import annotations

import jax.numpy as jnp

from jaxpt.core.types import Array, Bool, Int, PRNGKeyArray
from jaxpt.objectives.corruption import positions
from jaxpt.objectives.corruption.positions import Chosen


def swap(
    key: PRNGKeyArray, ids: Int[Array, " S"], allowed: Bool[Array, " S"], number: int | Int[Array, ""], size: int
) -> tuple[Int[Array, " S"], Chosen]:
    """The row with the tokens of `number` allowed positions moved along a random cycle through them, and the positions.

    Whether a token was replaced is whether it differs from the original: equal tokens swap without a trace. One position
    alone keeps its token.

    Args:
      size: static number of entries of the result's positions.
    """
    chosen = positions.draw(key, allowed, number, size)  # in random order: the next entry is a random other position
    many = jnp.maximum(chosen.valid.sum(), 1)
    source = chosen.position[(jnp.arange(size) + 1) % many]
    return positions.put(ids, chosen, ids[source]), chosen


def insert(
    key: PRNGKeyArray, ids: Int[Array, " S"], length: int | Int[Array, ""], number: int | Int[Array, ""], token: int
) -> tuple[Int[Array, " S"], Bool[Array, " S"]]:
    """The row with `token` inserted at `number` random places, never before the first token, and where it was inserted.

    The first length - number tokens of the row stay, so that it is as long as before; `remove` gives them back.
    """
    at = jnp.arange(len(ids))
    number = jnp.clip(number, 0, jnp.maximum(length - 1, 0))
    inserted = positions.spread(positions.draw(key, (at > 0) & (at < length), number, len(ids)), len(ids))
    kept = ids[jnp.maximum(jnp.cumsum(~inserted) - 1, 0)]
    return jnp.where(at < length, jnp.where(inserted, token, kept), ids), inserted


def remove(ids: Int[Array, " S"], removed: Bool[Array, " S"], pad_id: int) -> Int[Array, " S"]:
    """The row without the tokens at `removed`; padding takes their place at the end."""
    order = jnp.argsort(removed)
    return jnp.where(jnp.arange(len(ids)) < (~removed).sum(), ids[order], pad_id)
