"""Restarts of an optimizer during a run, and the rate that recovers after each of them (arXiv 2505.22922, section 4).

Every T updates low-rank factors are balanced (`weights.low_rank.refactor`) and all moments and bias corrections set to zero.
Adam's first updates after that have the size of the rate in every coordinate, so the rate of update t, k = t - t0 updates
after the last restart t0, is for k < K

    g(t0 + K) (f + (1 - f) min(1, k / (K - 1))),    f = 0.001, K = 10,

and g(t) from then on, g being the schedule without restarts. The released schedule loses its ramps where T does not divide
the number of updates, and ramps at update 0, where nothing was restarted; this one ramps after every restart and nowhere
else.

    ramps = RestartSchedule(every=200)
    optimizer = RampedAdam(rate=3e-3, ramps=ramps)                # of a `Pretrain`; its schedule knows the restarts
    cfg = Pretrain(..., optimizer=optimizer, events=(ramps,))     # and they happen here

`Ramps` alone is for what else disturbs an optimizer: merges of ReLoRA, a change of form (`jaxpt.training.surgery`). Proven
by recipes/lowrank_restarts.py.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import optax

from jaxpt.core.types import Array
from jaxpt.optim.adam import AdamConfig
from jaxpt.optim.config import OptimizerConfig
from jaxpt.optim.moments import reset_moments
from jaxpt.training.events import Event, EventConfig, Scheduled, in_place
from jaxpt.training.state import TrainState
from jaxpt.weights.low_rank import refactor_all


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ramps:
    """When something disturbs the optimizer, and how its rate recovers.

    Attributes:
      every: after updates first + every, first + 2 every, ...; 0 for never.
      first: share of all updates from which `every` counts.
      stop_after: no periodic one later than after this share of all updates: what it costs would not be won back.
      at: more of them, each an update, or a share of all updates.
      recovery_steps: K, updates until the rate is back.
      start_frac: f, of the first update's rate.
    """

    every: int = 0
    first: float = 0.0
    stop_after: float = 0.9
    at: tuple[int | float, ...] = ()
    recovery_steps: int = 10
    start_frac: float = 1e-3

    def __post_init__(self) -> None:
        if self.every < 0 or self.recovery_steps < 0 or not 0 <= self.start_frac <= 1:
            raise ValueError(
                f"need every >= 0, recovery_steps >= 0 and 0 <= start_frac <= 1, got every={self.every}, "
                f"recovery_steps={self.recovery_steps}, start_frac={self.start_frac}"
            )
        if not 0 <= self.first <= self.stop_after <= 1:
            raise ValueError(f"need 0 <= first <= stop_after <= 1, got {self.first} and {self.stop_after}")
        if 0 < self.every <= self.recovery_steps:
            raise ValueError(
                f"with every={self.every} the rate never recovers from recovery_steps={self.recovery_steps}"
            )
        wrong = [when for when in self.at if not (0 < when < 1 if isinstance(when, float) else when >= 1)]
        if wrong:
            raise ValueError(f"at={wrong}: an update is an int from 1, a share a float between 0 and 1")

    def updates(self, total: int) -> tuple[int, ...]:
        """The updates of a run of `total` after which something happens, in order.

        Raises:
          ValueError: one that the run does not go on after.
        """
        first, last = round(self.first * total), math.floor(self.stop_after * total + 1e-6)  # .29 * 100 is 28.999...
        periodic = range(first + self.every, min(last, total - 1) + 1, self.every) if self.every else ()
        single = {max(1, round(when * total)) if isinstance(when, float) else when for when in self.at}
        late = [t for t in single if t >= total]
        if late:
            raise ValueError(f"at={self.at}: update {max(late)} is not before the last of a run of {total}")
        return tuple(sorted({*periodic, *single}))

    def scheduled(self, fn: Event, changes_tree: bool = False) -> Scheduled:
        """`fn` after these updates."""
        updates = functools.cache(self.updates)
        return Scheduled(fn, lambda step, total: step in updates(total), changes_tree)


@dataclasses.dataclass(frozen=True, kw_only=True)
class RestartSchedule(Ramps, EventConfig):
    """Attributes:
    refactor: balance low-rank factors.
    reset: start all moments afresh. Without it the factors' moments stay in the old basis: an ablation.
    """

    refactor: bool = True
    reset: bool = True

    def events(self) -> list[Scheduled]:
        """What happens at a restart, for the training loop."""
        found = [self.scheduled(_refactor)] if self.refactor else []
        return [*found, self.scheduled(_reset)] if self.reset else found

    def for_run(self, steps: int, optimizer: optax.GradientTransformation) -> Sequence[Scheduled]:
        return self.events()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ramped(OptimizerConfig):
    """Mixin: an optimizer whose rate recovers after every restart, `class RampedX(Ramped, XConfig)`."""

    ramps: Ramps = dataclasses.field(default_factory=Ramps)

    def rates(self, steps: int, peak: Any = None) -> optax.Schedule:
        return quick_recovery(super().rates(steps, peak), self.ramps, steps)


@dataclasses.dataclass(frozen=True, kw_only=True)
class RampedAdam(Ramped, AdamConfig):
    """Adam with restarts."""


def quick_recovery(base: optax.Schedule, ramps: Ramps, steps: int) -> optax.Schedule:
    """`base` with a ramp after every restart of a run of `steps` updates."""
    starts, length = ramps.updates(steps), ramps.recovery_steps
    return _ramped(base, starts, length, ramps.start_frac) if starts and length else base


def _ramped(base: optax.Schedule, starts: Sequence[int], length: int, fraction: float) -> optax.Schedule:
    def schedule(count: Any) -> Array:
        last = jnp.searchsorted(jnp.asarray(starts), jnp.asarray(count), side="right") - 1
        start = jnp.asarray(starts)[jnp.maximum(last, 0)]
        since = count - start
        share = since / (length - 1) if length > 1 else 1.0
        ramp = base(start + length) * (fraction + (1 - fraction) * jnp.minimum(share, 1.0))
        return jnp.where((last >= 0) & (since < length), ramp, base(count))

    return schedule


def _refactor(step: int, state: TrainState) -> TrainState:
    return in_place(_refactored, state)


def _refactored(state: TrainState) -> TrainState:
    return dataclasses.replace(state, trainable=refactor_all(state.trainable))


def _reset(step: int, state: TrainState) -> TrainState:
    return in_place(_without_moments, state)


def _without_moments(state: TrainState) -> TrainState:
    return dataclasses.replace(state, opt_state=reset_moments(state.opt_state))
