"""Soft targets: gradient and value by hand, sizes of the released models, a teacher that is recovered."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxpt.core import spec as specs
from jaxpt.models import encoder
from jaxpt.objectives.distillation import MINIATURES, Distillation, cache_teacher, logits, soft_ce

MODEL = encoder.Config(layers=1, width=16, heads=2, ffn=24, vocab_size=32, learned_positions=16, pooler=True)
CFG = Distillation(model=MODEL, classes=5)


def drawn():
    a, b = jax.random.normal(jax.random.key(0), (2, 6, 5)) * 2
    return a, jax.nn.softmax(b)


def test_gradient_is_the_difference_of_probabilities():
    z, p = drawn()
    gradient = jax.grad(lambda z: soft_ce(z, p).sum())(z)
    np.testing.assert_allclose(gradient, jax.nn.softmax(z) - p, atol=1e-6)
    weighted = jax.grad(lambda z: soft_ce(z, p, jnp.arange(6.0)).sum())(z)
    np.testing.assert_allclose(weighted, jnp.arange(6.0)[:, None] * gradient, atol=1e-5)


def test_one_hot_targets_are_the_usual_cross_entropy():
    z, _ = drawn()
    labels = jnp.array([0, 1, 2, 3, 4, 0])
    expected = optax.softmax_cross_entropy_with_integer_labels(z, labels)
    np.testing.assert_allclose(soft_ce(z, jax.nn.one_hot(labels, 5)), expected, rtol=1e-6)


def test_never_below_the_teachers_entropy_which_it_reaches():
    z, p = drawn()
    entropy = -(p * jnp.log(p)).sum(-1)
    assert (soft_ce(z, p) > entropy).all()
    np.testing.assert_allclose(soft_ce(jnp.log(p) + 7, p), entropy, rtol=1e-5)
    np.testing.assert_allclose(soft_ce(jnp.zeros((1, 5)), jnp.full((1, 5), 0.2)), np.log(5), rtol=1e-6)
    sure = soft_ce(jnp.array([[100.0, 0, 0, 0, 0]]), jnp.array([[1.0, 0, 0, 0, 0]]))
    np.testing.assert_allclose(sure, 0, atol=1e-6)


@pytest.mark.parametrize(
    ("size", "count"),
    [
        ((2, 128), 4_385_920),
        ((4, 256), 11_170_560),
        ((4, 512), 28_763_648),
        ((8, 512), 41_373_184),
        ((12, 768), 109_482_240),
    ],
)
def test_the_miniatures_have_the_released_sizes(size, count):
    assert specs.count(encoder.spec(MINIATURES[size])) == count


def test_all_24_miniatures_are_there():
    assert len(MINIATURES) == 24
    assert all(cfg.per_head == 64 and cfg.ffn == 4 * cfg.width for cfg in MINIATURES.values())


def test_a_linear_student_recovers_a_linear_teacher():
    x = jax.random.normal(jax.random.key(1), (512, 6))
    teacher = jax.random.normal(jax.random.key(2), (6, 4))
    p, optimizer = jax.nn.softmax(x @ teacher), optax.adam(0.05)

    def update(carry, _):
        w, state = carry
        change, state = optimizer.update(jax.grad(lambda w: soft_ce(x @ w, p).mean())(w), state)
        return (optax.apply_updates(w, change), state), None

    start = jnp.zeros_like(teacher)
    (found, _), _ = jax.jit(lambda: jax.lax.scan(update, (start, optimizer.init(start)), length=500))()
    a, b = (w - w.mean(1, keepdims=True) for w in (found, teacher))  # softmax does not see a common shift
    assert float((a * b).sum() / jnp.linalg.norm(a) / jnp.linalg.norm(b)) > 0.999


def test_a_teachers_probabilities_do_not_depend_on_the_batch():
    params = specs.init(jax.random.key(0), CFG.spec())
    inputs = np.random.default_rng(0).integers(0, 32, (11, 9)).astype(np.int32)
    found = cache_teacher(CFG, params, inputs, batch_size=4)
    assert found.shape == (11, 5) and found.dtype == np.float32
    np.testing.assert_allclose(found, cache_teacher(CFG, params, inputs, batch_size=11), atol=1e-6)
    np.testing.assert_allclose(found, jax.nn.softmax(logits(params, jnp.asarray(inputs), CFG)), atol=1e-6)
    batch = {"inputs": jnp.asarray(inputs), "target_probabilities": jnp.asarray(found)}
    losses = CFG.loss(params, batch, None)
    np.testing.assert_allclose(losses.sums, -(found * np.log(found)).sum(1), rtol=1e-4)  # its own entropy
    assert losses.metrics["accuracy"][0] == 11


def test_what_is_no_classifier_is_named():
    with pytest.raises(ValueError, match="pooler=True"):
        Distillation(model=dataclasses.replace(MODEL, pooler=False), classes=5)
    with pytest.raises(ValueError, match="at least 2 classes, got 1"):
        Distillation(model=MODEL, classes=1)
    params = specs.init(jax.random.key(0), CFG.spec())
    with pytest.raises(ValueError, match=r"\(2, 4\), the model has 5 classes"):
        CFG.loss(params, {"inputs": jnp.zeros((2, 3), int), "target_probabilities": jnp.ones((2, 4)) / 4}, None)
