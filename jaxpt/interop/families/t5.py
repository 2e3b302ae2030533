"""T5ForConditionalGeneration, 1.0 and 1.1 (and what shares their architecture: UL2, Flan)."""

from __future__ import annotations

from collections.abc import Set
from typing import Any

from jaxpt.interop.families.base import Family, require
from jaxpt.interop.names import Piece
from jaxpt.interop.settings import Settings
from jaxpt.layers.mlp import gated
from jaxpt.models import encoder_decoder

ACTIVATIONS = {
    "relu": "relu", "gelu": "gelu", "gelu_new": "gelu_tanh", "gated-gelu": "geglu_tanh", "gated-silu": "swiglu",
}  # fmt: skip
ATTENTION = {"q": "query", "k": "key", "v": "value", "o": "out"}


def _read(settings: Settings, names: Set[str]) -> encoder_decoder.Config:
    settings.demand({"is_encoder_decoder": (True,), "is_decoder": (False,)})
    flag = {True: True, False: False}
    tied = settings.choice("tie_word_embeddings", flag, True)  # of 1.1 too, as transformers 5 writes it, which says:
    scaled = settings.choice("scale_decoder_outputs", flag, tied)
    layers = settings.size("num_layers")
    return encoder_decoder.Config(
        vocab_size=settings.size("vocab_size"),
        layers=layers,
        decoder_layers=settings.size("num_decoder_layers", layers),
        width=settings.size("d_model"),
        heads=settings.size("num_heads"),
        head_dim=settings.size("d_kv"),
        ffn=settings.size("d_ff"),
        norm_eps=settings.number("layer_norm_epsilon", 1e-6),
        activation=settings.choice("feed_forward_proj", ACTIVATIONS, "relu"),
        relative_buckets=settings.size("relative_attention_num_buckets", 32),
        relative_distance=settings.size("relative_attention_max_distance", 128),
        tied_head=scaled or "lm_head.weight" not in names,
        scaled_head=scaled,
    )


def _write(cfg: encoder_decoder.Config) -> dict[str, Any]:
    require(
        cfg, "T5", norm="rms", bias=False, rotary_fraction=0.0, post_norm=False, parallel_residual=False,
        attention_scale=1.0,
    )  # fmt: skip
    activation = next((theirs for theirs, ours in ACTIVATIONS.items() if ours == cfg.activation), None)
    if activation is None or cfg.groups != cfg.heads or not cfg.relative_buckets:
        given = f"{cfg.activation=} with {cfg.heads=}, {cfg.groups=} and {cfg.relative_buckets=}"
        raise ValueError(f"T5 cannot express {given}")
    if cfg.tied_head != cfg.scaled_head:
        given = f"{cfg.tied_head=} with {cfg.scaled_head=}"
        raise ValueError(f"T5 cannot express {given}: a head is both, as in 1.0, or neither, as in 1.1")
    return {
        "architectures": ["T5ForConditionalGeneration"],
        "is_encoder_decoder": True,
        "vocab_size": cfg.vocab_size,
        "num_layers": cfg.layers,
        "num_decoder_layers": cfg.of_decoder.layers,
        "d_model": cfg.width,
        "num_heads": cfg.heads,
        "d_kv": cfg.per_head,
        "d_ff": cfg.ffn,
        "layer_norm_epsilon": cfg.norm_eps,
        "feed_forward_proj": activation,
        "relative_attention_num_buckets": cfg.relative_buckets,
        "relative_attention_max_distance": cfg.relative_distance,
        "tie_word_embeddings": cfg.tied_head,
        "scale_decoder_outputs": cfg.scaled_head,
    }


def _pieces(cfg: encoder_decoder.Config) -> list[Piece]:
    feed_forward = {"wi_0": "gate", "wi_1": "up"} if gated(cfg.activation) else {"wi": "up"}
    sublayers = {
        "encoder": [
            ("SelfAttention", "attention", ATTENTION),
            ("DenseReluDense", "mlp", feed_forward | {"wo": "down"}),
        ],
    }
    sublayers["decoder"] = [sublayers["encoder"][0], ("EncDecAttention", "cross", ATTENTION), sublayers["encoder"][1]]
    pieces = [Piece("shared.weight", ("embedding",))]
    for stack, of_stack in sublayers.items():
        first = f"{stack}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
        pieces += [Piece(first, (f"{stack}/relative",))]
        pieces += [Piece(f"{stack}.final_layer_norm.weight", (f"{stack}/final_norm/scale",))]
        for place, (theirs, ours, linears) in enumerate(of_stack):
            at, to = f"{stack}.block.{{i}}.layer.{place}", f"{stack}/blocks/{ours}"
            pieces += [Piece(f"{at}.layer_norm.weight", (f"{to}_norm/scale",))]
            pieces += [Piece(f"{at}.{theirs}.{k}.weight", (f"{to}/{v}/kernel",)) for k, v in linears.items()]
    return pieces if cfg.tied_head else [*pieces, Piece("lm_head.weight", ("head/kernel",))]


FAMILY = Family(
    "t5", encoder_decoder.Config, _read, _write, _pieces, defaults={"decoder_start_token_id": 0},
    ignored=("encoder.embed_tokens.weight", "decoder.embed_tokens.weight", "lm_head.weight",
             "EncDecAttention.relative_attention_bias.weight"),
)  # fmt: skip
