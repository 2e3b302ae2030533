"""Monarch matrices (arXiv 2204.00595, section 3) and block-diagonal ones, with N blocks, N = 4 as in the released code.

A Monarch matrix of [out, in] is cut into N x N slices, of which each has rank C = middle / N, with p = ceil(in / N),
s = ceil(out / N) and middle = min(p, s) rounded up to a multiple of N. The factors are kept in the layout of
`pallas_kernels.monarch.layout`, which needs no permutation between them; `from_authors` and `to_authors` there convert a
released checkpoint both ways. Initial values as in the release: each factor from U(+-1/sqrt(its last size)), without
compensation for there being two. Proven by recipes/monarch.py.

The square matrices of the paper's theory, n = k r with slices of rank 1, are those of k output and r input blocks:
`Monarch(*square_blocks(n))`. Going back to `Dense` for the end of training (reverse sparsification, section 3.2) is
`jaxpt.training.surgery.switch`.

`order="block"` leaves the outputs in the order in which the blocks give them: the same class of matrices with its rows
permuted, so for a model trained from scratch a relabelling of features, which saves a transposition of y.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import jax.numpy as jnp
from flax import struct

from jaxpt.core import linalg
from jaxpt.core.names import nearest_error
from jaxpt.core.spec import array, uniform_fan_in
from jaxpt.core.trees import static
from jaxpt.core.types import Array, Float, PRNGKeyArray
from jaxpt.weights.base import Cost, Form, Matrix, stack_axes
from pallas_kernels.monarch import block_diagonal, monarch
from pallas_kernels.monarch.layout import ORDERS


@struct.dataclass
class MonarchMatrix(Matrix):
    """w1 [N, K, C, p] (output block, input block, rank, input), w2 [N, s, K C]: slice (l, k) of W is their product."""

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
    What is lost has the slices' smaller singular values. The DFT is a Monarch matrix only with its columns permuted.

    Attributes:
      blocks: of the outputs, and of the inputs too where `input_blocks` is None, as in the released layer.
    """

    blocks: int = 4
    input_blocks: int | None = None
    order: str = "canonical"

    def __post_init__(self) -> None:
        if self.order not in ORDERS:
            raise nearest_error("order", self.order, ORDERS)
        if min(self._grid) < 1:
            raise ValueError(f"blocks={self.blocks} should be at least 1, and input_blocks={self.input_blocks} too")

    @property
    def _grid(self) -> tuple[int, int]:
        """Output blocks N and input blocks K."""
        return self.blocks, self.blocks if self.input_blocks is None else self.input_blocks

    def _sizes(self, out_size: int, in_size: int) -> tuple[int, int, int]:
        """(p, s, C): the middle has the smaller side's width and is shared by N x K slices."""
        n, k = self._grid
        p, s = -(-in_size // k), -(-out_size // n)
        if self.order == "block" and out_size % n:
            raise ValueError(f"in block order {out_size} outputs must be a multiple of blocks={n}")
        return p, s, -(-min(k * p, n * s) // (n * k))

    def spec(
        self, out_size: int, in_size: int, axes: tuple[str, str], stack: Sequence[int] = (), dtype: str = "float32"
    ) -> MonarchMatrix:
        (n, k), lead, (p, s, c) = self._grid, stack_axes(stack), self._sizes(out_size, in_size)
        return MonarchMatrix(
            w1=array((*stack, n, k, c, p), (*lead, None, None, "rank", axes[1]), uniform_fan_in(p), dtype),
            w2=array((*stack, n, s, k * c), (*lead, None, axes[0], "rank"), uniform_fan_in(k * c), dtype),
            out_size=out_size,
            in_size=in_size,
            order=self.order,
        )

    def from_dense(self, key: PRNGKeyArray, w: Float[Array, "*L O I"]) -> MonarchMatrix:
        *stack, out_size, in_size = w.shape
        (n, k), (p, s, c) = self._grid, self._sizes(out_size, in_size)
        padded = jnp.pad(w, [(0, 0)] * len(stack) + [(0, n * s - out_size), (0, k * p - in_size)])
        if self.order == "block":
            slices = jnp.moveaxis(padded.reshape(*stack, n, s, k, p), -2, -3)
        else:
            slices = jnp.moveaxis(padded.reshape(*stack, s, n, k, p), -4, -2)
        wide = jnp.promote_types(w.dtype, jnp.float32)
        u, sigma, vt = linalg.svd(slices.astype(wide))  # of every [s, p] slice [l, k]
        root = jnp.sqrt(sigma[..., :c]).astype(wide)
        w1 = (root[..., :, None] * vt[..., :c, :]).astype(w.dtype)
        w2 = jnp.moveaxis(u[..., :c] * root[..., None, :], -3, -2).astype(w.dtype)
        return MonarchMatrix(w1, w2.reshape(*stack, n, s, k * c), out_size, in_size, self.order)


def square_blocks(n: int) -> tuple[int, int]:
    """The factor pair (k, r) of n nearest to its square root, k <= r: blocks of an n x n matrix with slices of rank 1."""
    if n < 1:
        raise ValueError(f"a matrix has at least one row, not {n}")
    k = next(k for k in range(math.isqrt(n), 0, -1) if n % k == 0)
    return k, n // k


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
    """N blocks on the diagonal, the single-factor layer of the release.

    From a dense W: its diagonal blocks; the rest is lost. Initial values: those of a dense matrix times sqrt(N),
    U(+-1/sqrt(p)).
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
