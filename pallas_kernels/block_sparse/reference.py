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
    i, j = jnp.arange(out_size)[:, None], jnp.arange(x.shape[-1])[None, :]
    here = (rows == (i // bm)[..., None]) & (columns == (j // bn)[..., None])  # [O, I, N]
    w = blocks[jnp.argmax(here, -1), i % bm, j % bn] if n else jnp.zeros((out_size, x.shape[-1]), x.dtype)
    return x @ (w * here.any(-1)).T
