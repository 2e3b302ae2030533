"""Balanced factors: the same product by the cheap way, and why the split is even (card of arXiv 2505.22922)."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpt import weights
from jaxpt.weights.low_rank import refactor, refactor_all


def factors(out_size, in_size, rank, seed=0, stack=()):
    rng = np.random.default_rng(seed)
    shapes = ((*stack, out_size, rank), (*stack, rank, in_size))
    return [jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in shapes]


def close(found, expected, relative=1e-5):
    scale = max(float(np.abs(expected).max(initial=0)), 1e-30)
    np.testing.assert_allclose(np.asarray(found) / scale, np.asarray(expected) / scale, atol=relative)


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize(("out_size", "in_size", "rank"), [(24, 16, 4), (9, 30, 9), (1, 7, 1), (4, 6, 11), (12, 3, 8)])
def test_the_product_stays_and_both_grams_are_its_singular_values(out_size, in_size, rank, seed):
    """Also for ranks above out or in."""
    b, a = factors(out_size, in_size, rank, seed)
    new_b, new_a = (np.asarray(t, np.float64) for t in refactor(b, a))
    assert new_b.shape == b.shape and new_a.shape == a.shape
    b, a = np.asarray(b, np.float64), np.asarray(a, np.float64)
    product = b @ a
    close(new_b @ new_a, product)
    values = np.zeros(rank)
    found = np.linalg.svd(product, compute_uv=False)[:rank]
    values[: len(found)] = found
    close(new_b.T @ new_b, np.diag(values))
    close(new_a @ new_a.T, np.diag(values))
    assert np.linalg.norm(new_b) == pytest.approx(np.linalg.norm(new_a), rel=1e-5)
    assert np.sum(new_b**2) + np.sum(new_a**2) == pytest.approx(2 * values.sum(), rel=1e-4)
    assert np.sum(b**2) + np.sum(a**2) >= 2 * values.sum()  # no split of the product is smaller


def test_it_is_idempotent_with_fixed_signs_and_works_on_stacked_layers_and_bfloat16():
    b, a = factors(20, 14, 5, stack=(3,))
    once = refactor(b, a)
    for one, two in zip(once, refactor(*once), strict=True):
        close(two, one)
    largest = jnp.take_along_axis(once[0], jnp.argmax(jnp.abs(once[0]), axis=-2, keepdims=True), axis=-2)
    assert (largest > 0).all()
    for i in range(3):
        for one, two in zip(refactor(b[i], a[i]), once, strict=True):
            close(two[i], one)
    half = refactor(b.astype(jnp.bfloat16), a.astype(jnp.bfloat16))
    assert {t.dtype for t in half} == {jnp.dtype("bfloat16")}
    product = b.astype(jnp.bfloat16).astype(jnp.float32) @ a.astype(jnp.bfloat16).astype(jnp.float32)
    close(half[0].astype(jnp.float32) @ half[1].astype(jnp.float32), product, 8e-3)  # rounding of the factors


def test_a_product_of_lower_rank_has_directions_that_are_zero_in_both_factors():
    b, a = factors(8, 6, 4)
    new_b, new_a = refactor(b.at[:, 2:].set(0), a)
    assert np.isfinite(new_b).all() and np.isfinite(new_a).all()
    close(new_b @ new_a, b[:, :2] @ a[:2])
    assert float(jnp.abs(new_b[:, 2:]).max()) < 2e-3 and float(jnp.abs(new_a[2:]).max()) < 2e-3


def test_among_all_splits_the_even_one_is_best_conditioned():
    """|| B A - W ||^2, W = U diag(10, 1) V^T, B = U S^t, A = S^(1-t) V^T: the Hessian without its flat directions."""
    with jax.enable_x64(True):
        rng = np.random.default_rng(0)
        (u, _), (v, _) = (np.linalg.qr(rng.normal(size=(4, 2))) for _ in range(2))
        w, s = jnp.asarray(u * [10.0, 1.0] @ v.T), np.array([10.0, 1.0])

        def condition(t):
            at = jnp.concatenate([jnp.asarray(u * s**t).ravel(), jnp.asarray((s ** (1 - t))[:, None] * v.T).ravel()])
            value = lambda p: jnp.sum(jnp.square(p[:8].reshape(4, 2) @ p[8:].reshape(2, 4) - w))  # noqa: E731
            eigenvalues = np.linalg.eigvalsh(jax.hessian(value)(at))
            return eigenvalues.max() / eigenvalues[eigenvalues > 1e-6].min()  # r^2 = 4 directions are flat

        shares = np.arange(0, 1.01, 0.05)
        found = [condition(t) for t in shares]
        assert shares[int(np.argmin(found))] == pytest.approx(0.5)


def test_badly_scaled_factors_hardly_learn_and_balanced_ones_do():
    rng = np.random.default_rng(0)
    target = jnp.asarray(rng.normal(size=(12, 3)) @ rng.normal(size=(3, 10)) / 3, jnp.float32)
    b, a = factors(12, 10, 3, seed=1)
    b, a = 0.3 * 100 * b, 0.3 * a / 100
    value = lambda p: jnp.sum(jnp.square(p[0] @ p[1] - target))  # noqa: E731

    @jax.jit
    def sgd(p):
        step = lambda p, _: (jax.tree.map(lambda x, g: x - 1e-2 * g, p, jax.grad(value)(p)), None)  # noqa: E731
        return value(jax.lax.scan(step, p, None, 200)[0])

    def best(p):
        return float(jnp.nan_to_num(sgd(p), nan=jnp.inf))

    assert best((b, a)) > 10 * best(refactor(b, a))


def test_a_tree_keeps_its_function_and_the_sparse_part_of_sltrain():
    b, a = factors(12, 8, 3, stack=(2,))
    support = jnp.sort(jnp.asarray(np.random.default_rng(0).permutation(96)[:40].reshape(2, 20)), axis=-1)
    tree = {
        "low": weights.LowRankMatrix(b, a, 0.5),
        "sl": weights.SparseLowRankMatrix(b, a, jnp.ones((2, 20)), support, 2.0),
        "dense": weights.DenseMatrix(jnp.ones((12, 8))),
    }
    found = refactor_all(tree)
    assert jax.tree.structure(found) == jax.tree.structure(tree)
    for name in tree:
        close(found[name].dense(), tree[name].dense())
    np.testing.assert_array_equal(found["sl"].v, tree["sl"].v)
    np.testing.assert_array_equal(found["sl"].support, tree["sl"].support)
    assert float(jnp.abs(found["low"].b - tree["low"].b).max()) > 1e-2


def test_errors_say_what_was_given():
    with pytest.raises(ValueError, match="no matrix has two low-rank factors"):
        refactor_all({"w": weights.DenseMatrix(jnp.ones((2, 2)))})
    with pytest.raises(ValueError, match=r"b \(4, 2\) and a \(3, 5\) are no two factors"):
        refactor(jnp.ones((4, 2)), jnp.ones((3, 5)))
