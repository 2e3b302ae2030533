"""The bidirectional encoder: BERT (arXiv 1810.04805) by default; ELECTRA, DeBERTa and pre-norm encoders by configuration.

    cfg = encoder.Config(vocab_size=30522, layers=6, width=384, heads=12, ffn=1536)
    params = encoder.init(jax.random.key(0), cfg)
    states = encoder.apply(params, ids, cfg, segments=real.astype(int))    # [B, S, D]
    logits = encoder.mlm_logits(params, states, cfg)                       # [B, S, V], with mlm_head=True

Token, position and sentence-type embeddings are added and normalised before the first block, each block normalises
after its residual sums (`post_norm`), and nothing follows the last one. With post_norm=False a final norm does.

ELECTRA (arXiv 2003.10555) has `embedding_size` and, as the discriminator, rtd_head="token". DeBERTaV3 (arXiv 2111.09543) is
`Config(learned_positions=0, token_types=0, norm_eps=1e-7, disentangled=Disentangled(), decoder_positions=512, ...)`; its
generator reads tokens out with `jaxpt.models.enhanced_mask_decoder`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp

from jaxpt import weights
from jaxpt.core import spec as specs
from jaxpt.core.names import nearest_error
from jaxpt.core.spec import ArraySpec
from jaxpt.core.types import Array, Float, Int, Params, PRNGKeyArray
from jaxpt.layers import block as blocks
from jaxpt.layers import disentangled as relative
from jaxpt.layers import masks, norms, stack
from jaxpt.layers.block import Context, Hook, Score
from jaxpt.layers.disentangled import Disentangled
from jaxpt.layers.embeddings import embed
from jaxpt.layers.mlp import ACTIVATIONS, gated
from jaxpt.layers.stack import Hidden, StackConfig
from jaxpt.models import Readout

PROJECTIONS = ("after_norm", "before_norm")
RTD_HEADS = ("none", "token", "token_and_first")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(StackConfig):
    """An encoder. The defaults are BERT's, which has as many key/value heads as heads and biases everywhere.

    Attributes:
      learned_positions: size of the position table; 0 for none (with rotary_fraction > 0).
      token_types: size of the table of sentence types; 0 for none.
      pooler: a tanh layer over the first token (BERT's sentence vector).
      mlm_head: the masked-token head: dense, activation, norm, and the embedding table with a bias.
      rtd_head: what tells replaced tokens from real ones: "none", "token" (ELECTRA: dense, activation, linear to one
        logit), or "token_and_first" (DeBERTaV3: before that, the norm of the sum with the first token's state).
      embedding_size: width of the tables and of the masked-token head's output, where it is not the blocks'.
      projection: from there to the blocks' width, "after_norm" of the embeddings (ELECTRA) or "before_norm", without a bias
        (DeBERTa).
      disentangled: relative positions in every layer's attention (DeBERTa), which go with learned_positions=0.
      decoder_positions: size of a table of absolute positions that only the enhanced mask decoder sees; 0 for none.
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
    rtd_head: str = "none"
    embedding_size: int | None = None
    projection: str = "after_norm"
    disentangled: Disentangled | None = None
    decoder_positions: int = 0

    @property
    def table_width(self) -> int:
        """Width of the embedding tables."""
        return self.width if self.embedding_size is None else self.embedding_size


def spec(cfg: Config) -> Params:
    """Every array of the model: shape, dtype, logical axes, initializer."""
    if cfg.projection not in PROJECTIONS:
        raise nearest_error("projection", cfg.projection, PROJECTIONS)
    if cfg.rtd_head not in RTD_HEADS:
        raise nearest_error("rtd_head", cfg.rtd_head, RTD_HEADS)
    stddev = cfg.initializer_stddev if cfg.initializer_stddev is not None else 0.02
    before = cfg.embedding_size is not None and cfg.projection == "after_norm"

    def table(size: int, axis: str | None, width: int) -> ArraySpec:
        return ArraySpec((size, width), (axis, "embed"), specs.normal(stddev), cfg.param_dtype)

    tree: dict[str, Any] = {
        "embedding": table(cfg.vocab_size, "vocab", cfg.table_width),
        "embedding_norm": _norm(cfg, cfg.table_width if before else cfg.width),
        "blocks": blocks.spec(cfg, (cfg.layers,)),
    }
    if cfg.learned_positions:
        tree["positions"] = table(cfg.learned_positions, "positions", cfg.table_width)
    if cfg.token_types:
        tree["token_types"] = table(cfg.token_types, None, cfg.table_width)
    if cfg.embedding_size is not None:
        sizes = (("embed", cfg.width), ("features", cfg.embedding_size))
        bias = cfg.bias and cfg.projection == "after_norm"
        tree["projection"] = blocks.linear_spec(cfg, "projection", *sizes, bias=bias)
    if cfg.disentangled is not None:
        tree["relative"] = relative.spec(cfg.disentangled, cfg.width, stddev, cfg.param_dtype)
    if cfg.decoder_positions:
        tree["decoder_positions"] = table(cfg.decoder_positions, "positions", cfg.width)
    if not cfg.post_norm:
        tree["final_norm"] = _norm(cfg, cfg.width)
    return tree | _heads_spec(cfg)


def _heads_spec(cfg: Config) -> Params:
    def dense(name: str, out: int) -> dict[str, Any]:
        return blocks.linear_spec(cfg, name, ("mlp", out), ("embed", cfg.width))

    heads = [name for name, there in (("masked-token", cfg.mlm_head), ("rtd", cfg.rtd_head != "none")) if there]
    if heads and gated(cfg.activation):
        raise ValueError(f"the {heads[0]} head has no gate for activation={cfg.activation!r}; use gelu or relu")
    tree: dict[str, Any] = {}
    if cfg.pooler:
        tree["pooler"] = dense("pooler", cfg.width)
    if cfg.mlm_head:
        bias = ArraySpec((cfg.vocab_size,), ("vocab",), specs.zeros, cfg.param_dtype)
        tree["mlm"] = {"dense": dense("mlm/dense", cfg.table_width), "norm": _norm(cfg, cfg.table_width), "bias": bias}
    if cfg.rtd_head != "none":
        tree["rtd"] = {"dense": dense("rtd/dense", cfg.width)}
        tree["rtd"]["out"] = blocks.linear_spec(cfg, "rtd/out", ("features", 1), ("embed", cfg.width))
    if cfg.rtd_head == "token_and_first":
        tree["rtd"]["norm"] = _norm(cfg, cfg.width)
    return tree


def _norm(cfg: Config, width: int) -> dict[str, ArraySpec]:
    return norms.spec(cfg.norm, width, (), cfg.param_dtype)


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
      ValueError: more positions than the table has, token types where the model has none, a score where it has its own.
    """
    x, positions = embeddings(params, inputs, cfg, token_types=token_types, positions=positions)
    given = context(params, cfg, positions, segments=segments, mask=mask, score=score, hook=hook)
    found = stack.run(params["blocks"], x, cfg, given, path, capture, None)
    if "final_norm" not in params:
        return found
    return found._replace(final=norms.norm(found.final, params["final_norm"], cfg.norm_eps))


def embeddings(
    params: Params,
    inputs: Array,
    cfg: Config,
    *,
    token_types: Int[Array, "B S"] | None = None,
    positions: Int[Array, "B S"] | None = None,
) -> tuple[Float[Array, "B S D"], Int[Array, "B S"]]:
    """What enters the first block, and the positions. Arguments as for `hidden_states`."""
    x, positions = embed(params, inputs, positions, cfg.compute_dtype)
    if "token_types" in params:
        types = jnp.zeros(x.shape[:2], jnp.int32) if token_types is None else token_types
        x = x + jnp.take(params["token_types"], types, axis=0).astype(x.dtype)
    elif token_types is not None:
        raise ValueError("token_types given, but the model has none (token_types=0)")
    if "projection" in params and cfg.projection == "before_norm":
        x = weights.linear(x, params["projection"])
    x = norms.norm(x, params["embedding_norm"], cfg.norm_eps)
    if "projection" in params and cfg.projection == "after_norm":
        x = weights.linear(x, params["projection"])
    return x, positions


def context(
    params: Params,
    cfg: Config,
    positions: Int[Array, "B S"],
    *,
    segments: Int[Array, "B S"] | None = None,
    mask: masks.Mask | None = None,
    score: Score | None = None,
    hook: Hook | None = None,
) -> Context:
    """What the blocks see. Arguments as for `hidden_states`."""
    mask = masks.full(segments) if mask is None else mask
    if cfg.disentangled is None:
        return Context(mask, positions, score, hook)
    if score is not None:
        raise ValueError("a score was given, but the model has its own (disentangled)")
    own = relative.score(params["relative"], cfg.disentangled, cfg.norm_eps, cfg.compute_dtype)
    return Context(mask, positions, own, hook, scale=relative.scale(cfg.per_head))


def pooled(params: Params, hidden: Float[Array, "B S D"]) -> Float[Array, "B D"]:
    """tanh of a linear map of the first token's state."""
    return jnp.tanh(weights.linear(hidden[:, 0], params["pooler"]))


def rtd_logits(params: Params, hidden: Float[Array, "B S D"], cfg: Config) -> Float[Array, "B S"]:
    """Logit of each token's being a replacement, in float32."""
    p = params["rtd"]
    if "norm" in p:
        hidden = norms.norm(hidden + hidden[:, :1], p["norm"], cfg.norm_eps)
    y = ACTIVATIONS[cfg.activation](weights.linear(hidden, p["dense"]))
    return weights.linear(y, p["out"])[..., 0].astype(jnp.float32)


def readout(params: Params, hidden: Float[Array, "B N D"], cfg: Config) -> Readout:
    """What the logits of the masked-token head are made of."""
    return Readout(mlm_hidden(params, hidden, cfg), weights.DenseMatrix(params["embedding"]), params["mlm"]["bias"])


def mlm_hidden(params: Params, hidden: Float[Array, "B S D"], cfg: Config) -> Float[Array, "B S E"]:
    """What the masked-token head multiplies with the embedding table."""
    y = ACTIVATIONS[cfg.activation](weights.linear(hidden, params["mlm"]["dense"]))
    return norms.norm(y, params["mlm"]["norm"], cfg.norm_eps)


def mlm_logits(params: Params, hidden: Float[Array, "B S D"], cfg: Config) -> Float[Array, "B S V"]:
    """Logits of the masked tokens, in float32."""
    table = weights.DenseMatrix(params["embedding"])
    y = table.apply(mlm_hidden(params, hidden, cfg)).astype(jnp.float32) + params["mlm"]["bias"]
    return blocks.constrain(y, "batch", "sequence", "vocab")
