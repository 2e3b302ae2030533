"""Laws of mixtures: every form comes back, ranks mixtures and finds the best."""

from __future__ import annotations

import functools

import numpy as np
import pytest
from scipy import stats

from jaxpt.analysis import scaling_laws as s
from jaxpt.analysis.scaling_laws import mixture as mixtures


def domains(r):
    """Losses of 4 domains [M, 4], each helped most by its own text. With slopes of 0.8 to 1.9 the minimum is so flat that
    noise of 1% moves the optimum by 0.08 to 0.15."""
    t = np.full((4, 4), -0.2) + np.diag([-4.0, -3.5, -4.0, -3.0])
    return np.array([1.0, 1.4, 1.8, 2.2]) + np.array([2.0, 2.0, 2.0, 1.8]) * np.exp(r @ t.T)


@functools.cache
def mixture_fits():
    r = s.mixture_design(np.full(4, 0.25), 60)
    y = domains(r) * np.exp(0.01 * np.random.default_rng(5).normal(size=(60, 4)))
    return r, y, tuple(s.fit_mixture(r, y[:, j]).law for j in range(4))


def test_an_exponential_law_of_mixtures_ranks_and_finds_the_optimum():
    r, y, laws = mixture_fits()
    law = s.Average(laws)
    held = np.random.default_rng(6).dirichlet(np.ones(4), 200)
    truth = domains(held).mean(1)
    assert stats.spearmanr(law.loss(held), truth)[0] > 0.95
    fine = np.random.default_rng(7).dirichlet(np.full(4, 2.0), 200_000)
    best = fine[domains(fine).mean(1).argmin()]
    weights, loss = law.argmin_simplex()
    assert weights.sum() == pytest.approx(1) and loss == pytest.approx(float(law.loss(weights)))
    assert np.abs(weights - best).sum() < 0.05
    linear = s.fit_mixture(r, y.mean(1), "linear").law
    near = np.maximum(best + 0.08 * np.random.default_rng(8).normal(size=(200, 4)), 1e-3)
    near /= near.sum(1, keepdims=True)
    ranks = [stats.spearmanr(x.loss(near), domains(near).mean(1))[0] for x in (law, linear)]
    assert ranks[0] > ranks[1] + 0.1
    assert linear.argmin_simplex()[0].max() == 1  # a linear law has its optimum in a corner


def test_every_form_comes_back_and_its_slope_is_its_derivative():
    rng = np.random.default_rng(0)
    r = s.mixture_design([0.5, 0.3, 0.2], 60, corners=False)
    size = rng.choice([1e6, 4e6, 1.6e7], 60)
    laws = {
        "exponential": mixtures.Exponential(1.5, (-0.5, 0.2, 0.6)),
        "additive power": mixtures.AdditivePower(1.2, (20.0, 5.0, 40.0), (0.3, 0.2, 0.35)),
        "linear": mixtures.Linear((2.0, 2.5, 3.0)),
        "log-linear": mixtures.Linear((0.2, 0.5, 0.9), log=True),
        "bilinear": mixtures.Linear((4.0, 5.0, 6.0), (-0.1, -0.12, -0.2)),
    }
    for form, law in laws.items():
        sized = {"size": size} if form in ("additive power", "bilinear") else {}
        found = s.fit_mixture(r, law.loss(r, **sized), form, **sized)
        held = rng.dirichlet(np.full(3, 3.0), 50)
        np.testing.assert_allclose(found.law.loss(held, 8e6), law.loss(held, 8e6), rtol=2e-3, err_msg=form)
        h = 1e-6 * np.eye(3)
        numeric = np.stack([(law.loss(held + e, 8e6) - law.loss(held - e, 8e6)) / 2e-6 for e in h], -1)
        np.testing.assert_allclose(law.slope(held, 8e6), numeric, rtol=1e-5, atol=1e-7, err_msg=form)
        weights, loss = law.argmin_simplex(size=8e6)
        fine = rng.dirichlet(np.ones(3), 20_000)
        assert loss <= law.loss(fine, 8e6).min() + 1e-9 and weights.sum() == pytest.approx(1), form


def test_designs_and_mixtures_that_are_none():
    design = s.mixture_design([3, 1], 20)
    np.testing.assert_allclose(design.sum(1), 1)
    np.testing.assert_allclose(design[:3], [[0.75, 0.25], [1, 0], [0, 1]])
    y = np.linspace(2, 3, 20)
    with pytest.warns(s.FitWarning, match="4 runs for 2 parameters; 10 are wanted"):
        s.fit_mixture(design[:4], y[:4], "linear")
    with pytest.warns(s.FitWarning, match="not identifiable"):
        s.fit_mixture(np.full((20, 2), 0.5), y, "linear")
    for call, message in (
        (lambda: s.fit_mixture(design, y, "expo"), "did you mean 'exponential'"),
        (lambda: s.fit_mixture(design, y, "bilinear"), "needs size"),
        (lambda: s.fit_mixture(design, y, "linear", size=3), "takes no size"),
        (lambda: s.fit_mixture(2 * design, y, "linear"), "row 0 is not a mixture"),
        (lambda: s.fit_mixture(design, y, "additive power", size=1e6), "no loss at weight 0, as in row 1"),
        (lambda: s.fit_mixture(design[:5], y, "linear"), "need r .runs, domains., at least 2"),
        (lambda: s.mixture_design([1, 1], 2), "3 runs, more than 2"),
    ):
        with pytest.raises(ValueError, match=message):
            call()
