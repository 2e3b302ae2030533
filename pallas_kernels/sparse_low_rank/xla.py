"""The default implementation: rebuild W when it is needed, keep it never.

Forward saves (x, B, A, v, support) and nothing of size out x in; backward rebuilds W for dX and forms G = dY^T X of one
layer at a time, from which the gradient of v is gathered. This is the algorithm of the authors' `sparse_linear.cpp`,
except that the low-rank gradients are taken from the tokens instead of from G where that costs fewer operations.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from pallas_kernels.sparse_low_rank.layout import flat_positions, is_tiled


def densify(
    b: Float[Array, "O R"], a: Float[Array, "R I"], v: Float[Array, "*N"], support: Int[Array, "*N"]
) -> Float[Array, "O I"]:
    """W = B A + S. `support` is sorted, without duplicates, in row-major order of W; or v and it are in tile-COO."""
    w = jnp.einsum("or,ri->oi", b, a, preferred_element_type=_accumulator(v)).astype(v.dtype)
    flat, sort = _flat(support, w.shape)
    added = w.reshape(-1).at[flat].add(v.reshape(-1), unique_indices=True, indices_are_sorted=sort, mode="drop")
    return added.reshape(w.shape)


@jax.custom_vjp
def sparse_low_rank_xla(
    x: Float[Array, "*B I"],
    b: Float[Array, "O R"],
    a: Float[Array, "R I"],
    v: Float[Array, "*N"],
    support: Int[Array, "*N"],
) -> Float[Array, "*B O"]:
    """y = x (B A + S)^T. Source: SLTrain, section 3.2 and algorithm 1."""
    return jnp.einsum("...i,oi->...o", x, densify(b, a, v, support))


def _forward(x, b, a, v, support):  # noqa: ANN001, ANN202 - the signature is that of sparse_low_rank_xla
    return sparse_low_rank_xla(x, b, a, v, support), (x, b, a, v, support)


def _backward(saved, dy):  # noqa: ANN001, ANN202
    x, b, a, v, support = saved
    dx = jnp.einsum("...o,oi->...i", dy, densify(b, a, v, support))
    x2, dy2 = x.reshape(-1, x.shape[-1]), dy.reshape(-1, dy.shape[-1])
    g = jnp.einsum("to,ti->oi", dy2, x2, preferred_element_type=_accumulator(v))
    flat, sort = _flat(support, g.shape)
    dv = g.reshape(-1).at[flat].get(unique_indices=True, indices_are_sorted=sort, mode="fill", fill_value=0)
    if low_rank_from_tokens(x2.shape[0], *g.shape):
        db = jnp.einsum("to,tr->or", dy2, jnp.einsum("ti,ri->tr", x2, a))
        da = jnp.einsum("tr,ti->ri", jnp.einsum("to,or->tr", dy2, b), x2)
    else:
        db = jnp.einsum("oi,ri->or", g, a.astype(g.dtype))
        da = jnp.einsum("or,oi->ri", b.astype(g.dtype), g)
    return dx, db.astype(b.dtype), da.astype(a.dtype), dv.reshape(v.shape).astype(v.dtype), None


def _flat(support: Int[Array, "*N"], shape: tuple[int, ...]) -> tuple[Int[Array, " N"], bool]:
    """Row-major positions, and whether they are sorted. Those of empty slots lie outside W and are dropped."""
    if not is_tiled(support):
        return support, True
    return flat_positions(support, *shape).reshape(-1), False


def _accumulator(v: Float[Array, "*N"]) -> jnp.dtype:
    """float32 for narrower formats, else their own."""
    return jnp.promote_types(v.dtype, jnp.float32)


def low_rank_from_tokens(tokens: int, out_size: int, in_size: int) -> bool:
    """Whether dB and dA cost fewer operations from the tokens (4 T r (m + n)) than from G (4 m n r)."""
    return tokens * (out_size + in_size) < out_size * in_size


sparse_low_rank_xla.defvjp(_forward, _backward)
