"""Monarch and block-diagonal forms: published parameter counts, initial values, the optimal projection."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.linalg

from jaxpt import weights
from jaxpt.core import spec as specs
from jaxpt.models import decoder
from jaxpt.weights.monarch import square_blocks
from pallas_kernels.monarch import from_authors


def test_parameter_count_of_gpt2_medium_with_every_matrix_monarch():
    """166.08 M with four blocks, query, key and value apart, against 354.8 M dense: the paper's 165 M and 355 M."""
    sizes = {"layers": 24, "width": 1024, "heads": 16, "ffn": 4096, "vocab_size": 50_257, "learned_positions": 1024}
    shape = {"tied_head": True, "bias": True, "norm": "layer", "activation": "gelu_tanh", "rotary_fraction": 0.0}
    found = [
        specs.count(decoder.spec(decoder.Config(**sizes, **shape, weights=rules))) / 1e6
        for rules in ((), (("blocks", weights.Monarch(blocks=4)),))
    ]
    assert [round(n, 2) for n in found] == [354.82, 166.08]


def test_initial_values_are_uniform_by_the_last_size_of_each_factor():
    matrix = specs.init(jax.random.key(0), weights.Monarch(blocks=4).spec(256, 128, ("mlp", "embed")))
    for w in (matrix.w1, matrix.w2):
        bound = 1 / np.sqrt(w.shape[-1])
        assert 0.97 * bound < float(jnp.abs(w).max()) <= bound
    block = specs.init(jax.random.key(0), weights.BlockDiagonal(blocks=4).spec(256, 128, ("mlp", "embed")))
    assert 0.97 / np.sqrt(32) < float(jnp.abs(block.w).max()) <= 1 / np.sqrt(32)


def test_parameter_count_of_vit_b_with_query_key_and_value_apart_or_in_one():
    """33.48 M of 86.6 M, the paper's 33.0 M; one [3 d, d] matrix for all three would give 29.94 M."""
    count = lambda out, inp, form: specs.count(form.spec(out, inp, ("mlp", "embed")))  # noqa: E731
    around = 86_567_656 - 12 * 12 * 768**2  # ViT-B/16 with 1000 classes, without the matrices of its blocks
    form, found = weights.Monarch(blocks=4), {}
    mlp = count(3072, 768, form) + count(768, 3072, form)
    found["apart"] = around + 12 * (4 * count(768, 768, form) + mlp)
    found["in one"] = around + 12 * (count(2304, 768, form) + count(768, 768, form) + mlp)
    assert {name: round(n / 1e6, 2) for name, n in found.items()} == {"apart": 33.48, "in one": 29.94}


@pytest.mark.parametrize("m", [4, 8, 16])
def test_the_dense_form_is_a_product_of_block_diagonals_and_permutations(m):
    """P L P^T R for n = m^2, P the stride permutation, and the projection finds such a matrix again: in float64 to 1e-12."""
    rng = np.random.default_rng(m)
    first, second = rng.normal(size=(2, m, m, m)) / np.sqrt(m)
    whole = [np.zeros((m * m, m * m)) for _ in range(2)]
    for i in range(m):
        block = slice(i * m, (i + 1) * m)
        whole[0][block, block], whole[1][block, block] = first[i], second[i]
    stride = np.eye(m * m)[np.arange(m * m).reshape(m, m).T.reshape(-1)]
    expected = stride @ whole[1] @ stride.T @ whole[0]
    with jax.enable_x64(True):
        matrix = weights.MonarchMatrix(*from_authors(jnp.asarray(first), jnp.asarray(second)), m * m, m * m)
        np.testing.assert_allclose(matrix.dense(), expected, atol=1e-12)
        again = weights.Monarch(blocks=m).from_dense(jax.random.key(0), jnp.asarray(expected))
        np.testing.assert_allclose(again.dense(), expected, atol=1e-12)


@pytest.mark.parametrize(("n", "blocks"), [(16, (4, 4)), (32, (4, 8)), (48, (6, 8)), (7, (1, 7))])
def test_square_blocks_are_the_factors_nearest_to_the_root(n, blocks):
    """And give slices of rank 1; what the projection loses are all but the first singular values of each."""
    assert square_blocks(n) == blocks
    form, w = weights.Monarch(*blocks), np.random.default_rng(n).normal(size=(n, n)).astype(np.float32)
    matrix = form.from_dense(jax.random.key(0), jnp.asarray(w))
    assert matrix.w1.shape == (*blocks, 1, n // blocks[1]) and matrix.w2.shape == (blocks[0], n // blocks[0], blocks[1])
    slices = w.reshape(n // blocks[0], blocks[0], blocks[1], n // blocks[1]).transpose(1, 2, 0, 3)
    tail = np.square(np.linalg.svd(slices, compute_uv=False)[..., 1:]).sum()
    np.testing.assert_allclose(np.square(w - np.asarray(matrix.dense())).sum(), tail, rtol=1e-4, atol=1e-10)
    x = np.random.default_rng(0).normal(size=(5, n)).astype(np.float32)
    np.testing.assert_allclose(matrix.apply(jnp.asarray(x)), x @ np.asarray(matrix.dense()).T, atol=1e-4)


def lost(w, form):
    """Largest entry of what the projection of W leaves."""
    return float(jnp.abs(form.from_dense(jax.random.key(0), w).dense() - w).max())


@pytest.mark.parametrize("n", [16, 256, 1024])
def test_fourier_with_its_columns_permuted_and_hadamard_are_monarch(n):
    m = math.isqrt(n)
    fourier = np.fft.fft(np.eye(n))
    by_stride = fourier[:, np.arange(n).reshape(m, m).T.reshape(-1)]
    assert lost(jnp.asarray(by_stride, jnp.complex64), weights.Monarch(m)) < 1e-4
    assert lost(jnp.asarray(fourier, jnp.complex64), weights.Monarch(m)) > 0.5  # without the permutation it is not
    assert lost(jnp.asarray(scipy.linalg.hadamard(n), jnp.float32), weights.Monarch(m)) < 1e-4


def test_a_circulant_is_a_product_of_a_monarch_and_an_adjoint_monarch():
    """C = F* D F / n; with the columns of F in stride order, A, both A and D A are Monarch."""
    n, m = 64, 8
    c = np.random.default_rng(0).normal(size=n)
    order = np.arange(n).reshape(m, m).T.reshape(-1)
    a = jnp.asarray(np.fft.fft(np.eye(n))[:, order], jnp.complex64)
    right = jnp.asarray(np.fft.fft(c), jnp.complex64)[:, None] * a / n
    parts = [weights.Monarch(m).from_dense(jax.random.key(0), w).dense() for w in (a, right)]
    expected = scipy.linalg.circulant(c)[np.ix_(order, order)]
    np.testing.assert_allclose(parts[0].conj().T @ parts[1], expected, atol=1e-4)


@pytest.mark.parametrize("shape", [(16, 16), (24, 8)])
def test_no_descent_finds_a_nearer_monarch_matrix_than_the_projection(shape):
    """500 updates of Adam on both factors from five random starts."""
    form, w = weights.Monarch(blocks=4), jnp.asarray(np.random.default_rng(0).normal(size=shape), jnp.float32)
    distance = lambda matrix: jnp.sum(jnp.square(matrix.dense() - w))  # noqa: E731
    best, optimizer = float(distance(form.from_dense(jax.random.key(0), w))), optax.adam(0.03)

    @jax.jit
    @jax.vmap
    def descend(key):
        def update(carry, _):
            changes, state = optimizer.update(jax.grad(distance)(carry[0]), carry[1])
            return (optax.apply_updates(carry[0], changes), state), None

        start = specs.init(key, form.spec(*shape, ("mlp", "embed")))
        return distance(jax.lax.scan(update, (start, optimizer.init(start)), None, 500)[0][0])

    found = np.asarray(descend(jax.random.split(jax.random.key(1), 5)))
    assert found.min() > best * (1 - 1e-5) and found.min() < 1.5 * best  # Adam gets near, so the comparison is fair


def test_one_block_is_a_product_of_two_dense_matrices_and_with_an_identity_one():
    rng = np.random.default_rng(0)
    w1, w2 = (jnp.asarray(rng.normal(size=s), jnp.float32) for s in ((1, 1, 6, 6), (1, 9, 6)))
    np.testing.assert_allclose(weights.MonarchMatrix(w1, w2, 9, 6).dense(), w2[0] @ w1[0, 0], atol=1e-5)
    np.testing.assert_allclose(weights.MonarchMatrix(w1, jnp.eye(6)[None], 6, 6).dense(), w1[0, 0], atol=1e-6)


@pytest.mark.parametrize("order", ["canonical", "block"])
@pytest.mark.parametrize("shape", [(16, 16), (24, 12), (12, 40), (20, 24)])
def test_the_projection_leaves_the_tail_of_every_slice(shape, order):
    """Squared error = sum over slices of the squared singular values beyond C; no Monarch matrix is nearer."""
    form = weights.Monarch(blocks=4, order=order)
    w = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    matrix = form.from_dense(jax.random.key(0), jnp.asarray(w))
    out, inp = shape
    p, s, c = inp // 4, out // 4, matrix.w1.shape[-2]
    grid = (
        w.reshape(4, s, 4, p).transpose(0, 2, 1, 3) if order == "block" else w.reshape(s, 4, 4, p).transpose(1, 2, 0, 3)
    )
    tail = np.square(np.linalg.svd(grid, compute_uv=False)[..., c:]).sum()
    error = np.square(w - np.asarray(matrix.dense())).sum()
    np.testing.assert_allclose(error, tail, rtol=1e-4, atol=1e-6)


def test_from_dense_keeps_the_largest_blocks():
    w = np.random.default_rng(1).normal(size=(24, 16)).astype(np.float32)
    matrix = weights.BlockSparse(density=0.5, block=(8, 8)).from_dense(jax.random.key(0), jnp.asarray(w))
    norms = np.square(w.reshape(3, 8, 2, 8)).sum((1, 3)).reshape(-1)
    assert sorted(np.argsort(-norms)[:3]) == np.asarray(matrix.positions).tolist()


def test_errors_say_what_was_given():
    with pytest.raises(ValueError, match="unknown order 'blocks'; did you mean 'block'"):
        weights.Monarch(order="blocks")
    with pytest.raises(ValueError, match="blocks=0 should be at least 1"):
        weights.Monarch(blocks=0)
    with pytest.raises(ValueError, match="input_blocks=0 too"):
        weights.Monarch(blocks=2, input_blocks=0)
    with pytest.raises(ValueError, match="a matrix has at least one row, not 0"):
        square_blocks(0)
    with pytest.raises(ValueError, match="10 outputs must be a multiple of blocks=4"):
        weights.Monarch(order="block").spec(10, 8, ("mlp", "embed"))
    with pytest.raises(ValueError, match="density 0 is not above 0"):
        weights.BlockSparse(density=0).spec(8, 8, ("mlp", "embed"))
    with pytest.raises(ValueError, match="unknown support 'tile_balance'; did you mean 'tile_balanced'"):
        weights.SparseLowRank(support="tile_balance")
