"""The decoder language model: LLaMA, GPT-2 and GPT-NeoX by configuration.

    cfg = decoder.Config(vocab_size=259, layers=2, width=96, heads=4, ffn=256)
    params = decoder.init(jax.random.key(0), cfg)
    logits = decoder.apply(params, ids, cfg)                   # [B, S, V]

Layers are stacked on a leading axis and run under `lax.scan`, in order or along any path of layer indices.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxpt import weights
from jaxpt.core import spec as specs
from jaxpt.core.names import nearest_error
from jaxpt.core.spec import ArraySpec
from jaxpt.core.types import Array, Float, Int, Params, PRNGKeyArray
from jaxpt.layers import block as blocks
from jaxpt.layers import masks, norms
from jaxpt.layers.block import BlockConfig, Cache, Context, Hook, Score

REMAT = {
    "none": None,
    "full": jax.checkpoint_policies.nothing_saveable,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(BlockConfig):
    """A decoder: the block's architecture and what surrounds it.

    Attributes:
      learned_positions: size of a learned position table; 0 for none (GPT-2: 1024, with rotary_fraction=0).
      embedding_stddev: of the tables. Where matrices start at U(+-1/sqrt(in)), 0.02 drowns the tokens in the first
        layers' noise: PyTorch's 1.0 goes with it.
      tied_head: the output matrix is the embedding table.
      remat: "none", "full" (keep only block inputs), "dots" (keep matrix products).
      unroll: layers per iteration of the scan; `layers` unrolls it wholly.
    """

    vocab_size: int = 259
    embedding_stddev: float = 0.02
    layers: int = 2
    learned_positions: int = 0
    tied_head: bool = False
    remat: str = "none"
    unroll: int = 1


class Hidden(NamedTuple):
    """Final normalised states [B, S, D], the residual stream before each layer and after the last [N+1, B, S, D] if
    captured, and the cache if one was given."""

    final: Float[Array, "B S D"]
    layers: Float[Array, "N B S D"] | None
    cache: Cache | None


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
    embedded = jnp.issubdtype(inputs.dtype, jnp.floating)
    x = inputs.astype(cfg.compute_dtype) if embedded else blocks.embed(params["embedding"], inputs, cfg.compute_dtype)
    b, s = x.shape[:2]
    if positions is None:
        positions = jnp.broadcast_to(jnp.arange(s), (b, s))
    if "positions" in params:
        if s > cfg.learned_positions:
            raise ValueError(f"{s} positions given, but learned_positions={cfg.learned_positions}")
        x = x + jnp.take(params["positions"], positions, axis=0).astype(x.dtype)
    context = Context(masks.causal(segments) if mask is None else mask, positions, score, hook)
    x, captured, cache = run_layers(params["blocks"], x, cfg, context, path, capture, cache)
    return Hidden(norms.norm(x, params["final_norm"], cfg.norm_eps), captured, cache)


def run_layers(
    stack: Params,
    x: Float[Array, "B S D"],
    cfg: Config,
    context: Context,
    path: Sequence[int] | Int[Array, " N"] | None,
    capture: bool,
    cache: Cache | None,
) -> tuple[Float[Array, "B S D"], Float[Array, "_ B S D"] | None, Cache | None]:
    """`lax.scan` of the block over the layers, or over the layer indices of `path`."""
    if cfg.remat not in REMAT:
        raise nearest_error("remat policy", cfg.remat, REMAT)
    if path is not None:
        path = _checked_path(path, cfg.layers)

    def one_layer(x: Array, layer: tuple[Any, Any]) -> tuple[Array, tuple[Any, Any]]:
        p, kv = layer
        if path is not None:
            p = jax.tree.map(lambda t: t[p], stack)
        own = None if cache is None else dataclasses.replace(cache, k=kv[0], v=kv[1])
        y, own = blocks.block(x, p, cfg, context, own)
        return y, (x if capture else None, None if own is None else (own.k, own.v))

    if cfg.remat != "none":
        # a loop keeps the compiler from merging the recomputation with the first pass; without one it must be forbidden
        no_loop = cfg.unroll >= (cfg.layers if path is None else len(path))
        one_layer = jax.checkpoint(one_layer, policy=REMAT[cfg.remat], prevent_cse=no_loop)
    if cache is not None and path is not None:
        raise ValueError("a decoding cache holds one entry per layer in order; it cannot be used with a path")
    over = stack if path is None else path
    kv = None if cache is None else (cache.k, cache.v)
    x, (before, kv) = jax.lax.scan(one_layer, x, (over, kv), unroll=cfg.unroll)
    captured = jnp.concatenate([before, x[None]]) if capture else None
    return x, captured, None if cache is None else dataclasses.replace(cache, k=kv[0], v=kv[1])


def _checked_path(path: Sequence[int] | Int[Array, " N"], layers: int) -> Int[Array, " N"]:
    """The path as an array. Indices known now are checked; a traced one that is out of range is clamped."""
    if isinstance(path, jax.core.Tracer):
        return path.astype(jnp.int32)
    known = np.asarray(path, np.int32)
    outside = known[(known < 0) | (known >= layers)]
    if outside.size:
        raise ValueError(f"path {known.tolist()} goes outside layers 0 to {layers - 1}: {outside.tolist()}")
    return jnp.asarray(known)
