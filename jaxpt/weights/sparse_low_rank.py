"""W = (alpha/r) B A + S, with S trained on a fixed random support: SLTrain (arXiv 2406.02214, section 3).

The support holds nnz = int(density * out * in) flat row-major positions, drawn once per layer without replacement, never
trained and always checkpointed. B starts at zero, so W = S at step 0; the scale touches the low-rank part only. Applied by
`pallas_kernels.sparse_low_rank`, which keeps no dense weight, gradient or moment. Proven by recipes/sltrain.py.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from jaxpt.core.spec import array, uniform_fan_in, zeros
from jaxpt.core.trees import fixed, static
from jaxpt.core.types import Array, Float, Int, PRNGKeyArray
from jaxpt.sharding.rules import over_batch
from jaxpt.weights.base import Cost, Form, Matrix, stack_axes
from jaxpt.weights.low_rank import truncated_svd
from pallas_kernels.sparse_low_rank import densify, sparse_low_rank
from pallas_kernels.sparse_low_rank.xla import low_rank_from_tokens


@struct.dataclass
class SparseLowRankMatrix(Matrix):
    """B [out, r], A [r, in], the values v [nnz] and their flat positions [nnz] in W, sorted."""

    b: Float[Array, "*L O R"]
    a: Float[Array, "*L R I"]
    v: Float[Array, "*L N"]
    support: Int[Array, "*L N"] = fixed()
    scale: float = static(default=1.0)

    @property
    def shape(self) -> tuple[int, int]:
        return self.b.shape[-2], self.a.shape[-1]

    def apply(self, x: Float[Array, "*B I"]) -> Float[Array, "*B O"]:
        b, a, v = (t.astype(x.dtype) for t in (self.b, self.a * self.scale, self.v))
        return over_batch(sparse_low_rank, x, b, a, v, self.support)

    def dense(self) -> Float[Array, "*L O I"]:
        one_layer = densify
        for _ in range(self.b.ndim - 2):
            one_layer = jax.vmap(one_layer)
        return one_layer(self.b, self.a * self.scale, self.v, self.support)

    def cost(self, tokens: int) -> Cost:
        (m, n), r, nnz = self.shape, self.a.shape[-2], self.v.shape[-1]
        gradients = 4 * tokens * r * (m + n) if low_rank_from_tokens(tokens, m, n) else 4 * m * n * r
        return Cost(6.0 * tokens * (r * (m + n) + nnz), 6.0 * tokens * m * n + 4 * m * n * r + gradients)


@dataclasses.dataclass(frozen=True)
class SparseLowRank(Form):
    """Rank, density of S, and alpha (scale = alpha / rank; 1 where alpha is None).

    `multiple` makes the number of values divisible, so that they can be split over as many devices.

    From a dense W: S holds W - L on a fresh random support, L the truncated SVD of W.
    """

    rank: int = 8
    density: float = 0.03
    alpha: float | None = None
    multiple: int = 1

    @property
    def scale(self) -> float:
        """alpha / rank."""
        return 1.0 if self.alpha is None or self.rank == 0 else self.alpha / self.rank

    def nnz(self, out_size: int, in_size: int) -> int:
        """int(density * out * in), as the authors round, then down to a multiple of `multiple`."""
        if not 0 <= self.density <= 1:
            raise ValueError(f"density {self.density} is not between 0 and 1")
        return int(self.density * out_size * in_size) // self.multiple * self.multiple

    def spec(
        self, out_size: int, in_size: int, axes: tuple[str, str], stack: Sequence[int] = (), dtype: str = "float32"
    ) -> SparseLowRankMatrix:
        lead, nnz = stack_axes(stack), self.nnz(out_size, in_size)
        return SparseLowRankMatrix(
            b=array((*stack, out_size, self.rank), (*lead, axes[0], "rank"), zeros, dtype),
            a=array((*stack, self.rank, in_size), (*lead, "rank", axes[1]), uniform_fan_in(in_size), dtype),
            v=array((*stack, nnz), (*lead, "nonzeros"), uniform_fan_in(in_size), dtype),
            support=array((*stack, nnz), (*lead, "nonzeros"), random_support(out_size * in_size), "int32"),
            scale=self.scale,
        )

    def from_dense(self, key: PRNGKeyArray, w: Float[Array, "*L O I"]) -> SparseLowRankMatrix:
        *stack, m, n = w.shape
        b, a = truncated_svd(w / self.scale, self.rank)
        support = random_support(m * n)(key, (*stack, self.nnz(m, n)), jnp.int32)
        rest = (w - jnp.einsum("...or,...ri->...oi", b, a * self.scale)).reshape(*stack, m * n)
        return SparseLowRankMatrix(b, a, jnp.take_along_axis(rest, support, axis=-1), support, self.scale)


def random_support(positions: int) -> Any:
    """An initializer: for each stacked layer, sorted positions drawn from range(positions) without replacement."""
    if positions >= 2**31:
        raise ValueError(f"a matrix of {positions} entries needs 64-bit positions; split it or lower its size")

    def draw(key: PRNGKeyArray, shape: tuple[int, ...], dtype: Any) -> Int[Array, ...]:
        layers = 1
        for n in shape[:-1]:
            layers *= n

        def one(layer: Int[Array, ""]) -> Int[Array, " N"]:
            order = jax.random.permutation(jax.random.fold_in(key, layer), positions)
            return jnp.sort(order[: shape[-1]]).astype(dtype)

        # One layer at a time: a permutation of all entries of all layers at once would not fit at 7B.
        return jax.lax.map(one, jnp.arange(layers)).reshape(shape)

    return draw
