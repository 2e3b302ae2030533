"""Masked dense, in the precision of its inputs, differentiated by JAX. For tests."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Float, Int


def block_sparse_reference(
    x: Float[Array, "*B I"],
    blocks: Float[Array, "N bm bn"],
    rows: Int[Array, " N"],
    columns: Int[Array, " N"],
    out_size: int,
) -> Float[Array, "*B O"]:
    """x (W * M)^T, with M one where entry (i, j) lies in a block that is there."""
    n, bm, bn = blocks.shape
    which = jnp.full((-(-out_size // bm), -(-x.shape[-1] // bn)), n).at[rows, columns].set(jnp.arange(n))
    i, j = jnp.arange(out_size)[:, None], jnp.arange(x.shape[-1])[None, :]
    with_none = jnp.concatenate([blocks, jnp.zeros_like(blocks[:1])])  # block n: what is not there
    return x @ with_none[which[i // bm, j // bn], i % bm, j % bn].T
