"""In-context probes: oracles by their formulas, predictors that know, ignore or remember, heads that copy."""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpt.evaluate import icl_probes as icl
from jaxpt.layers import norms
from jaxpt.layers.mlp import mlp
from jaxpt.models import decoder
from jaxpt.weights import linear


def test_least_squares_is_its_own_oracle_and_the_curve_of_theory():
    curve = icl.linear_regression(icl.least_squares, 6, 12, prompts=400)
    np.testing.assert_allclose(curve.value, curve.oracle, atol=1e-5)
    np.testing.assert_allclose(curve.oracle[:6], 1 - np.arange(6) / 6, atol=0.12)  # the part of w not yet seen
    assert (curve.oracle[6:] < 1e-8).all() and curve.trivial == pytest.approx(np.ones(12), abs=0.3)
    nothing = icl.linear_regression(lambda x, y: np.zeros_like(y), 6, 12, prompts=400)
    np.testing.assert_array_equal(nothing.value, nothing.trivial)
    again = icl.linear_regression(icl.least_squares, 6, 12, prompts=400, seed=1)
    assert not np.allclose(again.oracle[:6], curve.oracle[:6], rtol=1e-3)


def test_a_predictor_sees_only_the_pairs_before():
    x, y = np.random.default_rng(0).normal(size=(2, 5, 3)), np.random.default_rng(1).normal(size=(2, 5))
    changed = y.copy()
    changed[:, 3:] += 1
    np.testing.assert_array_equal(icl.least_squares(x, y)[:, :4], icl.least_squares(x, changed)[:, :4])


@pytest.mark.parametrize("mapping", [icl.Mapping(), icl.Mapping(symbols=5, labels=3, offset=4, start=2)])
def test_the_bayes_predictor_has_the_oracle_curve(mapping):
    curve = icl.symbol_mapping(icl.mapping_oracle(mapping), mapping, prompts=4000)
    np.testing.assert_allclose(curve.value, curve.oracle, atol=4 * math.sqrt(0.25 / 4000))
    assert curve.oracle[0] == pytest.approx(1 / mapping.labels) and curve.summary["gain"] > 0.4
    assert curve.summary["shuffled"] == pytest.approx(1 / mapping.labels, abs=0.04)  # the map is gone
    constant = icl.symbol_mapping(lambda ids: np.zeros((len(ids), 20)), mapping, prompts=4000)
    np.testing.assert_allclose(constant.value, constant.trivial, atol=0.04)


def test_prompts_are_symbols_and_labels_in_turn():
    mapping = icl.Mapping(symbols=5, labels=3, offset=10, start=2)
    ids = mapping.ids(np.array([[0, 4]]), np.array([[2, 1]]), np.array([4]))
    assert ids.tolist() == [[2, 10, 17, 14, 16, 14]]


def test_order_matters_to_a_predictor_that_takes_the_last_label():
    mapping = icl.Mapping(symbols=8, labels=2)

    def last(ids):
        return np.eye(10)[ids[:, -2]]

    knows = icl.order_sensitivity(icl.mapping_oracle(mapping), mapping)
    careless = icl.order_sensitivity(last, mapping)
    assert knows == {"accuracy": 1, "sd": 0, "flips": 0}
    assert careless["flips"] > 0.9 and careless["sd"] > 0.01 and 0.4 < careless["accuracy"] < 0.75


def test_a_copier_has_the_whole_induction_gain_and_a_uniform_model_none():
    def copier(ids):
        period = (ids.shape[1] - 1) // 2
        again = np.arange(ids.shape[1] - 1) >= period
        right = np.concatenate([np.zeros((len(ids), period), bool), ids[:, 1 + period :] == ids[:, 1:-period]], 1)
        return np.where(again & right, 0, math.log(50))

    curve = icl.induction(copier, 50, 20, offset=3)
    np.testing.assert_allclose(curve.value, curve.oracle)
    assert curve.summary["gain"] == pytest.approx(curve.summary["oracle_gain"]) == pytest.approx(math.log(50))
    uniform = icl.induction(lambda ids: np.full((len(ids), 40), math.log(50)), 50, 20)
    assert uniform.summary["gain"] == pytest.approx(0)
    losses = np.stack([np.linspace(3, 1, 101)] * 4)
    assert icl.context_score(losses, 10, 90) == pytest.approx(-1.6)
    with pytest.raises(ValueError, match="need 0 <= early < late < 101 positions, got 50 and 500"):
        icl.context_score(losses)


def test_prefix_matching_finds_the_head_that_looks_back_one_period():
    size, period = 21, 10
    looks = np.zeros((1, 3, 2, size, size))
    for query in range(size):
        looks[0, :, 0, query, max(query - period + 1, 0)] = 1
        looks[0, :, 1, query, query] = 1
    np.testing.assert_allclose(icl.prefix_matching(looks, period), [[1, 0]])


@pytest.mark.parametrize("changes", [{}, {"kv_heads": 1}, {"rotary_fraction": 0.0, "learned_positions": 16}])
def test_attention_weights_are_those_the_decoder_uses(changes):
    cfg = dataclasses.replace(decoder.Config(vocab_size=20, width=16, heads=2, ffn=8, layers=2), **changes)
    params = jax.tree.map(lambda x: 10 * x, decoder.init(jax.random.key(0), cfg))
    ids = jax.random.randint(jax.random.key(1), (3, 9), 0, 20)
    found = icl.decoder_attention(params, ids, cfg)
    np.testing.assert_allclose(found.sum(-1), 1, rtol=1e-5)
    layers = decoder.hidden_states(params, ids, cfg, capture=True).layers
    for layer in range(2):
        block = jax.tree.map(lambda x, n=layer: x[n], params["blocks"])
        inner = norms.norm(layers[layer], block["attention_norm"], cfg.norm_eps)
        v = linear(inner, block["attention"]["value"]).reshape(3, 9, cfg.groups, cfg.per_head)
        v = jnp.repeat(v, cfg.heads // cfg.groups, 2)
        out = jnp.einsum("bhst,bthk->bshk", found[layer], v).reshape(3, 9, -1)
        out = linear(out, block["attention"]["out"])
        after = layers[layer] + out
        y = after + mlp(norms.norm(after, block["mlp_norm"], cfg.norm_eps), block["mlp"], cfg.activation)
        np.testing.assert_allclose(y, layers[layer + 1], rtol=1e-4, atol=1e-4)
