"""Adafactor is optax's on every layer by itself, and T5's schedule is 1 / sqrt(max(step, 10^4))."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxpt import optim

CFG = optim.AdafactorConfig(rate=1e-2, schedule="constant", warmup=0.0, factored=8)


def trees_of(step):
    rng = np.random.default_rng(step)
    shapes = {"head": (16, 8), "small": (4, 16), "bias": (16,)}
    return {
        name: jnp.asarray(rng.normal(size=shape) * 10.0 ** rng.integers(-2, 3), jnp.float32)
        for name, shape in shapes.items()
    }


def run(optimizer, params, gradients):
    state, update = optimizer.init(params), jax.jit(optimizer.update)
    for gradient in gradients:
        updates, state = update(gradient, state, params)
        params = optax.apply_updates(params, updates)
    return params, state


def test_it_is_optax_adafactor_where_nothing_is_stacked():
    gradients = [trees_of(i) for i in range(1, 5)]
    found, state = run(CFG.make(10), trees_of(0), gradients)
    expected, _ = run(optax.adafactor(1e-2, min_dim_size_to_factor=8), trees_of(0), gradients)
    for name, x in found.items():
        np.testing.assert_allclose(x, expected[name], rtol=2e-5, atol=1e-7, err_msg=name)
    nu = state[0].nu
    assert nu["head"]["rows"].size + nu["head"]["columns"].size == 24 and nu["head"]["whole"].size == 1
    assert nu["small"]["whole"].shape == (4, 16)


def test_each_layer_of_a_stack_has_its_own_rms_and_factors():
    gradients = [trees_of(i) for i in range(1, 4)]
    scales = (1e-3, 1.0, 50.0)

    def stack(tree, by=1.0):
        return {"blocks": jax.tree.map(lambda x: jnp.stack([x * (s if by else 1.0) for s in scales]), tree)}

    found, _ = run(CFG.make(10), stack(trees_of(0)), [stack(g, 0.0) for g in gradients])
    for i, scale in enumerate(scales):
        alone, _ = run(CFG.make(10), {k: x * scale for k, x in trees_of(0).items()}, gradients)
        for name, x in alone.items():
            np.testing.assert_allclose(found["blocks"][name][i], x, rtol=2e-5, atol=1e-7, err_msg=name)


def test_t5s_schedule():
    rates = optim.AdafactorConfig(warmup=10_000 / 500_000).rates(500_000)
    for step in (0, 1, 9_999, 10_000, 40_000, 499_999):
        np.testing.assert_allclose(rates(step), 1 / np.sqrt(max(step, 1e4)), rtol=1e-6)
    assert float(optim.SCHEDULES["inverse_sqrt"](1.0, 1000, 1, 0.5)(999)) == 0.5
