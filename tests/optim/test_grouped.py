"""A grouped optimizer is its groups, each by itself; Adam without bias correction is BERT's formula."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxpt.core import config
from jaxpt.optim import AdamConfig, BertAdamConfig, GroupedConfig

PARAMS = {"a": {"kernel": jnp.asarray([[1.0, -2.0]])}, "b": {"kernel": jnp.asarray([[3.0, 0.5, 1.0]])}}
ADAM = AdamConfig(clip=0.5, weight_decay=0.1)
CFG = GroupedConfig(rate=1e-2, groups=(("a", 1.0, ADAM), ("*", 0.5, BertAdamConfig())))


def gradients(step, of_b=1.0):
    return {
        "a": {"kernel": jnp.cos(step + jnp.arange(2.0))[None]},
        "b": {"kernel": of_b * jnp.sin(step + jnp.arange(3.0))[None]},
    }


def only(name):
    """The parameters and five gradients of one group."""
    return {name: PARAMS[name]}, [{name: gradients(i)[name]} for i in range(5)]


def run(optimizer, params, grads):
    state = optimizer.init(params)
    for gradient in grads:
        updates, state = optimizer.update(gradient, state, params)
        params = optax.apply_updates(params, updates)
    return params


def test_each_group_is_an_optimizer_of_its_own():
    """Own settings, clipping and rate under the common schedule; what the other group's gradients are does not matter."""
    found = run(CFG.make(10), PARAMS, [gradients(i) for i in range(5)])
    of_a = optax.chain(optax.clip_by_global_norm(0.5), ADAM.with_rates(CFG.rates(10)))
    np.testing.assert_array_equal(found["a"]["kernel"], run(of_a, *only("a"))["a"]["kernel"])
    of_b = BertAdamConfig().with_rates(lambda count: 0.5 * CFG.rates(10)(count))
    np.testing.assert_array_equal(found["b"]["kernel"], run(of_b, *only("b"))["b"]["kernel"])
    other = run(CFG.make(10), PARAMS, [gradients(i, 1e3) for i in range(5)])
    np.testing.assert_array_equal(found["a"]["kernel"], other["a"]["kernel"])


def test_a_description_of_groups_can_be_written_down_and_wrong_ones_are_refused():
    assert config.to_dict(CFG)["groups"][0][2]["clip"] == 0.5
    assert hash(CFG) == hash(GroupedConfig(rate=1e-2, groups=CFG.groups))
    with pytest.raises(ValueError, match="need groups"):
        GroupedConfig(groups=())
    with pytest.raises(ValueError, match="not negative"):
        GroupedConfig(groups=(("*", -1.0, ADAM),))
    with pytest.raises(ValueError, match="no optimizer group matches 'b/kernel'"):
        GroupedConfig(groups=(("a", 1.0, ADAM),)).make(5).init(PARAMS)


def test_adam_without_bias_correction():
    """Two updates by hand; and the first one is Adam's times (1 - b1) / sqrt(1 - b2)."""
    params, grads = only("a")
    cfg = BertAdamConfig(rate=0.1, schedule="constant", warmup=0.0, weight_decay=0.01)
    found = np.asarray(run(cfg.make(10), params, grads[:2])["a"]["kernel"])
    w, m, v = np.asarray(params["a"]["kernel"], np.float64), 0.0, 0.0
    for gradient in grads[:2]:
        g = np.asarray(gradient["a"]["kernel"], np.float64)
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
        w = w - 0.1 * (m / (np.sqrt(v) + 1e-6) + 0.01 * w)
    np.testing.assert_allclose(found, w, rtol=1e-5)
    plain = {"rate": 0.1, "schedule": "constant", "warmup": 0.0, "eps": 1e-30}
    first, adam = (
        np.asarray(run(kind(**plain).make(10), params, grads[:1])["a"]["kernel"])
        for kind in (BertAdamConfig, AdamConfig)
    )
    moved, expected = first - np.asarray(params["a"]["kernel"]), adam - np.asarray(params["a"]["kernel"])
    np.testing.assert_allclose(moved / expected, 0.1 / np.sqrt(0.001), rtol=1e-4)
