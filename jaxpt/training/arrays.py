"""Training on arrays that fit into memory, all updates in one compiled loop: no loader, no files, no resumption.

fit = make_fit(loss, AdamConfig(), steps=600)            # compiled once for all rates and initial values
found = fit(params, {"images": x, "labels": y}, batch_size=96, rate=3e-3, seed=0)
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np

from jaxpt.core.types import Array, Bool, Float, Int, Params
from jaxpt.optim import OptimizerConfig
from jaxpt.training import state as states
from jaxpt.training.state import TrainState
from jaxpt.training.step import Batch, Loss, make_step


class Fitted(NamedTuple):
    """Trained parameters, the loss before every update, and whether one was not finite (the parameters are then those of
    the last good update)."""

    params: Params
    losses: Float[Array, " steps"]
    diverged: Bool[Array, ""]


Fit = Callable[..., Fitted]  # (params, data, *, batch_size, rate, seed)


def make_fit(loss: Loss, optimizer: OptimizerConfig, steps: int) -> Fit:
    """A function `fit(params, data, *, batch_size, rate, seed)` that makes `steps` updates.

    Args of `fit`:
      data: arrays with the same first dimension, of which a batch takes `batch_size` rows.
      rate: peak rate, in place of the optimizer's.
      seed: of the order of the rows.
    """

    @jax.jit
    def run(params: Params, data: Batch, order: Array, rate: Array) -> Fitted:
        transformation = optimizer.make(steps, rate)
        step = make_step(loss, transformation, clip=optimizer.clip)

        def one(state: TrainState, rows: Array) -> tuple[TrainState, Array]:
            state, metrics = step.probe(state, jax.tree.map(lambda x: x[rows], data))
            return state, metrics["loss"]

        state, losses = jax.lax.scan(one, states.create(params, transformation), order)
        return Fitted(state.params, losses, state.halted)

    def fit(params: Params, data: Batch, *, batch_size: int, rate: float, seed: int) -> Fitted:
        return run(params, data, batches(len(next(iter(data.values()))), steps, batch_size, seed), rate)

    return fit


def batches(rows: int, steps: int, batch_size: int, seed: int) -> Int[np.ndarray, "steps B"]:
    """The rows of every batch: every epoch is a new order, its last incomplete batch left out.

    Raises:
      ValueError: a batch larger than the data.
    """
    if not 1 <= batch_size <= rows:
        raise ValueError(f"batch_size={batch_size} should be between 1 and the {rows} rows of the data")
    generator, each = np.random.default_rng(seed), rows // batch_size
    epochs = [generator.permutation(rows)[: each * batch_size] for _ in range(-(-steps // each))]
    return np.concatenate(epochs).reshape(-1, batch_size)[:steps]
