"""The referee: arms under one budget, every arm tuned on the same grid by the same rule, seeds, a table, checks.

A trial is one training run: (arm, point, seed) -> `Trial`, where a point gives every tuned hyperparameter a value. For
each arm, all points of the grid run with the first seed and the best on the tuning part of the held-out data is kept;
the other seeds then run at that point, and the table reports the other part. Finished trials are files, so a claim that
was killed goes on where it stopped.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import itertools
import json
import math
import multiprocessing
import os
import platform
import re
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from pathlib import Path
from typing import Any

from jaxpt.core import config
from jaxpt.core.files import write_json
from jaxpt.core.processes import die_with_parent, huge_pages
from jaxpt.data.corpora import cache_dir
from jaxpt.evaluate import significance

Point = tuple[tuple[str, float], ...]  # names and values of the tuned hyperparameters
Job = tuple[str, Point, int]  # arm, point, seed


def grid(tune: Mapping[str, Sequence[float]]) -> list[Point]:
    """All combinations: {"rate": (1e-3, 3e-3), "stddev": (0.02,)} -> two points."""
    return [tuple(zip(tune, values, strict=True)) for values in itertools.product(*tune.values())]


def label(point: Point) -> str:
    """For example "rate 0.003, stddev 0.02"."""
    return ", ".join(f"{name} {value:g}" for name, value in point)


@dataclasses.dataclass(frozen=True)
class Trial:
    """What one run reports.

    Attributes:
      value: the metric on the reported part of the held-out data (lower is better).
      tuning_value: the metric on the part that points are chosen by.
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


HOLDS, FAILS, INVISIBLE = "holds", "does not hold", "not visible at this size"


@dataclasses.dataclass(frozen=True)
class Check:
    """One statement of the claim: `value` against `bound`, in words, and what came out.

    Attributes:
      verdict: HOLDS, FAILS, or INVISIBLE where the runs cannot tell the effect from none.
      interval: of the value, 95 %, over runs; None for what is not a mean of runs.
      detectable: the smallest effect that so many runs would mostly find.
    """

    what: str
    value: float
    bound: str
    verdict: str
    interval: tuple[float, float] | None = None
    detectable: float | None = None

    @property
    def holds(self) -> bool:
        """Whether the statement holds."""
        return self.verdict == HOLDS


@dataclasses.dataclass
class Table:
    """Results by arm, and the checks made on them."""

    metric: str
    points: dict[str, Point]  # arm -> the point of the grid that serves it best
    trials: dict[str, dict[int, Trial]]  # arm -> seed -> trial at that point
    tuning: dict[str, dict[Point, float]]  # arm -> point -> tuning value
    checks: list[Check] = dataclasses.field(default_factory=list)
    notes: list[str] = dataclasses.field(default_factory=list)

    def values(self, arm: str) -> list[float]:
        """The metric of each seed."""
        return [t.value for _, t in sorted(self.trials[arm].items())]

    def mean(self, arm: str) -> float:
        """Mean over seeds."""
        return statistics.fmean(self.values(arm))

    def extras(self, arm: str, name: str) -> list[float]:
        """What else each seed's trial told under this name; NaN, which passes no bound, of a run that diverged."""
        return [t.extra.get(name, math.nan) for _, t in sorted(self.trials[arm].items())]

    def mean_extra(self, arm: str, name: str) -> float:
        """Its mean over seeds."""
        return statistics.fmean(self.extras(arm, name))

    def curves(self, arms: Iterable[str] | None = None) -> dict[str, list[list[tuple[int, float]]]]:
        """arm -> its training curve for each seed; of all arms by default."""
        return {arm: [t.curve for t in self.trials[arm].values()] for arm in (self.trials if arms is None else arms)}

    def differences(self, arm: str, baseline: str) -> list[float]:
        """baseline - arm, paired by seed: positive where the arm is better."""
        return [b - a for a, b in zip(self.values(arm), self.values(baseline), strict=True)]

    def add(self, other: Table) -> None:
        """Adds the arms of a comparison under another budget, with its checks and notes.

        Raises:
          ValueError: it has another metric, other seeds, or an arm of the same name.
        """
        if other.metric != self.metric:
            raise ValueError(f"arms measured in {other.metric} cannot be added to a table of {self.metric}")
        if twice := sorted(self.trials.keys() & other.trials.keys()):
            raise ValueError(f"the table has these arms already: {twice}")
        seeds = {tuple(sorted(trials)) for trials in (self.trials | other.trials).values()}
        if len(seeds) > 1:
            raise ValueError(f"the arms did not run with the same seeds: {sorted(seeds)}")
        self.points |= other.points
        self.trials |= other.trials
        self.tuning |= other.tuning
        self.checks += other.checks
        self.notes += other.notes

    def note(self, text: str) -> None:
        """Adds something that was measured and decides nothing, such as a documented negative."""
        self.notes.append(text)

    def require_equal(self, *names: str) -> None:
        """Every trial of every arm and seed used the same amount of what the ledger calls by these names.

        Raises:
          ValueError: it did not; the comparison would not be one.
        """
        for name in names:
            found = {
                arm: {
                    t.ledger[name] for t in trials.values() if math.isfinite(t.value)
                }  # a run that broke off used less
                for arm, trials in self.trials.items()
            }
            if len(set().union(*found.values())) > 1:
                raise ValueError(f"the arms did not use equal {name}: {found}")

    def check(self, what: str, value: float, bound: str, holds: bool) -> None:
        """Adds a check; `bound` says in words what the value was held against."""
        self.checks.append(Check(what, float(value), bound, HOLDS if holds else FAILS))

    def check_better(self, what: str, arm: str, baseline: str) -> None:
        """The arm is better than the baseline, by more than the runs differ among themselves.

        The 95 % interval of the paired differences (`evaluate.significance.paired`) lies above 0; or, with fewer than five
        seeds, whose interval is wide, the mean difference is more than twice the standard deviation of the baseline's
        seeds. With so few seeds all of them must agree, too. The same the other way round refutes it; anything else is not
        visible.
        """
        found = self.differences(arm, baseline)
        mean, wins, count = statistics.fmean(found), sum(d > 0 for d in found), len(found)
        if count < 2 or not all(map(math.isfinite, found)):
            self.check(what, mean, "above 0, in the one run there is" if count < 2 else "above 0", mean > 0)
            return
        runs = significance.paired(found)
        bound, clear = f"interval above 0 (better in {wins} of {count} seeds)", not runs.low <= 0 <= runs.high
        if count < 5:
            spread = 2 * statistics.stdev(self.values(baseline))
            bound = f"interval above 0 or mean above {spread:.4f}, better in all seeds (in {wins} of {count})"
            clear = wins in (0, count) and (clear or abs(mean) > spread)
        verdict = INVISIBLE if not clear else HOLDS if mean > 0 else FAILS
        self.checks.append(Check(what, mean, bound, verdict, (runs.low, runs.high), runs.detectable))

    @property
    def verdict(self) -> str:
        """That of the whole claim: the worst of its checks."""
        found = {check.verdict for check in self.checks}
        return next((v for v in (FAILS, INVISIBLE) if v in found), HOLDS)

    @property
    def holds(self) -> bool:
        """Whether every check holds."""
        return all(c.holds for c in self.checks)


def compare(
    trial: Callable[..., Trial],
    arms: Sequence[str],
    *,
    tune: Mapping[str, Sequence[float]],
    seeds: Sequence[int],
    metric: str,
    folder: Path,
    setting: Any,
    workers: int = 2,
) -> Table:
    """Runs every arm: the whole grid with the first seed, the other seeds at the best point.

    Args:
      trial: picklable `trial(arm=, point=, seed=, setting=) -> Trial`, `point` a dict of the tuned values.
      tune: hyperparameter -> values; every arm runs all combinations. Of equal values, the first one wins.
      folder: finished trials are kept here, under the hash of `setting` and of the code.
      setting: the preset, a frozen dataclass; part of every trial's identity.
      workers: processes, one core each; 0 runs everything in this one.

    Raises:
      ValueError: the arms did not use equal updates, tokens or unique tokens.
    """
    points = grid(tune)
    store = TrialStore(folder, setting)
    with Pool(trial, store, setting, workers, total=len(arms) * (len(points) + len(seeds) - 1)) as pool:
        first = pool.run([(arm, point, seeds[0]) for arm in arms for point in points])
        tuning = {arm: {p: first[arm, p, seeds[0]].tuning_value for p in points} for arm in arms}
        best = {arm: min(points, key=lambda p: _worst_if_nan(found[p])) for arm, found in tuning.items()}
        rest = pool.run([(arm, best[arm], seed) for arm in arms for seed in seeds[1:]])
    done = first | rest
    chosen = {arm: {seed: done[arm, best[arm], seed] for seed in seeds} for arm in arms}
    table = Table(metric, best, chosen, tuning)
    table.require_equal("steps", "tokens", "unique_tokens")
    return table


class TrialStore:
    """Finished trials as JSON files, under the hash of the setting and of the code that ran them: after a change of
    either, none is taken for another. A half-written file is never seen."""

    def __init__(self, folder: Path, setting: Any) -> None:
        identity = json.dumps([config.to_dict(setting), source_hash()], sort_keys=True)
        digest = hashlib.sha256(identity.encode()).hexdigest()[:12]
        self.folder = Path(folder) / f"trials-{digest}"
        self.folder.mkdir(parents=True, exist_ok=True)

    def path(self, arm: str, point: Point, seed: int) -> Path:
        """The file of one trial."""
        name = re.sub(r"[^A-Za-z0-9.]+", "-", f"{arm}, {label(point)}")
        return self.folder / f"{name}-seed-{seed}.json"

    def load(self, arm: str, point: Point, seed: int) -> Trial | None:
        """The trial, or None if it is not there or cannot be read."""
        try:
            found = json.loads(self.path(arm, point, seed).read_text())
            return Trial(**found | {"curve": [(step, loss) for step, loss in found["curve"]]})
        except (FileNotFoundError, json.JSONDecodeError, KeyError, TypeError):
            return None

    def save(self, arm: str, point: Point, seed: int, trial: Trial) -> None:
        """Writes the trial at once or not at all."""
        write_json(self.path(arm, point, seed), dataclasses.asdict(trial))


class Pool:
    """Runs trials in processes of one core each, neighbours of one arm on one worker where possible (one compilation)."""

    def __init__(self, trial: Callable[..., Trial], store: TrialStore, setting: Any, workers: int, total: int) -> None:
        self.trial, self.store, self.setting, self.total = trial, store, setting, total
        self.finished, self.start = 0, time.monotonic()
        os.environ.update(huge_pages())  # for the workers: it takes effect when a process starts
        # What one of them compiles, the others need not.
        os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(cache_dir() / "compiled"))
        self.executors = [
            ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), initializer=_start_worker, initargs=(i,))
            for i in range(workers)
        ]

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        for executor in self.executors:
            executor.shutdown(wait=kind is None, cancel_futures=True)

    def run(self, jobs: list[Job]) -> dict[Job, Trial]:
        """All jobs' trials, from the store where they are finished already."""
        done = {job: found for job in jobs if (found := self.store.load(*job)) is not None}
        self.finished += len(done)
        waiting = [job for job in jobs if job not in done]
        if not self.executors:
            for job in waiting:
                self._keep(job, self.trial(**self._arguments(job)), done)
            return done
        free, running = list(self.executors), {}  # type: ignore[var-annotated]
        last_arm: dict[int, str] = {}
        while waiting or running:
            while waiting and free:
                executor = free.pop()
                job = _next_job(waiting, last_arm, id(executor))
                waiting.remove(job)
                last_arm[id(executor)] = job[0]
                future: Future[Trial] = executor.submit(self.trial, **self._arguments(job))
                running[future] = (job, executor)
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                job, executor = running.pop(future)
                self._keep(job, future.result(), done)
                free.append(executor)
        return done

    def _arguments(self, job: Job) -> dict[str, Any]:
        arm, point, seed = job
        return {"arm": arm, "point": dict(point), "seed": seed, "setting": self.setting}

    def _keep(self, job: Job, trial: Trial, done: dict[Job, Trial]) -> None:
        self.store.save(*job, trial)
        done[job] = trial
        self.finished += 1
        spent = time.monotonic() - self.start
        left = spent / self.finished * (self.total - self.finished)
        print(
            f"[{self.finished:3d}/{self.total}] {job[0]:28s} {label(job[1])}, seed {job[2]}:  "
            f"{trial.value:.4f}  ({trial.seconds:.0f} s; about {left:.0f} s left)",
            flush=True,
        )


@functools.cache
def source_hash() -> str:
    """Hash of the project's own code: jaxpt, the kernels and the recipes."""
    root = Path(__file__).resolve().parent.parent
    files = sorted(path for room in ("jaxpt", "pallas_kernels", "recipes") for path in (root / room).rglob("*.py"))
    parts = (str(path.relative_to(root)).encode() + path.read_bytes() for path in files)
    return hashlib.sha256(b"".join(parts)).hexdigest()[:16]


def environment() -> dict[str, Any]:
    """What the numbers were made on."""
    import jax

    return {
        "python": platform.python_version(),
        "jax": jax.__version__,
        "platform": jax.default_backend(),
        "cores": os.cpu_count(),
        "machine": platform.machine(),
        "source": source_hash(),
    }


def summary(table: Table, *, name: str, paper: int, setting: Any, seconds: float) -> dict[str, Any]:
    """The content of claim.json."""
    return {
        "name": name,
        "paper": paper,
        "metric": table.metric,
        "arms": {
            arm: {
                "point": dict(table.points[arm]),
                "tuning_cost": _tuning_cost(table, arm),
                "tuning": {label(p): _finite(v) for p, v in table.tuning[arm].items()},
                "mean": _finite(table.mean(arm)),
                "seeds": {
                    seed: {"value": _finite(t.value), "seconds": t.seconds, **t.ledger} for seed, t in trials.items()
                },
            }
            for arm, trials in table.trials.items()
        },
        "checks": [dataclasses.asdict(c) | {"value": _finite(c.value), "holds": c.holds} for c in table.checks],
        "notes": table.notes,
        "holds": table.holds,
        "verdict": table.verdict,
        "setting": config.to_dict(setting),
        "seconds": round(seconds, 1),
        "environment": environment(),
    }


def _tuning_cost(table: Table, arm: str) -> dict[str, float]:
    """What the search for the best point took: runs, and their tokens and operations."""
    runs = len(table.tuning[arm])
    one = next(iter(table.trials[arm].values())).ledger
    return {"runs": runs} | {name: runs * one.get(name, 0) for name in ("tokens", "flops_executed")}


def _worst_if_nan(value: float) -> float:
    return math.inf if math.isnan(value) else value


def _finite(value: float) -> float | None:
    """For JSON, which knows no infinity: the value of a run that diverged is null."""
    return value if math.isfinite(value) else None


def _next_job(waiting: list[Job], last_arm: Mapping[int, str], worker: int) -> Job:
    """A job of the arm this worker has compiled; else of an arm no worker has; else the last one waiting."""
    own = [j for j in waiting if j[0] == last_arm.get(worker)]
    fresh = [j for j in waiting if j[0] not in last_arm.values()]
    return (own or fresh or waiting[::-1])[0]


def _start_worker(index: int) -> None:
    """Pins a worker to one core before JAX starts, so that two trials do not fight over two cores."""
    die_with_parent()
    if sys.platform == "linux":
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {cores[index % len(cores)]})
