"""Documents whose relatedness is known exactly: each is of one topic, and each topic has a table of its own.

    aQ cB bK ...        key a has value Q in this topic, c has B, ...

A document lists every key of its topic once, in random order. Keys tell nothing about values: without another document of
the same topic before it, no model does better than ln(values) nats a value on a new topic.
"""

from __future__ import annotations

import string

import numpy as np

from jaxpt.data.shards import Item

KEYS, VALUES = string.ascii_lowercase, string.ascii_uppercase


def table_items(topics: int, per_topic: int, keys: int, values: int, seed: int, name: str) -> list[Item]:
    """Documents of `topics` topics, topic by topic, of 3 * keys - 1 characters each.

    Raises:
      ValueError: more keys or values than letters.
    """
    if not (1 <= keys <= len(KEYS) and 1 <= values <= len(VALUES)):
        raise ValueError(f"there are 1 to {len(KEYS)} keys and values, got {keys} keys and {values} values")
    rng, items = np.random.default_rng(seed), []
    for topic in range(topics):
        table = rng.integers(0, values, keys)
        for number in range(per_topic):
            text = " ".join(f"{KEYS[key]}{VALUES[table[key]]}" for key in rng.permutation(keys))
            items.append(Item(f"{name}:{topic}.{number}", "tables", len(text), text))
    return items
