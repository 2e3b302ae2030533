"""A run's optimizer that is several: each array has that of the first group whose pattern matches its path.

    GroupedConfig(rate=5e-4, groups=(
        ("generator", 1.0, AdamConfig(clip=1.0)),
        ("discriminator", 0.5, AdamConfig(b2=0.98, clip=1.0)),
    ))

All follow one schedule. Unlike the run's, a group's clipping is by the norm of its own gradients: what happens in one group
changes nothing in another.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import optax

from jaxpt.optim.config import OptimizerConfig
from jaxpt.optim.groups import groups


@dataclasses.dataclass(frozen=True, kw_only=True)
class GroupedConfig(OptimizerConfig):
    """Attributes:
    groups: (path pattern, factor of the rate, optimizer). Of an optimizer, its own settings and its clip count; the
      schedule is that of the whole.
    """

    groups: tuple[tuple[str, float, OptimizerConfig], ...]

    def __post_init__(self) -> None:
        if not self.groups or min(factor for _, factor, _ in self.groups) < 0:
            given = [(pattern, factor) for pattern, factor, _ in self.groups]
            raise ValueError(f"need groups whose factors are not negative, got {given}")

    def with_rates(self, rates: optax.Schedule) -> optax.GradientTransformation:
        return groups([(pattern, _one(cfg, _scaled(rates, factor))) for pattern, factor, cfg in self.groups])


def _one(cfg: OptimizerConfig, rates: optax.Schedule) -> optax.GradientTransformation:
    own = cfg.with_rates(rates)
    return own if cfg.clip is None else optax.chain(optax.clip_by_global_norm(cfg.clip), own)


def _scaled(rates: optax.Schedule, factor: float) -> Callable[..., object]:
    return lambda count: factor * rates(count)
