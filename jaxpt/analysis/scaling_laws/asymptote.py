"""L(x) = C + A / x^B, with x = N, D, steps or ensemble members: what is left at the end of an axis.

    fit = fit_asymptote(N, L, sd=0.002)           # sd over seeds, in the unit of L
    fit.law.C, fit.interval                       # never the one without the other
    fit.law.invert(loss)                          # x of that loss: data efficiency; inf below C

Given B the law is linear: (C, A) >= 0 are a non-negative least-squares solution, so the fit is a search over B alone, and
its profile (the sum of squares for each B) shows what 4 to 6 points can say about it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from scipy import optimize, stats

from jaxpt.analysis.scaling_laws import robust
from jaxpt.analysis.scaling_laws.robust import Fit

Numbers = Any
B_GRID = tuple(np.geomspace(0.05, 5, 49).tolist())  # has the starts .25, .5, 1, 2 between its points
LEVEL = 0.9  # of intervals: 5% to 95%
Features = Callable[[float], np.ndarray]  # B -> [M, 2 or 3], the first column of ones


@dataclasses.dataclass(frozen=True)
class AsymptoteLaw:
    """C + A / x^B."""

    C: float
    A: float
    B: float

    def loss(self, x: Numbers) -> np.ndarray:
        return self.C + self.A * np.asarray(x, np.float64) ** -self.B

    def invert(self, L: Numbers) -> np.ndarray:
        """The x of loss L; inf at or below the asymptote."""
        gap = np.asarray(L, np.float64) - self.C
        with np.errstate(divide="ignore", over="ignore"):
            return np.where(gap > 0, (self.A / np.where(gap > 0, gap, 1.0)) ** (1 / self.B), np.inf)


@dataclasses.dataclass(frozen=True)
class LearningCurve:
    """C + A / t^B - drop * annealed, where annealed = 1 - rate / peak rate goes from 0 to 1 in the decay."""

    C: float
    A: float
    B: float
    drop: float

    def loss(self, t: Numbers, annealed: Numbers) -> np.ndarray:
        return self.C + self.A * np.asarray(t, np.float64) ** -self.B - self.drop * np.asarray(annealed, np.float64)


@dataclasses.dataclass(frozen=True)
class AsymptoteFit(Fit):
    """Attributes:
    interval: of C, 5% to 95%.
    profile: (B, smallest sum of squares with it) [G, 2].
    """

    interval: tuple[float, float] = (0.0, float("inf"))
    profile: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros((0, 2)), repr=False)


def fit_asymptote(
    x: Numbers,
    y: Numbers,
    B_grid: Sequence[float] = B_GRID,
    *,
    sd: Numbers | None = None,
    weights: Numbers | None = None,
    draws: int = 200,
    seed: int = 0,
) -> AsymptoteFit:
    """Bounded least squares of A, B, C >= 0.

    Args:
      x, y: [M], positive.
      B_grid: exponents of the profile; minima are refined between neighbours. One exponent is kept as it is (1 for
        ensemble members).
      sd: standard deviation of y over seeds, a number or [M]: the interval of C is then that of `draws` refits with such
        noise. Without it, it is the profile interval with the residuals' own size, which needs more points than parameters.
      weights: of the points [M], for example 1 / variance.

    Raises:
      ValueError: fewer different x than parameters, or values that are not positive.
    """
    x, y = robust.columns(2, x=x, y=y)
    grid = _grid(B_grid)
    if len(set(x.tolist())) < 2 + (len(grid) > 1):
        raise ValueError(f"{2 + (len(grid) > 1)} parameters need as many different x, got {sorted(set(x.tolist()))}")
    w = robust.checked_weights(weights, len(y))
    unit = float(np.exp(np.log(x).mean()))  # fits do not depend on the unit of x

    def features(B: float) -> np.ndarray:
        return np.stack([np.ones_like(x), (x / unit) ** -B], 1)

    found = _Projection(features, y, grid, w)
    C, A = found.coefficients
    law = AsymptoteLaw(float(C), float(A * unit**found.B), found.B)
    slope = features(found.B)[:, 1] * -A * np.log(x / unit)
    jacobian = np.concatenate([features(found.B), slope[:, None]], 1) if len(grid) > 1 else features(found.B)
    if sd is None:
        interval = found.interval(len(grid) > 1)
    else:
        rng = np.random.default_rng(seed)
        noise = rng.normal(size=(draws, len(y))) * np.asarray(sd, np.float64)
        values = [_Projection(features, y + e, grid, w).coefficients[0] for e in noise]
        interval = tuple(np.quantile(values, [(1 - LEVEL) / 2, (1 + LEVEL) / 2]).tolist())
    return _fit(AsymptoteFit, found, law, ("C", "A"), jacobian, features(found.B), y, interval=interval)


def fit_learning_curve(t: Numbers, L: Numbers, annealed: Numbers, B_grid: Sequence[float] = B_GRID) -> AsymptoteFit:
    """C + A / t^B - drop * annealed by the same search; every coefficient is at least 0.

    Args:
      annealed: 1 - rate / peak rate at each point [M], 0 to 1.
    """
    t, L = robust.columns(4, t=t, L=L)
    share = np.asarray(annealed, np.float64)
    if share.shape != L.shape or not ((share >= 0) & (share <= 1)).all() or share.max() == share.min():
        raise ValueError(f"annealed must be from 0 to 1, not constant, one for each of {len(L)} points; got {annealed}")
    unit = float(np.exp(np.log(t).mean()))

    def features(B: float) -> np.ndarray:
        return np.stack([np.ones_like(t), (t / unit) ** -B, -share], 1)

    grid = _grid(B_grid)
    found = _Projection(features, L, grid, None)
    C, A, drop = found.coefficients
    law = LearningCurve(float(C), float(A * unit**found.B), found.B, float(drop))
    at = features(found.B)
    jacobian = np.concatenate([at, (at[:, 1] * -A * np.log(t / unit))[:, None]], 1)
    return _fit(AsymptoteFit, found, law, ("C", "A", "drop"), jacobian, at, L, interval=found.interval(len(grid) > 1))


def fit_nested(columns: Sequence[Numbers], y: Numbers, grids: Sequence[Sequence[float]] | None = None) -> AsymptoteFit:
    """Limits from the inside out: with columns (D, N, K), C over K for each (D, N), of those over N for each D, and the law
    of what remains in D. The last fit has the outer law; give its interval by a seed bootstrap of the whole.

    Args:
      columns: outermost first, each [M].
      grids: B_grid of each column; (1.0,) is the reciprocal law of ensemble members.
    """
    found = robust.columns(1, **{f"column {i}": c for i, c in enumerate(columns)}, y=y)
    grids = grids or [B_GRID] * len(columns)
    if len(grids) != len(columns) or not columns:
        raise ValueError(f"need a B_grid for each of {len(columns)} columns, got {len(grids)}")
    *keys, values = found
    while len(keys) > 1:
        outer = np.stack(keys[:-1], 1)
        groups = np.unique(outer, axis=0)
        rows = [(outer == g).all(1) for g in groups]
        values = np.array([fit_asymptote(keys[-1][row], values[row], grids[len(keys) - 1]).law.C for row in rows])
        keys = list(groups.T)
    return fit_asymptote(keys[0], values, grids[0])


class _Projection:
    """Attributes: B, coefficients, sse, profile [G, 2], minima: (sse, B) of every refined minimum of the profile."""

    def __init__(self, features: Features, y: np.ndarray, grid: np.ndarray, weights: np.ndarray | None) -> None:
        self.features, self.y, self.grid = features, y, grid
        self.root = np.ones(len(y)) if weights is None else np.sqrt(weights)
        values = np.array([self.solve(b)[1] for b in grid])
        self.profile = np.stack([grid, values], 1)
        padded = np.concatenate([[np.inf], values, [np.inf]])
        lowest = np.flatnonzero((values <= padded[:-2]) & (values <= padded[2:]))
        self.minima = sorted(self._refined(int(i), values) for i in lowest)
        self.sse, self.B = self.minima[0]
        self.coefficients = self.solve(self.B)[0]

    def solve(self, B: float) -> tuple[np.ndarray, float]:
        """(coefficients >= 0, weighted sum of squares) with this exponent."""
        found, norm = optimize.nnls(self.features(B) * self.root[:, None], self.y * self.root)
        return found, float(norm**2)

    def interval(self, free: bool) -> tuple[float, float]:
        """Profile interval of the first coefficient; everything from 0 to the smallest y if no residual is left over."""
        spare = len(self.y) - self.features(self.B).shape[1] - free
        if spare < 1:
            return 0.0, float(self.y.min())
        bound = self.sse + self.sse / spare * stats.f.ppf(LEVEL, 1, spare)
        low, high = np.inf, -np.inf
        # A finer profile than the grid's, as it is narrow where the fit is good.
        near = self.B * np.exp(np.linspace(-0.5, 0.5, 201)) if free else np.array([self.B])
        for B in [*self.grid, *near, self.B]:
            coefficients, sse = self.solve(float(B))
            if sse <= bound * (1 + 1e-12):
                scaled = self.features(float(B)) * self.root[:, None]
                half = np.sqrt(max(bound - sse, 0.0) * np.linalg.pinv(scaled.T @ scaled)[0, 0])
                low, high = min(low, coefficients[0] - half), max(high, coefficients[0] + half)
        return float(max(low, 0.0)), float(high)

    def _refined(self, i: int, values: np.ndarray) -> tuple[float, float]:
        if len(self.grid) == 1:
            return float(values[0]), float(self.grid[0])
        ends = np.log(self.grid[[max(i - 1, 0), min(i + 1, len(self.grid) - 1)]])
        found = optimize.minimize_scalar(
            lambda u: self.solve(float(np.exp(u)))[1], bounds=ends, method="bounded", options={"xatol": 1e-9}
        )
        candidates = [(float(found.fun), float(np.exp(found.x))), (float(values[i]), float(self.grid[i]))]
        return min(candidates)


def _grid(B_grid: Sequence[float]) -> np.ndarray:
    grid = np.unique(np.asarray(B_grid, np.float64))
    if grid.ndim != 1 or not len(grid) or not (np.isfinite(grid) & (grid > 0)).all():
        raise ValueError(f"B_grid must hold positive exponents, got {B_grid}")
    return grid


def _fit(
    kind: type[AsymptoteFit],
    found: _Projection,
    law: Any,
    names: Sequence[str],
    jacobian: np.ndarray,
    at: np.ndarray,
    y: np.ndarray,
    *,
    interval: tuple[float, ...],
) -> AsymptoteFit:
    active = [name for name, c in zip(names, found.coefficients, strict=True) if c == 0]
    ends = found.grid[[0, -1]]
    if len(found.grid) > 1 and (np.abs(np.log(found.B / ends)) < 1e-6).any():
        active.append("B")
    cond = robust.condition(jacobian * found.root[:, None])
    agree = sum(value <= found.sse * (1 + robust.AGREE) + 1e-18 for value, _ in found.minima)
    notes = robust.issue(robust.doubts(agree, agree, active, cond), stacklevel=4)
    return kind(
        law,
        found.sse,
        agree,
        len(found.minima),
        tuple(active),
        cond,
        at @ found.coefficients - y,
        jacobian.shape[1],
        notes,
        interval=(interval[0], interval[1]),
        profile=found.profile,
    )
