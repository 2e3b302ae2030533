"""Resetting moments: as at the start, with the schedule's count, the peak rate and everything else left alone."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import struct

from jaxpt.core import trees
from jaxpt.optim import AdamConfig, adam, groups, warmup_cosine
from jaxpt.optim.moments import Moments, reset_moments
from jaxpt.sharding import MeshConfig, make_mesh

PARAMS = {"up": jnp.ones((4, 8)), "bias": jnp.ones(4)}


def gradients(step):
    return jax.tree.map(lambda x: jnp.cos(jnp.arange(1.0, x.size + 1) + step).reshape(x.shape), PARAMS)


def injected():
    cfg = AdamConfig(rate=1e-2, weight_decay=0.1)
    return optax.inject_hyperparams(lambda peak: cfg.make(10, peak))(peak=1e-2)


OPTIMIZERS = {
    "chain": lambda: adam(warmup_cosine(1e-2, 10, 2), weight_decay=0.1),
    "groups": lambda: groups([("bias", optax.sgd(1.0)), ("*", adam(warmup_cosine(1e-2, 10, 2)))]),
    "rate in the state": injected,
    "masked": lambda: optax.masked(adam(optax.constant_schedule(0.1)), {"up": True, "bias": False}),
}


def after(optimizer, steps=3):
    state = optimizer.init(PARAMS)
    for step in range(steps):
        _, state = jax.jit(optimizer.update)(gradients(step), state, PARAMS)
    return state


def is_moment(path):
    return "mu" in path or "nu" in path


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_moments_and_their_counter_are_those_of_a_fresh_state_and_the_rest_is_kept(name):
    optimizer = OPTIMIZERS[name]()
    before, fresh = after(optimizer), optimizer.init(PARAMS)
    found = reset_moments(before)
    assert jax.tree.structure(found) == jax.tree.structure(before)
    expected = dict(trees.leaves_with_path(fresh))
    kept = {path: x for path, x in trees.leaves_with_path(before) if not is_moment(path)}
    counters = 0
    for path, x in trees.leaves_with_path(found):
        if is_moment(path):
            np.testing.assert_array_equal(x, expected[path], err_msg=path)
            continue
        is_zeroed = not np.array_equal(x, kept[path])
        counters += is_zeroed
        assert not is_zeroed or (x == 0 and path.endswith("count")), path
    assert counters == 1  # the one of scale_by_adam
    steps = [int(x) for path, x in kept.items() if path.endswith("count")]
    assert steps == [3] * len(steps) and len(steps) >= 2  # Adam's and the schedule's, both had counted


@pytest.mark.parametrize("name", ["chain", "groups", "rate in the state"])
def test_the_first_update_after_a_reset_has_the_size_of_the_rate_of_its_step(name):
    """|delta| = rate wherever the gradient is not zero (Adam, eps -> 0), and the rate is that of step 3, not of step 0."""
    optimizer = OPTIMIZERS[name]()
    params = {"up": jnp.zeros((4, 8)), "bias": jnp.zeros(4)}  # so that weight decay adds nothing
    updates, _ = optimizer.update(gradients(3), reset_moments(after(optimizer)), params)
    rate = float(warmup_cosine(1e-2, 10, 1 if name == "rate in the state" else 2)(3))
    np.testing.assert_allclose(np.abs(updates["up"]), rate, rtol=1e-4)


def test_under_jit_and_on_a_mesh_it_keeps_shardings():
    mesh = make_mesh(MeshConfig(data=1, fsdp=8))
    over = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(None, "fsdp"))
    params = {"up": jax.device_put(jnp.ones((4, 8)), over)}
    state = jax.jit(adam(1e-2).init, out_shardings=None)(params)
    state = jax.tree.map(lambda x: jax.device_put(x + 1, over) if x.ndim == 2 else x + 1, state)
    for found in (reset_moments(state), jax.jit(reset_moments)(state)):
        assert all(not x.any() for x in jax.tree.leaves(found))
    for x in jax.tree.leaves(reset_moments(state)):
        assert x.ndim < 2 or x.sharding.is_equivalent_to(over, 2)


def test_a_state_of_ours_says_what_its_moments_are():
    @struct.dataclass
    class State(Moments):
        step: jax.Array
        count: jax.Array
        mu: dict
        moments = ("count", "mu")

    found = reset_moments((State(jnp.array(5), jnp.array(5), PARAMS), {"count": jnp.array(7)}))
    assert (int(found[0].step), int(found[0].count), int(found[1]["count"])) == (5, 0, 7)
    assert not found[0].mu["up"].any()


def test_a_state_without_moments_is_an_error_that_names_what_there_is():
    with pytest.raises(ValueError, match="no moments to reset.*EmptyState, ScaleByScheduleState"):
        reset_moments(optax.sgd(warmup_cosine(0.1, 10, 1)).init(PARAMS))
