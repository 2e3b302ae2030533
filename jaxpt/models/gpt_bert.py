"""GPT-BERT (arXiv 2410.24159; the release's model_extra.py): one network for causal and for masked next-token prediction.

    cfg = gpt_bert.Config(vocab_size=8192, layers=12, width=384, heads=6, ffn=1280)       # 30M, BabyLM's 10M-word track
    params = gpt_bert.init(jax.random.key(0), cfg)
    logits = gpt_bert.apply(params, ids, cfg)                                 # [B, S, V], causal
    logits = gpt_bert.apply(params, ids, cfg, mask=masks.full())              # with both sides

Embeddings and every sublayer are normalised without parameters (`layers.gated_block`), attention knows positions by
DeBERTa's disentangled scores (`layers.disentangled`), and after every sublayer the stream is a learned sum of all streams
so far (DenseFormer, arXiv 2402.02622):

    x_{s+1} = sum_j alpha_{s,j} X_j,   X = [embeddings, x_1 + sublayer(x_1), ...];   alpha starts at 1 for the newest, 0 else

Sublayers run in a loop, not a scan: a scan would keep a buffer of all streams for each of its steps. Reconstructed:
everything is the release's but dropout, which no model here has.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxpt import weights
from jaxpt.core import spec as specs
from jaxpt.core.names import nearest_error
from jaxpt.core.spec import ArraySpec
from jaxpt.core.types import Array, Float, Int, Params, PRNGKeyArray
from jaxpt.layers import block as blocks
from jaxpt.layers import disentangled as relative
from jaxpt.layers import gated_block, masks, norms
from jaxpt.layers.block import Context
from jaxpt.layers.disentangled import Disentangled
from jaxpt.layers.embeddings import embed
from jaxpt.layers.mlp import ACTIVATIONS
from jaxpt.layers.stack import REMAT, Hidden, StackConfig
from jaxpt.models import Readout

RELATIVE = Disentangled(buckets=32, max_position=512, rows=63)
# what `StackConfig` can say of other architectures and this one has no choice in
GIVEN: dict[str, Any] = {
    "norm": "layer",
    "activation": "geglu_tanh",
    "rotary_fraction": 0.0,
    "bias": True,
    "initializer_stddev": None,
    "kv_heads": None,
    "parallel_residual": False,
    "post_norm": False,
    "unroll": 1,
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(StackConfig):
    """GPT-BERT. What `StackConfig` offers beside its sizes, dtypes, `weights`, `remat` and `attention` is given.

    Attributes:
      relative: the table of relative positions and its buckets.
    """

    norm: str = "layer"
    norm_eps: float = 1e-5
    activation: str = "geglu_tanh"
    rotary_fraction: float = 0.0
    bias: bool = True
    initializer_stddev: float | None = None
    vocab_size: int = 259
    relative: Disentangled = RELATIVE

    def __post_init__(self) -> None:
        for name, value in GIVEN.items():
            if getattr(self, name) != value:
                raise ValueError(f"GPT-BERT has {name}={value!r}, got {getattr(self, name)!r}")
        if self.remat not in REMAT:
            raise nearest_error("remat policy", self.remat, REMAT)

    @property
    def sublayers(self) -> int:
        """Two a layer."""
        return 2 * self.layers


def spec(cfg: Config) -> Params:
    """Every array of the model: shape, dtype, logical axes, initializer."""
    init, embed = gated_block.truncated_normal(cfg.width), ("embed", cfg.width)
    table = relative.spec(cfg.relative, cfg.width, dtype=cfg.param_dtype)
    return {
        "embedding": ArraySpec((cfg.vocab_size, cfg.width), ("vocab", "embed"), init, cfg.param_dtype),
        "relative": table | {"table": dataclasses.replace(table["table"], init=init)},
        "blocks": gated_block.spec(cfg, cfg.layers),
        "aggregate": {
            f"{s:03d}": ArraySpec((s + 2,), (None,), _newest, cfg.param_dtype) for s in range(cfg.sublayers)
        },
        "head": {
            "dense": gated_block.linear(cfg, "head/dense", ("mlp", cfg.width), embed, bias=True),
            "bias": ArraySpec((cfg.vocab_size,), ("vocab",), specs.zeros, cfg.param_dtype),
        },
    }  # fmt: skip


def _newest(key: PRNGKeyArray, shape: tuple[int, ...], dtype: Any) -> Array:
    return jnp.zeros(shape, dtype).at[-1].set(1)


def init(key: PRNGKeyArray, cfg: Config) -> Params:
    """Initial parameters."""
    return specs.init(key, spec(cfg))


def apply(params: Params, inputs: Array, cfg: Config, **kwargs: Any) -> Float[Array, "B S V"]:
    """Logits [B, S, V] in float32. Keyword arguments as for `hidden_states`."""
    read = readout(params, hidden_states(params, inputs, cfg, **kwargs).final, cfg)
    logits = read.logits()
    return blocks.constrain(logits, "batch", "sequence", "vocab")


def readout(params: Params, hidden: Float[Array, "B N D"], cfg: Config) -> Readout:
    """The head: norm, dense, gelu, norm, and the embedding table with a bias."""
    y = weights.linear(norms.standardise(hidden, cfg.norm_eps), params["head"]["dense"])
    y = norms.standardise(ACTIVATIONS["gelu"](y), cfg.norm_eps)
    return Readout(y, weights.DenseMatrix(params["embedding"]), params["head"]["bias"])


def hidden_states(
    params: Params,
    inputs: Array,
    cfg: Config,
    *,
    segments: Int[Array, "B S"] | None = None,
    positions: Int[Array, "B S"] | None = None,
    mask: masks.Mask | None = None,
    capture: bool = False,
) -> Hidden:
    """Runs the sublayers. The final states are not normalised: the head does.

    Args:
      inputs: token ids [B, S], or embedded inputs [B, S, D] in their place.
      segments: [B, S] ids of packed documents, 0 for padding; they do not see each other.
      positions: taken as other models take them, and without effect: tokens of a document are as far apart as in the row.
      mask: any `masks.Mask` in place of the causal one.
      capture: also return the stream before every layer and after the last.
    """
    x, positions = embed(params, inputs, positions, cfg.compute_dtype)
    x = norms.standardise(x, cfg.norm_eps)
    score = relative.score(params["relative"], cfg.relative, cfg.norm_eps, cfg.compute_dtype)
    mask = masks.causal(segments) if mask is None else mask
    context = Context(mask, positions, score, scale=relative.scale(cfg.per_head))
    streams, captured = [x], [x]
    for layer in range(cfg.layers):
        p = jax.tree.map(lambda t: t[layer], params["blocks"])  # noqa: B023 - used in this turn alone
        for half, sublayer in enumerate(_sublayers(cfg, context)):
            x = blocks.constrain(x, "batch", "sequence", "features")
            streams.append(x + sublayer(x, p))
            x = weighted_sum(params["aggregate"][f"{2 * layer + half:03d}"], streams)
        captured.append(x)
    return Hidden(x, jnp.stack(captured) if capture else None, None)


def _sublayers(cfg: Config, context: Context) -> list[Callable[[Array, Params], Array]]:
    def attention(x: Array, p: Params) -> Array:
        return gated_block.attention(x, p["attention"], cfg, context)

    def mlp(x: Array, p: Params) -> Array:
        return gated_block.mlp(x, p["mlp"], cfg)

    if cfg.remat == "none":
        return [attention, mlp]
    return [jax.checkpoint(f, policy=REMAT[cfg.remat]) for f in (attention, mlp)]


def weighted_sum(alphas: Float[Array, " N"], streams: list[Array]) -> Float[Array, "B S D"]:
    """sum_j alphas[j] streams[j], in float32 and the order of j: exactly the last stream where alphas is one-hot on it."""
    found = sum(alphas[j].astype(jnp.float32) * x.astype(jnp.float32) for j, x in enumerate(streams))
    return jnp.asarray(found).astype(streams[0].dtype)
