"""Layer-wise decay of the learning rate, for fine-tuning: each layer's rate is so much of the one above it.

    optax.chain(adam(rate), layer_decay(0.8, "model/"))        # ELECTRA (arXiv 2003.10555, appendix B)

Of L layers, layer l from 1 has decay^(L + 1 - l), embeddings decay^(L + 1), and everything above the layers, heads and a
final norm, 1.
"""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import optax

from jaxpt.core import trees
from jaxpt.core.types import Array, PyTree

BELOW = ("embedding", "positions", "token_types", "projection", "relative")  # the first layer; beginnings of names


def layer_decay(decay: float, prefix: str = "") -> optax.GradientTransformation:
    """Scales updates by depth. Layers are the leading axis of `prefix`blocks.

    Raises:
      ValueError: (at the first update) no stacked layers, unless decay is 1.
    """

    def factor(path: str, x: Array, layers: int) -> Array:
        if path.startswith(f"{prefix}blocks/"):
            depth = layers - jnp.arange(layers)
            return decay ** depth.reshape(-1, *(1,) * (x.ndim - 1))
        below = path.startswith(tuple(f"{prefix}{name}" for name in BELOW))
        return jnp.asarray(decay ** (layers + 1 if below else 0))

    def update(updates: PyTree, state: Any, params: PyTree = None) -> tuple[PyTree, Any]:
        if decay == 1:
            return updates, state
        stacked = [x for path, x in trees.leaves_with_path(updates) if path.startswith(f"{prefix}blocks/")]
        if not stacked:
            raise ValueError(f'layer_decay needs a model with layers stacked under "{prefix}blocks"')
        layers = stacked[0].shape[0]
        return trees.map_with_path(lambda path, x: x * factor(path, x, layers).astype(x.dtype), updates), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)
