"""GPTNeoXForCausalLM: query, key and value of each head lie together, head after head; partial rotary positions."""

from __future__ import annotations

from collections.abc import Set
from typing import Any

from jaxpt.interop.families.base import Family, layer_norm, linear, require, require_plain_heads
from jaxpt.interop.names import Piece, head_by_head
from jaxpt.interop.settings import Settings
from jaxpt.models import decoder

ACTIVATIONS = {"gelu": "gelu", "gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh", "relu": "relu"}


def _read(settings: Settings, names: Set[str]) -> decoder.Config:
    settings.demand({"attention_bias": (True,)})
    base, fraction = settings.rope(10_000.0, 0.25)
    return decoder.Config(
        vocab_size=settings.size("vocab_size"),
        layers=settings.size("num_hidden_layers"),
        width=settings.size("hidden_size"),
        heads=settings.size("num_attention_heads"),
        ffn=settings.size("intermediate_size"),
        norm="layer",
        norm_eps=settings.number("layer_norm_eps", 1e-5),
        activation=settings.choice("hidden_act", ACTIVATIONS, "gelu"),
        rotary_fraction=fraction,
        rotary_base=base,
        bias=True,
        parallel_residual=settings.choice("use_parallel_residual", {True: True, False: False}, True),
        tied_head=settings.choice("tie_word_embeddings", {True: True, False: False}, False),
        initializer_stddev=settings.number("initializer_range", 0.02),
    )


def _write(cfg: decoder.Config) -> dict[str, Any]:
    require(cfg, "GPT-NeoX", norm="layer", bias=True, learned_positions=0, post_norm=False)
    require_plain_heads(cfg, "GPT-NeoX")
    activation = next((theirs for theirs, ours in ACTIVATIONS.items() if ours == cfg.activation), None)
    if activation is None or not cfg.rotary_fraction:
        raise ValueError(f"GPT-NeoX cannot express {cfg.activation=} with {cfg.rotary_fraction=}")
    rope = {"rope_theta": cfg.rotary_base, "partial_rotary_factor": cfg.rotary_fraction}
    return {
        "architectures": ["GPTNeoXForCausalLM"],
        "vocab_size": cfg.vocab_size,
        "num_hidden_layers": cfg.layers,
        "hidden_size": cfg.width,
        "num_attention_heads": cfg.heads,
        "intermediate_size": cfg.ffn,
        "layer_norm_eps": cfg.norm_eps,
        "hidden_act": activation,
        "rotary_pct": cfg.rotary_fraction,  # where transformers 4 looks; 5 reads the table
        "rotary_emb_base": cfg.rotary_base,
        "rope_parameters": {"rope_type": "default", **rope},
        "use_parallel_residual": cfg.parallel_residual,
        "attention_bias": True,
        "tie_word_embeddings": cfg.tied_head,
    }


def _pieces(cfg: decoder.Config) -> list[Piece]:
    at, fused = "gpt_neox.layers.{i}.", head_by_head(cfg.heads)

    def qkv(what: str) -> tuple[str, ...]:
        return tuple(f"blocks/attention/{name}/{what}" for name in ("query", "key", "value"))

    return [
        Piece("gpt_neox.embed_in.weight", ("embedding",)),
        *layer_norm(at + "input_layernorm", "blocks/attention_norm"),
        Piece(at + "attention.query_key_value.weight", qkv("kernel"), fused),
        Piece(at + "attention.query_key_value.bias", qkv("bias"), fused),
        *linear(at + "attention.dense", "blocks/attention/out", bias=True),
        *layer_norm(at + "post_attention_layernorm", "blocks/mlp_norm"),
        *linear(at + "mlp.dense_h_to_4h", "blocks/mlp/up", bias=True),
        *linear(at + "mlp.dense_4h_to_h", "blocks/mlp/down", bias=True),
        *layer_norm("gpt_neox.final_layer_norm", "final_norm"),
        *([] if cfg.tied_head else [Piece("lm_head.weight", ("head/kernel",))]),
    ]


FAMILY = Family(
    "gpt_neox", decoder.Config, _read, _write, _pieces, defaults={"max_position_embeddings": 2048},
    ignored=(".attention.bias", ".attention.masked_bias", "rotary_emb.inv_freq", "lm_head.weight"),
)  # fmt: skip
