"""Random keys by name. A key is folded, never split, so that adding a consumer changes nobody else's numbers."""

from __future__ import annotations

import zlib

import jax

from jaxpt.core.types import PRNGKeyArray


def fold(key: PRNGKeyArray, *labels: str | int | jax.Array) -> PRNGKeyArray:
    """Folds names and numbers (a step, a layer) into a key, in order.

    A string is folded by its CRC-32, which is the same on every host and in every process.
    """
    for label in labels:
        key = jax.random.fold_in(key, zlib.crc32(label.encode()) if isinstance(label, str) else label)
    return key
