"""GPT2LMHeadModel: Conv1D matrices are [in, out]; query, key and value lie side by side in one."""

from __future__ import annotations

from collections.abc import Set
from typing import Any

from jaxpt.interop.families.base import Family, layer_norm, require, require_plain_heads
from jaxpt.interop.names import TRANSPOSED, Piece, side_by_side
from jaxpt.interop.settings import Settings
from jaxpt.models import decoder

ACTIVATIONS = {"gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh", "gelu": "gelu", "relu": "relu"}


def _read(settings: Settings, names: Set[str]) -> decoder.Config:
    settings.demand(
        {
            "scale_attn_weights": (True,),
            "scale_attn_by_inverse_layer_idx": (False,),
            "add_cross_attention": (False,),
        }
    )
    width = settings.size("n_embd")
    return decoder.Config(
        vocab_size=settings.size("vocab_size"),
        layers=settings.size("n_layer"),
        width=width,
        heads=settings.size("n_head"),
        ffn=settings.size("n_inner", 4 * width),
        norm="layer",
        norm_eps=settings.number("layer_norm_epsilon", 1e-5),
        activation=settings.choice("activation_function", ACTIVATIONS, "gelu_new"),
        rotary_fraction=0.0,
        bias=True,
        learned_positions=settings.size("n_positions", 1024),
        tied_head=settings.choice("tie_word_embeddings", {True: True, False: False}, True),
        initializer_stddev=settings.number("initializer_range", 0.02),
    )


def _write(cfg: decoder.Config) -> dict[str, Any]:
    require(cfg, "GPT-2", norm="layer", bias=True, rotary_fraction=0.0, parallel_residual=False, post_norm=False)
    require_plain_heads(cfg, "GPT-2")
    activation = next((theirs for theirs, ours in ACTIVATIONS.items() if ours == cfg.activation), None)
    if activation is None or not cfg.learned_positions:
        raise ValueError(f"GPT-2 cannot express {cfg.activation=} with {cfg.learned_positions=}")
    return {
        "architectures": ["GPT2LMHeadModel"],
        "vocab_size": cfg.vocab_size,
        "n_layer": cfg.layers,
        "n_embd": cfg.width,
        "n_head": cfg.heads,
        "n_inner": cfg.ffn,
        "n_positions": cfg.learned_positions,
        "layer_norm_epsilon": cfg.norm_eps,
        "activation_function": activation,
        "tie_word_embeddings": cfg.tied_head,
    }


def _pieces(cfg: decoder.Config) -> list[Piece]:
    at = "transformer.h.{i}."
    fused = side_by_side(3)

    def conv(theirs: str, ours: str) -> list[Piece]:
        return [
            Piece(f"{at}{theirs}.weight", (f"blocks/{ours}/kernel",), TRANSPOSED),
            Piece(f"{at}{theirs}.bias", (f"blocks/{ours}/bias",)),
        ]

    def qkv(what: str) -> tuple[str, ...]:
        return tuple(f"blocks/attention/{name}/{what}" for name in ("query", "key", "value"))

    return [
        Piece("transformer.wte.weight", ("embedding",)),
        Piece("transformer.wpe.weight", ("positions",)),
        *layer_norm(at + "ln_1", "blocks/attention_norm"),
        Piece(at + "attn.c_attn.weight", qkv("kernel"), fused),
        Piece(at + "attn.c_attn.bias", qkv("bias"), fused),
        *conv("attn.c_proj", "attention/out"),
        *layer_norm(at + "ln_2", "blocks/mlp_norm"),
        *conv("mlp.c_fc", "mlp/up"),
        *conv("mlp.c_proj", "mlp/down"),
        *layer_norm("transformer.ln_f", "final_norm"),
        *([] if cfg.tied_head else [Piece("lm_head.weight", ("head/kernel",))]),
    ]


FAMILY = Family(
    "gpt2",
    decoder.Config,
    _read,
    _write,
    _pieces,
    prefix="transformer.",
    ignored=(".attn.bias", ".attn.masked_bias", "lm_head.weight"),
)
