"""Regressions of a loss on the weights of domains, and the weights of the lowest loss.

    fit = fit_mixture(r, y, "exponential")             # r [M, K] in the simplex, y [M]
    weights, loss = fit.law.argmin_simplex()
    Average(tuple(f.law for f in fits)).argmin_simplex()   # the mean of several domains' losses has its optimum inside

exponential     y = c + exp(sum_j t_j r_j)             data mixing laws, arXiv 2403.16952; k is in t, as sum r = 1
additive power  y = c + sum_j b_j (r_j D)^(-g_j)       size = D, tokens of each run
linear          y = sum_j b_j r_j                      no intercept, as sum r = 1
log-linear      log y = sum_j b_j r_j                  InstructMining's form, arXiv 2307.06290
bilinear        y = sum_j r_j (b_j + s_j log N)        size = N, parameters of each run

A linear law has its lowest loss in a corner, and so has one exponential law. Runs: at least 5 for each parameter.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from jaxpt.analysis.scaling_laws import robust
from jaxpt.analysis.scaling_laws.robust import DELTA, Fit
from jaxpt.core.names import nearest_error

Numbers = Any
Form = Literal["exponential", "additive power", "linear", "log-linear", "bilinear"]
FORMS = ("exponential", "additive power", "linear", "log-linear", "bilinear")
RUNS = 5  # for each parameter


class MixtureLaw:
    """A loss and its slope on the simplex; `size` is what the form calls for (tokens, parameters), or nothing."""

    def loss(self, r: Numbers, size: Numbers = 1.0) -> np.ndarray:
        """r [..., K] -> [...]."""
        raise NotImplementedError

    def slope(self, r: np.ndarray, size: Numbers = 1.0) -> np.ndarray:
        """d loss / d r [..., K]."""
        raise NotImplementedError

    @property
    def domains(self) -> int:
        """K."""
        raise NotImplementedError

    def argmin_simplex(self, size: Numbers = 1.0, starts: int = 32, seed: int = 0) -> tuple[np.ndarray, float]:
        """(weights [K], loss): exponentiated gradient from many starts, and the corners."""
        K = self.domains
        rng = np.random.default_rng(seed)
        r = np.concatenate([np.full((1, K), 1 / K), 0.9 * np.eye(K) + 0.1 / K, rng.dirichlet(np.ones(K), starts)])
        with np.errstate(divide="ignore", over="ignore", invalid="ignore"):
            r = self._descended(np.maximum(r, 1e-9), size)
            every = np.concatenate([np.eye(K), r])
            values = np.asarray(self.loss(every, size))
        low = np.nanmin(values)
        best = int(
            np.flatnonzero(values <= low + 1e-12 * abs(low))[0]
        )  # the corner, where descent has come next to one
        return every[best], float(values[best])

    def _descended(self, r: np.ndarray, size: Numbers) -> np.ndarray:
        values, rate = self.loss(r, size), np.ones(len(r))
        for _ in range(2000):
            slope = self.slope(r, size)
            slope = slope - (r * slope).sum(-1, keepdims=True)
            new = r * np.exp(np.clip(-rate[:, None] * slope, -20, 20))
            new /= new.sum(-1, keepdims=True)
            found = self.loss(new, size)
            better = found < values
            r, values = np.where(better[:, None], new, r), np.where(better, found, values)
            rate = np.where(better, rate * 1.5, rate / 2)
            if (rate < 1e-12).all():
                break
        return r


@dataclasses.dataclass(frozen=True)
class Exponential(MixtureLaw):
    """c + exp(t . r)."""

    c: float
    t: tuple[float, ...]

    def loss(self, r: Numbers, size: Numbers = 1.0) -> np.ndarray:
        return self.c + np.exp(np.asarray(r, np.float64) @ np.array(self.t))

    def slope(self, r: np.ndarray, size: Numbers = 1.0) -> np.ndarray:
        return np.exp(r @ np.array(self.t))[..., None] * np.array(self.t)

    @property
    def domains(self) -> int:
        return len(self.t)


@dataclasses.dataclass(frozen=True)
class AdditivePower(MixtureLaw):
    """c + sum_j b_j (r_j size)^(-g_j)."""

    c: float
    b: tuple[float, ...]
    g: tuple[float, ...]

    def loss(self, r: Numbers, size: Numbers = 1.0) -> np.ndarray:
        tokens = np.asarray(r, np.float64) * np.asarray(size, np.float64)[..., None]
        return self.c + (np.array(self.b) * tokens ** -np.array(self.g)).sum(-1)

    def slope(self, r: np.ndarray, size: Numbers = 1.0) -> np.ndarray:
        b, g, D = np.array(self.b), np.array(self.g), np.asarray(size, np.float64)[..., None]
        return -g * b * D**-g * r ** (-g - 1)

    @property
    def domains(self) -> int:
        return len(self.b)


@dataclasses.dataclass(frozen=True)
class Linear(MixtureLaw):
    """sum_j r_j (b_j + s_j log size), or the exponential of it."""

    b: tuple[float, ...]
    s: tuple[float, ...] = ()
    log: bool = False

    def loss(self, r: Numbers, size: Numbers = 1.0) -> np.ndarray:
        value = (np.asarray(r, np.float64) * self._weights(size)).sum(-1)
        return np.exp(value) if self.log else value

    def slope(self, r: np.ndarray, size: Numbers = 1.0) -> np.ndarray:
        each = self._weights(size) + np.zeros_like(r)
        return each * self.loss(r, size)[..., None] if self.log else each

    @property
    def domains(self) -> int:
        return len(self.b)

    def _weights(self, size: Numbers) -> np.ndarray:
        each = np.array(self.b)
        return each + np.log(np.asarray(size, np.float64))[..., None] * np.array(self.s) if self.s else each


@dataclasses.dataclass(frozen=True)
class Average(MixtureLaw):
    """The weighted sum of laws: a target made of several domains. Equal weights by default."""

    laws: tuple[MixtureLaw, ...]
    weights: tuple[float, ...] = ()

    def loss(self, r: Numbers, size: Numbers = 1.0) -> np.ndarray:
        return np.sum([w * law.loss(r, size) for w, law in self._pairs()], 0)

    def slope(self, r: np.ndarray, size: Numbers = 1.0) -> np.ndarray:
        return np.sum([w * law.slope(r, size) for w, law in self._pairs()], 0)

    @property
    def domains(self) -> int:
        return self.laws[0].domains

    def _pairs(self) -> list[tuple[float, MixtureLaw]]:
        weights = self.weights or (1 / len(self.laws),) * len(self.laws)
        return list(zip(weights, self.laws, strict=True))


def mixture_design(
    prior: Sequence[float],
    count: int,
    *,
    alphas: Sequence[float] = (1.0, 4.0, 16.0),
    corners: bool = True,
    seed: int = 0,
) -> np.ndarray:
    """Weights to run [count, K]: the prior, the corners, and Dirichlet draws around the prior, wide to narrow.

    Args:
      alphas: of Dirichlet(alpha K prior), in turn.
      corners: leave out for the additive power form, which has no loss there.
    """
    p = np.asarray(prior, np.float64)
    if p.ndim != 1 or len(p) < 2 or not (p > 0).all():
        raise ValueError(f"the prior needs a positive weight for each of at least 2 domains, got {prior}")
    p = p / p.sum()
    fixed = np.concatenate([p[None], np.eye(len(p))]) if corners else p[None]
    if count < len(fixed):
        raise ValueError(f"the prior and the corners are {len(fixed)} runs, more than {count}")
    rng = np.random.default_rng(seed)
    drawn = [rng.dirichlet(alphas[i % len(alphas)] * len(p) * p) for i in range(count - len(fixed))]
    return np.concatenate([fixed, np.array(drawn).reshape(-1, len(p))])


def fit_mixture(
    r: Numbers,
    y: Numbers,
    form: Form = "exponential",
    *,
    size: Numbers | None = None,
    delta: float = DELTA,
    weights: Numbers | None = None,
    starts: np.ndarray | None = None,
) -> Fit:
    """The law of one loss on the weights of K domains; linear forms by least squares, others robustly on logs.

    Args:
      r: [M, K]; rows sum to 1.
      y: losses [M].
      size: tokens (additive power) or parameters (bilinear) of each run, a number or [M].
      starts: of the nonlinear forms, as a former fit's `best_starts`.

    Raises:
      ValueError: an unknown form, rows outside the simplex, a missing or unwanted size, fewer runs than parameters.
    """
    if form not in FORMS:
        raise nearest_error("mixture form", form, FORMS)
    r = np.asarray(r, np.float64)
    _check_simplex(r, np.shape(y), inside=form == "additive power")
    sized = form in ("additive power", "bilinear")
    if sized == (size is None):
        raise ValueError(f"the {form} form {'needs' if sized else 'takes no'} size, got {size}")
    K = r.shape[-1]
    count = {"exponential": K + 1, "additive power": 2 * K + 1, "bilinear": 2 * K}.get(form, K)
    sizes = np.ones(len(r)) if size is None else np.broadcast_to(np.asarray(size, np.float64), len(r))
    y, sizes = robust.columns(count, y=y, size=sizes)
    w = robust.checked_weights(weights, len(y))
    few = [f"{len(y)} runs for {count} parameters; {RUNS * count} are wanted"] if len(y) < RUNS * count else []
    if form in ("exponential", "additive power"):
        problem = _Exponential(r, y) if form == "exponential" else _AdditivePower(r, sizes, y)
        first = problem.starts() if starts is None else np.asarray(starts, np.float64)
        found = robust.minimize(problem.log_loss, np.log(y), first, problem.bounds, delta=delta, weights=w)
        active = tuple(problem.names[i] for i in found.active)
        notes = robust.issue(few + robust.doubts(found.n_agree, len(first), active, found.hessian_cond))
        kept = np.concatenate([found.theta[None], first[found.order[1 : robust.KEPT]]])
        best = (found.objective, found.n_agree, len(first), active, found.hessian_cond, found.residuals)
        return Fit(problem.law(found.theta), *best, count, notes, kept)
    log_n = np.log(sizes)[:, None]
    features = np.concatenate([r, r * log_n], 1) if form == "bilinear" else r
    target = np.log(y) if form == "log-linear" else y
    root = np.ones(len(y)) if w is None else np.sqrt(w)
    theta = np.linalg.lstsq(features * root[:, None], target * root, rcond=None)[0]
    cond = robust.condition(features * root[:, None])
    notes = robust.issue(few + robust.doubts(1, 1, (), cond))
    left = features @ theta - target
    law = Linear(tuple(theta[:K].tolist()), tuple(theta[K:].tolist()), form == "log-linear")
    return Fit(law, float((root * left) @ (root * left)), 1, 1, (), cond, left, count, notes)


class _Exponential:
    """Parameters: log c, t [K]."""

    def __init__(self, r: np.ndarray, y: np.ndarray) -> None:
        self.r, self.y, self.K = r, y, r.shape[1]
        middle = float(np.log(y).mean())
        self.bounds = np.array([[middle - 15, middle + 3], *[[middle - 40, middle + 40]] * self.K])
        self.names = ("c", *(f"t{j}" for j in range(self.K)))

    def log_loss(self, theta: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        u = self.r @ theta[1:]
        total = np.logaddexp(theta[0], u)
        share = np.exp(u - total)
        return total, np.concatenate([np.exp(theta[0] - total)[:, None], share[:, None] * self.r], 1)

    def starts(self) -> np.ndarray:
        """For shares of the smallest loss as c, the regression of what is above it."""
        found = []
        for share in (0.05, 0.2, 0.4, 0.6, 0.75, 0.85, 0.92, 0.97):
            c = share * self.y.min()
            found.append([np.log(c), *np.linalg.lstsq(self.r, np.log(self.y - c), rcond=None)[0]])
        return np.array(found)

    def law(self, theta: np.ndarray) -> Exponential:
        return Exponential(float(np.exp(theta[0])), tuple(theta[1:].tolist()))


class _AdditivePower:
    """Parameters: log c, logs of the terms at the centre of log tokens [K], g [K]."""

    def __init__(self, r: np.ndarray, size: np.ndarray, y: np.ndarray) -> None:
        self.K, self.middle = r.shape[1], float(np.log(y).mean())
        logs = np.log(r * size[:, None])
        self.centre = logs.mean(0)
        self.x = logs - self.centre
        term = [[self.middle - 15, self.middle + 3]]
        self.bounds = np.array(term * (self.K + 1) + [[0.0, 3.0]] * self.K)
        self.names = ("c", *(f"b{j}" for j in range(self.K)), *(f"g{j}" for j in range(self.K)))

    def log_loss(self, theta: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        K = self.K
        terms = np.concatenate([np.full((len(self.x), 1), theta[0]), theta[1 : K + 1] - theta[K + 1 :] * self.x], 1)
        top = terms.max(1, keepdims=True)
        shares = np.exp(terms - top)
        total = shares.sum(1, keepdims=True)
        shares /= total
        return (top + np.log(total))[:, 0], np.concatenate([shares, -shares[:, 1:] * self.x], 1)

    def starts(self, count: int = 24) -> np.ndarray:
        rng = np.random.default_rng(0)
        c = rng.choice(np.log([0.2, 0.5, 0.8]), (count, 1))
        terms = rng.choice(np.log([0.02, 0.1, 0.3]), (count, self.K))
        return np.concatenate([c + self.middle, terms + self.middle, rng.choice([0.1, 0.3, 0.6], (count, self.K))], 1)

    def law(self, theta: np.ndarray) -> AdditivePower:
        b, g = theta[1 : self.K + 1], theta[self.K + 1 :]
        return AdditivePower(float(np.exp(theta[0])), tuple(np.exp(b + g * self.centre).tolist()), tuple(g.tolist()))


def _check_simplex(r: np.ndarray, losses: tuple[int, ...], inside: bool) -> None:
    if r.ndim != 2 or r.shape[:1] != losses or r.shape[1] < 2:
        raise ValueError(f"need r [runs, domains], at least 2 domains, and y [runs]; got shapes {r.shape} and {losses}")
    bad = np.flatnonzero(~(np.isfinite(r).all(1) & (r >= 0).all(1) & (np.abs(r.sum(1) - 1) < 1e-6)))
    if len(bad):
        raise ValueError(f"row {bad[0]} is not a mixture (weights of at least 0 that sum to 1): {r[bad[0]].tolist()}")
    if inside and not (r > 0).all():
        row = int(np.flatnonzero((r == 0).any(1))[0])
        raise ValueError(f"the additive power form has no loss at weight 0, as in row {row}: {r[row].tolist()}")
