"""Optimizers and schedules: optax transformations, one file per method, and parameter groups by path."""

from jaxpt.optim.adafactor import AdafactorConfig
from jaxpt.optim.adam import AdamConfig, adam
from jaxpt.optim.adam_8bit import Adam8bitConfig
from jaxpt.optim.bert_adam import BertAdamConfig
from jaxpt.optim.config import OptimizerConfig
from jaxpt.optim.ema import EmaLambConfig, ema_params, with_ema
from jaxpt.optim.fira import FiraConfig
from jaxpt.optim.galore import GaloreConfig
from jaxpt.optim.grouped import GroupedConfig
from jaxpt.optim.groups import groups
from jaxpt.optim.lamb import LambConfig, lamb
from jaxpt.optim.layer_decay import layer_decay
from jaxpt.optim.moments import reset_moments
from jaxpt.optim.restarts import RampedAdam, Ramps, RestartSchedule
from jaxpt.optim.schedules import SCHEDULES, warmup_cosine
from jaxpt.optim.stable_spam import StableSpamConfig

OPTIMIZERS: dict[str, type[OptimizerConfig]] = {
    "adafactor": AdafactorConfig,
    "adam": AdamConfig,
    "adam_8bit": Adam8bitConfig,
    "ema_lamb": EmaLambConfig,
    "fira": FiraConfig,
    "galore": GaloreConfig,
    "lamb": LambConfig,
    "stable_spam": StableSpamConfig,
}

__all__ = [
    "OPTIMIZERS",
    "SCHEDULES",
    "AdafactorConfig",
    "Adam8bitConfig",
    "AdamConfig",
    "BertAdamConfig",
    "EmaLambConfig",
    "FiraConfig",
    "GaloreConfig",
    "GroupedConfig",
    "LambConfig",
    "OptimizerConfig",
    "RampedAdam",
    "Ramps",
    "RestartSchedule",
    "StableSpamConfig",
    "adam",
    "ema_params",
    "groups",
    "lamb",
    "layer_decay",
    "reset_moments",
    "warmup_cosine",
    "with_ema",
]
