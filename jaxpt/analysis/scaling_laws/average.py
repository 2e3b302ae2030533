"""Average parameters over training, which put sparse and dense runs on one law (The Journey Matters, arXiv 2501.12486).

    ramp = SparsityRamp(0.8)                          # dense to 25% of compute, pruned to 20% of weights by 75%
    nbar = average_params(ramp, n0, steps)            # what replaces N: fit_chinchilla(nbar, D, L)

Training at density m costs m times the compute a token, so a quarter of the compute is fewer tokens while dense: at 80%
sparsity the phases 25-50-25 of compute are 10-40-50 of tokens. `average` has the closed form of the mean over tokens.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any, Literal

import numpy as np

from jaxpt.core.names import nearest_error

Schedule = Callable[[np.ndarray], np.ndarray]  # fraction of the steps -> density, both [T]


@dataclasses.dataclass(frozen=True)
class SparsityRamp:
    """Density 1 to `start`, down to 1 - sparsity at `end`, then constant. Callable: fraction of steps -> density.

    Attributes:
      sparsity: share of the weights that are gone at the end, 0 to below 1.
      start, end: fractions of the unit.
      unit: "compute" (the paper's; the ramp is even in tokens) or "step", with equal tokens a step.
      curve: density over the ramp's steps; "geometric" removes the same share of what remains at each event.
    """

    sparsity: float
    start: float = 0.25
    end: float = 0.75
    unit: Literal["compute", "step"] = "compute"
    curve: Literal["geometric", "cubic", "linear"] = "geometric"

    def __post_init__(self) -> None:
        if not (0 <= self.sparsity < 1 and 0 <= self.start <= self.end <= 1):
            raise ValueError(f"need 0 <= sparsity < 1 and 0 <= start <= end <= 1, got {self}")
        if self.curve not in CURVES:
            raise nearest_error("curve", self.curve, CURVES)
        if self.unit not in ("compute", "step"):
            raise nearest_error("unit", self.unit, ("compute", "step"))

    @property
    def phases(self) -> tuple[float, float, float]:
        """Shares of the steps: dense, ramp, sparse."""
        shares = np.array([self.start, self.end - self.start, 1 - self.end])
        if self.unit == "compute":
            shares /= np.array(self._densities())
            shares /= shares.sum()
        return tuple(shares.tolist())

    @property
    def average(self) -> float:
        """Mean density over steps (tokens)."""
        return float(np.dot(self.phases, self._densities()))

    def __call__(self, fraction: np.ndarray) -> np.ndarray:
        dense, ramp, _ = self.phases
        u = np.clip((np.asarray(fraction, np.float64) - dense) / ramp, 0, 1) if ramp else fraction >= dense
        return CURVES[self.curve][0](self.sparsity, np.asarray(u, np.float64))

    def _densities(self) -> tuple[float, float, float]:
        """Mean density of each phase."""
        return 1.0, CURVES[self.curve][1](self.sparsity), 1 - self.sparsity


# name -> (density at u in [0, 1] of the ramp, its mean over u)
CURVES: dict[str, tuple[Callable[[float, np.ndarray], np.ndarray], Callable[[float], float]]] = {
    "geometric": (lambda s, u: (1 - s) ** u, lambda s: s / -math.log1p(-s) if s else 1.0),
    "cubic": (lambda s, u: 1 - s * (1 - (1 - u) ** 3), lambda s: 1 - 0.75 * s),
    "linear": (lambda s, u: 1 - s * u, lambda s: 1 - s / 2),
}


def average_params(schedule: Schedule, N0: float, steps: int, *, tokens: Any = None) -> float:
    """N0 times the mean density over steps, each step taken at its middle.

    Args:
      schedule: fraction of the steps [T] -> density [T], for example a `SparsityRamp`.
      N0: parameters that can be pruned, dense.
      tokens: of each step [steps], where they differ.

    Raises:
      ValueError: no steps, densities outside 0 to 1, or another number of tokens.
    """
    if steps < 1:
        raise ValueError(f"need at least one step, got {steps}")
    density = np.asarray(schedule((np.arange(steps) + 0.5) / steps), np.float64)
    if density.shape != (steps,) or not ((density >= 0) & (density <= 1)).all():
        raise ValueError(f"the schedule must give a density from 0 to 1 for each of {steps} steps, got {density}")
    weight = np.ones(steps) if tokens is None else np.asarray(tokens, np.float64)
    if weight.shape != (steps,) or not weight.sum() > 0:
        raise ValueError(f"need tokens for each of {steps} steps, got shape {weight.shape}")
    return float(N0 * (density @ weight) / weight.sum())
