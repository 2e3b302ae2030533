"""Exact numbers of positions of a row, without replacement, in arrays whose size does not depend on the row.

chosen = draw(key, allowed, count(0.15, real.sum()), capacity(0.15, S))
corrupted = put(ids, chosen, new_tokens)
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxpt.core.types import Array, Bool, Float, Int, PRNGKeyArray, Shaped


class Chosen(NamedTuple):
    """Positions of a row [N], each once, and which of the N entries count. The others hold 0."""

    position: Int[Array, "*B N"]
    valid: Bool[Array, "*B N"]


def count(rate: float | Float[Array, ""], tokens: Int[Array, ""]) -> Int[Array, ""]:
    """max(1, round(rate * tokens)), the number of BERT and ELECTRA; 0 of 0 tokens. Halves go to the even number."""
    number = jnp.round(jnp.asarray(rate, jnp.float32) * tokens).astype(jnp.int32)
    return jnp.where(tokens > 0, jnp.clip(number, 1, jnp.maximum(tokens, 1)), 0)


def capacity(rate: float, size: int) -> int:
    """The largest `count` of a row of `size` tokens.

    Raises:
      ValueError: a rate outside (0, 1], or no tokens.
    """
    if not 0 < rate <= 1 or size < 1:
        raise ValueError(f"need a rate in (0, 1] and at least one token, got rate={rate} of {size} tokens")
    return max(1, int(np.round(np.float32(rate) * np.float32(size))))


def draw(key: PRNGKeyArray, allowed: Bool[Array, " S"], number: int | Int[Array, ""], size: int) -> Chosen:
    """`number` of the allowed positions, uniformly without replacement and in random order; all of them if they are fewer.

    Args:
      size: N of the result, which also bounds the number.

    Raises:
      ValueError: a size outside 1 .. S.
    """
    length = allowed.shape[0]
    if not 1 <= size <= length:
        raise ValueError(f"the number of entries must be between 1 and the row's {length}, got {size}")
    noise = jnp.where(allowed, jax.random.uniform(key, (length,)), jnp.inf)
    index = jnp.argsort(noise)[:size]
    valid = jnp.arange(size) < jnp.minimum(number, allowed.sum())
    return Chosen(jnp.where(valid, index, 0), valid)


def of_mask(mask: Bool[Array, " S"], size: int) -> Chosen:
    """The first `size` positions at which the mask is set, in order."""
    valid = jnp.arange(size) < mask.sum()
    return Chosen(jnp.where(valid, jnp.argsort(~mask)[:size], 0), valid)


def spread(chosen: Chosen, length: int) -> Bool[Array, " S"]:
    """The mask [length] of the chosen positions."""
    return put(jnp.zeros(length, bool), chosen, jnp.ones(chosen.position.shape, bool))


def put(row: Shaped[Array, " S"], chosen: Chosen, values: Shaped[Array, " N"]) -> Shaped[Array, " S"]:
    """The row with values[n] at position[n], where that is valid."""
    return row.at[jnp.where(chosen.valid, chosen.position, row.shape[0])].set(values, mode="drop")
