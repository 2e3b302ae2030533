"""LAMB (arXiv 1904.00962, algorithm 2) as GPT-BERT's release has it: the trust ratio goes with weight decay.

    u = mhat / (sqrt(vhat) + eps)
    where weight decay acts:   u <- u + decay W,   W <- W - rate (||W|| / ||u||) u         (1 for a ratio of or to 0)
    elsewhere (biases, norms): W <- W - rate u,    which is Adam

`optax.lamb` scales every array. Decay acts on all arrays but those whose path matches `plain`; so the weights of
DenseFormer's sums do decay. Each layer of a stack is a tensor with a norm of its own. Used by `recipes.gpt_bert`.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import optax

from jaxpt.core import trees
from jaxpt.core.types import Array, PyTree
from jaxpt.optim.config import OptimizerConfig

PLAIN = ("*/bias", "*/scale", "bias", "scale")


@dataclasses.dataclass(frozen=True, kw_only=True)
class LambConfig(OptimizerConfig):
    """LAMB and its schedule. The defaults are GPT-BERT's; its rates are 1.41e-2 (10M words) and 1e-2 (100M)."""

    rate: float = 1e-2
    b1: float = 0.9
    b2: float = 0.98
    eps: float = 1e-8
    weight_decay: float = 0.1

    def with_rates(self, rates: optax.Schedule) -> optax.GradientTransformation:
        return lamb(rates, b1=self.b1, b2=self.b2, eps=self.eps, weight_decay=self.weight_decay)


def lamb(
    rate: float | optax.Schedule,
    *,
    b1: float = 0.9,
    b2: float = 0.98,
    eps: float = 1e-8,
    weight_decay: float = 0.1,
    plain: tuple[str, ...] = PLAIN,
    stacked: tuple[str, ...] = ("blocks",),
) -> optax.GradientTransformation:
    """LAMB; moments in the dtype of the parameters. Without weight decay it is Adam.

    Args:
      plain: patterns of the arrays that take plain Adam.
      stacked: patterns of the arrays that are a stack of layers, one norm each, where they have more than two dimensions.
    """
    directions = optax.scale_by_adam(b1, b2, eps)
    if not weight_decay:
        return optax.chain(directions, optax.scale_by_learning_rate(rate))
    return optax.chain(directions, _decayed_trust(weight_decay, plain, stacked), optax.scale_by_learning_rate(rate))


def _decayed_trust(decay: float, plain: tuple[str, ...], stacked: tuple[str, ...]) -> optax.GradientTransformation:
    def one(path: str, u: Array, w: Array) -> Array:
        if trees.matches_any(path, plain):
            return u
        axes = tuple(range(1 if u.ndim > 2 and trees.matches_any(path, stacked) else 0, u.ndim))
        direction, weight = u.astype(jnp.float32), w.astype(jnp.float32)
        direction = direction + decay * weight
        sizes = (jnp.sqrt(jnp.sum(jnp.square(x), axes, keepdims=True)) for x in (weight, direction))
        return (direction * trust(*sizes)).astype(u.dtype)

    def update(updates: PyTree, state: optax.EmptyState, params: PyTree = None) -> tuple[PyTree, optax.EmptyState]:
        named = zip(trees.leaves_with_path(updates), jax.tree.leaves(params), strict=True)
        found = [one(path, u, w) for (path, u), w in named]
        return jax.tree.unflatten(jax.tree.structure(updates), found), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


def trust(weight: Array, direction: Array) -> Array:
    """||W|| / ||u||, 1 where either is 0."""
    known = (weight > 0) & (direction > 0)
    return jnp.where(known, weight / jnp.where(known, direction, 1.0), 1.0)
