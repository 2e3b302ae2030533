"""Adam whose moments are stored in 8 bits, block-wise and dynamically quantised (arXiv 2110.02861, section 2).

    stored: codes in 8 bits, and per block of at most 256 entries s = max|x|;   x ~ s value(code)
    value: the middles of even steps in seven decades below 1, 64 steps in the first and half as many in each further one
           (128 where there is no sign), and 0 and 1

M is signed, V is not. Every update reads both in float32, applies Adam, and rounds to the nearest code. The codes are those
of bitsandbytes; its blocks run over the flattened array, ours along the last axis and end with it, so that the layers and
shards of an array are quantised alike wherever they live. Arrays that `where` does not name keep moments of their own
dtype: embeddings, as the paper advises (section 2.3), biases and norms. Per entry: 2 bytes + 8 / min(256, size of the last
axis), against 8 of float32.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import struct

from jaxpt.core import trees
from jaxpt.core.trees import static
from jaxpt.core.types import Array, Float, Int, PyTree, Shaped
from jaxpt.optim.adam import decoupled
from jaxpt.optim.config import OptimizerConfig
from jaxpt.optim.moments import Moments

BLOCK = 256


@dataclasses.dataclass(frozen=True, kw_only=True)
class Adam8bitConfig(OptimizerConfig):
    """Adam in 8 bits and its schedule. `where` are path patterns of the arrays whose moments are quantised."""

    b1: float = 0.9
    b2: float = 0.999
    eps: float = 1e-8
    weight_decay: float = 0.0
    where: tuple[str, ...] = ("*/kernel",)

    def with_rates(self, rates: optax.Schedule) -> optax.GradientTransformation:
        return decoupled(scale_by_adam_8bit(self.b1, self.b2, self.eps, self.where), rates, self.weight_decay)


@struct.dataclass
class Quantised:
    """Codes [..., n], and scales [..., ceil(n / 256)] in float32. Code 0 is the value 0, so zeros are zeros."""

    codes: Int[Array, "*L n"]
    scales: Float[Array, "*L blocks"]
    signed: bool = static(default=True)


@struct.dataclass
class Adam8bitState(Moments):
    """Attributes:
    count: updates since the moments were zero.
    mu, nu: moments: `Quantised`, or arrays where they are not quantised.
    """

    count: Int[Array, ""]
    mu: PyTree
    nu: PyTree
    moments = ("count", "mu", "nu")


def scale_by_adam_8bit(
    b1: float = 0.9, b2: float = 0.999, eps: float = 1e-8, where: tuple[str, ...] = ("*/kernel",)
) -> optax.GradientTransformation:
    """Gradients -> directions, to be multiplied by the negative rate."""

    def init(params: PyTree) -> Adam8bitState:
        def zeros(signed: bool) -> PyTree:
            def one(path: str, x: Array) -> Any:
                quantised = trees.matches_any(path, where) and x.ndim
                return quantise(jnp.zeros(x.shape), signed) if quantised else jnp.zeros_like(x)

            return trees.map_with_path(one, params)

        return Adam8bitState(jnp.zeros((), jnp.int32), zeros(True), zeros(False))

    def update(gradients: PyTree, state: Adam8bitState, params: PyTree = None) -> tuple[PyTree, Adam8bitState]:
        count = optax.safe_increment(state.count)
        t = count.astype(jnp.float32)

        def one(g: Array, m: Quantised | Array, v: Quantised | Array) -> tuple[Array, Any, Any]:
            wide = g.astype(jnp.float32)
            mu, nu = b1 * read(m) + (1 - b1) * wide, b2 * read(v) + (1 - b2) * wide**2
            direction = mu / (1 - b1**t) / (jnp.sqrt(nu / (1 - b2**t)) + eps)
            return direction.astype(g.dtype), written(mu, m), written(nu, v)

        def layers(g: Array | None, m: Quantised | Array, v: Quantised | Array) -> tuple[Array | None, Any, Any]:
            """One layer after another where layers are stacked, so that only one has its moments in float32."""
            if g is None:  # not of this part of the parameters (`training.layerwise`)
                return None, m, v
            if g.ndim < 3 or not isinstance(m, Quantised):
                return one(g, m, v)
            return jax.lax.map(lambda of_layer: one(*of_layer), (g, m, v))

        is_none = lambda x: x is None  # noqa: E731
        found = jax.tree.map(layers, gradients, state.mu, state.nu, is_leaf=is_none)
        updates, mu, nu = (jax.tree.map(lambda _, x, i=i: x[i], gradients, found, is_leaf=is_none) for i in range(3))
        return updates, Adam8bitState(count, mu, nu)

    return optax.GradientTransformation(init, update)


def read(x: Quantised | Array) -> Float[Array, "*L"]:
    """A moment in float32."""
    if not isinstance(x, Quantised):
        return x.astype(jnp.float32)
    blocks = _blocks(value(x.codes, x.signed)) * x.scales[..., None]
    return blocks.reshape(*blocks.shape[:-2], -1)[..., : x.codes.shape[-1]]


def written(x: Float[Array, "*L"], like: Quantised | Array) -> Quantised | Array:
    """A moment as `like` is stored."""
    return quantise(x, like.signed) if isinstance(like, Quantised) else x.astype(like.dtype)


def quantise(x: Float[Array, "*L n"], signed: bool) -> Quantised:
    """The nearest codes, each block scaled by its largest entry."""
    blocks = _blocks(x.astype(jnp.float32))
    scales = jnp.max(jnp.abs(blocks), -1)
    codes = code(blocks / jnp.where(scales > 0, scales, 1.0)[..., None], signed)
    return Quantised(codes.reshape(*codes.shape[:-2], -1)[..., : x.shape[-1]], scales, signed)


@functools.cache
def table(signed: bool) -> np.ndarray:
    """The values of all 256 codes, rising."""
    found = [0.0, 1.0]
    for i in range(7):
        edges = np.linspace(0.1, 1.0, 2 ** (i if signed else i + 1) + 1)
        middles = 10.0 ** (i - 6) * (edges[:-1] + edges[1:]) / 2
        found += [*middles, *(-middles if signed else ())]
    return np.sort(found).astype(np.float32)


def value(codes: Int[Array, "*L"], signed: bool) -> Float[Array, "*L"]:
    """What codes stand for: uint8 in [0, 1]; int8 in [-1, 1], where 0 is 0 and -128, for which it has no negative, is 1."""
    place = (codes.astype(jnp.int32) + 127) % 256 if signed else codes.astype(jnp.int32)
    return jnp.asarray(table(signed)).at[place].get(mode="promise_in_bounds")


def code(x: Float[Array, "*L"], signed: bool) -> Int[Array, "*L"]:
    """The nearest codes of values in [-1, 1], or [0, 1] if not signed."""
    place = jnp.searchsorted(jnp.asarray((table(signed)[1:] + table(signed)[:-1]) / 2), x)
    return jnp.where(place == 255, -128, place - 127).astype(jnp.int8) if signed else place.astype(jnp.uint8)


def _blocks(x: Shaped[Array, "*L n"]) -> Shaped[Array, "*L blocks block"]:
    """The last axis cut into blocks, the last of them filled up with zeros."""
    n = x.shape[-1]
    size = min(BLOCK, n)
    x = jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, -n % size)])
    return x.reshape(*x.shape[:-1], -1, size)
