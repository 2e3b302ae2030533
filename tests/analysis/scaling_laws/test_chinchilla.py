"""Chinchilla's law: a planted one comes back, from noise and from diverged runs too, and a fit says what it cannot know."""

# ruff: noqa: SIM300 (E, A, B and C are fitted here, not constants)
from __future__ import annotations

import warnings

import numpy as np
import pytest
from planted import TRUTH, fit, noisy

from jaxpt.analysis import scaling_laws as s


def test_a_planted_law_comes_back_from_points_without_noise():
    found = s.fit_chinchilla(*noisy(0.0), starts=16)
    for name, tolerance in {"E": 1e-3, "a": 1e-3, "b": 1e-3, "A": 1e-2, "B": 1e-2}.items():
        assert getattr(found.law, name) == pytest.approx(getattr(TRUTH, name), rel=tolerance), name
    assert found.n_agree >= 3 and found.active_bounds == () and found.warnings == ()
    assert found.hessian_cond < 1e8 and np.abs(found.residuals).max() < 1e-5
    assert found.law.exponent == pytest.approx(0.5126, abs=1e-4)


def test_noise_of_a_third_of_a_percent():
    """A is poorly determined and is not tested."""
    found = fit(*noisy(0.003))
    assert found.n_agree >= 3 and found.warnings == ()
    assert found.law.E == pytest.approx(TRUTH.E, abs=0.01)
    assert found.law.a == pytest.approx(TRUTH.a, abs=0.01) and found.law.b == pytest.approx(TRUTH.b, abs=0.01)


def test_diverged_runs_move_least_squares_but_not_the_huber_loss():
    N, D, L = noisy(0.003)
    L = L * np.where(np.random.default_rng(2).permutation(len(L)) < 12, 1.3, 1.0)
    robust, squares = fit(N, D, L).law, fit(N, D, L, delta=1.0).law  # no log error is as large as 1
    assert abs(robust.E - TRUTH.E) < 0.01 and abs(robust.a - TRUTH.a) < 0.01
    assert abs(squares.E - TRUTH.E) > 0.01 and abs(squares.a - TRUTH.a) > 0.01


def test_the_published_grid_of_starts_finds_the_same_minimum():
    data = noisy(0.003)
    every = s.published_starts()
    assert every.shape == (4500, 5)
    sample = every[np.random.default_rng(0).permutation(len(every))[:12]]
    found, ours = fit(*data, starts=sample), fit(*data)
    assert found.objective == pytest.approx(ours.objective, rel=1e-3)
    assert found.law.a == pytest.approx(ours.law.a, abs=1e-3)


def test_the_unit_of_n_changes_only_its_coefficient():
    N, D, L = noisy(0.003)
    one, other = fit(N, D, L).law, fit(N * 1e9, D, L).law
    for name in "EBab":
        assert getattr(other, name) == pytest.approx(getattr(one, name), rel=1e-6)
    assert other.A == pytest.approx(one.A * 1e9**one.a, rel=1e-5)


def test_one_ratio_of_tokens_to_parameters_cannot_tell_the_exponents_apart():
    N = np.geomspace(4e7, 1.6e10, 40)
    with pytest.warns(s.FitWarning, match="not identifiable"):
        found = fit(N, 20 * N, TRUTH.loss(N, 20 * N))
    assert found.hessian_cond > 1e8


def test_few_starts_and_bounds_are_told():
    N, D, L = noisy(0.003)
    poor = np.array([[0.0, 0.0, 0.5, 2.0, 2.0]] * 2 + [[6.0, 7.0, 0.6, 0.35, 0.35]])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = fit(N, D, np.full_like(L, 2.0), starts=4)  # nothing depends on N or D
    assert found.active_bounds and any("bound" in str(w.message) for w in caught)
    assert set(found.warnings) == {str(w.message) for w in caught}
    assert fit(N, D, L, starts=poor).starts == 3
    from jaxpt.analysis.scaling_laws.robust import doubts

    assert doubts(2, 48, (), 1.0)[0].startswith("2 of 48 starts found the best minimum; 3 should")
    assert doubts(3, 48, (), 1.0) == [] == doubts(1, 1, (), 1.0)


def test_weights_are_those_of_repeated_runs():
    N, D, L = (x[:60] for x in noisy(0.003))
    weights = np.array([3, 0, *[1] * 58])
    twice = [np.concatenate([x[2:], x[:1], x[:1], x[:1]]) for x in (N, D, L)]
    one, other = fit(N, D, L, weights=weights), fit(*twice)
    assert one.law.a == pytest.approx(other.law.a, rel=1e-5) and one.law.E == pytest.approx(other.law.E, rel=1e-5)


def test_the_optimum_and_the_inversion():
    N, D = TRUTH.optimal(1e21)
    assert 6 * N * D == pytest.approx(1e21)
    around = N * np.exp(np.linspace(-1, 1, 2001))
    assert around[TRUTH.loss(around, 1e21 / 6 / around).argmin()] == pytest.approx(N, rel=2e-3)
    tokens = np.geomspace(1e8, 1e12, 9)
    np.testing.assert_allclose(TRUTH.invert_D(TRUTH.loss(1e9, tokens), 1e9), tokens, rtol=1e-9)
    losses = np.linspace(1.5, 4, 50)
    found = TRUTH.invert_D(losses, 1e9)
    assert np.isinf(found[losses <= TRUTH.E]).all() and not np.isnan(found).any()
    finite = found[np.isfinite(found)]
    assert len(finite) > 10 and (np.diff(finite) < 0).all()
