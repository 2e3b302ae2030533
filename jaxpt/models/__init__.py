"""Models: each is `Config`, `spec(cfg)`, `init(key, cfg)` and `apply(params, x, cfg)`.

Those that predict tokens have `hidden_states(params, ids, cfg, mask=...)` and `readout(params, hidden, cfg)`.
"""

from __future__ import annotations

import sys
from typing import Any, NamedTuple

import jax.numpy as jnp

from jaxpt.core.types import Array, Float
from jaxpt.weights import Matrix


class Readout(NamedTuple):
    """From final states to logits: head.apply(states) + bias. Objectives take only the states that they need to it."""

    states: Float[Array, "B N D"]
    head: Matrix
    bias: Float[Array, " V"] | None

    def logits(self) -> Float[Array, "B N V"]:
        """All of them, float32, for models small enough to hold them."""
        found = self.head.apply(self.states).astype(jnp.float32)
        return found if self.bias is None else found + self.bias


def of(cfg: Any) -> Any:
    """The module of the model that a configuration describes: of(encoder.Config()) is `jaxpt.models.encoder`."""
    return sys.modules[type(cfg).__module__]
