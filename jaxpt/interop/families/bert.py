"""BertModel and BertForMaskedLM: post-norm, learned positions, sentence types, an optional pooler and token head."""

from __future__ import annotations

from collections.abc import Set
from typing import Any

from jaxpt.interop.families.base import Family, layer_norm, linear, require, require_plain_heads
from jaxpt.interop.names import Piece
from jaxpt.interop.settings import Settings
from jaxpt.models import encoder

ACTIVATIONS = {"gelu": "gelu", "gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh", "relu": "relu"}
LINEARS = {
    "attention.self.query": "attention/query",
    "attention.self.key": "attention/key",
    "attention.self.value": "attention/value",
    "attention.output.dense": "attention/out",
    "intermediate.dense": "mlp/up",
    "output.dense": "mlp/down",
}


def sizes(settings: Settings, norm_eps: float) -> dict[str, Any]:
    """Fields of an encoder that all families of BERT's kind name alike.

    Args:
      norm_eps: where the settings have none.
    """
    return {
        "vocab_size": settings.size("vocab_size"),
        "layers": settings.size("num_hidden_layers"),
        "width": settings.size("hidden_size"),
        "heads": settings.size("num_attention_heads"),
        "ffn": settings.size("intermediate_size"),
        "norm_eps": settings.number("layer_norm_eps", norm_eps),
        "activation": settings.choice("hidden_act", ACTIVATIONS, "gelu"),
        "initializer_stddev": settings.number("initializer_range", 0.02),
    }


def activation_of(cfg: encoder.Config) -> str | None:
    """The name that they have for the activation, if any."""
    return next((theirs for theirs, ours in ACTIVATIONS.items() if ours == cfg.activation), None)


def _read(settings: Settings, names: Set[str]) -> encoder.Config:
    settings.demand(
        {
            "position_embedding_type": ("absolute", None),
            "is_decoder": (False,),
            "add_cross_attention": (False,),
            "tie_word_embeddings": (True,),
        }
    )
    return encoder.Config(
        **sizes(settings, 1e-12),
        learned_positions=settings.size("max_position_embeddings", 512),
        token_types=settings.size("type_vocab_size", 2),
        pooler=any(name.endswith("pooler.dense.weight") for name in names),
        mlm_head="cls.predictions.transform.dense.weight" in names,
    )


def _write(cfg: encoder.Config) -> dict[str, Any]:
    require(
        cfg, "BERT", norm="layer", bias=True, rotary_fraction=0.0, post_norm=True, parallel_residual=False,
        embedding_size=None, rtd_head="none", disentangled=None, decoder_positions=0,
    )  # fmt: skip
    require_plain_heads(cfg, "BERT")
    activation = activation_of(cfg)
    if activation is None or not cfg.learned_positions or not cfg.token_types:
        given = f"{cfg.activation=} with {cfg.learned_positions=} and {cfg.token_types=}"
        raise ValueError(f"BERT cannot express {given}")
    return {
        "architectures": ["BertForMaskedLM" if cfg.mlm_head else "BertModel"],
        "vocab_size": cfg.vocab_size,
        "num_hidden_layers": cfg.layers,
        "hidden_size": cfg.width,
        "num_attention_heads": cfg.heads,
        "intermediate_size": cfg.ffn,
        "layer_norm_eps": cfg.norm_eps,
        "hidden_act": activation,
        "max_position_embeddings": cfg.learned_positions,
        "type_vocab_size": cfg.token_types,
        "tie_word_embeddings": True,
    }


def _pieces(cfg: encoder.Config) -> list[Piece]:
    at = "bert.encoder.layer.{i}."
    head, transform = "cls.predictions.", "cls.predictions.transform."
    linears = [p for theirs, ours in LINEARS.items() for p in linear(at + theirs, f"blocks/{ours}", bias=True)]
    mlm = [
        *linear(transform + "dense", "mlm/dense", bias=True),
        *layer_norm(transform + "LayerNorm", "mlm/norm"),
        Piece(head + "bias", ("mlm/bias",)),
    ]
    return [
        Piece("bert.embeddings.word_embeddings.weight", ("embedding",)),
        Piece("bert.embeddings.position_embeddings.weight", ("positions",)),
        Piece("bert.embeddings.token_type_embeddings.weight", ("token_types",)),
        *layer_norm("bert.embeddings.LayerNorm", "embedding_norm"),
        *linears,
        *layer_norm(at + "attention.output.LayerNorm", "blocks/attention_norm"),
        *layer_norm(at + "output.LayerNorm", "blocks/mlp_norm"),
        *(linear("bert.pooler.dense", "pooler", bias=True) if cfg.pooler else []),
        *(mlm if cfg.mlm_head else []),
    ]


FAMILY = Family(
    "bert", encoder.Config, _read, _write, _pieces, prefix="bert.", headless=lambda cfg: not cfg.mlm_head,
    ignored=("embeddings.position_ids", "cls.predictions.decoder.weight", "cls.predictions.decoder.bias",
             "cls.seq_relationship.weight", "cls.seq_relationship.bias"),
)  # fmt: skip
