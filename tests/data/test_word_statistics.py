"""Smoothed document models are distributions with the right limits; sets are drawn as told; scores rank as Dirichlet."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from jaxpt.data.documents import DataError
from jaxpt.data.word_statistics import Collection, positive_poisson, smoothed, words

TEXTS = [
    "Alpha beta beta gamma, the delta.",
    "Beta beta epsilon zeta zeta zeta alpha",
    "gamma gamma delta epsilon alpha",
    "the of to in",
    "Zeta eta theta, eta: theta gamma",
]


def collection():
    return Collection.of(TEXTS, minimum=1)


def test_words_are_lowercased_letters_without_function_words():
    assert words("The Parser_2 returns THIS node-list, if x.") == ["parser", "returns", "node", "list"]


def test_a_document_model_is_a_distribution_with_the_right_limits():
    c = collection()
    np.testing.assert_allclose(c.background.sum(), 1, atol=1e-12)
    for document in range(len(TEXTS)):
        np.testing.assert_allclose(c.model(document).sum(), 1, atol=1e-9)
    np.testing.assert_allclose(c.model(3), c.background, atol=1e-12)  # a document without words
    own = np.asarray([words(TEXTS[1]).count(w) for w in c.vocabulary]) / 7
    np.testing.assert_allclose(c.model(1, mu=1e-9), own, atol=1e-9)
    np.testing.assert_allclose(c.model(1, mu=1e12), c.background, atol=1e-9)
    document_frequency = np.asarray([sum(w in words(text) for text in TEXTS) for w in c.vocabulary])
    np.testing.assert_allclose(c.background, document_frequency / document_frequency.sum())


def test_sets_are_drawn_from_the_model_and_what_is_kept():
    """Chi-square over the words of many pairs; every pair is of one length and in order of its own scores."""
    c = collection()
    keep = np.linspace(0.3, 1, len(c.vocabulary))
    c = Collection(c.vocabulary, c.start, c.word, c.count, c.background, keep, c.length)
    rng, seen, lengths = np.random.default_rng(0), np.zeros(len(c.vocabulary)), []
    p = c.model(0)
    for _ in range(3000):
        more, less, gap = c.pair(rng, 0)
        assert len(more) == len(less) >= 1 and gap >= 0
        np.testing.assert_allclose(gap, np.log(p[more]).sum() - np.log(p[less]).sum(), atol=1e-12)
        np.add.at(seen, np.concatenate([more, less]), 1)
        lengths.append(len(more))
    expected = p * keep / (p * keep).sum()
    assert stats.chisquare(seen, expected * seen.sum()).pvalue > 0.001
    assert abs(np.mean(lengths) - 3 / (1 - np.exp(-3))) < 4.5 * np.std(lengths) / np.sqrt(3000)


def test_candidates_beyond_the_document_are_few_and_its_own_words_always_in():
    c, rng = collection(), np.random.default_rng(1)
    drawn = {int(i) for _ in range(300) for s in c.pair(rng, 0, candidates=1)[:2] for i in s}
    assert drawn <= {c.vocabulary.index(w) for w in words(TEXTS[0])}


def test_frequent_words_are_kept_less_often_and_rare_ones_always():
    c = Collection.of(["common " * 5000 + "rare word"] * 2, minimum=1)
    keep = dict(zip(c.vocabulary, c.keep, strict=True))
    share = 1e-4 / (10000 / 10004)
    assert keep["rare"] == 1 and keep["common"] == pytest.approx(np.sqrt(share) + share)


def test_scores_rank_documents_as_dirichlets_formula():
    c, query = collection(), np.asarray([0, 1, 1, 4])
    counts = [
        np.bincount(c.word[a:b], c.count[a:b], len(c.vocabulary)) for a, b in zip(c.start, c.start[1:], strict=False)
    ]
    ours = np.asarray([c.likelihood_of(query, tf) for tf in counts])
    classic = np.asarray([
        np.log1p(tf[query] / (c.mu * c.background[query])).sum() + len(query) * np.log(c.mu / (tf.sum() + c.mu))
        for tf in counts
    ])  # fmt: skip
    np.testing.assert_allclose(ours - classic, (ours - classic)[0], atol=1e-9)


def test_what_has_no_model_is_named():
    with pytest.raises(DataError, match="none of the words of 2 documents comes 3 times"):
        Collection.of(["alpha", "beta"], minimum=3)
    with pytest.raises(ValueError, match="above 0 for a document without words"):
        smoothed(np.zeros(2), np.full(2, 0.5), 0.0)
    with pytest.raises(ValueError, match="mean above 0"):
        positive_poisson(np.random.default_rng(0), 0.0)
