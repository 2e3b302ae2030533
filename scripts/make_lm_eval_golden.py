"""Writes tests/golden/lm_eval.json: what lm-evaluation-harness says of a small random LLaMA, through its own `hf` model.

    pip install -e ".[oracle,lm-eval]" accelerate peft && python scripts/make_lm_eval_golden.py

The weights are those of tests/golden/decoder_llama.npz, run by PyTorch; the harness tokenises, cuts, pads, scores, counts.
200 generated questions with two to four choices, with accents, spaces at the end of contexts and contexts longer than
the model reads, and 30 texts scored in rolling windows. Nothing is downloaded.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

FOLDER = Path(__file__).resolve().parent.parent / "tests" / "golden"
METRICS = ("acc", "acc_norm", "acc_bytes", "acc_mutual_info")
LENGTH = 64
SYLLABLES = "ba be bi ka ke ki ma me mi na né ni ra re ri sa se sü ta te ti la le lö".split()


def tokenizer() -> Any:
    """97 tokens: letters, and merges that may cross spaces, so that a choice can change the end of its context."""
    import tokenizers

    found = tokenizers.Tokenizer(tokenizers.models.BPE(unk_token="<unk>"))
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=97, special_tokens=["<pad>", "<eos>", "<bos>", "<unk>"], show_progress=False
    )
    rng = np.random.default_rng(1)
    found.train_from_iterator([sentence(rng, 12) for _ in range(300)], trainer)
    if found.get_vocab_size() != 97:
        raise RuntimeError(f"the tokenizer has {found.get_vocab_size()} tokens, 97 are wanted")
    return found


def sentence(rng: np.random.Generator, most: int) -> str:
    """Up to `most` words of one to three syllables."""
    return " ".join(
        "".join(rng.choice(SYLLABLES, int(rng.integers(1, 4)))) for _ in range(int(rng.integers(1, most + 1)))
    )


def questions(rng: np.random.Generator, tokens: Any) -> list[dict[str, Any]]:
    """context, choices, answer; every fifth context ends in a space, every eighth is longer than the model reads.

    A choice that the tokenizer would merge wholly into its context is drawn again: the harness cannot score it.
    """

    def length(text: str) -> int:
        return len(tokens.encode(text).ids)

    found = []
    for index in range(200):
        words = 60 if index % 8 == 0 else 6
        context = " ".join(sentence(rng, 6) for _ in range(words // 6)) + " " * (index % 5 == 0)
        choices: list[str] = []
        while len(choices) < 2 + index % 3:
            choice = sentence(rng, 4)
            if choice not in choices and length(f"{context} {choice}") > length(context.rstrip()):
                choices.append(choice)
        found.append({"context": context, "choices": choices, "answer": int(rng.integers(len(choices)))})
    return found


def write_tasks(folder: Path, items: list[dict[str, Any]], texts: list[str]) -> None:
    """The two tasks as the harness reads them."""
    (folder / "items.jsonl").write_text("".join(json.dumps(i) + "\n" for i in items))
    (folder / "texts.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in texts))
    choice = {
        "task": "questions", "output_type": "multiple_choice", "doc_to_text": "{{context}}", "doc_to_choice": "choices",
        "doc_to_target": "answer", "data": "items.jsonl", "metrics": METRICS,
    }  # fmt: skip
    rolling = {
        "task": "texts", "output_type": "loglikelihood_rolling", "doc_to_text": "", "doc_to_target": "{{text}}",
        "data": "texts.jsonl", "metrics": ("bits_per_byte",),
    }  # fmt: skip
    for task in (choice, rolling):
        lines = [f"{k}: {json.dumps(v)}" for k, v in task.items() if k not in ("data", "metrics")]
        lines += ["dataset_path: json", "validation_split: validation", "dataset_kwargs:", "  data_files:"]
        lines += [f"    validation: {folder / str(task['data'])}", "metric_list:"]
        lines += [f"  - metric: {metric}" for metric in task["metrics"]]
        (folder / f"{task['task']}.yaml").write_text("\n".join(lines) + "\n")


def model(tokens: Any, bos: bool) -> Any:
    """The harness's own Hugging Face model around the golden LLaMA; with `bos`, contexts begin with BOS."""
    import torch
    import transformers as hf
    from lm_eval.models.huggingface import HFLM

    torch.set_num_threads(1)
    with np.load(FOLDER / "decoder_llama.npz") as file:
        arrays = dict(file)
    ours = json.loads(str(arrays["config"]))
    cfg = hf.LlamaConfig(
        vocab_size=97, hidden_size=ours["width"], num_attention_heads=ours["heads"], num_key_value_heads=ours["kv_heads"],
        intermediate_size=ours["ffn"], num_hidden_layers=ours["layers"], rms_norm_eps=ours["norm_eps"],
        max_position_embeddings=LENGTH, tie_word_embeddings=False, attn_implementation="eager",
    )  # fmt: skip
    llama = hf.LlamaForCausalLM(cfg)
    state = {k.removeprefix("weight/"): torch.tensor(v) for k, v in arrays.items() if k.startswith("weight/")}
    llama.load_state_dict(state)
    fast = hf.PreTrainedTokenizerFast(
        tokenizer_object=with_bos(tokens), bos_token="<bos>", eos_token="<eos>", pad_token="<pad>", unk_token="<unk>"
    )
    return HFLM(
        pretrained=llama.eval(), tokenizer=fast, max_length=LENGTH, batch_size=16, device="cpu", add_bos_token=bos
    )


def with_bos(tokens: Any) -> Any:
    """A copy that puts BOS before a text."""
    import tokenizers

    found = tokenizers.Tokenizer.from_str(tokens.to_str())
    special = [("<bos>", found.token_to_id("<bos>"))]
    found.post_processor = tokenizers.processors.TemplateProcessing(single="<bos> $A", special_tokens=special)
    return found


def evaluate(tokens: Any, items: list[dict[str, Any]], texts: list[str]) -> dict[str, Any]:
    """Accuracies, and the log-likelihood and greedy flag of every request in the order of the items.

    Rolling windows have BOS as their first context anyway; a tokenizer that adds one would have it scored as text.
    """
    import lm_eval
    from lm_eval.tasks import TaskManager

    found = {}
    with tempfile.TemporaryDirectory() as folder:
        write_tasks(Path(folder), items, texts)
        manager = TaskManager(include_path=folder, include_defaults=False)
        for task, bos in (("questions", True), ("texts", False)):
            found[task] = lm_eval.simple_evaluate(
                model=model(tokens, bos), tasks=[task], task_manager=manager, log_samples=True, bootstrap_iters=0
            )
    samples = sorted(found["questions"]["samples"]["questions"], key=lambda s: s["doc_id"])
    rolling = sorted(found["texts"]["samples"]["texts"], key=lambda s: s["doc_id"])
    return {
        "accuracies": {m: found["questions"]["results"]["questions"][f"{m},none"] for m in METRICS},
        "log_likelihoods": [[float(r[0][0]) for r in s["resps"]] for s in samples],
        "greedy": [[str(r[0][1]) == "True" for r in s["resps"]] for s in samples],
        "bits_per_byte": found["texts"]["results"]["texts"]["bits_per_byte,none"],
        "rolling": [_number(s["resps"][0][0]) for s in rolling],
    }


def _number(x: Any) -> float:
    return float(x[0] if isinstance(x, (list, tuple)) else x)


def main() -> None:
    """Writes the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=FOLDER / "lm_eval.json")
    out = parser.parse_args().out
    os.environ |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
    tokens, rng = tokenizer(), np.random.default_rng(0)
    items = questions(rng, tokens)
    texts = [" ".join(sentence(rng, 6) for _ in range(1 + index)) for index in range(30)]
    result = evaluate(tokens, items, texts)
    import lm_eval

    head = {"lm_eval": lm_eval.__version__, "tokenizer": json.loads(tokens.to_str()), "items": items, "texts": texts}
    out.write_text(json.dumps(head | result, ensure_ascii=False, separators=(",", ":")) + "\n", encoding="utf-8")
    print(f"{out}: {out.stat().st_size / 1e3:.0f} kB, {result['accuracies']}, {result['bits_per_byte']} bits per byte")


if __name__ == "__main__":
    main()
