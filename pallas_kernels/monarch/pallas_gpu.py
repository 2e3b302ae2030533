"""Triton kernels: both factors of one output block for one tile of tokens in one program.

A program computes z_l for its tokens, K pieces [tokens, C] that stay in registers, and then the columns of y_l a few at a
time. Registers bound the middle: K C <= MAX_MIDDLE. The transpose of a Monarch matrix has the same form with the roles of
input and output blocks exchanged, so the same kernel computes dX; it then also writes dz, and the weight gradients are plain
batched products of tall matrices, which cuBLAS does best.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu
from jaxtyping import Array, Float

from pallas_kernels.common.call import gpu_call, like, pad_to

MAX_MIDDLE = 512  # 64 tokens x 512 x 2 bytes are a quarter of the registers of an SM
INNER = 32  # columns contracted at a time


class Sizes(NamedTuple):
    """Tokens and output columns per step, warps, pipeline stages."""

    tokens: int
    columns: int
    warps: int
    stages: int


def _columns(start: Any, length: int, width: int) -> tuple[Any, Any]:
    """A slice of `length` and the mask of what lies inside `width`."""
    return pl.ds(start, length), start + jnp.arange(length) < width


def _kernel(x_ref, w1_ref, w2_ref, y_ref, *z_ref, sizes: Sizes) -> None:  # noqa: ANN001, ANN002
    block = pl.program_id(1)
    (t, width), (_, kc, p), s = x_ref.shape, w1_ref.shape, w2_ref.shape[1]
    k = width // p
    c = kc // k
    tokens, inside = _columns(pl.program_id(0) * sizes.tokens, sizes.tokens, t)
    pieces = []
    for i in range(k):

        def first(j: Any, total: Any, i: int = i) -> Any:
            own, valid = _columns(j * INNER, INNER, p)
            columns = pl.ds(i * p + j * INNER, INNER)
            x = plgpu.load(x_ref.at[tokens, columns], mask=inside[:, None] & valid[None, :], other=0)
            w = plgpu.load(w1_ref.at[block, pl.ds(i * c, c), own], mask=jnp.broadcast_to(valid, (c, INNER)), other=0)
            return total + _dot(x, w.T)

        total = jax.lax.fori_loop(0, pl.cdiv(p, INNER), first, jnp.zeros((sizes.tokens, c), jnp.float32))
        pieces.append(total.astype(x_ref.dtype))
        if z_ref:
            at = z_ref[0].at[tokens, pl.ds((block * k + i) * c, c)]
            plgpu.store(at, pieces[-1], mask=jnp.broadcast_to(inside[:, None], (sizes.tokens, c)))

    def second(j: Any, _: None) -> None:
        own, valid = _columns(j * sizes.columns, sizes.columns, s)
        total = jnp.zeros((sizes.tokens, sizes.columns), jnp.float32)
        for i, piece in enumerate(pieces):
            rows = jnp.broadcast_to(valid[:, None], (sizes.columns, c))
            w = plgpu.load(w2_ref.at[block, own, pl.ds(i * c, c)], mask=rows, other=0)
            total += _dot(piece, w.T)
        columns = pl.ds(block * s + j * sizes.columns, sizes.columns)
        plgpu.store(y_ref.at[tokens, columns], total.astype(y_ref.dtype), mask=inside[:, None] & valid[None, :])

    jax.lax.fori_loop(0, pl.cdiv(s, sizes.columns), second, None)


def _dot(a: Any, b: Any) -> Any:
    exact = None if a.dtype != jnp.float32 else jax.lax.Precision.HIGHEST  # else Triton multiplies in TF32
    return jnp.dot(a, b, preferred_element_type=jnp.float32, precision=exact)


def both_factors(
    x: Float[Array, "T I"],
    w1: Float[Array, "L K C p"],
    w2: Float[Array, "L s KC"],
    sizes: Sizes,
    middle: bool,
) -> tuple[Float[Array, "T O"], Float[Array, "T M"] | None]:
    """y [T, L s] in block order, and with `middle` z [T, L, K, C]."""
    (l, k, slots, p), s, t = w1.shape, w2.shape[1], x.shape[0]  # noqa: E741
    c = padded_slots(slots)
    w1 = pad_to(w1, (l, k, c, p)).reshape(l, k * c, p)
    w2 = pad_to(w2.reshape(l, s, k, slots), (l, s, k, c)).reshape(l, s, k * c)
    outs = [like((t, l * s), x.dtype, x, w1, w2)]
    if middle:
        outs.append(like((t, l * k * c), x.dtype, x, w1, w2))
    y, *z = gpu_call(
        functools.partial(_kernel, sizes=sizes),
        outs,
        x,
        w1,
        w2,
        grid=(pl.cdiv(t, sizes.tokens), l),
        warps=sizes.warps,
        stages=sizes.stages,
        flops=2 * t * (w1.size + w2.size),
        nbytes=x.nbytes + w1.nbytes + w2.nbytes + t * l * (s + k * c * middle) * x.dtype.itemsize,
        name="monarch_factors",
    )
    return y, z[0].reshape(t, l, k, c)[..., :slots] if z else None


def padded_slots(c: int) -> int:
    """C rounded up to a power of two of at least 16, as Triton multiplies."""
    return max(16, pl.next_power_of_2(c))


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def monarch_gpu(
    x: Float[Array, "T I"], w1: Float[Array, "L K C p"], w2: Float[Array, "L s KC"], sizes: Sizes
) -> Float[Array, "T O"]:
    """y [T, L s] in block order; x is K p wide. Saves x and the weights."""
    return both_factors(x, w1, w2, sizes, middle=False)[0]


def _forward(x, w1, w2, sizes):  # noqa: ANN001, ANN202
    return monarch_gpu(x, w1, w2, sizes), (x, w1, w2)


def _backward(sizes, saved, dy):  # noqa: ANN001, ANN202
    x, w1, w2 = saved
    (l, k, c, p), s, t = w1.shape, w2.shape[1], x.shape[0]  # noqa: E741
    w2_blocks = w2.reshape(l, s, k, c)
    first = w2_blocks.transpose(2, 0, 3, 1)  # [K, L, C, s]: the first factor of the transpose
    second = w1.transpose(1, 3, 0, 2).reshape(k, p, l * c)
    dx, dz = both_factors(dy, first, second, sizes, middle=True)
    dy, x = dy.reshape(t, l, s), x.reshape(t, k, p)
    product = functools.partial(
        jnp.einsum,
        preferred_element_type=jnp.float32,
        precision=jax.lax.Precision.HIGHEST if x.dtype == jnp.float32 else None,
    )
    z = product("tkp,lkcp->tlkc", x, w1).astype(x.dtype)
    dw1 = product("tklc,tkp->lkcp", dz, x)
    dw2 = product("tls,tlkc->lskc", dy, z).reshape(w2.shape)
    return dx, dw1.astype(w1.dtype), dw2.astype(w2.dtype)


monarch_gpu.defvjp(_forward, _backward)
