"""GPT-BERT's masking (arXiv 2410.24159; submission to BabyLM 2024): short spans, those that were masked least first.

The row is cut into spans of 1 to 3 tokens. A span has two uniform numbers: u, and one that decides what replaces it. The
priority of a token is u * softmax(how often each token was masked before), and the floor(n rate + U[0, 1)) tokens (at least
one) of smallest priority are masked, where n counts special tokens and padding does not. As in the release, tokens that
tie with the last one are masked too: a span is then masked whole, so that some more tokens than that are chosen.

Reconstructed: the release masks the segments of a packed row one by one, this function the row as a whole; and where fewer
tokens are allowed than wanted, the release masks special tokens, this function never does.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxpt.core.rng import fold
from jaxpt.core.types import Array, Bool, Float, Int, PRNGKeyArray
from jaxpt.objectives.corruption import positions
from jaxpt.objectives.corruption.positions import Chosen

LONGEST = 3  # tokens of a span
SURPLUS = LONGEST  # of chosen tokens over round(rate n): one by rounding up, LONGEST - 1 by the last span's ties


def draw(
    key: PRNGKeyArray,
    real: Bool[Array, " S"],
    allowed: Bool[Array, " S"],
    rate: float | Float[Array, ""],
    size: int,
    counts: Int[Array, " S"] | None = None,
) -> tuple[Chosen, Float[Array, " N"]]:
    """The chosen positions in order, and for each the number in [0, 1) by which its span is replaced (`masking.replace`).

    Args:
      real: not padding.
      allowed: positions that may be chosen.
      counts: how often each position was masked before; 0 by default. `counted` brings them up to date.
    """
    length = real.shape[0]
    ends = jnp.cumsum(jax.random.randint(fold(key, "lengths"), (length,), 1, LONGEST + 1))
    span = jnp.searchsorted(ends, jnp.arange(length), side="right")
    u, kind = (jax.random.uniform(fold(key, name), (length,))[span] for name in ("priority", "kind"))
    counts = jnp.zeros(length, jnp.int32) if counts is None else counts
    rarely = jax.nn.softmax(jnp.where(allowed, counts.astype(jnp.float32), -jnp.inf))
    priority = jnp.where(allowed, u * rarely, jnp.inf)
    number = jnp.floor(real.sum() * rate + jax.random.uniform(fold(key, "number"))).astype(jnp.int32)
    last = jnp.sort(priority)[jnp.clip(number, 1, length) - 1]
    chosen = positions.of_mask((priority <= last) & allowed, size)
    return chosen, kind[chosen.position]


def counted(counts: Int[Array, "B S"], position: Int[Array, "B N"], weight: Float[Array, "B N"]) -> Int[Array, "B S"]:
    """The counts with one more where a token was masked: `position` and `weight` of `masking.Masked`."""
    return jax.vmap(lambda c, i, w: c.at[i].add(w.astype(c.dtype)))(counts, position, weight)
