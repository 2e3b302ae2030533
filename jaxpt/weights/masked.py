"""W * M, a dense matrix under a mask M of zeros and ones that is never trained: SPDF (arXiv 2303.10464, section 3).

M is drawn once and uniformly at random, with the same number of ones, round((1 - sparsity) out in), in every layer; neither
magnitudes nor layers decide. It acts in the forward pass, so the gradient of W is masked with it, and whatever an optimizer
does to an entry outside the mask (decay, averaging) never reaches the function. Exempt, by where the form is used:
embeddings, norms, biases, the head. `jaxpt.weights.pruning` shrinks the same masks by magnitude (arXiv 2501.12486), and
going back to `Dense` keeps the function bit for bit: revived entries start at zero. Proven by recipes/spdf.py and
recipes/journey_matters.py.

A mask of single entries saves no time on a matrix unit: cost is nominal for the entries that are there and executed for a
dense product. `BlockSparse` is the form that does only the work that is there.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from jaxpt.core.names import nearest_error
from jaxpt.core.spec import Initializer, array
from jaxpt.core.trees import fixed, static
from jaxpt.core.types import Array, Bool, Float, Int, PRNGKeyArray, UInt8
from jaxpt.weights.base import Cost, Form, Matrix, stack_axes
from jaxpt.weights.dense import Dense

KINDS = ("unstructured", "block", "nm")
ALWAYS_RESCALED = 0.9  # from this sparsity on initial values are scaled up unless the form says otherwise


@struct.dataclass
class MaskedMatrix(Matrix):
    """w [out, in] and its mask, eight columns to a byte [out, ceil(in / 8)], so that a row stays a row on a mesh.

    `drawn` is how many entries a layer's mask held when it was made: what specs and shapes, which hold no mask, are
    counted by. Arrays are counted as they are.
    """

    w: Float[Array, "*L O I"]
    mask: UInt8[Array, "*L O J"] = fixed()
    drawn: int = static(default=0)

    @property
    def shape(self) -> tuple[int, int]:
        return self.w.shape[-2], self.w.shape[-1]

    def active(self) -> Bool[Array, "*L O I"]:
        """The mask, one boolean per entry."""
        return unpack(self.mask, self.shape[1])

    def entries(self) -> float:
        """How many entries of a layer are active; the mean, where stacked layers differ."""
        if not isinstance(self.mask, (jax.Array, np.ndarray)):
            return self.drawn
        per_layer = jnp.bitwise_count(self.mask).sum((-2, -1), dtype=jnp.int32)
        return float(np.asarray(per_layer, np.float64).mean())

    def with_mask(self, active: Bool[Array, "*L O I"]) -> MaskedMatrix:
        """The same matrix under another mask, zero wherever that is off."""
        return dataclasses.replace(self, w=jnp.where(active, self.w, 0), mask=pack(active))

    def apply(self, x: Float[Array, "*B I"]) -> Float[Array, "*B O"]:
        return jnp.einsum("...i,oi->...o", x, self.dense().astype(x.dtype))

    def dense(self) -> Float[Array, "*L O I"]:
        return jnp.where(self.active(), self.w, 0)

    def cost(self, tokens: int) -> Cost:
        out_size, in_size = self.shape
        return Cost(6.0 * tokens * self.entries(), 6.0 * tokens * out_size * in_size)


@dataclasses.dataclass(frozen=True)
class Masked(Form):
    """Share of the entries that are off, and in what pattern.

    From a dense W: its largest entries (blocks of largest norm; the n largest of every m), which is the nearest matrix with
    that many; the others are lost. Initial values: those of `Dense`, masked.

    Attributes:
      sparsity: 0 for a full mask, from which `jaxpt.weights.pruning` starts.
      kind: "unstructured" as published; "block" (whole `block`s) and "nm" (n of every m in a row) are other methods of the
        same sparsity.
      block: its size, for kind "block"; must divide W.
      group: (n, m), for kind "nm"; then sparsity must be 1 - n / m.
      stddev: as of `Dense`.
      rescale: initial values times 1 / sqrt(1 - sparsity), which keeps the variance of the outputs. None: only from a
        sparsity of 0.9 on; the paper does not scale.
    """

    sparsity: float = 0.75
    kind: str = "unstructured"
    block: tuple[int, int] = (128, 128)
    group: tuple[int, int] = (2, 4)
    stddev: float | None = None
    rescale: bool | None = None

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise nearest_error("mask kind", self.kind, KINDS)
        if not 0 <= self.sparsity < 1:
            raise ValueError(f"sparsity {self.sparsity} is not at least 0 and below 1")
        n, m = self.group
        if self.kind == "nm" and not (0 < n <= m and math.isclose(self.sparsity, 1 - n / m)):
            raise ValueError(f"{n} of every {m} entries are a sparsity of {1 - n / max(m, 1)}, not of {self.sparsity}")

    def spec(
        self, out_size: int, in_size: int, axes: tuple[str, str], stack: Sequence[int] = (), dtype: str = "float32"
    ) -> MaskedMatrix:
        plain: Any = Dense(self.stddev).spec(out_size, in_size, axes, stack, dtype).w
        kept = self._kept(out_size, in_size)
        if self.sparsity >= ALWAYS_RESCALED if self.rescale is None else self.rescale:
            plain = dataclasses.replace(plain, init=_times(1 / math.sqrt(1 - self.sparsity), plain.init))
        packed, draw = (*stack, out_size, -(-in_size // 8)), self._draw(out_size, in_size)
        return MaskedMatrix(plain, array(packed, (*stack_axes(stack), *axes), draw, "uint8"), kept)

    def from_dense(self, key: PRNGKeyArray, w: Float[Array, "*L O I"]) -> MaskedMatrix:
        out_size, in_size = w.shape[-2:]
        kept = self._kept(out_size, in_size)
        flat = w.reshape(-1, out_size, in_size).astype(jnp.float32)
        chosen = jax.lax.map(lambda layer: self._expand(ranks(self._scores(layer)), out_size, in_size), flat)
        chosen = chosen.reshape(w.shape)
        return MaskedMatrix(jnp.where(chosen, w, 0), pack(chosen), kept)

    def random_mask(self, key: PRNGKeyArray, out_size: int, in_size: int) -> Bool[Array, "O I"]:
        """A mask of this kind with exactly as many ones as there should be."""
        self._kept(out_size, in_size)
        shape = jax.eval_shape(self._scores, jax.ShapeDtypeStruct((out_size, in_size), jnp.float32)).shape
        numbers = jnp.broadcast_to(jnp.arange(shape[-1]), shape)
        order = jax.random.permutation(key, numbers, axis=-1, independent=True)
        return self._expand(order, out_size, in_size)

    def _draw(self, out_size: int, in_size: int) -> Initializer:
        """Packed masks [..., out, ceil(in / 8)], another one for every stacked layer."""

        def draw(key: PRNGKeyArray, shape: tuple[int, ...], dtype: Any) -> Array:
            layers = jnp.arange(math.prod(shape[:-2]))  # one at a time, as the supports of SLTrain are
            one = lambda i: pack(self.random_mask(jax.random.fold_in(key, i), out_size, in_size))  # noqa: E731
            return jax.lax.map(one, layers).reshape(shape)

        return draw

    def _kept(self, out_size: int, in_size: int) -> int:
        """Active entries of an [out, in] matrix.

        Raises:
          ValueError: blocks or groups that do not divide it.
        """
        (bm, bn), (n, m) = self.block, self.group
        if self.kind == "block":
            if out_size % bm or in_size % bn:
                raise ValueError(f"blocks of {self.block} do not divide a matrix of {(out_size, in_size)}")
            return round((1 - self.sparsity) * (out_size // bm) * (in_size // bn)) * bm * bn
        if self.kind == "nm":
            if in_size % m:
                raise ValueError(f"groups of {m} do not divide rows of {in_size}")
            return out_size * in_size // m * n
        return round((1 - self.sparsity) * out_size * in_size)

    def _scores(self, w: Float[Array, "O I"]) -> Float[Array, " U"] | Float[Array, "U M"]:
        """One number per entry, or per block; of those along the last axis the largest are to be kept."""
        if self.kind == "block":
            (out_size, in_size), (bm, bn) = w.shape, self.block
            return jnp.square(w).reshape(out_size // bm, bm, in_size // bn, bn).sum((1, 3)).reshape(-1)
        return jnp.abs(w).reshape(-1, self.group[1]) if self.kind == "nm" else jnp.abs(w).reshape(-1)

    def _expand(self, rank: Int[Array, ...], out_size: int, in_size: int) -> Bool[Array, "O I"]:
        """The mask of the entries, or blocks, whose rank is below the number to keep."""
        (bm, bn), kept = self.block, self._kept(out_size, in_size)
        if self.kind == "block":
            grid = (rank < kept // (bm * bn)).reshape(out_size // bm, in_size // bn)
            return jnp.repeat(jnp.repeat(grid, bm, 0), bn, 1)
        return (rank < (self.group[0] if self.kind == "nm" else kept)).reshape(out_size, in_size)


def pack(mask: Bool[Array, "*L O I"]) -> UInt8[Array, "*L O J"]:
    """Eight columns to a byte, the last byte filled up with zeros."""
    return jnp.packbits(mask, axis=-1)


def unpack(mask: UInt8[Array, "*L O J"], in_size: int) -> Bool[Array, "*L O I"]:
    """The inverse of `pack`."""
    return jnp.unpackbits(mask, axis=-1, count=in_size).astype(bool)


def ranks(scores: Float[Array, "*B N"]) -> Int[Array, "*B N"]:
    """0 for the largest along the last axis, and so on; of equal ones the first is the larger. Counts by rank are exact."""
    return jnp.argsort(jnp.argsort(-scores, axis=-1, stable=True), axis=-1)


def _times(scale: float, initializer: Initializer) -> Initializer:
    return lambda key, shape, dtype: scale * initializer(key, shape, dtype)
