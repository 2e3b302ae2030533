"""Writes the recorded ELECTRA, DeBERTa and T5 models of tests/golden/, as scripts/make_golden.py writes the others.

    pip install -e ".[oracle]" && python scripts/make_encoder_golden.py

encoder_NAME.npz: `ids` [B, S], `real` [B, S] (the second row is padded), `token_types` [B, S] where the model has them,
`logits` (of tokens [B, S, V], or of replacement [B, S]), `states` [B, S, D] (the last layer), `settings` (config.json) and
`weight/NAME` arrays. DeBERTa's also holds `decoded` [B, S, D] and `decoded_logits` [B, S, V], the enhanced mask decoder by
Transformers' own layers.
t5_NAME.npz: `ids`, `real`, `targets` [B, T] (the decoder's inputs), `logits` [B, T, V], `encoded` [B, S, D], `greedy` [B, N]
(tokens that Transformers generates), `distances` [N] with their buckets `both_ways` and `backward`, `settings` and
`weight/NAME`.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
from make_golden import HEADS, VOCABULARY, WIDTH, randomize, write

LENGTH = 24
REAL = (np.arange(LENGTH) < np.array([[LENGTH], [17]])).astype(np.int64)
BERT = {
    "vocab_size": VOCABULARY, "hidden_size": WIDTH, "num_attention_heads": HEADS, "intermediate_size": 56,
    "num_hidden_layers": 2, "max_position_embeddings": 40, "attn_implementation": "eager",
}  # fmt: skip
DEBERTA = BERT | {
    "relative_attention": True, "position_buckets": 8, "norm_rel_ebd": "layer_norm", "share_att_key": True,
    "pos_att_type": ["p2c", "c2p"],
}  # fmt: skip
T5 = {"vocab_size": VOCABULARY, "d_model": WIDTH, "num_heads": HEADS, "num_layers": 2, "d_ff": 56}


def encoders() -> dict[str, Any]:
    """name -> model."""
    import transformers as hf

    def electra(width: int) -> Any:
        sizes = {"hidden_size": width, "embedding_size": 20}
        return hf.ElectraConfig(**BERT | sizes)

    # the second is rather what DeBERTaV3 is not: absolute positions, sentence types, narrow tables; and near distances only
    plain = hf.DebertaV2Config(**DEBERTA, position_biased_input=False, max_relative_positions=16)
    other = DEBERTA | {"num_hidden_layers": 1, "type_vocab_size": 2, "position_buckets": 32, "embedding_size": 20}
    return {
        "electra_generator": hf.ElectraForMaskedLM(electra(16)),
        "electra_discriminator": hf.ElectraForPreTraining(electra(WIDTH)),
        "deberta": hf.DebertaV2ForMaskedLM(plain),
        "deberta_absolute": hf.DebertaV2ForMaskedLM(hf.DebertaV2Config(**other)),
    }


def record(model: Any, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """The arrays of one encoder's file."""
    import torch

    given = {"input_ids": rng.integers(0, VOCABULARY, (2, LENGTH)), "attention_mask": REAL}
    if model.config.type_vocab_size:
        given["token_type_ids"] = (np.arange(LENGTH) >= np.array([[10], [7]])).astype(np.int64)
    with torch.no_grad():
        out = model.eval()(**{k: torch.tensor(x) for k, x in given.items()}, output_hidden_states=True)
    found = {
        "ids": given["input_ids"].astype(np.int32),
        "real": REAL.astype(np.int32),
        "logits": out.logits.numpy(),
        "states": out.hidden_states[-1].numpy(),
    }
    if "token_type_ids" in given:
        found["token_types"] = given["token_type_ids"].astype(np.int32)
    tied = {"generator_lm_head.weight", "generator_lm_head.bias"} if model.config.model_type == "electra" else set()
    tied |= {"cls.predictions.decoder.weight", "cls.predictions.decoder.bias"}
    return found | weights(model, tied - {"generator_lm_head.bias"})


def enhanced_mask_decoder(model: Any, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """By the last layer of a DeBERTa applied twice; and the table of positions under the name it has in files."""
    import torch

    encoder = model.deberta.encoder
    table = torch.randn(model.config.max_position_embeddings, WIDTH)
    with torch.no_grad():
        given = {"input_ids": torch.tensor(arrays["ids"]), "attention_mask": torch.tensor(REAL)}
        previous = model.deberta(**given, output_hidden_states=True).hidden_states[-2]
        query = previous + table[:LENGTH]
        for _ in range(2):
            query, _ = encoder.layer[-1](
                previous,
                encoder.get_attention_mask(given["attention_mask"]),
                query_states=query,
                relative_pos=encoder.get_rel_pos(previous),
                rel_embeddings=encoder.get_rel_embedding(),
            )
    positions = {"weight/deberta.embeddings.position_embeddings.weight": table.numpy()}
    return positions | {"decoded": query.numpy(), "decoded_logits": model.cls(query).detach().numpy()}


def seq2seq() -> dict[str, Any]:
    """name -> T5. Transformers ties the head of every T5, so that of 1.1 is untied by hand."""
    import torch
    import transformers as hf

    first = hf.T5ForConditionalGeneration(hf.T5Config(**T5, d_kv=8, relative_attention_num_buckets=16))
    cfg = hf.T5Config(
        **T5 | {"num_layers": 3}, d_kv=10, num_decoder_layers=2, feed_forward_proj="gated-gelu", tie_word_embeddings=False,
        relative_attention_num_buckets=8, relative_attention_max_distance=20,
    )  # fmt: skip
    second = hf.T5ForConditionalGeneration(cfg)
    second.lm_head.weight = torch.nn.Parameter(torch.zeros(VOCABULARY, WIDTH))
    return {"1_0": first, "1_1": second}


def record_seq2seq(model: Any, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """The arrays of one T5's file."""
    import torch

    cfg, distances = model.config, np.arange(-300, 301)
    ids, targets = rng.integers(3, VOCABULARY, (2, LENGTH)), rng.integers(3, VOCABULARY, (2, 15))
    given = {"input_ids": torch.tensor(ids), "attention_mask": torch.tensor(REAL)}
    bucket = model.encoder.block[0].layer[0].SelfAttention._relative_position_bucket
    sizes = {"num_buckets": cfg.relative_attention_num_buckets, "max_distance": cfg.relative_attention_max_distance}
    with torch.no_grad():
        out = model.eval()(**given, decoder_input_ids=torch.tensor(targets))
        extra = {"max_new_tokens": 12, "do_sample": False, "decoder_start_token_id": 0, "eos_token_id": None}
        greedy = model.generate(**given, **extra)
        both, backward = (bucket(torch.tensor(distances), way, **sizes).numpy() for way in (True, False))
    tied = {"encoder.embed_tokens.weight", "decoder.embed_tokens.weight"}
    tied |= {"lm_head.weight"} if cfg.scale_decoder_outputs else set()
    return weights(model, tied) | {
        "ids": ids.astype(np.int32),
        "real": REAL.astype(np.int32),
        "targets": targets.astype(np.int32),
        "logits": out.logits.numpy(),
        "encoded": out.encoder_last_hidden_state.numpy(),
        "greedy": greedy[:, 1:].numpy().astype(np.int32),  # without the start token
        "distances": distances,
        "both_ways": both,
        "backward": backward,
    }


def weights(model: Any, tied: set[str]) -> dict[str, np.ndarray]:
    """The tensors of a model but for tied ones, and its config.json."""
    found = {f"weight/{k}": v.numpy() for k, v in model.state_dict().items() if k not in tied}
    return found | {"settings": np.array(model.config.to_json_string())}


def main() -> None:
    """Writes every file and prints its size."""
    import torch

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(__file__).resolve().parent.parent / "tests" / "golden")
    folder = parser.parse_args().out
    torch.manual_seed(1)
    rng = np.random.default_rng(1)
    for name, model in encoders().items():
        randomize(model)
        arrays = record(model, rng)
        extra = enhanced_mask_decoder(model, arrays) if name == "deberta" else {}
        write(folder / f"encoder_{name}.npz", arrays | extra)
    for name, model in seq2seq().items():
        randomize(model)
        write(folder / f"t5_{name}.npz", record_seq2seq(model, rng))


if __name__ == "__main__":
    main()
