"""Robust fits in float64: a Huber loss of log residuals, summed, minimised by L-BFGS-B from many starts.

The sum is minimised, not the mean: a mean over runs is so small that L-BFGS stops early, which is the accepted explanation
of the constants of arXiv 2203.15556 (refitted in arXiv 2404.10102). A fit says how many starts found the same
minimum, which bounds hold it, and whether its parameters can be told apart.
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from scipy import optimize

DELTA = 1e-3
SEPARABLE = 1e8  # condition of the Hessian above which parameters are not told apart
AGREE = 1e-3  # relative to the best objective
WANTED = 3  # starts that agree
KEPT = 6  # starts kept for refits: the best and five others
Log = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]  # parameters [P] -> log losses [M], their Jacobian [M, P]


class FitWarning(UserWarning):
    """A fit whose numbers should not be trusted as they are."""


@dataclasses.dataclass(frozen=True)
class Fit:
    """Attributes:
    law: with `loss(*inputs)`.
    objective: sum of Huber losses of the log residuals, divided by delta; for least squares the sum of squares.
    n_agree: starts that ended within 1e-3 (relative) of the best; 3 are wanted.
    starts: how many were tried.
    active_bounds: names of the parameters that lie on a bound.
    hessian_cond: condition of the Gauss-Newton Hessian, columns scaled to unit length and inputs centred.
    residuals: log fitted - log observed, or fitted - observed for least squares [M].
    parameters: how many were fitted.
    warnings: why not to trust it; each was also issued as a FitWarning.
    best_starts: the minimum and five other starts [6, P], what a bootstrap refits from; None if the fit needs no starts.
    """

    law: Any
    objective: float
    n_agree: int
    starts: int
    active_bounds: tuple[str, ...]
    hessian_cond: float
    residuals: np.ndarray = dataclasses.field(repr=False)
    parameters: int
    warnings: tuple[str, ...] = ()
    best_starts: np.ndarray | None = dataclasses.field(default=None, repr=False)


@dataclasses.dataclass(frozen=True)
class Minimum:
    """Attributes:
    theta: parameters at the best end [P].
    order: the starts, best end first [S].
    """

    theta: np.ndarray
    objective: float
    n_agree: int
    order: np.ndarray
    active: tuple[int, ...]
    residuals: np.ndarray
    hessian_cond: float


def minimize(
    log_loss: Log,
    observed: np.ndarray,
    starts: np.ndarray,
    bounds: np.ndarray,
    *,
    delta: float = DELTA,
    weights: np.ndarray | None = None,
) -> Minimum:
    """The best of L-BFGS-B from all starts; a wider Huber loss goes first, as near its kink the narrow one is hard to
    descend from afar.

    Args:
      observed: log losses [M].
      starts: [S, P]; moved inside the bounds.
      bounds: [P, 2].
    """
    w = np.ones(len(observed)) if weights is None else weights
    starts = np.clip(starts, bounds[:, 0], bounds[:, 1])
    ends = []
    for start in starts:
        theta = start
        for width in (30 * delta, delta):
            found = optimize.minimize(
                _huber_sum,
                theta,
                args=(log_loss, observed, w, width),
                jac=True,
                method="L-BFGS-B",
                bounds=bounds,
                options={"maxiter": 2000, "maxfun": 4000, "ftol": 1e-15, "gtol": 1e-11, "maxcor": 20},
            )
            theta = found.x
        ends.append((float(found.fun), theta))
    values = np.array([value for value, _ in ends])
    order = np.argsort(values, kind="stable")
    best, theta = ends[order[0]]
    fitted, jacobian = log_loss(theta)
    span = np.maximum(bounds[:, 1] - bounds[:, 0], 1e-12)
    on = ((theta - bounds[:, 0]) < 1e-6 * span) | ((bounds[:, 1] - theta) < 1e-6 * span)
    # Without noise the best objective is next to 0: there, a log error of about 1e-6 a run is as good.
    agree = int((values <= best * (1 + AGREE) + 1e-9 * len(observed)).sum())
    active = tuple(np.flatnonzero(on).tolist())
    return Minimum(theta, best, agree, order, active, fitted - observed, condition(jacobian * np.sqrt(w)[:, None]))


def huber(residuals: np.ndarray, delta: float = DELTA) -> np.ndarray:
    """r^2 / 2 up to delta, delta (|r| - delta / 2) beyond."""
    size = np.abs(residuals)
    return np.where(size <= delta, size**2 / 2, delta * (size - delta / 2))


def condition(jacobian: np.ndarray) -> float:
    """Condition number of J^T J, the columns of J [M, P] scaled to unit length; inf if one is zero."""
    length = np.linalg.norm(jacobian, axis=0)
    if not np.isfinite(jacobian).all() or (length == 0).any():
        return float("inf")
    values = np.linalg.svd(jacobian / length, compute_uv=False)
    return float((values[0] / values[-1]) ** 2) if values[-1] > 0 and len(jacobian) >= len(length) else float("inf")


def doubts(n_agree: int, starts: int, active: Sequence[str], cond: float) -> list[str]:
    """Why the numbers of a fit should not be trusted."""
    found = []
    if n_agree < min(WANTED, starts):
        found.append(f"{n_agree} of {starts} starts found the best minimum; {WANTED} should: give more starts")
    if active:
        found.append(f"on a bound: {', '.join(active)}")
    if cond > SEPARABLE:
        found.append(
            f"parameters are not identifiable: the Hessian has condition {cond:.1e} (above {SEPARABLE:.0e}); "
            "the runs do not vary in what would tell them apart"
        )
    return found


def issue(found: Sequence[str], stacklevel: int = 3) -> tuple[str, ...]:
    """Warns of each, and returns them."""
    for text in found:
        warnings.warn(text, FitWarning, stacklevel=stacklevel)
    return tuple(found)


def columns(least: int, **given: Any) -> list[np.ndarray]:
    """Columns of equal length as float64 arrays [M].

    Raises:
      ValueError: fewer than `least` runs, unequal lengths, or a value that is not positive and finite; it is named.
    """
    found = {name: np.asarray(x, np.float64) for name, x in given.items()}
    shapes = {name: x.shape for name, x in found.items()}
    if any(len(s) != 1 for s in shapes.values()) or len(set(shapes.values())) != 1:
        raise ValueError(f"need lists of equal length, got shapes {shapes}")
    for name, x in found.items():
        bad = np.flatnonzero(~(np.isfinite(x) & (x > 0)))
        if len(bad):
            raise ValueError(f"{name} must be positive and finite, got {x[bad[0]]} for run {bad[0]}; leave it out")
    count = len(next(iter(found.values())))
    if count < least:
        raise ValueError(f"{least} parameters need at least as many runs, got {count}")
    return list(found.values())


def checked_weights(weights: Any, runs: int) -> np.ndarray | None:
    """Weights [M] scaled to mean 1, so that the objective keeps its size.

    Raises:
      ValueError: another length, a negative or infinite weight, or none above 0.
    """
    if weights is None:
        return None
    w = np.asarray(weights, np.float64)
    if w.shape != (runs,) or not np.isfinite(w).all() or (w < 0).any() or not w.sum():
        raise ValueError(
            f"need {runs} weights of at least 0, some above, got shape {w.shape}: {w.ravel()[:8].tolist()}"
        )
    return w / w.mean()


def _huber_sum(
    theta: np.ndarray, log_loss: Log, observed: np.ndarray, weights: np.ndarray, delta: float
) -> tuple[float, np.ndarray]:
    fitted, jacobian = log_loss(theta)
    r = fitted - observed
    slope = np.clip(r / delta, -1, 1)  # of huber / delta
    value = weights @ (slope * (r - slope * delta / 2))
    return float(value), (weights * slope) @ jacobian
