"""What enters the first block: token embeddings, and learned positions where the model has them."""

from __future__ import annotations

import jax.numpy as jnp

from jaxpt.core.types import Array, Float, Int, Params
from jaxpt.sharding import constrain


def embed(
    params: Params, inputs: Array, positions: Int[Array, "B S"] | None, dtype: str
) -> tuple[Float[Array, "B S D"], Int[Array, "B S"]]:
    """The sum of the tables "embedding" and, if there, "positions" of a model's parameters; and the positions.

    Args:
      inputs: token ids [B, S], or embedded inputs [B, S, D] in the place of the first table.
      positions: counted from 0 where None. Those of packed documents start again, so more tokens than the table has
        positions are allowed with them.

    Raises:
      ValueError: positions that are counted here and are more than the table has.
    """
    if jnp.issubdtype(inputs.dtype, jnp.floating):
        x = inputs.astype(dtype)
    else:
        x = constrain(jnp.take(params["embedding"], inputs, axis=0).astype(dtype), "batch", "sequence", "features")
    b, s = x.shape[:2]
    table = params.get("positions")
    if positions is None:
        if table is not None and s > table.shape[0]:
            raise ValueError(f"{s} positions given, but learned_positions={table.shape[0]}")
        positions = jnp.broadcast_to(jnp.arange(s), (b, s))
    if table is not None:
        x = x + jnp.take(table, positions, axis=0).astype(dtype)
    return x, positions
