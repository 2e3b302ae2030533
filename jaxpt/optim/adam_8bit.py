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
from typing import Any

import jax
import jax.numpy as jnp
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
        mu = jax.tree.map(lambda g, m: b1 * read(m) + (1 - b1) * g.astype(jnp.float32), gradients, state.mu)
        nu = jax.tree.map(lambda g, v: b2 * read(v) + (1 - b2) * g.astype(jnp.float32) ** 2, gradients, state.nu)

        def direction(g: Array, m: Array, v: Array) -> Array:
            return (m / (1 - b1**t) / (jnp.sqrt(v / (1 - b2**t)) + eps)).astype(g.dtype)

        updates = jax.tree.map(direction, gradients, mu, nu)
        mu, nu = (jax.tree.map(written, new, old) for new, old in ((mu, state.mu), (nu, state.nu)))
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


def value(codes: Int[Array, "*L"], signed: bool) -> Float[Array, "*L"]:
    """What codes stand for: int8 in [-1, 1], where -128 is 1, or uint8 in [0, 1]."""
    magnitude = jnp.abs(codes.astype(jnp.int32))
    # Counted so that the k-th decade's codes are the numbers of k binary digits: 1, 2..3, 4..7, ... (signed).
    number, top = (magnitude, 6) if signed else (magnitude + 1, 7)
    digits = 31 - jax.lax.clz(jnp.maximum(number, 1))
    steps = (1 << digits).astype(jnp.float32)
    cell = 0.1 + 0.9 * (number.astype(jnp.float32) - steps + 0.5) / steps
    found = cell * _tens(digits - top)
    found = jnp.where(number == 2 << top, 1.0, jnp.where(magnitude == 0, 0.0, found))
    return jnp.where((codes < 0) & (number != 2 << top), -found, found) if signed else found


def code(x: Float[Array, "*L"], signed: bool) -> Int[Array, "*L"]:
    """The nearest codes of values in [-1, 1], or [0, 1] if not signed."""
    y = jnp.abs(x)
    top, lowest = (6, 0) if signed else (7, 1)
    decade = (
        jnp.floor(jnp.log10(jnp.maximum(y, 1e-30))).astype(jnp.int32) + 1
    )  # 0 for [0.1, 1), -1 for [0.01, 0.1), ...
    digits = jnp.clip(top + decade, lowest, top)
    steps = 1 << digits
    cell = (y / _tens(digits - top) - 0.1) / 0.9 * steps.astype(jnp.float32)
    guess = steps + jnp.clip(jnp.floor(cell).astype(jnp.int32), 0, steps - 1) - lowest
    largest = 127 if signed else 255  # 1 itself has no negative: below
    near = jnp.stack([jnp.clip(guess + i, 0, largest) for i in (-1, 0, 1)])
    distance = jnp.abs(value(near.astype(jnp.int8 if signed else jnp.uint8), signed) - y)
    found = jnp.take_along_axis(near, jnp.argmin(distance, 0)[None], 0)[0]
    if not signed:
        return found.astype(jnp.uint8)
    is_one = (x > 0) & (1 - y < distance.min(0))
    return jnp.where(is_one, -128, jnp.where(x < 0, -found, found)).astype(jnp.int8)


def _tens(n: Int[Array, "*L"]) -> Float[Array, "*L"]:
    return 10.0 ** n.astype(jnp.float32)


def _blocks(x: Shaped[Array, "*L n"]) -> Shaped[Array, "*L blocks block"]:
    """The last axis cut into blocks, the last of them filled up with zeros."""
    n = x.shape[-1]
    size = min(BLOCK, n)
    x = jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, -n % size)])
    return x.reshape(*x.shape[:-1], -1, size)
