"""Cross-entropy in chunks against optax on whole logits, and what the compiled program holds."""

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
from jaxpt.models import decoder
from jaxpt.objectives import causal_lm
from jaxpt.objectives.cross_entropy import CHUNK_ENTRIES, chunk_length, cross_entropy
from jaxpt.sharding import MeshConfig, make_mesh

B, S, D, V = 3, 12, 8, 24


def problem(dtype=jnp.float32, spread=3.0):
    rng = np.random.default_rng(0)
    hidden = jnp.asarray(rng.normal(size=(B, S, D)) * spread, dtype)
    head = weights.DenseMatrix(jnp.asarray(rng.normal(size=(V, D)), jnp.float32))
    labels = jnp.asarray(rng.integers(0, V, (B, S)))
    weight = jnp.asarray(rng.random((B, S)) * (rng.random((B, S)) < 0.7), jnp.float32)
    return hidden, head, labels, weight


def by_optax(hidden, head, labels, weight):
    logits = hidden @ head.dense().T
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    return (losses * weight).sum(-1), ((logits.argmax(-1) == labels) * weight).sum(-1)


@pytest.mark.parametrize("chunk", [None, 12, 6, 4, 1])
def test_values_and_gradients_equal_optax(chunk):
    hidden, head, labels, weight = problem()
    per_row = jnp.asarray([1.0, -2.0, 0.5])

    def run(fn, hidden, head, weight):
        def loss(hidden, head, weight):
            sums, correct = fn(hidden, head, labels, weight)
            return (sums * per_row).sum(), (sums, correct)

        return jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True)(hidden, head, weight)

    ours = functools.partial(cross_entropy, chunk=chunk)
    found = jax.jit(functools.partial(run, ours))(hidden, head, weight)
    expected = jax.jit(functools.partial(run, by_optax))(hidden, head, weight)
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("chunk", [12, 4])
def test_extreme_logits_are_finite(chunk):
    hidden, head, labels, weight = problem(spread=3000.0)
    sums, gradient = jax.value_and_grad(lambda h: cross_entropy(h, head, labels, weight, chunk)[0].sum())(hidden)
    np.testing.assert_allclose(sums, by_optax(hidden, head, labels, weight)[0].sum(), rtol=1e-5)
    assert jnp.isfinite(gradient).all()


def test_a_row_without_weight_costs_nothing_and_has_no_gradient():
    hidden, head, labels, weight = problem()
    weight = weight.at[1].set(0)
    value, gradient = jax.value_and_grad(lambda h: cross_entropy(h, head, labels, weight, 4)[0].sum())(hidden)
    assert float(cross_entropy(hidden, head, labels, weight)[0][1]) == 0.0
    assert not gradient[1].any() and not np.asarray(gradient)[np.asarray(weight) == 0].any() and value > 0


def test_bfloat16_states_give_float32_losses():
    hidden, head, labels, weight = problem(jnp.bfloat16, spread=1.0)
    sums, correct = cross_entropy(hidden, head, labels, weight)
    assert sums.dtype == correct.dtype == jnp.float32
    expected, _ = by_optax(hidden.astype(jnp.float32), head, labels, weight)
    np.testing.assert_allclose(sums, expected, rtol=2e-2)


def test_a_head_in_another_form_trains_through_the_chunks():
    hidden, _, labels, weight = problem()
    head = specs.init(jax.random.key(0), weights.SparseLowRank(rank=3, density=0.5).spec(V, D, ("vocab", "embed")))
    trainable, fixed = trees.split(head.replace(b=head.b + 0.3))

    def run(chunk, t):
        return cross_entropy(hidden, trees.merge(t, fixed), labels, weight, chunk)[0].sum()

    one, other = (jax.grad(functools.partial(run, chunk))(trainable) for chunk in (12, 3))
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
        assert a.any()


@pytest.mark.parametrize("chunk", [12, 4])
def test_a_bias_and_the_z_loss(chunk):
    """-log p + 0.1 * (log sum exp)^2 of logits with a bias, and its gradient by the bias, against the equation."""
    hidden, head, labels, weight = problem()
    bias = jnp.sin(jnp.arange(V)) * 2

    def ours(bias):
        return cross_entropy(hidden, head, labels, weight, chunk, bias=bias, z_loss=0.1)[0].sum()

    def expected(bias):
        logits = hidden @ head.dense().T + bias
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        return ((losses + 0.1 * jax.nn.logsumexp(logits, -1) ** 2) * weight).sum()

    for one, other in zip(*(jax.value_and_grad(fn)(bias) for fn in (ours, expected)), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("chunk", [5, 0, -1, 24])
def test_a_chunk_that_does_not_divide_is_an_error(chunk):
    with pytest.raises(ValueError, match=f"must divide the sequence length 12, got {chunk}"):
        cross_entropy(*problem(), chunk)


@pytest.mark.parametrize(
    ("sequence", "vocabulary"), [(256, 259), (512, 32_000), (2048, 128_000), (7, 10**8), (97, 10**6)]
)
def test_chunks_divide_the_sequence_and_stay_small(sequence, vocabulary):
    n = chunk_length(sequence, vocabulary)
    assert sequence % n == 0 and (n * vocabulary <= CHUNK_ENTRIES or n == 1)
    larger = [m for m in range(n + 1, sequence + 1) if sequence % m == 0]
    assert not larger or larger[0] * vocabulary > CHUNK_ENTRIES


@pytest.mark.parametrize("mesh", [None, {"data": 1, "model": 8}], ids=["one device", "vocabulary split"])
def test_the_compiled_loss_never_holds_all_logits(mesh):
    """Forward and backward at V = 32000 and S = 512: temporaries well under one [B, S, V] buffer."""
    b, s, v, d = 4, 512, 32_000, 16
    head = specs.abstract(weights.Dense().spec(v, d, ("vocab", "embed")))
    arrays = (jax.ShapeDtypeStruct((b, s, d), jnp.float32), jax.ShapeDtypeStruct((b, s), jnp.int32))

    def run(hidden, labels, head):
        weight = jnp.ones((b, s))
        return jax.grad(lambda h, w: cross_entropy(h, w, labels, weight)[0].sum(), argnums=(0, 1))(hidden, head)

    def temporary():
        return jax.jit(run).lower(*arrays, head).compile().memory_analysis().temp_size_in_bytes

    if mesh is None:
        assert temporary() < b * s * v * 4 / 2
    else:
        with jax.set_mesh(make_mesh(MeshConfig(**mesh))):
            assert temporary() < b * s * v * 4 / 8


def test_causal_lm_is_the_weighted_negative_log_likelihood():
    """Against log-probabilities written down, with segments, positions and loss weights of a packed batch."""
    cfg = decoder.Config(vocab_size=V, layers=1, width=8, heads=2, ffn=12, initializer_stddev=0.5)
    params = decoder.init(jax.random.key(0), cfg)
    rng = np.random.default_rng(0)
    batch = {
        "inputs": jnp.asarray(rng.integers(0, V, (2, 6))),
        "labels": jnp.asarray(rng.integers(0, V, (2, 6))),
        "loss_weight": jnp.asarray([[1, 1, 0, 1, 1, 0], [1, 1, 1, 1, 1, 1]], jnp.float32),
        "segment_ids": jnp.asarray([[1, 1, 1, 2, 2, 0], [1, 1, 1, 1, 1, 1]]),
        "positions": jnp.asarray([[0, 1, 2, 0, 1, 0], [0, 1, 2, 3, 4, 5]]),
    }
    found = causal_lm.loss(params, batch, None, cfg)
    logits = decoder.apply(params, batch["inputs"], cfg, segments=batch["segment_ids"], positions=batch["positions"])
    chosen = jnp.take_along_axis(jax.nn.log_softmax(logits), batch["labels"][..., None], -1)[..., 0]
    np.testing.assert_allclose(found.sums, -(chosen * batch["loss_weight"]).sum(-1), rtol=1e-5)
    np.testing.assert_array_equal(found.weights, [4, 6])
    right, count = found.metrics["accuracy"]
    expected = ((logits.argmax(-1) == batch["labels"]) * batch["loss_weight"]).sum()
    assert (float(right), float(count)) == (float(expected), 10.0)
    plain = causal_lm.loss(params, {k: batch[k] for k in ("inputs", "labels", "loss_weight")}, None, cfg)
    np.testing.assert_allclose(plain.sums[1], found.sums[1], rtol=1e-6)
    assert abs(float(plain.sums[0] - found.sums[0])) > 1e-3
