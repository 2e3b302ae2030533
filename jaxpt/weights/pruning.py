"""Magnitude pruning on a schedule planned before the run: The Journey Matters (arXiv 2501.12486).

Dense until 25 % of the run's compute, pruned in small steps until 75 %, then the final mask until the end. Compute counts
parameters that are active: C = 6 sum_t N_t b_t, with b_t tokens in update t, so at 80 % sparsity the first quarter of the
compute is a tenth of the tokens and the last one half of them. The loss follows the average over tokens, Nbar = C / 6 D.

    plan = pruning.plan(PruneSchedule(0.8), n0=pruning.size(params), tokens_per_update=B * S, compute=2e13)
    plan.updates, plan.average, plan.events                       # N, Nbar, ((update, density), ...)
    params = pruning.prune(params, 0.2)                           # Masked matrices to 20 % of their entries

With d(u) the density after the share u of phase 2, all tokens and the average are, in units of C / 6 N0 and of N0,

    a + (e - a) / m + (1 - e) / d(1)    and    1 / that,    m = mean of d over the tokens of phase 2,

a and e being where phase 2 starts and ends. The events sit in the middle of `events` equal intervals of phase 2, which makes
the sum over updates the trapezoid rule of d: 50 events give the closed form to 1e-3. Geometric, each event removes the same
share of what is left: it gives the paper's "2 times" at 80 %. Masks only shrink; what is pruned is zero, and so are its
gradients and moments; nothing is rewound. `jaxpt.training.surgery.prunes` makes events of a plan. Proven by
recipes/journey_matters.py.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxpt.core import trees
from jaxpt.core.names import nearest_error
from jaxpt.core.types import Array, Bool, Float, Params
from jaxpt.weights.base import Matrix
from jaxpt.weights.masked import MaskedMatrix, ranks

CURVES = {
    "geometric": lambda u, s: (1 - s) ** u,
    "cubic": lambda u, s: 1 - s + s * (1 - u) ** 3,
    "linear": lambda u, s: 1 - s * u,
}  # density after the share u of phase 2
UNITS = ("compute", "step")
SPACINGS = ("tokens", "compute")
SCOPES = ("matrix", "global")


@dataclasses.dataclass(frozen=True)
class PruneSchedule:
    """Attributes:
    s_final: sparsity at the end.
    start, end: of phase 2, as shares of the run.
    unit: of what they are shares: "compute" as published, or "step" (the same as tokens).
    curve: "geometric", "cubic" or "linear".
    events: in phase 2.
    spacing: events are apart by equally many "tokens" or by equally much "compute". The paper does not say; the published
      ratio of 2 at 80 % needs tokens.
    """

    s_final: float = 0.8
    start: float = 0.25
    end: float = 0.75
    unit: str = "compute"
    curve: str = "geometric"
    events: int = 50
    spacing: str = "tokens"

    def __post_init__(self) -> None:
        for kind, given, known in (
            ("unit", self.unit, UNITS),
            ("curve", self.curve, tuple(CURVES)),
            ("spacing", self.spacing, SPACINGS),
        ):
            if given not in known:
                raise nearest_error(kind, given, known)
        if not 0 <= self.s_final < 1 or not 0 <= self.start <= self.end <= 1 or self.events < 1:
            raise ValueError(
                f"need 0 <= s_final < 1, 0 <= start <= end <= 1 and events >= 1, got s_final={self.s_final}, "
                f"start={self.start}, end={self.end}, events={self.events}"
            )

    def densities(self) -> Float[np.ndarray, " K"]:
        """After each event."""
        return CURVES[self.curve](np.arange(1, self.events + 1) / self.events, self.s_final)


@dataclasses.dataclass(frozen=True)
class PrunePlan:
    """Attributes:
    events: (update, density of the masks after it), in order.
    updates: of the whole run; its learning rate is to be scheduled over these.
    n0: entries that can be pruned.
    tokens_per_update: b, the same for every update.
    phases: shares of the tokens before, in and after phase 2.
    average: Nbar, the mean number of active entries over the tokens of this run.
    averages: Nbar of the closed form, by the spacing of the events.
    """

    events: tuple[tuple[int, float], ...]
    updates: int
    n0: int
    tokens_per_update: int
    phases: tuple[float, float, float]
    average: float
    averages: dict[str, float]

    @property
    def tokens(self) -> int:
        """D."""
        return self.updates * self.tokens_per_update

    @property
    def compute(self) -> float:
        """6 sum_t N_t b_t."""
        return 6.0 * self.average * self.tokens

    def densities(self) -> Float[np.ndarray, " N"]:
        """Of the masks during each update."""
        found = np.ones(self.updates)
        for update, density in self.events:
            found[update:] = density
        return found


def plan(
    schedule: PruneSchedule,
    n0: int,
    tokens_per_update: int,
    *,
    compute: float | None = None,
    updates: int | None = None,
) -> PrunePlan:
    """When to prune how far, for a run that spends so much compute, or so many updates.

    Args:
      n0: entries that can be pruned (`size`).
      compute: C = 6 sum_t N_t b_t, in operations. It is met to less than one dense update.

    Raises:
      ValueError: both or neither of compute and updates, a run of no update.
    """
    if (compute is None) == (updates is None):
        raise ValueError(f"a plan needs either compute or updates, got compute={compute}, updates={updates}")
    if n0 < 1 or tokens_per_update < 1:
        raise ValueError(f"need n0 >= 1 and tokens_per_update >= 1, got {n0} and {tokens_per_update}")
    averages = {spacing: _phases(dataclasses.replace(schedule, spacing=spacing))[2] for spacing in SPACINGS}
    where, shares, average = _phases(schedule)
    if compute is not None:
        updates = round(compute / (6.0 * n0 * average * tokens_per_update))
    assert updates is not None
    if updates < 1:
        raise ValueError(f"compute={compute}, updates={updates} is less than one update")
    # Of events that fall into one update, the last decides.
    events = {max(1, round(u * updates)): d for u, d in zip(where, schedule.densities().tolist(), strict=True)}
    found = tuple((t, d) for t, d in events.items() if t < updates) if schedule.s_final else ()
    made = PrunePlan(found, updates, n0, tokens_per_update, shares, 0.0, {k: n0 * v for k, v in averages.items()})
    return dataclasses.replace(made, average=average_parameters(made.densities(), tokens_per_update, n0))


def average_parameters(densities: Sequence[float] | np.ndarray, tokens: float | np.ndarray, n0: int) -> float:
    """sum_t N_t b_t / sum_t b_t.

    Args:
      densities: during each update.
      tokens: of each update, or of all.
    """
    density = np.asarray(densities, np.float64)
    return float(n0 * np.average(density, weights=np.broadcast_to(np.asarray(tokens, np.float64), density.shape)))


def _phases(schedule: PruneSchedule) -> tuple[list[float], tuple[float, float, float], float]:
    """Shares of the tokens before each event, of the phases, and Nbar / N0."""
    density = np.concatenate([[1.0], schedule.densities()])
    length = np.full(schedule.events + 1, 1 / schedule.events)  # of the intervals between events, in phase 2
    length[[0, -1]] /= 2
    if schedule.spacing == "compute":
        length = length / density / np.sum(length / density)
    mean = float(np.sum(length * density))
    shares = np.array([schedule.start, schedule.end - schedule.start, 1 - schedule.end])
    average = float(np.sum(shares * [1.0, mean, density[-1]]))
    if schedule.unit == "compute":
        shares = shares / [1.0, mean, density[-1]]
        average = 1 / float(np.sum(shares))
        shares = shares * average
    where = shares[0] + shares[1] * np.cumsum(length)[:-1]
    return where.tolist(), (float(shares[0]), float(shares[1]), float(shares[2])), average


def size(params: Params, where: str | Sequence[str] = "*") -> int:
    """N0: entries of the masked matrices at `where`, whatever their masks. Holds for specs and shapes too."""
    return sum(math.prod(w.w.shape) for w in _masked(params, where).values())


def active(params: Params, where: str | Sequence[str] = "*") -> int:
    """N: entries that are active."""
    return sum(round(w.entries() * math.prod(w.w.shape[:-2])) for w in _masked(params, where).values())


Counts = dict[str, int] | int  # entries to keep: of a layer's matrix by path, or of all matrices together


def counts(params: Params, density: float, where: str | Sequence[str] = "*", scope: str = "matrix") -> Counts:
    """round(density * size), by matrix (scope "matrix") or over all of them ("global").

    Raises:
      ValueError: no masked matrix at `where`, a density outside [0, 1], an unknown scope.
    """
    if scope not in SCOPES:
        raise nearest_error("scope", scope, SCOPES)
    if not 0 <= density <= 1:
        raise ValueError(f"density {density} is not between 0 and 1")
    if scope == "global":
        return round(density * size(params, where))
    return {p: round(density * math.prod(w.shape)) for p, w in _masked(params, where).items()}


def prune(params: Params, density: float, where: str | Sequence[str] = "*", scope: str = "matrix") -> Params:
    """The tree with the masks at `where` reduced to this share of their entries, those of largest magnitude.

    Args:
      density: of each matrix of each layer, or of all together.
      scope: "matrix" ranks within each, "global" over all, where a matrix of small entries may lose all of them.

    Raises:
      ValueError: as `counts`.
    """
    return keep(params, counts(params, density, where, scope), where)


def keep(params: Params, number: Counts, where: str | Sequence[str] = "*") -> Params:
    """`prune` by `counts`, which may be traced."""
    chosen = _masked(params, where)
    masks = magnitude_masks({p: w.w for p, w in chosen.items()}, {p: w.active() for p, w in chosen.items()}, number)

    def one(path: str, leaf: Any) -> Any:
        return leaf.with_mask(masks[path]) if path in masks else leaf

    return trees.map_with_path(one, params, is_leaf=lambda x: isinstance(x, Matrix))


def magnitude_masks(
    values: dict[str, Float[Array, "*L O I"]], masks: dict[str, Bool[Array, "*L O I"]], number: Counts
) -> dict[str, Bool[Array, "*L O I"]]:
    """Masks of so many of the largest |values| among those that are still active, of each layer or of all.

    Ranked in float32 by count, so the number is exact whatever the ties. What is off ranks below everything that is on, and
    stays off.
    """
    scores = {p: jnp.where(masks[p], jnp.abs(v.astype(jnp.float32)), -1.0) for p, v in values.items()}
    if isinstance(number, dict):
        return {p: _per_matrix(lambda x, n=number[p]: ranks(x) < n, s) & masks[p] for p, s in scores.items()}
    kept = ranks(jnp.concatenate([s.reshape(-1) for s in scores.values()])) < number
    starts = np.cumsum([0, *(s.size for s in scores.values())])
    parts = zip(scores.items(), starts[:-1], starts[1:], strict=True)
    return {p: kept[first:last].reshape(s.shape) & masks[p] for (p, s), first, last in parts}


def _per_matrix(fn: Any, x: Array) -> Array:
    return jax.lax.map(fn, x.reshape(-1, math.prod(x.shape[-2:]))).reshape(x.shape)


def _masked(params: Params, where: str | Sequence[str]) -> dict[str, MaskedMatrix]:
    leaves = trees.leaves_with_path(params, is_leaf=lambda x: isinstance(x, Matrix))
    found = {p: w for p, w in leaves if isinstance(w, MaskedMatrix) and trees.matches_any(p, where)}
    if not found:
        raise ValueError(f"no masked matrix matches {where!r}; give the matrices the form Masked(sparsity=0.0)")
    return found
