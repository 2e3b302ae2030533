"""Decoding with a key/value cache: temperature, top-k, top-p and min-p, per-row keys, left-padded prompts.

For texts in and texts out, batched and with stop strings, see `jaxpt.generate`.

tokens = generate(params, prompts, cfg, key=jax.random.key(0), steps=64, sampling=Sampling(temperature=0.8, top_p=0.95))
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import TypeVar

import jax
import jax.numpy as jnp

from jaxpt.core.rng import fold
from jaxpt.core.types import Array, Bool, Float, Int, Key, Params, PRNGKeyArray
from jaxpt.layers import masks, stack
from jaxpt.layers.block import Cache
from jaxpt.models import decoder

State = TypeVar("State")  # a cache, and what else the next token depends on


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How the next token is drawn. Temperature 0 is greedy; top_k 0, top_p 1 and min_p 0 keep every token.

    min_p drops tokens less likely than min_p times the likeliest (arXiv 2407.01082). Order: temperature, k, top p, min p.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0

    def __post_init__(self) -> None:
        if self.temperature < 0 or self.top_k < 0 or not 0 < self.top_p <= 1 or not 0 <= self.min_p <= 1:
            raise ValueError(f"need temperature >= 0, top_k >= 0, 0 < top_p <= 1 and 0 <= min_p <= 1, got {self}")


def empty_cache(cfg: decoder.Config, batch: int, length: int) -> Cache:
    """A cache for `length` tokens of `batch` rows.

    Raises:
      ValueError: a model with learned positions has fewer of them than `length`.
    """
    if 0 < cfg.learned_positions < length:
        raise ValueError(f"{length} tokens (prompt and new) asked for, but learned_positions={cfg.learned_positions}")
    return stack.empty_cache(cfg, batch, length)


def extend(
    params: Params, ids: Int[Array, "B S"], cfg: decoder.Config, cache: Cache, valid: Bool[Array, "B S"] | None = None
) -> tuple[Float[Array, "B S V"], Cache]:
    """Logits of the next tokens after each of `ids`, given everything in the cache, and the cache with `ids` in it.

    Args:
      valid: False at left padding, which takes no position and is seen by nobody.
    """
    positions, mask, slots = place(cache.valid, cache.length, jnp.ones(ids.shape, bool) if valid is None else valid)
    hidden = decoder.hidden_states(params, ids, cfg, positions=positions, mask=mask, cache=cache)
    assert hidden.cache is not None
    grown = dataclasses.replace(hidden.cache, valid=slots, length=cache.length + ids.shape[1])
    return decoder.logits(params, hidden.final, cfg), grown


def place(
    cached: Bool[Array, "B T"], length: Int[Array, ""], valid: Bool[Array, "B S"]
) -> tuple[Int[Array, "B S"], masks.Mask, Bool[Array, "B T"]]:
    """Where new tokens go: their positions, whom they see, and the cache's `valid` once they are in it.

    Args:
      cached, length: `valid` and `length` of the cache before.
    """
    seen = cached.sum(-1, keepdims=True)
    slots = jax.lax.dynamic_update_slice_in_dim(cached, valid, length, 1)
    mask = masks.Mask(
        causal=True,
        query_start=length,
        segments=valid.astype(jnp.int32),
        key_segments=slots.astype(jnp.int32),
    )
    return jnp.maximum(seen + jnp.cumsum(valid, -1) - 1, 0), mask, slots


def sample(logits: Float[Array, "B V"], keys: Key[Array, " B"], sampling: Sampling) -> Int[Array, " B"]:
    """One token a row, each row from its own key, so that a text does not depend on its batch."""
    if sampling.temperature == 0:
        return logits.argmax(-1)
    return jax.vmap(jax.random.categorical)(keys, truncate(logits / sampling.temperature, sampling))


def truncate(logits: Float[Array, "B V"], sampling: Sampling) -> Float[Array, "B V"]:
    """-inf outside the top k tokens, the smallest set with probability >= top_p, and min_p times the likeliest token's
    probability, one after the other; never empty."""
    if sampling.top_k:
        kth = jax.lax.top_k(logits, min(sampling.top_k, logits.shape[-1]))[0][:, -1:]
        logits = jnp.where(logits < kth, -jnp.inf, logits)
    if sampling.top_p < 1:
        ordered = jnp.sort(logits, axis=-1, descending=True)
        mass = jnp.cumsum(jax.nn.softmax(ordered, -1), -1)
        # keep a token while the mass before it is below top_p
        last = jnp.sum(mass - jax.nn.softmax(ordered, -1) < sampling.top_p, -1, keepdims=True) - 1
        logits = jnp.where(logits < jnp.take_along_axis(ordered, last, -1), -jnp.inf, logits)
    if sampling.min_p:
        logits = jnp.where(logits < logits.max(-1, keepdims=True) + math.log(sampling.min_p), -jnp.inf, logits)
    return logits


@functools.partial(jax.jit, static_argnames=("cfg", "steps", "sampling", "stop_id"))
def generate(
    params: Params,
    prompts: Int[Array, "B S"],
    cfg: decoder.Config,
    *,
    key: PRNGKeyArray,
    steps: int,
    sampling: Sampling | None = None,
    valid: Bool[Array, "B S"] | None = None,
    stop_id: int = -1,
) -> Int[Array, "B N"]:
    """`steps` new tokens after each prompt [B, S]; after `stop_id` a row repeats it.

    Args:
      valid: [B, S], False at left padding of shorter prompts.
      key: row i draws token t from fold(key, i, t).
    """
    cache = empty_cache(cfg, prompts.shape[0], prompts.shape[1] + steps)
    first, cache = extend(params, prompts, cfg, cache, valid)
    return draw(
        lambda ids, cache: extend(params, ids, cfg, cache),
        first[:, -1], cache, key=key, steps=steps, sampling=sampling or Sampling(), stop_id=stop_id,
    )  # fmt: skip


def draw(
    extend: Callable[[Array, State], tuple[Array, State]],
    scores: Float[Array, "B V"],
    cache: State,
    *,
    key: PRNGKeyArray,
    steps: int,
    sampling: Sampling,
    stop_id: int,
) -> Int[Array, "B N"]:
    """`steps` tokens a row, one after the other; after `stop_id` a row repeats it.

    Args:
      extend: (tokens [B, 1], cache) -> (logits [B, 1, V] of the next, the cache with the tokens in it).
      scores: logits of the first token.
      key: row i draws token t from fold(key, i, t).
    """
    rows = jax.vmap(lambda i: fold(key, i))(jnp.arange(scores.shape[0]))

    def one(carry: tuple[Array, State, Array], t: Array) -> tuple[tuple[Array, State, Array], Array]:
        scores, cache, done = carry
        token = sample(scores, jax.vmap(lambda k: fold(k, t))(rows), sampling)
        token = jnp.where(done, stop_id, token)
        scores, cache = extend(token[:, None], cache)
        return (scores[:, -1], cache, done | (token == stop_id)), token

    start = (scores, cache, jnp.zeros(scores.shape[0], bool))
    return jax.lax.scan(one, start, jnp.arange(steps))[1].T
