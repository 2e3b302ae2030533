"""Logits of the authors' GPT-BERT for random weights, which tests/models/test_gpt_bert.py compares with ours.

    git clone https://github.com/ltgoslo/gpt-bert
    python scripts/make_gpt_bert_golden.py gpt-bert tests/golden/gpt_bert.npz

Needs PyTorch. Nothing of the checkout is copied: the file holds our random weights, under the names that the release gives
them, ids, masks and the logits that its code computed from them.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

SIZES = {"hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2, "num_hidden_layers": 3, "vocab_size": 19}
POSITIONS = {"position_bucket_size": 8, "max_position_embeddings": 512}
LENGTH = 40  # beyond the distances that have a bucket each; far below 512, where the release would build new ones


def main(checkout: str, out: str) -> None:
    """Builds the model of the checkout, fills it and writes what it computes."""
    import torch

    found = importlib.util.spec_from_file_location("model_extra", Path(checkout) / "pretraining" / "model_extra.py")
    if found is None or found.loader is None:
        raise SystemExit(f"{checkout} is no checkout of gpt-bert")
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    rest = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "layer_norm_eps": 1e-5}
    model = module.Bert(SimpleNamespace(**SIZES, **POSITIONS, **rest)).eval()
    rng = np.random.default_rng(0)
    values = {
        name: (0.3 * rng.normal(size=tuple(p.shape)) + ("layer_norm.weight" in name)).astype(np.float32)
        for name, p in model.named_parameters()
    }
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.copy_(torch.from_numpy(values[name]))
    ids = rng.integers(0, SIZES["vocab_size"], (2, LENGTH))
    causal = np.tril(np.ones((LENGTH, LENGTH), bool))
    documents = np.repeat([1, 2], [15, LENGTH - 15])
    allowed = {"causal": causal, "full": np.ones_like(causal), "documents": documents[:, None] == documents}
    logits = {f"logits_{name}": run(model, ids, mask) for name, mask in allowed.items()}
    np.savez_compressed(out, ids=ids, documents=documents, **{f"p:{n}": x for n, x in values.items()}, **logits)


def run(model: Any, ids: np.ndarray, allowed: np.ndarray) -> np.ndarray:
    """Logits [B, S, V]; the release has time first, its mask says who is NOT seen, its head would drop unlabelled tokens."""
    import torch

    hidden = torch.from_numpy(~np.broadcast_to(allowed, (len(ids), *allowed.shape)).copy())
    time_first = torch.from_numpy(ids.T.copy())
    with torch.no_grad():
        logits = model.classifier.nonlinearity(model.get_contextualized(time_first, hidden))
    return logits.transpose(0, 1).numpy()


if __name__ == "__main__":
    if len(sys.argv) != 3:
        raise SystemExit(__doc__)
    main(*sys.argv[1:])
