"""A tiny run on real records, as a function and as a program that can be killed.

    python tests/training/tiny_run.py DATA '{"out": "...", "steps": 12, "die_at": 5, ...}'

With --coordinator, --num-processes and --process-id it is one process of several (`processes.py` starts them).
Prints the Result as one line of JSON, last.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
from jax.sharding import Mesh

from jaxpt import optim, weights
from jaxpt.core import config
from jaxpt.data.held_out import held_out
from jaxpt.data.loader import Loader, single_source
from jaxpt.data.packing import pack
from jaxpt.data.records import TokenRecords
from jaxpt.data.shards import Item, write_folder
from jaxpt.data.vocabularies import ByteVocabulary
from jaxpt.evaluate import bits_per_byte, make_scorer
from jaxpt.models import decoder
from jaxpt.models.flops import decoder_flops
from jaxpt.objectives import causal_lm
from jaxpt.sharding import MeshConfig, distributed, local_rows, make_mesh
from jaxpt.training import events
from jaxpt.training import state as states
from jaxpt.training.loop import train
from jaxpt.training.run import Result, RunConfig
from jaxpt.training.state import TrainState
from jaxpt.training.step import Step, make_step

SEQUENCE, BATCH = 32, 8


@dataclasses.dataclass(frozen=True)
class Tiny:
    """What a tiny run can be asked for.

    Attributes:
      width: of the model.
      rate: learning rate.
      die_at: SIGKILL after this update.
      die_saving: SIGKILL while the checkpoint of this update is being written.
      largest_file: from the first complete checkpoint on, no file can grow beyond so many bytes, as on a
        full disk.
      slow: seconds each update takes longer.
      poison: an update whose batch gets a loss weight that is not finite.
      hang_at: after this update, sleep for ever.
      term_at: SIGTERM to this process after this update.
      cut_at: after this update, the record files are cut in half and the next read sees it.
      mesh: (data, fsdp, model) of a mesh over all devices of all processes.
      evaluate_every: updates between two evaluations of the held-out documents.
      data: this process's own records, in place of those all are given.
      watchdog, peer_timeout, profile: as of RunConfig.
    """

    out: str | None = None
    steps: int = 12
    width: int = 16
    rate: float = 1e-2
    checkpoint_every: int = 3
    keep: int = 2
    largest_file: int | None = None
    die_at: int | None = None
    die_saving: int | None = None
    slow: float = 0.0
    poison: int | None = None
    hang_at: int | None = None
    term_at: int | None = None
    cut_at: int | None = None
    mesh: tuple[int, int, int] | None = None
    evaluate_every: int = 0
    data: str | None = None
    watchdog: float | None = None
    peer_timeout: float = 60.0
    profile: str | None = None


MODEL = decoder.Config(
    width=16,
    heads=2,
    ffn=24,
    layers=2,
    weights=(("blocks/mlp/down", weights.SparseLowRank(rank=2, density=0.2)),),
)


def write_records(folder: Path, documents: int = 40) -> Path:
    """Documents of 5 to 200 random letters in two domains, in both splits."""
    rng = np.random.default_rng(0)
    texts = ["".join(map(chr, rng.integers(97, 123, n))) for n in rng.integers(5, 200, documents)]
    items = [Item(f"d{i}", "ab"[i % 2], len(t), t) for i, t in enumerate(texts)]
    half = documents // 2
    return write_folder(folder, {"train": items[:half], "validation": items[half:]}, ByteVocabulary())


def make_loader(data: Path, mesh: Mesh | None = None, **kwargs: Any) -> Loader:
    """Batches of 8 sequences of 32 tokens: this process's rows of them."""
    records = TokenRecords(data, "train")
    return single_source(records, pack(records, SEQUENCE), BATCH, seed=1, rows=local_rows(mesh, BATCH), **kwargs)


class Poisoned:
    """A loader one of whose batches has a loss weight that is not finite."""

    def __init__(self, loader: Loader, update: int, value: float = np.nan) -> None:
        self._loader, self._update, self._value = loader, update, value
        self.fingerprint, self.ledger = loader.fingerprint, loader.ledger

    def batches(self, start_step: int = 0) -> Any:
        """As the loader's."""
        for step, batch in enumerate(self._loader.batches(start_step), start_step + 1):
            if step == self._update:
                batch["loss_weight"] = batch["loss_weight"].copy()
                batch["loss_weight"][3, 5] = self._value
            yield batch


def make_optimizer(rate: float) -> optax.GradientTransformation:
    """Two groups, so that the state has several trees of moments."""
    return optim.groups([("embedding", optim.adam(rate / 2)), ("*", optim.adam(rate, weight_decay=0.1))])


@functools.cache
def loss_of(cfg: decoder.Config) -> Any:
    """The objective."""
    return lambda p, b, k: causal_lm.loss(p, b, k, cfg)


def build_on(mesh: Mesh, cfg: decoder.Config = MODEL, rate: float = 1e-2) -> tuple[Step, Callable[[], TrainState]]:
    """As `build`, on a mesh."""
    optimizer, spec = make_optimizer(rate), decoder.spec(cfg)
    shardings = states.state_shardings(spec, optimizer, mesh)
    step = make_step(loss_of(cfg), optimizer, clip=1.0, mesh=mesh, shardings=shardings)
    return step, lambda: states.create_sharded(spec, optimizer, mesh)


def evaluation(data: Path, mesh: Mesh | None, cfg: decoder.Config = MODEL) -> Any:
    """Bits per byte of the held-out documents."""
    windows = held_out(TokenRecords(data, "validation"), SEQUENCE, BATCH)
    return bits_per_byte(make_scorer(loss_of(cfg), mesh), windows)


@functools.cache
def build(cfg: decoder.Config = MODEL, rate: float = 1e-2) -> tuple[Step, Callable[[], TrainState]]:
    """The step of an optimizer of two groups and a function that makes its state; compiled once a process."""
    optimizer = make_optimizer(rate)
    step = make_step(loss_of(cfg), optimizer, clip=1.0)
    return step, jax.jit(lambda: states.create(decoder.init(jax.random.key(0), cfg), optimizer))


def run(tiny: Tiny, data: Path, **kwargs: Any) -> Result:
    """Trains."""
    cfg, data = dataclasses.replace(MODEL, width=tiny.width), Path(tiny.data or data)
    mesh = kwargs.pop("mesh", None)
    if mesh is None and tiny.mesh is not None:
        mesh = make_mesh(MeshConfig(*tiny.mesh))
    step, create = build(cfg, tiny.rate) if mesh is None else build_on(mesh, cfg, tiny.rate)
    state = create()
    loader: Any = kwargs.pop("loader", None) or make_loader(data, mesh, **({"prefetch": 1} if tiny.cut_at else {}))
    if tiny.poison is not None:
        loader = Poisoned(loader, tiny.poison)
    sizes = MeshConfig() if tiny.mesh is None else MeshConfig(*tiny.mesh)
    described = {"model": config.to_dict(cfg), "rate": tiny.rate, "mesh": config.to_dict(sizes)}
    every = tiny.checkpoint_every
    how = RunConfig(
        tiny.steps,
        tiny.out,
        checkpoint_every=every,
        keep=tiny.keep,
        log_every=1,
        tensorboard=False,
        quiet=True,
        evaluate_every=tiny.evaluate_every,
        watchdog=tiny.watchdog,
        peer_timeout=tiny.peer_timeout,
        profile=tiny.profile,
    )
    if tiny.evaluate_every:
        kwargs["evaluate"] = evaluation(data, mesh, cfg)
    flops = decoder_flops(state.params, cfg, BATCH, SEQUENCE)
    kwargs = {"flops_per_step": flops, "config_dict": described, "events": _faults(tiny, data, loader)} | kwargs
    return train(how, step, state, loader, **kwargs)


def _faults(tiny: Tiny, data: Path, loader: Any) -> list[events.Scheduled]:
    def die(step: int, state: TrainState) -> TrainState:
        os.kill(os.getpid(), signal.SIGKILL)
        return state

    def die_while_saving(step: int, state: TrainState) -> TrainState:
        threading.Thread(target=_watch, args=(Path(str(tiny.out)), step), daemon=True).start()
        return state

    def sleep(step: int, state: TrainState) -> TrainState:
        time.sleep(tiny.slow)
        return state

    def limit(step: int, state: TrainState) -> TrainState:
        import resource

        wait_for_checkpoint(Path(str(tiny.out)), 3)
        resource.setrlimit(resource.RLIMIT_FSIZE, (int(tiny.largest_file or 0), resource.RLIM_INFINITY))
        return state

    def hang(step: int, state: TrainState) -> TrainState:
        time.sleep(1000)
        return state

    def terminate(step: int, state: TrainState) -> TrainState:
        os.kill(os.getpid(), signal.SIGTERM)
        return state

    def cut(step: int, state: TrainState) -> TrainState:
        for path in (data / "train").glob("*.array_record"):
            os.truncate(path, path.stat().st_size // 2)
        reopen(loader)
        return state

    found = [events.every(1, sleep)] if tiny.slow else []
    found += [events.at(4, limit)] if tiny.largest_file else []
    planted = ((tiny.die_at, die), (tiny.hang_at, hang), (tiny.term_at, terminate), (tiny.cut_at, cut))
    found += [events.at(step, fault) for step, fault in planted if step]
    return found + ([events.at(tiny.die_saving, die_while_saving)] if tiny.die_saving else [])


def reopen(loader: Loader) -> None:
    """Makes the next read look at the files again: the reader holds files as small as these whole."""
    for records, _ in loader._sources:
        records._reader = None


def wait_for_checkpoint(out: Path, step: int) -> None:
    """Until it is complete, or a minute has passed."""
    deadline = time.monotonic() + 60
    while not (out / "checkpoints" / str(step)).is_dir() and time.monotonic() < deadline:
        time.sleep(0.01)


def _watch(out: Path, step: int) -> None:
    """Kills this process when the unfinished checkpoint of this step holds its first arrays."""
    while True:
        if any(path.is_file() for path in out.glob(f"checkpoints/{step}.*tmp*/**/d/*")):
            os.kill(os.getpid(), signal.SIGKILL)


def main() -> None:
    """Runs what the command line says."""
    parser = argparse.ArgumentParser()
    parser.add_argument("data", type=Path)
    parser.add_argument("tiny", type=json.loads)
    distributed.add_arguments(parser)
    args = parser.parse_args()
    distributed.initialize(args.coordinator, args.num_processes, args.process_id)
    result = run(Tiny(**args.tiny), args.data)
    report = {"resumed_from": result.resumed_from, "interrupted": result.interrupted}
    report |= {"curve": result.curve, "evaluation": result.evaluation}
    print(json.dumps(report | {"ledger": result.ledger.to_dict()}))


if __name__ == "__main__":
    main()
