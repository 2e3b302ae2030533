"""The equations as the papers write them, in the precision of their inputs. For tests."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Float

from pallas_kernels.monarch.layout import to_authors


def monarch_authors(
    x: Float[Array, "*B I"], w1: Float[Array, "K q p"], w2: Float[Array, "L s r"]
) -> Float[Array, "*B O"]:
    """h[k] = w1[k] x[k]; the flat h read as [r, l], l fastest; y[l] = w2[l] z[l]; y flattened as [s, l], l fastest.

    x is as wide as K p, y as L s. Source: arXiv 2204.00595, section 3; with K = L = 4 the layer of the released code.
    """
    (k, _, p), (l, _, r) = w1.shape, w2.shape  # noqa: E741
    h = jnp.einsum("...kp,kqp->...kq", x.reshape(*x.shape[:-1], k, p), w1)
    z = h.reshape(*x.shape[:-1], r, l)
    y = jnp.einsum("...rl,lsr->...sl", z, w2)
    return y.reshape(*x.shape[:-1], -1)


def monarch_reference(
    x: Float[Array, "*B I"], w1: Float[Array, "L K C p"], w2: Float[Array, "L s KC"]
) -> Float[Array, "*B O"]:
    """The same for factors in the layout of this package: converted back first."""
    return monarch_authors(x, *to_authors(w1, w2))


def block_diagonal_reference(x: Float[Array, "*B I"], w: Float[Array, "N o p"]) -> Float[Array, "*B O"]:
    """x W^T with the blocks of w on the diagonal of W."""
    n, o, p = w.shape
    dense = jnp.zeros((n, o, n, p), w.dtype).at[jnp.arange(n), :, jnp.arange(n)].set(w)
    return x @ dense.reshape(n * o, n * p).T
