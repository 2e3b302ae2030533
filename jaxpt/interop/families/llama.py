"""LlamaForCausalLM: separate projections, RMSNorm, SwiGLU, rotary positions, grouped key/value heads."""

from __future__ import annotations

from collections.abc import Set
from typing import Any

from jaxpt.interop.families.base import Family, linear, require
from jaxpt.interop.names import Piece
from jaxpt.interop.settings import Settings
from jaxpt.models import decoder

LINEARS = {
    "self_attn.q_proj": "attention/query",
    "self_attn.k_proj": "attention/key",
    "self_attn.v_proj": "attention/value",
    "self_attn.o_proj": "attention/out",
    "mlp.gate_proj": "mlp/gate",
    "mlp.up_proj": "mlp/up",
    "mlp.down_proj": "mlp/down",
}


def _read(settings: Settings, names: Set[str]) -> decoder.Config:
    bias = settings.choice("attention_bias", {True: True, False: False}, False)
    settings.demand({"mlp_bias": (bias, None), "hidden_act": ("silu", "swish"), "layer_types": (None,)})
    base, fraction = settings.rope(10_000.0, 1.0)
    heads = settings.size("num_attention_heads")
    return decoder.Config(
        vocab_size=settings.size("vocab_size"),
        layers=settings.size("num_hidden_layers"),
        width=settings.size("hidden_size"),
        heads=heads,
        kv_heads=settings.size("num_key_value_heads", heads),
        head_dim=None if settings.values.get("head_dim") is None else settings.size("head_dim"),
        ffn=settings.size("intermediate_size"),
        norm_eps=settings.number("rms_norm_eps", 1e-6),
        rotary_base=base,
        rotary_fraction=fraction,
        bias=bias,
        tied_head=settings.choice("tie_word_embeddings", {True: True, False: False}, False),
        initializer_stddev=settings.number("initializer_range", 0.02),
    )


def _write(cfg: decoder.Config) -> dict[str, Any]:
    require(
        cfg, "LLaMA", norm="rms", activation="swiglu", rotary_fraction=1.0, learned_positions=0,
        parallel_residual=False, post_norm=False,
    )  # fmt: skip
    return {
        "architectures": ["LlamaForCausalLM"],
        "vocab_size": cfg.vocab_size,
        "num_hidden_layers": cfg.layers,
        "hidden_size": cfg.width,
        "num_attention_heads": cfg.heads,
        "num_key_value_heads": cfg.groups,
        "head_dim": cfg.per_head,
        "intermediate_size": cfg.ffn,
        "hidden_act": "silu",
        "rms_norm_eps": cfg.norm_eps,
        "rope_theta": cfg.rotary_base,  # where transformers 4 looks; 5 reads the table
        "rope_parameters": {"rope_type": "default", "rope_theta": cfg.rotary_base},
        "attention_bias": cfg.bias,
        "mlp_bias": cfg.bias,
        "tie_word_embeddings": cfg.tied_head,
    }


def _pieces(cfg: decoder.Config) -> list[Piece]:
    at = "model.layers.{i}."
    linears = [p for theirs, ours in LINEARS.items() for p in linear(at + theirs, f"blocks/{ours}", bias=cfg.bias)]
    return [
        Piece("model.embed_tokens.weight", ("embedding",)),
        Piece(at + "input_layernorm.weight", ("blocks/attention_norm/scale",)),
        *linears,
        Piece(at + "post_attention_layernorm.weight", ("blocks/mlp_norm/scale",)),
        Piece("model.norm.weight", ("final_norm/scale",)),
        *([] if cfg.tied_head else [Piece("lm_head.weight", ("head/kernel",))]),
    ]


# a head beside tied embeddings is a copy of them
FAMILY = Family(
    "llama", decoder.Config, _read, _write, _pieces, prefix="model.", defaults={"max_position_embeddings": 2048},
    ignored=("rotary_emb.inv_freq", "lm_head.weight"),
)  # fmt: skip
