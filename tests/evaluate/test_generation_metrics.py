"""Generation and memorisation metrics: counts by hand, extremes, brute force."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from jaxpt.evaluate import generation_metrics as g
from jaxpt.evaluate import memorisation as m
from jaxpt.evaluate.scoring import Scores

RNG = np.random.default_rng(0)


def test_counts_by_hand():
    texts = [[1, 2, 1, 2, 3], [1, 2, 9, 9, 9]]
    assert g.distinct(texts, 1) == 4 / 10 and g.distinct(texts, 2) == 5 / 8
    assert g.type_token_ratio(texts) == pytest.approx((3 / 5 + 3 / 5) / 2)
    assert g.repetition(texts, 2) == pytest.approx((1 / 4 + 1 / 4) / 2)
    assert g.distinct([[1]], 4) == 0 == g.repetition([[1]], 4)


def test_bleu_by_hand():
    text, references = [1, 2, 3, 4, 5], [[1, 2, 3, 4, 9], [7, 1, 2, 3, 4, 5, 8]]
    assert g.bleu(text, references) == pytest.approx(1.0)
    assert g.bleu(text, references[:1]) == pytest.approx((4 / 5 * 3 / 4 * 2 / 3 * 1 / 2) ** 0.25)
    assert g.bleu([1, 2, 3, 4], [[1, 2, 3, 4, 5, 6]]) == pytest.approx(math.exp(1 - 6 / 4))
    assert g.bleu([1, 1, 1, 1], [[1, 2, 3, 4]]) == 0
    assert g.self_bleu([text] * 3) == pytest.approx(1) and g.self_bleu([[1, 2, 3, 4], [5, 6, 7, 8]]) == 0
    many = RNG.integers(0, 3, (120, 12)).tolist()
    assert g.self_bleu(many) == g.self_bleu(many) and 0 < g.self_bleu(many) < 1


def test_loops_are_what_repeats_with_a_period_of_at_most_eight():
    period8, period9 = list(range(8)) * 6, list(range(9)) * 6
    broken = [*period8[:-1], 99]
    assert [g.loop_rate([t]) for t in (period8, period9, broken, [1] * 31, [1] * 32)] == [1, 0, 0, 0, 1]


def test_the_report_and_its_mask():
    tokens = RNG.integers(0, 50, (6, 40))
    found = g.generation_metrics(tokens)
    assert found.items == 6 and found["distinct_4"] > 0.9 and found["loop_rate"] == 0
    mask = np.arange(40) < 20
    assert dict(g.generation_metrics(tokens, np.tile(mask, (6, 1))).values) == dict(
        g.generation_metrics(tokens[:, :20]).values
    )
    with pytest.raises(ValueError, match="leave something of every text"):
        g.generation_metrics(tokens, np.zeros((6, 40), bool))
    with pytest.raises(ValueError, match="tokens must be"):
        g.generation_metrics(np.zeros((0, 5), int))


def test_entropy_of_uniform_and_certain_predictions():
    logits = np.stack([np.zeros((3, 8)), np.where(np.arange(8) == 2, 0.0, -np.inf) * np.ones((3, 1))])
    found = g.predictive(logits)
    assert found == pytest.approx({"entropy": math.log(8) / 2, "top_mass": (1 / 8 + 1) / 2})
    mask = np.array([[1, 1, 1], [0, 0, 0]])
    assert g.predictive(logits, mask)["entropy"] == pytest.approx(math.log(8))


def test_the_reference_score_is_per_token():
    def score(texts):
        return Scores(np.array([-2.0 * len(t) for _, t in texts]), np.zeros(2), np.array([len(t) for _, t in texts]))

    assert g.reference_score(score, ["abc", "d"]) == -2


def test_the_divergence_area_is_1_for_equal_sets_and_small_for_far_ones():
    a, far = RNG.normal(size=(500, 4)), RNG.normal(size=(500, 4)) + 20
    near = RNG.normal(size=(500, 4)) + 0.5
    same, close, apart = (g.divergence_area(a, x) for x in (a, near, far))
    assert same == pytest.approx(1, abs=1e-3) and apart < 0.05 and apart + 0.2 < close < same - 0.01
    with pytest.raises(ValueError, match="at least 500 texts on each side, got 500 and 10"):
        g.divergence_area(a, far[:10])


def test_the_longest_run_is_that_of_brute_force():
    for seed in range(20):
        rng = np.random.default_rng(seed)
        training = [rng.integers(0, 3, n).tolist() for n in rng.integers(1, 25, 4)]
        text = rng.integers(0, 3, 15).tolist()
        runs = [text[i:j] for i, j in itertools.combinations(range(16), 2)]
        inside = {tuple(t[i:j]) for t in training for i, j in itertools.combinations(range(len(t) + 1), 2)}
        assert m.longest_runs([text], training) == [max([len(r) for r in runs if tuple(r) in inside], default=0)]


def test_overlap_counts_known_ngrams():
    training = [list(range(20))]
    found = m.overlap([list(range(5, 15)), [*range(8), 99, 99]], training, sizes=(8, 13))
    assert found == pytest.approx({"longest_run": (10 + 8) / 2, "ngram_8": (1 + 1 / 3) / 2, "ngram_13": 0})


def test_extraction_wants_the_next_tokens_exactly():
    known = RNG.integers(0, 9, (4, 60)).tolist()

    def parrot(prefixes, steps):
        """Knows the first three texts, if it sees ten tokens of them."""
        found = []
        for p in prefixes:
            hits = [t[i + len(p) :] for t in known[:3] for i in range(60 - len(p)) if t[i : i + len(p)] == p]
            found.append(([*hits[0], *[0] * steps] if hits and len(p) >= 10 else [0] * steps)[:steps])
        return found

    assert m.extraction(parrot, known) == 0.75
    assert m.extraction_sweep(parrot, known, (5, 10, 25)) == {5: 0.0, 10: 0.75, 25: 0.75}
    with pytest.raises(ValueError, match="need sequences of 25 \\+ 25 tokens or more, the shortest has 9"):
        m.extraction(parrot, [[1] * 9])


def test_exposure_of_the_best_and_the_worst_canary():
    losses = np.arange(1, 1024)
    assert m.exposure(0.5, losses) == 10 and m.exposure(2000, losses) == 0 and m.exposure(511.5, losses) == 1
    assert m.exposure(1, np.ones(1023)) == 0  # nothing told apart


def test_rouge_l_recall_is_the_longest_common_subsequence():
    def brute(a, b):
        return max(n for n in range(len(b) + 1) for c in itertools.combinations(b, n) if _inside(c, a)) / len(b)

    for seed in range(10):
        a, b = np.random.default_rng(seed).integers(0, 4, (2, 8)).tolist()
        assert m.rouge_l_recall(a, b) == brute(a, b)
    assert m.rouge_l_recall([1, 5, 2, 3], [1, 2, 3]) == 1
    with pytest.raises(ValueError, match="empty"):
        m.rouge_l_recall([1], [])


def _inside(part, whole):
    rest = iter(whole)
    return all(x in rest for x in part)


def test_membership_by_hand_and_by_chance():
    found = m.membership([3, 4, 5], [1, 2, 4])
    assert found["auc"] == pytest.approx((3 * 3 - 1 - 0.5) / 9) and found["tpr_at_1_fpr"] == pytest.approx(1 / 3)
    same = m.membership(RNG.normal(size=300), RNG.normal(size=300), draws=200)
    assert same["auc_low"] < 0.5 < same["auc_high"] and same["tpr_at_1_fpr"] < 0.06
    apart = m.membership(RNG.normal(size=300) + 9, RNG.normal(size=300), draws=50)
    assert apart["auc"] == 1 == apart["tpr_at_1_fpr_low"]
    assert m.min_k([1, 2, 3, 4, 10], 0.4) == -7
    with pytest.raises(ValueError, match="share in"):
        m.min_k([1], 0)
