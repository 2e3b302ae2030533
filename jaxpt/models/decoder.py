"""The decoder language model: LLaMA, GPT-2 and GPT-NeoX by configuration.

    cfg = decoder.Config(vocab_size=259, layers=2, width=96, heads=4, ffn=256)
    params = decoder.init(jax.random.key(0), cfg)
    logits = decoder.apply(params, ids, cfg)                   # [B, S, V]

Layers are stacked on a leading axis and run under `lax.scan`, in order or along any path of layer indices.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp

from jaxpt import weights
from jaxpt.core import spec as specs
from jaxpt.core.spec import ArraySpec
from jaxpt.core.types import Array, Float, Int, Params, PRNGKeyArray
from jaxpt.layers import block as blocks
from jaxpt.layers import masks, norms, stack
from jaxpt.layers.block import Cache, Context, Hook, Score
from jaxpt.layers.embeddings import embed
from jaxpt.layers.stack import Hidden, StackConfig
from jaxpt.models import Readout


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(StackConfig):
    """A decoder: the stack's architecture and what surrounds it.

    Attributes:
      learned_positions: size of a learned position table; 0 for none (GPT-2: 1024, with rotary_fraction=0).
      embedding_stddev: of the tables. Where matrices start at U(+-1/sqrt(in)), 0.02 drowns the tokens in the first
        layers' noise: PyTorch's 1.0 goes with it.
      tied_head: the output matrix is the embedding table.
    """

    vocab_size: int = 259
    embedding_stddev: float = 0.02
    learned_positions: int = 0
    tied_head: bool = False


def spec(cfg: Config) -> Params:
    """Every array of the model: shape, dtype, logical axes, initializer."""
    table = specs.normal(cfg.embedding_stddev)
    tree: dict[str, Any] = {
        "embedding": ArraySpec((cfg.vocab_size, cfg.width), ("vocab", "embed"), table, cfg.param_dtype),
        "blocks": blocks.spec(cfg, (cfg.layers,)),
        "final_norm": norms.spec(cfg.norm, cfg.width, (), cfg.param_dtype),
    }
    if cfg.learned_positions:
        shape = (cfg.learned_positions, cfg.width)
        tree["positions"] = ArraySpec(shape, ("positions", "embed"), table, cfg.param_dtype)
    if not cfg.tied_head:
        sizes = (("vocab", cfg.vocab_size), ("embed", cfg.width))
        tree["head"] = blocks.linear_spec(cfg, "head", *sizes, bias=False)
    return tree


def init(key: PRNGKeyArray, cfg: Config) -> Params:
    """Initial parameters."""
    return specs.init(key, spec(cfg))


def apply(params: Params, inputs: Array, cfg: Config, **kwargs: Any) -> Float[Array, "B S V"]:
    """Logits [B, S, V] in float32. Keyword arguments as for `hidden_states`."""
    return logits(params, hidden_states(params, inputs, cfg, **kwargs).final, cfg)


def logits(params: Params, hidden: Float[Array, "B S D"], cfg: Config) -> Float[Array, "B S V"]:
    """The output projection, in float32."""
    y = head(params).apply(hidden).astype(jnp.float32)
    return constrain_logits(y)


def readout(params: Params, hidden: Float[Array, "B N D"], cfg: Config) -> Readout:
    """What the logits of these final states are made of."""
    return Readout(hidden, head(params), None)


def head(params: Params) -> weights.Matrix:
    """The [V, D] output matrix, tied or not."""
    return params["head"]["kernel"] if "head" in params else weights.DenseMatrix(params["embedding"])


def constrain_logits(y: Float[Array, "B S V"]) -> Float[Array, "B S V"]:
    """Logits stay split over the vocabulary."""
    return blocks.constrain(y, "batch", "sequence", "vocab")


def hidden_states(
    params: Params,
    inputs: Array,
    cfg: Config,
    *,
    segments: Int[Array, "B S"] | None = None,
    positions: Int[Array, "B S"] | None = None,
    mask: masks.Mask | None = None,
    path: Sequence[int] | Int[Array, " N"] | None = None,
    capture: bool = False,
    cache: Cache | None = None,
    score: Score | None = None,
    hook: Hook | None = None,
) -> Hidden:
    """Runs the stack.

    Args:
      inputs: token ids [B, S], or embedded inputs [B, S, D] in their place.
      segments: [B, S] ids of packed documents, 0 for padding; they do not see each other.
      positions: [B, S]; counted from 0 by default.
      mask: any `masks.Mask` in place of the causal one.
      path: indices of the layers to run, in order, with skips and repeats; all layers once by default.
      capture: also return the residual stream before every layer and after the last.
      cache: earlier tokens of a decoding run, with `positions` and `mask` that count them; `jaxpt.models.generate.extend`
        builds all three.
      score, hook: see `jaxpt.layers.block`.

    Raises:
      ValueError: a path outside the layers or used with a cache, more positions than the table has, a cache alone.
    """
    if cache is not None and (positions is None or mask is None):
        raise ValueError("a cache needs positions and a mask that count its tokens; call jaxpt.models.generate.extend")
    x, positions = embed(params, inputs, positions, cfg.compute_dtype)
    context = Context(masks.causal(segments) if mask is None else mask, positions, score, hook)
    found = stack.run(params["blocks"], x, cfg, context, path, capture, cache)
    return found._replace(final=norms.norm(found.final, params["final_norm"], cfg.norm_eps))
