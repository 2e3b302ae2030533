"""ElectraModel, ElectraForMaskedLM (generator) and ElectraForPreTraining (discriminator): BERT with narrow tables."""

from __future__ import annotations

from collections.abc import Set
from typing import Any

from jaxpt.interop.families.base import Family, layer_norm, linear, require, require_plain_heads
from jaxpt.interop.families.bert import LINEARS, activation_of, sizes
from jaxpt.interop.names import Piece
from jaxpt.interop.settings import Settings
from jaxpt.models import encoder

RTD, MLM = "discriminator_predictions.", "generator_predictions."


def _read(settings: Settings, names: Set[str]) -> encoder.Config:
    settings.demand(
        {
            "position_embedding_type": ("absolute", None),
            "is_decoder": (False,),
            "add_cross_attention": (False,),
            "tie_word_embeddings": (True,),
        }
    )
    mlm_head, width = MLM + "dense.weight" in names, settings.size("hidden_size")
    if mlm_head:  # whose activation is gelu in every ELECTRA, whatever the blocks have
        settings.demand({"hidden_act": ("gelu",)})
    narrow = settings.size("embedding_size", width)
    return encoder.Config(
        **sizes(settings, 1e-12),
        learned_positions=settings.size("max_position_embeddings", 512),
        token_types=settings.size("type_vocab_size", 2),
        embedding_size=None if narrow == width else narrow,
        mlm_head=mlm_head,
        rtd_head="token" if RTD + "dense.weight" in names else "none",
    )


def _write(cfg: encoder.Config) -> dict[str, Any]:
    require(
        cfg, "ELECTRA", norm="layer", bias=True, rotary_fraction=0.0, post_norm=True, parallel_residual=False,
        pooler=False, projection="after_norm", disentangled=None, decoder_positions=0,
    )  # fmt: skip
    require_plain_heads(cfg, "ELECTRA")
    activation = activation_of(cfg)
    if activation is None or not cfg.learned_positions or not cfg.token_types:
        given = f"{cfg.activation=} with {cfg.learned_positions=} and {cfg.token_types=}"
        raise ValueError(f"ELECTRA cannot express {given}")
    if cfg.embedding_size == cfg.width:
        raise ValueError("ELECTRA has no projection where embedding_size is the width; give embedding_size=None")
    if cfg.rtd_head == "token_and_first" or (cfg.mlm_head and (cfg.rtd_head != "none" or cfg.activation != "gelu")):
        given = f"{cfg.mlm_head=} with {cfg.rtd_head=} and {cfg.activation=}"
        raise ValueError(f"ELECTRA cannot express {given}: it has one head, and the generator's is of gelu")
    heads = {"ElectraForMaskedLM": cfg.mlm_head, "ElectraForPreTraining": cfg.rtd_head == "token"}
    return {
        "architectures": [next((name for name, there in heads.items() if there), "ElectraModel")],
        "vocab_size": cfg.vocab_size,
        "num_hidden_layers": cfg.layers,
        "hidden_size": cfg.width,
        "embedding_size": cfg.table_width,
        "num_attention_heads": cfg.heads,
        "intermediate_size": cfg.ffn,
        "layer_norm_eps": cfg.norm_eps,
        "hidden_act": activation,
        "max_position_embeddings": cfg.learned_positions,
        "type_vocab_size": cfg.token_types,
        "tie_word_embeddings": True,
    }


def _pieces(cfg: encoder.Config) -> list[Piece]:
    at = "electra.encoder.layer.{i}."
    linears = [p for theirs, ours in LINEARS.items() for p in linear(at + theirs, f"blocks/{ours}", bias=True)]
    mlm = [
        *linear(MLM + "dense", "mlm/dense", bias=True),
        *layer_norm(MLM + "LayerNorm", "mlm/norm"),
        Piece("generator_lm_head.bias", ("mlm/bias",)),
    ]
    rtd = [
        *linear(RTD + "dense", "rtd/dense", bias=True),
        *linear(RTD + "dense_prediction", "rtd/out", bias=True),
    ]
    narrow = cfg.embedding_size is not None
    return [
        Piece("electra.embeddings.word_embeddings.weight", ("embedding",)),
        Piece("electra.embeddings.position_embeddings.weight", ("positions",)),
        Piece("electra.embeddings.token_type_embeddings.weight", ("token_types",)),
        *layer_norm("electra.embeddings.LayerNorm", "embedding_norm"),
        *(linear("electra.embeddings_project", "projection", bias=True) if narrow else []),
        *linears,
        *layer_norm(at + "attention.output.LayerNorm", "blocks/attention_norm"),
        *layer_norm(at + "output.LayerNorm", "blocks/mlp_norm"),
        *(mlm if cfg.mlm_head else []),
        *(rtd if cfg.rtd_head != "none" else []),
    ]


FAMILY = Family(
    "electra", encoder.Config, _read, _write, _pieces, prefix="electra.",
    headless=lambda cfg: not cfg.mlm_head and cfg.rtd_head == "none",
    ignored=("embeddings.position_ids", "embeddings.token_type_ids", "generator_lm_head.weight"),
)  # fmt: skip
