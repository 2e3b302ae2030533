"""Block-sparse products: every implementation against masked dense in float64, with empty and full rows and columns."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pallas_kernels.block_sparse import block_sparse, choice, densify
from pallas_kernels.block_sparse.layout import by_column, by_row
from pallas_kernels.block_sparse.pallas_tpu import Sizes, block_sparse_tpu

KERNELS = ("xla", "pallas_tpu", "pallas_gpu")


def problem(positions, tokens=24, out=64, inp=48, bm=16, bn=16, seed=0):
    """x and blocks; rows and columns."""
    rng = np.random.default_rng(seed)
    across = -(-inp // bn)
    rows, columns = (np.asarray(t, np.int32) for t in np.divmod(np.asarray(positions), across))
    return [rng.normal(size=(tokens, inp)), rng.normal(size=(len(positions), bm, bn))], [rows, columns]


def run_as(implementation, out):
    return functools.partial(block_sparse, out_size=out, implementation=implementation)


@pytest.mark.parametrize("implementation", KERNELS)
@pytest.mark.parametrize(
    ("positions", "shape"),
    [
        pytest.param([0, 1, 5, 7], {}, id="an empty row and column pattern"),
        pytest.param(list(range(12)), {}, id="every block"),
        pytest.param([4], {}, id="one block"),
        pytest.param([2, 3, 8], {"tokens": 37, "out": 58, "inp": 70, "bm": 16, "bn": 32}, id="ragged"),
    ],
)
def test_value_and_gradients(implementation, positions, shape, assert_like_float64):
    trained, places = problem(positions, **shape)
    out = shape.get("out", 64)
    assert_like_float64(run_as(implementation, out), run_as("reference", out), trained, places)


@pytest.mark.parametrize("implementation", KERNELS)
def test_bfloat16(implementation, assert_like_float64):
    trained, places = problem([0, 1, 5, 7])
    assert_like_float64(run_as(implementation, 64), run_as("reference", 64), trained, places, jnp.bfloat16)


@settings(max_examples=5, deadline=None)
@given(st.sets(st.integers(0, 11), min_size=1), st.integers(1, 40), st.integers(49, 64), st.integers(33, 48))
def test_any_pattern(positions, tokens, out, inp):
    trained, places = problem(sorted(positions), tokens, out, inp)
    args = [jnp.asarray(t, jnp.float32) for t in trained]

    def run(name):
        fn = run_as(name, out)
        return jax.jit(jax.value_and_grad(lambda *t: jnp.sum(jnp.sin(fn(*t, *places))), argnums=(0, 1)))(*args)

    expected = jax.tree.leaves(run("reference"))
    for name in ("pallas_tpu", "pallas_gpu"):
        for one, other in zip(jax.tree.leaves(run(name)), expected, strict=True):
            np.testing.assert_allclose(one, other, atol=1e-3)


def test_groups_of_blocks_that_do_not_divide_evenly(assert_like_float64):
    trained, places = problem([0, 1, 5, 7, 9], tokens=37)
    run = lambda x, w, r, c: block_sparse_tpu(x, w, r, c, 64, Sizes(16, 16, 3), 2**26)  # noqa: E731
    assert_like_float64(run, run_as("reference", 64), trained, places)


def test_what_sticks_out_is_ignored_and_gets_no_gradient():
    trained, places = problem([0, 7], out=58, inp=70, bm=16, bn=32)  # 4 x 3 blocks; number 7 lies at the right edge
    x, w = (jnp.asarray(t, jnp.float32) for t in trained)
    for name in KERNELS:
        g = jax.grad(lambda w, n=name: jnp.sum(jnp.sin(run_as(n, 58)(x, w, *places))))(w)
        np.testing.assert_array_equal(g[1, :, 70 - 64 :] if places[1][1] == 2 else g[1, :, 32:], 0)
    assert densify(w, *map(jnp.asarray, places), 58, 70).shape == (58, 70)


def test_lines_list_every_block_once_and_empty_lines_are_empty():
    rows, columns = jnp.asarray([0, 0, 2, 3]), jnp.asarray([1, 2, 0, 1])
    assert by_row(rows, columns, 4).start.tolist() == [0, 2, 2, 3, 4]
    found = by_column(rows, columns, 3)
    assert found.start.tolist() == [0, 1, 3, 4]
    assert found.block.tolist() == [2, 0, 3, 1] and found.across.tolist() == [2, 0, 3, 0]


@pytest.mark.parametrize("implementation", ["pallas_tpu", "pallas_gpu"])
def test_scan_over_layers_with_patterns_of_their_own_and_runs_repeat(implementation):
    made = [problem(p, out=48, seed=i) for i, p in enumerate(([0, 4, 5], [1, 6, 8]))]
    x = jnp.asarray(made[0][0][0], jnp.float32)
    stack = [jnp.stack([jnp.asarray(m[0][1], jnp.float32) for m in made])]
    stack += [jnp.stack([jnp.asarray(m[1][i]) for m in made]) for i in range(2)]
    fn = run_as(implementation, 48)
    scanned = jax.jit(lambda x, s: jax.lax.scan(jax.checkpoint(lambda y, w: (fn(y, *w), None)), x, s)[0])
    y = x
    for i in range(2):
        y = run_as("reference", 48)(y, *(t[i] for t in stack))
    np.testing.assert_allclose(scanned(x, stack), y, atol=1e-4)
    np.testing.assert_array_equal(scanned(x, stack), scanned(x, stack))
    mapped = jax.jit(jax.vmap(fn, in_axes=(None, 0, 0, 0)))(x, *stack)
    np.testing.assert_allclose(mapped[1], fn(x, *(t[1] for t in stack)), atol=1e-5)


def test_errors_and_reasons():
    trained, places = problem([0, 1])
    x, w = (jnp.asarray(t, jnp.float32) for t in trained)
    with pytest.raises(ValueError, match="should be N >= 1 each"):
        block_sparse(x, w, places[0][:1], places[1], out_size=64)
    odd = jnp.ones((1, 24, 16))
    with pytest.raises(ValueError, match="24 x 16 are not powers of two"):
        block_sparse(x, odd, places[0][:1], places[1][:1], out_size=64, implementation="pallas_gpu")
    assert "CPU" in choice(x, w, *places, out_size=64).reason
