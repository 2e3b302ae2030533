"""Adam (arXiv 1412.6980) with decoupled weight decay (arXiv 1711.05101) on matrices only, by path."""

from __future__ import annotations

import dataclasses

import optax

from jaxpt.core import trees
from jaxpt.core.types import PyTree
from jaxpt.optim.config import OptimizerConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class AdamConfig(OptimizerConfig):
    """Adam and its schedule."""

    b1: float = 0.9
    b2: float = 0.999
    eps: float = 1e-8
    weight_decay: float = 0.0

    def with_rates(self, rates: optax.Schedule) -> optax.GradientTransformation:
        return adam(rates, b1=self.b1, b2=self.b2, eps=self.eps, weight_decay=self.weight_decay)


def adam(
    rate: float | optax.Schedule,
    *,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    decay: tuple[str, ...] = ("*/kernel",),
) -> optax.GradientTransformation:
    """Adam; moments in the dtype of the parameters. `weight_decay` acts on arrays whose path matches `decay`."""
    return decoupled(optax.scale_by_adam(b1, b2, eps), rate, weight_decay, decay)


def decoupled(
    directions: optax.GradientTransformation,
    rate: float | optax.Schedule,
    weight_decay: float,
    decay: tuple[str, ...] = ("*/kernel",),
) -> optax.GradientTransformation:
    """(directions + weight_decay W) times the negative rate; decay acts on arrays whose path matches `decay`."""

    def decayed(params: PyTree) -> PyTree:
        return trees.map_with_path(lambda path, _: trees.matches_any(path, decay), params)

    added = [optax.add_decayed_weights(weight_decay, mask=decayed)] if weight_decay else []
    return optax.chain(directions, *added, optax.scale_by_learning_rate(rate))
