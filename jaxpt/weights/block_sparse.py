"""W with a share of its blocks, at positions drawn once: the block variant of SPDF (arXiv 2303.10464).

SPDF itself prunes single entries, which no matrix unit turns into speed; this is a different method of the same sparsity,
for which `pallas_kernels.block_sparse` does only the work that is there. round(density * number of blocks) blocks, at least
one, uniformly drawn without replacement, the same number in every layer, never trained and always checkpointed.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from jaxpt.core.spec import array, uniform_fan_in
from jaxpt.core.trees import fixed, static
from jaxpt.core.types import Array, Float, Int, PRNGKeyArray
from jaxpt.weights.base import Cost, Form, Matrix, stack_axes
from jaxpt.weights.supports import random_support
from pallas_kernels.block_sparse import block_sparse, choice, densify


@struct.dataclass
class BlockSparseMatrix(Matrix):
    """blocks [N, bm, bn], and their positions [N] in row-major order of the grid of blocks, sorted.

    Blocks at the edge may stick out of W; what does is never used and gets no gradient, but counts as parameters.
    """

    blocks: Float[Array, "*L N bm bn"]
    positions: Int[Array, "*L N"] = fixed()
    out_size: int = static(default=0)
    in_size: int = static(default=0)

    @property
    def shape(self) -> tuple[int, int]:
        return self.out_size, self.in_size

    def _places(self) -> tuple[Int[Array, "*L N"], Int[Array, "*L N"]]:
        """Row and column of blocks."""
        across = -(-self.in_size // self.blocks.shape[-1])
        return self.positions // across, self.positions % across

    def apply(self, x: Float[Array, "*B I"]) -> Float[Array, "*B O"]:
        return block_sparse(x, self.blocks.astype(x.dtype), *self._places(), out_size=self.out_size)

    def dense(self) -> Float[Array, "*L O I"]:
        def one(blocks: Array, rows: Array, columns: Array) -> Array:
            return densify(blocks, rows, columns, self.out_size, self.in_size)

        for _ in range(self.blocks.ndim - 3):
            one = jax.vmap(one)
        return one(self.blocks, *self._places())

    def cost(self, tokens: int) -> Cost:
        """Executed: the blocks that are there where a kernel runs, a dense product where none does."""
        one: Any = jax.ShapeDtypeStruct(self.blocks.shape[-3:], jnp.bfloat16)
        place: Any = jax.ShapeDtypeStruct(one.shape[:1], jnp.int32)
        x: Any = jax.ShapeDtypeStruct((tokens, self.in_size), jnp.bfloat16)
        run = choice(x, one, place, place, out_size=self.out_size).implementation
        nominal = 6.0 * tokens * math.prod(one.shape)
        return Cost(nominal, 6.0 * tokens * self.out_size * self.in_size if run == "xla" else nominal)


@dataclasses.dataclass(frozen=True)
class BlockSparse(Form):
    """Share of the blocks that are there, and their size; TPU kernels need multiples of 128.

    From a dense W: its blocks of largest norm, which is the nearest matrix with that many blocks; the others are lost.
    Initial values: those of a dense matrix, U(+-1/sqrt(in)), as SPDF masks a dense initialization.
    """

    density: float = 0.25
    block: tuple[int, int] = (128, 128)

    def _grid(self, out_size: int, in_size: int) -> tuple[int, int, int]:
        """Rows and columns of blocks, and how many there are."""
        if not 0 < self.density <= 1:
            raise ValueError(f"density {self.density} is not above 0 and at most 1")
        down, across = -(-out_size // self.block[0]), -(-in_size // self.block[1])
        return down, across, max(1, round(self.density * down * across))

    def spec(
        self, out_size: int, in_size: int, axes: tuple[str, str], stack: Sequence[int] = (), dtype: str = "float32"
    ) -> BlockSparseMatrix:
        down, across, n = self._grid(out_size, in_size)
        lead = stack_axes(stack)
        return BlockSparseMatrix(
            array((*stack, n, *self.block), (*lead, "nonzeros", None, None), uniform_fan_in(in_size), dtype),
            array((*stack, n), (*lead, "nonzeros"), random_support(down * across), "int32"),
            out_size,
            in_size,
        )

    def from_dense(self, key: PRNGKeyArray, w: Float[Array, "*L O I"]) -> BlockSparseMatrix:
        *stack, out_size, in_size = w.shape
        down, across, n = self._grid(out_size, in_size)
        bm, bn = self.block
        w = jnp.pad(w, [(0, 0)] * len(stack) + [(0, down * bm - out_size), (0, across * bn - in_size)])
        blocks = w.reshape(*stack, down, bm, across, bn).swapaxes(-2, -3).reshape(*stack, down * across, bm, bn)
        norms = jnp.square(blocks.astype(jnp.float32)).sum((-1, -2))
        positions = jnp.sort(jnp.argsort(-norms, axis=-1)[..., :n], axis=-1).astype(jnp.int32)
        kept = jnp.take_along_axis(blocks, positions[..., None, None], axis=-3)
        return BlockSparseMatrix(kept, positions, out_size, in_size)
