"""Training on arrays: it fits, the order is a permutation per epoch, and a rate that diverges is reported."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from jaxpt.objectives.base import Losses
from jaxpt.optim import AdamConfig
from jaxpt.training.arrays import batches, make_fit


def loss(params, batch, key):
    sums = jnp.square(batch["x"] @ params["w"] - batch["y"])
    return Losses(sums, jnp.ones_like(sums), {})


def test_a_linear_model_is_found_and_a_hopeless_rate_reported():
    x = np.random.default_rng(0).normal(size=(100, 3)).astype(np.float32)
    w = np.asarray([1.0, -2.0, 0.5], np.float32)
    data = {"x": jnp.asarray(x), "y": jnp.asarray(x @ w)}
    start = {"w": jnp.zeros(3)}
    fit = make_fit(loss, AdamConfig(floor=0.0), steps=200)
    found = fit(start, data, batch_size=20, rate=0.1, seed=0)
    np.testing.assert_allclose(found.params["w"], w, atol=1e-2)
    assert found.losses.shape == (200,)
    assert found.losses[0] > 1 > 1e-2 > found.losses[-1]
    assert not found.diverged
    assert not start["w"].any()
    assert fit(start, data, batch_size=20, rate=1e38, seed=0).diverged


def test_every_epoch_is_another_permutation():
    found = batches(rows=10, steps=7, batch_size=3, seed=0)
    assert found.shape == (7, 3)
    for epoch in (found[:3], found[3:6]):
        assert len(set(epoch.ravel().tolist())) == 9
    assert (found[:3] != found[3:6]).any()
    np.testing.assert_array_equal(found, batches(rows=10, steps=7, batch_size=3, seed=0))
    with pytest.raises(ValueError, match="batch_size=11 should be between 1 and the 10 rows"):
        batches(rows=10, steps=1, batch_size=11, seed=0)
