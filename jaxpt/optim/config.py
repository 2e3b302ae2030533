"""What a run's description says about its optimizer; each method's file holds its own `OptimizerConfig`."""

from __future__ import annotations

import dataclasses
from typing import Any

import optax

from jaxpt.core.names import nearest_error
from jaxpt.optim.schedules import SCHEDULES, with_cooldown


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """The schedule and the clipping that all optimizers share. Subclasses add their own and say `with_rates`.

    Attributes:
      rate: the peak of the schedule.
      schedule: a key of `jaxpt.optim.SCHEDULES`.
      warmup: share of all updates.
      floor: the last rate as a share of the peak.
      cooldown: share of all updates, at the end, in which the rate falls on a line to 0; the schedule is that of the updates
        before. With "constant" this is WSD: warm-up, stable, decay.
      clip: global gradient norm; None for no clipping.
    """

    rate: float = 3e-3
    schedule: str = "cosine"
    warmup: float = 0.1
    floor: float = 0.1
    cooldown: float = 0.0
    clip: float | None = None

    def rates(self, steps: int, peak: Any = None) -> optax.Schedule:
        """Update number from 0 -> rate. `peak` replaces `rate`, and may be traced."""
        if self.schedule not in SCHEDULES:
            raise nearest_error("schedule", self.schedule, SCHEDULES)
        warmup, down = round(self.warmup * steps), round(self.cooldown * steps)
        whole = SCHEDULES[self.schedule](self.rate if peak is None else peak, steps - down, warmup, self.floor)
        return with_cooldown(whole, steps, down) if down else whole

    def make(self, steps: int, peak: Any = None) -> optax.GradientTransformation:
        """The optax transformation of a run of so many updates."""
        return self.with_rates(self.rates(steps, peak))

    def with_rates(self, rates: optax.Schedule) -> optax.GradientTransformation:
        """The optax transformation with this schedule."""
        raise TypeError(f"{type(self).__name__} does not say what its optimizer is")
