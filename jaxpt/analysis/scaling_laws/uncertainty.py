"""How far a fitted law can be trusted: bootstraps, extrapolation to the largest runs, and forms against each other.

    found = bootstrap(fit_chinchilla, (N, D, L), n=1000)          # over runs; with sd=0.003, over seeds instead
    found.interval("a"), found.interval(lambda law: law.loss(1e9, 2e10))
    holdout_extrapolation(fit_chinchilla, (N, D, L)).huber        # the number that matters
    compare({"N": fit_chinchilla, "no N": fit_tokens_only}, (N, D, L))

A fit function takes the columns of the runs, the loss last, and returns a `Fit`; bind options with functools.partial.
Functions that take several inputs of two dimensions (mixtures) work as they are: rows are runs.
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from jaxpt.analysis.scaling_laws import robust
from jaxpt.analysis.scaling_laws.robust import DELTA, Fit, FitWarning

FitFn = Callable[..., Fit]
Numbers = Any


@dataclasses.dataclass(frozen=True)
class Bootstrap:
    """Attributes:
    fit: of the runs as they are.
    laws: of the resamples.
    failed: resamples with too few different runs, which have no law.
    """

    fit: Fit
    laws: tuple[Any, ...]
    failed: int

    def values(self, of: str | Callable[[Any], Any]) -> np.ndarray:
        """A parameter by name, or any function of the law, for each resample."""
        return np.array([getattr(law, of) if isinstance(of, str) else of(law) for law in self.laws], np.float64)

    def interval(self, of: str | Callable[[Any], Any], level: float = 0.9) -> tuple[Any, Any]:
        """Percentile interval of a parameter, or of a number or array that a function makes of the law."""
        low, high = np.quantile(self.values(of), [(1 - level) / 2, (1 + level) / 2], axis=0)
        return low, high


@dataclasses.dataclass(frozen=True)
class Holdout:
    """Attributes:
    fit: on the smaller runs.
    held: indices of the largest.
    errors: log predicted - log observed of those.
    huber: mean Huber loss of the errors.
    """

    fit: Fit
    held: np.ndarray
    errors: np.ndarray
    huber: float


@dataclasses.dataclass(frozen=True)
class Compared:
    """Attributes:
    aicc: of log residuals of the fit to all runs; lower is better, and only differences mean something.
    held_out: mean Huber loss on the largest runs, from a fit to the others.
    """

    parameters: int
    aicc: float
    held_out: float


def bootstrap(
    fit_fn: FitFn, data: Sequence[Numbers], n: int = 1000, seed: int = 0, *, sd: Numbers | None = None
) -> Bootstrap:
    """Refits of resampled runs, or of the same runs with the noise of other seeds.

    Each refit starts from the minimum of the whole and five other starts, where the form needs starts.

    Args:
      data: columns of the runs [M, ...], the loss last.
      sd: standard deviation of the loss over seeds, a number or [M]. With few points this is the one to use.

    Raises:
      ValueError: n is 0, or no resample could be fitted.
    """
    columns = [np.asarray(c, np.float64) for c in data]
    if n < 1:
        raise ValueError(f"need at least one resample, got n={n}")
    whole = fit_fn(*columns)
    again = {} if whole.best_starts is None else {"starts": whole.best_starts}
    rng = np.random.default_rng(seed)
    runs = len(columns[-1])
    laws, failure, failed = [], "", 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FitWarning)
        for _ in range(n):
            if sd is None:
                rows = rng.integers(runs, size=runs)
                drawn = [c[rows] for c in columns]
            else:
                drawn = [*columns[:-1], columns[-1] + rng.normal(size=runs) * np.asarray(sd, np.float64)]
            try:
                laws.append(fit_fn(*drawn, **again).law)
            except ValueError as error:
                failed, failure = failed + 1, str(error)
    if not laws:
        raise ValueError(f"none of {n} resamples of {runs} runs could be fitted: {failure}")
    return Bootstrap(whole, tuple(laws), failed)


def holdout_extrapolation(
    fit_fn: FitFn,
    data: Sequence[Numbers],
    frac: float = 0.2,
    *,
    cost: Numbers | None = None,
    delta: float = DELTA,
) -> Holdout:
    """Fits the cheaper runs and predicts the dearest.

    Args:
      frac: share of the runs to hold out, at least one.
      cost: of each run [M]; the product of the inputs if None, which orders (N, D) by compute.

    Raises:
      ValueError: nothing is left to fit, or inputs of two dimensions without `cost`.
    """
    columns = [np.asarray(c, np.float64) for c in data]
    if cost is None and any(c.ndim != 1 for c in columns):
        raise ValueError("give `cost`: inputs of two dimensions have no order")
    price = np.prod(np.stack(columns[:-1]), 0) if cost is None else np.asarray(cost, np.float64)
    runs = len(columns[-1])
    count = max(1, round(frac * runs))
    if price.shape != (runs,) or not 0 < frac < 1 or count >= runs:
        raise ValueError(f"cannot hold out {frac} of {runs} runs with costs of shape {price.shape}")
    order = np.argsort(price, kind="stable")
    rest, held = np.sort(order[:-count]), np.sort(order[-count:])
    fit = fit_fn(*(c[rest] for c in columns))
    errors = _log_errors(fit.law, [c[held] for c in columns])
    return Holdout(fit, held, errors, float(robust.huber(errors, delta).mean()))


def compare(
    forms: Mapping[str, FitFn], data: Sequence[Numbers], frac: float = 0.2, *, cost: Numbers | None = None
) -> dict[str, Compared]:
    """Forms by AICc and by held-out error on the dearest runs; the second decides.

    Raises:
      ValueError: as `holdout_extrapolation` and `aicc`.
    """
    found = {}
    for name, fit_fn in forms.items():
        fit = fit_fn(*data)
        errors = _log_errors(fit.law, [np.asarray(c, np.float64) for c in data])
        held = holdout_extrapolation(fit_fn, data, frac, cost=cost).huber
        found[name] = Compared(fit.parameters, aicc(errors, fit.parameters), held)
    return found


def aicc(residuals: Numbers, parameters: int) -> float:
    """Akaike's criterion for small samples, Gaussian residuals whose variance is one more parameter.

    Raises:
      ValueError: fewer than parameters + 3 residuals.
    """
    r = np.asarray(residuals, np.float64)
    n, k = len(r), parameters + 1
    if n - k - 1 < 1:
        raise ValueError(f"AICc of {parameters} parameters needs at least {parameters + 3} runs, got {n}")
    return float(n * np.log(np.mean(r**2) + 1e-300) + 2 * k + 2 * k * (k + 1) / (n - k - 1))


def _log_errors(law: Any, columns: list[np.ndarray]) -> np.ndarray:
    """log predicted - log observed; a prediction that is not positive counts as 1e-12."""
    return np.log(np.maximum(law.loss(*columns[:-1]), 1e-12)) - np.log(columns[-1])
