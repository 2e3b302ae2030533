"""An exponential moving average of the weights, kept in the optimizer's state (Polyak and Juditsky 1992; GPT-BERT: 0.999).

    a_0 = W_0,   a_t = decay a_{t-1} + (1 - decay) W_t

It is sharded like the parameters and is in every checkpoint, as moments are:

    optimizer = with_ema(adam(1e-3), 0.999)                    # any; or EmaLambConfig() in a run's description
    weights = ema_params(state.opt_state)
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct

from jaxpt.core.types import PyTree
from jaxpt.optim.lamb import LambConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class EmaLambConfig(LambConfig):
    """GPT-BERT's optimizer: LAMB, and the average of its weights."""

    ema: float = 0.999

    def with_rates(self, rates: optax.Schedule) -> optax.GradientTransformation:
        return with_ema(super().with_rates(rates), self.ema)


@struct.dataclass
class EmaState:
    """The average, and the state of the optimizer that it follows."""

    inner: Any
    average: PyTree


def with_ema(optimizer: optax.GradientTransformation, decay: float) -> optax.GradientTransformation:
    """The same optimizer, and the average of the weights that it makes, in their dtype.

    Raises:
      ValueError: a decay outside [0, 1).
    """
    if not 0 <= decay < 1:
        raise ValueError(f"the decay of an average of weights must be in [0, 1), got {decay}")

    def init(params: PyTree) -> EmaState:
        return EmaState(optimizer.init(params), jax.tree.map(jnp.copy, params))

    def update(gradients: PyTree, state: EmaState, params: PyTree = None) -> tuple[PyTree, EmaState]:
        updates, inner = optimizer.update(gradients, state.inner, params)
        new = optax.apply_updates(params, updates)
        average = jax.tree.map(lambda a, w: (decay * a + (1 - decay) * w).astype(a.dtype), state.average, new)
        return updates, EmaState(inner, average)

    return optax.GradientTransformation(init, update)


def ema_params(opt_state: PyTree) -> PyTree:
    """The average in an optimizer's state, wherever it is nested. Fixed arrays are None: `trees.merge` adds them.

    Raises:
      ValueError: there is none, or more than one.
    """
    parts = jax.tree.leaves(opt_state, is_leaf=lambda x: isinstance(x, EmaState))
    found = [x for x in parts if isinstance(x, EmaState)]
    if len(found) != 1:
        raise ValueError(
            f"need one average of weights in the optimizer's state, found {len(found)}; see jaxpt.optim.ema"
        )
    return found[0].average
