"""ReLoRA: a merge changes no output, rank grows with merges, W0 is never trained, moments are pruned by magnitude."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxpt import optim, weights
from jaxpt.core import trees
from jaxpt.models import decoder
from jaxpt.optim import groups
from jaxpt.weights import relora

MODEL = decoder.Config(
    vocab_size=50, width=16, heads=2, ffn=24, layers=2, weights=(("blocks", weights.ReLoRA(rank=2, alpha=4.0)),)
)


def trained(params, seed, updates=3):
    """After some updates on a loss that pulls every matrix of the blocks somewhere."""
    optimizer = optim.adam(0.05)
    trainable, fixed = trees.split(params)
    state = optimizer.init(trainable)
    rng = np.random.default_rng(seed)
    goals = {p: jnp.asarray(rng.normal(size=w.dense().shape), jnp.float32) for p, w in matrices(params).items()}

    @jax.jit
    def update(trainable, state):
        def loss(t):
            return sum(jnp.mean(jnp.square(w.dense() - goals[p])) for p, w in matrices(trees.merge(t, fixed)).items())

        updates, state = optimizer.update(jax.grad(loss)(trainable), state, trainable)
        return optax.apply_updates(trainable, updates), state

    for _ in range(updates):
        trainable, state = update(trainable, state)
    return trees.merge(trainable, fixed), state


def matrices(params):
    return {p: w for p, w in weights.matrices(params).items() if isinstance(w, weights.ReLoRAMatrix)}


def test_a_merge_changes_no_logits_and_training_starts_afresh():
    params, _ = trained(decoder.init(jax.random.key(0), MODEL), 0)
    merged = relora.merge(jax.random.key(1), params)
    assert jax.tree.structure(merged) == jax.tree.structure(params)
    ids = jnp.arange(24).reshape(2, 12)
    before, after = decoder.apply(params, ids, MODEL), decoder.apply(merged, ids, MODEL)
    np.testing.assert_allclose(after, before, atol=1e-5 * float(jnp.abs(before).max()))
    assert len(matrices(merged)) == 7
    for path, matrix in matrices(merged).items():
        assert (matrix.b == 0).all() and (matrix.a != matrices(params)[path].a).any()
        bound = 1 / np.sqrt(matrix.a.shape[-1])
        assert 0.8 * bound < float(jnp.abs(matrix.a).max()) <= bound
        assert float(jnp.abs(matrix.w0 - matrices(params)[path].w0).max()) > 0.01
    again = relora.merge(jax.random.key(2), params)
    assert (matrices(again)["blocks/mlp/up/kernel"].a != matrices(merged)["blocks/mlp/up/kernel"].a).any()


def test_training_leaves_w0_alone_and_every_merge_adds_rank():
    """After k merges the change of W has rank k r: above r after two."""
    params = decoder.init(jax.random.key(0), MODEL)
    start = {p: np.asarray(w.dense(), np.float64) for p, w in matrices(params).items()}
    for k in (1, 2, 3):
        before = {p: w.w0 for p, w in matrices(params).items()}
        params, _ = trained(params, k)
        for path, matrix in matrices(params).items():
            np.testing.assert_array_equal(matrix.w0, before[path])
        params = relora.merge(jax.random.key(k), params)
        for path, matrix in matrices(params).items():
            values = np.linalg.svd(np.asarray(matrix.dense(), np.float64) - start[path], compute_uv=False)
            found = (values > 1e-4 * values[:, :1]).sum(1)
            assert (found <= 2 * k).all() and (k < 2 or (found > 2).all()), path


def test_all_but_a_share_of_the_moments_of_the_factors_are_zeroed_layer_by_layer():
    _, state = trained(decoder.init(jax.random.key(0), MODEL), 0)
    pruned = relora.prune_moments(state, 0.75)
    assert jax.tree.structure(pruned) == jax.tree.structure(state)
    np.testing.assert_array_equal(pruned[0].count, state[0].count)
    np.testing.assert_array_equal(pruned[0].mu["embedding"], state[0].mu["embedding"])
    for moments, before in ((pruned[0].mu, state[0].mu), (pruned[0].nu, state[0].nu)):
        for path, matrix in matrices(moments).items():
            assert matrix.w0 is None
            for one, old in ((matrix.b, matrices(before)[path].b), (matrix.a, matrices(before)[path].a)):
                one, old = (np.asarray(t).reshape(2, -1) for t in (one, old))
                kept = round(0.25 * one.shape[1])
                for layer in range(2):
                    expected = np.zeros_like(old[layer])
                    chosen = np.argsort(-np.abs(old[layer]), kind="stable")[:kept]
                    expected[chosen] = old[layer][chosen]
                    np.testing.assert_array_equal(one[layer], expected)
    emptied = relora.prune_moments(state, 1.0)[0]
    assert all((t == 0).all() for w in matrices(emptied.mu).values() for t in (w.a, w.b))


def test_moments_in_several_groups_are_found():
    trainable = trees.split(decoder.init(jax.random.key(0), MODEL))[0]
    optimizer = groups([("*/a", optim.adam(1e-3)), ("*", optax.sgd(0.1, momentum=0.9))])
    state = optimizer.update(jax.tree.map(jnp.ones_like, trainable), optimizer.init(trainable), trainable)[1]
    found = relora.prune_moments(state, 1.0)
    assert jax.tree.structure(found) == jax.tree.structure(state)
    for path, leaf in trees.leaves_with_path(found):
        if leaf.ndim:
            assert (leaf == 0).all() == path.endswith(("/a", "/b")), path


def test_errors_say_what_was_given():
    with pytest.raises(ValueError, match="rank 0 should be at least 1"):
        weights.ReLoRA(rank=0)
    with pytest.raises(ValueError, match="there is no ReLoRA matrix to merge"):
        relora.merge(jax.random.key(0), {"w": weights.DenseMatrix(jnp.ones((2, 2)))})
    with pytest.raises(ValueError, match=r"fraction 1\.5 is not between 0 and 1"):
        relora.prune_moments((), 1.5)
