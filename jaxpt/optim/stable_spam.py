"""Stable-SPAM: Adam on gradients whose spikes and norms are held, with momentum reset (arXiv 2502.17055, section 4).

Per tensor, t counting all updates from 1 and k those since the last reset:

    c_t a cosine from 1 at t = 0 to eta at t = total
    a = theta a + (1 - theta) max|g|;   A = a / (1 - theta^t);   where |g| > A:  g <- g A / max|g|            (AdaClip)
    m = g1 c_t m + (1 - g1 c_t) ||g||;   v = g2 v + (1 - g2) ||g||^2
    g <- g / ||g|| (m / (1 - (g1 c_t)^t)) / (sqrt(v / (1 - g2^t)) + eps)                                      (AdaGN)
    Adam on g with b1 c_t in place of b1, bias corrected by k; its moments and k are zeroed before updates that `gap` divides

Powers are of the present c_t, as in the code of the benchmark of arXiv 2505.22922. There, a reset also restarts the count
that corrects the averages a, m, v, which inflates them, and the update itself still uses the old moments; here the averages
keep their own count and a reset is clean. Each layer of a stack is a tensor of its own.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import optax
from flax import struct

from jaxpt.core import trees
from jaxpt.core.types import Array, Float, Int, PyTree
from jaxpt.optim.adam import decoupled
from jaxpt.optim.config import OptimizerConfig
from jaxpt.optim.moments import Moments


@dataclasses.dataclass(frozen=True, kw_only=True)
class StableSpamConfig(OptimizerConfig):
    """Stable-SPAM and its schedule. The defaults are the benchmark's; the method's own code has gamma .7 and .9.

    Attributes:
      gamma1, gamma2, theta: g1, g2, theta.
      eta: what c_t ends at; 1 for no change.
      total: updates until then.
      gap: updates between two resets; 0 for none.
    """

    rate: float = 1e-3
    b1: float = 0.9
    b2: float = 0.999
    eps: float = 1e-8
    gamma1: float = 0.85
    gamma2: float = 0.999
    theta: float = 0.999
    eta: float = 0.5
    total: int = 20_000
    gap: int = 500
    weight_decay: float = 0.0

    def with_rates(self, rates: optax.Schedule) -> optax.GradientTransformation:
        return decoupled(scale_by_stable_spam(self), rates, self.weight_decay)


@struct.dataclass
class StableSpamState(Moments):
    """Attributes:
    step: updates done.
    count: updates since the moments were zero.
    mu, nu: Adam's moments.
    largest, norm, square: the averages a, m, v of every tensor, [L] for a stack of layers. They outlive a reset.
    """

    step: Int[Array, ""]
    count: Int[Array, ""]
    mu: PyTree
    nu: PyTree
    largest: PyTree
    norm: PyTree
    square: PyTree
    moments = ("count", "mu", "nu")


def scale_by_stable_spam(cfg: StableSpamConfig, stacked: tuple[str, ...] = ("blocks",)) -> optax.GradientTransformation:
    """Gradients -> directions, to be multiplied by the negative rate.

    Args:
      stacked: patterns of the arrays whose leading axis is the layers of a scan.

    Raises:
      ValueError: a `gap` below 0 or a `total` below 1.
    """
    if cfg.gap < 0 or cfg.total < 1:
        raise ValueError(f"need gap >= 0 and total >= 1, got gap={cfg.gap} and total={cfg.total}")

    def averages(params: PyTree) -> PyTree:
        def one(path: str, x: Array) -> Array:
            return jnp.zeros(x.shape[:1] if trees.matches_any(path, stacked) else (), jnp.float32)

        return trees.map_with_path(one, params)

    def init(params: PyTree) -> StableSpamState:
        counters = (jnp.zeros((), jnp.int32) for _ in range(2))
        moments = (jax.tree.map(jnp.zeros_like, params) for _ in range(2))
        return StableSpamState(*counters, *moments, *(averages(params) for _ in range(3)))

    def update(gradients: PyTree, state: StableSpamState, params: PyTree = None) -> tuple[PyTree, StableSpamState]:
        step = optax.safe_increment(state.step)
        t = step.astype(jnp.float32)
        c = cosine(t, cfg.total, cfg.eta)

        def average(old: PyTree, new: PyTree, rate: Array | float) -> PyTree:
            return jax.tree.map(lambda a, x: rate * a + (1 - rate) * x, old, new)

        g = jax.tree.map(lambda g: g.astype(jnp.float32), gradients)
        largest = average(state.largest, jax.tree.map(_largest, g, state.largest), cfg.theta)
        g = jax.tree.map(lambda g, a: clipped(g, a / (1 - cfg.theta**t)), g, largest)
        norms = jax.tree.map(_norm, g, state.norm)
        norm = average(state.norm, norms, cfg.gamma1 * c)
        square = average(state.square, jax.tree.map(jnp.square, norms), cfg.gamma2)

        def normalised(g: Array, now: Array, m: Array, v: Array) -> Array:
            m, v = m / (1 - (cfg.gamma1 * c) ** t), v / (1 - cfg.gamma2**t)
            unit = g * _over(1 / jnp.maximum(now, jnp.finfo(jnp.float32).tiny), g)  # 0 where the gradient is
            return unit * _over(m / (jnp.sqrt(v) + cfg.eps), g)

        g = jax.tree.map(normalised, g, norms, norm, square)
        keep = 1.0 if cfg.gap == 0 else (step % cfg.gap != 0).astype(jnp.float32)
        count = optax.safe_increment(state.count if cfg.gap == 0 else jnp.where(step % cfg.gap == 0, 0, state.count))
        k, b1 = count.astype(jnp.float32), cfg.b1 * c
        mu = jax.tree.map(lambda m, g: b1 * keep * m.astype(jnp.float32) + (1 - b1) * g, state.mu, g)
        nu = jax.tree.map(lambda v, g: cfg.b2 * keep * v.astype(jnp.float32) + (1 - cfg.b2) * g * g, state.nu, g)

        def direction(m: Array, v: Array, like: Array) -> Array:
            return (m / (1 - b1**k) / (jnp.sqrt(v / (1 - cfg.b2**k)) + cfg.eps)).astype(like.dtype)

        updates = jax.tree.map(direction, mu, nu, gradients)
        mu, nu = (jax.tree.map(lambda x, g: x.astype(g.dtype), tree, gradients) for tree in (mu, nu))
        return updates, StableSpamState(step, count, mu, nu, largest, norm, square)

    return optax.GradientTransformation(init, update)


def cosine(t: Float[Array, ""], total: int, eta: float) -> Float[Array, ""]:
    """c_t. Half a period ends one update after `total`, and from `total` on it is eta."""
    pi = jnp.pi / (total + 1)
    return jnp.where(t >= total, eta, eta + (1 - eta) * (1 + jnp.cos(pi * (t + 1))) / (1 + jnp.cos(pi)))


def clipped(g: Float[Array, "*S"], bound: Float[Array, "*L"]) -> Float[Array, "*S"]:
    """Entries beyond the bound shrunk so that the largest of them lies on it."""
    shrunk = g * _over(bound / jnp.maximum(_largest(g, bound), jnp.finfo(jnp.float32).tiny), g)
    return jnp.where(jnp.abs(g) > _over(bound, g), shrunk, g)


def _over(per_tensor: Float[Array, "*L"], g: Array) -> Array:
    """One number per tensor, shaped to multiply g."""
    return per_tensor.reshape(per_tensor.shape + (1,) * (g.ndim - per_tensor.ndim))


def _largest(g: Array, per_tensor: Array) -> Array:
    return jnp.max(jnp.abs(g), axis=tuple(range(per_tensor.ndim, g.ndim)))


def _norm(g: Array, per_tensor: Array) -> Array:
    return jnp.sqrt(jnp.sum(g * g, axis=tuple(range(per_tensor.ndim, g.ndim))))
