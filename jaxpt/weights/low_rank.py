"""W = (alpha/r) B A, both factors trained: the low-rank baseline.

Initial values as in the benchmark of arXiv 2505.22922 (`pt_low_rank`): A from U(+-1/sqrt(in)) and B from U(+-1/sqrt(r)),
neither zero, unlike LoRA and SLTrain. Proven by recipes/sltrain.py as the baseline at equal rank and at equal parameters.

`refactor` splits a product evenly between its factors, (U sqrt(s), sqrt(s) V^T) (section 4 there): among all splits U s^t,
s^(1-t) V^T the one whose Hessian at an optimum is best conditioned (lemma 4.1). `jaxpt.optim.restarts` runs it in training;
proven by recipes/lowrank_restarts.py.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from jaxpt.core import linalg
from jaxpt.core.spec import array, uniform_fan_in
from jaxpt.core.trees import static
from jaxpt.core.types import Array, Float, Params, PRNGKeyArray
from jaxpt.weights.base import Cost, Form, Matrix, stack_axes


@struct.dataclass
class LowRankMatrix(Matrix):
    """B [out, r], A [r, in]; the scale alpha/r is not trained."""

    b: Float[Array, "*L O R"]
    a: Float[Array, "*L R I"]
    scale: float = static(default=1.0)

    @property
    def shape(self) -> tuple[int, int]:
        return self.b.shape[-2], self.a.shape[-1]

    def apply(self, x: Float[Array, "*B I"]) -> Float[Array, "*B O"]:
        hidden = jnp.einsum("...i,ri->...r", x, self.a.astype(x.dtype) * self.scale)
        return jnp.einsum("...r,or->...o", hidden, self.b.astype(x.dtype))

    def dense(self) -> Float[Array, "*L O I"]:
        return jnp.einsum("...or,...ri->...oi", self.b, self.a * self.scale)

    def balanced(self) -> LowRankMatrix:
        """The same matrix, its factors balanced (`refactor`)."""
        b, a = refactor(self.b, self.a)
        return dataclasses.replace(self, b=b, a=a)

    def cost(self, tokens: int) -> Cost:
        flops = 6.0 * tokens * self.a.shape[-2] * sum(self.shape)
        return Cost(flops, flops)


@dataclasses.dataclass(frozen=True)
class LowRank(Form):
    """Rank `rank`; scale alpha / rank, or 1 where alpha is None.

    From a dense W: its truncated SVD, factors balanced, the nearest matrix of that rank; smaller singular values are lost.
    """

    rank: int = 8
    alpha: float | None = None

    @property
    def scale(self) -> float:
        """alpha / rank."""
        return 1.0 if self.alpha is None or self.rank == 0 else self.alpha / self.rank

    def spec(
        self, out_size: int, in_size: int, axes: tuple[str, str], stack: Sequence[int] = (), dtype: str = "float32"
    ) -> LowRankMatrix:
        lead = stack_axes(stack)
        b = array((*stack, out_size, self.rank), (*lead, axes[0], "rank"), uniform_fan_in(self.rank), dtype)
        a = array((*stack, self.rank, in_size), (*lead, "rank", axes[1]), uniform_fan_in(in_size), dtype)
        return LowRankMatrix(b, a, self.scale)

    def from_dense(self, key: PRNGKeyArray, w: Float[Array, "*L O I"]) -> LowRankMatrix:
        b, a = truncated_svd(w / self.scale, self.rank)
        return LowRankMatrix(b, a, self.scale)


def truncated_svd(w: Float[Array, "*L O I"], rank: int) -> tuple[Float[Array, "*L O R"], Float[Array, "*L R I"]]:
    """(U sqrt(s), sqrt(s) V^T) of the `rank` largest singular values, computed in float32.

    Raises:
      ValueError: rank above min(out, in).
    """
    if rank > min(w.shape[-2:]):
        raise ValueError(f"rank {rank} is above min(out, in) = {min(w.shape[-2:])} of a {w.shape[-2:]} matrix")
    u, s, vt = linalg.svd(w.astype(jnp.float32))
    root = jnp.sqrt(s[..., :rank])
    return (u[..., :rank] * root[..., None, :]).astype(w.dtype), (root[..., :, None] * vt[..., :rank, :]).astype(
        w.dtype
    )


def refactor(
    b: Float[Array, "*L O R"], a: Float[Array, "*L R I"]
) -> tuple[Float[Array, "*L O R"], Float[Array, "*L R I"]]:
    """(U sqrt(s), sqrt(s) V^T) of the product b a, never formed: O((out + in) r^2 + r^3), in float32.

    b = Q_b R_b, a^T = Q_a R_a, and U, s, V from the SVD of the r x r core R_b R_a^T. The entry of largest magnitude of
    every column of the new b is positive, so that the result is the same wherever it is computed. The product changes by
    rounding alone. A direction that the product lacks (s = 0) becomes zero in both factors and gets no gradient any more.

    Raises:
      ValueError: factors that do not fit each other.
    """
    rank = b.shape[-1]
    if b.shape[:-2] != a.shape[:-2] or rank != a.shape[-2]:
        raise ValueError(f"b {b.shape} and a {a.shape} are no two factors: need [..., out, r] and [..., r, in]")
    with jax.default_matmul_precision("float32"):
        q_b, r_b = linalg.qr(b.astype(jnp.float32))
        q_a, r_a = linalg.qr(a.astype(jnp.float32).mT)
        u, s, vt = linalg.svd(r_b @ r_a.mT)
        root = jnp.sqrt(s)
        left, right = (q_b @ u) * root[..., None, :], root[..., :, None] * (vt @ q_a.mT)
    largest = jnp.take_along_axis(left, jnp.argmax(jnp.abs(left), axis=-2, keepdims=True), axis=-2)
    sign = jnp.where(largest < 0, -1.0, 1.0)
    absent = [(0, rank - s.shape[-1])]  # a rank above out or in has directions that no product of this shape can have
    whole = [(0, 0)] * (b.ndim - 2)
    left = jnp.pad(left * sign, [*whole, (0, 0), *absent])
    right = jnp.pad(right * sign.mT, [*whole, *absent, (0, 0)])
    return left.astype(b.dtype), right.astype(a.dtype)


def refactor_all(params: Params) -> Params:
    """The tree with `refactor` done to every matrix that has a low-rank part; the sparse part of SLTrain stays as it is.

    Raises:
      ValueError: there is none.
    """
    found = False

    def one(leaf: Any) -> Any:
        nonlocal found
        found = found or hasattr(leaf, "balanced")
        return leaf.balanced() if hasattr(leaf, "balanced") else leaf

    changed = jax.tree.map(one, params, is_leaf=lambda x: isinstance(x, Matrix))
    if not found:
        raise ValueError("no matrix has two low-rank factors to balance: use LowRank or SparseLowRank")
    return changed
