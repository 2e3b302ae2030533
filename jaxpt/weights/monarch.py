"""Monarch matrices (arXiv 2204.00595, section 3) and block-diagonal ones, with N blocks, N = 4 as in the released code.

A Monarch matrix of [out, in] is cut into N x N slices, of which each has rank C = middle / N, with p = ceil(in / N),
s = ceil(out / N) and middle = min(p, s) rounded up to a multiple of N. The factors are kept in the layout of
`pallas_kernels.monarch.layout`, which needs no permutation between them; `from_authors` and `to_authors` there convert a
released checkpoint both ways. Initial values as in the release: each factor from U(+-1/sqrt(its last size)), without
compensation for there being two. Proven by recipes/monarch.py.

`order="block"` leaves the outputs in the order in which the blocks give them: the same class of matrices with its rows
permuted, so for a model trained from scratch a relabelling of features, which saves a transposition of y.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import jax.numpy as jnp
from flax import struct

from jaxpt.core.names import nearest_error
from jaxpt.core.spec import array, uniform_fan_in
from jaxpt.core.trees import static
from jaxpt.core.types import Array, Float, PRNGKeyArray
from jaxpt.weights.base import Cost, Form, Matrix, stack_axes
from pallas_kernels.monarch import block_diagonal, monarch
from pallas_kernels.monarch.layout import ORDERS


@struct.dataclass
class MonarchMatrix(Matrix):
    """w1 [N, N, C, p] (output block, input block, rank, input), w2 [N, s, N C]: slice (l, k) of W is their product."""

    w1: Float[Array, "*L N K C P"]
    w2: Float[Array, "*L N S M"]
    out_size: int = static()
    in_size: int = static()
    order: str = static(default="canonical")

    @property
    def shape(self) -> tuple[int, int]:
        return self.out_size, self.in_size

    def apply(self, x: Float[Array, "*B I"]) -> Float[Array, "*B O"]:
        w1, w2 = self.w1.astype(x.dtype), self.w2.astype(x.dtype)
        return monarch(x, w1, w2, out_size=self.out_size, order=self.order)

    def dense(self) -> Float[Array, "*L O I"]:
        *stack, n, k, c, p = self.w1.shape
        second = self.w2.reshape(*stack, n, -1, k, c)
        rows = "lskp" if self.order == "block" else "slkp"
        w = jnp.einsum(f"...lskc,...lkcp->...{rows}", second, self.w1)
        return w.reshape(*stack, n * second.shape[-3], k * p)[..., : self.out_size, : self.in_size]

    def cost(self, tokens: int) -> Cost:
        flops = 6.0 * tokens * (math.prod(self.w1.shape[-4:]) + math.prod(self.w2.shape[-3:]))
        return Cost(flops, flops)


@dataclasses.dataclass(frozen=True)
class Monarch(Form):
    """N blocks and the order of the outputs, "canonical" (the paper's) or "block".

    From a dense W: every slice's truncated SVD, singular values shared equally between the factors, which is the nearest
    Monarch matrix in the Frobenius norm (section 3.3; for N blocks and rectangular W the slices have rank C instead of 1).
    """

    blocks: int = 4
    order: str = "canonical"

    def __post_init__(self) -> None:
        if self.order not in ORDERS:
            raise nearest_error("order", self.order, ORDERS)
        if self.blocks < 1:
            raise ValueError(f"blocks={self.blocks} should be at least 1")

    def _sizes(self, out_size: int, in_size: int) -> tuple[int, int, int]:
        """(p, s, C)."""
        p, s = -(-in_size // self.blocks), -(-out_size // self.blocks)
        if self.order == "block" and out_size % self.blocks:
            raise ValueError(f"in block order {out_size} outputs must be a multiple of blocks={self.blocks}")
        return p, s, -(-min(p, s) // self.blocks)

    def spec(
        self, out_size: int, in_size: int, axes: tuple[str, str], stack: Sequence[int] = (), dtype: str = "float32"
    ) -> MonarchMatrix:
        n, lead, (p, s, c) = self.blocks, stack_axes(stack), self._sizes(out_size, in_size)
        return MonarchMatrix(
            w1=array((*stack, n, n, c, p), (*lead, None, None, None, axes[1]), uniform_fan_in(p), dtype),
            w2=array((*stack, n, s, n * c), (*lead, None, axes[0], None), uniform_fan_in(n * c), dtype),
            out_size=out_size,
            in_size=in_size,
            order=self.order,
        )

    def from_dense(self, key: PRNGKeyArray, w: Float[Array, "*L O I"]) -> MonarchMatrix:
        *stack, out_size, in_size = w.shape
        n, (p, s, c) = self.blocks, self._sizes(out_size, in_size)
        w = jnp.pad(w, [(0, 0)] * len(stack) + [(0, n * s - out_size), (0, n * p - in_size)])
        if self.order == "block":
            slices = jnp.moveaxis(w.reshape(*stack, n, s, n, p), -2, -3)
        else:
            slices = jnp.moveaxis(w.reshape(*stack, s, n, n, p), -4, -2)
        u, sigma, vt = jnp.linalg.svd(slices.astype(jnp.float32), full_matrices=False)  # of every [s, p] slice [l, k]
        root = jnp.sqrt(sigma[..., :c])
        w1 = (root[..., :, None] * vt[..., :c, :]).astype(w.dtype)
        w2 = jnp.moveaxis(u[..., :c] * root[..., None, :], -3, -2).astype(w.dtype)
        return MonarchMatrix(w1, w2.reshape(*stack, n, s, n * c), out_size, in_size, self.order)


@struct.dataclass
class BlockDiagonalMatrix(Matrix):
    """w [N, o, p]: block n maps inputs n p ... to outputs n o ..."""

    w: Float[Array, "*L N O P"]
    out_size: int = static()
    in_size: int = static()

    @property
    def shape(self) -> tuple[int, int]:
        return self.out_size, self.in_size

    def apply(self, x: Float[Array, "*B I"]) -> Float[Array, "*B O"]:
        return block_diagonal(x, self.w.astype(x.dtype), out_size=self.out_size)

    def dense(self) -> Float[Array, "*L O I"]:
        *stack, n, o, p = self.w.shape
        w = jnp.einsum("...nop,nm->...nomp", self.w, jnp.eye(n, dtype=self.w.dtype))
        return w.reshape(*stack, n * o, n * p)[..., : self.out_size, : self.in_size]

    def cost(self, tokens: int) -> Cost:
        flops = 6.0 * tokens * math.prod(self.w.shape[-3:])
        return Cost(flops, flops)


@dataclasses.dataclass(frozen=True)
class BlockDiagonal(Form):
    """N blocks on the diagonal, the single-factor layer of the release. From a dense W: its diagonal blocks.

    Initial values: those of a dense matrix times sqrt(N), U(+-1/sqrt(p)).
    """

    blocks: int = 4

    def spec(
        self, out_size: int, in_size: int, axes: tuple[str, str], stack: Sequence[int] = (), dtype: str = "float32"
    ) -> BlockDiagonalMatrix:
        n, p, o = self.blocks, -(-in_size // self.blocks), -(-out_size // self.blocks)
        w = array((*stack, n, o, p), (*stack_axes(stack), None, *axes), uniform_fan_in(p), dtype)
        return BlockDiagonalMatrix(w, out_size, in_size)

    def from_dense(self, key: PRNGKeyArray, w: Float[Array, "*L O I"]) -> BlockDiagonalMatrix:
        *stack, out_size, in_size = w.shape
        n, p, o = self.blocks, -(-in_size // self.blocks), -(-out_size // self.blocks)
        w = jnp.pad(w, [(0, 0)] * len(stack) + [(0, n * o - out_size), (0, n * p - in_size)])
        blocks = jnp.einsum("...nonp->...nop", w.reshape(*stack, n, o, n, p))
        return BlockDiagonalMatrix(blocks, out_size, in_size)
