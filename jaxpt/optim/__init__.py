"""Optimizers and schedules: optax transformations, one file per method, and parameter groups by path."""

from jaxpt.optim.adam import AdamConfig, adam
from jaxpt.optim.config import OptimizerConfig
from jaxpt.optim.groups import groups
from jaxpt.optim.restarts import RampedAdam, Ramps, RestartSchedule
from jaxpt.optim.schedules import SCHEDULES, warmup_cosine

__all__ = [
    "SCHEDULES",
    "AdamConfig",
    "OptimizerConfig",
    "RampedAdam",
    "Ramps",
    "RestartSchedule",
    "adam",
    "groups",
    "warmup_cosine",
]
