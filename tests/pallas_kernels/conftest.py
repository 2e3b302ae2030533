"""How every operation is compared: values and gradients against its reference in float64."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest


def value_and_gradients(fn, trained, fixed, dy):
    """(y, gradient of each trained argument), jitted."""

    def run(trained, fixed, dy):
        y, pull = jax.vjp(lambda *t: fn(*t, *fixed), *trained)
        return y, *pull(dy)

    return jax.jit(run)(tuple(trained), tuple(fixed), dy)


@pytest.fixture
def assert_like_float64():
    """check(fn, reference, trained, fixed, dtype): fn in `dtype` against reference in float64, relative to the largest
    entry; returns what fn gave."""

    def check(fn, reference, trained, fixed=(), dtype=jnp.float32, tolerance=None):
        tolerance = tolerance or (1e-5 if dtype == jnp.float32 else 2e-2)
        trained = [jnp.asarray(t, dtype) for t in trained]
        fixed = [jnp.asarray(t) for t in fixed]
        y = jax.eval_shape(fn, *trained, *fixed)
        dy = jnp.asarray(np.random.default_rng(9).normal(size=y.shape), dtype)
        with jax.enable_x64(True):
            wide = [jnp.asarray(np.asarray(t, np.float64)) for t in (*trained, dy)]
            expected = value_and_gradients(reference, wide[:-1], fixed, wide[-1])
            expected = jax.tree.map(np.asarray, expected)
        found = value_and_gradients(fn, trained, fixed, dy)
        for i, (one, other) in enumerate(zip(found, expected, strict=True)):
            assert one.shape == other.shape and one.dtype == dtype
            scale = np.abs(other).max(initial=0) or 1.0
            error = np.abs(np.asarray(one, np.float64) - other).max(initial=0)
            assert error <= tolerance * scale, f"result {i}: {error:.2e} of {scale:.2e}"
        return found

    return check
