"""LAMB is optax's where weight decay acts and Adam elsewhere; an average of weights is what the recurrence says."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxpt import optim

PARAMS = {
    "blocks": {"up": {"kernel": jnp.arange(1.0, 13).reshape(2, 3, 2), "bias": jnp.ones((2, 3))}},
    "head": {"kernel": jnp.linspace(-1, 1, 6).reshape(3, 2), "bias": jnp.zeros(3)},
    "empty": {"kernel": jnp.zeros((2, 2))},
}


def run(optimizer, params, steps=3):
    state = optimizer.init(params)
    for t in range(steps):
        gradient = jax.tree.map(lambda x: jnp.cos(3.0 * x + t), params)  # noqa: B023
        updates, state = optimizer.update(gradient, state, params)
        params = optax.apply_updates(params, updates)
    return params, state


SETTINGS = {"b1": 0.9, "b2": 0.98, "eps": 1e-8}


def test_where_weight_decay_acts_it_is_optax_lamb():
    found, _ = run(optim.lamb(1e-2, **SETTINGS, weight_decay=0.1), PARAMS)
    theirs = optax.lamb(1e-2, **SETTINGS, weight_decay=0.1)
    for name in ("head", "empty"):
        np.testing.assert_allclose(found[name]["kernel"], run(theirs, PARAMS)[0][name]["kernel"], rtol=1e-5)
    for layer in range(2):
        alone = {"kernel": PARAMS["blocks"]["up"]["kernel"][layer]}
        np.testing.assert_allclose(found["blocks"]["up"]["kernel"][layer], run(theirs, alone)[0]["kernel"], rtol=1e-5)


def test_biases_take_plain_adam_and_without_decay_all_do():
    adam, _ = run(optax.adam(1e-2, **SETTINGS), PARAMS)
    found, _ = run(optim.lamb(1e-2, **SETTINGS, weight_decay=0.1), PARAMS)
    np.testing.assert_allclose(found["head"]["bias"], adam["head"]["bias"], rtol=1e-6)
    np.testing.assert_allclose(found["blocks"]["up"]["bias"], adam["blocks"]["up"]["bias"], rtol=1e-6)
    assert np.abs(found["head"]["kernel"] - adam["head"]["kernel"]).max() > 1e-3
    without, _ = run(optim.lamb(1e-2, **SETTINGS, weight_decay=0.0), PARAMS)
    for a, b in zip(jax.tree.leaves(without), jax.tree.leaves(adam), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)


def test_the_average_follows_the_recurrence_and_leaves_the_updates_alone():
    optimizer = optim.with_ema(optax.chain(optax.sgd(0.1)), 0.75)
    params, expected = PARAMS, np.asarray(PARAMS["head"]["kernel"])
    for steps in range(1, 4):
        params, state = run(optimizer, PARAMS, steps)
        expected = 0.75 * expected + 0.25 * np.asarray(params["head"]["kernel"])
        np.testing.assert_allclose(optim.ema_params((state,))["head"]["kernel"], expected, rtol=1e-6)
    for a, b in zip(jax.tree.leaves(params), jax.tree.leaves(run(optax.sgd(0.1), PARAMS)[0]), strict=True):
        np.testing.assert_array_equal(a, b)


def test_no_average_or_a_wrong_decay_is_an_error():
    with pytest.raises(ValueError, match="found 0"):
        optim.ema_params(optax.sgd(0.1).init(PARAMS))
    with pytest.raises(ValueError, match=r"in \[0, 1\), got 1.0"):
        optim.with_ema(optax.sgd(0.1), 1.0)
