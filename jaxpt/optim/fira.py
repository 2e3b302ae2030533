"""Fira: GaLore plus what of the gradient lies outside the subspace (arXiv 2410.01623, section 4, algorithm 1).

With P, R, N of GaLore (jaxpt.optim.galore), each row (right side) or column (left side) i of the residual is scaled as
Adam scales the same row or column inside the subspace:

    E = (G - back(R)) phi,   phi_i = ||N_i|| / (||R_i|| + 1e-8)              norms along the rank
    E <- E / l,   l = max(||E|| / (||E_before|| + 1e-8), gamma) / gamma      from a matrix's second update on
    W <- W - rate sqrt(1 - b2^t) / (1 - b1^t) (alpha back(N) + E);   then   W <- W - rate decay W

E_before is the limited one. The paper's residual is G - back(R); the authors' code subtracts alpha back(R), so that a share
1 - alpha of what is inside the subspace goes into E as well. `residual` chooses; published numbers are of "code".
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import optax
from flax import struct

from jaxpt.core.names import nearest_error
from jaxpt.core.types import Array, Bool, Float, PyTree
from jaxpt.optim.config import OptimizerConfig
from jaxpt.optim.galore import GaloreState, finished, low_rank_adam, zeros
from jaxpt.optim.projectors import Subspace, back, is_right

RESIDUALS = ("paper", "code")


@dataclasses.dataclass(frozen=True, kw_only=True)
class FiraConfig(Subspace, OptimizerConfig):
    """Fira, its subspace and its schedule. The defaults are those of the paper's models of 60M to 350M parameters.

    Attributes:
      residual: "paper" or "code".
      gamma: the most by which the norm of E may grow in an update.
    """

    rate: float = 1e-2
    alpha: float = 0.25
    residual: str = "code"
    gamma: float = 1.01
    b1: float = 0.9
    b2: float = 0.999
    eps: float = 1e-6
    weight_decay: float = 0.0

    def with_rates(self, rates: optax.Schedule) -> optax.GradientTransformation:
        scaled = scale_by_fira(self, self.alpha, self.residual, self.gamma, self.b1, self.b2, self.eps)
        return finished(scaled, rates, self.weight_decay)


@struct.dataclass
class FiraState(GaloreState):
    """`norms` are ||E|| of the last update per projected matrix [*L], None for other arrays. They outlive a reset."""

    norms: PyTree


def scale_by_fira(
    subspace: Subspace,
    alpha: float = 0.25,
    residual: str = "code",
    gamma: float = 1.01,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-6,
) -> optax.GradientTransformation:
    """Gradients -> bias-corrected directions of the full shape, to be multiplied by the negative rate."""
    if residual not in RESIDUALS:
        raise nearest_error("residual", residual, RESIDUALS)
    inside = alpha if residual == "code" else 1.0

    def init(params: PyTree) -> FiraState:
        fields = zeros(params, subspace)
        norms = jax.tree.map(lambda p: jnp.zeros(p.shape[:-2], jnp.float32), fields["projector"])
        return FiraState(**fields, norms=norms)

    def update(gradients: PyTree, state: FiraState, params: PyTree = None) -> tuple[PyTree, FiraState]:
        first = state.step == 0
        r, n, correction, state = low_rank_adam(gradients, state, subspace, b1, b2, eps)
        outside = jax.tree.map(
            lambda g, r, n, p, before: None if p is None else limited(outer(g, r, n, p, inside), before, first, gamma),
            gradients, r, n, state.projector, state.norms,
        )  # fmt: skip

        def full(g: Array, n: Array, p: Array | None, outside: tuple[Array, Array] | None) -> Array:
            whole = n if p is None or outside is None else alpha * back(n, p, g.shape) + outside[0]
            return (correction * whole).astype(g.dtype)

        norms = jax.tree.map(lambda _, o: None if o is None else o[1], gradients, outside)
        updates = jax.tree.map(full, gradients, n, state.projector, outside)
        return updates, dataclasses.replace(state, norms=norms)

    return optax.GradientTransformation(init, update)


def outer(
    g: Float[Array, "*L m n"],
    r: Float[Array, "*L _ _"],
    n: Float[Array, "*L _ _"],
    p: Float[Array, "*L _ _"],
    inside: float,
) -> Float[Array, "*L m n"]:
    """E before the limiter: (G - inside * back(R)) phi, in float32. A row or column whose R is 0 has phi = 0."""
    axis = -1 if is_right(g.shape) else -2
    phi = jnp.linalg.norm(n, axis=axis, keepdims=True) / (jnp.linalg.norm(r, axis=axis, keepdims=True) + 1e-8)
    return (g.astype(jnp.float32) - inside * back(r, p, g.shape)) * phi


def limited(
    e: Float[Array, "*L m n"], before: Float[Array, "*L"], first: Bool[Array, ""], gamma: float
) -> tuple[Float[Array, "*L m n"], Float[Array, "*L"]]:
    """(E with a norm of at most gamma times the one before, that norm). The first E is free."""
    norm = jnp.sqrt(jnp.sum(e * e, (-2, -1)))
    by = jnp.where(first, 1.0, jnp.maximum(norm / (before + 1e-8), gamma) / gamma)
    return e / by[..., None, None], norm / by
