"""Bytes and speed of training steps, compiled and run here, in turns: a machine that drifts drifts for all."""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Callable, Mapping

import jax
import numpy as np

from jaxpt import pretrain
from jaxpt.pretrain import Pretrain
from jaxpt.training.ledger import persistent_bytes
from jaxpt.training.step import Batch, put_batch


@dataclasses.dataclass(frozen=True)
class Measured:
    """Attributes:
    persistent: bytes between two updates: parameters, fixed arrays, optimizer.
    peak: bytes of the compiled step at its largest, by the compiler's account; the above are among them.
    tokens_per_second: median over rounds.
    """

    persistent: int
    peak: int
    tokens_per_second: float


def measure(arms: Mapping[str, Pretrain], rounds: int = 5, updates: int = 5) -> dict[str, Measured]:
    """Compiles the step of every arm and runs them in turns, `updates` at a time, on random tokens.

    A first round, which warms up, is not counted. Nothing but the update is timed.
    """
    sizes: dict[str, tuple[int, int]] = {}
    steps: dict[str, Callable[[], float]] = {}
    for arm, cfg in arms.items():
        job = pretrain.build(cfg)
        state, batch = job.create(), put_batch(random_batch(cfg), job.mesh)
        compiled = job.step.at(0).run.lower(state, batch).compile()  # type: ignore[attr-defined]
        sizes[arm] = (persistent_bytes(state), peak_bytes(compiled))
        steps[arm] = _runner(job, state, batch)
    seconds: dict[str, list[float]] = {arm: [] for arm in arms}
    for _ in range(rounds + 1):
        for arm, step in steps.items():
            start = time.perf_counter()
            for _ in range(updates):
                step()
            seconds[arm].append((time.perf_counter() - start) / updates)
    tokens = {arm: cfg.data.batch_size * cfg.data.sequence_length for arm, cfg in arms.items()}
    return {arm: Measured(*sizes[arm], tokens[arm] / statistics.median(seconds[arm][1:])) for arm in arms}


def random_batch(cfg: Pretrain) -> dict[str, np.ndarray]:
    """A batch of the run's shape, random ids in one document a row."""
    shape = (cfg.data.batch_size, cfg.data.sequence_length)
    ids = np.random.default_rng(0).integers(0, cfg.model.vocab_size, (shape[0], shape[1] + 1), dtype=np.int32)
    ones = np.ones(shape, np.int32)
    return {
        "inputs": ids[:, :-1].copy(),
        "labels": ids[:, 1:].copy(),
        "loss_weight": np.ones(shape, np.float32),
        "segment_ids": ones,
        "positions": np.arange(shape[1], dtype=np.int32) * ones,
    }


def peak_bytes(compiled: jax.stages.Compiled) -> int:
    """Arguments, results that are not written in place, and temporaries of a compiled program.

    Raises:
      RuntimeError: the platform's compiler keeps no account.
    """
    found = compiled.memory_analysis()
    if found is None:
        raise RuntimeError(f"the compiler for {jax.default_backend()} does not say how much memory a program takes")
    kept = found.output_size_in_bytes - found.alias_size_in_bytes
    return found.argument_size_in_bytes + kept + found.temp_size_in_bytes


def _runner(job: pretrain.Job, state: object, batch: Batch) -> Callable[[], float]:
    holder = [state]

    def run() -> float:
        holder[0], metrics = job.step.at(0).run(holder[0], batch)  # type: ignore[arg-type]
        return float(metrics["loss"])

    return run
