"""Events: when they are due, in which order they run, and what they may change."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxpt import weights
from jaxpt.core import spec as specs
from jaxpt.training import events
from jaxpt.training.events import at, every
from jaxpt.training.state import create


def nothing(step, state):
    return state


def steps_of(event, total=20):
    return [t for t in range(1, total + 1) if event.due(t, total)]


@pytest.mark.parametrize(
    ("event", "expected"),
    [
        (every(6, nothing), [6, 12, 18]),
        (every(6, nothing, start=5), [11, 17]),
        (every(6, nothing, stop=12), [6, 12]),
        (every(1, nothing, start=17), [18, 19, 20]),
        (every(30, nothing), []),
        (at(7, nothing), [7]),
        (at(20, nothing), [20]),
        (at(0.5, nothing), [10]),
        (at(1.0, nothing), [20]),
        (at(0.001, nothing), [1]),
    ],
)
def test_when_events_are_due(event, expected):
    assert steps_of(event) == expected


@given(st.floats(0, 1, exclude_min=True), st.integers(1, 50))
def test_a_fraction_is_due_exactly_once_in_any_run(fraction, total):
    assert len(steps_of(at(fraction, nothing), total)) == 1


@pytest.mark.parametrize("k, kwargs", [(0, {}), (2, {"start": -1}), (2, {"start": 5, "stop": 4})])
def test_every_refuses_what_makes_no_sense(k, kwargs):
    with pytest.raises(ValueError, match=f"k >= 1 and 0 <= start <= stop, got k={k}"):
        every(k, nothing, **kwargs)


@pytest.mark.parametrize("when", [0, -3, 0.0, 1.5, float("nan")])
def test_at_refuses_what_makes_no_sense(when):
    with pytest.raises(ValueError, match=r"at\("):
        at(when, nothing)


def test_a_run_refuses_events_it_would_never_reach_and_what_is_not_scheduled():
    with pytest.raises(ValueError, match=r"at\(21\): the run has only 20 steps"):
        events.check([at(21, nothing)], 20)
    with pytest.raises(ValueError, match=r"write every\(1, fn\)"):
        events.check([nothing], 20)


def state():
    spec = {"w": weights.LowRank(rank=2).spec(4, 6, ("mlp", "embed"))}
    return create(specs.init(jax.random.key(0), spec), optax.sgd(0.1))


def test_events_run_in_list_order_each_on_what_the_one_before_returned():
    def add(step, s):
        return s.replace(seed=s.seed + 1)

    def double(step, s):
        return s.replace(seed=s.seed * 2)

    start = state().replace(seed=jnp.array([1, 2], jnp.uint32))
    assert events.run([every(1, add), every(1, double)], 1, 9, start).seed.tolist() == [4, 6]
    assert events.run([every(1, double), every(1, add)], 1, 9, start).seed.tolist() == [3, 5]
    assert events.run([every(2, double), every(1, add)], 1, 9, start).seed.tolist() == [2, 3]


def test_an_event_that_returns_nothing_is_named():
    def forgetful(step, s):
        pass

    with pytest.raises(TypeError, match="event forgetful returned a NoneType"):
        events.run([every(1, forgetful)], 1, 9, state())


def test_replay_gives_the_shapes_of_the_step_and_runs_only_what_changes_the_tree():
    ran = []

    def densify(step, s):
        ran.append(step)
        tree = weights.convert(jax.random.key(0), s.params, where="w", to=weights.Dense())
        return create(tree, optax.sgd(0.1)).replace(step=s.step)

    def expensive(step, s):
        raise AssertionError("a replay must not run this")

    plan = [every(1, expensive), at(0.5, densify, changes_tree=True)]
    start = state()
    assert jax.tree.structure(events.replay(plan, 4, 10, start)) == jax.tree.structure(start) and not ran
    assert isinstance(events.replay(plan, 5, 10, start).params["w"], weights.DenseMatrix) and ran == [5]
