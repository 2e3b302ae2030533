"""Scaling-law fits: planted laws come back, from noise and from diverged runs too, and a fit says what it cannot know.

Fits here take 8 to 16 starts where the default is 48, and bootstraps 20 to 60 draws where the default is 1000.
"""

# ruff: noqa: SIM300 (E, A, B and C are fitted here, not constants)
from __future__ import annotations

import functools
import warnings

import numpy as np
import pytest
from scipy import stats

from jaxpt import plots
from jaxpt.analysis import scaling_laws as s
from jaxpt.analysis.scaling_laws import mixture as mixtures
from jaxpt.analysis.scaling_laws.asymptote import LearningCurve
from jaxpt.analysis.scaling_laws.repeated import RepeatedLaw
from jaxpt.analysis.scaling_laws.robust import condition, huber

TRUTH = s.BESIROGLU
fit = functools.partial(s.fit_chinchilla, starts=8)


def points(count=245, seed=0):
    """N 4e7 to 1.6e10, C 6e18 to 3e21, both even in logs."""
    rng = np.random.default_rng(seed)
    N = np.exp(rng.uniform(np.log(4e7), np.log(1.6e10), count))
    C = np.exp(rng.uniform(np.log(6e18), np.log(3e21), count))
    return N, C / (6 * N)


def noisy(noise, seed=1):
    N, D = points()
    return N, D, TRUTH.loss(N, D) * np.exp(noise * np.random.default_rng(seed).normal(size=len(N)))


# Chinchilla


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


@pytest.mark.parametrize(
    "change,message",
    [
        (lambda N, D, L: (N[:4], D[:4], L[:4]), "5 parameters need at least as many runs, got 4"),
        (lambda N, D, L: (N, D[1:], L), "equal length"),
        (lambda N, D, L: (N, D, np.where(np.arange(len(L)) == 7, np.nan, L)), "L must be positive .* got nan for run 7"),
        (lambda N, D, L: (-N, D, L), "N must be positive"),
    ],
)  # fmt: skip
def test_runs_that_cannot_be_fitted_are_named(change, message):
    with pytest.raises(ValueError, match=message):
        fit(*change(*noisy(0.0)))


def test_bad_starts_and_weights_are_refused():
    data = noisy(0.0)
    with pytest.raises(ValueError, match="at least one start, got 0"):
        fit(*data, starts=0)
    with pytest.raises(ValueError, match=r"got shape \(3, 4\)"):
        fit(*data, starts=np.zeros((3, 4)))
    with pytest.raises(ValueError, match="need 245 weights"):
        fit(*data, weights=np.ones(3))


def test_the_robust_loss_and_the_condition_by_hand():
    np.testing.assert_allclose(huber(np.array([0.5, -1, 3.0]), 1.0), [0.125, 0.5, 2.5])
    assert condition(np.array([[1e6, 0], [0, 1e-6]])) == pytest.approx(1)  # units of the columns do not count
    assert condition(np.ones((3, 2))) > 1e15 and condition(np.zeros((3, 2))) == np.inf


# Average parameters


@pytest.mark.parametrize("sparsity", [0.0, 0.2, 0.5, 0.8])
def test_the_mean_of_the_cubic_ramp_in_steps(sparsity):
    ramp = s.SparsityRamp(sparsity, unit="step", curve="cubic")
    assert ramp.average == pytest.approx(1 - 0.625 * sparsity, rel=1e-12)
    assert s.average_params(ramp, 1e6, 1000) == pytest.approx(1e6 * (1 - 0.625 * sparsity), rel=1e-6)


@pytest.mark.parametrize(
    "sparsity,average,shares",
    [(0.2, 0.8926, (0.223, 0.498, 0.279)), (0.4, 0.7662, (0.192, 0.489, 0.319)),
     (0.6, 0.6103, (0.153, 0.466, 0.381)), (0.8, 0.3991, (0.100, 0.401, 0.499))],
)  # fmt: skip
def test_phases_of_compute_are_other_shares_of_tokens(sparsity, average, shares):
    ramp = s.SparsityRamp(sparsity)
    assert ramp.average == pytest.approx(average, abs=1e-4) and ramp.phases == pytest.approx(shares, abs=1e-3)
    assert s.average_params(ramp, 1.0, 2000) == pytest.approx(average, abs=1e-4)
    t = (np.arange(20_000) + 0.5) / 20_000
    compute = np.cumsum(ramp(t)) / ramp(t).sum()
    assert compute[int(shares[0] * 20_000)] == pytest.approx(0.25, abs=2e-3)
    assert compute[int((shares[0] + shares[1]) * 20_000)] == pytest.approx(0.75, abs=2e-3)


def test_average_by_tokens_and_bad_schedules():
    def step(f):
        return np.where(f < 0.5, 1.0, 0.5)

    assert s.average_params(step, 10, 4) == 7.5
    assert s.average_params(step, 10, 4, tokens=[3, 3, 1, 1]) == 8.75
    for call, message in (
        (lambda: s.SparsityRamp(1.0), "sparsity < 1"),
        (lambda: s.SparsityRamp(0.5, curve="cubik"), "did you mean 'cubic'"),
        (lambda: s.SparsityRamp(0.5, unit="steps"), "did you mean 'step'"),
        (lambda: s.average_params(lambda f: 2 + f, 10, 4), "density from 0 to 1"),
        (lambda: s.average_params(step, 10, 0), "at least one step"),
    ):
        with pytest.raises(ValueError, match=message):
            call()


def test_dense_runs_predict_sparse_ones_by_the_average_and_not_by_the_final_size():
    noise, rng = 0.003, np.random.default_rng(3)
    grid = np.array([(n, d) for n in np.geomspace(5e7, 2e9, 6) for d in np.geomspace(2e9, 2e11, 5)])
    N, D = grid.T
    dense = fit(N, D, TRUTH.loss(N, D) * np.exp(noise * rng.normal(size=len(N)))).law
    sparse = [(s.SparsityRamp(x), n, d) for x in (0.2, 0.4, 0.6, 0.8) for n, d in grid[::3]]
    nbar = np.array([s.average_params(ramp, n, 400) for ramp, n, _ in sparse])
    final = np.array([n * (1 - ramp.sparsity) for ramp, n, _ in sparse])
    tokens = np.array([d for *_, d in sparse])
    observed = np.log(TRUTH.loss(nbar, tokens))
    right, wrong = (np.log(dense.loss(n, tokens)) - observed for n in (nbar, final))
    assert np.abs(right).mean() < noise and np.abs(wrong).mean() > 5 * np.abs(right).mean()
    assert (wrong > 0).all()  # the final size promises too little


# Repeated data


def test_repeated_data_comes_back():
    truth = RepeatedLaw(TRUTH)
    U = np.repeat([1e8, 4e8, 1.6e9], 12)
    D, N = U * np.tile([1, 1.0, 2, 4, 8, 16], 6), np.tile(np.repeat([2e7, 1e9], 6), 3)
    N, L = N * np.tile([1, 4], 18), truth.loss(N * np.tile([1, 4], 18), D, U)
    found = s.fit_repeated(N, D, U, L, base=TRUTH)
    assert found.law.tokens == pytest.approx(15.4, rel=1e-2) and found.law.parameters == pytest.approx(5.3, rel=1e-2)
    assert found.n_agree >= 3 and found.warnings == ()
    alone = s.fit_repeated(np.full(36, 1e6), D, U, truth.loss(1e6, D, U), base=TRUTH)  # no excess parameters
    assert alone.parameters == 1 and alone.law.parameters == 5.3 and alone.law.tokens == pytest.approx(15.4, rel=1e-2)


def test_repeated_data_in_closed_form_and_what_is_refused():
    law = RepeatedLaw(TRUTH)
    n, d = law.effective(1e6, 4e9, 1e9)
    assert n == 1e6 and d == pytest.approx(1e9 * (1 + 15.4 * (1 - np.exp(-3 / 15.4))))
    assert law.loss(1e6, 5e8, 1e9) == TRUTH.loss(1e6, 5e8)  # nothing is repeated yet
    assert TRUTH.optimal(6 * law.fed(1e10) * 1e10)[1] == pytest.approx(1e10)
    N, D, L = noisy(0.0)
    with pytest.raises(ValueError, match="nothing is repeated"):
        s.fit_repeated(N, D, D, L)
    with pytest.raises(ValueError, match="3 runs have D <= U"):
        s.fit_repeated(N, D, np.where(np.arange(245) < 3, D, D / 2), L)


# Asymptotes


SIZES = np.array([0.15, 0.3, 0.6, 1.4])


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


# Mixtures


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


# How far to trust a law


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


def test_the_picture(tmp_path):
    N = np.geomspace(1, 16, 5)
    law = s.AsymptoteLaw(2.0, 1.5, 0.5)
    x = np.geomspace(1, 64, 50)
    y = law.loss(x)
    path = tmp_path / "deep" / "law.png"
    plots.law(path, {"dense": (N, law.loss(N))}, {"fit": (x, y, y - 0.1, y + 0.1)}, title="t", x="N", y="loss")
    assert path.read_bytes()[:4] == b"\x89PNG" and path.stat().st_size > 5000
