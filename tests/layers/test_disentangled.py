"""Disentangled attention against its formula in loops, and the buckets against the values that the authors' code has."""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpt import weights
from jaxpt.core import spec as specs
from jaxpt.layers import block, disentangled, masks, positions
from jaxpt.layers.disentangled import Disentangled, log_bucket

WIDTH, HEADS, S = 8, 2, 20
CFG = block.BlockConfig(width=WIDTH, heads=HEADS, ffn=12, bias=True, rotary_fraction=0.0, initializer_stddev=0.5)
RELATIVE = Disentangled(buckets=8, max_position=64)
X = jax.random.normal(jax.random.key(1), (2, S, WIDTH))


def attention_params(cfg=CFG):
    p = specs.init(jax.random.key(0), block.spec(cfg))["attention"]
    return jax.tree.map(lambda t: t + 0.1 * jax.random.normal(jax.random.key(t.size), t.shape), p)  # no zero biases


def relative_params(cfg=RELATIVE):
    p = specs.init(jax.random.key(2), disentangled.spec(cfg, WIDTH, stddev=1.0))
    return jax.tree.map(lambda t: t + 0.3 * jax.random.normal(jax.random.key(t.size), t.shape), p)


def attend(x=X, cfg=CFG, relative=None, mask=None, parts=RELATIVE):
    score = disentangled.score(relative_params(parts) if relative is None else relative, parts, 1e-7)
    context = block.Context(
        mask or masks.full(), jnp.zeros(x.shape[:2], int), score, scale=disentangled.scale(cfg.per_head)
    )
    return block.self_attention(x, attention_params(cfg), cfg, context)[0]


def test_buckets_have_the_authors_values():
    for distance, bucket in ((0, 0), (1, 1), (128, 128), (129, 129), (130, 130), (200, 169), (300, 207), (511, 255)):
        assert log_bucket(np.array(distance), 256, 512) == bucket
    small = [0, 1, 2, 3, 4, *[5] * 6, *[6] * 15, *[7] * 38]
    np.testing.assert_array_equal(log_bucket(np.arange(64), 8, 64), small)
    gpt_bert = {16: 16, 17: 17, 20: 17, 40: 20, 100: 24, 511: 31}
    np.testing.assert_array_equal(log_bucket(np.array(list(gpt_bert)), 32, 512), list(gpt_bert.values()))


@pytest.mark.parametrize("cfg", [RELATIVE, Disentangled(256, 512), Disentangled(32, 512, rows=63)], ids=str)
def test_rows_are_odd_monotone_and_on_the_table(cfg):
    distances = np.arange(-2000, 2001)
    buckets = log_bucket(distances, cfg.buckets, cfg.max_position)
    np.testing.assert_array_equal(buckets, -buckets[::-1])
    assert (np.diff(buckets) >= 0).all()
    found = disentangled.rows(distances, cfg)
    assert found.min() == 0 and found.max() == cfg.size - 1 and found[2000] == cfg.size // 2


def by_loops(x, p, relative, cfg):
    """The formula of the card, entry by entry, in float64; for position to content at the index of (i, j) and of (j, i)."""
    heads = {}
    table = np.asarray(disentangled.norms.norm(relative["table"], relative["norm"], 1e-7), np.float64)
    for name in ("query", "key", "value"):
        w, b = (np.asarray(t, np.float64) for t in (p[name]["kernel"].w, p[name]["bias"]))
        heads[name] = (np.asarray(x, np.float64) @ w.T + b).reshape(len(x), HEADS, -1)
        heads[name + " position"] = (table @ w.T + b).reshape(len(table), HEADS, -1)
    row_of, found = disentangled.rows(np.arange(-S, S), cfg), {}
    for transposed in (False, True):
        out = np.zeros((len(x), HEADS, WIDTH // HEADS))
        for h in range(HEADS):
            a = np.zeros((len(x), len(x)))
            for i in range(len(x)):
                for j in range(len(x)):
                    row, other = row_of[i - j + S], row_of[(j - i if transposed else i - j) + S]
                    a[i, j] = heads["query"][i, h] @ heads["key"][j, h]
                    a[i, j] += heads["query"][i, h] @ heads["key position"][row, h]
                    a[i, j] += heads["key"][j, h] @ heads["query position"][other, h]
            a = np.exp(a / math.sqrt(3 * WIDTH // HEADS))
            out[:, h] = (a / a.sum(1, keepdims=True)) @ heads["value"][:, h]
        w, b = (np.asarray(t, np.float64) for t in (p["out"]["kernel"].w, p["out"]["bias"]))
        found[transposed] = out.reshape(len(x), -1) @ w.T + b
    return found


@pytest.mark.parametrize("attention", ["xla", "blocks"])
@pytest.mark.parametrize("parts", [RELATIVE, Disentangled(4, 16, rows=7)], ids=["deberta", "gpt-bert"])
def test_attention_is_the_formula_in_loops(attention, parts):
    """And not the one with the transposed index, which differs where the sequence is long enough to be asymmetric."""
    cfg = dataclasses.replace(CFG, attention=attention)
    found = jax.jit(lambda x: attend(x, cfg, parts=parts))(X)
    if attention == "xla" and parts == RELATIVE:
        np.testing.assert_allclose(found, attend(X, cfg, parts=parts), atol=1e-5)  # jit and eager
    expected = by_loops(X[0], attention_params(), relative_params(parts), parts)
    np.testing.assert_allclose(found[0], expected[False], atol=2e-5)
    assert np.abs(np.asarray(found[0]) - expected[True]).max() > 0.05


def test_skewed_rows_are_diagonals():
    x = jnp.arange(2 * 3 * 7.0).reshape(2, 3, 7)  # S = 3, N = 7, so T = 5
    found = positions.skew(x, 5)
    for i in range(3):
        for j in range(5):
            np.testing.assert_array_equal(found[:, i, j], x[:, i, j - i + 2])


def test_queries_and_keys_may_differ_in_number_and_share_heads():
    """Scores of 4 queries over 6 keys of one group equal those of the same rows among 6 over 6 with the keys repeated."""
    q, k = jax.random.normal(jax.random.key(3), (2, 6, 4, 3)), jax.random.normal(jax.random.key(4), (2, 6, 2, 3))
    q_relative, k_relative = (
        jax.random.normal(jax.random.key(5), (11, 4, 3)), jax.random.normal(jax.random.key(6), (11, 2, 3)),
    )  # fmt: skip
    square = disentangled.position_scores(q, jnp.repeat(k, 2, 2), q_relative, jnp.repeat(k_relative, 2, 1))
    np.testing.assert_allclose(disentangled.position_scores(q, k, q_relative, k_relative), square, atol=1e-5)
    fewer = disentangled.position_scores(q[:, :4], k, q_relative[2:], k_relative[2:])  # distances from 3 on
    np.testing.assert_allclose(fewer, square[:, :, :4], atol=1e-5)


def test_without_positions_it_is_attention_at_a_third_of_the_temperature():
    """A table whose projections are 0 leaves content alone, scaled by 1/sqrt(3 K)."""
    cfg = dataclasses.replace(CFG, bias=False)
    p = relative_params()
    nothing = p | {"norm": jax.tree.map(jnp.zeros_like, p["norm"])}
    context = block.Context(masks.full(), jnp.zeros((2, S), int), scale=1 / math.sqrt(3 * cfg.per_head))
    expected, _ = block.self_attention(X, attention_params(cfg), cfg, context)
    np.testing.assert_allclose(attend(cfg=cfg, relative=nothing), expected, atol=1e-6)


def test_masked_keys_have_exactly_no_influence_and_blind_queries_give_zero():
    segments = jnp.asarray([[1] * 12 + [2] * 5 + [0] * 3] * 2)
    p = attention_params()

    def at(x):
        return attend(x, mask=masks.full(segments))[0, :12].sum()

    gradient = jax.jit(jax.grad(at))(X)
    assert (jnp.abs(gradient[0, :12]).max(-1) > 0).all() and not gradient[0, 12:].any() and not gradient[1].any()
    np.testing.assert_array_equal(
        attend(mask=masks.full(segments))[:, 17:], jnp.broadcast_to(p["out"]["bias"], (2, 3, 8))
    )


def test_the_table_the_shared_matrices_and_any_form_of_them_are_trained():
    cfg = dataclasses.replace(CFG, weights=(("attention/query", weights.LowRank(rank=4)),))
    p = specs.init(jax.random.key(0), block.spec(cfg, path="blocks"))["attention"]

    def loss(p, relative):
        score = disentangled.score(relative, RELATIVE, 1e-7)
        context = block.Context(masks.full(), jnp.zeros((2, S), int), score, scale=disentangled.scale(4))
        return jnp.square(block.self_attention(X, p, cfg, context)[0]).sum()

    of_weights, of_table = jax.jit(jax.grad(loss, argnums=(0, 1)))(p, relative_params())
    assert all(jnp.abs(g).max() > 0 for g in jax.tree.leaves(of_weights["query"]))
    reached = np.unique(disentangled.rows(np.arange(1 - S, S), RELATIVE))
    touched = np.flatnonzero(np.abs(np.asarray(of_table["table"])).max(-1))
    np.testing.assert_array_equal(touched, reached)


def test_half_precision_scores_are_close_to_float32():
    half = dataclasses.replace(CFG, compute_dtype="bfloat16")
    score = disentangled.score(relative_params(), RELATIVE, 1e-7, "bfloat16")
    context = block.Context(masks.full(), jnp.zeros((2, S), int), score, scale=disentangled.scale(4))
    found = block.self_attention(X.astype(jnp.bfloat16), attention_params(), half, context)[0]
    assert found.dtype == jnp.bfloat16
    np.testing.assert_allclose(found.astype(jnp.float32), attend(), atol=0.1)


@pytest.mark.parametrize("change", [{"buckets": 1}, {"buckets": 16, "max_position": 9}])
def test_sizes_that_have_no_buckets_are_an_error(change):
    with pytest.raises(ValueError, match="need buckets >= 2 and max_position"):
        Disentangled(**change)
