"""Fine-tuning on a classification task, as GLUE results are made: a grid, then seeds, every run reported.

    encode = sequence_encoder(vocabulary, max_length=64)
    result = fine_tune(decoder_features(cfg), params, cfg.width, task, encode, grid=Grid(rates=(1e-4, 3e-4)))
    result.report["matthews"], result.runs                       # median over seeds; every run with its settings
    result.beats(fine_tune(decoder_features(cfg), untrained, cfg.width, task, encode, grid=grid))

A model is `features(params, batch) -> [B, D]`: its state of the token that stands for the text. The head is a linear map of
it (decoders) or dropout, a dense tanh layer and a linear map (BERT, arXiv 1810.04805; ELECTRA, arXiv 2003.10555). The whole
grid runs with the first seed; the best setting runs with all. Grid and result use the same validation set, as published
GLUE development numbers do; a run that stays within 1% of the best constant answer is degenerate: marked, counted and kept.
"""

from __future__ import annotations

import dataclasses
import itertools
import statistics
from collections.abc import Callable, Iterator, Sequence
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxpt import optim
from jaxpt.core.rng import fold
from jaxpt.core.types import Array, Float, Params, PRNGKeyArray, PyTree
from jaxpt.data.vocabularies import Vocabulary
from jaxpt.evaluate.classification import METRICS, Example, Task, labels
from jaxpt.evaluate.report import Report
from jaxpt.evaluate.scoring import LENGTHS
from jaxpt.models import decoder, encoder
from jaxpt.objectives.base import Losses
from jaxpt.optim.layer_decay import layer_decay
from jaxpt.optim.schedules import warmup_linear
from jaxpt.training import state as states
from jaxpt.training.step import Batch, Step, make_step

VERSION = 1  # of the procedure
Features = Callable[[Params, Batch], Float[Array, "B D"]]
Encode = Callable[[Example], tuple[list[int], list[int]]]  # token ids and token types (0 first text, 1 second)


@dataclasses.dataclass(frozen=True)
class Grid:
    """What is tried, and what is the same in all runs. The defaults are BERT's; small models want 10 times the rates.

    Attributes:
      layer_decay: each layer's rate is so much of the one above it; ELECTRA has 0.8, 1 is off. Needs "blocks" in params.
    """

    rates: tuple[float, ...] = (1e-5, 2e-5, 3e-5, 5e-5)
    epochs: tuple[int, ...] = (3,)
    batch_sizes: tuple[int, ...] = (16, 32)
    warmup: float = 0.1
    weight_decay: float = 0.01
    layer_decay: float = 1.0
    dropout: float = 0.1
    clip: float = 1.0
    head: Literal["linear", "tanh"] = "linear"


@dataclasses.dataclass(frozen=True)
class Run:
    """One fine-tuning: its settings, the metric on the validation set, and whether it learned nothing."""

    rate: float
    epochs: int
    batch_size: int
    seed: int
    value: float
    degenerate: bool


@dataclasses.dataclass(frozen=True)
class Result:
    """Attributes:
    report: METRIC (median over seeds), mean, sd, majority (of the best constant answer), degenerate (of the seeds), rate,
      epochs, batch_size; per_item has `values` [seeds].
    runs: the grid with the first seed, then the other seeds.
    """

    report: Report
    runs: tuple[Run, ...]

    def beats(self, other: Result) -> bool:
        """Whether the mean is above the other's by more than 2 standard errors of the difference."""
        a, b = (np.asarray(r.report.per_item["values"]) for r in (self, other))
        error = float(np.sqrt(a.var(ddof=1) / len(a) + b.var(ddof=1) / len(b)))
        return float(a.mean() - b.mean()) > 2 * error


def fine_tune(
    features: Features,
    params: Params,
    width: int,
    task: Task,
    encode: Encode,
    *,
    grid: Grid | None = None,
    seeds: Sequence[int] = (0, 1, 2, 3, 4),
) -> Result:
    """Fine-tunes copies of `params`; a seed gives the head, the order of the data, and dropout.

    Args:
      width: D of the features.

    Raises:
      ValueError: no seeds, an empty grid, or a batch larger than the training set.
    """
    grid = grid or Grid()
    settings = list(itertools.product(grid.batch_sizes, grid.epochs, grid.rates))
    if not settings or not seeds or max(grid.batch_sizes) > len(task.train):
        given = f"{len(settings)} settings, {len(seeds)} seeds, {len(task.train)} examples"
        raise ValueError(f"cannot fine-tune with {given} and batches of {grid.batch_sizes}")
    trainer = _Trainer(features, params, width, task, encode, grid)
    runs = [trainer.run(rate, epochs, size, seeds[0]) for size, epochs, rate in settings]
    best = max(runs, key=lambda r: r.value)
    chosen = [best, *(trainer.run(best.rate, best.epochs, best.batch_size, seed) for seed in seeds[1:])]
    values = [r.value for r in chosen]
    numbers = {
        task.metric: statistics.median(values),
        "mean": statistics.fmean(values),
        "sd": statistics.stdev(values) if len(values) > 1 else 0.0,
        "majority": trainer.majority,
        "degenerate": float(sum(r.degenerate for r in chosen)),
        "rate": best.rate,
        "epochs": float(best.epochs),
        "batch_size": float(best.batch_size),
    }
    report = Report(
        f"fine-tuning: {task.name}",
        VERSION,
        len(task.validation),
        task.fingerprint,
        numbers,
        {"values": np.array(values)},
    )
    return Result(report, (*runs, *chosen[1:]))


def decoder_features(cfg: decoder.Config) -> Features:
    """The final state of the last token of each text."""

    def features(params: Params, batch: Batch) -> Float[Array, "B D"]:
        hidden = decoder.hidden_states(params, batch["inputs"], cfg, segments=batch["segment_ids"]).final
        last = batch["segment_ids"].sum(-1) - 1
        return jnp.take_along_axis(hidden, last[:, None, None], 1)[:, 0]

    return features


def encoder_features(cfg: encoder.Config) -> Features:
    """The final state of the first token of each text, [CLS]."""

    def features(params: Params, batch: Batch) -> Float[Array, "B D"]:
        types = {"token_types": batch["token_types"]} if cfg.token_types else {}
        return encoder.apply(params, batch["inputs"], cfg, segments=batch["segment_ids"], **types)[:, 0]

    return features


def sequence_encoder(
    vocabulary: Vocabulary,
    max_length: int,
    *,
    start: int | None = None,
    between: int | None = None,
    end: int | None = None,
) -> Encode:
    """start a between b end, or start a end. The longer of two texts is cut first.

    Args:
      start, between, end: token ids; BOS, EOS and EOS of the vocabulary by default ([CLS], [SEP], [SEP] of BERT).
    """
    first = vocabulary.bos_id if start is None else start
    middle, last = (vocabulary.eos_id if x is None else x for x in (between, end))
    if max_length < 4:
        raise ValueError(f"max_length={max_length} leaves no room for a text")

    def encode(example: Example) -> tuple[list[int], list[int]]:
        a = vocabulary.encode(example.first)
        if example.second is None:
            ids = [first, *a[: max_length - 2], last]
            return ids, [0] * len(ids)
        b = vocabulary.encode(example.second)
        room = max_length - 3
        of_b = min(len(b), max(room - len(a), room // 2))
        a, b = a[: room - of_b], b[:of_b]
        return [first, *a, middle, *b, last], [0] * (len(a) + 2) + [1] * (len(b) + 1)

    return encode


class _Trainer:
    """A task as arrays, and one compiled step for each number of updates; rates are an argument of the optimizer."""

    def __init__(self, features: Features, params: Params, width: int, task: Task, encode: Encode, grid: Grid) -> None:
        self.features, self.params, self.width, self.task, self.grid = features, params, width, task, grid
        sides = [[encode(e) for e in side] for side in (task.train, task.validation)]
        longest = max(len(ids) for side in sides for ids, _ in side)
        length = next((n for n in LENGTHS if n >= longest), longest)
        self.train, self.validation = (
            _arrays(side, labels(of), length) for side, of in zip(sides, (task.train, task.validation), strict=True)
        )
        self.right = labels(task.validation)
        constants = range(task.classes) if task.classes > 1 else [float(labels(task.train).mean())]
        self.majority = max(METRICS[task.metric](np.full(len(self.right), c), self.right) for c in constants)
        self._predict = jax.jit(lambda p, b: self._outputs(p, b, None))
        self._steps: dict[tuple[int, int], tuple[Step, Callable[[float], optax.GradientTransformation]]] = {}

    def run(self, rate: float, epochs: int, size: int, seed: int) -> Run:
        """One fine-tuning."""
        updates = epochs * (len(self.task.train) // size)
        if (updates, size) not in self._steps:
            self._steps[updates, size] = self._compiled(updates)
        step, optimizer = self._steps[updates, size]
        key = fold(jax.random.key(seed), "fine-tuning")
        params = {"model": self.params, "head": _head(key, self.width, self.task.classes, self.grid.head)}
        state = states.create(params, optimizer(rate), seed)
        for batch in _batches(self.train, epochs, size, seed):
            state, _ = step.run(state, {k: jnp.asarray(x) for k, x in batch.items()})
        value = METRICS[self.task.metric](self._predictions(state.params, size), self.right)
        return Run(rate, epochs, size, seed, value, value <= self.majority + 0.01)

    def _compiled(self, updates: int) -> tuple[Step, Callable[[float], optax.GradientTransformation]]:
        schedule = warmup_linear(1.0, updates, round(self.grid.warmup * updates))

        def chained(rate: float) -> optax.GradientTransformation:
            adam = optim.adam(rate, weight_decay=self.grid.weight_decay)
            return optax.chain(adam, optax.scale_by_schedule(schedule), layer_decay(self.grid.layer_decay, "model/"))

        def optimizer(rate: float) -> optax.GradientTransformation:
            return optax.inject_hyperparams(chained)(rate=rate)

        return make_step(self._loss, optimizer(0.0), clip=self.grid.clip), optimizer

    def _loss(self, params: Params, batch: Batch, key: PRNGKeyArray) -> Losses:
        found = self._outputs(params, batch, key)
        if self.task.classes == 1:
            each = (found[:, 0] - batch["target"]) ** 2
        else:
            each = optax.softmax_cross_entropy_with_integer_labels(found, batch["target"].astype(jnp.int32))
        return Losses(each, jnp.ones_like(each), {})

    def _outputs(self, params: Params, batch: Batch, key: PRNGKeyArray | None) -> Float[Array, "B C"]:
        x = self.features(params["model"], batch).astype(jnp.float32)
        head = params["head"]
        x = _dropout(x, self.grid.dropout, key, "features")
        if self.grid.head == "tanh":
            x = jnp.tanh(x @ head["dense"]["kernel"] + head["dense"]["bias"])
            x = _dropout(x, self.grid.dropout, key, "dense")
        return x @ head["out"]["kernel"] + head["out"]["bias"]

    def _predictions(self, params: Params, size: int) -> np.ndarray:
        outputs = []
        for start in range(0, len(self.right), size):
            rows = np.minimum(np.arange(start, start + size), len(self.right) - 1)  # the last batch is filled up
            outputs.append(np.asarray(self._predict(params, {k: x[rows] for k, x in self.validation.items()})))
        found = np.concatenate(outputs)[: len(self.right)]
        return found[:, 0].astype(np.float64) if self.task.classes == 1 else found.argmax(-1).astype(np.float64)


def _head(key: PRNGKeyArray, width: int, classes: int, kind: str) -> PyTree:
    def linear(name: str, out: int) -> dict[str, Array]:
        return {"kernel": 0.02 * jax.random.normal(fold(key, name), (width, out)), "bias": jnp.zeros(out)}

    return {"out": linear("out", classes)} | ({"dense": linear("dense", width)} if kind == "tanh" else {})


def _dropout(x: Array, rate: float, key: PRNGKeyArray | None, name: str) -> Array:
    if key is None or not rate:
        return x
    return jnp.where(jax.random.bernoulli(fold(key, name), 1 - rate, x.shape), x / (1 - rate), 0)


def _arrays(encoded: list[tuple[list[int], list[int]]], target: np.ndarray, length: int) -> dict[str, np.ndarray]:
    found = {name: np.zeros((len(encoded), length), np.int32) for name in ("inputs", "segment_ids", "token_types")}
    for row, (ids, types) in enumerate(encoded):
        found["inputs"][row, : len(ids)], found["token_types"][row, : len(ids)] = ids, types
        found["segment_ids"][row, : len(ids)] = 1
    return found | {"target": target.astype(np.float32)}


def _batches(arrays: dict[str, np.ndarray], epochs: int, size: int, seed: int) -> Iterator[dict[str, np.ndarray]]:
    """Shuffled every epoch; what does not fill a batch is left out of that epoch."""
    count = len(arrays["target"])
    for epoch in range(epochs):
        order = np.random.default_rng([seed, 9, epoch]).permutation(count)
        for start in range(0, count - size + 1, size):
            yield {name: x[order[start : start + size]] for name, x in arrays.items()}
