"""Restarts: when they happen, how the rate recovers, and what they do to a state (card of arXiv 2505.22922)."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxpt import weights
from jaxpt.core import config, trees
from jaxpt.core import spec as specs
from jaxpt.optim import AdamConfig, RampedAdam, Ramps, RestartSchedule
from jaxpt.optim.restarts import quick_recovery
from jaxpt.sharding import MeshConfig, make_mesh
from jaxpt.training import events
from jaxpt.training.state import create, create_sharded


def rates(schedule, steps):
    return np.asarray(jax.jit(jax.vmap(schedule))(jnp.arange(steps)), np.float64)


def test_the_ramp_is_that_of_the_paper_and_nothing_else_changes():
    """k = 0: 0.001 g(t0 + K); k = K - 1: g(t0 + K); k = K: g itself. No ramp at update 0."""
    base = AdamConfig(rate=3e-3).rates(700)
    ramped = rates(RampedAdam(rate=3e-3, ramps=RestartSchedule(every=70)).rates(700), 700)
    plain, t0 = rates(base, 700), np.arange(70, 631, 70)
    np.testing.assert_allclose(ramped[t0], 1e-3 * plain[t0 + 10], rtol=1e-5)
    np.testing.assert_allclose(ramped[t0 + 9], plain[t0 + 10], rtol=1e-6)
    np.testing.assert_allclose(ramped[t0 + 4], (0.001 + 0.999 * 4 / 9) * plain[t0 + 10], rtol=1e-5)
    ramp = (t0[:, None] + np.arange(10)).ravel()
    rest = np.setdiff1d(np.arange(700), ramp)
    np.testing.assert_allclose(ramped[rest], plain[rest], rtol=1e-6)
    assert len(t0) == 9 and 699 in rest and (np.diff(ramped[60:80]) < 0)[9]


@settings(max_examples=40, deadline=None)
@given(st.integers(11, 90), st.integers(20, 400))
def test_there_is_a_ramp_after_every_restart_whatever_the_length_and_none_in_the_last_tenth(every, total):
    schedule = RestartSchedule(every=every)
    updates = schedule.updates(total)
    assert updates == tuple(range(every, int(0.9 * total + 1e-6) + 1, every))
    (refactor, reset) = schedule.events()
    happens = [t for t in range(1, total + 1) if reset.due(t, total)]
    assert happens == [t for t in range(1, total + 1) if refactor.due(t, total)] == list(updates)
    if updates:
        found = quick_recovery(lambda t: jnp.ones_like(t, jnp.float32), schedule, total)
        low = np.flatnonzero(np.asarray(found(jnp.arange(total))) < 0.002)
        assert low.tolist() == list(updates)  # the first update after a restart is update number t, counted from 0


def test_single_restarts_shares_and_a_late_start():
    ramps = Ramps(every=10, first=0.4, stop_after=0.8, at=(7, 0.95), recovery_steps=3)
    assert ramps.updates(100) == (7, 50, 60, 70, 80, 95)
    assert Ramps().updates(100) == () and Ramps(at=(0.001,)).updates(100) == (1,)
    assert RestartSchedule(every=29, stop_after=0.29).updates(100) == (29,)
    base = AdamConfig().rates(100)
    assert quick_recovery(base, Ramps(), 100) is base
    assert quick_recovery(base, Ramps(every=5, recovery_steps=0), 100) is base
    one = quick_recovery(base, Ramps(at=(50,), recovery_steps=1), 100)  # a ramp of one update has no low end
    assert float(one(50)) == pytest.approx(float(base(51)))
    assert [e.due(7, 100) for e in RestartSchedule(at=(7,), refactor=False).events()] == [True]
    assert len(RestartSchedule(every=20, reset=False).events()) == 1


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"every": -1}, "need every >= 0"),
        ({"start_frac": 2.0}, "0 <= start_frac <= 1"),
        ({"every": 10}, "with every=10 the rate never recovers from recovery_steps=10"),
        ({"first": 0.95}, r"first <= stop_after <= 1, got 0\.95 and 0\.9"),
        ({"at": (0, 5)}, r"at=\[0\]: an update is an int from 1"),
        ({"at": (1.0,)}, r"at=\[1\.0\]: an update is an int from 1, a share a float between 0 and 1"),
    ],
    ids=str,
)
def test_ramps_that_make_no_sense_are_an_error(wrong, message):
    with pytest.raises(ValueError, match=message):
        Ramps(**wrong)


def test_a_restart_that_a_run_never_goes_on_after_is_an_error_when_the_run_starts():
    ramps = Ramps(at=(100,))
    with pytest.raises(ValueError, match=r"at=\(100,\): update 100 is not before the last of a run of 100"):
        events.check([ramps.scheduled(lambda step, state: state)], 100)


def test_the_description_of_a_run_reads_back_and_is_overridden_by_dotted_keys():
    cfg = RampedAdam(rate=1e-3, ramps=RestartSchedule(every=70))
    described = config.to_dict(cfg)
    assert config.from_dict(described, [RampedAdam, RestartSchedule]) == cfg
    changed = config.override(cfg, {"ramps.every": "50", "ramps.refactor": "false", "b2": "0.99"})
    assert changed.ramps == RestartSchedule(every=50, refactor=False) and changed.b2 == 0.99
    assert hash(changed) != hash(cfg) and isinstance(cfg, AdamConfig)


SPEC = {
    "up": {"kernel": weights.LowRank(rank=4).spec(16, 8, ("mlp", "embed"), (2,))},
    "norm": {"scale": specs.array((8,), ("embed",), specs.ones)},
}


def moved(state, optimizer, updates=3, gradient=0.5):
    """After some updates with a gradient that is the same everywhere."""
    for _ in range(updates):
        given = jax.tree.map(lambda x: jnp.full_like(x, gradient), state.trainable)
        change, opt_state = optimizer.update(given, state.opt_state, state.trainable)
        state = state.replace(
            step=state.step + 1, trainable=optax.apply_updates(state.trainable, change), opt_state=opt_state
        )
    return state


def test_a_restart_balances_the_factors_and_sets_every_moment_to_its_start_but_not_the_schedule():
    cfg = RampedAdam(rate=0.01, eps=1e-30, ramps=RestartSchedule(every=3, recovery_steps=2))
    optimizer = cfg.make(20)
    state = moved(create(specs.init(jax.random.key(0), SPEC), optimizer), optimizer)
    before = jax.tree.map(np.array, state)  # the event uses up its own
    after = events.run(cfg.ramps.events(), 3, 20, state)
    assert jax.tree.structure(after) == jax.tree.structure(before)

    b, a = after.trainable["up"]["kernel"].b, after.trainable["up"]["kernel"].a
    np.testing.assert_allclose(after.params["up"]["kernel"].dense(), before.params["up"]["kernel"].dense(), atol=1e-5)
    np.testing.assert_allclose(b.mT @ b, a @ a.mT, atol=1e-5)
    np.testing.assert_array_equal(after.trainable["norm"]["scale"], before.trainable["norm"]["scale"])

    adam, schedule = after.opt_state[0], after.opt_state[-1]
    for found, fresh in zip(jax.tree.leaves(adam), jax.tree.leaves(optimizer.init(after.trainable)[0]), strict=True):
        np.testing.assert_array_equal(found, fresh)
    assert int(adam.count) == 0 and int(schedule.count) == 3 == int(after.step)

    rate = float(cfg.rates(20)(3))  # the ramp's first: Adam's first update is the rate, by sign
    then = moved(after, optimizer, 1, gradient=-7.0)
    for one, two in zip(jax.tree.leaves(then.trainable), jax.tree.leaves(after.trainable), strict=True):
        np.testing.assert_allclose(one - two, rate, rtol=2e-2, atol=1e-9)


def test_without_low_rank_factors_a_refactorization_is_an_error():
    optimizer = AdamConfig().make(20)
    state = create({"w": weights.DenseMatrix(jnp.ones((4, 4)))}, optimizer)
    with pytest.raises(ValueError, match="no matrix has two low-rank factors"):
        events.run(RestartSchedule(every=12).events(), 12, 20, state)


def test_on_a_mesh_a_restart_does_the_same_and_every_array_stays_where_it_was():
    optimizer, mesh = AdamConfig().make(20), make_mesh(MeshConfig(data=1, fsdp=2, model=4))
    plan = RestartSchedule(every=12).events()
    sharded = create_sharded(SPEC, optimizer, mesh)
    where = jax.tree.map(lambda x: x.sharding, sharded)
    expected = events.run(plan, 12, 20, create(jax.device_get(sharded.params), optimizer))
    found = events.run(plan, 12, 20, sharded)
    for (path, one), two, place in zip(
        trees.leaves_with_path(found), jax.tree.leaves(expected), jax.tree.leaves(where), strict=True
    ):
        if path != "seed":
            np.testing.assert_allclose(one, two, atol=1e-5, err_msg=path)
        assert one.sharding == place, path
