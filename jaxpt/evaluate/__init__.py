"""Evaluation: one scoring core, from parameters and held-out windows to numbers that name their metric."""

from jaxpt.evaluate.bits_per_byte import bits_per_byte, make_scorer, sum_nats, summarize
from jaxpt.evaluate.rolling import rolling

__all__ = ["bits_per_byte", "make_scorer", "rolling", "sum_nats", "summarize"]
