"""Significance: closed forms, enumeration by hand, scipy, and coverage of the intervals on simulated data."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from jaxpt.evaluate import significance as s


def test_the_paired_interval_is_the_t_test_turned_around():
    d = np.array([0.3, 0.1, 0.4, 0.2, 0.15])
    found = s.paired(d)
    expected = stats.ttest_1samp(d, 0).confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))
    assert found.mean == pytest.approx(d.mean()) and found.sd == pytest.approx(d.std(ddof=1)) and found.runs == 5
    assert found.detectable == pytest.approx(2.8 * d.std(ddof=1) / math.sqrt(5))


def test_the_sign_flip_test_is_exact():
    d = np.array([0.3, -0.1, 0.4, 0.2, 0.15, -0.02])
    flips = [abs(np.dot(f, d)) for f in itertools.product((-1, 1), repeat=6)]
    assert s.sign_flip(d) == np.mean([x >= abs(d.sum()) - 1e-12 for x in flips])
    assert s.sign_flip([1, 2, 3, 4, 5]) == 2 / 32  # the smallest there is with five runs
    assert s.sign_flip([0.0, 0.0]) == 1
    many = np.random.default_rng(0).normal(0.2, 1, 30)
    assert s.sign_flip(many) == pytest.approx(stats.ttest_1samp(many, 0).pvalue, abs=0.03)


def test_what_may_be_claimed():
    assert s.claim([0.3, 0.1, 0.4, 0.2, 0.15], [1, 1.1, 0.9, 1, 1]).claimed
    assert not s.claim([0.3, -0.1, 0.4, -0.2, 0.15], [1, 1.1, 0.9, 1, 1]).claimed
    assert s.claim([-0.3, -0.25, -0.35], [1.0, 1.05, 0.95]) == s.Verdict(
        True, -1, "3 runs, signs agree, |mean| 0.3 against 2 sd 0.1"
    )
    assert not s.claim([0.3, 0.25, -0.01], [1.0, 1.05, 0.95]).claimed
    assert not s.claim([0.05, 0.06, 0.07], [1.0, 1.05, 0.95]).claimed
    assert not s.claim([5, 5], [1, 1]).claimed


def test_mcnemar_is_the_binomial_test_of_the_discordant_pairs():
    a, b = np.array([1] * 12 + [0] * 3 + [1] * 20), np.array([0] * 12 + [1] * 3 + [1] * 20)
    expected = 2 * sum(math.comb(15, k) for k in range(4)) / 2**15
    assert s.mcnemar(a, b) == pytest.approx(expected) == s.mcnemar(b, a)
    assert s.mcnemar(a, a) == 1
    with pytest.raises(ValueError, match="two equally long lists of 0 and 1"):
        s.mcnemar([0.5, 1], [0, 1])


def test_the_bootstrap_of_a_ratio_covers_the_truth():
    hits, runs = 0, 200
    for seed in range(runs):
        rng = np.random.default_rng(seed)
        size = rng.integers(50, 500, 60)
        value, low, high = s.bootstrap_ratio(size * rng.normal(1.3, 0.3, 60), size, draws=400, seed=seed)
        assert low < value < high
        hits += low < 1.3 < high
    assert 0.89 < hits / runs <= 0.99


def test_clusters_widen_the_interval_of_what_is_not_independent():
    rng = np.random.default_rng(0)
    documents = np.repeat(np.arange(30), 20)
    values = rng.normal(size=30)[documents] + 0.1 * rng.normal(size=600)
    plain, clustered = s.bootstrap_mean(values), s.bootstrap_mean(values, clusters=documents.tolist())
    assert plain[0] == pytest.approx(clustered[0]) == pytest.approx(values.mean())
    assert (clustered[2] - clustered[1]) > 3 * (plain[2] - plain[1])
    standard = 2 * 1.96 * values.reshape(30, 20).mean(1).std(ddof=1) / math.sqrt(30)
    assert clustered[2] - clustered[1] == pytest.approx(standard, rel=0.15)


def test_the_crossed_bootstrap_sees_runs_and_items():
    rng = np.random.default_rng(0)
    runs, items = rng.normal(0, 0.5, (8, 1)), rng.normal(0, 0.5, (1, 100))
    noise = 0.05 * rng.normal(size=(8, 100))
    found = [s.crossed_bootstrap(noise + items, draws=2000), s.crossed_bootstrap(noise + runs + items, draws=2000)]
    width = [x[2] - x[1] for x in found]
    assert width[1] > 2 * width[0]
    assert found[1][0] == pytest.approx((noise + runs + items).mean())
    only_runs = s.crossed_bootstrap(np.repeat(runs, 50, 1))
    assert only_runs[2] - only_runs[1] == pytest.approx(2 * 1.96 * runs.std() / math.sqrt(8), rel=0.1)


def test_holm():
    assert s.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert s.holm([0.9, 0.8]).tolist() == [1, 1]
    by = s.stratified_mcnemar(np.ones(20), np.array([0] * 10 + [1] * 10), ["x"] * 10 + ["y"] * 10)
    assert by == pytest.approx({"x": 2 * 2 / 2**10, "y": 1})


def test_the_minimum_detectable_effect_is_found_in_four_of_five_experiments():
    """80% power at the 5% level is its promise for many runs."""
    rng, runs = np.random.default_rng(0), 40
    effect = s.minimum_detectable(1.0, runs)
    found = stats.ttest_1samp(rng.normal(effect, 1, (2000, runs)), 0, axis=1).pvalue < 0.05
    assert np.mean(found) == pytest.approx(0.8, abs=0.04)


def test_bad_numbers_are_refused():
    for bad in ([1.0], [1.0, math.nan], [[1.0, 2.0]]):
        with pytest.raises(ValueError, match="need at least 2 finite differences"):
            s.paired(bad)
    with pytest.raises(ValueError, match="as many positive denominators"):
        s.bootstrap_ratio([1, 2], [1, 0])
    with pytest.raises(ValueError, match="one cluster per item, got 1 for 2"):
        s.bootstrap_mean([1, 2], clusters=["a"])
    with pytest.raises(ValueError, match="between 0 and 1"):
        s.holm([1.2])
