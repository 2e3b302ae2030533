"""One decoding step as calls of small compiled programs, one per layer.

A scan over stacked layers copies every layer's weights out of the stack before it multiplies with them, which at one
token a step is most of the traffic; unrolling the layers in one program compiles for a quarter of a minute. Layers held
apart and run by one program that all of them share avoid both (docs/generation.md has the measurement).
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from jaxpt import weights
from jaxpt.core.rng import fold
from jaxpt.core.types import Array, Bool, Float, Int, Params, UInt32
from jaxpt.layers import block as blocks
from jaxpt.layers import norms
from jaxpt.layers.block import Cache, Context
from jaxpt.layers.embeddings import embed
from jaxpt.models import decoder
from jaxpt.models.generate import Sampling, place, sample

SCORE_CHUNK = 8  # positions whose logits exist at once while continuations are scored


@struct.dataclass
class TransposedMatrix(weights.Matrix):
    """W as W^T [in, out]: the layout in which XLA's CPU backend multiplies a handful of rows fastest."""

    w: Float[Array, "I O"]

    @property
    def shape(self) -> tuple[int, int]:
        return self.w.shape[1], self.w.shape[0]

    def apply(self, x: Float[Array, "*B I"]) -> Float[Array, "*B O"]:
        return jnp.einsum("...i,io->...o", x, self.w.astype(x.dtype))

    def dense(self) -> Float[Array, "O I"]:
        return self.w.T


@struct.dataclass
class State:
    """A batch being decoded: keys and values of every layer, which slots hold tokens, how many are written."""

    k: tuple[Float[Array, "B T G K"], ...]
    v: tuple[Float[Array, "B T G K"], ...]
    valid: Bool[Array, "B T"]
    length: Int[Array, ""]


def split_layers(params: Params, layers: int) -> tuple[list[Params], Params]:
    """(one tree a layer, the arrays around the layers)."""
    take = jax.jit(
        lambda stack, i: jax.tree.map(_laid_out, jax.tree.map(lambda x: x[i], stack), is_leaf=weights.is_matrix)
    )
    return [take(params["blocks"], i) for i in range(layers)], {k: v for k, v in params.items() if k != "blocks"}


def empty_state(cfg: decoder.Config, batch: int, length: int) -> State:
    """Room for `length` tokens of `batch` rows."""
    shape = (batch, length, cfg.groups, cfg.per_head)
    k, v = (tuple(jnp.zeros(shape, cfg.compute_dtype) for _ in range(cfg.layers)) for _ in range(2))
    return State(k, v, jnp.zeros((batch, length), bool), jnp.zeros((), jnp.int32))


def extend(
    layers: list[Params], around: Params, ids: Int[Array, "B S"], valid: Bool[Array, "B S"], cfg: Any, state: State
) -> tuple[Float[Array, "B S D"], State]:
    """The residual stream after the last layer for `ids` given everything in the state, and the state with them in it.

    Donates the state's arrays: it must not be used again.
    """
    x, context, slots = _enter(around, ids, valid, state.valid, state.length, cfg)
    ks, vs = [], []
    for p, k, v in zip(layers, state.k, state.v, strict=True):
        x, k, v = _layer(p, x, context, k, v, slots, state.length, cfg)
        ks.append(k)
        vs.append(v)
    return x, State(tuple(ks), tuple(vs), slots, state.length + ids.shape[1])


@functools.partial(jax.jit, static_argnames=("cfg",))
def _enter(around: Params, ids: Array, valid: Array, cached: Array, length: Array, cfg: decoder.Config) -> Any:
    positions, mask, slots = place(cached, length, valid)
    x, positions = embed(around, ids, positions, cfg.compute_dtype)
    return x, Context(mask, positions), slots


@functools.partial(jax.jit, static_argnames=("cfg",), donate_argnums=(3, 4))
def _layer(
    p: Params, x: Array, context: Context, k: Array, v: Array, valid: Array, length: Array, cfg: decoder.Config
) -> tuple[Array, Array, Array]:
    x, cache = blocks.block(x, p, cfg, context, Cache(k, v, valid, length))
    assert cache is not None
    return x, cache.k, cache.v


@functools.partial(jax.jit, static_argnames=("cfg", "sampling", "size"))
def draw(
    around: Params,
    x: Float[Array, "B S D"],
    seeds: UInt32[Array, " B"],
    t: Int[Array, ""],
    cfg: decoder.Config,
    sampling: Sampling,
    size: int,
) -> tuple[Int[Array, " B"], Float[Array, " B"]]:
    """The next token after the last position of x, and its log-probability under the model (before temperature).

    Args:
      seeds: row b draws its t-th token from fold(key(seeds[b]), t).
      size: tokens of the vocabulary; rows of the head beyond it are padding.
    """
    scores = logits(around, x[:, -1:], cfg)[:, 0]
    scores = jnp.where(jnp.arange(scores.shape[-1]) < size, scores, -jnp.inf)
    keys = jax.vmap(lambda seed: fold(jax.random.key(seed), t))(seeds)
    token = sample(scores, keys, sampling)
    chosen = jnp.take_along_axis(jax.nn.log_softmax(scores, -1), token[:, None], -1)[:, 0]
    return token, chosen


@functools.partial(jax.jit, static_argnames=("cfg",))
def label_logprobs(
    around: Params, x: Float[Array, "B S D"], labels: Int[Array, "B S"], cfg: decoder.Config
) -> Float[Array, "B S"]:
    """log p(label) at every position, a few positions' logits at a time."""
    b, s = labels.shape
    chunk = SCORE_CHUNK if s % SCORE_CHUNK == 0 else s

    def one(part: tuple[Array, Array]) -> Array:
        scores = jax.nn.log_softmax(logits(around, part[0], cfg), -1)
        return jnp.take_along_axis(scores, part[1][..., None], -1)[..., 0]

    def cut(y: Array) -> Array:
        return jnp.moveaxis(y.reshape(b, s // chunk, chunk, *y.shape[2:]), 1, 0)

    return jnp.moveaxis(jax.lax.map(one, (cut(x), cut(labels))), 0, 1).reshape(b, s)


def logits(around: Params, x: Float[Array, "B S D"], cfg: decoder.Config) -> Float[Array, "B S V"]:
    """The final norm and the output matrix on what `extend` gave."""
    return decoder.logits(around, norms.norm(x, around["final_norm"], cfg.norm_eps), cfg)


def _laid_out(leaf: Any) -> Any:
    return TransposedMatrix(leaf.w.T) if isinstance(leaf, weights.DenseMatrix) else leaf
