"""A 0.3M-parameter decoder trained briefly on the grammar learns it from context, beyond what neighbouring words give.

The whole experiment is scripts/grammar_model.py, its result docs/evaluation.md; this is the same code for 100 updates.
"""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import numpy as np

from jaxpt.core import spec
from jaxpt.evaluate import lexicon
from jaxpt.evaluate.english_grammar import corpus, english
from jaxpt.evaluate.minimal_pairs import pair_accuracy
from jaxpt.evaluate.phenomena import LOCAL, LONG_DISTANCE, minimal_pairs
from jaxpt.evaluate.words import word_vocabulary
from jaxpt.models import decoder

ROOT = Path(__file__).parent.parent.parent


def script():
    found = importlib.util.spec_from_file_location("grammar_model", ROOT / "scripts" / "grammar_model.py")
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module


def test_after_100_updates_local_agreement_is_known_and_distant_agreement_is_coming():
    program, words = script(), lexicon.small()
    vocabulary = word_vocabulary(english(words).vocabulary)
    texts = corpus(english(words), words, 12_000, seed=0)
    sentences = [[vocabulary.bos_id, *vocabulary.encode(t), vocabulary.eos_id] for t in texts]
    cfg = decoder.Config(vocab_size=vocabulary.size, width=96, heads=4, ffn=256, layers=2)
    assert spec.count(decoder.spec(cfg)) < 300_000
    program.AT = ()
    ((_, params),) = program.train(cfg, sentences, 100, 3e-3, 0)
    pairs = [p for n, v in minimal_pairs(0, words, 100).items() if n in LOCAL + LONG_DISTANCE for p in v]
    found = pair_accuracy(program.model_scorer(cfg, vocabulary)(params), pairs)
    assert all(found[f"accuracy/{name}"] > 0.9 for name in LOCAL), dict(found.values)
    distant = [found[f"accuracy/{name}"] for name in LONG_DISTANCE]
    assert np.mean(distant) > 0.6, dict(found.values)  # the bound that trigram models stay below on each


def test_packed_batches_hold_whole_sentences_each_seen_once_an_epoch():
    program, sentences = script(), [[2, *range(10, 10 + n), 1] for n in (5, 9, 30, 40, 62, 3)]
    (batch,) = program.batches(sentences, 1, 0)
    assert batch["inputs"].shape == (32, 64)
    rows = {tuple(x[x > 0].tolist()) for x in batch["inputs"]}
    assert sorted(i for row in rows for i in row) == sorted(i for s in sentences for i in s[:-1])
    counts = batch["loss_weight"].sum(-1)
    assert ((batch["segment_ids"] > 0).sum(-1) == counts).all() and (batch["positions"].max(-1) < counts).all()


def test_the_recorded_result_is_of_this_data_and_holds():
    """docs/grammar_model.json says what docs/evaluation.md says: 1 and 4 above 90%, on the pairs that are made today."""
    recorded = json.loads((ROOT / "docs" / "grammar_model.json").read_text())
    pairs = [p for v in minimal_pairs(0, lexicon.small()).values() for p in v]

    def blank(texts):
        from jaxpt.evaluate.scoring import Scores

        return Scores(np.zeros(len(texts)), np.zeros(len(texts), bool), np.ones(len(texts), int))

    assert recorded["data"] == pair_accuracy(blank, pairs).data and recorded["items"] == 6000
    last = recorded["values"][f"step {recorded['steps']}"]
    assert all(last[f"accuracy/{name}"] > 0.9 for name in LOCAL)
    assert all(recorded["values"]["3-gram"][f"accuracy/{name}"] <= 0.6 for name in LONG_DISTANCE)
    assert recorded["values"]["grammar"]["accuracy"] == 1.0
