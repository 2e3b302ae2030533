"""The transformer block: attention and feed-forward around a residual stream, for decoders and encoders alike.

What differs between models is an argument: `BlockConfig` says the architecture (LLaMA, GPT-2, GPT-NeoX, ...), `Context` says
what this call sees (mask, positions), and may replace the attention score or adapt the output of a sublayer.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
from flax import struct

from jaxpt import weights
from jaxpt.core.spec import ArraySpec, zeros
from jaxpt.core.trees import static
from jaxpt.core.types import Array, Bool, Float, Int, Params
from jaxpt.layers import moe, norms, positions
from jaxpt.layers.dot_product import dot_product_attention
from jaxpt.layers.masks import Mask
from jaxpt.layers.mlp import gated, mlp
from jaxpt.sharding import constrain

# (q [B S H K], k [B T G K], attention parameters of the layer) -> bias [B|1, H|1, S, T], added to the scaled logits.
# One with tables of its own is a closure over them, made in each call by the model that holds them (`disentangled.score`).
Score = Callable[[Array, Array, Params], Array]
Hook = Callable[
    [str, Array, Array, Params], Array
]  # (site, sublayer input, sublayer output, block parameters) -> output


@dataclasses.dataclass(frozen=True, kw_only=True)
class BlockConfig:
    """Architecture of a block. The defaults are LLaMA's.

    Attributes:
      kv_heads, head_dim: `heads` and width // heads where None.
      ffn: feed-forward width.
      experts: in place of one feed-forward, several that each token chooses from.
      activation: a key of `layers.mlp.ACTIVATIONS`.
      rotary_fraction: share of each head's dimensions that rotate; 0 for models without rotary positions.
      bias: biases on every linear (GPT-2, GPT-NeoX).
      parallel_residual: attention and feed-forward read the same residual stream (GPT-NeoX).
      post_norm: norms follow the residual sums in place of opening the sublayers (BERT).
      initializer_stddev: of dense matrices; None for U(+-1/sqrt(in)).
      weights: (path pattern, form) rules for the matrices; what no rule names is dense.
      attention: "auto", "xla", "cudnn" or "splash".
    """

    width: int = 64
    heads: int = 4
    kv_heads: int | None = None
    head_dim: int | None = None
    ffn: int = 172
    experts: moe.Experts | None = None
    norm: str = "rms"
    norm_eps: float = 1e-6
    activation: str = "swiglu"
    rotary_fraction: float = 1.0
    rotary_base: float = 10_000.0
    bias: bool = False
    parallel_residual: bool = False
    post_norm: bool = False
    initializer_stddev: float | None = 0.02
    weights: weights.Rules = ()
    attention: str = "auto"
    param_dtype: str = "float32"
    compute_dtype: str = "float32"

    @property
    def groups(self) -> int:
        """Number of key/value heads."""
        groups = self.heads if self.kv_heads is None else self.kv_heads
        if groups < 1 or self.heads < 1 or self.heads % groups:
            raise ValueError(f"heads={self.heads} is not a positive multiple of kv_heads={groups}")
        return groups

    @property
    def per_head(self) -> int:
        """Dimensions of one head."""
        if self.head_dim is None and (self.heads < 1 or self.width % self.heads):
            raise ValueError(f"width={self.width} is not a multiple of heads={self.heads}; give head_dim")
        return self.width // self.heads if self.head_dim is None else self.head_dim


@struct.dataclass
class Memory:
    """What cross-attention reads: states [B, T, D], None where each block holds its keys and values; and who sees which."""

    states: Float[Array, "B T D"] | None
    mask: Mask


@struct.dataclass
class Context:
    """What one call of a stack of blocks sees, shared by its layers.

    Attributes:
      scale: of the attention logits; 1/sqrt(K) where None. It goes with a score that adds terms of the same size.
      memory: for blocks with cross-attention.
    """

    mask: Mask
    positions: Int[Array, "B S"]
    score: Score | None = static(default=None)
    hook: Hook | None = static(default=None)
    scale: float | None = static(default=None)
    memory: Memory | None = None


@struct.dataclass
class Cache:
    """Keys and values of the tokens so far. Per layer inside the scan, stacked [L, ...] outside.

    `valid` marks the slots that hold a token (left padding does not), `length` counts the slots written.
    """

    k: Float[Array, "*L B T G K"]
    v: Float[Array, "*L B T G K"]
    valid: Bool[Array, "B T"]
    length: Int[Array, ""]


def linear_spec(
    cfg: BlockConfig,
    path: str,
    out: tuple[str, int],
    inp: tuple[str, int],
    stack: tuple[int, ...] = (),
    bias: bool | None = None,
) -> dict[str, Any]:
    """The spec of one linear [out, in], in the form that `cfg.weights` gives its path. Axes are (name, size) pairs."""
    form = weights.choose(path, cfg.weights, weights.Dense(cfg.initializer_stddev))
    p: dict[str, Any] = {"kernel": form.spec(out[1], inp[1], (out[0], inp[0]), stack, cfg.param_dtype)}
    if cfg.bias if bias is None else bias:
        axes = (*("layers",) * len(stack), out[0])
        p["bias"] = ArraySpec((*stack, out[1]), axes, zeros, cfg.param_dtype)
    return p


def spec(cfg: BlockConfig, stack: tuple[int, ...] = (), path: str = "blocks", *, cross: bool = False) -> Params:
    """The spec of a block, or with `stack` of a stack of blocks; with `cross`, attention to a memory in the middle."""
    wide = cfg.ffn if cfg.experts is None or cfg.experts.ffn is None else cfg.experts.ffn
    embed, ffn = ("embed", cfg.width), ("mlp", wide)
    q, kv = ("heads", cfg.heads * cfg.per_head), ("kv_heads", cfg.groups * cfg.per_head)

    def lin(name: str, out: tuple[str, int], inp: tuple[str, int]) -> dict[str, Any]:
        return linear_spec(cfg, f"{path}/{name}", out, inp, stack)

    attention = {"query": (q, embed), "key": (kv, embed), "value": (kv, embed), "out": (embed, q)}
    feed_forward = {"up": (ffn, embed), "down": (embed, ffn)} | (
        {"gate": (ffn, embed)} if gated(cfg.activation) else {}
    )
    sublayers = {"attention": attention} | ({"cross": attention} if cross else {}) | {"mlp": feed_forward}
    tree: dict[str, Any] = {}
    for sublayer, linears in sublayers.items():
        tree[f"{sublayer}_norm"] = norms.spec(cfg.norm, cfg.width, stack, cfg.param_dtype)
        if sublayer == "mlp" and cfg.experts is not None:
            tree[sublayer] = _experts_spec(cfg, cfg.experts, linears, stack, f"{path}/mlp")
        else:
            tree[sublayer] = {name: lin(f"{sublayer}/{name}", *shape) for name, shape in linears.items()}
    return tree


def _experts_spec(
    cfg: BlockConfig, experts: moe.Experts, linears: dict[str, Any], stack: tuple[int, ...], path: str
) -> Params:
    if cfg.bias:
        raise ValueError("experts have no biases: a block with experts needs bias=False")
    dense = weights.Dense(cfg.initializer_stddev)
    router = dense.spec(experts.count, cfg.width, ("features", "embed"), stack, cfg.param_dtype)
    return moe.spec(experts, linears, stack, router, functools.partial(linear_spec, cfg), path)


def block(
    x: Float[Array, "B S D"],
    p: Params,
    cfg: BlockConfig,
    context: Context,
    cache: Cache | None = None,
    source: Float[Array, "B S D"] | None = None,
) -> tuple[Float[Array, "B S D"], Cache | None]:
    """One block. Returns the residual stream, and the cache with this call's keys and values if one was given.

    Arguments and errors as for `routed_block`.
    """
    return routed_block(x, p, cfg, context, cache, source)[:2]


def routed_block(
    x: Float[Array, "B S D"],
    p: Params,
    cfg: BlockConfig,
    context: Context,
    cache: Cache | None = None,
    source: Float[Array, "B S D"] | None = None,
) -> tuple[Float[Array, "B S D"], Cache | None, Float[Array, "B S E"] | None]:
    """The same, and the router's logits where the block has experts.

    Args:
      source: another residual stream, at the same positions, that gives self-attention its keys and values.

    Raises:
      ValueError: parallel_residual and post_norm together.
    """
    if cfg.post_norm and cfg.parallel_residual:
        raise ValueError("post_norm orders the sublayers one after the other; it excludes parallel_residual")

    def before(x: Array, norm: str) -> Array:
        return x if cfg.post_norm else norms.norm(x, p[norm], cfg.norm_eps)

    def after(x: Array, norm: str) -> Array:
        return norms.norm(x, p[norm], cfg.norm_eps) if cfg.post_norm else x

    def adapt(site: str, inner: Array, y: Array) -> Array:
        return y if context.hook is None else context.hook(site, inner, y, p)

    x = constrain(x, "batch", "sequence", "features")
    inner = before(x, "attention_norm")
    source = None if source is None else before(source, "attention_norm")
    y, cache = self_attention(inner, p["attention"], cfg, context, cache, source)
    after_attention = after(x + adapt("attention", inner, y), "attention_norm")
    if "cross" in p:
        inner = before(after_attention, "cross_norm")
        y = cross_attention(inner, p, cfg, context)
        after_attention = after(after_attention + adapt("cross", inner, y), "cross_norm")
    inner = before(x if cfg.parallel_residual else after_attention, "mlp_norm")
    if cfg.experts is None:
        y, logits = mlp(inner, p["mlp"], cfg.activation), None
    else:
        y, logits = moe.feed_forward(inner, p["mlp"], cfg.experts, cfg.activation)
    x = after(after_attention + adapt("mlp", inner, y), "mlp_norm")
    return constrain(x, "batch", "sequence", "features"), cache, logits


def self_attention(
    x: Float[Array, "B S D"],
    p: Params,
    cfg: BlockConfig,
    context: Context,
    cache: Cache | None = None,
    source: Float[Array, "B S D"] | None = None,
) -> tuple[Float[Array, "B S D"], Cache | None]:
    """Multi-head attention with grouped key/value heads over x (or `source`), and over the cached tokens before it."""
    q = _heads(x, p["query"], cfg.heads)
    k, v = keys_and_values(x if source is None else source, p, cfg)
    if cfg.rotary_fraction:
        q = positions.rotary(q, context.positions, cfg.rotary_base, cfg.rotary_fraction)
        k = positions.rotary(k, context.positions, cfg.rotary_base, cfg.rotary_fraction)
    if cache is not None:
        write = jax.lax.dynamic_update_slice_in_dim
        cache = dataclasses.replace(
            cache,
            k=write(cache.k, k.astype(cache.k.dtype), cache.length, 1),
            v=write(cache.v, v.astype(cache.v.dtype), cache.length, 1),
        )
        k, v = cache.k.astype(q.dtype), cache.v.astype(q.dtype)
    bias = None if context.score is None else context.score(q, k, p)
    out = dot_product_attention(q, k, v, context.mask, bias=bias, scale=context.scale, implementation=cfg.attention)
    return weights.linear(out.reshape(*x.shape[:2], -1), p["out"]), cache


def cross_attention(x: Float[Array, "B S D"], p: Params, cfg: BlockConfig, context: Context) -> Float[Array, "B S D"]:
    """Attention of x to the context's memory, without positions: its two stacks count from different places.

    Args:
      p: the block's parameters: "cross", and "memory" where its keys and values were computed before (`with_memory`).

    Raises:
      ValueError: there is no memory.
    """
    if context.memory is None:
        raise ValueError("this block has cross-attention; its context needs a memory")
    q = _heads(x, p["cross"]["query"], cfg.heads)
    if context.memory.states is None:
        k, v = (t.astype(q.dtype) for t in p["memory"])
    else:
        k, v = keys_and_values(context.memory.states, p["cross"], cfg)
    out = dot_product_attention(q, k, v, context.memory.mask, scale=context.scale, implementation=cfg.attention)
    return weights.linear(out.reshape(*x.shape[:2], -1), p["cross"]["out"])


def keys_and_values(
    x: Float[Array, "B T D"], p: Params, cfg: BlockConfig
) -> tuple[Float[Array, "B T G K"], Float[Array, "B T G K"]]:
    """Keys and values of x by the attention parameters `p`."""
    return _heads(x, p["key"], cfg.groups), _heads(x, p["value"], cfg.groups)


def _heads(x: Float[Array, "B S D"], p: Params, heads: int) -> Float[Array, "B S H K"]:
    return weights.linear(x, p).reshape(*x.shape[:2], heads, -1)
