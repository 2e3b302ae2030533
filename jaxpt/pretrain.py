"""The main job: pretrain a model on real text, from one frozen description.

    cfg = Pretrain(model=decoder.Config(width=96, weights=(("blocks", SparseLowRank(12, 0.15)),)), run=RunConfig(300))
    result = run(cfg)                                    # data, model, step, loop, evaluation

`build` is everything that needs no data: mesh, spec, optimizer, compiled step. A method brings its own model, objective,
optimizer, sequence weights or events; the description has no field that serves one method alone.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import optax
from jax.sharding import Mesh

from jaxpt.core import spec as specs
from jaxpt.core.rng import fold
from jaxpt.core.types import Params, PRNGKeyArray
from jaxpt.data.arrays import OneSize
from jaxpt.data.held_out import Part, held_out
from jaxpt.data.loader import Loader, single_source
from jaxpt.data.packing import batch_shapes, pack
from jaxpt.data.prepare import TextTask, prepared
from jaxpt.data.records import TokenRecords
from jaxpt.evaluate.bits_per_byte import Scorer, bits_per_byte, make_scorer, mean_loss
from jaxpt.models import decoder
from jaxpt.objectives import phases
from jaxpt.objectives.base import Losses, Objective
from jaxpt.objectives.causal_lm import CausalLM
from jaxpt.optim import AdamConfig, OptimizerConfig
from jaxpt.sharding import MeshConfig, local_rows, make_mesh
from jaxpt.training import ledger
from jaxpt.training import state as states
from jaxpt.training.events import EventConfig, Scheduled
from jaxpt.training.loop import train
from jaxpt.training.run import Result, RunConfig
from jaxpt.training.state import TrainState
from jaxpt.training.step import Batch, Phased, Step, WeightFn, make_step


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataConfig(OneSize):
    """Which text, and how it becomes batches.

    Attributes:
      corpora: names for `jaxpt.data.corpora.open_corpus`; on a command line with commas between.
      vocabulary: "bytes", "bpe:SIZE", "sentencepiece:SIZE" or the path of one.
      validation: share of the documents that is held out.
      sequence_length, batch_size: tokens per sequence S, sequences per update B (over all devices).
      packing: "isolate" or "concatenate", see `jaxpt.data.packing`.
      evaluation_tokens: at most so many held-out tokens are scored at a time.
      seed: of the order of the batches.
    """

    corpora: tuple[str, ...] | str = ("python-code", "python-prose")
    vocabulary: str = "bytes"
    validation: float = 0.05
    sequence_length: int = 256
    batch_size: int = 16
    packing: str = "isolate"
    evaluation_tokens: int = 65_536
    seed: int = 0

    def open(self, vocab_size: int) -> Data:
        """The records of `task`, prepared on first use.

        Raises:
          ValueError: the vocabulary has more ids than the model.
        """
        folder = prepared(self.task)
        train_records, validation = TokenRecords(folder, "train"), TokenRecords(folder, "validation")
        if train_records.vocabulary_size > vocab_size:
            raise ValueError(
                f"the vocabulary of {folder} has {train_records.vocabulary_size} ids, but model.vocab_size={vocab_size}; "
                f"give model.vocab_size={padded_vocabulary(train_records.vocabulary_size)}"
            )
        return Data(self, train_records, validation)

    def batch_shapes(self, rows: int, length: int) -> dict[str, jax.ShapeDtypeStruct]:
        """Names, shapes and dtypes of the arrays of a batch of so many sequences of so many tokens, before there is text."""
        return batch_shapes(rows, length)

    @property
    def task(self) -> TextTask:
        """What has to be prepared."""
        names = tuple(self.corpora.split(",")) if isinstance(self.corpora, str) else self.corpora
        return TextTask.of(names, self.vocabulary, self.validation)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pretrain:
    """One pretraining run, whole.

    Attributes:
      model: the configuration of any model.
      objective: what is minimised, on this model; next tokens by default.
      events: what happens between updates.
      init_seed: draws the parameters, as `data.seed` does the order of the batches.
    """

    model: Any = dataclasses.field(default_factory=decoder.Config)
    objective: Objective = dataclasses.field(default_factory=CausalLM)
    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    optimizer: OptimizerConfig = dataclasses.field(default_factory=AdamConfig)
    events: tuple[EventConfig, ...] = ()
    run: RunConfig = dataclasses.field(default_factory=lambda: RunConfig(steps=300))
    mesh: MeshConfig = dataclasses.field(default_factory=MeshConfig)
    accumulate: int = 1
    init_seed: int = 0


@dataclasses.dataclass(frozen=True)
class Job:
    """A run before it meets data.

    Attributes:
      objective: what held-out text is scored by, on the run's model; the last, where they change on the way.
      score: its nats per sequence, compiled once however often it is used.
    """

    cfg: Pretrain
    mesh: Mesh | None
    spec: Params
    optimizer: optax.GradientTransformation
    step: Step | Phased
    objective: Objective
    score: Scorer

    def create(self, init_seed: int | None = None, seed: int | None = None, spec: Params | None = None) -> TrainState:
        """The state at step 0, every array made where it will live.

        Args:
          spec: the same arrays with other initial values.
        """
        init_seed = self.cfg.init_seed if init_seed is None else init_seed
        seed = self.cfg.data.seed if seed is None else seed
        spec = self.spec if spec is None else spec
        if self.mesh is not None:
            return states.create_sharded(spec, self.optimizer, self.mesh, seed, init_seed)
        return states.create(specs.init(jax.random.key(init_seed), spec), self.optimizer, seed)


def build(
    cfg: Pretrain,
    *,
    optimizer: optax.GradientTransformation | None = None,
    weight_fn: WeightFn | None = None,
    mesh: Mesh | None = None,
) -> Job:
    """Mesh, spec, optimizer and step.

    Args:
      optimizer: in place of `cfg.optimizer`'s; clipping stays the step's.
      weight_fn: see `make_step`.
      mesh: in place of one over all devices of this process group, for example one to compile for.
    """
    mesh = make_mesh(cfg.mesh) if mesh is None else mesh
    used = None if mesh.size == 1 and mesh.devices.flat[0] == jax.devices()[0] else mesh
    objective = cfg.objective.on(cfg.model)
    spec = objective.spec()
    optimizer = cfg.optimizer.make(cfg.run.steps) if optimizer is None else optimizer
    where = None if used is None else states.state_shardings(spec, optimizer, used)

    def step(of: Objective) -> Step:
        return make_step(
            of.loss, optimizer, prepare=of.prepare, accumulate=cfg.accumulate, clip=cfg.optimizer.clip,
            weight_fn=weight_fn, mesh=used, shardings=where,
        )  # fmt: skip

    found = [(first, step(of)) for first, of in phases.starts(objective, cfg.run.steps)]
    steps = found[0][1] if len(found) == 1 else Phased(tuple(found))
    scored = phases.last(objective).scored()
    return Job(cfg, used, spec, optimizer, steps, scored, scorer(scored, used))


def scorer(objective: Objective, mesh: Mesh | None = None) -> Scorer:
    """(parameters, batch) -> (nats [B], weights [B]) of an objective, the same draws every time."""

    def loss(params: Params, batch: Batch, key: PRNGKeyArray) -> Losses:
        return objective.loss(params, objective.prepare(fold(key, "prepare"), batch), key)

    return make_scorer(loss, mesh)


@dataclasses.dataclass(frozen=True)
class Data:
    """Prepared records of a run: what it trains on and what it is scored on."""

    cfg: DataConfig
    train: TokenRecords
    validation: TokenRecords

    def loader(self, mesh: Mesh | None = None, seed: int | None = None) -> Loader:
        """The batches, of which this process reads the rows that its devices of the mesh need."""
        packing = pack(self.train, self.cfg.sequence_length, self.cfg.packing)  # type: ignore[arg-type]
        size, seed = self.cfg.batch_size, self.cfg.seed if seed is None else seed
        return single_source(self.train, packing, size, seed, rows=local_rows(mesh, size))

    def evaluation(
        self, score: Scorer, part: Part = "all", *, likelihood: bool = True
    ) -> Callable[[Params], dict[str, float]]:
        """Parameters -> bits per byte and its relatives on held-out documents; "loss" where the score is no likelihood."""
        windows = held_out(
            self.validation, self.cfg.sequence_length, self.cfg.batch_size, part=part,
            max_tokens=self.cfg.evaluation_tokens,
        )  # fmt: skip
        return bits_per_byte(score, windows) if likelihood else mean_loss(score, windows)


def padded_vocabulary(ids: int) -> int:
    """The next multiple of 128, which a mesh axis and a matrix unit divide."""
    return 128 * math.ceil(ids / 128)


def run(
    cfg: Pretrain,
    job: Job | None = None,
    events: Sequence[Scheduled] = (),
    state: TrainState | None = None,
) -> Result:
    """Trains to the end, or on from where an earlier call with the same `cfg.run.out` was stopped.

    Args:
      events: more of them, after those of `cfg`.
      state: to start from, in place of initial values; its arrays are given up.
    """
    job = build(cfg) if job is None else job
    data = cfg.data.open(cfg.model.vocab_size)
    return train(
        cfg.run,
        job.step,
        job.create() if state is None else state,
        data.loader(job.mesh),
        events=[*scheduled(cfg, job.optimizer), *events],
        evaluate=data.evaluation(job.score, likelihood=job.objective.likelihood),
        flops_per_step=flops_per_step(cfg),
        learning_rate=cfg.optimizer.rates(cfg.run.steps),
        config_dict={"pretrain": cfg},
    )


def scheduled(cfg: Pretrain, optimizer: optax.GradientTransformation) -> list[Scheduled]:
    """The events of `cfg` for a step with this optimizer."""
    return [event for described in cfg.events for event in described.for_run(cfg.run.steps, optimizer)]


def flops_per_step(cfg: Pretrain) -> Callable[..., ledger.Cost]:
    """(parameters, update from 0) -> cost of that update; events may change the form of the one, phases the objective."""
    starts = phases.starts(cfg.objective.on(cfg.model), cfg.run.steps)

    def cost(params: Params, update: int = 0) -> ledger.Cost:
        objective = [of for first, of in starts if first <= update][-1]
        return objective.cost(params, *cfg.data.size_at(update))

    return cost


def at(cfg: Pretrain, folder: str | Path | None) -> Pretrain:
    """The same run with its files in this folder."""
    where = None if folder is None else str(folder)
    return dataclasses.replace(cfg, run=dataclasses.replace(cfg.run, out=where))
