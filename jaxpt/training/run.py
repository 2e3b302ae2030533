"""What goes into a run and what comes out of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any, Protocol

import numpy as np

from jaxpt.training.ledger import Ledger
from jaxpt.training.metrics import Row
from jaxpt.training.state import TrainState


class Loader(Protocol):
    """What the loop needs of `jaxpt.data.loader.Loader`."""

    @property
    def fingerprint(self) -> str:
        """Equal fingerprints give equal batches."""

    def batches(self, start_step: int = 0) -> Iterator[dict[str, np.ndarray]]:
        """This process's rows of the batches of updates start_step + 1, ..."""

    def ledger(self, step: int) -> Mapping[str, float]:
        """ "tokens" and "unique_tokens" before update step + 1."""


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """How a run is conducted. Only `steps` changes what it computes.

    Attributes:
      steps: updates in all.
      out: folder of checkpoints and metrics; None writes nothing, and the run cannot be resumed.
      evaluate_every, checkpoint_every: updates between two; 0 for only after the last.
      keep: newest checkpoints that are kept.
      log_every: updates between two rows of metrics.
      lag: updates whose metrics may be still under way when the next is sent to the device.
      tensorboard: also write OUT/tensorboard.
      bar: progress bar; None for where standard output is a terminal.
      quiet: print nothing.
      resume_anyway: go on from a checkpoint whose config or data differ.
    """

    steps: int
    out: str | None = None
    evaluate_every: int = 0
    checkpoint_every: int = 0
    keep: int = 2
    log_every: int = 10
    lag: int = 2
    tensorboard: bool = True
    bar: bool | None = None
    quiet: bool = False
    resume_anyway: bool = False

    def __post_init__(self) -> None:
        at_least = {
            "steps": 1,
            "evaluate_every": 0,
            "checkpoint_every": 0,
            "keep": 1,
            "log_every": 1,
            "lag": 0,
        }
        for name, least in at_least.items():
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, got {getattr(self, name)}")


@dataclasses.dataclass(frozen=True)
class Result:
    """Attributes:
    state: after the last update.
    ledger: what the whole run used, interruptions included.
    rows: metrics of the whole run, as in metrics.jsonl.
    evaluation: the last one; None without.
    interrupted: a signal ended the run before its last step; the state is saved.
    resumed_from: the step of the checkpoint it went on from; None for a fresh run.
    """

    state: TrainState
    ledger: Ledger
    rows: list[Row]
    evaluation: dict[str, float] | None
    interrupted: bool
    resumed_from: int | None

    @property
    def curve(self) -> list[tuple[int, float]]:
        """(step, loss) of every row that has a loss."""
        return [(row["step"], row["loss"]) for row in self.rows if "loss" in row]


class NonFiniteError(RuntimeError):
    """The loss or the gradient of an update is not finite; the state before it is saved."""


def decisive(described: Any) -> Any:
    """A described configuration without what a RunConfig holds beside `steps`: it may change on resuming."""
    if isinstance(described, Mapping):
        is_run = described.get("class") == RunConfig.__name__
        return {k: decisive(v) for k, v in described.items() if not is_run or k in ("class", "steps")}
    return described
