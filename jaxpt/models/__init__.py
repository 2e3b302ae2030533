"""Models: each is `Config`, `spec(cfg)`, `init(key, cfg)` and `apply(params, x, cfg)`.

Those that predict tokens have `hidden_states(params, ids, cfg, mask=...)` and `readout(params, hidden, cfg)`.
"""

from __future__ import annotations

import sys
from typing import Any, NamedTuple

from jaxpt.core.types import Array, Float
from jaxpt.weights import Matrix


class Readout(NamedTuple):
    """From final states to logits: head.apply(states) + bias. Objectives take only the states that they need to it."""

    states: Float[Array, "B N D"]
    head: Matrix
    bias: Float[Array, " V"] | None


def of(cfg: Any) -> Any:
    """The module of the model that a configuration describes: of(encoder.Config()) is `jaxpt.models.encoder`."""
    return sys.modules[type(cfg).__module__]
