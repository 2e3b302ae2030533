"""Stable-SPAM: its parts by their equations, clean resets, and another implementation of them step by step."""

from __future__ import annotations

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxpt.optim import StableSpamConfig, adam
from jaxpt.optim.stable_spam import clipped, cosine, scale_by_stable_spam

GOLDEN = Path(__file__).parent / "golden"
STEADY = {
    "gamma1": 0.0,
    "gamma2": 0.0,
    "theta": 0.0,
    "eta": 1.0,
    "gap": 0,
}  # no memory: averages are the present values


def random(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def states(cfg, gradients):
    optimizer = scale_by_stable_spam(cfg)
    state, found = optimizer.init(gradients[0]), []
    update = jax.jit(optimizer.update)
    for g in gradients:
        updates, state = update(g, state)
        found.append((updates, state))
    return found


@pytest.mark.parametrize(("case", "gap", "total"), [("plain", 1000, 20_000), ("reset", 6, 40)])
def test_another_implementation_step_by_step(case, gap, total):
    """`pytorch-optimizer`'s, whose resets are clean: 20 steps with spikes, three resets, c_t well on its way down."""
    golden = np.load(GOLDEN / "stable_spam.npz")
    params = {k: jnp.asarray(golden[f"start/{k}"]) for k in ("tall", "wide", "square", "vector")}
    cfg = StableSpamConfig(theta=0.9, gap=gap, total=total)
    optimizer = optax.chain(scale_by_stable_spam(cfg), optax.scale(-1e-2))
    state, update = optimizer.init(params), jax.jit(optimizer.update)
    for t in range(20):
        updates, state = update({k: golden[f"gradient/{k}"][t] for k in params}, state)
        params = optax.apply_updates(params, updates)
        for name, x in params.items():
            np.testing.assert_allclose(x, golden[f"{case}/{name}"][t], atol=2e-5, err_msg=f"{name} {t}")


def test_without_memory_it_is_adam_on_normalised_gradients():
    gradients = [{"w": random(6, 4, seed=t)} for t in range(4)]
    other = optax.scale_by_adam()
    state = other.init(gradients[0])
    for g, (found, _) in zip(gradients, states(StableSpamConfig(**STEADY), gradients), strict=True):
        expected, state = other.update({"w": g["w"] / jnp.linalg.norm(g["w"])}, state)
        np.testing.assert_allclose(found["w"], expected["w"], rtol=1e-4)


def test_entries_beyond_the_bound_are_shrunk_so_that_the_largest_lies_on_it():
    g = jnp.asarray([[1.0, -8.0, 3.0], [0.5, 2.0, -1.0]])
    np.testing.assert_allclose(clipped(g, jnp.asarray(2.0)), [[1.0, -2.0, 0.75], [0.5, 2.0, -1.0]])
    np.testing.assert_allclose(clipped(g, jnp.asarray([4.0, 1.0])), [[1.0, -4.0, 3.0], [0.5, 1.0, -1.0]])


def test_a_spike_hardly_moves_the_moments():
    """One gradient 1000 times too large: Adam's second moment grows a millionfold, here not tenfold."""
    calm = [{"w": random(6, 4, seed=t)} for t in range(20)]
    spiky = [*calm[:-1], {"w": 1000 * calm[-1]["w"]}]
    cfg = StableSpamConfig(gap=0)
    ratio = jnp.sum(states(cfg, spiky)[-1][1].nu["w"]) / jnp.sum(states(cfg, calm)[-1][1].nu["w"])
    assert 0.5 < ratio < 10


def test_the_cosine_starts_at_1_and_ends_at_eta():
    found = [float(cosine(jnp.asarray(float(t)), 40, 0.5)) for t in (0, 20, 39, 40, 400)]
    assert found[0] == 1 and found[-2:] == [0.5, 0.5]
    assert found[1] == pytest.approx(0.5 + 0.5 * (1 + np.cos(21 * np.pi / 41)) / (1 + np.cos(np.pi / 41)), rel=1e-5)
    assert 0.5 <= found[2] < 0.51


def test_a_reset_zeroes_the_moments_and_keeps_the_averages():
    """Before every third update: that update has Adam's first size, and the averages go on as if nothing had been."""
    gradients = [{"w": random(6, 4, seed=t)} for t in range(8)]
    found, never = states(StableSpamConfig(gap=3), gradients), states(StableSpamConfig(gap=0), gradients)
    assert [int(state.count) for _, state in found] == [1, 2, 1, 2, 3, 1, 2, 3]
    for t in (2, 5):
        np.testing.assert_allclose(np.abs(found[t][0]["w"]), 1.0, rtol=1e-3)
    for (_, one), (_, other) in zip(found, never, strict=True):
        for name in ("step", "largest", "norm", "square"):
            jax.tree.map(np.testing.assert_array_equal, getattr(one, name), getattr(other, name))


def test_after_a_reset_the_normalised_gradient_is_not_inflated():
    """The authors' code corrects old averages by a count that starts anew, up to 1/(1 - .999) too large; here the norm of a
    steady gradient stays what it was."""
    g = {"w": random(6, 4)}
    found = states(StableSpamConfig(gap=5, eta=1.0), [g] * 12)
    sizes = [float(jnp.linalg.norm(state.mu["w"]) / (1 - 0.9 ** int(state.count))) for _, state in found]
    np.testing.assert_allclose(sizes, sizes[0], rtol=1e-4)


def test_averages_are_kept_for_each_layer_and_outlive_nothing_else():
    params = {"blocks": {"up": random(3, 6, 4), "scale": random(3, 4)}, "head": random(6, 4)}
    state = scale_by_stable_spam(StableSpamConfig()).init(params)
    assert state.norm["blocks"]["up"].shape == state.largest["blocks"]["scale"].shape == (3,)
    assert state.square["head"].shape == ()
    numbers = sum(x.size for x in jax.tree.leaves(params))
    assert sum(x.size for x in jax.tree.leaves(state)) == 2 * numbers + 3 * (3 + 3 + 1) + 2


def test_weight_decay_is_decoupled_as_adams():
    cfg = StableSpamConfig(rate=0.1, schedule="constant", warmup=0.0, weight_decay=0.5, **STEADY)
    params = {"up": {"kernel": {"w": random(6, 4)}}}
    g = jax.tree.map(lambda x: x / jnp.linalg.norm(x), params)
    found, _ = cfg.make(10).update(g, cfg.make(10).init(params), params)
    other = adam(0.1, weight_decay=0.5)
    expected, _ = other.update(g, other.init(params), params)
    np.testing.assert_allclose(found["up"]["kernel"]["w"], expected["up"]["kernel"]["w"], rtol=1e-4)


@pytest.mark.parametrize("wrong", [{"gap": -1}, {"total": 0}], ids=str)
def test_impossible_settings_are_errors(wrong):
    with pytest.raises(ValueError, match="need gap >= 0 and total >= 1, got"):
        StableSpamConfig(**wrong).make(10)
