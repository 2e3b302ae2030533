"""Plain XLA: W is put together for one product and dropped again, since a gather of x per block would cost more to move.

Takes the time of a dense product. Nothing of the size of W is saved between forward and backward.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from pallas_kernels.block_sparse.layout import densify


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def block_sparse_xla(
    x: Float[Array, "*B I"],
    blocks: Float[Array, "N bm bn"],
    rows: Int[Array, " N"],
    columns: Int[Array, " N"],
    out_size: int,
) -> Float[Array, "*B O"]:
    """y = x W^T."""
    return jnp.einsum("...i,oi->...o", x, densify(blocks, rows, columns, out_size, x.shape[-1]))


def _forward(x, blocks, rows, columns, out_size):  # noqa: ANN001, ANN202
    return block_sparse_xla(x, blocks, rows, columns, out_size), (x, blocks, rows, columns)


def _backward(out_size, saved, dy):  # noqa: ANN001, ANN202
    x, blocks, rows, columns = saved
    dx = jnp.einsum("...o,oi->...i", dy, densify(blocks, rows, columns, out_size, x.shape[-1]))
    accumulator = jnp.promote_types(blocks.dtype, jnp.float32)
    g = jnp.einsum("...o,...i->oi", dy, x, preferred_element_type=accumulator)
    _, bm, bn = blocks.shape
    down, across = -(-out_size // bm), -(-x.shape[-1] // bn)
    g = jnp.pad(g, [(0, down * bm - out_size), (0, across * bn - x.shape[-1])])
    return dx, g.reshape(down, bm, across, bn)[rows, :, columns].astype(blocks.dtype), None, None


block_sparse_xla.defvjp(_forward, _backward)
