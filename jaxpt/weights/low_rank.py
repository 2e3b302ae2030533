"""W = (alpha/r) B A, both factors trained: the low-rank baseline.

Initial values as in the benchmark of arXiv 2505.22922 (`pt_low_rank`): A from U(+-1/sqrt(in)) and B from U(+-1/sqrt(r)),
neither zero, unlike LoRA and SLTrain. Proven by recipes/sltrain.py as the baseline at equal rank and at equal parameters.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import jax.numpy as jnp
from flax import struct

from jaxpt.core.spec import array, uniform_fan_in
from jaxpt.core.trees import static
from jaxpt.core.types import Array, Float, PRNGKeyArray
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

    def cost(self, tokens: int) -> Cost:
        flops = 6.0 * tokens * self.a.shape[-2] * sum(self.shape)
        return Cost(flops, flops)


@dataclasses.dataclass(frozen=True)
class LowRank(Form):
    """Rank `rank`; scale alpha / rank, or 1 where alpha is None. From a dense W: its truncated SVD, factors balanced."""

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
    u, s, vt = jnp.linalg.svd(w.astype(jnp.float32), full_matrices=False)
    root = jnp.sqrt(s[..., :rank])
    return (u[..., :rank] * root[..., None, :]).astype(w.dtype), (root[..., :, None] * vt[..., :rank, :]).astype(
        w.dtype
    )
