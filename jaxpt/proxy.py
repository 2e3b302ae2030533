"""Proxy runs: small trainings done by the hundred, so that arms, rates, mixtures and scales can be compared.

    found = score(cfg, rate=3e-3, init_seed=1, order_seed=1)     # a `Trial`: held-out bits per byte (or loss), ledger, curve

One compiled step serves all rates, seeds and initial values of a setting: the peak rate is an array in the optimizer's
state.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import time
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import optax

from jaxpt import pretrain, weights
from jaxpt.comparison import Trial
from jaxpt.core import spec as specs
from jaxpt.core.types import Params
from jaxpt.data.held_out import Part
from jaxpt.evaluate.bits_per_byte import Scorer
from jaxpt.objectives.base import Objective
from jaxpt.pretrain import Data, Job, Pretrain
from jaxpt.training import ledger
from jaxpt.training import state as states
from jaxpt.training.loop import train as run_loop
from jaxpt.training.run import NonFiniteError, Result
from jaxpt.training.state import TrainState

Look = Callable[[Params], dict[str, Any]]  # trained parameters -> what the trial should keep of them


@dataclasses.dataclass(frozen=True)
class Trained:
    """A finished proxy run, and what scores it."""

    result: Result
    job: Job
    data: Data

    @property
    def params(self) -> Params:
        """The trained parameters."""
        return self.result.state.params

    def score(self, part: Part, objective: Objective | None = None) -> dict[str, float]:
        """Bits per byte and its relatives on this part of the held-out documents, or "loss" where that is no likelihood.

        Args:
          objective: what is scored, in place of what the run minimised; with the run's model if it names none.
        """
        if objective is None:
            scored, run = self.job.objective, self.job.score
        else:
            scored = objective.on(self.job.cfg.model)
            run = scorer(scored)
        return self.data.evaluation(run, part, likelihood=scored.likelihood)(self.params)


def train(cfg: Pretrain, *, rate: float, init_seed: int, order_seed: int, params: Params | None = None) -> Trained:
    """Trains with this peak rate.

    Args:
      init_seed, order_seed: of the initial values, and of the order of the batches. Runs that share both differ in the
        treatment alone.
      params: to go on from in place of initial values; any form of the matrices of `cfg`.

    Raises:
      NonFiniteError: it diverged.
    """
    job, data = _job(_what_is_compiled(cfg)), _data(cfg.data, cfg.model.vocab_size)
    if params is None:
        state = job.create(init_seed=init_seed, seed=order_seed, spec=cfg.objective.on(cfg.model).spec())
    else:
        state = states.create(params, job.optimizer, order_seed)
    quiet = dataclasses.replace(cfg.run, out=None, quiet=True, log_every=max(1, cfg.run.steps // 60))
    result = run_loop(
        quiet,
        job.step,
        with_rate(state, rate),
        data.loader(job.mesh, seed=order_seed),
        events=pretrain.scheduled(cfg, job.optimizer),
        flops_per_step=pretrain.flops_per_step(cfg),
    )
    return Trained(result, job, data)


def score(
    cfg: Pretrain,
    *,
    rate: float,
    init_seed: int,
    order_seed: int,
    params: Params | None = None,
    look: Look | None = None,
    objective: Objective | None = None,
) -> Trial:
    """Trains as `train` does and scores both parts of the held-out documents, by bits per byte, or by the loss where the
    objective is no likelihood.

    Args:
      look: its result becomes the trial's `extra`.
      objective: see `Trained.score`.
    """
    start = time.perf_counter()
    try:
        trained = train(cfg, rate=rate, init_seed=init_seed, order_seed=order_seed, params=params)
    except NonFiniteError as error:  # a rate that is too high is a result, not an accident
        return Trial(math.inf, math.inf, {}, [], time.perf_counter() - start, {"diverged": str(error)})
    params = trained.params
    scores: dict[str, dict[str, float]] = {part: trained.score(part, objective) for part in ("tuning", "report")}
    metric = "bits_per_byte" if "bits_per_byte" in scores["report"] else "loss"
    sizes = {
        "parameters_of_block_matrices": sum(
            specs.count(w) for path, w in weights.matrices(params).items() if "blocks/" in path
        ),
        "bytes_as_papers_count": ledger.memory_model(params)["total"],
    }
    return Trial(
        value=scores["report"][metric],
        tuning_value=scores["tuning"][metric],
        ledger=trained.result.ledger.to_dict() | sizes,
        curve=trained.result.curve,
        seconds=time.perf_counter() - start,
        extra={"report": scores["report"]} | ({} if look is None else look(params)),
    )


def with_rate(state: TrainState, rate: float) -> TrainState:
    """The state with this peak rate, for an optimizer made by `rate_in_state`."""
    old = state.opt_state.hyperparams
    if "peak" not in old:
        raise ValueError(f"the optimizer's state has no peak rate, only {sorted(old)}")
    new = {**old, "peak": jnp.asarray(rate, old["peak"].dtype)}
    return dataclasses.replace(state, opt_state=state.opt_state._replace(hyperparams=new))


def rate_in_state(cfg: Pretrain) -> optax.GradientTransformation:
    """The optimizer of `cfg`, its peak rate an array of the state."""
    return optax.inject_hyperparams(lambda peak: cfg.optimizer.make(cfg.run.steps, peak))(peak=cfg.optimizer.rate)


def _what_is_compiled(cfg: Pretrain) -> Pretrain:
    """`cfg` without what is data to the compiled step: the rate, the seeds, the events, the scale of initial values."""
    scale = {"embedding_stddev": 1.0} if hasattr(cfg.model, "embedding_stddev") else {}
    return dataclasses.replace(
        cfg,
        model=dataclasses.replace(cfg.model, **scale),
        optimizer=dataclasses.replace(cfg.optimizer, rate=1.0),
        data=dataclasses.replace(cfg.data, seed=0),
        events=(),
        init_seed=0,
    )


@functools.lru_cache(maxsize=4)  # without workers a claim comes back to its arms for the other seeds
def _job(cfg: Pretrain) -> Job:
    return pretrain.build(cfg, optimizer=rate_in_state(cfg))


@functools.lru_cache(maxsize=8)
def scorer(objective: Objective) -> Scorer:
    """`pretrain.scorer`, compiled once for all trials of a process."""
    return pretrain.scorer(objective)


@functools.lru_cache(maxsize=4)
def _data(cfg: pretrain.DataConfig, vocab_size: int) -> Data:
    return cfg.open(vocab_size)
