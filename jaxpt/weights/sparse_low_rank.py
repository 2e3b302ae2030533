"""W = (alpha/r) B A + S, with S trained on a fixed random support: SLTrain (arXiv 2406.02214, section 3).

The support holds nnz = int(density * out * in) flat row-major positions, drawn once per layer without replacement, never
trained and always checkpointed. B starts at zero, so W = S at step 0; the scale touches the low-rank part only. Applied by
`pallas_kernels.sparse_low_rank`, which keeps no dense weight, gradient or moment. Proven by recipes/sltrain.py.

Two other supports are in the tile layout of the TPU kernel: `uniform_tiles`, the paper's law in slots of which some stay
empty, and `tile_balanced`, a variant of the method (`jaxpt.weights.supports`).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from jaxpt.core.names import nearest_error
from jaxpt.core.spec import array, uniform_fan_in, zeros
from jaxpt.core.trees import fixed, static
from jaxpt.core.types import Array, Float, Int, PRNGKeyArray
from jaxpt.sharding.rules import over_batch
from jaxpt.weights.base import Cost, Form, Matrix, stack_axes
from jaxpt.weights.low_rank import refactor, truncated_svd
from jaxpt.weights.supports import (
    balanced_slots,
    balanced_tiles,
    random_support,
    slots_for_uniform,
    uniform_tiles,
)
from pallas_kernels.sparse_low_rank import densify, sparse_low_rank
from pallas_kernels.sparse_low_rank.layout import flat_positions, is_tiled, tile_grid
from pallas_kernels.sparse_low_rank.xla import low_rank_from_tokens

SUPPORTS = ("uniform", "uniform_tiles", "tile_balanced")


@struct.dataclass
class SparseLowRankMatrix(Matrix):
    """B [out, r], A [r, in], the values v [nnz] and their flat positions [nnz] in W, sorted; or both by tile [R, C, K]."""

    b: Float[Array, "*L O R"]
    a: Float[Array, "*L R I"]
    v: Float[Array, "*L N"] | Float[Array, "*L M C N"]
    support: Int[Array, "*L N"] | Int[Array, "*L M C N"] = fixed()
    scale: float = static(default=1.0)

    @property
    def shape(self) -> tuple[int, int]:
        return self.b.shape[-2], self.a.shape[-1]

    def apply(self, x: Float[Array, "*B I"]) -> Float[Array, "*B O"]:
        b, a, v = (t.astype(x.dtype) for t in (self.b, self.a * self.scale, self.v))
        if is_tiled(self.support):  # for the kernel, which divides the batch itself
            return sparse_low_rank(x, b, a, v, self.support)
        return over_batch(sparse_low_rank, x, b, a, v, self.support)

    def dense(self) -> Float[Array, "*L O I"]:
        return _per_layer(densify, self.b.ndim - 2)(self.b, self.a * self.scale, self.v, self.support)

    def balanced(self) -> SparseLowRankMatrix:
        """The same matrix, its low-rank factors balanced (`low_rank.refactor`)."""
        b, a = refactor(self.b, self.a)
        return dataclasses.replace(self, b=b, a=a)

    def cost(self, tokens: int) -> Cost:
        (m, n), r = self.shape, self.a.shape[-2]
        nnz = math.prod(self.v.shape[len(self.b.shape) - 2 :])  # without stacked axes
        gradients = 4 * tokens * r * (m + n) if low_rank_from_tokens(tokens, m, n) else 4 * m * n * r
        return Cost(6.0 * tokens * (r * (m + n) + nnz), 6.0 * tokens * m * n + 4 * m * n * r + gradients)


@dataclasses.dataclass(frozen=True)
class SparseLowRank(Form):
    """Rank, density of S, alpha (scale = alpha / rank; 1 where alpha is None), and how the support is drawn and kept.

    `support`: "uniform" (flat, as published), "uniform_tiles" (the same law by tile, for the TPU kernel; its empty slots
    count as parameters) or "tile_balanced" (a variant: every tile holds the same share).
    `multiple` rounds the number of values of a uniform support down, so that so many devices can share them.

    From a dense W: S holds W - L on a fresh random support, L the truncated SVD of W; W - L off the support is lost.
    """

    rank: int = 8
    density: float = 0.03
    alpha: float | None = None
    multiple: int = 1
    support: str = "uniform"

    def __post_init__(self) -> None:
        if self.support not in SUPPORTS:
            raise nearest_error("support", self.support, SUPPORTS)

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
        lead = stack_axes(stack)
        sizes, draw, kind = self._support(out_size, in_size)
        own = ("nonzeros",) if len(sizes) == 1 else (*axes, None)  # by tile, S is cut where W is cut
        return SparseLowRankMatrix(
            b=array((*stack, out_size, self.rank), (*lead, axes[0], "rank"), zeros, dtype),
            a=array((*stack, self.rank, in_size), (*lead, "rank", axes[1]), uniform_fan_in(in_size), dtype),
            v=array((*stack, *sizes), (*lead, *own), uniform_fan_in(in_size), dtype),
            support=array((*stack, *sizes), (*lead, *own), draw, kind),
            scale=self.scale,
        )

    def from_dense(self, key: PRNGKeyArray, w: Float[Array, "*L O I"]) -> SparseLowRankMatrix:
        *stack, m, n = w.shape
        b, a = truncated_svd(w / self.scale, self.rank)
        sizes, draw, kind = self._support(m, n)
        support = draw(key, (*stack, *sizes), jnp.dtype(kind))
        rest = (w - jnp.einsum("...or,...ri->...oi", b, a * self.scale)).reshape(*stack, m * n)
        flat = support if len(sizes) == 1 else _per_layer(lambda p: flat_positions(p, m, n), len(stack))(support)
        flat = flat.reshape(*stack, -1)
        v = jnp.take_along_axis(rest, flat, axis=-1, mode="fill", fill_value=0).reshape(support.shape)
        return SparseLowRankMatrix(b, a, v, support, self.scale)

    def _support(self, out_size: int, in_size: int) -> tuple[tuple[int, ...], Any, str]:
        """Shape of one layer's support, its initializer, its dtype."""
        nnz, tiles = self.nnz(out_size, in_size), tile_grid(out_size, in_size)
        if self.support == "uniform":
            return (nnz,), random_support(out_size * in_size), "int32"
        if self.support == "uniform_tiles":
            slots = slots_for_uniform(out_size, in_size, nnz)
            return (*tiles, slots), uniform_tiles(out_size, in_size, nnz), "int16"
        slots = balanced_slots(out_size, in_size, self.density)
        return (*tiles, slots), balanced_tiles(out_size, in_size, self.density), "int16"


def _per_layer(fn: Callable[..., Any], stacked: int) -> Callable[..., Any]:
    """fn mapped over stacked axes."""
    for _ in range(stacked):
        fn = jax.vmap(fn)
    return fn
