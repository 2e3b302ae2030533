"""Plain XLA: two batched products without a permutation between them, and one for a block-diagonal matrix."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Float

from pallas_kernels.common.call import precision


def monarch_xla(
    x: Float[Array, "*B I"], w1: Float[Array, "L K C p"], w2: Float[Array, "L s KC"]
) -> Float[Array, "*B O"]:
    """y in block order: y[l] = concat_k(x_k w1[l, k]^T) w2[l]^T. The middle activation is rounded to the format of x."""
    l, k, c, p = w1.shape  # noqa: E741
    z = jnp.einsum("...kp,lkcp->...lkc", x.reshape(*x.shape[:-1], k, p), w1, precision=precision(x.dtype))
    y = jnp.einsum("...lkc,lskc->...ls", z, w2.reshape(l, -1, k, c), precision=precision(x.dtype))
    return y.reshape(*x.shape[:-1], -1)


def block_diagonal_xla(x: Float[Array, "*B I"], w: Float[Array, "N o p"]) -> Float[Array, "*B O"]:
    """y[n] = x[n] w[n]^T: one batched product, which reads x once and writes y once, so that no kernel can do better."""
    n, _, p = w.shape
    y = jnp.einsum("...np,nop->...no", x.reshape(*x.shape[:-1], n, p), w)
    return y.reshape(*x.shape[:-1], -1)
