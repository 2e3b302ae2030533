"""Minimal pairs: chance, swaps, ties, the grammar as its own oracle, n-gram controls, words from the text, files."""

from __future__ import annotations

import collections
import functools
import itertools
import json
import math

import numpy as np
import pytest

from jaxpt.data.documents import DataError
from jaxpt.evaluate import lexicon as lexicons
from jaxpt.evaluate import ngram
from jaxpt.evaluate.english_grammar import combination, corpus, english, held_out
from jaxpt.evaluate.grammar import Grammar, oracle
from jaxpt.evaluate.minimal_pairs import Pair, load_blimp, load_ewok, pair_accuracy
from jaxpt.evaluate.phenomena import LOCAL, LONG_DISTANCE, acceptability, minimal_pairs
from jaxpt.evaluate.scoring import Request, Scores, on_texts
from jaxpt.evaluate.words import word_vocabulary


@functools.cache
def language():
    lexicon = lexicons.small()
    return lexicon, english(lexicon)


@functools.cache
def pairs():
    return minimal_pairs(0, language()[0])


def everything():
    return [p for of_one in pairs().values() for p in of_one]


def noise(texts):
    """A model that likes texts by their hash."""
    values = np.array([hash_of(c + t) for c, t in texts], np.float64)
    return Scores(values, values < 0, np.array([len(t.split()) for _, t in texts]))


def hash_of(text):
    return -float(np.random.default_rng(list(text.encode())).integers(10_000))


def uniform(texts):
    lengths = np.array([len(t.split()) for _, t in texts])
    return Scores(-lengths * math.log(300.0), np.zeros(len(texts), bool), lengths)


def test_there_are_twelve_phenomena_of_500_different_pairs_of_equal_length():
    assert len(pairs()) == 12 and set(LOCAL + LONG_DISTANCE) < set(pairs())
    for name, of_one in pairs().items():
        assert len(of_one) == len(set(of_one)) == 500
        assert all(len(p.good.split()) == len(p.bad.split()) and p.good != p.bad for p in of_one), name
    assert minimal_pairs(0, language()[0], 20)["wh-island"] == pairs()["wh-island"][:20]
    assert minimal_pairs(1, language()[0], 20)["wh-island"] != pairs()["wh-island"][:20]


def test_a_uniform_model_has_exactly_one_half():
    report = pair_accuracy(uniform, everything())
    assert set(report.values.values()) == {0.5} and report.items == 6000


def test_the_grammar_itself_has_1_and_0_when_pairs_are_swapped():
    score = oracle(language()[1])
    some = [p for of_one in pairs().values() for p in of_one[:100]]
    assert set(pair_accuracy(score, some).values.values()) == {1.0}
    assert set(pair_accuracy(score, [p.swapped() for p in some]).values.values()) == {0.0}


def test_a_swapped_pair_gives_1_minus_the_accuracy():
    some = everything()[::7]
    found, swapped = pair_accuracy(noise, some), pair_accuracy(noise, [p.swapped() for p in some])
    for name in found.values:
        assert swapped[name] == pytest.approx(1 - found[name], abs=1e-12)
    assert 0.4 < found["accuracy"] < 0.6 and len({*found.values.values()}) > 5
    np.testing.assert_array_equal(found.per_item["margin"], -swapped.per_item["margin"])


def test_neighbouring_words_give_away_what_is_local_and_nothing_else():
    """A trigram model of the corpus: at least 90% on 1 and 4, at most 60% across a distance."""
    lexicon, grammar = language()
    vocabulary = word_vocabulary(grammar.vocabulary)
    sequences = [vocabulary.encode(t) for t in corpus(grammar, lexicon, 30_000, seed=0)]
    some = [p for name in LOCAL + LONG_DISTANCE for p in pairs()[name][:250]]
    for order in (2, 3):
        report = pair_accuracy(
            on_texts(ngram.train(sequences, vocabulary.size, order, vocabulary.bos_id), vocabulary), some
        )
        assert all(report[f"accuracy/{name}"] >= 0.9 for name in LOCAL), report
        assert all(report[f"accuracy/{name}"] <= 0.6 for name in LONG_DISTANCE), report


def test_content_words_of_the_test_are_in_the_corpus_but_not_together():
    lexicon, grammar = language()
    lemmas, texts = lexicon.lemmas(), list(corpus(grammar, lexicon, 8000, seed=0))
    seen = {combination(t.split(), lemmas) for t in texts}
    assert not any(held_out(t.split(), lemmas) for t in texts)
    assert not any(combination(p.good.split(), lemmas) in seen for p in everything())
    words = {w for t in texts for w in t.split()}
    assert {w for p in everything() for w in p.good.split()} <= words
    assert 250 <= len(grammar.vocabulary) <= 320
    assert texts[:10] == list(corpus(grammar, lexicon, 10, seed=0)) != list(corpus(grammar, lexicon, 10, seed=1))


def test_inside_probabilities_sum_to_one_and_are_those_of_the_samples():
    small = Grammar(
        {
            "S": [(1, ("A", "S2")), (3, ("A",))],
            "S2": [(1, ("b", "A")), (1, ("b",))],
            "A": [(1, ("W",)), (1, ("W", "b"))],
        },
        {"W": ("a", "c")},
    )
    sentences = [s for n in range(1, 6) for s in itertools.product("abc", repeat=n)]
    exact = {s: math.exp(small.log_probability(s)) for s in sentences if small.log_probability(s) > -math.inf}
    assert sum(exact.values()) == pytest.approx(1, abs=1e-12)
    assert exact["a", "b"] == pytest.approx(0.75 * 0.25 + 0.25 * 0.25 * 0.5)  # two derivations
    rng = np.random.default_rng(0)
    drawn = collections.Counter(tuple(small.sample(rng)) for _ in range(20_000))
    for sentence, p in exact.items():
        assert drawn[sentence] / 20_000 == pytest.approx(p, abs=4 * math.sqrt(p / 20_000))


def test_every_sentence_of_the_corpus_is_in_the_language():
    lexicon, grammar = language()
    found = oracle(grammar)([("", t) for t in corpus(grammar, lexicon, 300, seed=3)]).log_likelihood
    assert np.isfinite(found).all() and (found < 0).all()


def test_bad_grammars_are_refused():
    with pytest.raises(ValueError, match=r"left-recursive: S -> A -> S"):
        Grammar({"S": [(1, ("A",))], "A": [(1, ("S", "b"))]}, {})
    with pytest.raises(ValueError, match="symbols with rules and words"):
        Grammar({"S": [(1, ("b",))]}, {"S": ("a",)})
    with pytest.raises(ValueError, match="needs a production with a positive weight"):
        Grammar({"S": [(0, ("b",))]}, {})
    with pytest.raises(ValueError, match="preterminal 'W' has no words"):
        Grammar({"S": [(1, ("W",))]}, {"W": ()})
    with pytest.raises(ValueError, match="without a context"):
        oracle(language()[1])([("a", "b")])


def test_an_ngram_model_is_a_distribution_and_fits_by_hand():
    score = ngram.train([[1, 2], [1, 3], [1, 2]], size=4, order=2, bos_id=0)
    one = score([Request([0], [1])]).log_likelihood[0]
    unigram = (3 + 3 * 0.25) / (6 + 3)
    assert one == pytest.approx(math.log((3 + 1 * unigram) / 4))
    for context in ([0], [1], [2], [0, 3]):
        total = np.exp(score([Request(context, [w]) for w in range(4)]).log_likelihood).sum()
        assert total == pytest.approx(1, abs=1e-12)
    assert score([Request([0], [1, 2])]).log_likelihood[0] == pytest.approx(
        one + score([Request([0, 1], [2])]).log_likelihood[0]
    )


def test_the_lexicon_holds_the_words_of_the_text():
    known = lexicons.candidates()
    assert len(known.nouns) >= 200 and len(known.verbs) >= 120
    forms = [f for w in (*known.nouns, *known.verbs, *known.adjectives) for f in set(w.forms)]
    assert len(forms) == len(set(forms))  # no form belongs to two words
    wanted = lexicons.small()
    text = " ".join(f for w in (*wanted.nouns, *wanted.verbs, *wanted.adjectives) for f in w.forms)
    found = lexicons.from_text([(text + ". ") * 5, "Pianos piano pianos"], at_least=5)
    assert found == wanted
    assert len(lexicons.from_text([(text + " ") * 5], nouns=40).nouns) == 40
    assert all(len(v) == 100 for v in minimal_pairs(0, found, 100).values())
    with pytest.raises(DataError, match="only 0 male nouns have every form at least 6 times"):
        lexicons.from_text([(text + " ") * 5], at_least=6)
    few = lexicons.Lexicon(wanted.nouns[:1], wanted.verbs, wanted.adjectives)
    with pytest.raises(ValueError, match="needs|no words|too small"):
        minimal_pairs(0, few)


def test_acceptability_is_both_halves():
    found = acceptability(pairs()["filler-gap"][:3])
    assert [label for _, label in found] == [1, 0] * 3 and found[0][0] == pairs()["filler-gap"][0].good


def test_blimp_and_ewok_files(tmp_path):
    (tmp_path / "a.jsonl").write_text(
        json.dumps({"sentence_good": "Cats sit.", "sentence_bad": "Cats sits.", "UID": "agreement"}) + "\n\n"
    )
    assert load_blimp(tmp_path) == load_blimp(tmp_path / "a.jsonl") == [Pair("Cats sit.", "Cats sits.", "agreement")]
    row = {"Context1": "A.", "Context2": "B.", "Target1": "a", "Target2": "b", "Domain": "letters"}
    (tmp_path / "e.jsonl").write_text(json.dumps(row))
    assert load_ewok(tmp_path / "e.jsonl") == [
        Pair(" a", " a", "letters", "A.", "B."),
        Pair(" b", " b", "letters", "B.", "A."),
    ]
    assert load_ewok(tmp_path / "e.jsonl", compare="targets")[0] == Pair(" a", " b", "letters", "A.", "A.")
    given = []

    def score(texts):
        given.extend(texts)
        return uniform(texts)

    assert pair_accuracy(score, load_ewok(tmp_path / "e.jsonl"))["accuracy"] == 0.5
    assert given == [("A.", " a"), ("B.", " b"), ("B.", " a"), ("A.", " b")]


@pytest.mark.parametrize(
    "content,message",
    [
        ("{", "line 1 is not JSON"),
        ('{"sentence_good": "a", "sentence_bad": "b"}', "line 1 has no text in UID"),
        ('{"sentence_good": "a", "sentence_bad": 3, "UID": "x"}', "no text in sentence_bad"),
        ("[1]", "no text in sentence_good, sentence_bad, UID"),
        ("", "is empty"),
    ],
)
def test_bad_files_are_named(tmp_path, content, message):
    (tmp_path / "x.jsonl").write_text(content)
    with pytest.raises(DataError, match=message):
        load_blimp(tmp_path / "x.jsonl")


def test_missing_files_and_nan_are_refused(tmp_path):
    with pytest.raises(DataError, match=r"no \*\.jsonl file in"):
        load_blimp(tmp_path)
    with pytest.raises(DataError, match="cannot read"):
        load_blimp(tmp_path / "none.jsonl")
    with pytest.raises(ValueError, match="did you mean 'contexts'"):
        load_ewok(tmp_path, compare="context")
    with pytest.raises(ValueError, match="pair 0 is NaN"):
        pair_accuracy(
            lambda t: Scores(np.full(len(t), np.nan), np.zeros(len(t)), np.ones(len(t))), [Pair("a", "b", "x")]
        )
    with pytest.raises(ValueError, match="no pairs"):
        pair_accuracy(uniform, [])
