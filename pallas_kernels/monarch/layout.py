"""Layouts of a Monarch matrix, and exact converters between them.

The authors keep w1 [K, q, p] and w2 [L, s, r] with K q = L r: the middle vector, (k q) after the first factor, is read
as (r l) by the second, l fastest. Position f = k q + j thus goes to block l = f mod L at r = f div L: for given k and l the
positions lie side by side in r. So the permutation between the factors can be taken into the weights,

    w1[l, k, i, :] = w1_authors[k, j, :],   w2[l, :, k C + i] = w2_authors[l, :, r],   i-th position of k that goes to l,

with C = ceil(q / L). Then z_l = concat_k x_k w1[l, k]^T takes contiguous slices only, and block (l, k) of the matrix is the
product w2[l, :, k] w1[l, k] of rank C. Where L does not divide q some slots stay zero, in both factors, so that neither ever
gets a gradient.

The output has an order of its own: "canonical" is the authors', y[s L + l]; "block" is y[l S + s], which costs nothing.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Array, Float, Int

import jax.numpy as jnp  # isort: skip

ORDERS = ("canonical", "block")


def positions(blocks_in: int, blocks_out: int, q: int) -> Int[np.ndarray, "L K C"]:
    """j of the i-th position of input block k that goes to output block l; q where there is none."""
    if blocks_in * q % blocks_out:
        raise ValueError(f"the middle width {blocks_in} x {q} is not a multiple of {blocks_out} output blocks")
    c = -(-q // blocks_out)
    table = np.full((blocks_out, blocks_in, c), q)
    for k in range(blocks_in):
        for l in range(blocks_out):  # noqa: E741 - the name of the index in the equation
            found = [j for j in range(q) if (k * q + j) % blocks_out == l]
            table[l, k, : len(found)] = found
    return table


def from_authors(
    w1: Float[Array, "*D K q p"], w2: Float[Array, "*D L s r"]
) -> tuple[Float[Array, "*D L K C p"], Float[Array, "*D L s KC"]]:
    """The authors' factors in this layout, leading stacked axes kept.

    Raises:
      ValueError: the two middle widths differ.
    """
    (k, q, _), (l, _, r) = w1.shape[-3:], w2.shape[-3:]  # noqa: E741
    if k * q != l * r:
        raise ValueError(f"w1 {w1.shape} leaves a middle width of {k} x {q}, but w2 {w2.shape} reads {l} x {r}")
    table = positions(k, l, q)  # [L, K, C]
    padded = jnp.concatenate([w1, jnp.zeros_like(w1[..., :1, :])], axis=-2)
    first = padded[..., np.arange(k)[None, :, None], table, :]
    column = np.where(table == q, r, (np.arange(k)[None, :, None] * q + table) // l).reshape(l, -1)
    padded = jnp.concatenate([w2, jnp.zeros_like(w2[..., :1])], axis=-1)
    return first, jnp.take_along_axis(padded, jnp.broadcast_to(column[:, None], (*w2.shape[:-1], column.shape[1])), -1)


def to_authors(
    w1: Float[Array, "*D L K C p"], w2: Float[Array, "*D L s KC"], q: int | None = None
) -> tuple[Float[Array, "*D K q p"], Float[Array, "*D L s r"]]:
    """The inverse. `q` is the authors' middle size per input block, L C where None; slots beyond it must hold zeros.

    Raises:
      ValueError: a q whose slots are not C per block.
    """
    l, k, c, _ = w1.shape[-4:]  # noqa: E741
    q = l * c if q is None else q
    if -(-q // l) != c:
        raise ValueError(f"q={q} needs {-(-q // l)} slots per block, but w1 {w1.shape} has {c}")
    table = positions(k, l, q)
    where_l, where_k, where_i = np.nonzero(table != q)
    f = where_k * q + table[table != q]
    order = np.argsort(f)
    first = w1[..., where_l[order], where_k[order], where_i[order], :].reshape(*w1.shape[:-4], k, q, w1.shape[-1])
    slots = np.zeros((l, k * q // l), int)
    slots[where_l, f // l] = where_k * c + where_i
    return first, jnp.take_along_axis(w2, jnp.broadcast_to(slots[:, None], (*w2.shape[:-1], slots.shape[1])), -1)


def to_canonical(y: Float[Array, "*B O"], blocks: int) -> Float[Array, "*B O"]:
    """Block order [l, s] -> canonical order [s, l]."""
    return y.reshape(*y.shape[:-1], blocks, -1).swapaxes(-1, -2).reshape(y.shape)


def to_block(y: Float[Array, "*B O"], blocks: int) -> Float[Array, "*B O"]:
    """Canonical order [s, l] -> block order [l, s]."""
    return y.reshape(*y.shape[:-1], -1, blocks).swapaxes(-1, -2).reshape(y.shape)
