"""DebertaV2Model and DebertaV2ForMaskedLM, the classes of DeBERTaV3's published models: disentangled attention, post-norm.

Three things that transformers leaves out are read where a file holds them: the absolute positions of the enhanced mask
decoder, the head that tells replaced tokens (`mask_predictions`), and the masked-token head named `lm_predictions`.
"""

from __future__ import annotations

from collections.abc import Set
from typing import Any

from jaxpt.interop.families.base import Family, layer_norm, linear, require, require_plain_heads
from jaxpt.interop.families.bert import activation_of, sizes
from jaxpt.interop.names import Piece
from jaxpt.interop.settings import Settings
from jaxpt.layers.disentangled import Disentangled
from jaxpt.models import encoder

LINEARS = {
    "attention.self.query_proj": "attention/query",
    "attention.self.key_proj": "attention/key",
    "attention.self.value_proj": "attention/value",
    "attention.output.dense": "attention/out",
    "intermediate.dense": "mlp/up",
    "output.dense": "mlp/down",
}
TERMS = (["p2c", "c2p"], ["c2p", "p2c"], "p2c|c2p", "c2p|p2c")
POSITIONS = "deberta.embeddings.position_embeddings.weight"
RTD, MLM = "mask_predictions.", "cls.predictions."
DEFAULTS = {"relative_attention": False, "pos_att_type": None, "share_att_key": False, "norm_rel_ebd": "none"}


def _read(settings: Settings, names: Set[str]) -> encoder.Config:
    Settings(DEFAULTS | dict(settings.values), settings.source).demand(
        {
            "relative_attention": (True,),
            "pos_att_type": TERMS,
            "share_att_key": (True,),
            "norm_rel_ebd": ("layer_norm",),
            "conv_kernel_size": (0, None),
            "tie_word_embeddings": (True,),
        }
    )
    longest, width = settings.size("max_position_embeddings", 512), settings.size("hidden_size")
    narrow = settings.size("embedding_size", width)
    at_input = settings.choice("position_biased_input", {True: True, False: False}, True)
    by_distance = settings.values.get("max_relative_positions") in (None, -1)  # as many as there are absolute ones
    types = settings.values.get("type_vocab_size", 0)
    return encoder.Config(
        **sizes(settings, 1e-7),
        learned_positions=longest if at_input else 0,
        token_types=0 if types == 0 else settings.size("type_vocab_size"),
        embedding_size=None if narrow == width else narrow,
        projection="before_norm",
        disentangled=Disentangled(
            settings.size("position_buckets"), longest if by_distance else settings.size("max_relative_positions")
        ),
        decoder_positions=longest if not at_input and {POSITIONS, POSITIONS.removeprefix("deberta.")} & names else 0,
        mlm_head=MLM + "transform.dense.weight" in names,
        rtd_head="token_and_first" if RTD + "dense.weight" in names else "none",
    )


def _write(cfg: encoder.Config) -> dict[str, Any]:
    require(
        cfg, "DeBERTa-v2", norm="layer", bias=True, rotary_fraction=0.0, post_norm=True, parallel_residual=False,
        pooler=False,
    )  # fmt: skip
    require_plain_heads(cfg, "DeBERTa-v2")
    if cfg.disentangled is None or cfg.disentangled.rows is not None:
        raise ValueError(f"DeBERTa-v2 cannot express disentangled={cfg.disentangled}")
    activation = activation_of(cfg)
    if activation is None or (cfg.learned_positions and cfg.decoder_positions) or cfg.rtd_head == "token":
        given = f"{cfg.activation=} with {cfg.learned_positions=}, {cfg.decoder_positions=} and {cfg.rtd_head=}"
        raise ValueError(f"DeBERTa-v2 cannot express {given}")
    if cfg.embedding_size is not None and (cfg.embedding_size == cfg.width or cfg.projection != "before_norm"):
        raise ValueError(f"DeBERTa-v2 cannot express {cfg.embedding_size=} with {cfg.width=} and {cfg.projection=}")
    return {
        "architectures": ["DebertaV2ForMaskedLM" if cfg.mlm_head else "DebertaV2Model"],
        "vocab_size": cfg.vocab_size,
        "num_hidden_layers": cfg.layers,
        "hidden_size": cfg.width,
        "embedding_size": cfg.table_width,
        "num_attention_heads": cfg.heads,
        "intermediate_size": cfg.ffn,
        "layer_norm_eps": cfg.norm_eps,
        "hidden_act": activation,
        "max_position_embeddings": cfg.learned_positions or cfg.decoder_positions or cfg.disentangled.max_position,
        "position_biased_input": cfg.learned_positions > 0,
        "type_vocab_size": cfg.token_types,
        "relative_attention": True,
        "position_buckets": cfg.disentangled.buckets,
        "max_relative_positions": cfg.disentangled.max_position,
        "pos_att_type": ["p2c", "c2p"],
        "share_att_key": True,
        "norm_rel_ebd": "layer_norm",
        "legacy": True,  # the names of the masked-token head
        "tie_word_embeddings": True,
    }


def _pieces(cfg: encoder.Config) -> list[Piece]:
    at = "deberta.encoder.layer.{i}."
    linears = [p for theirs, ours in LINEARS.items() for p in linear(at + theirs, f"blocks/{ours}", bias=True)]
    positions = "positions" if cfg.learned_positions else "decoder_positions"
    types = "deberta.embeddings.token_type_embeddings.weight"
    mlm = [
        *linear(MLM + "transform.dense", "mlm/dense", bias=True),
        *layer_norm(MLM + "transform.LayerNorm", "mlm/norm"),
        Piece(MLM + "bias", ("mlm/bias",)),
    ]
    rtd = [
        *linear(RTD + "dense", "rtd/dense", bias=True),
        *layer_norm(RTD + "LayerNorm", "rtd/norm"),
        *linear(RTD + "classifier", "rtd/out", bias=True),
    ]
    narrow = cfg.embedding_size is not None
    return [
        Piece("deberta.embeddings.word_embeddings.weight", ("embedding",)),
        *([Piece(POSITIONS, (positions,))] if cfg.learned_positions or cfg.decoder_positions else []),
        *([Piece(types, ("token_types",))] if cfg.token_types else []),
        *(linear("deberta.embeddings.embed_proj", "projection", bias=False) if narrow else []),
        *layer_norm("deberta.embeddings.LayerNorm", "embedding_norm"),
        Piece("deberta.encoder.rel_embeddings.weight", ("relative/table",)),
        *layer_norm("deberta.encoder.LayerNorm", "relative/norm"),
        *linears,
        *layer_norm(at + "attention.output.LayerNorm", "blocks/attention_norm"),
        *layer_norm(at + "output.LayerNorm", "blocks/mlp_norm"),
        *(mlm if cfg.mlm_head else []),
        *(rtd if cfg.rtd_head != "none" else []),
    ]


FAMILY = Family(
    "deberta-v2", encoder.Config, _read, _write, _pieces, prefix="deberta.",
    headless=lambda cfg: not cfg.mlm_head and cfg.rtd_head == "none",
    ignored=("embeddings.position_ids", "cls.predictions.decoder.weight", "cls.predictions.decoder.bias"),
    aliases={
        "lm_predictions.lm_head.dense.": MLM + "transform.dense.",
        "lm_predictions.lm_head.LayerNorm.": MLM + "transform.LayerNorm.",
        "lm_predictions.lm_head.bias": MLM + "bias",
    },
)  # fmt: skip
