"""Pairs are rows of one document with two word sets; batches are a function of the step; held-out pairs never change."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from jaxpt.data.word_pairs import WordPairs

V = 300
TOPICS = "parser socket matrix window buffer thread signal archive calendar module".split()


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Sixty documents, each about two topics, in a cache of their own."""
    folder = tmp_path_factory.mktemp("documents")
    rng = np.random.default_rng(0)
    for i in range(60):
        text = " ".join(rng.choice([TOPICS[i % 10], TOPICS[i // 6], "returns", "value"], 40).tolist())
        (folder / f"{i}.txt").write_text(f"number {i} {text}\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAXPT_CACHE", str(folder / "cache"))
        cfg = WordPairs(
            corpora=(f"files:{folder}/*.txt",), vocabulary="bytes", validation=0.3, sequence_length=128, batch_size=4,
            evaluation_pairs=8,
        )  # fmt: skip
        yield cfg.open(V)


def test_a_row_is_words_then_the_document_with_whole_words_as_units(data):
    row = data.rows.row(["parser", "value"], "Reads   the file at once.")
    ids, units = row["inputs"], row["unit_ids"]
    decode = data.rows.vocabulary.decode
    before = int((row["token_types"] == 1).argmax())
    end = int(row["segment_ids"].sum())
    assert (ids[0], ids[before - 1], ids[end - 1]) == (V - 3, V - 2, V - 2)
    assert decode(ids[1 : before - 1].tolist()) == " parser value"
    assert [decode(ids[units == n].tolist()) for n in range(1, units.max() + 1)] == [
        " Reads",
        " the",
        " file",
        " at",
        " once.",
    ]
    assert not units[row["token_types"] == 0].any() and not any(row[name][end:].any() for name in row)
    with pytest.raises(ValueError, match="no room beside"):
        data.rows.row(["w" * 200], "text")


def test_batches_depend_on_seed_and_step_alone(data):
    loader = data.loader(seed=3)
    first = loader.batch(5)
    assert first["inputs"].shape == (4, 2, 128) and (first["gap"] >= 0).all()
    assert data.cfg.size_at(5) == (4, 128)
    said = data.cfg.batch_shapes(4, 128)
    assert {name: x.shape for name, x in said.items()} == {name: first[name].shape for name in said}
    again = next(iter(data.loader(seed=3).batches(5)))
    for name, x in first.items():
        np.testing.assert_array_equal(x, again[name], err_msg=name)
    assert (data.loader(seed=4).batch(5)["inputs"] != first["inputs"]).any()
    assert data.loader(seed=4).fingerprint != loader.fingerprint == data.loader(seed=3).fingerprint
    part = dataclasses.replace(loader, local=np.asarray([1, 3])).batch(5)
    np.testing.assert_array_equal(part["inputs"], first["inputs"][[1, 3]])


def test_a_round_has_every_document_once(data):
    loader, count = data.loader(seed=0), len(data.texts["train"])
    assert loader.ledger(3) == {"tokens": 2.0 * 12 * 128, "unique_tokens": 2.0 * min(12, count) * 128}
    seen = [tuple(x[1, 40:].tolist()) for step in range(count // 4) for x in loader.batch(step)["inputs"]]
    assert len(set(seen)) == len(seen)


def test_held_out_pairs_are_fixed_and_their_halves_apart(data):
    def rows(part):
        return [tuple(x[0].tolist()) for b in data.held_out(part) for x in b["inputs"] if x.any()]

    assert rows("tuning") == rows("tuning") and rows("tuning") and rows("report")
    assert not set(rows("tuning")) & set(rows("report")) and len(rows("all")) == 8

    def score(params, batch):
        there = batch["segment_ids"].any((1, 2))
        return params * there, there * 1.0

    assert data.evaluation(score, "report")(2.0) == {"loss": 2.0}


def test_sets_of_stems_are_shown_as_words_of_the_documents(data):
    """Every stem that is drawn is said as some word that the collection has for it, in both rows of a pair."""
    stems = dataclasses.replace(data.cfg, stem=True).open(V)
    collection, decode = stems.collections["train"], stems.rows.vocabulary.decode
    assert {"calendar", "matrix", "modul"} <= set(collection.vocabulary)
    for place in range(40):
        document = place % len(stems.texts["train"])
        rng = np.random.default_rng(place)
        found = stems.pair("train", document, np.random.default_rng(place))
        drawn = collection.pair(rng, document, data.cfg.words, data.cfg.candidates)[:2]
        for row, types, terms in zip(found["inputs"], found["token_types"], drawn, strict=True):
            shown = decode(row[1 : int(types.argmax()) - 1].tolist()).split()
            assert len(shown) == len(terms) and set(shown) <= set(TOPICS) | {"returns", "value", "number"}
            np.testing.assert_array_equal(collection.ids(shown), terms)


def test_candidates_reach_the_sets(data):
    """With one candidate asked for, all words of a document are still there; so many words beyond it as the rule says."""
    one = dataclasses.replace(data.cfg, candidates=1).open(V)
    first, other = (x.pair("train", 0, np.random.default_rng(2)) for x in (one, data))
    collection = one.collections["train"]
    gap = collection.pair(np.random.default_rng(2), 0, data.cfg.words, 1)[2]
    assert first["gap"] == np.float32(gap) != other["gap"]


def test_a_model_without_room_for_special_tokens_is_named(data):
    with pytest.raises(ValueError, match="3 special tokens do not fit model.vocab_size=260"):
        data.cfg.open(260)
