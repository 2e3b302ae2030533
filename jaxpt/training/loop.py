"""The loop: batches through the step; events, evaluation and checkpoints between; on after any interruption.

    result = train(RunConfig(steps=1000, out="runs/a"), step, state, loader, evaluate=evaluate)

A boundary is the moment after update t, when state.step == t. There, in this order: the events that are due,
evaluation, the checkpoint. So checkpoint t holds what update t + 1 starts from. Typing the same command
again goes on from the newest.
"""

from __future__ import annotations

import dataclasses
import json
import warnings
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import jax
import jax.numpy as jnp
import numpy as np

from jaxpt.core import config
from jaxpt.core.files import write_json
from jaxpt.core.types import Array, Params
from jaxpt.training import events as scheduled
from jaxpt.training import ledger as ledgers
from jaxpt.training.checkpoint import Checkpoints, ResumeError, shape_of
from jaxpt.training.guard import COMPUTING, Guard
from jaxpt.training.interrupts import Interrupts
from jaxpt.training.ledger import Flops, Ledger
from jaxpt.training.lock import Lock
from jaxpt.training.metrics import Breakdown, Log, Meter, Progress, Row, peak_flops
from jaxpt.training.profile import Trace
from jaxpt.training.run import Loader, NonFiniteError, Result, RunConfig, decisive
from jaxpt.training.state import TrainState
from jaxpt.training.step import Phased, Step, put_batch

NOT_FOR_DEVICE = ("sequence_ids", "document", "domain_index")


def train(
    cfg: RunConfig,
    step: Step | Phased,
    state: TrainState,
    loader: Loader,
    *,
    events: Sequence[scheduled.Scheduled] = (),
    evaluate: Callable[[Params], dict[str, float]] | None = None,
    flops_per_step: Flops = None,
    learning_rate: Callable[[int], Any] | None = None,
    config_dict: Mapping[str, Any] | None = None,
) -> Result:
    """Trains to step cfg.steps, or until SIGTERM or SIGINT.

    Args:
      state: the state at step 0; its arrays are given up. A checkpoint in cfg.out replaces it.
      events: run at boundaries, in list order; made by `every` and `at`.
      evaluate: parameters -> numbers by name.
      flops_per_step: for the ledger and the FLOP utilisation (`models.flops`).
      learning_rate: update number from 0 -> rate, to be logged.
      config_dict: the resolved configuration of everything, written to cfg.out; a resumed run must have the
        same.

    Raises:
      NonFiniteError: see there. OUT/nonfinite.json names the update and the sequences of its batch.
      ResumeError: the checkpoints are of a run with another configuration or other data.
      CheckpointError: a checkpoint could not be written, or none could be read.
      LockError: another run writes to cfg.out.
      Whatever the loader or the evaluation raises, after the last good state is saved. What an event raises
        saves nothing: the state may be half changed. On several processes an error of one ends all of them
        (`guard`), and the newest checkpoint is what is saved.
    """
    events = scheduled.check(events, cfg.steps)
    described = config.to_dict(cfg if config_dict is None else config_dict)
    run = _Run(cfg, step, state, loader, events, evaluate, flops_per_step, learning_rate, described)
    with Guard(cfg.watchdog, cfg.peer_timeout, run.advice) as run.guard:
        try:
            with Interrupts() as stop:
                run.open()
                result = run.go(stop)
        except BaseException:
            run.close(abandoned=jax.process_count() > 1)
            raise
        run.close()
        return result


@dataclasses.dataclass
class _Pending:
    """An update that was sent to the device."""

    step: int
    metrics: dict[str, Array]
    ids: np.ndarray
    tokens: float


@dataclasses.dataclass
class _Run:
    cfg: RunConfig
    step: Step | Phased
    state: TrainState
    loader: Loader
    events: Sequence[scheduled.Scheduled]
    evaluate: Callable[[Params], dict[str, float]] | None
    flops: Flops
    learning_rate: Callable[[int], Any] | None
    described: Any
    guard: Guard = dataclasses.field(init=False)

    def __post_init__(self) -> None:
        self.at = 0
        self.evaluation: dict[str, float] | None = None
        self.resumed_from: int | None = None
        self.checkpoints: Checkpoints | None = None
        self.log, self.progress = Log(None), Progress(0, self.cfg.steps, quiet=True)
        self.pending: deque[_Pending] = deque()
        self.meter, self.breakdown, self.ledger = Meter(), Breakdown(), Ledger()
        self.lock: Lock | None = None
        self.warned, self.seen = False, set[str]()
        self.shapes: dict[str, tuple[int, ...]] = {}  # of the batch before
        self.trace = Trace(self.cfg.profile, self.cfg.out)

    def open(self) -> None:
        """Finds where to go on from, and opens the files."""
        cfg, first = self.cfg, jax.process_index() == 0
        if cfg.out is not None:
            self._doing("opening the folder")
            self.lock = Lock(cfg.out) if first else None
            self.checkpoints = Checkpoints(cfg.out, cfg.keep)
            self._resume(self.checkpoints)
        folder = Path(cfg.out) if cfg.out is not None and first else None
        if folder is not None:
            write_json(folder / "config.json", {"config": self.described, "data": self.loader.fingerprint})
        self.log = Log(folder, self.at, cfg.tensorboard)
        self.progress = Progress(self.at, cfg.steps, cfg.bar, cfg.quiet or not first)
        if self.resumed_from is not None:
            self.progress.say(f"resumed from step {self.at} in {cfg.out}")
        self._measure()

    def go(self, stop: Interrupts) -> Result:
        """Updates until the last one or until told to stop."""
        batches = iter(self.loader.batches(self.at)) if self.at < self.cfg.steps else None
        interrupted = False
        self.breakdown.start(self.at)
        try:
            while self.at < self.cfg.steps and not interrupted:
                self._update(self._next(batches))
                self._boundary()
                interrupted = self.at < self.cfg.steps and stop(self.at)
        finally:
            getattr(batches, "close", lambda: None)()
        self._drain(0)
        self._doing("saving")
        if interrupted:
            self._save()
            where = "" if self.cfg.out is None else f"; saved in {self.cfg.out}, the same command goes on from there"
            self.progress.say(f"interrupted after step {self.at}{where}")
        self._wait()
        return Result(self.state, self._ledger(), self.log.rows, self.evaluation, interrupted, self.resumed_from)

    def close(self, abandoned: bool = False) -> None:
        """Closes what is open; where other processes may be gone, without waiting for a save under way."""
        self.progress.close()
        self.log.close()
        self.trace.close()
        try:
            if self.checkpoints is not None and not abandoned:
                self.checkpoints.close()
        finally:
            if self.lock is not None:
                self.lock.release()

    def advice(self) -> str:
        """What there is to go on from, and what to type next."""
        if self.cfg.out is None:
            return "Nothing was saved (out is not set)"
        steps = [] if self.checkpoints is None else self.checkpoints.steps()
        there = (
            f"Checkpoint {steps[-1]} in {self.cfg.out} is complete"
            if steps
            else f"{self.cfg.out} has no checkpoint yet"
        )
        where = "start all processes again with" if jax.process_count() > 1 else "type"
        return f"{there}: {where} the same command, and the run goes on from there"

    def _doing(self, what: str) -> None:
        self.guard.at(self.at, what, patience=1.0 if what in self.seen else 10.0)  # the first time compiles
        self.seen.add(what)

    def _resume(self, checkpoints: Checkpoints) -> None:
        """The newest checkpoint in place of the state at step 0, whose memory is given back first."""
        if not checkpoints.steps():
            return
        shapes: dict[int, TrainState] = {}

        def target(step: int) -> TrainState:
            if any(event.changes_tree for event in self.events):
                copied = jax.tree.map(jnp.copy, self.state)  # events may use up what they are given
                shapes[step] = jax.tree.map(shape_of, scheduled.replay(self.events, step, self.cfg.steps, copied))
            elif not shapes:
                shapes[0] = jax.tree.map(shape_of, self.state)
                jax.tree.map(lambda x: x.delete(), self.state)
            return shapes[step if step in shapes else 0]

        found = checkpoints.restore(target, self._accept)
        if found is not None:
            self.state, meta = found
            self.at = self.resumed_from = int(self.state.step)
            self.ledger, self.evaluation = Ledger(**meta["ledger"]), meta["evaluation"]

    def _accept(self, meta: dict[str, Any]) -> None:
        changes = config.differences(decisive(meta["config"]), decisive(json.loads(json.dumps(self.described))))
        if meta["data"] != self.loader.fingerprint:
            changes.append(f"data fingerprint: {meta['data']} -> {self.loader.fingerprint}")
        if changes and not self.cfg.resume_anyway:
            raise ResumeError(
                f"{self.cfg.out} holds checkpoints of another run: {'; '.join(changes)}. "
                "Start in another folder (--out), or set resume_anyway=true"
            )

    def _next(self, batches: Any) -> dict[str, np.ndarray]:
        self._doing("waiting for a batch")
        try:
            with self.breakdown.during("input"):
                batch = next(batches, None)
            if batch is None:
                raise ValueError(f"the loader ended after {self.at} of {self.cfg.steps} batches")
            return batch
        except Exception as error:
            self._rescue(error)
            raise

    def _update(self, batch: dict[str, np.ndarray]) -> None:
        """Sends one update to the device, and looks at one that was sent earlier."""
        ids = np.asarray(batch.get("sequence_ids", ()), np.int64)
        weight = batch.get("loss_weight")
        tokens = 0.0 if weight is None else float(np.count_nonzero(weight)) * jax.process_count()
        shapes = {name: np.shape(x) for name, x in batch.items()}
        if self.step.at(self.at) is not self.step.at(max(0, self.at - 1)) or shapes != (self.shapes or shapes):
            self._next_phase()
        self.shapes = shapes
        self._doing(COMPUTING)
        with self.trace.before(self.at + 1, lambda: self._drain(0)):
            on_device = put_batch({k: x for k, x in batch.items() if k not in NOT_FOR_DEVICE}, self.step.mesh)
            self.state, metrics = self.step.at(self.at).run(self.state, on_device)
        self.at += 1
        self.pending.append(_Pending(self.at, metrics, ids, tokens))
        self._drain(self.cfg.lag)
        self.trace.after(self.at, lambda: self._drain(0))

    def _next_phase(self) -> None:
        self._drain(0)  # their cost is that of the phase before
        self._measure()
        self.seen.discard(COMPUTING)

    def _drain(self, lag: int) -> None:
        """Reads the metrics of all but the newest `lag` updates."""
        while len(self.pending) > lag:
            update = self.pending.popleft()
            found = {name: np.asarray(x).item() for name, x in jax.device_get(update.metrics).items()}
            if not found.pop("finite"):
                self._stop_at(update, found)
            self.meter.tick(update.tokens)
            self.ledger = self.ledger.after(update.step, self.cost)
            self.progress.advance(update.step)
            if update.step % self.cfg.log_every == 0 or update.step == self.cfg.steps:
                self._log_update(update.step, found)

    def _log_update(self, step: int, found: Row) -> None:
        rate = {} if self.learning_rate is None else {"learning_rate": float(self.learning_rate(step - 1))}
        speed = self.meter.read(self.cost.nominal, self.peak) | self.breakdown.read(step)
        row = {"step": step, **found, **rate, **speed}
        self.log.write(row)
        self.progress.row(row)
        starved = None if self.warned else self.breakdown.starved()
        if starved is not None:
            self.warned = True
            warnings.warn(f"step {step}: {starved}", stacklevel=2)
        if self.lock is not None:
            self.lock.check()
        if self.checkpoints is not None:
            self.checkpoints.check()

    def _boundary(self) -> None:
        cfg, t = self.cfg, self.at
        evaluate = self.evaluate if _due(cfg.evaluate_every, t, cfg.steps) else None
        saving = self.checkpoints is not None and _due(cfg.checkpoint_every, t, cfg.steps)
        changing = scheduled.any_due(self.events, t, cfg.steps)
        if not (evaluate or saving or changing):
            return
        self._drain(0)  # so that nothing is done to a state whose update may have failed
        if changing:
            self._doing("running events")
            with self.breakdown.during("events"):
                self.state = scheduled.run(self.events, t, cfg.steps, self.state)
                self._measure()
            if any(event.changes_tree for event in self.events):
                self.seen.clear()
        if evaluate:
            self._doing("evaluating")
            with self.breakdown.during("evaluation"):
                self._evaluate(evaluate)
        if saving:
            self._doing("saving")
            with self.breakdown.during("checkpoint"):
                self._save()
        self.meter.pause()

    def _evaluate(self, evaluate: Callable[[Params], dict[str, float]]) -> None:
        try:
            found = {name: float(x) for name, x in evaluate(self.state.params).items()}
        except Exception as error:
            self._rescue(error)
            raise
        self.evaluation = found
        row: Row = {"step": self.at, **{f"evaluation/{name}": x for name, x in found.items()}}
        self.log.write(row)
        self.progress.row(row)

    def _save(self) -> None:
        """Starts to save the state after update `at`."""
        if self.lock is not None:
            self.lock.check()
        if self.checkpoints is not None:
            meta = {"config": self.described, "data": self.loader.fingerprint, "evaluation": self.evaluation}
            self.checkpoints.save(self.state, meta | {"ledger": self._ledger().to_dict()})

    def _wait(self) -> None:
        if self.checkpoints is not None:
            self.checkpoints.wait()

    def _ledger(self) -> Ledger:
        return self.ledger.with_tokens(self.loader.ledger(self.at))

    def _measure(self) -> None:
        """Sizes and cost of the state as it is now; events may change both."""
        self.ledger = self.ledger.of(self.state)
        self.cost = ledgers.cost_of(self.flops, self.state.params, self.at)
        devices = [jax.devices()[0]] if self.step.mesh is None else list(self.step.mesh.devices.flat)
        peak = peak_flops(devices[0].device_kind)
        self.peak = None if peak is None else peak * len(devices)

    def _rescue(self, error: Exception) -> None:
        """Saves the last good state; `error`, about to be raised, gets a note that says where it is."""
        if jax.process_count() > 1:  # the others are in the next update, and only together could all of them save
            return
        try:
            self._drain(0)
            self._save()
            self._wait()
            if self.checkpoints is not None:
                error.add_note(f"The state after step {self.at} is saved; the same command goes on from there.")
        except Exception as second:
            error.add_note(f"The state after step {self.at} could not be saved: {second}")

    def _stop_at(self, update: _Pending, found: Row) -> NoReturn:
        """The step has kept the state before the update that failed; saves it and says what the batch was."""
        self.at = update.step - 1
        self.pending.clear()
        going = jax.device_put(np.zeros((), bool), self.state.halted.sharding)
        self.state = dataclasses.replace(self.state, halted=going)
        saved = ""
        if self.cfg.out is not None:
            index = jax.process_index()
            path = Path(self.cfg.out) / ("nonfinite.json" if index == 0 else f"nonfinite.{index}.json")
            numbers = {name: repr(x) if not np.isfinite(x) else x for name, x in found.items()}
            write_json(path, {"step": update.step, "sequence_ids": update.ids.tolist(), **numbers})
            self._save()
            self._wait()
            saved = f" The state after step {self.at} is saved in {self.cfg.out}; {path.name} names the batch."
        ids = ", ".join(map(str, update.ids[:8])) + (", ..." if len(update.ids) > 8 else "")
        raise NonFiniteError(
            f"update {update.step} is not finite: loss {found['loss']}, gradient norm "
            f"{found['gradient_norm']}, batch of sequences {ids}.{saved} Look at these sequences; the same "
            "command goes on from there, with resume_anyway=true also after a change of rate or data"
        )


def _due(every: int, step: int, total: int) -> bool:
    return step == total or (every > 0 and step % every == 0)
