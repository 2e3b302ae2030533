"""y = x (B A + S)^T: values, gradients, residuals, precision, against the dense expression."""

from __future__ import annotations

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.ad_checkpoint import print_saved_residuals

from pallas_kernels.sparse_low_rank import densify, sparse_low_rank, sparse_low_rank_reference
from pallas_kernels.sparse_low_rank.xla import low_rank_from_tokens

NAMES = ("x", "B", "A", "v")


def problem(tokens=128, m=256, n=256, r=16, nnz=None, dtype=np.float32, seed=0):
    """x [tokens, n], B, A, v, support (sorted, without duplicates) and the gradient of y."""
    rng = np.random.default_rng(seed)
    nnz = int(0.03 * m * n) if nnz is None else nnz
    arrays = [rng.normal(size=s).astype(dtype) for s in ((tokens, n), (m, r), (r, n), (nnz,))]
    support = np.sort(rng.choice(m * n, nnz, replace=False)).astype(np.int32)
    return (*map(jnp.asarray, arrays), jnp.asarray(support)), jnp.asarray(rng.normal(size=(tokens, m)).astype(dtype))


def value_and_gradients(fn, args, dy):
    value, pull = jax.vjp(lambda *a: fn(*a, args[-1]), *args[:-1])
    return value, *pull(dy)


def assert_close(args, dy, relative=1e-4):
    """Forward and the four gradients, within `relative` of the largest entry of each."""
    found = value_and_gradients(jax.jit(sparse_low_rank), args, dy)
    expected = value_and_gradients(jax.jit(sparse_low_rank_reference), args, dy)
    for name, one, other in zip(("y", *NAMES), found, expected, strict=True):
        assert one.shape == other.shape and one.dtype == other.dtype, name
        if other.size:
            scale = float(jnp.abs(other).max()) or 1.0
            assert float(jnp.abs(one - other).max()) <= relative * scale, name


@pytest.mark.parametrize(
    "sizes",
    [
        pytest.param({"tokens": 127, "m": 256, "n": 256}, id="low rank from tokens, square"),
        pytest.param({"tokens": 128, "m": 256, "n": 256}, id="low rank from G, square"),
        pytest.param({"tokens": 40, "m": 96, "n": 160}, id="low rank from tokens"),
        pytest.param({"tokens": 200, "m": 96, "n": 160}, id="low rank from G"),
        pytest.param({"tokens": 1, "m": 96, "n": 32}, id="one token"),
    ],
)
def test_forward_and_all_gradients_equal_the_dense_expression(sizes):
    args, dy = problem(**sizes)
    assert low_rank_from_tokens(sizes["tokens"], sizes["m"], sizes["n"]) == (
        sizes["tokens"] * (sizes["m"] + sizes["n"]) < sizes["m"] * sizes["n"]
    )
    assert_close(args, dy)


@pytest.mark.parametrize("sizes", [{"nnz": 0}, {"r": 0}, {"nnz": 0, "r": 0}, {"nnz": 24 * 40}], ids=str)
@pytest.mark.parametrize("tokens", [7, 64])
def test_the_ends_of_the_range(sizes, tokens):
    """No sparse part, no low-rank part, neither, and a support that holds every position."""
    args, dy = problem(**{"tokens": tokens, "m": 24, "n": 40, "r": 4} | sizes)
    assert_close(args, dy)


def test_leading_axes_are_tokens():
    (x, *rest), dy = problem(tokens=24, m=16, n=20, r=3)
    flat = value_and_gradients(sparse_low_rank, (x, *rest), dy)
    shaped = value_and_gradients(sparse_low_rank, (x.reshape(2, 3, 4, 20), *rest), dy.reshape(2, 3, 4, 16))
    for one, other in zip(flat, shaped, strict=True):
        np.testing.assert_allclose(one, other.reshape(one.shape), atol=1e-5)


def test_the_dense_weight_is_a_scatter():
    (_, b, a, v, support), _ = problem(m=12, n=20, r=3)
    w = np.asarray(b) @ np.asarray(a)
    for position, value in zip(np.asarray(support), np.asarray(v), strict=True):
        w[position // 20, position % 20] += value
    np.testing.assert_allclose(densify(b, a, v, support), w, atol=1e-5)


@pytest.mark.parametrize("tokens", [7, 64])
def test_nothing_of_the_shape_of_the_weight_is_saved(tokens, capsys):
    """Between forward and backward live x, B, A, v and the support, each once; under jit and remat too."""
    args, _ = problem(tokens=tokens, m=24, n=40, r=4, nnz=50)
    saved = jax.eval_shape(lambda *a: jax.vjp(lambda *b: sparse_low_rank(*b, args[-1]), *a)[1], *args[:-1])
    shapes, allowed = [x.shape for x in jax.tree.leaves(saved)], [x.shape for x in args]
    assert set(shapes) == set(allowed) and len(shapes) == len(allowed)
    for wrap in (lambda f: f, jax.jit, jax.checkpoint):
        print_saved_residuals(wrap(lambda *a: sparse_low_rank(*a, args[-1])), *args[:-1])
        printed = re.findall(r"[fi]\d+\[([\d,]+)\]", capsys.readouterr().out)
        assert {tuple(map(int, s.split(","))) for s in printed} <= set(allowed) and printed


def test_the_transient_gradient_of_one_layer_is_all_a_stack_needs():
    """Forward and backward over 1 and 16 layers: temporaries grow by activations, not by dense weights."""

    def temporary(layers):
        m = n = 128
        args, _ = problem(tokens=4, m=m, n=n, r=2, nnz=60)
        stack = jax.tree.map(lambda t: jnp.broadcast_to(t, (layers, *t.shape)), args[1:])

        def loss(trained):
            step = lambda x, p: (jnp.tanh(sparse_low_rank(x, *p)), None)  # noqa: E731
            return jax.lax.scan(step, args[0], (*trained, stack[-1]))[0].sum()

        analysis = jax.jit(jax.grad(loss)).lower(stack[:-1]).compile().memory_analysis()
        return analysis.temp_size_in_bytes, m * n * 4

    (one, dense), (sixteen, _) = temporary(1), temporary(16)
    assert sixteen - one < 15 * dense / 4


def test_dv_by_finite_differences_in_float64():
    with jax.enable_x64(True):
        (x, b, a, v, support), dy = problem(tokens=50, m=30, n=40, r=4, dtype=np.float64)
        loss = jax.jit(lambda v: jnp.sum(jnp.sin(sparse_low_rank(x, b, a, v, support) * dy)))
        gradient = jax.grad(loss)(v)
        assert gradient.dtype == jnp.float64
        for k in np.random.default_rng(1).choice(v.size, 20, replace=False):
            h = 1e-4  # fourth order: the error is of the order of h^4, rounding of 1e-16 / h
            slope = (8 * (loss(v.at[k].add(h)) - loss(v.at[k].add(-h)))
                     - (loss(v.at[k].add(2 * h)) - loss(v.at[k].add(-2 * h)))) / (12 * h)  # fmt: skip
            assert abs(slope - gradient[k]) <= 1e-6 * float(jnp.abs(gradient).max()), k
            assert abs(slope - gradient[k]) <= 1e-6 * max(abs(float(gradient[k])), 1e-2), k


def test_float64_is_kept_throughout():
    with jax.enable_x64(True):
        for tokens in (7, 64):
            args, dy = problem(tokens=tokens, m=24, n=40, r=4, dtype=np.float64)
            assert_close(args, dy, relative=1e-12)


def test_vmap_over_layers_and_scan_over_layers():
    (x, *_), _ = problem(tokens=5, m=20, n=20, r=3)
    layers = [problem(tokens=5, m=20, n=20, r=3, seed=s)[0][1:] for s in range(3)]
    stack = jax.tree.map(lambda *t: jnp.stack(t), *layers)
    found = jax.vmap(sparse_low_rank, in_axes=(None, 0, 0, 0, 0))(x, *stack)
    np.testing.assert_allclose(found, jnp.stack([sparse_low_rank(x, *p) for p in layers]), atol=1e-5)

    def scanned(x, trained):
        return jax.lax.scan(lambda y, p: (sparse_low_rank(y, *p), None), x, (*trained, stack[-1]))[0]

    def unrolled(x, trained):
        for i in range(3):
            x = sparse_low_rank_reference(x, *(t[i] for t in trained), stack[-1][i])
        return x

    def gradients(fn):
        return jax.jit(jax.grad(lambda *a: jnp.sum(jnp.cos(fn(*a))), argnums=(0, 1)))(x * 0.01, stack[:-1])

    expected = gradients(unrolled)
    for fn in (scanned, jax.checkpoint(scanned)):
        found = gradients(fn)
        for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
            np.testing.assert_allclose(one, other, atol=1e-4 * float(jnp.abs(other).max()))


@pytest.mark.parametrize("tokens", [7, 64])
def test_jit_equals_eager_and_bfloat16_is_close(tokens):
    args, dy = problem(tokens=tokens, m=24, n=40, r=4)
    eager = value_and_gradients(sparse_low_rank, args, dy)
    jitted = jax.jit(functools.partial(value_and_gradients, sparse_low_rank))(args, dy)
    half = jax.tree.map(lambda t: t.astype(jnp.bfloat16) if t.dtype == jnp.float32 else t, (args, dy))
    for one, two, three in zip(eager, jitted, value_and_gradients(sparse_low_rank, *half), strict=True):
        np.testing.assert_allclose(one, two, rtol=1e-5, atol=1e-5)
        assert three.dtype == jnp.bfloat16 and jnp.isfinite(three).all()
        assert float(jnp.abs(three.astype(jnp.float32) - one).max()) < 0.05 * float(jnp.abs(one).max())


@pytest.mark.parametrize("rank", [0, 3])
def test_sgd_with_a_full_support_and_no_low_rank_part_is_dense_sgd(rank):
    """Every position in the support; rank 0, or B and A zero, which gives neither a gradient."""
    (x, b, a, _, _), dy = problem(tokens=32, m=12, n=20, r=rank)
    w = jax.random.normal(jax.random.key(0), (12, 20)) * 0.1
    support, b, a, v = jnp.arange(240, dtype=jnp.int32), b * 0, a * 0, w.reshape(-1)

    def loss(y):
        return jnp.square(y - dy).mean()

    sparse = jax.jit(jax.grad(lambda p: loss(sparse_low_rank(x, *p, support))))
    dense = jax.jit(jax.grad(lambda w: loss(x @ w.T)))
    p = (b, a, v)
    for _ in range(10):
        p = jax.tree.map(lambda t, g: t - 0.5 * g, p, sparse(p))
        w = w - 0.5 * dense(w)
        np.testing.assert_allclose(densify(*p, support), w, atol=1e-6)
    assert not p[0].any() and not p[1].any()
