"""Attention against the written-down formula, for every implementation that runs here and every mask."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpt.layers.dot_product import choose, dot_product_attention
from jaxpt.layers.masks import Mask, causal, full, prefix_lm, to_array
from jaxpt.sharding import MeshConfig, make_mesh

B, S, H, G, K = 2, 8, 4, 2, 4
SEGMENTS = jnp.asarray([[1, 1, 1, 2, 2, 2, 0, 0], [3, 3, 3, 3, 3, 1, 1, 1]])  # zeros are padding and see nothing
ALLOWED = np.random.default_rng(0).random((B, S, S)) < 0.4
ALLOWED[:, 3] = False

attend = jax.jit(dot_product_attention, static_argnames=("scale", "implementation"))
MASKS = {
    "full": full(),
    "causal": causal(),
    "segments": full(SEGMENTS),
    "causal segments": causal(SEGMENTS),
    "prefix": prefix_lm(jnp.asarray([3, 0])),
    "prefix segments": prefix_lm(jnp.asarray([5, 2]), SEGMENTS),
    "allowed": Mask(allowed=jnp.asarray(ALLOWED)),
    "allowed for all rows": Mask(allowed=jnp.asarray(ALLOWED[:1])),
    "allowed causal segments": Mask(causal=True, segments=SEGMENTS, allowed=jnp.asarray(ALLOWED)),
    "sees nothing": Mask(allowed=jnp.zeros((1, S, S), bool)),
}


def visible_by_definition(mask: Mask) -> np.ndarray:
    """The mask's docstring, position by position."""
    seen = np.zeros((B, S, S), bool)
    for b in range(B):
        for i in range(S):
            for j in range(S):
                ok = True
                if mask.causal:
                    ok = j <= i or (mask.prefix is not None and j < mask.prefix[b])
                if mask.segments is not None:
                    ok = ok and mask.segments[b, i] == mask.segments[b, j] != 0
                if mask.allowed is not None:
                    ok = ok and mask.allowed[b % mask.allowed.shape[0], i, j]
                seen[b, i, j] = ok
    return seen


def by_formula(q, k, v, seen, bias=0.0):
    """softmax over the keys a query sees, with explicit exponentials; 0 where it sees none."""
    k, v = (jnp.repeat(t, q.shape[2] // t.shape[2], axis=2) for t in (k, v))
    logits = jnp.einsum("bshk,bthk->bhst", q, k) / np.sqrt(q.shape[-1]) + bias
    weights = jnp.exp(logits - jax.lax.stop_gradient(logits).max()) * seen[:, None]
    total = weights.sum(-1, keepdims=True)
    return jnp.einsum("bhst,bthk->bshk", weights / jnp.where(total == 0, 1, total), v)


def inputs(groups=G, s=S, h=H, k=K, seed=0):
    keys = jax.random.split(jax.random.key(seed), 3)
    return [jax.random.normal(key, (B, s, n, k)) for key, n in zip(keys, (h, groups, groups), strict=True)]


@pytest.mark.parametrize("name", MASKS)
def test_to_array_says_what_the_docstring_says(name):
    found = to_array(MASKS[name], S, S)
    found = np.ones((B, S, S), bool) if found is None else np.broadcast_to(found, (B, S, S))
    np.testing.assert_array_equal(found, visible_by_definition(MASKS[name]))


@pytest.mark.parametrize(
    ("name", "implementation"),
    [(name, "blocks") for name in MASKS]
    + [(name, "xla") for name in ("full", "causal", "prefix segments", "allowed causal segments", "sees nothing")],
)
def test_values_gradients_and_exact_leakage(name, implementation):
    """The formula's values and gradients; what is hidden gets a gradient of exactly 0; nothing is NaN."""
    seen = visible_by_definition(MASKS[name])
    args = inputs()
    cotangent = jax.random.normal(jax.random.key(9), (B, S, H, K))

    @jax.jit
    def run(*args):
        masked = functools.partial(attend, mask=MASKS[name], implementation=implementation)
        value, pull = jax.vjp(masked, *args)
        one_row = jax.vmap(lambda i: pull(jnp.zeros_like(cotangent).at[:, i].set(cotangent[:, i])))(jnp.arange(S))
        return value, pull(cotangent), one_row

    value, gradients, (dq, dk, dv) = run(*args)
    expected, pull = jax.vjp(lambda *a: by_formula(*a, seen), *args)
    for found, wanted in zip((value, *gradients), (expected, *pull(cotangent)), strict=True):
        np.testing.assert_allclose(found, wanted, atol=2e-6)
    blind = ~seen.any(-1)
    assert not np.asarray(value)[blind].any()
    for i in range(S):  # the gradient of query i's output
        for hidden_keys in (dk, dv):
            assert not np.asarray(hidden_keys[i])[~seen[:, i]].any()
        assert not np.asarray(dq[i])[:, np.arange(S) != i].any()
        assert not np.asarray(dq[i])[blind].any()


@pytest.mark.parametrize("implementation", ["xla", "blocks"])
def test_grouped_heads_equal_repeated_heads(implementation):
    q, k, v = inputs()
    repeated = [jnp.repeat(t, H // G, axis=2) for t in (k, v)]
    run = functools.partial(attend, mask=causal(SEGMENTS), implementation=implementation)
    np.testing.assert_allclose(run(q, k, v), run(q, *repeated), atol=1e-6)


@pytest.mark.parametrize("implementation", ["xla", "blocks"])
@pytest.mark.parametrize("shape", [(1, H, S, S), (B, 1, S, S), (B, H, S, S)], ids=str)
def test_bias_is_added_to_the_scaled_logits(implementation, shape):
    q, k, v = inputs()
    bias = jax.random.normal(jax.random.key(4), shape)
    found = attend(q, k, v, causal(SEGMENTS), bias=bias, implementation=implementation)
    expected = by_formula(q, k, v, visible_by_definition(causal(SEGMENTS)), bias)
    np.testing.assert_allclose(found, expected, atol=2e-6)


@pytest.mark.parametrize("implementation", ["xla", "blocks"])
def test_a_bias_of_minus_infinity_hides_keys(implementation):
    """A window as a bias, as some codes write masks: like a mask, also for a query that it blinds."""
    distance = jnp.arange(S)[:, None] - jnp.arange(S)[None, :]
    window = (distance < 3) & (jnp.arange(S)[:, None] != 5)
    bias = jnp.where(window, 0.0, -jnp.inf)[None, None]

    @jax.jit
    def run(*args):
        biased = functools.partial(attend, mask=causal(), bias=bias, implementation=implementation)
        value, pull = jax.vjp(biased, *args)
        return value, *pull(jnp.ones_like(value))

    seen = np.broadcast_to(window & (distance >= 0), (B, S, S))
    expected, pull = jax.vjp(lambda *a: by_formula(*a, seen), *inputs())
    for found, wanted in zip(run(*inputs()), (expected, *pull(jnp.ones_like(expected))), strict=True):
        np.testing.assert_allclose(found, wanted, atol=2e-6)


@pytest.mark.parametrize("implementation", ["xla", "blocks"])
def test_more_keys_than_queries(implementation):
    """A decoding step: 3 queries that start at key 4 of 8, the last key slot still empty."""
    q, k, v = inputs()
    keys = jnp.asarray([[1] * 7 + [0], [0] * 2 + [1] * 5 + [0]])
    mask = Mask(causal=True, query_start=jnp.asarray(4), segments=jnp.ones((B, 3), jnp.int32), key_segments=keys)
    seen = (np.arange(S)[None, :] <= np.arange(4, 7)[:, None])[None] & (np.asarray(keys) != 0)[:, None]
    found = attend(q[:, 4:7], k, v, mask, implementation=implementation)
    np.testing.assert_allclose(found, by_formula(q[:, 4:7], k, v, seen), atol=2e-6)


@pytest.mark.parametrize("implementation", ["xla", "blocks"])
def test_bfloat16_is_finite_and_close(implementation):
    half = [x.astype(jnp.bfloat16) for x in inputs()]
    found = attend(*half, causal(SEGMENTS), implementation=implementation)
    assert found.dtype == jnp.bfloat16
    expected = by_formula(*(x.astype(jnp.float32) for x in half), visible_by_definition(causal(SEGMENTS)))
    np.testing.assert_allclose(found.astype(jnp.float32), expected, atol=0.03)


@pytest.mark.parametrize("segmented", [False, True])
@pytest.mark.parametrize("order", ["causal", "full"])
def test_splash_equals_xla(order, segmented):
    """The TPU kernel, interpreted: grouped heads, padding, values and gradients."""
    q, k, v = inputs(s=128, k=8)
    segments = jnp.asarray(np.repeat([[1, 2, 3, 0], [5, 5, 4, 4]], 32, axis=1)) if segmented else None
    mask = {"causal": causal, "full": full}[order](segments)
    for found, wanted in zip(
        value_and_gradients("splash", mask)(q, k, v), value_and_gradients("xla", mask)(q, k, v), strict=True
    ):
        np.testing.assert_allclose(found, wanted, atol=2e-5)


@pytest.mark.parametrize("groups", [4, 2])
def test_splash_on_a_mesh(groups):
    """2 x 4 devices, batch and heads split; 2 key/value heads do not divide 4, so they are repeated."""
    q, k, v = inputs(groups=groups, s=128, k=8)
    mask = causal(jnp.asarray(np.repeat([[1, 2, 3, 0], [5, 5, 4, 4]], 32, axis=1)))
    expected = value_and_gradients("xla", mask)(q, k, v)
    with jax.set_mesh(make_mesh(MeshConfig(data=2, model=4))):
        found = value_and_gradients("splash", mask)(q, k, v)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, atol=2e-5)


def value_and_gradients(implementation, mask):
    def run(q, k, v):
        value, pull = jax.vjp(lambda *a: dot_product_attention(*a, mask, implementation=implementation), q, k, v)
        return value, *pull(jnp.cos(jnp.arange(value.size, dtype=jnp.float32)).reshape(value.shape))

    return jax.jit(run)


def test_choice_and_its_errors():
    q, k, v = inputs()
    assert choose("auto", q, k, causal()) == "blocks"
    with pytest.raises(ValueError, match="did you mean 'splash'"):
        dot_product_attention(q, k, v, causal(), implementation="spalsh")
    for mask in (prefix_lm(jnp.asarray([3, 0])), Mask(causal=True, allowed=jnp.ones((1, S, S), bool))):
        with pytest.raises(ValueError, match="causal order and segments"):
            dot_product_attention(q, k, v, mask, implementation="splash")
    with pytest.raises(ValueError, match="bias"):
        dot_product_attention(q, k, v, causal(), bias=jnp.zeros((1, H, S, S)), implementation="splash")
    with pytest.raises(ValueError, match="128"):
        dot_product_attention(q, k, v, causal(), implementation="splash")
