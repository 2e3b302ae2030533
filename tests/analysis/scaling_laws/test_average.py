"""Average parameters: of a schedule of sparsity, by steps and by tokens, and as what predicts a sparse run."""

from __future__ import annotations

import numpy as np
import pytest
from planted import TRUTH, fit

from jaxpt.analysis import scaling_laws as s


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
