"""Decompositions of stacked matrices, one matrix after another."""

from __future__ import annotations

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxpt.core.types import Array, PyTree


def one_by_one(fn: Callable[..., PyTree], *stacks: Array) -> PyTree:
    """`fn` of each matrix of stacks [..., m, n], one after another, its results stacked [..., *shape].

    For decompositions, in place of their batched versions: only one needs workspace at a time. And jaxlib 0.10 to 0.12
    divides a batched LAPACK call over the threads it is itself called from, one for each CPU device, and waits: where as
    many devices as there are threads do so at once, for ever.

    Raises:
      ValueError: stacks of different sizes.
    """
    lead = stacks[0].shape[:-2]
    if any(x.shape[:-2] != lead for x in stacks):
        raise ValueError(f"stacks of different sizes: {', '.join(str(x.shape) for x in stacks)}")
    flat = tuple(x.reshape(math.prod(lead), *x.shape[-2:]) for x in stacks)
    found = jax.lax.map(lambda matrices: fn(*matrices), flat)
    return jax.tree.map(lambda y: y.reshape(*lead, *y.shape[1:]), found)


def svd(w: Array) -> tuple[Array, Array, Array]:
    """u [..., m, k], s [..., k] and vt [..., k, n] of each matrix, k = min(m, n)."""
    u, s, vt = one_by_one(lambda x: tuple(jnp.linalg.svd(x, full_matrices=False)), w)
    return u, s, vt


def qr(w: Array) -> tuple[Array, Array]:
    """q [..., m, k] and r [..., k, n] of each matrix, k = min(m, n)."""
    q, r = one_by_one(lambda x: tuple(jnp.linalg.qr(x)), w)
    return q, r
