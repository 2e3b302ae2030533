"""Writes tests/golden/: small random Hugging Face models with their inputs and outputs, and GGUF blocks with their values.

    pip install -e ".[oracle]" && python scripts/make_golden.py

The arrays are committed, so the tests need neither PyTorch nor Transformers; run this only to change the set.
Nothing is downloaded: models are built from configurations, in float32, with weights large enough that every
bias, norm and rotary angle shows in the logits. Each file holds `ids` [B, S], `logits` [B, S, V], `hidden`
[L, B, S, D] (the residual stream before each layer), `config` (JSON, what the test needs to build the same
model), `settings` (the config.json that Hugging Face writes) and `weight/NAME` arrays under its own names. The
encoder's file also holds `token_types` and `real` [B, S], `states` [B, S, D] (the last layer) and `pooled` [B, D].
gguf_blocks.npz holds `FORMAT/blocks` [N, bytes] and `FORMAT/values` [N, weights], the latter by the `gguf` package.
minilm.npz holds `texts` and their `vectors` [N, 384] by all-MiniLM-L6-v2 in Transformers; it is written only with
--minilm FOLDER, a folder with that model's files.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np

VOCABULARY, WIDTH, HEADS = 97, 32, 4
LLAMA = {
    "vocab_size": VOCABULARY,
    "hidden_size": WIDTH,
    "num_attention_heads": HEADS,
    "intermediate_size": 56,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-6,
    "attn_implementation": "eager",
}
NEOX = {
    "vocab_size": VOCABULARY,
    "hidden_size": WIDTH,
    "num_attention_heads": 2,
    "num_hidden_layers": 2,
    "intermediate_size": 64,
    "max_position_embeddings": 64,
    "layer_norm_eps": 1e-5,
    "hidden_act": "gelu",
    "rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0, "partial_rotary_factor": 0.25},
    "tie_word_embeddings": False,
    "attn_implementation": "eager",
}


def models() -> dict[str, tuple[Any, dict[str, Any]]]:
    """name -> (model, the same architecture as keyword arguments of `jaxpt.models.decoder.Config`)."""
    import transformers as hf

    def llama(**kwargs: Any) -> Any:
        return hf.LlamaForCausalLM(hf.LlamaConfig(**LLAMA, **kwargs))

    def neox(**kwargs: Any) -> Any:
        return hf.GPTNeoXForCausalLM(hf.GPTNeoXConfig(**NEOX, **kwargs))

    shape = {"vocab_size": VOCABULARY, "n_embd": WIDTH, "n_head": HEADS, "n_layer": 2, "n_positions": 40}
    gpt2 = hf.GPT2Config(**shape, bos_token_id=None, eos_token_id=None, attn_implementation="eager")
    common = {"vocab_size": VOCABULARY, "width": WIDTH, "heads": HEADS}
    ours_llama = common | {"ffn": LLAMA["intermediate_size"], "norm_eps": 1e-6}
    ours_neox = common | {
        "heads": 2, "layers": 2, "ffn": 64, "norm": "layer", "norm_eps": 1e-5, "activation": "gelu",
        "bias": True, "rotary_fraction": 0.25,
    }  # fmt: skip
    ours_gpt2 = ours_neox | {
        "heads": HEADS, "ffn": 4 * WIDTH, "activation": "gelu_tanh", "rotary_fraction": 0.0,
        "learned_positions": 40, "tied_head": True,
    }  # fmt: skip
    return {
        "llama": (
            llama(num_hidden_layers=3, num_key_value_heads=2, tie_word_embeddings=False),
            ours_llama | {"layers": 3, "kv_heads": 2},
        ),
        "llama_tied": (
            llama(num_hidden_layers=2, tie_word_embeddings=True, rope_theta=500.0),
            ours_llama | {"layers": 2, "tied_head": True, "rotary_base": 500.0},
        ),
        "gpt2": (hf.GPT2LMHeadModel(gpt2), ours_gpt2),
        "neox_parallel": (neox(use_parallel_residual=True), ours_neox | {"parallel_residual": True}),
        "neox_sequential": (neox(use_parallel_residual=False), ours_neox),
    }


def randomize(model: Any) -> None:
    """Matrices from N(0, 1/width), biases from N(0, 0.2^2), norm scales around 1."""
    import torch

    with torch.no_grad():
        for name, p in model.named_parameters():
            noise = torch.randn_like(p)
            if p.ndim == 2:
                p.copy_(noise / WIDTH**0.5)
            else:
                p.copy_(0.2 * noise + (0.0 if name.endswith("bias") else 1.0))


def record(model: Any, ours: dict[str, Any], rng: np.random.Generator) -> dict[str, np.ndarray]:
    """The arrays of one golden file."""
    import torch

    ids = rng.integers(0, VOCABULARY, (2, 24))
    with torch.no_grad():
        out = model.eval()(torch.tensor(ids), output_hidden_states=True, use_cache=False)
    tied = {"lm_head.weight"} if model.config.tie_word_embeddings else set()
    found = {f"weight/{k}": v.numpy() for k, v in model.state_dict().items() if k not in tied}
    return found | {
        "ids": ids.astype(np.int32),
        "logits": out.logits.numpy(),
        "hidden": np.stack([h.numpy() for h in out.hidden_states[:-1]]),
        "config": np.array(json.dumps(ours)),
        "settings": np.array(model.config.to_json_string()),
    }


def bert() -> tuple[Any, dict[str, Any]]:
    """BERT with every head that its checkpoints may carry, and the arguments of `jaxpt.models.encoder.Config`."""
    import transformers as hf

    cfg = hf.BertConfig(
        vocab_size=VOCABULARY, hidden_size=WIDTH, num_attention_heads=HEADS, num_hidden_layers=2,
        intermediate_size=56, max_position_embeddings=40, attn_implementation="eager",
    )  # fmt: skip
    ours = {"vocab_size": VOCABULARY, "width": WIDTH, "heads": HEADS, "layers": 2, "ffn": 56, "learned_positions": 40}
    return hf.BertForPreTraining(cfg), ours | {"pooler": True, "mlm_head": True}


def record_encoder(model: Any, ours: dict[str, Any], rng: np.random.Generator) -> dict[str, np.ndarray]:
    """As `record`, with the second row padded on the right."""
    import torch

    ids, types = rng.integers(0, VOCABULARY, (2, 24)), (np.arange(24) >= np.array([[10], [7]])).astype(np.int64)
    real = (np.arange(24) < np.array([[24], [17]])).astype(np.int64)
    given = {"input_ids": ids, "token_type_ids": types, "attention_mask": real}
    with torch.no_grad():
        out = model.eval()(**{k: torch.tensor(x) for k, x in given.items()}, output_hidden_states=True)
        pooled = model.bert.pooler(out.hidden_states[-1])
    tied = {"cls.predictions.decoder.weight", "cls.predictions.decoder.bias"}
    found = {f"weight/{k}": v.numpy() for k, v in model.state_dict().items() if k not in tied}
    return found | {
        "ids": ids.astype(np.int32),
        "token_types": types.astype(np.int32),
        "real": real.astype(np.int32),
        "logits": out.prediction_logits.numpy(),
        "hidden": np.stack([h.numpy() for h in out.hidden_states[:-1]]),
        "states": out.hidden_states[-1].numpy(),
        "pooled": pooled.numpy(),
        "config": np.array(json.dumps(ours)),
        "settings": np.array(model.config.to_json_string()),
    }


def main() -> None:
    """Writes every file and prints its size."""
    import torch

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(__file__).resolve().parent.parent / "tests" / "golden")
    parser.add_argument("--minilm", type=Path, help="folder of all-MiniLM-L6-v2, to write minilm.npz too")
    options = parser.parse_args()
    folder = options.out
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    for name, (model, ours) in models().items():
        randomize(model)
        write(folder / f"decoder_{name}.npz", record(model, ours, rng))
    model, ours = bert()
    randomize(model)
    write(folder / "encoder_bert.npz", record_encoder(model, ours, rng))
    write(folder / "gguf_blocks.npz", gguf_blocks(rng))
    if options.minilm is not None:
        write(folder / "minilm.npz", sentences(options.minilm))


def gguf_blocks(rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Random blocks of every quantised format we read; only their 16-bit scales are made finite."""
    from gguf import GGMLQuantizationType
    from gguf.quants import dequantize

    found = {}
    for name, size, scales in (
        ("Q4_0", 18, [0]), ("Q4_1", 20, [0, 2]), ("Q8_0", 34, [0]), ("Q4_K", 144, [0, 2]), ("Q6_K", 210, [208])
    ):  # fmt: skip
        blocks = rng.integers(0, 256, (16, size), dtype=np.uint8)
        for at in scales:
            blocks[:, at : at + 2] = rng.normal(0, 0.02, (16, 1)).astype(np.float16).view(np.uint8)
        found |= {f"{name}/blocks": blocks, f"{name}/values": dequantize(blocks, GGMLQuantizationType[name])}
    return found


def sentences(folder: Path) -> dict[str, np.ndarray]:
    """Mean of the last states of each text alone, at unit length: what sentence-transformers computes for this model."""
    import torch
    import transformers as hf

    texts = [
        "A man is eating food.", "Someone is having a meal.", "The stock market fell sharply today.",
        "Café naïve: 日本語 and e\u0301, 123.45!", "x", "the quick brown fox jumps over the lazy dog " * 40,
    ]  # fmt: skip
    tokenizer, model = hf.AutoTokenizer.from_pretrained(folder), hf.BertModel.from_pretrained(folder).eval()
    vectors = []
    for text in texts:
        with torch.no_grad():
            given = tokenizer(text, return_tensors="pt", truncation=True, max_length=256, padding=False)
            mean = model(**given).last_hidden_state[0].mean(0)
        vectors.append((mean / mean.norm()).numpy())
    return {"texts": np.array(texts), "vectors": np.stack(vectors)}


def write(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """Writes one file and prints its size."""
    np.savez_compressed(path, **arrays)
    print(f"{path.name}: {path.stat().st_size / 1e3:.0f} kB")


if __name__ == "__main__":
    main()
