"""From a function of one row to one of a batch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxpt.core.rng import fold
from jaxpt.core.types import Array, Bool, Int, PRNGKeyArray


def over_rows(fn: Callable[..., Any], key: PRNGKeyArray, batch: dict[str, Array], *arrays: Array) -> Any:
    """`fn(key of the row, *row of each array)` for all rows of the arrays [B, ...].

    Args:
      batch: its "row" [B], if there, are the numbers that the keys are folded with: a part of a batch that carries them
        draws what the whole batch draws. 0 .. B - 1 by default.
    """
    numbers = batch.get("row", jnp.arange(arrays[0].shape[0]))
    keys = jax.vmap(lambda i: fold(key, i))(numbers)
    return jax.vmap(fn)(keys, *arrays)


def real_tokens(batch: dict[str, Array]) -> Bool[Array, "B S"]:
    """Where "inputs" is text: segment_ids are not 0, or everywhere without them."""
    segments: Int[Array, "B S"] | None = batch.get("segment_ids")
    return jnp.ones(batch["inputs"].shape, bool) if segments is None else segments != 0
