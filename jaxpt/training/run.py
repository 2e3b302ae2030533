"""What goes into a run and what comes out of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any, Protocol

import numpy as np

from jaxpt.sharding import MeshConfig
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
      profile: "10:12" traces updates 10 to 12 into OUT/profile, for XProf and TensorBoard.
      watchdog: seconds without any progress (an update, an event, an evaluation, a save) after which the stacks of
        all threads are printed and the process ends; 0 for never. None: never on one process, an hour on several.
      peer_timeout: seconds without a sign of life from another process of the run after which this one ends.
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
    profile: str | None = None
    watchdog: float | None = None
    peer_timeout: float = 60.0

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
        if self.watchdog is not None and self.watchdog < 0:
            raise ValueError(f"watchdog must be seconds, 0 or more, got {self.watchdog}")
        if not 0 < self.peer_timeout <= 90:  # JAX itself ends a process after 100 s, and says less
            raise ValueError(f"peer_timeout must be seconds above 0 and at most 90, got {self.peer_timeout}")
        if self.profile is not None and (profile_window(self.profile)[1] > self.steps or self.out is None):
            raise ValueError(f"profile={self.profile!r} must end by update {self.steps}, and needs a folder out")


def profile_window(text: str) -> tuple[int, int]:
    """ "10:12" -> (10, 12).

    Raises:
      ValueError: anything else, or an end before the start.
    """
    first, colon, last = text.partition(":")
    if not (colon and first.isdigit() and last.isdigit() and 1 <= int(first) <= int(last)):
        raise ValueError(f"profile must be START:END, two updates counted from 1, for example 10:12; got {text!r}")
    return int(first), int(last)


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
    """A described configuration without what may change on resuming: all of a RunConfig but `steps`, and the mesh."""
    if isinstance(described, Mapping):
        is_run = described.get("class") == RunConfig.__name__
        kept = {k: v for k, v in described.items() if not is_run or k in ("class", "steps")}
        return {k: decisive(v) for k, v in kept.items() if not _is_mesh(v)}
    return described


def _is_mesh(described: Any) -> bool:
    return isinstance(described, Mapping) and described.get("class") == MeshConfig.__name__
