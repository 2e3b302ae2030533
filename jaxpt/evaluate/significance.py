"""Is a difference one? Intervals and tests for runs, for items, and for both; closed forms wherever there are any.

    interval = paired(differences)               # one number per run: mean, sd, t-interval, exact sign-flip p
    claim(differences, baseline_values)          # may it be claimed, and why (not)
    mcnemar(a.per_item["correct"], b.per_item["correct"])
    bootstrap_ratio(nats, bytes)                 # bits per byte with documents as clusters

The unit of replication of a claim about training is the run; items compare two fixed models. P-values are two-sided.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Sequence

import numpy as np
from scipy import stats

Numbers = Sequence[float] | np.ndarray
EXACT = 20  # pairs up to which all 2^n sign flips are listed
TIE = 1e-12  # relative rounding below which two sums are equal


@dataclasses.dataclass(frozen=True)
class Interval:
    """A paired comparison over S runs.

    Attributes:
      sd: of the differences, with S - 1 degrees of freedom.
      low, high: t-interval of the mean.
      p: of the exact sign-flip test; with S = 5 it cannot be below 1/16.
      detectable: the smallest true difference such an experiment would mostly find, 2.8 sd / sqrt(S).
    """

    mean: float
    sd: float
    low: float
    high: float
    runs: int
    p: float
    detectable: float


@dataclasses.dataclass(frozen=True)
class Verdict:
    """Whether a difference may be claimed, in which direction, and the rule that decided."""

    claimed: bool
    sign: int
    why: str


def paired(differences: Numbers, level: float = 0.95) -> Interval:
    """The mean paired difference with its t-interval.

    Raises:
      ValueError: fewer than two runs, or a number that is not finite.
    """
    d = _checked(differences, "differences", 2)
    mean, sd = float(d.mean()), float(d.std(ddof=1))
    half = float(stats.t.ppf((1 + level) / 2, len(d) - 1)) * sd / math.sqrt(len(d))
    return Interval(mean, sd, mean - half, mean + half, len(d), sign_flip(d), minimum_detectable(sd, len(d)))


def minimum_detectable(sd: float, runs: int) -> float:
    """2.8 sd / sqrt(S): the difference found with a power of about 80% at the 5% level (normal approximation)."""
    return 2.8 * sd / math.sqrt(runs)


def sign_flip(differences: Numbers, draws: int = 100_000, seed: int = 0) -> float:
    """P of a mean as far from 0 if each difference could as well have had the other sign.

    Exact up to 20 differences; above, `draws` random flips, the given one counted.
    """
    d = _checked(differences, "differences", 1)
    bound = abs(d.sum()) - TIE * np.abs(d).sum()
    if len(d) <= EXACT:
        sums = np.zeros(1)
        for x in d:
            sums = np.concatenate([sums - x, sums + x])
        return float((np.abs(sums) >= bound).mean())
    signs = np.random.default_rng(seed).choice([-1.0, 1.0], (draws, len(d)))
    return float((1 + (np.abs(signs @ d) >= bound).sum()) / (1 + draws))


def claim(differences: Numbers, baseline: Numbers) -> Verdict:
    """From five runs on: the t-interval leaves out 0. With three or four: all signs agree, and the mean is above 2 sd of
    the baseline's runs. With fewer there is no claim.

    Args:
      differences: arm - baseline, paired by seed.
      baseline: values of the baseline's runs.
    """
    d, base = _checked(differences, "differences", 1), _checked(baseline, "baseline values", 1)
    sign = int(np.sign(d.mean()))
    if len(d) < 3:
        return Verdict(False, sign, f"{len(d)} runs; at least 3 are needed")
    if len(d) >= 5:
        found = paired(d)
        return Verdict(
            found.low > 0 or found.high < 0,
            sign,
            f"95% t-interval {found.low:.4g} to {found.high:.4g} of {len(d)} runs",
        )
    agree, bound = bool((np.sign(d) == sign).all()), 2 * float(base.std(ddof=1))
    why = f"{len(d)} runs, signs {'agree' if agree else 'differ'}, |mean| {abs(d.mean()):.4g} against 2 sd {bound:.4g}"
    return Verdict(agree and sign != 0 and abs(d.mean()) > bound, sign, why)


def mcnemar(a: Sequence[bool] | np.ndarray, b: Sequence[bool] | np.ndarray) -> float:
    """Exact two-sided p that two models are right equally often: binomial on the items where just one is right.

    Raises:
      ValueError: different numbers of items, or anything but right and wrong (ties of 0.5 have to be left out).
    """
    x, y = np.asarray(a, np.float64), np.asarray(b, np.float64)
    if x.shape != y.shape or x.ndim != 1 or not np.isin([*x, *y], (0, 1)).all():
        raise ValueError(f"McNemar's test needs two equally long lists of 0 and 1, got shapes {x.shape} and {y.shape}")
    only_a, only_b = int((x > y).sum()), int((y > x).sum())
    return float(stats.binomtest(only_a, only_a + only_b).pvalue) if only_a + only_b else 1.0


def bootstrap_mean(
    values: Numbers,
    *,
    clusters: Sequence[object] | None = None,
    draws: int = 10_000,
    seed: int = 0,
    level: float = 0.95,
) -> tuple[float, float, float]:
    """(mean, low, high) by resampling items, or whole clusters of them. Give differences for a paired bootstrap."""
    x = _checked(values, "values", 1)
    return bootstrap_ratio(x, np.ones(len(x)), clusters=clusters, draws=draws, seed=seed, level=level)


def bootstrap_ratio(
    numerator: Numbers,
    denominator: Numbers,
    *,
    clusters: Sequence[object] | None = None,
    draws: int = 10_000,
    seed: int = 0,
    level: float = 0.95,
) -> tuple[float, float, float]:
    """(ratio of sums, low, high) by resampling documents, or whole clusters of them (percentile interval).

    With a difference of nats as the numerator it is the paired bootstrap of two models.
    """
    sums = _cluster_sums(numerator, denominator, clusters)
    rng = np.random.default_rng(seed)
    ratios = np.concatenate([_resampled(sums, rng, n) for n in _pieces(draws, sums.shape[1])])
    low, high = np.quantile(ratios, [(1 - level) / 2, (1 + level) / 2])
    return float(sums[0].sum() / sums[1].sum()), float(low), float(high)


def crossed_bootstrap(
    differences: np.ndarray, *, draws: int = 10_000, seed: int = 0, level: float = 0.95
) -> tuple[float, float, float]:
    """(mean, low, high) of differences [runs, items] with runs and items both resampled."""
    d = np.asarray(differences, np.float64)
    if d.ndim != 2 or not d.size or not np.isfinite(d).all():
        raise ValueError(f"differences [runs, items] must be finite, got shape {d.shape}")
    rng = np.random.default_rng(seed)
    runs, items = d.shape
    means = []
    for n in _pieces(draws, items):
        of_runs = rng.multinomial(runs, np.full(runs, 1 / runs), n)
        of_items = rng.multinomial(items, np.full(items, 1 / items), n)
        means.append(np.einsum("nr,ri,ni->n", of_runs, d, of_items, optimize=True) / (runs * items))
    low, high = np.quantile(np.concatenate(means), [(1 - level) / 2, (1 + level) / 2])
    return float(d.mean()), float(low), float(high)


def holm(p_values: Numbers) -> np.ndarray:
    """Adjusted p-values of a table of tests (Holm's step-down), in the given order."""
    p = _checked(p_values, "p-values", 1)
    if (p < 0).any() or (p > 1).any():
        raise ValueError(f"p-values lie between 0 and 1, got {p.tolist()}")
    order = np.argsort(p, kind="stable")
    steps = np.maximum.accumulate((len(p) - np.arange(len(p))) * p[order])
    found = np.empty_like(p)
    found[order] = np.minimum(steps, 1)
    return found


def stratified_mcnemar(a: np.ndarray, b: np.ndarray, strata: Sequence[str]) -> dict[str, float]:
    """McNemar's p by stratum (phenomenon), adjusted by Holm over the strata."""
    names = sorted(set(strata))
    where = np.asarray(strata)
    adjusted = holm([mcnemar(np.asarray(a)[where == n], np.asarray(b)[where == n]) for n in names])
    return dict(zip(names, adjusted.tolist(), strict=True))


def _cluster_sums(numerator: Numbers, denominator: Numbers, clusters: Sequence[object] | None) -> np.ndarray:
    """[2, clusters]"""
    x, y = _checked(numerator, "numerators", 1), _checked(denominator, "denominators", 1)
    if len(x) != len(y) or not (y > 0).all():
        raise ValueError(f"need as many positive denominators as numerators, got {len(y)} for {len(x)}")
    if clusters is None:
        return np.stack([x, y])
    if len(clusters) != len(x):
        raise ValueError(f"need one cluster per item, got {len(clusters)} for {len(x)}")
    number = {name: i for i, name in enumerate(dict.fromkeys(clusters))}
    index = np.array([number[c] for c in clusters])
    return np.stack([np.bincount(index, v, len(number)) for v in (x, y)])


def _resampled(sums: np.ndarray, rng: np.random.Generator, draws: int) -> np.ndarray:
    n = sums.shape[1]
    counts = rng.multinomial(n, np.full(n, 1 / n), draws)
    return (counts @ sums[0]) / (counts @ sums[1])


def _pieces(draws: int, items: int) -> list[int]:
    """Draws in pieces whose counts fit in memory."""
    size = max(1, 2**24 // max(items, 1))
    return [min(size, draws - start) for start in itertools.islice(itertools.count(0, size), -(-draws // size))]


def _checked(values: Numbers, what: str, least: int) -> np.ndarray:
    x = np.asarray(values, np.float64)
    if x.ndim != 1 or len(x) < least or not np.isfinite(x).all():
        raise ValueError(
            f"need at least {least} finite {what} in a list, got shape {x.shape}: {x.ravel()[:8].tolist()}"
        )
    return x
