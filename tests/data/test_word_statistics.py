"""Smoothed document models are distributions with the right limits; sets are drawn as told; scores rank as Dirichlet."""

from __future__ import annotations

import dataclasses
import sys

import numpy as np
import pytest
from scipy import stats

from jaxpt.data.documents import DataError
from jaxpt.data.word_statistics import Collection, positive_poisson, smoothed, stemmer, words

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


def toy():
    """Fifty words in documents of 5, 20 and 40 different ones, with counts of their own."""
    names = [f"word{'abcdefghij'[i // 10]}{'abcdefghij'[i % 10]}" for i in range(50)]
    texts = [" ".join(f"{w} " * (1 + i % 4) for i, w in enumerate(names[a:b])) for a, b in ((0, 5), (3, 23), (10, 50))]
    return Collection.of(texts, minimum=1)


def test_candidates_are_the_documents_words_and_others_up_to_the_number():
    c, rng = toy(), np.random.default_rng(1)
    for document, size in ((0, 5), (1, 20), (2, 40)):
        own = set(c.word[c.start[document] : c.start[document + 1]].tolist())
        assert len(own) == size
        for number in (size + 1, size + 5):
            chosen, share = c.candidates(rng, document, number)
            assert own < set(chosen.tolist()) or len(chosen) == size  # an other may be one of its own
            assert len(chosen) <= number and (np.diff(chosen) > 0).all()
            expected = c.model(document)[chosen] * c.keep[chosen]
            np.testing.assert_allclose(share, expected / expected.sum())
            np.testing.assert_allclose(share.sum(), 1, atol=1e-12)
    with pytest.raises(ValueError, match="at least 1 candidate word, got 0"):
        c.candidates(rng, 0, 0)


def test_a_document_of_more_words_than_candidates_keeps_them_all_and_has_others_too():
    """As many others as it has words and 100 more are drawn by df."""
    c, drawn = toy(), []

    class Watched(np.random.Generator):
        def choice(self, size, number, p):
            drawn.append(number)
            np.testing.assert_array_equal(p, c.background)
            return super().choice(size, number, p=p)

    for number in (1, 39, 40, 41):
        chosen, _ = c.candidates(Watched(np.random.PCG64(0)), 2, number)
        assert set(range(10, 50)) <= set(chosen.tolist())
    assert drawn == [140, 140, 140, 1]


def test_words_are_drawn_from_the_candidates_as_often_as_the_truncated_model_says():
    """Chi-square of 100,000 words at one truncation, whose candidates are the first draw of a generator."""
    c = toy()
    chosen, share = c.candidates(np.random.default_rng(5), 0, 15)
    assert 5 < len(chosen) <= 15
    seen = np.zeros(len(c.vocabulary))

    class Fixed(Collection):
        def candidates(self, rng, document, number=500):
            return chosen, share

    fixed, rng = Fixed(*(getattr(c, f.name) for f in dataclasses.fields(c))), np.random.default_rng(6)
    while seen.sum() < 1e5:
        np.add.at(seen, np.concatenate(fixed.pair(rng, 0, mean=200.0)[:2]), 1)
    assert seen.sum() == seen[chosen].sum()
    assert stats.chisquare(seen[chosen], share * seen.sum()).pvalue > 0.001


def test_nothing_that_is_drawn_changes_the_documents():
    """Their arrays cannot be written, a long document's included; all statistics are those of a fresh reading after it."""
    c = toy()
    arrays = [x for f in dataclasses.fields(c) if isinstance(x := getattr(c, f.name), np.ndarray)]
    for x in arrays:
        x.setflags(write=False)
    first = [c.pair(np.random.default_rng(d), d, candidates=10) for d in (0, 1, 2)]
    again = [c.pair(np.random.default_rng(d), d, candidates=10) for d in (2, 1, 0)][::-1]
    for one, two in zip(first, again, strict=True):
        for a, b in zip(one, two, strict=True):
            np.testing.assert_array_equal(a, b)
    fresh = toy()
    for f in dataclasses.fields(c):
        np.testing.assert_array_equal(getattr(c, f.name), getattr(fresh, f.name), err_msg=f.name)


INFLECTED = ["parse parses parsing parsing", "parsed parsing returned returns", "caresses returned returning ponies"]


def test_stems_are_porters_and_are_said_in_proportion_to_the_log_of_their_words_counts():
    """Counts 1, 1, 3, 1 of parse, parses, parsing, parsed, which are one term; the frequencies of 10,000 by chi-square."""
    c = Collection.of(INFLECTED, minimum=1, stem=True)
    assert c.vocabulary == ("caress", "pars", "poni", "return")
    at = c.vocabulary.index("pars")
    assert c.forms[at].words == ("parse", "parsed", "parses", "parsing")
    expected = np.log([2, 2, 2, 4]) / np.log([2, 2, 2, 4]).sum()
    np.testing.assert_allclose(c.forms[at].share, expected)
    said = c.said(np.random.default_rng(0), np.full(10_000, at))
    seen = [said.count(word) for word in c.forms[at].words]
    assert sum(seen) == 10_000 and stats.chisquare(seen, expected * 10_000).pvalue > 0.001
    np.testing.assert_array_equal(c.length, [4, 4, 4])
    np.testing.assert_allclose(c.background, np.asarray([1, 2, 1, 2]) / 6)  # in how many documents
    assert c.ids(["parser", "returned", "caresses", "window"]).tolist() == [3, 0]  # parser is its own stem


def test_scores_are_of_stems_and_words_without_stems_say_themselves():
    c = Collection.of(INFLECTED, minimum=1, stem=True)
    plain = Collection.of(INFLECTED, minimum=1)
    more, less, gap = c.pair(np.random.default_rng(3), 1)
    p = (np.bincount([1, 1, 3, 3], minlength=4) + c.mu * c.background) / (4 + c.mu)
    assert gap == pytest.approx(np.log(p[more]).sum() - np.log(p[less]).sum())
    rng = np.random.default_rng(3)
    state = rng.bit_generator.state
    assert plain.said(rng, np.asarray([2, 0])) == [plain.vocabulary[2], plain.vocabulary[0]]
    assert rng.bit_generator.state == state and not plain.forms
    assert plain.ids(["parsed", "pars"]).tolist() == [plain.vocabulary.index("parsed")]


def test_stems_without_nltk_name_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "nltk.stem.porter", None)
    stemmer.cache_clear()
    with pytest.raises(ImportError, match=r"pip install 'jaxpt\[stems\]'"):
        Collection.of(INFLECTED, stem=True)


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
