"""GaLore: Adam on gradients projected to a low rank (arXiv 2403.03507, section 4, algorithm 2).

    every `gap` updates, step 0 included:   P = the first r singular vectors of G        (jaxpt.optim.projectors)
    R = project(G);   M = b1 M + (1 - b1) R;   V = b2 V + (1 - b2) R^2;   N = M / (sqrt V + eps)
    W <- W - rate sqrt(1 - b2^t) / (1 - b1^t) scale back(N);   then   W <- W - rate decay W

eps stands beside the uncorrected sqrt V, and moments are neither reset nor rotated when P changes, as in the authors' code.
Arrays that are not projected (see `Subspace`) follow the same equations with R = G, back(N) = N and scale 1.
Per m x n matrix the state holds 2 max(m, n) r moments and min(m, n) r entries of P.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct

from jaxpt.core import trees
from jaxpt.core.types import Array, Float, Int, PyTree
from jaxpt.optim.config import OptimizerConfig
from jaxpt.optim.moments import Moments
from jaxpt.optim.projectors import Subspace, back, project


@dataclasses.dataclass(frozen=True, kw_only=True)
class GaloreConfig(Subspace, OptimizerConfig):
    """GaLore, its subspace and its schedule. The defaults are those of the paper's models of 60M to 350M parameters."""

    rate: float = 1e-2
    scale: float = 0.25
    b1: float = 0.9
    b2: float = 0.999
    eps: float = 1e-6
    weight_decay: float = 0.0

    def with_rates(self, rates: optax.Schedule) -> optax.GradientTransformation:
        return finished(scale_by_galore(self, self.scale, self.b1, self.b2, self.eps), rates, self.weight_decay)


@struct.dataclass
class GaloreState(Moments):
    """Attributes:
    step: updates done; decides when projectors are found again.
    count: updates since the moments were zero; corrects their bias.
    mu, nu: moments, of R where an array is projected.
    projector: P, or None where an array is not projected.
    """

    step: Int[Array, ""]
    count: Int[Array, ""]
    mu: PyTree
    nu: PyTree
    projector: PyTree
    moments = ("count", "mu", "nu")


def scale_by_galore(
    subspace: Subspace, scale: float = 0.25, b1: float = 0.9, b2: float = 0.999, eps: float = 1e-6
) -> optax.GradientTransformation:
    """Gradients -> bias-corrected directions of the full shape, to be multiplied by the negative rate."""

    def init(params: PyTree) -> GaloreState:
        return GaloreState(**zeros(params, subspace))

    def update(gradients: PyTree, state: GaloreState, params: PyTree = None) -> tuple[PyTree, GaloreState]:
        _, n, correction, state = low_rank_adam(gradients, state, subspace, b1, b2, eps)

        def full(g: Array, n: Array, p: Array | None) -> Array:
            return (correction * (n if p is None else scale * back(n, p, g.shape))).astype(g.dtype)

        return jax.tree.map(full, gradients, n, state.projector), state

    return optax.GradientTransformation(init, update)


def zeros(params: PyTree, subspace: Subspace) -> dict[str, Any]:
    """The fields of a `GaloreState` at step 0."""
    projector, low = subspace.zeros(params)
    return {
        "step": jnp.zeros((), jnp.int32),
        "count": jnp.zeros((), jnp.int32),
        "mu": low,
        "nu": jax.tree.map(jnp.zeros_like, low),
        "projector": projector,
    }


def low_rank_adam(
    gradients: PyTree, state: Any, subspace: Subspace, b1: float, b2: float, eps: float
) -> tuple[PyTree, PyTree, Float[Array, ""], Any]:
    """(R, N, sqrt(1 - b2^t) / (1 - b1^t), the new state): what GaLore and Fira share. R and N in float32."""
    p = subspace.refreshed(gradients, state.projector, state.step)
    r = jax.tree.map(lambda g, p: (g if p is None else project(g, p)).astype(jnp.float32), gradients, p)
    mu = jax.tree.map(lambda m, r: b1 * m.astype(jnp.float32) + (1 - b1) * r, state.mu, r)
    nu = jax.tree.map(lambda v, r: b2 * v.astype(jnp.float32) + (1 - b2) * r * r, state.nu, r)
    n = jax.tree.map(lambda m, v: m / (jnp.sqrt(v) + eps), mu, nu)
    count = optax.safe_increment(state.count)
    t = count.astype(jnp.float32)
    stored = {
        name: jax.tree.map(lambda x, old: x.astype(old.dtype), tree, getattr(state, name))
        for name, tree in (("mu", mu), ("nu", nu))
    }
    new = dataclasses.replace(state, step=optax.safe_increment(state.step), count=count, projector=p, **stored)
    return r, n, jnp.sqrt(1 - b2**t) / (1 - b1**t), new


def refresh(opt_state: PyTree, gradients: PyTree, subspace: Subspace) -> PyTree:
    """The optimizer's state with the projectors of these gradients, wherever a state of GaLore or Fira is nested.

    Raises:
      ValueError: there is none.
    """

    def is_ours(x: Any) -> bool:
        return isinstance(x, GaloreState)

    if not any(is_ours(x) for x in jax.tree.leaves(opt_state, is_leaf=is_ours)):
        raise ValueError("no projectors to refresh: the optimizer's state holds none of GaLore or Fira")
    found = _found(subspace, gradients)
    return jax.tree.map(
        lambda x: dataclasses.replace(x, projector=found) if is_ours(x) else x, opt_state, is_leaf=is_ours
    )


_found = jax.jit(Subspace.found, static_argnums=0)


def refresh_event(subspace: Subspace, gradients: Callable[[int, Any], PyTree]) -> Callable[[int, Any], Any]:
    """An event for `jaxpt.training.events.every` that finds projectors outside the jitted step, for `inside=False`.

    Args:
      gradients: (step, TrainState) -> gradients of the trainable parameters.
    """

    def event(step: int, state: Any) -> Any:
        return dataclasses.replace(state, opt_state=refresh(state.opt_state, gradients(step, state), subspace))

    return event


def finished(
    directions: optax.GradientTransformation,
    rate: float | optax.Schedule,
    weight_decay: float,
    decay: tuple[str, ...] = ("*/kernel",),
) -> optax.GradientTransformation:
    """Directions times the negative rate, then, in the authors' order, decay of the updated weights at `decay` paths."""
    parts = [directions, optax.scale_by_learning_rate(rate)]
    return optax.chain(*parts, *([decay_after(rate, weight_decay, decay)] if weight_decay else []))


def decay_after(
    rate: float | optax.Schedule, weight_decay: float, decay: tuple[str, ...]
) -> optax.GradientTransformation:
    """W + u <- (1 - rate weight_decay) (W + u), with the schedule's rate as it is."""

    def init(params: PyTree) -> optax.ScaleByScheduleState:
        return optax.ScaleByScheduleState(jnp.zeros((), jnp.int32))

    def update(updates: PyTree, state: Any, params: PyTree = None) -> tuple[PyTree, Any]:
        share = weight_decay * (rate(state.count) if callable(rate) else rate)

        def one(path: str, u: Array, w: Array) -> Array:
            return (u - share * (w + u)).astype(u.dtype) if trees.matches_any(path, decay) else u

        return trees.map_with_path(one, updates, params), optax.ScaleByScheduleState(optax.safe_increment(state.count))

    return optax.GradientTransformation(init, update)
