"""DeBERTa's enhanced mask decoder (arXiv 2006.03654, sec. 3.2): absolute positions enter where masked tokens are read out.

    states = enhanced_mask_decoder.apply(params, ids, cfg, segments=real)    # in the place of encoder.apply
    logits = encoder.mlm_logits(params, states, cfg)

With H the states before the last layer, queries start at H + absolute positions and pass through the last layer twice,
with the same weights; keys and values stay those of H. The plain output of the last layer is never computed.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from jaxpt.core.types import Array, Float, Int, Params
from jaxpt.layers import masks
from jaxpt.layers.block import Hook, block
from jaxpt.models import encoder

ROUNDS = 2


def apply(params: Params, inputs: Array, cfg: encoder.Config, **kwargs: Any) -> Float[Array, "B S D"]:
    """The states that the masked-token head reads. Keyword arguments as for `encoder.hidden_states`, but for path and score.

    Raises:
      ValueError: the model has no decoder_positions, or fewer than the inputs.
    """
    before_last = params | {"blocks": jax.tree.map(lambda t: t[:-1], params["blocks"])}
    previous = encoder.hidden_states(before_last, inputs, cfg, **kwargs).final
    return decode(params, previous, cfg, **{k: v for k, v in kwargs.items() if k != "token_types"})


def decode(
    params: Params,
    previous: Float[Array, "B S D"],
    cfg: encoder.Config,
    *,
    segments: Int[Array, "B S"] | None = None,
    positions: Int[Array, "B S"] | None = None,
    mask: masks.Mask | None = None,
    hook: Hook | None = None,
    rounds: int = ROUNDS,
) -> Float[Array, "B S D"]:
    """From the states before the last layer of a post-norm encoder; the rest as for `apply`."""
    table, (b, s) = params.get("decoder_positions"), previous.shape[:2]
    if table is None or not cfg.post_norm:
        raise ValueError(f"needs decoder_positions > 0 and post_norm, got {cfg.decoder_positions} and {cfg.post_norm}")
    if positions is None:
        if s > table.shape[0]:
            raise ValueError(f"{s} positions given, but decoder_positions={table.shape[0]}")
        positions = jnp.broadcast_to(jnp.arange(s), (b, s))
    context = encoder.context(params, cfg, positions, segments=segments, mask=mask, hook=hook)
    last = jax.tree.map(lambda t: t[-1], params["blocks"])
    query = previous + jnp.take(table, positions, axis=0).astype(previous.dtype)
    for _ in range(rounds):
        query, _ = block(query, last, cfg, context, source=previous)
    return query
