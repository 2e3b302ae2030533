"""Events: what happens to the state between two updates, outside jit.

    events = [every(200, reset_moments), at(0.9, densify, changes_tree=True), every(500, report)]

After the update that makes state.step == t, the events due at t run in list order, each on the state the one
before returned. An event may replace any part of the state, and the form of its matrices; the jitted step
then retraces by itself. An event that is due must depend on nothing but its arguments if a resumed run is to
repeat an uninterrupted one.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import optax

from jaxpt.training.state import TrainState

Event = Callable[[int, TrainState], TrainState]


@dataclasses.dataclass(frozen=True)
class Scheduled:
    """An event and when it is due. Made by `every` and `at`.

    Attributes:
      due: (step t, total steps of the run) -> whether it runs after update t.
      changes_tree: it changes which arrays the state holds, or their shapes.
    """

    fn: Event
    due: Callable[[int, int], bool]
    changes_tree: bool = False


@dataclasses.dataclass(frozen=True)
class EventConfig:
    """Events as part of a run's description, `jaxpt.pretrain.Pretrain.events`. Subclasses sit with their methods."""

    def for_run(self, steps: int, optimizer: optax.GradientTransformation) -> Sequence[Scheduled]:
        """The events of a run of so many updates, whose step was built with this optimizer."""
        raise TypeError(f"{type(self).__name__} does not say what its events are")


def every(k: int, fn: Event, *, start: int = 0, stop: int | None = None, changes_tree: bool = False) -> Scheduled:
    """`fn` after updates start + k, start + 2k, ..., up to and including `stop`.

    Raises:
      ValueError: k < 1, start < 0, or stop before start.
    """
    if k < 1 or start < 0 or (stop is not None and stop < start):
        raise ValueError(f"every() needs k >= 1 and 0 <= start <= stop, got k={k}, start={start}, stop={stop}")

    def due(step: int, total: int) -> bool:
        return step > start and (step - start) % k == 0 and (stop is None or step <= stop)

    return Scheduled(fn, due, changes_tree)


def at(when: int | float, fn: Event, *, changes_tree: bool = False) -> Scheduled:
    """`fn` once: after update `when`, or, where `when` is a float in (0, 1], after that share of all updates.

    Raises:
      ValueError: a step below 1 or a fraction outside (0, 1]; when the run starts, a step it never reaches.
    """
    fraction = isinstance(when, float)
    if fraction and not 0 < when <= 1:
        raise ValueError(f"at({when!r}): a float is a fraction of the run in (0, 1]; write an int for a step")
    if not fraction and when < 1:
        raise ValueError(f"at({when!r}): the first event can run after update 1")

    def due(step: int, total: int) -> bool:
        if not fraction and when > total:
            raise ValueError(f"at({when}): the run has only {total} steps")
        return step == (max(1, round(when * total)) if fraction else when)

    return Scheduled(fn, due, changes_tree)


def in_place(fn: Callable[..., TrainState], state: TrainState, *args: Any, static: tuple[int, ...] = ()) -> TrainState:
    """fn(state, *args), compiled once, every array of the result where it was; the arrays given are used up.

    For events that keep the tree. `fn` is a function of a module: a fresh closure would be compiled at every event.

    Args:
      static: positions among `args` of what is not an array.
    """
    where = jax.tree.map(lambda x: x.sharding, state)
    numbers = tuple(1 + i for i in static)
    return jax.jit(fn, static_argnums=numbers, donate_argnums=0, out_shardings=where)(state, *args)


def check(events: Iterable[Scheduled], total: int) -> tuple[Scheduled, ...]:
    """The events as a tuple.

    Raises:
      ValueError: something that is not a scheduled event, or an event after the last step.
    """
    found = tuple(events)
    for event in found:
        if not isinstance(event, Scheduled):
            raise ValueError(f"{event!r} is not scheduled: write every(1, fn), every(k, fn) or at(when, fn)")
        event.due(1, total)
    return found


def any_due(events: Sequence[Scheduled], step: int, total: int) -> bool:
    """Whether an event runs after update `step`."""
    return any(event.due(step, total) for event in events)


def run(events: Sequence[Scheduled], step: int, total: int, state: TrainState) -> TrainState:
    """The state after the events that are due after update `step`."""
    for event in events:
        if event.due(step, total):
            state = event.fn(step, state)
            if not isinstance(state, TrainState):
                name = getattr(event.fn, "__name__", repr(event.fn))
                raise TypeError(f"event {name} returned a {type(state).__name__}, not the TrainState")
    return state


def replay(events: Sequence[Scheduled], step: int, total: int, state: TrainState) -> TrainState:
    """A state with the arrays and shapes that one has after `step` updates; its values mean nothing.

    A checkpoint is restored into it. Only events that say `changes_tree` are run.
    """
    changing = [event for event in events if event.changes_tree]
    for t in range(1, step + 1 if changing else 1):
        state = run(changing, t, total, state)
    return state
