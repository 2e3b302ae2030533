"""The encoder-decoder: T5 1.1 (arXiv 1910.10683, 2002.05202) by default, T5 1.0 by configuration.

    cfg = encoder_decoder.Config(vocab_size=259, layers=2, width=96, heads=4, ffn=256)
    params = encoder_decoder.init(jax.random.key(0), cfg)
    logits = encoder_decoder.apply(params, inputs, targets, cfg)           # [B, S], [B, T] -> [B, T, V]

`targets` are what the decoder reads: the tokens to predict, moved one place to the right behind a start token. Blocks are
pre-norm without biases, attention logits are not scaled, and a bias for the distance of query and key comes from one table a
stack, shared by its layers and absent from cross-attention. T5 1.0 is activation="relu", tied_head=True, scaled_head=True.
For decoding with a cache see `jaxpt.models.generate_seq2seq`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxpt import weights
from jaxpt.core import spec as specs
from jaxpt.core.spec import ArraySpec
from jaxpt.core.types import Array, Float, Int, Params, PRNGKeyArray
from jaxpt.layers import block as blocks
from jaxpt.layers import masks, norms, positions, stack
from jaxpt.layers.block import Cache, Context, Hook, Memory, Score
from jaxpt.layers.embeddings import embed
from jaxpt.layers.stack import Hidden, StackConfig
from jaxpt.models import decoder


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(StackConfig):
    """Two stacks of one architecture. The defaults are those of T5 1.1.

    Attributes:
      layers: of the encoder.
      decoder_layers: `layers` where None.
      relative_buckets: rows of each stack's table of relative positions; 0 for none.
      relative_distance: from here on all distances share a bucket.
      attention_scale: of the attention logits; None for 1/sqrt(K).
      tied_head: the output matrix is the embedding table.
      scaled_head: the states are multiplied by width^-0.5 before it (T5 1.0, where it is tied).
      initializer_stddev: of dense matrices; None for T5's, N(0, 1/in), and for queries N(0, 1/(in K)) in place of a scale.
    """

    norm: str = "rms"
    activation: str = "geglu_tanh"
    rotary_fraction: float = 0.0
    initializer_stddev: float | None = None
    vocab_size: int = 259
    decoder_layers: int | None = None
    relative_buckets: int = 32
    relative_distance: int = 128
    attention_scale: float | None = 1.0
    embedding_stddev: float = 1.0
    tied_head: bool = False
    scaled_head: bool = False

    @property
    def of_decoder(self) -> Config:
        """The same with the decoder's number of layers as `layers`."""
        return self if self.decoder_layers is None else dataclasses.replace(self, layers=self.decoder_layers)


def spec(cfg: Config) -> Params:
    """Every array of the model: shape, dtype, logical axes, initializer."""
    cfg = dataclasses.replace(cfg, weights=(*cfg.weights, *_initial(cfg)))
    table = specs.normal(cfg.embedding_stddev)
    tree: dict[str, Any] = {
        "embedding": ArraySpec((cfg.vocab_size, cfg.width), ("vocab", "embed"), table, cfg.param_dtype),
        "encoder": _stack_spec(cfg, "encoder"),
        "decoder": _stack_spec(cfg.of_decoder, "decoder"),
    }
    if not cfg.tied_head:
        sizes = (("vocab", cfg.vocab_size), ("embed", cfg.width))
        tree["head"] = blocks.linear_spec(cfg, "head", *sizes, bias=False)
    return tree


def _stack_spec(cfg: Config, name: str) -> Params:
    tree: dict[str, Any] = {
        "blocks": blocks.spec(cfg, (cfg.layers,), f"{name}/blocks", cross=name == "decoder"),
        "final_norm": norms.spec(cfg.norm, cfg.width, (), cfg.param_dtype),
    }
    if cfg.relative_buckets:
        shape, init = (cfg.relative_buckets, cfg.heads), specs.normal(cfg.width**-0.5)
        tree["relative"] = ArraySpec(shape, ("positions", "heads"), init, cfg.param_dtype)
    return tree


def _initial(cfg: Config) -> weights.Rules:
    """Rules for what no other rule names."""
    if cfg.initializer_stddev is not None:
        return ()
    inner = cfg.heads * cfg.per_head
    stddevs = {"*/query": (cfg.width * cfg.per_head) ** -0.5, "*/out": inner**-0.5, "*/down": cfg.ffn**-0.5}
    return tuple((path, weights.Dense(stddev)) for path, stddev in (stddevs | {"*": cfg.width**-0.5}).items())


def init(key: PRNGKeyArray, cfg: Config) -> Params:
    """Initial parameters."""
    return specs.init(key, spec(cfg))


def apply(
    params: Params,
    inputs: Array,
    targets: Array,
    cfg: Config,
    *,
    segments: Int[Array, "B S"] | None = None,
    target_segments: Int[Array, "B T"] | None = None,
) -> Float[Array, "B T V"]:
    """Logits after each of the targets, in float32. Arguments as for `encode` and `decode`."""
    states = encode(params, inputs, cfg, segments=segments).final
    hidden = decode(params, targets, states, cfg, segments=segments, target_segments=target_segments).final
    return logits(params, hidden)


def logits(params: Params, hidden: Float[Array, "B T D"]) -> Float[Array, "B T V"]:
    """The output projection of the decoder's final states, in float32."""
    return decoder.constrain_logits(head(params).apply(hidden).astype(jnp.float32))


def head(params: Params) -> weights.Matrix:
    """The [V, D] output matrix, tied or not."""
    return decoder.head(params)


def encode(
    params: Params,
    inputs: Array,
    cfg: Config,
    *,
    segments: Int[Array, "B S"] | None = None,
    path: Sequence[int] | Int[Array, " N"] | None = None,
    capture: bool = False,
    hook: Hook | None = None,
) -> Hidden:
    """Runs the encoder.

    Args:
      inputs: token ids [B, S], or embedded inputs [B, S, D] in their place.
      segments: [B, S] ids of packed examples, 0 for padding; they do not see each other.
      path, capture, hook: as for `jaxpt.models.decoder.hidden_states`.
    """
    return _run(params, "encoder", inputs, cfg, masks.full(segments), path=path, capture=capture, hook=hook)


def decode(
    params: Params,
    targets: Array,
    states: Float[Array, "B S D"] | None,
    cfg: Config,
    *,
    segments: Int[Array, "B S"] | None = None,
    target_segments: Int[Array, "B T"] | None = None,
    mask: masks.Mask | None = None,
    path: Sequence[int] | Int[Array, " N"] | None = None,
    capture: bool = False,
    cache: Cache | None = None,
    hook: Hook | None = None,
) -> Hidden:
    """Runs the decoder. Its final states are ready for `head`: scaled where the configuration says so.

    Args:
      targets: token ids [B, T], or embedded inputs [B, T, D] in their place.
      states: the encoder's; None where `params` hold each block's keys and values of them (`with_memory`).
      segments: the encoder's.
      target_segments: [B, T] ids of packed examples, as their inputs have them, 0 for padding. Where either of the two is
        None, every token sees every input but for padding.
      mask: any `masks.Mask` of the targets in place of the causal one.
      cache: earlier targets of a decoding run, with a `mask` that counts them; `jaxpt.models.generate_seq2seq` builds both.
      path, capture, hook: as for `jaxpt.models.decoder.hidden_states`.
    """
    memory = Memory(states, memory_mask(segments, target_segments, targets.shape[:2]))
    mask = masks.causal(target_segments) if mask is None else mask
    extra: dict[str, Any] = {"path": path, "capture": capture, "hook": hook, "cache": cache, "memory": memory}
    hidden = _run(params, "decoder", targets, cfg.of_decoder, mask, **extra)
    return hidden._replace(final=hidden.final * cfg.width**-0.5) if cfg.scaled_head else hidden


def memory_mask(
    segments: Int[Array, "B S"] | None, target_segments: Int[Array, "B T"] | None, shape: tuple[int, ...]
) -> masks.Mask:
    """Which inputs each target sees, for targets of the given shape [B, T]."""
    if segments is None and target_segments is None:
        return masks.Mask()
    if segments is None:
        raise ValueError("target_segments given without the segments of the inputs that they see")
    if target_segments is None:
        return masks.Mask(segments=jnp.ones(shape, jnp.int32), key_segments=(segments != 0).astype(jnp.int32))
    return masks.Mask(segments=target_segments, key_segments=segments)


def with_memory(params: Params, states: Float[Array, "B S D"], cfg: Config) -> Params:
    """The parameters with the keys and values [L, B, S, G, K] of the encoder's states in the decoder's blocks."""

    def one(_: None, p: Params) -> tuple[None, tuple[Array, Array]]:
        return None, blocks.keys_and_values(states, p, cfg)

    decoding = params["decoder"]["blocks"]
    memory = jax.lax.scan(one, None, decoding["cross"])[1]
    return params | {"decoder": params["decoder"] | {"blocks": decoding | {"memory": memory}}}


def _run(
    params: Params,
    name: str,
    inputs: Array,
    cfg: Config,
    mask: masks.Mask,
    *,
    path: Any,
    capture: bool,
    hook: Hook | None,
    cache: Cache | None = None,
    memory: Memory | None = None,
) -> Hidden:
    own, (b, s) = params[name], inputs.shape[:2]
    keys, start = (s, 0) if cache is None else (cache.k.shape[2], cache.length)
    places = jnp.broadcast_to(start + jnp.arange(s), (b, s))
    x, _ = embed({"embedding": params["embedding"]}, inputs, places, cfg.compute_dtype)
    score = None
    if "relative" in own:
        extra: dict[str, Any] = {"both_ways": name == "encoder", "start": start}
        score = _same(positions.relative_bias(own["relative"], s, keys, cfg.relative_distance, **extra))
    context = Context(mask, places, score, hook, cfg.attention_scale, memory)
    found = stack.run(own["blocks"], x, cfg, context, path, capture, cache)
    return found._replace(final=norms.norm(found.final, own["final_norm"], cfg.norm_eps))


def _same(bias: Array) -> Score:
    """The same bias in every layer."""
    return lambda q, k, p: bias
