"""Runs one after the other, each from what another left: pretrain, go on, distil, fine-tune.

    found = run_stages(
        (
            Stage(name="general", run=general),
            Stage(name="domain", run=domain, start="general", optimizer="keep"),
            Stage(name="task", run=task, start="domain", take=("blocks", "embedding*")),
        ),
        "runs/a",
    )
    found["task"].state.params

A stage is a whole run with a folder of its own, OUT/NAME, its own data, objective, optimizer and schedule. It is killed and
resumed like any run; the stages before it, whose results are on disk, are not trained again. Several stages may start from
one.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import jax
import jax.numpy as jnp
import optax

from jaxpt import pretrain
from jaxpt.core import trees
from jaxpt.core.names import nearest_error
from jaxpt.core.types import Params, PyTree
from jaxpt.pretrain import Job, Pretrain
from jaxpt.training.run import Result
from jaxpt.training.state import TrainState


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stage:
    """One run, and what it starts from.

    Attributes:
      run: the run; where its files are is `run_stages`' to say.
      start: name of the stage whose last parameters it takes, or of given ones; initial values where None.
      take: patterns of the parameters that are taken. All others, and those that the start does not have, such as a new
        head, have their initial values; what the start has and this stage does not, an old head, is left behind.
      optimizer: "reset", or "keep" the moments; the schedule starts anew in any case. Moments that the start does not have
        begin at zero.
    """

    name: str
    run: Pretrain
    start: str | None = None
    take: tuple[str, ...] = ("*",)
    optimizer: Literal["reset", "keep"] = "reset"


def in_a_row(runs: Mapping[str, Pretrain], start: str | None = None) -> tuple[Stage, ...]:
    """Stages by these names, each from all parameters of the one before, with an optimizer of its own; the first from
    `start`."""
    before = [start, *list(runs)[:-1]]
    return tuple(Stage(name=name, run=run, start=b) for (name, run), b in zip(runs.items(), before, strict=True))


def run_stages(
    stages: Sequence[Stage], out: str | Path, given: Mapping[str, Params] | None = None
) -> dict[str, Result]:
    """The result of every stage, by name; where a signal ended one (`Result.interrupted`), up to that.

    Args:
      given: parameters that no stage of these made, such as a part of another model's, to start from by these names. They
        have no moments.

    Raises:
      ValueError: two stages of one name, a start that is no stage before, parameters of another shape at the start.
    """
    given = {} if given is None else given
    check(stages, tuple(given))
    found: dict[str, Result] = {}
    for stage in stages:
        cfg = pretrain.at(stage.run, Path(out) / stage.name)
        job = pretrain.build(cfg)
        state = None
        if stage.start is not None and stage.start in given:
            state = started(job, stage, given[stage.start])
        elif stage.start is not None:
            before = found[stage.start].state
            state = started(job, stage, before.params, before.opt_state)
        found[stage.name] = pretrain.run(cfg, job, state=state)
        if found[stage.name].interrupted:
            break
    return found


def check(stages: Sequence[Stage], given: Sequence[str] = ()) -> None:
    """Raises ValueError as `run_stages` does, before anything is trained."""
    before = list(given)
    for stage in stages:
        if stage.name in before:
            raise ValueError(f"two stages are named {stage.name!r}")
        if stage.start is not None and stage.start not in before:
            raise nearest_error(f"stage before {stage.name!r}", stage.start, before)
        before.append(stage.name)


def started(job: Job, stage: Stage, before: Params, moments: PyTree = ()) -> TrainState:
    """The state at step 0 of a stage that begins with these parameters, and with the moments of this optimizer's state."""
    fresh = job.create()
    params = taken(fresh.params, before, stage.take, stage.name)
    trainable, fixed = trees.split(params)
    opt_state = fresh.opt_state if stage.optimizer == "reset" else kept(fresh.opt_state, moments)
    return dataclasses.replace(fresh, trainable=trainable, fixed=fixed, opt_state=opt_state)


def taken(own: Params, other: Params, patterns: Sequence[str], name: str = "this stage") -> Params:
    """`own` with those of `other`'s arrays that have its paths and match a pattern, placed and typed as its own.

    Raises:
      ValueError: no array is taken, or one has another shape.
    """
    given, count = dict(trees.leaves_with_path(other)), 0

    def one(path: str, leaf: jax.Array) -> jax.Array:
        nonlocal count
        if path not in given or not trees.matches_any(path, patterns):
            return leaf
        if given[path].shape != leaf.shape:
            raise ValueError(f"{name} has {path} of shape {leaf.shape}, what it starts from {given[path].shape}")
        count += 1
        return jax.device_put(jnp.copy(given[path]).astype(leaf.dtype), leaf.sharding)

    found = trees.map_with_path(one, own)
    if not count:
        raise ValueError(f"{name} takes nothing: no parameter of its start matches {tuple(patterns)}")
    return found


def kept(own: PyTree, other: PyTree) -> PyTree:
    """An optimizer's state with the other's arrays where it has them, but for the place in the schedule."""
    given: Mapping[str, jax.Array] = dict(trees.leaves_with_path(other))
    places = _places(own)

    def one(path: str, leaf: jax.Array) -> jax.Array:
        found = given.get(path)
        if path in places or found is None or (found.shape, found.dtype) != (leaf.shape, leaf.dtype):
            return leaf
        return jax.device_put(jnp.copy(found), leaf.sharding)

    return trees.map_with_path(one, own)


def _places(opt_state: PyTree) -> set[str]:
    """Paths of the counters of schedules."""
    is_place = lambda x: isinstance(x, optax.ScaleByScheduleState)  # noqa: E731
    nodes = [(path, x) for path, x in trees.leaves_with_path(opt_state, is_leaf=is_place) if is_place(x)]
    return {f"{path}/{inner}" if path else inner for path, x in nodes for inner, _ in trees.leaves_with_path(x)}
