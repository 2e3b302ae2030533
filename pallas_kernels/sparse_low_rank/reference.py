"""The equation, written down: dense, differentiated by JAX, in the precision of its inputs. For tests."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from pallas_kernels.sparse_low_rank.layout import flat_positions, is_tiled


def sparse_low_rank_reference(
    x: Float[Array, "*B I"],
    b: Float[Array, "O R"],
    a: Float[Array, "R I"],
    v: Float[Array, "*N"],
    support: Int[Array, "*N"],
) -> Float[Array, "*B O"]:
    """x (B A + S)^T, with S[i, j] = v[k] where support[k] = i * I + j, or v and support in tile-COO."""
    out_size, in_size = b.shape[0], a.shape[1]
    if is_tiled(support):
        v, support = v.reshape(-1), flat_positions(support, out_size, in_size).reshape(-1)
    s = jnp.zeros((out_size, in_size), v.dtype).at[support // in_size, support % in_size].set(v, mode="drop")
    return x @ (b @ a + s).T
