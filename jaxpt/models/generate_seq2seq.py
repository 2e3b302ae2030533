"""Decoding of an encoder-decoder with a key/value cache: inputs are encoded, and their keys and values computed, once.

tokens = generate(params, inputs, cfg, key=jax.random.key(0), steps=64, sampling=Sampling(temperature=0), segments=real)
"""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
from flax import struct

from jaxpt.core.types import Array, Float, Int, Params, PRNGKeyArray
from jaxpt.layers import stack
from jaxpt.layers.block import Cache
from jaxpt.models import encoder_decoder
from jaxpt.models.generate import Sampling, draw, place


@struct.dataclass
class Decoding:
    """Where a decoding run stands: parameters with the inputs' keys and values, the inputs' segments, the targets so far."""

    params: Params
    segments: Int[Array, "B S"] | None
    cache: Cache


def start(
    params: Params,
    inputs: Array,
    cfg: encoder_decoder.Config,
    length: int,
    segments: Int[Array, "B S"] | None = None,
) -> Decoding:
    """Encodes the inputs, for at most `length` targets of each.

    Args:
      segments: 0 at padding of the inputs, 1 elsewhere.
    """
    states = encoder_decoder.encode(params, inputs, cfg, segments=segments).final
    cache = stack.empty_cache(cfg.of_decoder, len(inputs), length)
    return Decoding(encoder_decoder.with_memory(params, states, cfg), segments, cache)


def extend(
    decoding: Decoding, targets: Int[Array, "B N"], cfg: encoder_decoder.Config
) -> tuple[Float[Array, "B N V"], Decoding]:
    """Logits after each of the targets, given the inputs and the targets before; and the run with them in it."""
    cache = decoding.cache
    _, mask, slots = place(cache.valid, cache.length, jnp.ones(targets.shape, bool))
    hidden = encoder_decoder.decode(
        decoding.params, targets, None, cfg, segments=decoding.segments, mask=mask, cache=cache
    )
    assert hidden.cache is not None
    grown = dataclasses.replace(hidden.cache, valid=slots, length=cache.length + targets.shape[1])
    return encoder_decoder.logits(decoding.params, hidden.final), dataclasses.replace(decoding, cache=grown)


@functools.partial(jax.jit, static_argnames=("cfg", "steps", "sampling", "start_id", "stop_id"))
def generate(
    params: Params,
    inputs: Int[Array, "B S"],
    cfg: encoder_decoder.Config,
    *,
    key: PRNGKeyArray,
    steps: int,
    sampling: Sampling | None = None,
    segments: Int[Array, "B S"] | None = None,
    start_id: int = 0,
    stop_id: int = -1,
) -> Int[Array, "B N"]:
    """`steps` tokens for each of the inputs; after `stop_id` a row repeats it.

    Args:
      segments: 0 at padding of the inputs, 1 elsewhere.
      key: row i draws token t from fold(key, i, t).
      start_id: what the decoder reads first; T5's is its padding.
    """
    decoding = start(params, inputs, cfg, steps + 1, segments)
    first, decoding = extend(decoding, jnp.full((len(inputs), 1), start_id), cfg)
    fixed = decoding.params  # outside the loop that carries the cache

    def one(ids: Array, cache: Cache) -> tuple[Array, Cache]:
        scores, grown = extend(Decoding(fixed, segments, cache), ids, cfg)
        return scores, grown.cache

    chosen = sampling or Sampling()
    return draw(one, first[:, -1], decoding.cache, key=key, steps=steps, sampling=chosen, stop_id=stop_id)
