"""The bidirectional encoder: BERT (arXiv 1810.04805) by default, pre-norm encoders by configuration.

    cfg = encoder.Config(vocab_size=30522, layers=6, width=384, heads=12, ffn=1536)
    params = encoder.init(jax.random.key(0), cfg)
    states = encoder.apply(params, ids, cfg, segments=real.astype(int))    # [B, S, D]
    logits = encoder.mlm_logits(params, states, cfg)                       # [B, S, V], with mlm_head=True

Token, position and sentence-type embeddings are added and normalised before the first block, each block normalises
after its residual sums (`post_norm`), and nothing follows the last one. With post_norm=False a final norm does.
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
from jaxpt.layers.block import Context, Hook, Score
from jaxpt.layers.embeddings import embed
from jaxpt.layers.mlp import ACTIVATIONS, gated
from jaxpt.layers.stack import Hidden, StackConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(StackConfig):
    """An encoder. The defaults are BERT's, which has as many key/value heads as heads and biases everywhere.

    Attributes:
      learned_positions: size of the position table; 0 for none (with rotary_fraction > 0).
      token_types: size of the table of sentence types; 0 for none.
      pooler: a tanh layer over the first token (BERT's sentence vector).
      mlm_head: the masked-token head: dense, activation, norm, and the embedding table with a bias.
    """

    norm: str = "layer"
    norm_eps: float = 1e-12
    activation: str = "gelu"
    rotary_fraction: float = 0.0
    bias: bool = True
    post_norm: bool = True
    vocab_size: int = 259
    learned_positions: int = 512
    token_types: int = 2
    pooler: bool = False
    mlm_head: bool = False


def spec(cfg: Config) -> Params:
    """Every array of the model: shape, dtype, logical axes, initializer."""
    stddev = cfg.initializer_stddev if cfg.initializer_stddev is not None else 0.02

    def table(size: int, axis: str | None) -> ArraySpec:
        return ArraySpec((size, cfg.width), (axis, "embed"), specs.normal(stddev), cfg.param_dtype)

    def square(name: str) -> dict[str, Any]:
        return blocks.linear_spec(cfg, name, ("mlp", cfg.width), ("embed", cfg.width))

    norm = norms.spec(cfg.norm, cfg.width, (), cfg.param_dtype)
    tree: dict[str, Any] = {
        "embedding": table(cfg.vocab_size, "vocab"),
        "embedding_norm": norm,
        "blocks": blocks.spec(cfg, (cfg.layers,)),
    }
    if cfg.learned_positions:
        tree["positions"] = table(cfg.learned_positions, "positions")
    if cfg.token_types:
        tree["token_types"] = table(cfg.token_types, None)
    if not cfg.post_norm:
        tree["final_norm"] = norm
    if cfg.pooler:
        tree["pooler"] = square("pooler")
    if cfg.mlm_head:
        if gated(cfg.activation):
            raise ValueError(f"the masked-token head has no gate for activation={cfg.activation!r}; use gelu or relu")
        bias = ArraySpec((cfg.vocab_size,), ("vocab",), specs.zeros, cfg.param_dtype)
        tree["mlm"] = {"dense": square("mlm/dense"), "norm": norm, "bias": bias}
    return tree


def init(key: PRNGKeyArray, cfg: Config) -> Params:
    """Initial parameters."""
    return specs.init(key, spec(cfg))


def apply(params: Params, inputs: Array, cfg: Config, **kwargs: Any) -> Float[Array, "B S D"]:
    """The last hidden states [B, S, D]. Keyword arguments as for `hidden_states`."""
    return hidden_states(params, inputs, cfg, **kwargs).final


def hidden_states(
    params: Params,
    inputs: Array,
    cfg: Config,
    *,
    token_types: Int[Array, "B S"] | None = None,
    segments: Int[Array, "B S"] | None = None,
    positions: Int[Array, "B S"] | None = None,
    mask: masks.Mask | None = None,
    path: Sequence[int] | Int[Array, " N"] | None = None,
    capture: bool = False,
    score: Score | None = None,
    hook: Hook | None = None,
) -> Hidden:
    """Runs the stack.

    Args:
      inputs: token ids [B, S], or embedded inputs [B, S, D] in their place.
      token_types: [B, S] sentence types, 0 by default.
      segments: [B, S] ids of packed texts, 0 for padding; they do not see each other.
      positions: [B, S]; counted from 0 by default.
      mask: any `masks.Mask` in place of the full one.
      path, capture, score, hook: as for `jaxpt.models.decoder.hidden_states`.

    Raises:
      ValueError: more positions than the table has, or token types where the model has none.
    """
    x, positions = embed(params, inputs, positions, cfg.compute_dtype)
    if "token_types" in params:
        types = jnp.zeros(x.shape[:2], jnp.int32) if token_types is None else token_types
        x = x + jnp.take(params["token_types"], types, axis=0).astype(x.dtype)
    elif token_types is not None:
        raise ValueError("token_types given, but the model has none (token_types=0)")
    x = norms.norm(x, params["embedding_norm"], cfg.norm_eps)
    context = Context(masks.full(segments) if mask is None else mask, positions, score, hook)
    x, captured, _ = stack.run(params["blocks"], x, cfg, context, path, capture, None)
    final = norms.norm(x, params["final_norm"], cfg.norm_eps) if "final_norm" in params else x
    return Hidden(final, captured, None)


def pooled(params: Params, hidden: Float[Array, "B S D"]) -> Float[Array, "B D"]:
    """tanh of a linear map of the first token's state."""
    return jnp.tanh(weights.linear(hidden[:, 0], params["pooler"]))


def mlm_hidden(params: Params, hidden: Float[Array, "B S D"], cfg: Config) -> Float[Array, "B S D"]:
    """What the masked-token head multiplies with the embedding table."""
    y = ACTIVATIONS[cfg.activation](weights.linear(hidden, params["mlm"]["dense"]))
    return norms.norm(y, params["mlm"]["norm"], cfg.norm_eps)


def mlm_logits(params: Params, hidden: Float[Array, "B S D"], cfg: Config) -> Float[Array, "B S V"]:
    """Logits of the masked tokens, in float32."""
    table = weights.DenseMatrix(params["embedding"])
    y = table.apply(mlm_hidden(params, hidden, cfg)).astype(jnp.float32) + params["mlm"]["bias"]
    return blocks.constrain(y, "batch", "sequence", "vocab")
