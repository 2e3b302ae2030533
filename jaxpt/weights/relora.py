"""W = W0 + (alpha/r) B A, with W0 never trained but merged into: ReLoRA (arXiv 2307.05695, section 3 and algorithm 1).

Every T updates W0 += (alpha/r) B A, B = 0, A is drawn afresh, and all but the largest entries of the factors' moments are
set to zero; the rate is warmed up again after each merge. One merge adds rank r to what training can change, so k of them
give W - W_start a rank of up to (k + 1) r. The paper starts from full rank (5 of 20 thousand updates) and is weak
without that.

    merged = relora.merge(key, params)                            # the same function
    opt_state = relora.prune_moments(opt_state, fraction=0.999)

`jaxpt.training.surgery.merges` runs both on a schedule. Proven by recipes/memory_benchmark.py.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from jaxpt.core import trees
from jaxpt.core.rng import fold
from jaxpt.core.spec import array, uniform_fan_in, zeros
from jaxpt.core.trees import fixed, static
from jaxpt.core.types import Array, Float, Params, PRNGKeyArray, PyTree
from jaxpt.weights.base import Cost, Form, Matrix, stack_axes
from jaxpt.weights.dense import Dense
from jaxpt.weights.masked import ranks


@struct.dataclass
class ReLoRAMatrix(Matrix):
    """B [out, r], A [r, in], and W0 [out, in], which no gradient reaches."""

    b: Float[Array, "*L O R"]
    a: Float[Array, "*L R I"]
    w0: Float[Array, "*L O I"] = fixed()
    scale: float = static(default=1.0)

    @property
    def shape(self) -> tuple[int, int]:
        return self.w0.shape[-2], self.w0.shape[-1]

    def apply(self, x: Float[Array, "*B I"]) -> Float[Array, "*B O"]:
        w0, b, a = (t.astype(x.dtype) for t in (self.w0, self.b, self.a * self.scale))
        hidden = jnp.einsum("...i,ri->...r", x, a)
        return jnp.einsum("...i,oi->...o", x, w0) + jnp.einsum("...r,or->...o", hidden, b)

    def dense(self) -> Float[Array, "*L O I"]:
        update = jnp.einsum("...or,...ri->...oi", self.b, self.a * self.scale)
        return (self.w0 + update).astype(self.w0.dtype)

    def cost(self, tokens: int) -> Cost:
        """W0 costs a forward product and the gradient of its input, but none of its own."""
        (m, n), r = self.shape, self.a.shape[-2]
        flops = tokens * (4.0 * m * n + 6.0 * r * (m + n))
        return Cost(flops, flops)


@dataclasses.dataclass(frozen=True)
class ReLoRA(Form):
    """Rank r; scale alpha / rank, or 1 where alpha is None; `stddev` of W0's initial values as of `Dense`.

    From a dense W: W0 = W and B = 0, which loses nothing.
    """

    rank: int = 8
    alpha: float | None = None
    stddev: float | None = None

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise ValueError(f"rank {self.rank} should be at least 1")

    @property
    def scale(self) -> float:
        """alpha / rank."""
        return 1.0 if self.alpha is None else self.alpha / self.rank

    def spec(
        self, out_size: int, in_size: int, axes: tuple[str, str], stack: Sequence[int] = (), dtype: str = "float32"
    ) -> ReLoRAMatrix:
        lead = stack_axes(stack)
        return ReLoRAMatrix(
            b=array((*stack, out_size, self.rank), (*lead, axes[0], "rank"), zeros, dtype),
            a=array((*stack, self.rank, in_size), (*lead, "rank", axes[1]), uniform_fan_in(in_size), dtype),
            w0=Dense(self.stddev).spec(out_size, in_size, axes, stack, dtype).w,
            scale=self.scale,
        )

    def from_dense(self, key: PRNGKeyArray, w: Float[Array, "*L O I"]) -> ReLoRAMatrix:
        *stack, out_size, in_size = w.shape
        b = jnp.zeros((*stack, out_size, self.rank), w.dtype)
        return ReLoRAMatrix(b, _fresh(key, (*stack, self.rank, in_size), w.dtype), w, self.scale)


def merge(key: PRNGKeyArray, params: Params) -> Params:
    """Every ReLoRA matrix of the tree with (alpha/r) B A taken into W0 (summed in float32), B = 0 and another A.

    Raises:
      ValueError: there is no such matrix.
    """
    found = False

    def one(path: str, leaf: Any) -> Any:
        nonlocal found
        if not isinstance(leaf, ReLoRAMatrix):
            return leaf
        found = True
        b, a = leaf.b.astype(jnp.float32), leaf.a.astype(jnp.float32) * leaf.scale
        w0 = leaf.w0 + jnp.einsum("...or,...ri->...oi", b, a)
        fresh = _fresh(fold(key, path), leaf.a.shape, leaf.a.dtype)
        return dataclasses.replace(leaf, w0=w0.astype(leaf.w0.dtype), b=jnp.zeros_like(leaf.b), a=fresh)

    merged = trees.map_with_path(one, params, is_leaf=lambda x: isinstance(x, Matrix))
    if not found:
        raise ValueError("there is no ReLoRA matrix to merge; convert some first (jaxpt.weights.convert)")
    return merged


def prune_moments(opt_state: PyTree, fraction: float = 0.999) -> PyTree:
    """The optimizer's state with this share of every moment of a factor set to zero, the smallest in magnitude first.

    As in the released code every moment is pruned by its own magnitudes, a stack of layers layer by layer, and counters
    stay: a first moment may outlive its second, so the next updates need their ramp. Found are the moments that an optimizer
    keeps in a tree like the parameters'.

    Raises:
      ValueError: a fraction outside [0, 1].
    """
    if not 0 <= fraction <= 1:
        raise ValueError(f"fraction {fraction} is not between 0 and 1")

    def prune(moment: Array) -> Array:
        kept = round((1 - fraction) * math.prod(moment.shape[-2:]))
        flat = jnp.abs(moment.astype(jnp.float32)).reshape(*moment.shape[:-2], -1)
        return jnp.where((ranks(flat) < kept).reshape(moment.shape), moment, 0)

    def one(leaf: Any) -> Any:
        return jax.tree.map(prune, leaf) if isinstance(leaf, ReLoRAMatrix) else leaf

    return jax.tree.map(one, opt_state, is_leaf=lambda x: isinstance(x, ReLoRAMatrix))


def _fresh(key: PRNGKeyArray, shape: tuple[int, ...], dtype: Any) -> Array:
    return uniform_fan_in(shape[-1])(key, shape, dtype)
