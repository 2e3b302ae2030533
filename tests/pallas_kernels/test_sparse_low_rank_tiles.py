"""Sparse plus low rank by tile: the TPU kernel, interpreted, and the XLA version, against the equation in float64."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import PartitionSpec as P

from jaxpt.sharding import MeshConfig, make_mesh
from pallas_kernels.sparse_low_rank import choice, densify, pallas_tpu, sparse_low_rank
from pallas_kernels.sparse_low_rank.layout import EMPTY, from_tiles, to_tiles
from pallas_kernels.sparse_low_rank.reference import sparse_low_rank_reference

SMALL = pallas_tpu.Sizes(tokens=64, panel=256, chunk=128, g_tile=256, g_tokens=64)


def problem(tokens=40, m=150, n=260, r=8, density=0.03, seed=0, slots=None):
    """x, B, A, v by tile, and the support by tile."""
    rng = np.random.default_rng(seed)
    nnz = int(density * m * n)
    support = np.sort(rng.choice(m * n, nnz, replace=False)).astype(np.int32)
    v, p = to_tiles(rng.normal(size=nnz), support, (m, n), slots)
    return [rng.normal(size=(tokens, n)), rng.normal(size=(m, r)), rng.normal(size=(r, n)), v], p


def kernel(x, b, a, v, p, sizes=SMALL, cores=1):
    return pallas_tpu.sparse_low_rank_tpu(x, b, a, v, p, sizes, 2**26, cores)


def test_tiles_and_flat_positions_convert_into_each_other():
    rng = np.random.default_rng(0)
    for m, n, nnz in ((150, 260, 900), (20, 30, 600), (128, 256, 0)):
        support = np.sort(rng.choice(m * n, nnz, replace=False)).astype(np.int32)
        v = rng.normal(size=nnz).astype(np.float32)
        tiled = to_tiles(v, support, (m, n), slots=max(700, nnz))
        again = from_tiles(*tiled, (m, n))
        np.testing.assert_array_equal(again[0], v)
        np.testing.assert_array_equal(again[1], support)
        b, a = jnp.zeros((m, 0)), jnp.zeros((0, n))
        np.testing.assert_array_equal(densify(b, a, v, support), densify(b, a, *map(jnp.asarray, tiled)))
    with pytest.raises(ValueError, match="a tile holds 600 entries, more than slots=10"):
        to_tiles(np.ones(600), np.arange(600), (20, 30), slots=10)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize(
    "sizes",
    [
        pytest.param({"tokens": 128, "m": 256, "n": 256, "r": 16}, id="whole tiles"),
        pytest.param({}, id="wide and odd"),
        pytest.param({"m": 300, "n": 100, "r": 0}, id="tall, no low rank"),
        pytest.param({"m": 20, "n": 30, "density": 1.0}, id="every position"),
        pytest.param({"m": 20, "n": 260, "density": 0.0, "slots": 5}, id="empty tiles"),
    ],
)
def test_the_kernel_gives_value_and_gradients(dtype, sizes, assert_like_float64):
    trained, p = problem(**sizes)
    found = assert_like_float64(kernel, sparse_low_rank_reference, trained, [p], dtype)
    assert not np.asarray(found[4], np.float32)[p == EMPTY].any()


def test_xla_by_tile(assert_like_float64):
    trained, p = problem(slots=700)
    run = functools.partial(sparse_low_rank, implementation="xla")
    found = assert_like_float64(run, sparse_low_rank_reference, trained, [p])
    assert (p == EMPTY).any() and not np.asarray(found[4])[p == EMPTY].any()


def test_two_cores_change_nothing(assert_like_float64):
    trained, p = problem(m=512, n=256)
    assert_like_float64(functools.partial(kernel, cores=2), sparse_low_rank_reference, trained, [p])


@settings(max_examples=4, deadline=None)
@given(st.integers(1, 90), st.integers(1, 400), st.integers(1, 400), st.integers(0, 20), st.floats(0, 0.2))
def test_any_shape(tokens, m, n, r, density):
    (x, b, a, v), p = problem(tokens, m, n, r, density, slots=int(0.3 * 128 * 128) + 40)
    args = [jnp.asarray(t, jnp.float32) for t in (x, b, a, v)]

    def run(fn):
        return jax.jit(jax.value_and_grad(lambda *t: jnp.sum(jnp.sin(fn(*t, jnp.asarray(p)))), argnums=(0, 1, 2, 3)))(
            *args
        )

    for one, other in zip(*map(jax.tree.leaves, (run(kernel), run(sparse_low_rank_reference))), strict=True):
        np.testing.assert_allclose(one, other, atol=2e-3 * max(1.0, float(jnp.abs(other).max(initial=0))))


def test_the_order_of_entries_in_a_tile_does_not_matter_and_runs_repeat():
    (x, b, a, v), p = problem()
    args = [jnp.asarray(t, jnp.float32) for t in (x, b, a)]
    order = np.random.default_rng(1).permutation(v.shape[2])
    run = jax.jit(kernel)
    first = run(*args, jnp.asarray(v, jnp.float32), jnp.asarray(p))
    np.testing.assert_array_equal(first, run(*args, jnp.asarray(v, jnp.float32), jnp.asarray(p)))
    mixed = run(*args, jnp.asarray(v[:, :, order], jnp.float32), jnp.asarray(p[:, :, order]))
    np.testing.assert_allclose(first, mixed, atol=1e-5)


def test_nothing_of_the_shape_of_the_weight_is_saved():
    (x, b, a, v), p = problem()
    args = [jnp.asarray(t, jnp.float32) for t in (x, b, a, v)]
    saved = jax.eval_shape(lambda *t: jax.vjp(lambda *u: kernel(*u, jnp.asarray(p)), *t)[1], *args)
    assert {s.shape for s in jax.tree.leaves(saved)} <= {t.shape for t in (*args, p)}


def test_scan_over_layers_vmap_and_remat():
    trained, p = problem(m=130, n=130, tokens=16)
    x, *first = [jnp.asarray(t, jnp.float32) for t in trained]
    stack = [jnp.stack([t, 0.5 * t]) * 0.1 for t in first]
    supports = jnp.stack([jnp.asarray(p)] * 2)
    run = functools.partial(sparse_low_rank, implementation="pallas_tpu")

    def scanned(x, stack, fn):
        return jax.lax.scan(jax.checkpoint(lambda y, w: (fn(y, *w), None)), x, (*stack, supports))[0]

    def gradient(fn):
        return jax.jit(jax.grad(lambda x, s: jnp.sum(jnp.sin(scanned(x, s, fn))), argnums=(0, 1)))(x, stack)

    for one, other in zip(*map(jax.tree.leaves, (gradient(run), gradient(sparse_low_rank_reference))), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-4 * max(1.0, float(jnp.abs(other).max())))
    mapped = jax.jit(jax.vmap(run, in_axes=(None, 0, 0, 0, 0)))(x, *stack, supports)
    np.testing.assert_allclose(mapped[1], sparse_low_rank_reference(x, *(t[1] for t in stack), p), atol=1e-4)


def test_shards_of_the_weight_need_no_exchange_of_the_support():
    """Out divided over two devices by tile: each builds its own rows of W; the only collective sums dX."""
    trained, p = problem(m=256, n=128, tokens=16)
    args = [jnp.asarray(t, jnp.float32) for t in trained]
    mesh = make_mesh(MeshConfig(data=4, model=2))
    cut = (P("data"), P("model"), P(), P("model"), P("model"))
    run = functools.partial(sparse_low_rank, implementation="xla")
    local = jax.shard_map(run, mesh=mesh, in_specs=cut, out_specs=P("data", "model"))
    loss = jax.jit(jax.grad(lambda *t: jnp.sum(jnp.sin(local(*t, jnp.asarray(p)))), argnums=(0, 1, 2, 3)))
    expected = jax.grad(lambda *t: jnp.sum(jnp.sin(sparse_low_rank_reference(*t, p))), argnums=(0, 1, 2, 3))(*args)
    for one, other in zip(loss(*args), expected, strict=True):
        np.testing.assert_allclose(one, other, atol=2e-4)
    assert "all-to-all" not in loss.lower(*args).compile().as_text()


def test_why_an_implementation_is_not_taken_can_be_printed():
    trained, p = problem()
    args = [jnp.asarray(t, jnp.float32) for t in trained]
    assert "no kernel for the CPU" in str(choice(*args, p))
    with pytest.raises(ValueError, match="'pallas_gpu': there is none, because it would lose"):
        sparse_low_rank(*args, p, implementation="pallas_gpu")
    flat = jnp.arange(10, dtype=jnp.int32)
    with pytest.raises(ValueError, match="v and support are flat"):
        sparse_low_rank(*args[:3], jnp.ones(10), flat, implementation="pallas_tpu")
    with pytest.raises(ValueError, match="unknown implementation 'palas_tpu'; did you mean 'pallas_tpu'"):
        sparse_low_rank(*args, p, implementation="palas_tpu")
    with pytest.raises(ValueError, match=r"support \(1, 1, 7\) should be \[nnz\], or \[2, 3, slots\]"):
        sparse_low_rank(*args[:3], jnp.ones((1, 1, 7)), jnp.ones((1, 1, 7), jnp.int16))
    with pytest.raises(ValueError, match="do not fit: expected"):
        sparse_low_rank(args[0][:, :5], *args[1:], p)
