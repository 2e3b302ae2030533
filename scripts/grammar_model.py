"""Trains a 0.3M-parameter decoder on the generated grammar and scores it on the twelve phenomena, beside its controls.

    python scripts/grammar_model.py [--seeds 3] [--steps 200] [--out docs/grammar_model.json]

Sentences of the corpus never have the content words of a test pair in the same order. One column of the table per scorer:
the grammar itself (inside probability), n-gram models of the same corpus, the untrained model, and the model during training
(mean over seeds). About a minute a seed on two free CPU cores.
"""

from __future__ import annotations

import argparse
import functools
import platform
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxpt import optim
from jaxpt.core import spec
from jaxpt.core.files import write_json
from jaxpt.data.packing import isolate
from jaxpt.data.vocabularies import HFVocabulary
from jaxpt.evaluate import lexicon as lexicons
from jaxpt.evaluate import ngram
from jaxpt.evaluate.english_grammar import corpus, english
from jaxpt.evaluate.grammar import Grammar, oracle
from jaxpt.evaluate.minimal_pairs import Pair, pair_accuracy
from jaxpt.evaluate.phenomena import LOCAL, LONG_DISTANCE, minimal_pairs
from jaxpt.evaluate.report import Report
from jaxpt.evaluate.scoring import Scorer, ScoreTexts, decoder_tokens, on_texts
from jaxpt.evaluate.words import word_vocabulary
from jaxpt.models import decoder
from jaxpt.objectives import causal_lm
from jaxpt.training import state as states
from jaxpt.training.step import make_step

SEQUENCE, BATCH = 64, 32
AT = (100,)  # steps at which the model is scored, beside the last


def batches(sentences: list[list[int]], steps: int, seed: int) -> Any:
    """`steps` batches [32, 64] of whole sentences, packed and isolated; a new order every epoch."""
    spans = np.array([[i, 0, len(s) - 1] for i, s in enumerate(sentences)], np.int64)
    packing = isolate(spans, SEQUENCE)
    rng, order = np.random.default_rng(seed), np.zeros(0, int)
    for _ in range(steps):
        while len(order) < BATCH:
            order = np.concatenate([order, rng.permutation(len(packing))])
        chosen, order = order[:BATCH], order[BATCH:]
        yield {name: np.stack(x) for name, x in _rows(sentences, packing, chosen).items()}


def _rows(sentences: list[list[int]], packing: Any, chosen: np.ndarray) -> dict[str, list[np.ndarray]]:
    rows: dict[str, list[np.ndarray]] = {}
    for sequence in chosen:
        row = {name: np.zeros(SEQUENCE, np.int32) for name in ("inputs", "labels", "segment_ids", "positions")}
        row["loss_weight"], at = np.zeros(SEQUENCE, np.float32), 0
        for segment, (index, _, length) in enumerate(packing.sequence(sequence), 1):
            place, ids = slice(at, at + int(length)), sentences[index]
            row["inputs"][place], row["labels"][place] = ids[:-1], ids[1:]
            row["segment_ids"][place], row["positions"][place] = segment, np.arange(length)
            row["loss_weight"][place] = 1
            at += int(length)
        for name, x in row.items():
            rows.setdefault(name, []).append(x)
    return rows


def train(
    cfg: decoder.Config, sentences: list[list[int]], steps: int, rate: float, seed: int
) -> Iterator[tuple[int, Any]]:
    """(step, parameters) at every step of AT and after the last."""
    optimizer = optim.adam(optim.warmup_cosine(rate, steps, steps // 20), weight_decay=0.1)
    step = make_step(lambda p, b, k: causal_lm.loss(p, b, k, cfg), optimizer, clip=1.0)
    state = states.create(decoder.init(jax.random.key(seed), cfg), optimizer, seed)
    for n, batch in enumerate(batches(sentences, steps, seed), 1):
        state, metrics = step.run(state, batch)
        if n in AT or n == steps:
            print(f"seed {seed}, step {n}/{steps}: loss {float(metrics['loss']):.3f}", flush=True)
            yield n, state.params


def model_scorer(cfg: decoder.Config, vocabulary: HFVocabulary) -> Callable[[Any], ScoreTexts]:
    """parameters -> scorer of texts; compiled once."""
    scorer = Scorer(decoder_tokens(cfg), SEQUENCE)
    return lambda params: on_texts(functools.partial(scorer, params), vocabulary)


def controls(
    grammar: Grammar, vocabulary: HFVocabulary, sentences: list[list[int]], pairs: list[Pair]
) -> dict[str, dict[str, float]]:
    """Accuracies of the grammar and of n-gram models of the corpus."""
    found = {"grammar": dict(pair_accuracy(oracle(grammar), pairs).values)}
    for order in (2, 3):
        score = ngram.train([s[1:] for s in sentences], vocabulary.size, order, vocabulary.bos_id)
        found[f"{order}-gram"] = dict(pair_accuracy(on_texts(score, vocabulary), pairs).values)
    return found


def main() -> None:
    """Trains, scores, prints and writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--sentences", type=int, default=40_000)
    parser.add_argument("--rate", type=float, default=3e-3)
    parser.add_argument("--out", type=Path, default=Path("docs/grammar_model.json"))
    args = parser.parse_args()
    lexicon = lexicons.small()
    grammar = english(lexicon)
    vocabulary = word_vocabulary(grammar.vocabulary)
    texts = list(corpus(grammar, lexicon, args.sentences, seed=0))
    sentences = [[vocabulary.bos_id, *vocabulary.encode(t), vocabulary.eos_id] for t in texts]
    pairs = [p for of_one in minimal_pairs(0, lexicon).values() for p in of_one]
    cfg = decoder.Config(vocab_size=vocabulary.size, width=96, heads=4, ffn=256, layers=2)
    found = controls(grammar, vocabulary, sentences, pairs)
    score, start = model_scorer(cfg, vocabulary), time.perf_counter()
    found["untrained"] = dict(pair_accuracy(score(decoder.init(jax.random.key(0), cfg)), pairs).values)
    runs: dict[int, list[Report]] = {}
    for seed in range(args.seeds):
        for step, params in train(cfg, sentences, args.steps, args.rate, seed):
            runs.setdefault(step, []).append(report := pair_accuracy(score(params), pairs))
    for step, reports in runs.items():
        found[f"step {step}"] = {name: float(np.mean([r[name] for r in reports])) for name in report.values}
    by_seed = {step: [dict(r.values) for r in reports] for step, reports in runs.items()}
    result = report.to_dict() | {
        "parameters": spec.count(decoder.spec(cfg)), "sentences": args.sentences, "steps": args.steps,
        "rate": args.rate, "tokens": sum(len(s) - 1 for s in sentences), "seconds": round(time.perf_counter() - start),
        "machine": f"{platform.machine()}, JAX {jax.__version__}, {jax.default_backend()}",
        "values": found, "by_seed": by_seed,
    }  # fmt: skip
    write_json(args.out, result)
    print(table(found))


def table(found: dict[str, dict[str, float]]) -> str:
    """Markdown: phenomena by scorers; (L) local, (D) long distance."""
    lines = ["| phenomenon | " + " | ".join(found) + " |", "|---" * (len(found) + 1) + "|"]
    for name in next(iter(found.values())):
        label = name.removeprefix("accuracy/")
        mark = " (L)" if label in LOCAL else " (D)" if label in LONG_DISTANCE else ""
        lines.append(f"| {label}{mark} | " + " | ".join(f"{v[name]:.3f}" for v in found.values()) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
