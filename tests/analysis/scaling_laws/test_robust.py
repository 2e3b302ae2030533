"""What all fits share: the robust loss and the condition by hand, and runs, starts and weights that are refused."""

from __future__ import annotations

import numpy as np
import pytest
from planted import fit, noisy

from jaxpt.analysis.scaling_laws.robust import condition, huber


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
