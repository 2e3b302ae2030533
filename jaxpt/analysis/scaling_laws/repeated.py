"""Repeated data: tokens seen again are worth less, and so are parameters beyond what the unique tokens can feed.

    D' = U + U R* (1 - exp(-R / R*)),  R = D / U - 1       L = E + A / N'^a + B / D'^b

Muennighoff et al., arXiv 2305.16264, section 3: U unique tokens, R* about 15.4; N' has the same shape around the N that is
optimal for U tokens, with R* about 5.3.
"""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np

from jaxpt.analysis.scaling_laws import robust
from jaxpt.analysis.scaling_laws.chinchilla import ChinchillaLaw, Numbers, fit_chinchilla
from jaxpt.analysis.scaling_laws.robust import DELTA, Fit

TOKENS, PARAMETERS = 15.4, 5.3  # the paper's R* of each


@dataclasses.dataclass(frozen=True)
class RepeatedLaw:
    """Attributes:
    base: of runs that see every token once.
    tokens, parameters: R* of repeated tokens and of excess parameters.
    """

    base: ChinchillaLaw
    tokens: float = TOKENS
    parameters: float = PARAMETERS

    def loss(self, N: Numbers, D: Numbers, U: Numbers) -> np.ndarray:
        return self.base.loss(*self.effective(N, D, U))

    def effective(self, N: Numbers, D: Numbers, U: Numbers) -> tuple[np.ndarray, np.ndarray]:
        """(N', D') of N parameters that see D tokens, U of them different."""
        N, D, U = (np.asarray(x, np.float64) for x in (N, D, U))
        unique = np.minimum(U, D)
        fed = np.minimum(self.fed(unique), N)
        return _saturating(N, fed, self.parameters), _saturating(D, unique, self.tokens)

    def fed(self, U: Numbers) -> np.ndarray:
        """The N for which U tokens are compute-optimal."""
        law = self.base
        return (law.a * law.A / (law.b * law.B) * np.asarray(U, np.float64) ** law.b) ** (1 / law.a)


def fit_repeated(
    N: Numbers,
    D: Numbers,
    U: Numbers,
    L: Numbers,
    *,
    base: ChinchillaLaw | None = None,
    delta: float = DELTA,
    weights: Numbers | None = None,
    starts: np.ndarray | None = None,
) -> Fit:
    """The two R*, on top of a law of single passes, as in the paper; an R* that no run depends on keeps the paper's value.

    Args:
      U: unique tokens of each run [M].
      base: fitted on the runs with D <= U if None.
      starts: (log R* of tokens, log R* of parameters) [S, 2]; 16 by default.

    Raises:
      ValueError: no run repeats tokens, fewer than 5 single passes without `base`, or values that are not positive.
    """
    N, D, U, L = robust.columns(2, N=N, D=D, U=U, L=L)
    weights = robust.checked_weights(weights, len(L))
    once = D <= U
    if once.all():
        raise ValueError("no run has D > U: nothing is repeated")
    if base is None:
        if once.sum() < 5:
            raise ValueError(f"{once.sum()} runs have D <= U; give `base`, or at least 5 of them")
        of_once = None if weights is None else weights[once]
        base = fit_chinchilla(N[once], D[once], L[once], delta=delta, weights=of_once).law
    law = RepeatedLaw(base)
    names = ["tokens", *(["parameters"] if (law.fed(np.minimum(U, D)) < N).any() else [])]
    if starts is None:
        starts = np.log(list(itertools.product((1.0, 5.0, 15.0, 50.0), repeat=2)))
    first = np.unique(np.asarray(starts, np.float64)[:, : len(names)], axis=0)
    bounds = np.log([[0.05, 1000.0]] * len(names))

    def log_loss(theta: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        def at(t: np.ndarray) -> np.ndarray:
            one = dataclasses.replace(law, **dict(zip(names, np.exp(t).tolist(), strict=True)))
            return np.log(one.loss(N, D, U))

        steps = 1e-5 * np.eye(len(names))
        return at(theta), np.stack([(at(theta + h) - at(theta - h)) / 2e-5 for h in steps], 1)

    found = robust.minimize(log_loss, np.log(L), first, bounds, delta=delta, weights=weights)
    active = tuple(names[i] for i in found.active)
    notes = robust.issue(robust.doubts(found.n_agree, len(first), active, found.hessian_cond))
    fitted = dataclasses.replace(law, **dict(zip(names, np.exp(found.theta).tolist(), strict=True)))
    kept = np.concatenate([found.theta[None], first[found.order[1 : robust.KEPT]]])
    kept = np.concatenate([kept, np.full((len(kept), 2 - len(names)), np.log(PARAMETERS))], 1)
    return Fit(
        fitted,
        found.objective,
        found.n_agree,
        len(first),
        active,
        found.hessian_cond,
        found.residuals,
        len(names),
        notes,
        kept,
    )


def _saturating(total: np.ndarray, unique: np.ndarray, scale: float) -> np.ndarray:
    return unique * (1 - scale * np.expm1(-(total / unique - 1) / scale))
