"""How far to trust a law: bootstraps, extrapolation to held-out runs, and the better of two forms."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from planted import SIZES, TRUTH, fit, noisy

from jaxpt.analysis import scaling_laws as s
from jaxpt.analysis.scaling_laws.robust import huber


def test_a_bootstrap_over_runs_holds_the_truth_and_narrows_with_less_noise():
    wide, narrow = (s.bootstrap(fit, [x[:80] for x in noisy(noise)], n=20) for noise in (0.01, 0.001))
    for found in (wide, narrow):
        low, high = found.interval("a", level=0.98)
        assert low < TRUTH.a < high and found.failed == 0 and len(found.laws) == 20
    assert np.ptp(wide.interval("E")) > 3 * np.ptp(narrow.interval("E"))
    low, high = wide.interval(lambda law: law.loss(np.array([1e8, 1e9]), 1e10))
    assert low.shape == (2,) and (low < high).all()


def test_a_bootstrap_over_seeds_agrees_with_the_noise_it_was_given():
    truth = s.AsymptoteLaw(3.43, 0.05, 1.02)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", s.FitWarning)
        found = s.bootstrap(s.fit_asymptote, (SIZES, truth.loss(SIZES)), n=60, sd=1e-3)
    assert found.interval("C") == pytest.approx((3.426, 3.434), abs=0.004)
    few = s.bootstrap(s.fit_asymptote, (SIZES, truth.loss(SIZES)), n=60)
    assert 0 < few.failed < 60 and few.failed + len(few.laws) == 60  # fewer than 3 different sizes
    with pytest.raises(ValueError, match="n=0"):
        s.bootstrap(s.fit_asymptote, (SIZES, SIZES), n=0)


def test_extrapolation_holds_out_the_dearest_runs_and_finds_the_better_form():
    N, D, L = (x[:80] for x in noisy(0.003))
    found = s.holdout_extrapolation(fit, (N, D, L))
    assert len(found.held) == 16 and (N * D)[found.held].min() > np.delete(N * D, found.held).max()
    assert np.abs(found.errors).mean() < 0.01 and found.huber == pytest.approx(huber(found.errors).mean())
    np.testing.assert_allclose(found.errors, np.log(found.fit.law.loss(N, D) / L)[found.held])

    def tokens_only(N, D, L):
        inner = s.fit_asymptote(D, L)

        class Law:
            loss = staticmethod(lambda N, D: inner.law.loss(D))

        return s.Fit(Law, inner.objective, 1, 1, (), 1.0, inner.residuals, 3)

    table = s.compare({"N and D": fit, "D": tokens_only}, (N, D, L))
    assert table["N and D"].aicc < table["D"].aicc - 10 and table["N and D"].held_out < table["D"].held_out
    with pytest.raises(ValueError, match="cannot hold out 1.0 of 80"):
        s.holdout_extrapolation(fit, (N, D, L), frac=1.0)
    with pytest.raises(ValueError, match="give `cost`"):
        s.holdout_extrapolation(s.fit_mixture, (np.full((9, 2), 0.5), np.ones(9)))


def test_aicc_by_hand():
    r = np.array([0.1, -0.2, 0.1, 0.3, -0.1, 0.2, -0.3, 0.1])
    assert s.aicc(r, 2) == pytest.approx(8 * np.log(np.mean(r**2)) + 6 + 2 * 3 * 4 / 4)
    with pytest.raises(ValueError, match="needs at least 8 runs, got 7"):
        s.aicc(r[:7], 5)
