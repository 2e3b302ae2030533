"""L(N, D) = E + A / N^a + B / D^b (Hoffmann et al., arXiv 2203.15556, approach 3; Besiroglu et al., arXiv 2404.10102).

    fit = fit_chinchilla(N, D, L)                    # one entry a run, at the end of its own schedule
    fit.law.loss(1e9, 2e10), fit.law.optimal(1e21)   # nats per token; parameters and tokens
    fit_chinchilla(nbar, D, L)                       # The Journey Matters: nbar from `average_params`

Exclude runs that did not finish their decay, and count N by one rule (at small sizes, embeddings change a and E).
"""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

import numpy as np

from jaxpt.analysis.scaling_laws import robust
from jaxpt.analysis.scaling_laws.robust import DELTA, Fit

Numbers = Any  # a number or an array; results have the broadcast shape, float64
NAMES = ("A", "B", "E", "a", "b")


@dataclasses.dataclass(frozen=True)
class ChinchillaLaw:
    """E + A / N^a + B / D^b; N parameters, D tokens, losses in the unit of those fitted."""

    E: float
    A: float
    B: float
    a: float
    b: float

    def loss(self, N: Numbers, D: Numbers) -> np.ndarray:
        N, D = np.asarray(N, np.float64), np.asarray(D, np.float64)
        return self.E + self.A * N**-self.a + self.B * D**-self.b

    def optimal(self, C: Numbers) -> tuple[np.ndarray, np.ndarray]:
        """(N, D) of the lowest loss at C = 6 N D FLOPs."""
        ratio = (self.a * self.A / (self.b * self.B)) ** (1 / (self.a + self.b))
        product = np.asarray(C, np.float64) / 6
        return ratio * product**self.exponent, product ** (1 - self.exponent) / ratio

    @property
    def exponent(self) -> float:
        """Of compute in the optimal N: b / (a + b)."""
        return self.b / (self.a + self.b)

    def invert_D(self, L: Numbers, N: Numbers) -> np.ndarray:  # noqa: N802
        """Tokens at which a model of N parameters has loss L; inf where it never gets there."""
        gap = np.asarray(L, np.float64) - self.E - self.A * np.asarray(N, np.float64) ** -self.a
        with np.errstate(divide="ignore", over="ignore"):
            return np.where(gap > 0, (self.B / np.where(gap > 0, gap, 1.0)) ** (1 / self.b), np.inf)


HOFFMANN = ChinchillaLaw(1.69, 406.4, 410.7, 0.34, 0.28)
BESIROGLU = ChinchillaLaw(1.8172, 482.01, 2085.43, 0.3478, 0.3658)


def fit_chinchilla(
    N: Numbers,
    D: Numbers,
    L: Numbers,
    *,
    delta: float = DELTA,
    starts: int | np.ndarray = 48,
    weights: Numbers | None = None,
) -> Fit:
    """The law of the smallest sum of Huber losses of log residuals.

    Args:
      N, D, L: parameters, tokens, loss of each run [M], in any units.
      delta: of the Huber loss, in log loss. Runs that are off by more than this pull with a constant force.
      starts: how many of the 432 combinations of exponents and shares of the loss at the centre of the data to start from (a
        fixed sample), or parameters (log A, log B, log E, a, b) [S, 5], such as `published_starts()`.
      weights: of the runs [M], for example 1 / variance over seeds.

    Raises:
      ValueError: fewer than 5 runs, or a value that is not positive and finite.
    """
    N, D, L = robust.columns(5, N=N, D=D, L=L)
    centred = Centred(np.log(N), np.log(D), np.log(L))
    first = centred.grid(starts) if isinstance(starts, int) else centred.inward(np.asarray(starts, np.float64))
    w = robust.checked_weights(weights, len(L))
    found = robust.minimize(centred.log_loss, centred.y, first, centred.bounds, delta=delta, weights=w)
    active = tuple(NAMES[i] for i in found.active)
    notes = robust.issue(robust.doubts(found.n_agree, len(first), active, found.hessian_cond))
    kept = np.concatenate([found.theta[None], first[found.order[1 : robust.KEPT]]])
    a0, b0, e0, a, b = centred.outward(found.theta[None])[0]
    law = ChinchillaLaw(float(np.exp(e0)), float(np.exp(a0)), float(np.exp(b0)), float(a), float(b))
    return Fit(
        law,
        found.objective,
        found.n_agree,
        len(first),
        active,
        found.hessian_cond,
        found.residuals,
        5,
        notes,
        centred.outward(kept),
    )


def published_starts() -> np.ndarray:
    """The grid of arXiv 2203.15556, appendix D.3, as (log A, log B, log E, a, b) [4500, 5]; N and D in ones."""
    exponents, logs = (0.0, 0.5, 1.0, 1.5, 2.0), (0.0, 5.0, 10.0, 15.0, 20.0, 25.0)
    return np.array(list(itertools.product(logs, logs, (-1.0, -0.5, 0.0, 0.5, 1.0), exponents, exponents)))


class Centred:
    """The fit in log N and log D less their means: units do not count, and L-BFGS meets a better-conditioned problem.

    Parameters: logs of the three terms at the centre (N, D, constant), a, b.
    """

    def __init__(self, n: np.ndarray, d: np.ndarray, y: np.ndarray) -> None:
        self.mean_n, self.mean_d, self.mean_y = float(n.mean()), float(d.mean()), float(y.mean())
        self.n, self.d, self.y = n - self.mean_n, d - self.mean_d, y
        low, high = self.mean_y - 15.0, self.mean_y + 3.0
        self.bounds = np.array([[low, high], [low, high], [low, high], [0.0, 3.0], [0.0, 3.0]])

    def log_loss(self, theta: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        a0, b0, e0, a, b = theta
        terms = np.stack([a0 - a * self.n, b0 - b * self.d, np.full_like(self.n, e0)])
        top = terms.max(0)
        shares = np.exp(terms - top)
        total = shares.sum(0)
        shares /= total
        return top + np.log(total), np.stack([*shares, -shares[0] * self.n, -shares[1] * self.d], 1)

    def grid(self, count: int) -> np.ndarray:
        """`count` of 432 starts [S, 5]; the first are the same for any count."""
        if count < 1:
            raise ValueError(f"a fit needs at least one start, got {count}")
        shares, exponents = np.log([0.05, 0.2, 0.6]) + self.mean_y, (0.15, 0.35, 0.7, 1.2)
        constants = np.log([0.2, 0.5, 0.85]) + self.mean_y
        every = np.array(list(itertools.product(shares, shares, constants, exponents, exponents)))
        return every[np.random.default_rng(0).permutation(len(every))[:count]]

    def inward(self, raw: np.ndarray) -> np.ndarray:
        """From (log A, log B, log E, a, b) [S, 5]."""
        if raw.ndim != 2 or raw.shape[1] != 5 or not len(raw) or not np.isfinite(raw).all():
            raise ValueError(f"starts are (log A, log B, log E, a, b) a row, finite; got shape {raw.shape}")
        shift = np.stack([raw[:, 3] * self.mean_n, raw[:, 4] * self.mean_d], 1)
        return np.concatenate([raw[:, :2] - shift, raw[:, 2:]], 1)

    def outward(self, theta: np.ndarray) -> np.ndarray:
        """To (log A, log B, log E, a, b) [S, 5]."""
        shift = np.stack([theta[:, 3] * self.mean_n, theta[:, 4] * self.mean_d], 1)
        return np.concatenate([theta[:, :2] + shift, theta[:, 2:]], 1)
