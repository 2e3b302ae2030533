"""Decompositions of stacks: those of each matrix, whatever the number of devices that do them at once."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpt.core import linalg
from jaxpt.sharding import MeshConfig, make_mesh


@pytest.mark.parametrize("shape", [(5, 3), (2, 3, 4), (2, 3, 4, 6), (0, 3, 2)])
def test_each_matrix_is_its_product(shape: tuple[int, ...]) -> None:
    w = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    u, s, vt = linalg.svd(jnp.asarray(w))
    np.testing.assert_allclose((u * s[..., None, :]) @ vt, w, atol=1e-5)
    np.testing.assert_allclose(s, np.linalg.svd(w, compute_uv=False), rtol=1e-5)
    q, r = linalg.qr(jnp.asarray(w))
    np.testing.assert_allclose(q @ r, w, atol=1e-5)
    np.testing.assert_allclose(
        q.mT @ q, np.broadcast_to(np.eye(q.shape[-1]), (*shape[:-2], *q.shape[-1:] * 2)), atol=1e-5
    )


def test_results_of_any_shape_are_stacked() -> None:
    a = jnp.arange(12.0).reshape(3, 2, 2)
    np.testing.assert_allclose(linalg.one_by_one(lambda x: x @ jnp.ones((2, 1)), a), a @ jnp.ones((2, 1)))


def test_on_eight_devices_the_products_are_those_of_one() -> None:
    """Where the batched SVD can wait for ever: a race, which no quick test loses for certain."""
    mesh, rows = make_mesh(MeshConfig(data=8)), jax.P("data")
    w = jax.device_put(jax.random.normal(jax.random.key(0), (8, 8, 32, 32)), jax.NamedSharding(mesh, rows))

    def product(w: jax.Array) -> jax.Array:
        u, s, vt = linalg.svd(jax.lax.pmean(w, "data"))
        return (u * s[..., None, :]) @ vt

    found = jax.jit(jax.shard_map(product, mesh=mesh, in_specs=rows, out_specs=rows))(w)
    np.testing.assert_allclose(found, np.tile(np.mean(w, 0, keepdims=True), (8, 1, 1, 1)), atol=1e-4)
