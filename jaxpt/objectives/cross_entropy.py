"""Cross-entropy of a large vocabulary in chunks of the sequence: the full [B, S, V] logits never exist at once.

Each chunk's logits are computed, reduced to two numbers a token, and recomputed in the backward pass.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxpt.core.types import Array, Float, Int
from jaxpt.sharding import constrain
from jaxpt.weights import Matrix

# Logits per sequence and chunk above which a sequence is cut; the backward pass holds three buffers of this size.
CHUNK_ENTRIES = 2**21


def chunk_length(sequence: int, vocabulary: int) -> int:
    """The largest divisor of the sequence length whose logits stay within CHUNK_ENTRIES per sequence."""
    wanted = max(1, CHUNK_ENTRIES // vocabulary)
    return max(n for n in range(1, sequence + 1) if sequence % n == 0 and (n <= wanted or n == 1))


def cross_entropy(
    hidden: Float[Array, "B S D"],
    head: Matrix,
    labels: Int[Array, "B S"],
    loss_weight: Float[Array, "B S"],
    chunk: int | None = None,
    *,
    bias: Float[Array, " V"] | None = None,
    z_loss: float = 0.0,
) -> tuple[Float[Array, " B"], Float[Array, " B"]]:
    """Per sequence: sum of loss_weight * -log p(label) in nats, and the weighted number of correct argmax predictions.

    Args:
      head: the [V, D] output matrix.
      chunk: positions per chunk, a divisor of S; `chunk_length(S, V)` by default.
      bias: added to the logits.
      z_loss: so many times the square of the logits' log-sum-exp is added to each token's loss (arXiv 2204.02311).
    """
    b, s, _ = hidden.shape
    chunk = chunk_length(s, head.shape[0]) if chunk is None else chunk
    if chunk < 1 or s % chunk:
        raise ValueError(f"the chunk must divide the sequence length {s}, got {chunk}")
    if chunk == s:
        return _chunk(hidden, head, labels, loss_weight, bias, z_loss)

    def cut(x: Array) -> Array:
        return jnp.moveaxis(x.reshape(b, s // chunk, chunk, *x.shape[2:]), 1, 0)

    @jax.checkpoint
    def one(sums: tuple[Array, Array], part: tuple[Array, Array, Array]) -> tuple[tuple[Array, Array], None]:
        loss, correct = _chunk(part[0], head, *part[1:], bias, z_loss)
        return (sums[0] + loss, sums[1] + correct), None

    zeros = jnp.zeros(b, jnp.float32)
    return jax.lax.scan(one, (zeros, zeros), (cut(hidden), cut(labels), cut(loss_weight)))[0]


def _chunk(
    hidden: Array, head: Matrix, labels: Array, loss_weight: Array, bias: Array | None, z_loss: float
) -> tuple[Array, Array]:
    logits = head.apply(hidden).astype(jnp.float32)
    logits = constrain(logits if bias is None else logits + bias, "batch", "sequence", "vocab")
    peak = jax.lax.stop_gradient(logits.max(-1, keepdims=True))
    log_norm = jnp.log(jnp.exp(logits - peak).sum(-1)) + peak[..., 0]
    # one-hot by comparison: under a vocabulary split over devices a gather would collect all logits
    chosen = jnp.where(labels[..., None] == jnp.arange(logits.shape[-1]), logits, 0).sum(-1)
    correct = (chosen >= peak[..., 0]).astype(jnp.float32)
    weight = loss_weight.astype(jnp.float32)
    losses = log_norm - chosen
    if z_loss:
        losses = losses + z_loss * jnp.square(log_norm)
    return jnp.sum(weight * losses, -1), jnp.sum(weight * correct, -1)
