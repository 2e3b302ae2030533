"""Who sees whom, described rather than spelled out, so that an attention kernel can use the description.

A query sees a key if all of the given conditions hold: causal order (or the key lies in the prefix), same segment, and the
free-form boolean array. A query for which no key is left attends to nothing, and its output is zero.
"""

from __future__ import annotations

import jax.numpy as jnp
from flax import struct

from jaxpt.core.trees import static
from jaxpt.core.types import Array, Bool, Int


@struct.dataclass
class Mask:
    """All fields are optional; the default mask lets everybody see everything.

    Attributes:
      causal: a query sees keys at its own index or before.
      prefix: [B], number of leading keys that everyone sees in spite of `causal` (prefix language models).
      segments: [B, S], ids of the queries' segments; a query sees keys of its own segment only. Id 0 is padding: a query
        with id 0 sees nothing.
      key_segments: [B, T], the keys' segments where they differ from the queries' (a decoding cache).
      query_start: index of the first query among the keys (a decoding cache).
      allowed: [B or 1, S, T], any boolean condition.
    """

    causal: bool = static(default=False)
    prefix: Int[Array, " B"] | None = None
    segments: Int[Array, "B S"] | None = None
    key_segments: Int[Array, "B T"] | None = None
    query_start: Int[Array, ""] | None = None
    allowed: Bool[Array, "#B S T"] | None = None

    @property
    def simple(self) -> bool:
        """Whether causal order and shared segments say it all: what flash kernels know how to skip blocks by."""
        return self.prefix is None and self.key_segments is None and self.query_start is None and self.allowed is None


def causal(segments: Int[Array, "B S"] | None = None) -> Mask:
    """A language model's mask; with segments, documents packed into one sequence do not see each other."""
    return Mask(causal=True, segments=segments)


def full(segments: Int[Array, "B S"] | None = None) -> Mask:
    """An encoder's mask."""
    return Mask(segments=segments)


def prefix_lm(prefix: Int[Array, " B"], segments: Int[Array, "B S"] | None = None) -> Mask:
    """Full attention inside the first `prefix` positions, causal after."""
    return Mask(causal=True, prefix=prefix, segments=segments)


def to_array(mask: Mask, queries: int, keys: int) -> Bool[Array, "#B S T"] | None:
    """The boolean array [B or 1, queries, keys], or None where everybody sees everything."""
    visible = None if mask.allowed is None else mask.allowed
    if mask.causal:
        start = 0 if mask.query_start is None else mask.query_start
        order = (jnp.arange(queries)[:, None] + start >= jnp.arange(keys)[None, :])[None]
        if mask.prefix is not None:
            order = order | (jnp.arange(keys)[None, None, :] < mask.prefix[:, None, None])
        visible = order if visible is None else visible & order
    if mask.segments is not None:
        key_segments = mask.segments if mask.key_segments is None else mask.key_segments
        same = (mask.segments[:, :, None] == key_segments[:, None, :]) & (mask.segments[:, :, None] != 0)
        visible = same if visible is None else visible & same
    return visible
