"""Monarch and block-diagonal products: every implementation against the papers' equation in float64."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pallas_kernels.common import tuning
from pallas_kernels.monarch import (
    block_diagonal,
    choice,
    from_authors,
    monarch,
    pallas_tpu,
    to_authors,
    to_block,
    to_canonical,
)
from pallas_kernels.monarch.reference import block_diagonal_reference, monarch_authors, monarch_reference

KERNELS = ("xla", "pallas_tpu", "pallas_gpu")


def problem(tokens=24, blocks=4, p=16, c=4, s=12, seed=0):
    """x, w1, w2 in the layout of the package."""
    rng = np.random.default_rng(seed)
    shapes = ((tokens, blocks * p), (blocks, blocks, c, p), (blocks, s, blocks * c))
    return [rng.normal(size=shape) for shape in shapes]


@pytest.mark.parametrize("q", [8, 12, 10, 7])
@pytest.mark.parametrize("blocks", [1, 2, 4])
def test_the_authors_layout_goes_in_and_out_unchanged(q, blocks):
    """Also where the blocks do not divide q; both factors compute the same matrix, bit for bit the same entries."""
    rng = np.random.default_rng(q)
    a1, a2 = (jnp.asarray(rng.normal(size=s), jnp.float32) for s in ((3, blocks, q, 5), (3, blocks, 6, q)))
    w1, w2 = from_authors(a1, a2)
    b1, b2 = to_authors(w1, w2, q)
    np.testing.assert_array_equal(b1, a1)
    np.testing.assert_array_equal(b2, a2)
    x = jnp.asarray(rng.normal(size=(7, blocks * 5)), jnp.float32)
    expected = monarch_authors(x, a1[0], a2[0])
    np.testing.assert_allclose(monarch(x, w1[0], w2[0]), expected, atol=1e-5)


def test_the_equation_is_a_product_of_two_block_diagonals_and_two_permutations():
    """P L P^T R for square blocks (n = m^2), P the stride permutation: the matrix of arXiv 2204.00595, section 3.1."""
    m = 4
    rng = np.random.default_rng(0)
    r, l = rng.normal(size=(2, m, m, m))  # noqa: E741
    dense_r, dense_l = (np.zeros((m * m, m * m)) for _ in range(2))
    for i in range(m):
        block = slice(i * m, (i + 1) * m)
        dense_r[block, block], dense_l[block, block] = r[i], l[i]
    permutation = np.eye(m * m)[np.arange(m * m).reshape(m, m).T.reshape(-1)]
    with jax.enable_x64(True):
        found = monarch_authors(jnp.eye(m * m), jnp.asarray(r), jnp.asarray(l)).T
    np.testing.assert_allclose(found, permutation @ dense_l @ permutation.T @ dense_r, atol=1e-12)


def test_canonical_and_block_order_convert_into_each_other():
    y = jnp.arange(2 * 24.0).reshape(2, 24)
    for blocks in (1, 2, 4, 6):
        np.testing.assert_array_equal(to_block(to_canonical(y, blocks), blocks), y)
        np.testing.assert_array_equal(to_canonical(to_block(y, blocks), blocks), y)
    x, w1, w2 = (jnp.asarray(t, jnp.float32) for t in problem())
    np.testing.assert_array_equal(to_canonical(monarch(x, w1, w2, order="block"), 4), monarch(x, w1, w2))


@pytest.mark.parametrize("implementation", KERNELS)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize(
    "sizes",
    [
        pytest.param({"tokens": 64, "p": 128, "c": 32, "s": 128}, id="whole lanes"),
        pytest.param({"tokens": 37, "p": 24, "c": 5, "s": 18}, id="odd"),
        pytest.param({"tokens": 5, "blocks": 1, "p": 16, "c": 16, "s": 20}, id="one block"),
    ],
)
def test_value_and_gradients(implementation, dtype, sizes, assert_like_float64):
    run = functools.partial(monarch, implementation=implementation)
    assert_like_float64(run, monarch_reference, problem(**sizes), dtype=dtype)


@pytest.mark.parametrize("implementation", ["pallas_tpu", "pallas_gpu"])
@settings(max_examples=6, deadline=None)
@given(
    tokens=st.integers(1, 40), blocks=st.integers(1, 4), p=st.integers(1, 40), c=st.integers(1, 9), s=st.integers(1, 40)
)
def test_any_shape(implementation, tokens, blocks, p, c, s):
    x, w1, w2 = (jnp.asarray(t, jnp.float32) for t in problem(tokens, blocks, p, c, s, seed=tokens))
    run = lambda fn: jax.jit(jax.value_and_grad(lambda *t: jnp.sum(jnp.sin(fn(*t))), argnums=(0, 1, 2)))(x, w1, w2)  # noqa: E731
    found, expected = run(functools.partial(monarch, implementation=implementation)), run(monarch_reference)
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-3 * max(1.0, float(jnp.abs(other).max())))


@pytest.mark.parametrize("sizes", [(16, 16, 2, 2), (16, 16, 1, 4), (32, 16, 4, 2)])
def test_groups_cores_and_ragged_tokens_change_nothing(sizes, assert_like_float64):
    """Output blocks in groups, tokens divided between two cores, a last tile that is not full."""
    for tokens in (64, 41):
        run = lambda x, w1, w2: pallas_tpu.monarch_tpu(x, w1, w2, 48, pallas_tpu.Sizes(*sizes), 2**26, 2, True)  # noqa: E731
        assert_like_float64(run, monarch_reference, problem(tokens))


@pytest.mark.parametrize("implementation", KERNELS)
def test_inputs_and_outputs_that_are_no_multiple_of_the_blocks(implementation, assert_like_float64):
    """61 inputs in 4 blocks of 16, 46 of 48 outputs."""
    x, w1, w2 = problem()
    run = lambda x, w1, w2: monarch(x, w1, w2, out_size=46, implementation=implementation)  # noqa: E731
    reference = lambda x, *w: monarch_reference(jnp.pad(x, [(0, 0), (0, 3)]), *w)[:, :46]  # noqa: E731
    assert_like_float64(run, reference, [x[:, :61], w1, w2])


@pytest.mark.parametrize("implementation", KERNELS)
def test_scan_vmap_remat_and_leading_axes(implementation):
    x, *_ = (jnp.asarray(t, jnp.float32) for t in problem(tokens=12, p=8, s=8, c=2))
    stack = [jnp.stack(t) * 0.3 for t in zip(*(map(jnp.asarray, problem(p=8, s=8, c=2, seed=i)[1:]) for i in range(3)))]  # noqa: B905
    run = functools.partial(monarch, implementation=implementation)

    def scanned(x, stack):
        return jax.lax.scan(jax.checkpoint(lambda y, w: (run(y, *w), None)), x, stack)[0]

    def unrolled(x, stack):
        for i in range(3):
            x = monarch_reference(x, *(t[i] for t in stack))
        return x

    gradients = [
        jax.jit(jax.grad(lambda *a, f=f: jnp.sum(jnp.cos(f(*a))), argnums=(0, 1)))(x, tuple(stack))
        for f in (scanned, unrolled)
    ]
    for one, other in zip(*map(jax.tree.leaves, gradients), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-4)
    mapped = jax.jit(jax.vmap(run, in_axes=(None, 0, 0)))(x, *stack)
    np.testing.assert_allclose(mapped[1], run(x, stack[0][1], stack[1][1]), atol=1e-5)
    shaped = run(x.reshape(2, 3, 2, -1), stack[0][0], stack[1][0])
    np.testing.assert_allclose(shaped.reshape(12, -1), run(x, stack[0][0], stack[1][0]), atol=1e-6)


def test_unfilled_slots_never_get_a_gradient():
    """Where the blocks do not divide q: slots without a position are zero in both factors, and stay so."""
    rng = np.random.default_rng(3)
    w1, w2 = from_authors(*(jnp.asarray(rng.normal(size=s), jnp.float32) for s in ((4, 6, 8), (4, 8, 6))))
    x = jnp.asarray(rng.normal(size=(20, 32)), jnp.float32)
    for implementation in KERNELS:
        grads = jax.grad(
            lambda *w, i=implementation: jnp.sum(jnp.sin(monarch(x, *w, implementation=i))), argnums=(0, 1)
        )(w1, w2)
        for w, g in zip((w1, w2), grads, strict=True):
            assert (w == 0).any() and not np.asarray(g)[np.asarray(w) == 0].any()


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_block_diagonal(dtype, assert_like_float64):
    rng = np.random.default_rng(0)
    args = [rng.normal(size=(9, 30)), rng.normal(size=(5, 4, 6))]
    assert_like_float64(block_diagonal, block_diagonal_reference, args, dtype=dtype)
    cut = block_diagonal(jnp.ones((2, 28)), jnp.asarray(args[1]), out_size=17)
    whole = block_diagonal(jnp.ones((2, 30)).at[:, 28:].set(0), jnp.asarray(args[1]))
    np.testing.assert_allclose(cut, whole[:, :17], atol=1e-6)
    with pytest.raises(ValueError, match="no kernel: XLA makes one batched product"):
        block_diagonal(jnp.ones((2, 30)), jnp.asarray(args[1]), implementation="pallas_tpu")


def test_the_same_numbers_twice():
    args = [jnp.asarray(t, jnp.float32) for t in problem(tokens=50)]
    for implementation in KERNELS:
        run = jax.jit(jax.grad(lambda *t, i=implementation: monarch(*t, implementation=i).sum(), argnums=(0, 1, 2)))
        for one, other in zip(run(*args), run(*args), strict=True):
            np.testing.assert_array_equal(one, other)


def test_errors_say_what_was_given():
    x, w1, w2 = (jnp.asarray(t, jnp.float32) for t in problem())
    with pytest.raises(ValueError, match="unknown order 'blok'; did you mean 'block'"):
        monarch(x, w1, w2, order="blok")
    with pytest.raises(ValueError, match=r"needs w2 of shape \[4, s, 16\], got \(4, 12, 15\)"):
        monarch(x, w1, w2[..., :15])
    with pytest.raises(ValueError, match="is wider than the 4 x 16 inputs"):
        monarch(jnp.ones((2, 65)), w1, w2)
    with pytest.raises(ValueError, match="out_size=40, but .* 48 columns, uncut in block order"):
        monarch(x, w1, w2, order="block", out_size=40)
    with pytest.raises(ValueError, match="middle width of 4 x 6, but .* reads 4 x 7"):
        from_authors(jnp.ones((4, 6, 3)), jnp.ones((4, 3, 7)))
    with pytest.raises(ValueError, match="does not fit the registers"):
        monarch(jnp.ones((2, 64)), jnp.ones((4, 4, 256, 16)), jnp.ones((4, 8, 1024)), implementation="pallas_gpu")
    assert choice(x, w1, w2).implementation == "xla" and "CPU" in choice(x, w1, w2).reason


def test_every_entry_of_the_table_is_of_a_known_kind():
    for entry in tuning.table():
        assert set(entry) == {"operation", "chip", "shape", "sizes", "source"}
        assert entry["source"] in ("compiled", "timed")
