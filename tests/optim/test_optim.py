"""Schedules at their corners, Adam against its equations, and parameter groups by path."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxpt import weights
from jaxpt.core import spec as specs
from jaxpt.core import trees
from jaxpt.optim import SCHEDULES, AdamConfig, adam, groups, warmup_cosine


@functools.cache
def params():
    spec = {"up": {"kernel": weights.SparseLowRank(rank=2, density=0.25).spec(6, 8, ("mlp", "embed"))}}
    tree = specs.init(jax.random.key(0), spec) | {
        "norm": {"scale": jnp.ones(4)},
        "embedding": jnp.ones((3, 4)),
    }
    return trees.split(tree)[0]


def gradients(step):
    return trees.map_with_path(
        lambda path, x: np.cos(np.arange(x.size) + step + len(path)).reshape(x.shape).astype(np.float32),
        params(),
    )


def run(optimizer, steps=3):
    tree = params()
    state, update = optimizer.init(tree), jax.jit(optimizer.update)
    for step in range(steps):
        updates, state = update(gradients(step), state, tree)
        tree = optax.apply_updates(tree, updates)
    return tree, state


def test_warmup_cosine_corners():
    rate = warmup_cosine(2.0, steps=100, warmup=10, floor=0.1)
    found = [float(rate(t)) for t in (0, 4, 9, 10, 99, 500)]
    np.testing.assert_allclose(found, [0.2, 1.0, 2.0, 2.0, 0.2, 0.2], rtol=1e-6)
    middle = 10 + 89 / 2
    np.testing.assert_allclose(float(rate(middle)), 2.0 * (0.1 + 0.9 / 2), rtol=1e-6)
    values = np.asarray([float(rate(t)) for t in range(10, 100)])
    assert (np.diff(values) <= 0).all()


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize(("steps", "warmup"), [(1, 0), (1, 1), (5, 5), (5, 0), (2, 1)])
def test_every_schedule_is_positive_and_bounded_at_every_update(name, steps, warmup):
    rate = SCHEDULES[name](3e-3, steps, warmup)
    values = np.asarray([float(jax.jit(rate)(t)) for t in range(steps)])
    assert (values > 0).all() and values.max() <= 3e-3 * (1 + 1e-6)
    if steps > warmup:
        assert np.isclose(values[warmup], 3e-3)


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("wrong", [{"warmup": 11}, {"warmup": -1}, {"floor": 1.5}], ids=str)
def test_an_impossible_schedule_is_an_error(name, wrong):
    with pytest.raises(ValueError, match="need 0 <= warmup <= steps"):
        SCHEDULES[name](**{"peak": 1.0, "steps": 10, "warmup": 2} | wrong)


@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_adam_by_its_equations(decay):
    """Bias-corrected moments; decoupled decay on kernels only, scaled by the rate."""
    found, _ = run(adam(0.01, b1=0.8, b2=0.95, eps=1e-6, weight_decay=decay))

    def by_hand(path, p):
        m = v = np.zeros(p.shape)
        p = np.asarray(p, np.float64)
        for step in range(3):
            g = np.asarray(dict(trees.leaves_with_path(gradients(step)))[path])
            m, v = 0.8 * m + 0.2 * g, 0.95 * v + 0.05 * g**2
            direction = m / (1 - 0.8 ** (step + 1)) / (np.sqrt(v / (1 - 0.95 ** (step + 1))) + 1e-6)
            p = p - 0.01 * (direction + (decay * p if "kernel" in path else 0.0))
        return p

    for (path, one), other in zip(
        trees.leaves_with_path(found), jax.tree.leaves(trees.map_with_path(by_hand, params())), strict=True
    ):
        np.testing.assert_allclose(one, other, atol=1e-5, err_msg=path)


def test_moments_exist_for_trainable_arrays_only_and_in_their_dtype():
    tree = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params())
    state = adam(1e-3).init(tree)
    moments = [x for x in jax.tree.leaves(state) if x.ndim]
    assert sorted(x.shape for x in moments) == sorted(2 * [x.shape for x in jax.tree.leaves(tree)])
    assert {x.dtype for x in moments} == {jnp.dtype("bfloat16")}


def test_groups_update_each_array_by_the_first_pattern_that_matches():
    chosen = groups([("embedding", optax.sgd(1.0)), ("*/v", optax.set_to_zero()), ("*", adam(0.01))])
    found, before = run(chosen, 1)[0], params()
    np.testing.assert_allclose(found["embedding"], before["embedding"] - gradients(0)["embedding"])
    np.testing.assert_array_equal(found["up"]["kernel"].v, before["up"]["kernel"].v)
    alone, _ = run(adam(0.01), 1)
    for part in ("a", "b"):
        np.testing.assert_allclose(getattr(found["up"]["kernel"], part), getattr(alone["up"]["kernel"], part))
    np.testing.assert_allclose(found["norm"]["scale"], alone["norm"]["scale"])


def test_groups_run_under_jit_and_keep_moments_for_their_own_arrays_only():
    chosen = groups([("embedding", optax.sgd(1.0)), ("*", adam(0.01))])
    state = chosen.init(params())
    _, after = jax.jit(chosen.update)(gradients(0), state, params())
    assert jax.tree.structure(after) == jax.tree.structure(state)
    assert (3, 4) not in {x.shape for x in jax.tree.leaves(state)}


def test_an_array_that_no_group_matches_is_an_error():
    with pytest.raises(ValueError, match="no optimizer group matches 'embedding'; the patterns are"):
        groups([("*/kernel", adam(1e-3)), ("norm", adam(1e-3))]).init(params())


def test_a_cooldown_ends_any_schedule_on_a_line_to_zero():
    """Warm-up, stable, decay: up to the peak, the peak, and from the first update of the last share down."""
    rates = AdamConfig(rate=2.0, schedule="constant", warmup=0.2, cooldown=0.5).rates(10)
    found = [float(rates(t)) for t in range(11)]
    np.testing.assert_allclose(found, [1, 2, 2, 2, 2, 2, 1.6, 1.2, 0.8, 0.4, 0], rtol=1e-6)
    whole, cooled = AdamConfig(warmup=0.1).rates(80), AdamConfig(warmup=0.08, cooldown=0.2).rates(100)
    for t in (0, 7, 8, 40, 79):
        np.testing.assert_allclose(cooled(t), whole(t), rtol=1e-6)
    np.testing.assert_allclose([cooled(80), cooled(90)], [whole(79), whole(79) / 2], rtol=1e-6)
    with pytest.raises(ValueError, match="0 <= warmup <= steps"):
        AdamConfig(warmup=0.6, cooldown=0.5).rates(10)
