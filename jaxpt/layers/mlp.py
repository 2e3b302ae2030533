"""Feed-forward layers: SwiGLU and GEGLU (arXiv 2002.05202), and the two-matrix ones of GPT-2, GPT-NeoX and the first T5."""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax

from jaxpt.core.names import nearest_error
from jaxpt.core.types import Array, Float, Params
from jaxpt.weights import linear

ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "swiglu": jax.nn.silu,
    "geglu": functools.partial(jax.nn.gelu, approximate=False),
    "geglu_tanh": functools.partial(jax.nn.gelu, approximate=True),
    "gelu": functools.partial(jax.nn.gelu, approximate=False),
    "gelu_tanh": functools.partial(jax.nn.gelu, approximate=True),
    "relu": jax.nn.relu,
}


def gated(activation: str) -> bool:
    """Whether the activation multiplies a second projection, "gate"."""
    if activation not in ACTIVATIONS:
        raise nearest_error("activation", activation, ACTIVATIONS)
    return activation in ("swiglu", "geglu", "geglu_tanh")


def mlp(x: Float[Array, "B S D"], p: Params, activation: str) -> Float[Array, "B S D"]:
    """down(act(up(x))), or down(act(gate(x)) * up(x)) where the activation is gated."""
    act = ACTIVATIONS[activation]
    hidden = act(linear(x, p["gate"])) * linear(x, p["up"]) if gated(activation) else act(linear(x, p["up"]))
    return linear(hidden, p["down"])
