"""Bits per byte of texts: closed forms, any tokenizer of one distribution, windows, and the numbers of the records' path."""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpt.data.documents import Document
from jaxpt.data.vocabularies import ByteVocabulary, train_bpe
from jaxpt.evaluate.bits_per_byte import data_of, token_scorer
from jaxpt.evaluate.documents import documents_bits_per_byte, text_windows
from jaxpt.evaluate.scoring import Scorer, TokenScores, from_logits

BYTES, S = ByteVocabulary(), 16
TEXTS = ["a", "the cat sat on the mat", "äöü " * 30, "the dog " * 25, "x" * 16, "the end of it all"]
DOCUMENTS = [Document(f"d{i}", "ab"[i % 2], "", text, "") for i, text in enumerate(TEXTS)]
BIGRAM = Scorer(from_logits(lambda p, b: p[b["inputs"]]), S)


@functools.cache
def table():
    """Logits of a byte bigram; special tokens are never said."""
    logits = 2 * np.random.default_rng(0).normal(size=(259, 259)).astype(np.float32)
    logits[:, :3] = -np.inf
    return jnp.asarray(logits)


def bits(score, vocabulary=BYTES, documents=DOCUMENTS, **kwargs):
    return documents_bits_per_byte(score, documents, vocabulary, S, **kwargs)


def test_a_byte_uniform_model_needs_exactly_8_bits():
    uniform = jnp.where(jnp.arange(259) < 3, -jnp.inf, 0.0) * jnp.ones((259, 1))
    for context in ("disjoint", "max"):
        found = bits(functools.partial(BIGRAM, uniform), context=context)
        for name in ("bits_per_byte", "bits_per_byte_macro", "bits_per_byte/a", "bits_per_byte/b"):
            assert found[name] == pytest.approx(8.0, abs=1e-6)


def test_by_hand_and_the_windows_do_not_matter_to_a_bigram():
    log_p = np.asarray(jax.nn.log_softmax(table()), np.float64)
    nats = {"a": 0.0, "b": 0.0}
    for d in DOCUMENTS:
        ids = [2, *BYTES.encode(d.text)]
        nats[d.domain] -= log_p[ids[:-1], ids[1:]].sum()
    sizes = {x: sum(len(d.text.encode()) for d in DOCUMENTS if d.domain == x) for x in "ab"}
    expected = sum(nats.values()) / math.log(2) / sum(sizes.values())
    score = functools.partial(BIGRAM, table())
    values = [bits(score), bits(score, context="max"), bits(score, context="max", stride=3)]
    for found in values:
        assert found["bits_per_byte"] == pytest.approx(expected, rel=1e-6)
        assert found["bits_per_byte/a"] == pytest.approx(nats["a"] / math.log(2) / sizes["a"], rel=1e-6)
    assert values[0]["bits_per_byte_macro"] != pytest.approx(values[0]["bits_per_byte"], rel=1e-3)


def test_a_bpe_and_a_byte_tokenizer_of_the_same_distribution_agree():
    """The token model is the byte bigram, each token's probability that of its bytes after the last byte before it."""
    bpe = train_bpe(TEXTS, 290)
    raw = [bpe.decode([i]).encode() if i >= 3 else b"" for i in range(bpe.size)]
    used = {i for t in TEXTS for i in bpe.encode(t)}
    singles = {bpe.encode(chr(c))[0]: bytes([c]) for c in range(32, 127)}
    pieces = {i: singles.get(i, raw[i]) for i in used}
    pieces |= dict(zip(bpe.encode("äöü "), _split(bpe, "äöü "), strict=True))  # halves of letters are no text
    log_p = np.asarray(jax.nn.log_softmax(table()), np.float64)
    nats = np.full((bpe.size, bpe.size), 1e9)
    for last, before in [(2, b""), *pieces.items()]:
        for i, b in pieces.items():
            ids = [before[-1] + 3 if before else 2, *(x + 3 for x in b)]
            nats[last, i] = -log_p[ids[:-1], ids[1:]].sum()
    assert max(len(b) for b in pieces.values()) > 3
    known = jnp.asarray(nats, jnp.float32)
    tokens = Scorer(lambda p, b: TokenScores(p[b["inputs"], b["labels"]], b["labels"] < 0), S)
    found, expected = bits(functools.partial(tokens, known), bpe), bits(functools.partial(BIGRAM, table()))
    for name in ("bits_per_byte", "bits_per_byte_macro", "bits_per_byte/a"):
        assert found[name] == pytest.approx(expected[name], rel=1e-6)
    assert found.per_item["tokens"].sum() < expected.per_item["tokens"].sum() / 2


def _split(bpe, text):
    """The bytes of each token of a text."""
    alphabet = {v: k for k, v in _byte_letters().items()}
    return [bytes(alphabet[c] for c in bpe._tokenizer.id_to_token(i)) for i in bpe.encode(text)]


def _byte_letters():
    """GPT-2's letters for bytes."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = [b for b in range(256) if b not in plain]
    return {b: chr(b) for b in plain} | {b: chr(256 + i) for i, b in enumerate(rest)}


def test_parts_add_up_and_the_order_does_not_matter():
    score = functools.partial(BIGRAM, table())
    whole, parts = bits(score), [bits(score, documents=DOCUMENTS[:2]), bits(score, documents=DOCUMENTS[2:])]
    np.testing.assert_allclose(np.concatenate([p.per_item["nats"] for p in parts]), whole.per_item["nats"], rtol=1e-6)
    again = bits(score, documents=DOCUMENTS[::-1])
    assert again["bits_per_byte"] == pytest.approx(whole["bits_per_byte"], rel=1e-6)
    assert again.data != whole.data and whole.data == bits(score).data


@pytest.mark.parametrize("context,stride", [("disjoint", None), ("max", None), ("max", 1), ("max", 5)])
def test_every_token_is_scored_once_with_the_promised_context(context, stride):
    for text in TEXTS:
        windows = list(text_windows(BYTES, text, S, context=context, stride=stride))
        assert [i for w in windows for i in w.continuation] == BYTES.encode(text)
        assert all(len(w.context) + len(w.continuation) <= S + 1 for w in windows)
        assert windows[0].context == [2]
        for w in windows[1:]:
            assert len(w.context) == 1 if context == "disjoint" else len(w.context) + len(w.continuation) == S + 1


def test_a_token_model_in_the_training_loop_and_the_hash_of_its_windows():
    class Two:
        domains, bytes = ("a",), {"a": 6}

        def batches(self):
            ids = np.array([[2, 100, 101, 102], [2, 103, 104, 105]], np.int32)
            weight = np.ones((2, 3), np.float32)
            yield {"inputs": ids[:, :-1], "labels": ids[:, 1:], "loss_weight": weight, "domain_index": np.zeros(2, int)}

    nats, tokens = token_scorer(from_logits(lambda p, b: p[b["inputs"]]))(table(), next(Two().batches()))
    log_p = np.asarray(jax.nn.log_softmax(table()), np.float64)
    assert nats[0] == pytest.approx(-log_p[[2, 100, 101], [100, 101, 102]].sum(), rel=1e-6) and tokens.tolist() == [
        3,
        3,
    ]
    described = data_of(Two())
    assert described["items"] == 6 and described["metric"] == "bits_per_byte" and len(described["data"]) == 16


def test_what_cannot_be_scored_is_refused():
    score = functools.partial(BIGRAM, table())
    with pytest.raises(ValueError, match="nothing to score in 0 documents"):
        bits(score, documents=[])
    with pytest.raises(ValueError, match="did you mean 'disjoint'"):
        bits(score, context="disjunct")
    with pytest.raises(ValueError, match="a stride is for context"):
        bits(score, context="max", stride=17)
