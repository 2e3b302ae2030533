"""W as it is: the full-rank baseline."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import jax.numpy as jnp
from flax import struct

from jaxpt.core.spec import array, normal, uniform_fan_in
from jaxpt.core.types import Array, Float, PRNGKeyArray
from jaxpt.weights.base import Cost, Form, Matrix, stack_axes


@struct.dataclass
class DenseMatrix(Matrix):
    """W [out, in]."""

    w: Float[Array, "*L O I"]

    @property
    def shape(self) -> tuple[int, int]:
        return self.w.shape[-2], self.w.shape[-1]

    def apply(self, x: Float[Array, "*B I"]) -> Float[Array, "*B O"]:
        return jnp.einsum("...i,oi->...o", x, self.w.astype(x.dtype))

    def dense(self) -> Float[Array, "*L O I"]:
        return self.w

    def cost(self, tokens: int) -> Cost:
        out_size, in_size = self.shape
        return Cost(6.0 * tokens * out_size * in_size, 6.0 * tokens * out_size * in_size)


@dataclasses.dataclass(frozen=True)
class Dense(Form):
    """Entries from N(0, stddev^2), or from U(+-1/sqrt(in)) where `stddev` is None. From a dense W: W, nothing lost."""

    stddev: float | None = None

    def spec(
        self, out_size: int, in_size: int, axes: tuple[str, str], stack: Sequence[int] = (), dtype: str = "float32"
    ) -> DenseMatrix:
        init = uniform_fan_in(in_size) if self.stddev is None else normal(self.stddev)
        return DenseMatrix(array((*stack, out_size, in_size), (*stack_axes(stack), *axes), init, dtype))

    def from_dense(self, key: PRNGKeyArray, w: Float[Array, "*L O I"]) -> DenseMatrix:
        return DenseMatrix(w)
