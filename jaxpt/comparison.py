"""The referee: arms under one budget, every arm tuned on the same grid by the same rule, seeds, a table, checks.

A trial is one training run: (arm, learning rate, seed) -> `Trial`. For each arm, all rates of the grid run with the first
seed and the best on the tuning part of the held-out data is kept; the other seeds then run at that rate, and the table
reports the other part. Finished trials are files, so a claim that was killed goes on where it stopped.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import multiprocessing
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from pathlib import Path
from typing import Any

from jaxpt.core import config


@dataclasses.dataclass(frozen=True)
class Trial:
    """What one run reports.

    Attributes:
      value: the metric on the reported part of the held-out data (lower is better).
      tuning_value: the metric on the part that rates are chosen by.
      ledger: parameters, tokens, unique_tokens, flops_nominal, flops_executed, bytes_persistent, ...
      curve: (step, training loss) pairs.
      extra: anything a plot needs.
    """

    value: float
    tuning_value: float
    ledger: dict[str, float]
    curve: list[tuple[int, float]]
    seconds: float = 0.0
    extra: dict[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Check:
    """One statement of the claim: `value` against `bound`, and whether it holds."""

    what: str
    value: float
    bound: str
    holds: bool


@dataclasses.dataclass
class Table:
    """Results by arm, and the checks made on them."""

    metric: str
    rates: dict[str, float]
    trials: dict[str, dict[int, Trial]]  # arm -> seed -> trial at the chosen rate
    tuning: dict[str, dict[float, float]]  # arm -> rate -> tuning value
    checks: list[Check] = dataclasses.field(default_factory=list)

    def values(self, arm: str) -> list[float]:
        """The metric of each seed."""
        return [t.value for _, t in sorted(self.trials[arm].items())]

    def mean(self, arm: str) -> float:
        """Mean over seeds."""
        return statistics.fmean(self.values(arm))

    def differences(self, arm: str, baseline: str) -> list[float]:
        """baseline - arm, paired by seed: positive where the arm is better."""
        return [b - a for a, b in zip(self.values(arm), self.values(baseline), strict=True)]

    def check(self, what: str, value: float, bound: str, holds: bool) -> None:
        """Adds a check; `bound` says in words what the value was held against."""
        self.checks.append(Check(what, float(value), bound, bool(holds)))

    def check_better(self, what: str, arm: str, baseline: str) -> None:
        """The arm is better in the mean over seeds, and in at least two thirds of the seeds."""
        found = self.differences(arm, baseline)
        wins = sum(d > 0 for d in found)
        needed = math.ceil(2 * len(found) / 3)
        mean = statistics.fmean(found)
        bound = f"mean difference > 0 and better in >= {needed} of {len(found)} seeds (better in {wins})"
        self.check(what, mean, bound, mean > 0 and wins >= needed)

    @property
    def holds(self) -> bool:
        """Whether every check holds."""
        return all(c.holds for c in self.checks)


def compare(
    trial: Callable[..., Trial],
    arms: Sequence[str],
    *,
    rates: Sequence[float],
    seeds: Sequence[int],
    metric: str,
    folder: Path,
    setting: Any,
    workers: int = 2,
) -> Table:
    """Runs every arm: the whole grid with the first seed, the other seeds at the best rate.

    Args:
      trial: picklable `trial(arm=, rate=, seed=, setting=) -> Trial`.
      folder: finished trials are kept here, under the hash of `setting`.
      setting: the preset, a frozen dataclass; part of every trial's identity.
      workers: processes, one core each; 0 runs everything in this one.
    """
    store = TrialStore(folder, setting)
    with Pool(trial, store, setting, workers, total=len(arms) * (len(rates) + len(seeds) - 1)) as pool:
        first = pool.run([(arm, rate, seeds[0]) for arm in arms for rate in rates])
        tuning = {arm: {r: first[arm, r, seeds[0]].tuning_value for r in rates} for arm in arms}
        best = {arm: min(rates, key=lambda r: (_worst_if_nan(tuning[arm][r]), r)) for arm in arms}
        rest = pool.run([(arm, best[arm], seed) for arm in arms for seed in seeds[1:]])
    done = first | rest
    chosen = {arm: {seed: done[arm, best[arm], seed] for seed in seeds} for arm in arms}
    return Table(metric, best, chosen, tuning)


class TrialStore:
    """Finished trials as JSON files named by what they are; a half-written file is never seen."""

    def __init__(self, folder: Path, setting: Any) -> None:
        digest = hashlib.sha256(json.dumps(config.to_dict(setting), sort_keys=True).encode()).hexdigest()[:12]
        self.folder = Path(folder) / f"trials-{digest}"
        self.folder.mkdir(parents=True, exist_ok=True)

    def path(self, arm: str, rate: float, seed: int) -> Path:
        """The file of one trial."""
        return self.folder / f"{arm.replace(' ', '_').replace('/', '_')}-{rate:g}-{seed}.json"

    def load(self, arm: str, rate: float, seed: int) -> Trial | None:
        """The trial, or None if it is not there or cannot be read."""
        try:
            return Trial(**json.loads(self.path(arm, rate, seed).read_text()))
        except (FileNotFoundError, json.JSONDecodeError, TypeError):
            return None

    def save(self, arm: str, rate: float, seed: int, trial: Trial) -> None:
        """Writes the trial at once or not at all."""
        path = self.path(arm, rate, seed)
        temporary = path.with_suffix(".tmp")
        temporary.write_text(json.dumps(dataclasses.asdict(trial)))
        os.replace(temporary, path)


class Pool:
    """Runs trials in processes of one core each, neighbours of one arm on one worker where possible (one compilation)."""

    def __init__(self, trial: Callable[..., Trial], store: TrialStore, setting: Any, workers: int, total: int) -> None:
        self.trial, self.store, self.setting, self.total = trial, store, setting, total
        self.finished, self.start = 0, time.monotonic()
        self.executors = [
            ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), initializer=_one_core, initargs=(i,))
            for i in range(workers)
        ]

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        for executor in self.executors:
            executor.shutdown(wait=kind is None, cancel_futures=True)

    def run(self, jobs: list[tuple[str, float, int]]) -> dict[tuple[str, float, int], Trial]:
        """All jobs' trials, from the store where they are finished already."""
        done = {job: found for job in jobs if (found := self.store.load(*job)) is not None}
        self.finished += len(done)
        waiting = [job for job in jobs if job not in done]
        if not self.executors:
            for job in waiting:
                self._keep(job, self.trial(arm=job[0], rate=job[1], seed=job[2], setting=self.setting), done)
            return done
        free, running = list(self.executors), {}  # type: ignore[var-annotated]
        last_arm: dict[int, str] = {}
        while waiting or running:
            while waiting and free:
                executor = free.pop()
                job = _next_job(waiting, last_arm, id(executor))
                waiting.remove(job)
                last_arm[id(executor)] = job[0]
                future: Future[Trial] = executor.submit(
                    self.trial, arm=job[0], rate=job[1], seed=job[2], setting=self.setting
                )
                running[future] = (job, executor)
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                job, executor = running.pop(future)
                self._keep(job, future.result(), done)
                free.append(executor)
        return done

    def _keep(self, job: tuple[str, float, int], trial: Trial, done: dict[tuple[str, float, int], Trial]) -> None:
        self.store.save(*job, trial)
        done[job] = trial
        self.finished += 1
        spent = time.monotonic() - self.start
        left = spent / self.finished * (self.total - self.finished)
        print(
            f"[{self.finished:3d}/{self.total}] {job[0]:28s} rate {job[1]:<8g} seed {job[2]}  "
            f"{trial.value:.4f}  ({trial.seconds:.0f} s; about {left:.0f} s left)",
            flush=True,
        )


def environment() -> dict[str, Any]:
    """What the numbers were made on."""
    import jax

    return {
        "python": platform.python_version(),
        "jax": jax.__version__,
        "platform": jax.default_backend(),
        "cores": os.cpu_count(),
        "machine": platform.machine(),
    }


def report(table: Table, *, name: str, paper: int, setting: Any, seconds: float) -> dict[str, Any]:
    """The content of claim.json."""
    return {
        "name": name,
        "paper": paper,
        "metric": table.metric,
        "arms": {
            arm: {
                "rate": table.rates[arm],
                "tuning": {f"{r:g}": v for r, v in table.tuning[arm].items()},
                "mean": table.mean(arm),
                "seeds": {seed: {"value": t.value, "seconds": t.seconds, **t.ledger} for seed, t in trials.items()},
            }
            for arm, trials in table.trials.items()
        },
        "checks": [dataclasses.asdict(c) for c in table.checks],
        "holds": table.holds,
        "setting": config.to_dict(setting),
        "seconds": round(seconds, 1),
        "environment": environment(),
    }


def _worst_if_nan(value: float) -> float:
    return math.inf if math.isnan(value) else value


def _next_job(
    waiting: list[tuple[str, float, int]], last_arm: Mapping[int, str], worker: int
) -> tuple[str, float, int]:
    """A job of the arm this worker has compiled; else of an arm no worker has; else the last one waiting."""
    own = [j for j in waiting if j[0] == last_arm.get(worker)]
    fresh = [j for j in waiting if j[0] not in last_arm.values()]
    return (own or fresh or waiting[::-1])[0]


def _one_core(index: int) -> None:
    """Pins a worker to one core before JAX starts, so that two trials do not fight over two cores."""
    if sys.platform == "linux":
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {cores[index % len(cores)]})
