"""Masked matrices: exact counts, a mask that nothing leaks through, and the way back to dense (SPDF's card of checks)."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxpt import optim, weights
from jaxpt.core import spec as specs
from jaxpt.core import trees
from jaxpt.weights.masked import pack, ranks, unpack

AXES = ("mlp", "embed")


def drawn(form, out_size, in_size, layers=2, seed=0):
    return specs.init(jax.random.key(seed), form.spec(out_size, in_size, AXES, (layers,)))


@pytest.mark.parametrize(
    ("form", "count"),
    [
        (weights.Masked(0.75), round(0.25 * 24 * 20)),
        (weights.Masked(0.9), 48),
        (weights.Masked(0.333), round(0.667 * 480)),
        (weights.Masked(0.0), 480),
        (weights.Masked(0.75, kind="block", block=(8, 4)), 4 * 32),
        (weights.Masked(0.25, kind="nm", group=(3, 4)), 360),
    ],
    ids=str,
)
def test_every_layer_has_exactly_so_many_entries_drawn_or_from_dense(form, count):
    matrix = drawn(form, 24, 20, layers=3)
    w = jnp.asarray(np.random.default_rng(0).normal(size=(3, 24, 20)), jnp.float32)
    for found in (matrix, form.from_dense(jax.random.key(1), w)):
        active = np.asarray(found.active())
        assert active.sum((1, 2)).tolist() == [count] * 3
        assert found.entries() == found.drawn == count
        if form.kind == "nm":
            assert (active.reshape(3, 24, 5, 4).sum(-1) == 3).all()
        if form.kind == "block":
            share = active.reshape(3, 3, 8, 5, 4).mean((2, 4))
            assert set(np.unique(share)) <= {0.0, 1.0}


def test_masks_of_layers_are_independent_and_another_key_gives_others():
    active = np.asarray(drawn(weights.Masked(0.5), 96, 64, layers=4).active()).reshape(4, -1)
    correlation = np.corrcoef(active)[np.triu_indices(4, 1)]
    assert np.abs(correlation).max() < 4 / np.sqrt(96 * 64)
    other = np.asarray(drawn(weights.Masked(0.5), 96, 64, layers=4, seed=1).active()).reshape(4, -1)
    assert (active != other).any(1).all()
    rows, columns = active.reshape(4, 96, 64).mean((0, 2)), active.reshape(4, 96, 64).mean((0, 1))
    assert np.abs(rows - 0.5).max() < 0.2 and np.abs(columns - 0.5).max() < 0.2  # 6 deviations


def test_from_dense_keeps_the_largest_and_initial_values_are_those_of_dense():
    w = np.random.default_rng(0).normal(size=(12, 10)).astype(np.float32)
    found = weights.Masked(0.7).from_dense(jax.random.key(0), jnp.asarray(w))
    kept = np.zeros(120, bool)
    kept[np.argsort(-np.abs(w).reshape(-1), kind="stable")[:36]] = True
    np.testing.assert_array_equal(found.active(), kept.reshape(12, 10))
    np.testing.assert_array_equal(found.dense(), w * kept.reshape(12, 10))

    dense, masked = drawn(weights.Dense(), 24, 16), drawn(weights.Masked(0.75), 24, 16)
    np.testing.assert_array_equal(masked.w, dense.w)
    for form, factor in ((weights.Masked(0.75, rescale=True), 2.0), (weights.Masked(0.9), 1 / np.sqrt(0.1))):
        np.testing.assert_allclose(drawn(form, 24, 16).w, factor * dense.w, rtol=1e-6)


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 5), st.integers(1, 20), st.integers(0, 2**31))
def test_packing_is_exact(rows, columns, seed):
    mask = np.random.default_rng(seed).random((rows, columns)) < 0.5
    packed = pack(jnp.asarray(mask))
    assert packed.shape == (rows, -(-columns // 8)) and packed.dtype == jnp.uint8
    np.testing.assert_array_equal(unpack(packed, columns), mask)


def test_ranks_are_a_permutation_even_where_all_are_equal():
    assert ranks(jnp.zeros(5)).tolist() == [0, 1, 2, 3, 4]
    assert ranks(jnp.array([2.0, 3.0, 2.0, -1.0])).tolist() == [1, 0, 2, 3]


def test_gradients_are_those_of_the_product_with_the_masked_matrix_in_float64():
    """And finite differences agree; off the mask they are zero."""
    with jax.enable_x64(True):
        rng = np.random.default_rng(0)
        x, w = jnp.asarray(rng.normal(size=(5, 8))), jnp.asarray(rng.normal(size=(6, 8)))
        mask = jnp.asarray(rng.random((6, 8)) < 0.5)
        value = lambda w: jnp.sum(jnp.sin(weights.MaskedMatrix(w, pack(mask)).apply(x)))  # noqa: E731
        found = jax.grad(value)(w)
        np.testing.assert_allclose(found, jax.grad(lambda w: jnp.sum(jnp.sin(x @ (w * mask).T)))(w), atol=1e-14)
        assert (np.asarray(found)[~np.asarray(mask)] == 0).all()
        direction, h = jnp.asarray(rng.normal(size=w.shape)), 1e-5
        slope = (value(w + h * direction) - value(w - h * direction)) / (2 * h)
        np.testing.assert_allclose(slope, jnp.vdot(found, direction), rtol=1e-6)


def two_layers(form, seed=0):
    """A two-layer network with biases left out, and a batch."""
    tree = {"one": drawn(form, 16, 8, 1, seed), "two": drawn(form, 8, 16, 1, seed + 1)}
    rng = np.random.default_rng(seed)
    x, y = (jnp.asarray(rng.normal(size=(32, 8)), jnp.float32) for _ in range(2))
    return jax.tree.map(lambda t: t[0], tree), x, y


def loss(tree, x, y):
    return jnp.mean(jnp.square(tree["two"].apply(jnp.tanh(tree["one"].apply(x))) - y))


def trained(tree, x, y, steps, optimizer=None):
    optimizer = optimizer or optim.adam(0.01, weight_decay=0.1, decay=("*",))
    trainable, fixed = trees.split(tree)

    @jax.jit
    def run(trainable, fixed):
        def step(carry, _):
            trainable, state = carry
            gradient = jax.grad(lambda t: loss(trees.merge(t, fixed), x, y))(trainable)
            updates, state = optimizer.update(gradient, state, trainable)
            return (optax.apply_updates(trainable, updates), state), None

        return jax.lax.scan(step, (trainable, optimizer.init(trainable)), None, steps)[0]

    trainable, state = run(trainable, fixed)
    return trees.merge(trainable, fixed), state


def test_after_fifty_decayed_updates_nothing_is_alive_off_the_mask():
    tree, x, y = two_layers(weights.Masked(0.75))
    after, state = trained(tree, x, y, 50)
    assert float(loss(after, x, y)) < 0.95 * float(loss(tree, x, y))
    for name, matrix in after.items():
        off = ~np.asarray(matrix.active())
        np.testing.assert_array_equal(matrix.mask, tree[name].mask)
        assert (np.asarray(matrix.dense())[off] == 0).all()
        assert np.count_nonzero(matrix.dense()) == matrix.drawn
        for moment in (state[0].mu, state[0].nu):
            assert (np.asarray(moment[name].w)[off] == 0).all()


def test_without_sparsity_a_run_is_the_dense_run_bit_for_bit():
    """Operation by operation: compiled whole, the two programs may round a fused sum differently."""
    (masked, x, y), (dense, *_) = two_layers(weights.Masked(0.0)), two_layers(weights.Dense())
    with jax.disable_jit():
        found, expected = trained(masked, x, y, 5)[0], trained(dense, x, y, 5)[0]
    for name in dense:
        np.testing.assert_array_equal(found[name].dense(), expected[name].w)


def test_a_mask_of_whole_rows_and_columns_trains_like_the_smaller_dense_network():
    """Half of the hidden units off, in both layers."""
    (tree, x, y), hidden = two_layers(weights.Masked(0.0)), np.arange(16) % 2 == 0
    one = tree["one"].with_mask(jnp.broadcast_to(hidden[:, None], (16, 8)))
    two = tree["two"].with_mask(jnp.broadcast_to(hidden[None], (8, 16)))
    found, _ = trained({"one": one, "two": two}, x, y, 20)
    small = {"one": weights.DenseMatrix(tree["one"].w[hidden]), "two": weights.DenseMatrix(tree["two"].w[:, hidden])}
    expected, _ = trained(small, x, y, 20)
    np.testing.assert_allclose(found["one"].dense()[hidden], expected["one"].w, atol=1e-5)
    np.testing.assert_allclose(found["two"].dense()[:, hidden], expected["two"].w, atol=1e-5)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_going_dense_changes_no_bit_of_the_function_and_then_every_entry_moves(dtype):
    tree, x, y = two_layers(weights.Masked(0.75))
    dense = weights.convert(jax.random.key(0), tree, where="*", to=weights.Dense())
    run = jax.jit(lambda tree, x: tree["two"].apply(jnp.tanh(tree["one"].apply(x))))
    np.testing.assert_array_equal(run(tree, x.astype(dtype)), run(dense, x.astype(dtype)))
    after, _ = trained(dense, x, y, 1, optim.adam(0.01))
    for name, matrix in after.items():
        moved = np.asarray(matrix.w - dense[name].w)[~np.asarray(tree[name].active())]
        np.testing.assert_allclose(np.abs(moved), 0.01, rtol=1e-3)  # Adam's first update: the rate, by sign


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"sparsity": 1.0}, "sparsity 1.0 is not at least 0 and below 1"),
        ({"kind": "blocks"}, "unknown mask kind 'blocks'; did you mean 'block'"),
        ({"kind": "nm", "sparsity": 0.75}, "2 of every 4 entries are a sparsity of 0.5, not of 0.75"),
    ],
    ids=str,
)
def test_a_form_that_makes_no_sense_is_an_error(wrong, message):
    with pytest.raises(ValueError, match=message):
        weights.Masked(**wrong)


def test_blocks_and_groups_must_divide_the_matrix():
    with pytest.raises(ValueError, match=r"blocks of \(128, 128\) do not divide a matrix of \(96, 256\)"):
        weights.Masked(kind="block").spec(96, 256, AXES)
    with pytest.raises(ValueError, match="groups of 4 do not divide rows of 10"):
        weights.Masked(0.5, kind="nm").from_dense(jax.random.key(0), jnp.ones((4, 10)))
