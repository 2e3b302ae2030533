"""Repeated data: a planted decay of what an epoch is worth comes back."""

from __future__ import annotations

import numpy as np
import pytest
from planted import TRUTH, noisy

from jaxpt.analysis import scaling_laws as s
from jaxpt.analysis.scaling_laws.repeated import RepeatedLaw


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
