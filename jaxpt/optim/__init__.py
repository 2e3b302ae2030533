"""Optimizers and schedules: optax transformations, one file per method, and parameter groups by path."""

from jaxpt.optim.adafactor import AdafactorConfig
from jaxpt.optim.adam import AdamConfig, adam
from jaxpt.optim.adam_8bit import Adam8bitConfig
from jaxpt.optim.config import OptimizerConfig
from jaxpt.optim.fira import FiraConfig
from jaxpt.optim.galore import GaloreConfig
from jaxpt.optim.groups import groups
from jaxpt.optim.moments import reset_moments
from jaxpt.optim.restarts import RampedAdam, Ramps, RestartSchedule
from jaxpt.optim.schedules import SCHEDULES, warmup_cosine
from jaxpt.optim.stable_spam import StableSpamConfig

OPTIMIZERS: dict[str, type[OptimizerConfig]] = {
    "adafactor": AdafactorConfig,
    "adam": AdamConfig,
    "adam_8bit": Adam8bitConfig,
    "fira": FiraConfig,
    "galore": GaloreConfig,
    "stable_spam": StableSpamConfig,
}

__all__ = [
    "OPTIMIZERS",
    "SCHEDULES",
    "AdafactorConfig",
    "Adam8bitConfig",
    "AdamConfig",
    "FiraConfig",
    "GaloreConfig",
    "OptimizerConfig",
    "RampedAdam",
    "Ramps",
    "RestartSchedule",
    "StableSpamConfig",
    "adam",
    "groups",
    "reset_moments",
    "warmup_cosine",
]
