"""Asymptotes and learning curves: what few points say, and what they do not."""

# ruff: noqa: SIM300 (E, A, B and C are fitted here, not constants)
from __future__ import annotations

import warnings

import numpy as np
import pytest
from planted import SIZES

from jaxpt.analysis import scaling_laws as s
from jaxpt.analysis.scaling_laws.asymptote import LearningCurve


@pytest.mark.parametrize(
    "x,truth,noise,expected",
    [
        (SIZES, s.AsymptoteLaw(3.43, 0.05, 1.02), 1e-3, (3.426, 3.434)),
        (SIZES, s.AsymptoteLaw(3.43, 0.05, 1.02), 3e-3, (3.419, 3.439)),
        (np.arange(1.0, 6), s.AsymptoteLaw(3.27, 0.3, 1.0), 1e-3, (3.264, 3.277)),
        (np.arange(1.0, 6), s.AsymptoteLaw(3.27, 0.3, 1.0), 3e-3, (3.249, 3.287)),
    ],
)
def test_what_few_points_say_of_an_asymptote(x, truth, noise, expected):
    """Gaps between asymptotes below 0.02 need a standard deviation over seeds of at most 0.001."""
    exact = s.fit_asymptote(x, truth.loss(x))
    assert exact.law.C == pytest.approx(truth.C, abs=1e-6) and exact.law.B == pytest.approx(truth.B, rel=1e-4)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", s.FitWarning)
        found = s.fit_asymptote(x, truth.loss(x), sd=noise, draws=200)
    assert found.interval == pytest.approx(expected, abs=0.0015 if noise < 2e-3 else 0.005)


def test_a_fit_of_an_asymptote_tells_its_profile_interval_and_bounds():
    x = np.geomspace(1, 32, 6)
    truth = s.AsymptoteLaw(2.0, 1.5, 0.5)
    y = truth.loss(x) + 2e-3 * np.random.default_rng(0).normal(size=6)
    found = s.fit_asymptote(x, y)
    low, high = found.interval
    assert low < truth.C < high and low < found.law.C < high < y.min()
    assert found.profile[:, 1].min() >= found.objective and found.n_agree == 1
    wide = s.fit_asymptote(x[:3], y[:3])  # as many parameters as points
    assert wide.interval == (0.0, float(y[:3].min()))
    with pytest.warns(s.FitWarning, match="on a bound: C"):
        assert "C" in s.fit_asymptote(x, 3 / x**0.3 - 0.02 * np.log(x)).active_bounds  # steeper than to any constant
    by_unit = s.fit_asymptote(x * 1e9, y).law
    assert by_unit.C == pytest.approx(found.law.C, abs=1e-7) and by_unit.B == pytest.approx(found.law.B, rel=1e-6)
    with pytest.raises(ValueError, match="3 parameters need as many different x"):
        s.fit_asymptote([1, 2, 2, 1], [1, 2, 2, 1])
    with pytest.raises(ValueError, match="positive exponents"):
        s.fit_asymptote(x, y, B_grid=())


def test_the_inversion_of_an_asymptote():
    law = s.AsymptoteLaw(2.0, 1.5, 0.5)
    x = np.geomspace(0.1, 1e4, 20)
    np.testing.assert_allclose(law.invert(law.loss(x)), x, rtol=1e-9)
    found = law.invert(np.linspace(1, 3, 21))
    assert np.isinf(found[:11]).all() and (np.diff(found[11:]) < 0).all()


def test_nested_limits_and_the_reciprocal_case():
    E0 = s.AsymptoteLaw(1.8, 2.0, 0.4)
    D, N, K = (x.ravel() for x in np.meshgrid([1.0, 2, 4, 8, 16], [1.0, 2, 4, 8], [1.0, 2, 3, 4], indexing="ij"))
    y = E0.loss(D) + 0.3 / N**0.7 + 0.1 / K
    found = s.fit_nested((D, N, K), y, [(0.1, 0.2, 0.4, 0.8, 1.6), (0.25, 0.5, 1.0, 2.0), (1.0,)])
    assert found.law.C == pytest.approx(1.8, abs=1e-3) and found.law.B == pytest.approx(0.4, abs=1e-3)
    assert found.law.invert(E0.loss(5.0)) == pytest.approx(5.0, rel=1e-2)  # data efficiency
    with pytest.raises(ValueError, match="a B_grid for each of 3 columns"):
        s.fit_nested((D, N, K), y, [(1.0,)])


def test_a_learning_curve_with_its_drop_in_the_decay():
    truth = LearningCurve(2.5, 8.0, 0.35, 0.2)
    t = np.arange(100.0, 10_001, 100)
    annealed = np.clip((t - 8000) / 2000, 0, 1)
    found = s.fit_learning_curve(
        t, truth.loss(t, annealed) + 1e-3 * np.random.default_rng(0).normal(size=100), annealed
    )
    assert found.law.C == pytest.approx(2.5, abs=0.02) and found.law.drop == pytest.approx(0.2, abs=0.005)
    with pytest.raises(ValueError, match="annealed must be from 0 to 1, not constant"):
        s.fit_learning_curve(t, truth.loss(t, annealed), np.zeros(100))
