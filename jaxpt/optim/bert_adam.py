"""Adam without its bias correction, as BERT's and ELECTRA's releases have it (arXiv 1810.04805; arXiv 2003.10555).

    update = -rate (m / (sqrt(v) + eps) + weight_decay W)

The first update is larger than Adam's by (1 - b1) / sqrt(1 - b2), about 3 at the defaults; that falls to nothing over the
first 1 / (1 - b2) updates, and the releases have a warm-up of several times as many. For that reason it is not in the table
`jaxpt.optim.OPTIMIZERS`, whose members' first updates have the size of the rate.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import optax

from jaxpt.core.types import PyTree
from jaxpt.optim.adam import AdamConfig, decoupled


@dataclasses.dataclass(frozen=True, kw_only=True)
class BertAdamConfig(AdamConfig):
    """Adam's settings, with the releases' eps."""

    eps: float = 1e-6

    def with_rates(self, rates: optax.Schedule) -> optax.GradientTransformation:
        return decoupled(scale_by_bert_adam(self.b1, self.b2, self.eps), rates, self.weight_decay)


def scale_by_bert_adam(b1: float = 0.9, b2: float = 0.999, eps: float = 1e-6) -> optax.GradientTransformation:
    """m / (sqrt(v) + eps)."""

    def update(updates: PyTree, state: optax.ScaleByAdamState, params: PyTree = None) -> tuple[PyTree, PyTree]:
        mu = jax.tree.map(lambda m, g: b1 * m + (1 - b1) * g, state.mu, updates)
        nu = jax.tree.map(lambda v, g: b2 * v + (1 - b2) * jnp.square(g), state.nu, updates)
        scaled = jax.tree.map(lambda m, v: m / (jnp.sqrt(v) + eps), mu, nu)
        return scaled, optax.ScaleByAdamState(optax.safe_increment(state.count), mu, nu)

    return optax.GradientTransformation(optax.scale_by_adam(b1, b2, eps).init, update)
