"""GPT-BERT's two sublayers (arXiv 2410.24159; the release's model_extra.py), every norm a LayerNorm without parameters.

    attention(x) = W_o norm(attend(q, k, v) * gelu(gate)),   q, k, v, gate from norm(x)
    mlp(x)       = W_2 norm(up * gelu_tanh(gate)),           up, gate = W_1 norm(x)

The attention's linears have biases, those of the feed-forward none. Value and gate, which the release cuts from one product,
and likewise query and key, up and gate, are matrices of their own here: the same function, and each can be split over a
mesh.

Matrices start at a normal of standard deviation sqrt(2 / (5 D)) cut at two of them; those of the feed-forward in layer i
(from 0) are then multiplied by sqrt(1 / (2 (1 + i))), so that deep layers add little at first. Forms given by rules start
as they always do.
"""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp

from jaxpt import weights
from jaxpt.core import spec as specs
from jaxpt.core.spec import Initializer
from jaxpt.core.types import Array, Float, Params, PRNGKeyArray
from jaxpt.layers import norms
from jaxpt.layers.block import BlockConfig, Context, linear_spec
from jaxpt.layers.dot_product import dot_product_attention
from jaxpt.layers.mlp import ACTIVATIONS


def truncated_normal(width: int, by_layer: bool = False) -> Initializer:
    """The module's initial values; with `by_layer`, the leading axis counts layers and each is scaled for its depth."""
    stddev = math.sqrt(2 / (5 * width))

    def init(key: PRNGKeyArray, shape: tuple[int, ...], dtype: Any) -> Array:
        x = stddev * jax.random.truncated_normal(key, -2, 2, shape, dtype)
        if not by_layer:
            return x
        depth = jnp.arange(shape[0], dtype=jnp.float32).reshape(-1, *(1,) * (len(shape) - 1))
        return (x * jnp.sqrt(1 / (2 * (1 + depth)))).astype(dtype)

    return init


def linear(
    cfg: BlockConfig,
    path: str,
    out: tuple[str, int],
    inp: tuple[str, int],
    layers: int | None = None,
    *,
    bias: bool,
    by_layer: bool = False,
) -> dict[str, Any]:
    """`block.linear_spec` with this module's initial values where no rule names another form."""
    stack = () if layers is None else (layers,)
    p = linear_spec(cfg, path, out, inp, stack, bias)
    if weights.choose(path, cfg.weights, weights.Dense(cfg.initializer_stddev)) == weights.Dense(
        cfg.initializer_stddev
    ):
        axes = (*("layers",) * len(stack), out[0], inp[0])
        init = truncated_normal(cfg.width, by_layer)
        p["kernel"] = weights.DenseMatrix(specs.array((*stack, out[1], inp[1]), axes, init, cfg.param_dtype))
    return p


def spec(cfg: BlockConfig, layers: int, path: str = "blocks") -> Params:
    """A stack of {"attention": {query, key, value, gate, out}, "mlp": {up, gate, down}}."""
    embed, heads, ffn = ("embed", cfg.width), ("heads", cfg.heads * cfg.per_head), ("mlp", cfg.ffn)

    def attended(name: str, out: tuple[str, int], inp: tuple[str, int]) -> dict[str, Any]:
        return linear(cfg, f"{path}/attention/{name}", out, inp, layers, bias=True)

    def fed(name: str, out: tuple[str, int], inp: tuple[str, int]) -> dict[str, Any]:
        return linear(cfg, f"{path}/mlp/{name}", out, inp, layers, bias=False, by_layer=True)

    inner = {name: attended(name, heads, embed) for name in ("query", "key", "value", "gate")}
    return {
        "attention": inner | {"out": attended("out", embed, heads)},
        "mlp": {"up": fed("up", ffn, embed), "gate": fed("gate", ffn, embed), "down": fed("down", embed, ffn)},
    }


def attention(x: Float[Array, "B S D"], p: Params, cfg: BlockConfig, context: Context) -> Float[Array, "B S D"]:
    """What attention adds to the residual stream x."""
    x = norms.standardise(x, cfg.norm_eps)
    q, k, v = (weights.linear(x, p[n]).reshape(*x.shape[:2], cfg.heads, -1) for n in ("query", "key", "value"))
    bias = None if context.score is None else context.score(q, k, p)
    y = dot_product_attention(q, k, v, context.mask, bias=bias, scale=context.scale, implementation=cfg.attention)
    y = y.reshape(*x.shape[:2], -1) * ACTIVATIONS["gelu"](weights.linear(x, p["gate"]))
    return weights.linear(norms.standardise(y, cfg.norm_eps), p["out"])


def mlp(x: Float[Array, "B S D"], p: Params, cfg: BlockConfig) -> Float[Array, "B S D"]:
    """What the feed-forward adds to the residual stream x."""
    x = norms.standardise(x, cfg.norm_eps)
    y = weights.linear(x, p["up"]) * ACTIVATIONS["gelu_tanh"](weights.linear(x, p["gate"]))
    return weights.linear(norms.standardise(y, cfg.norm_eps), p["down"])
