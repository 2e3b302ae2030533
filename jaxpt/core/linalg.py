"""Decompositions of stacked matrices, one matrix after another."""

from __future__ import annotations

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxpt.core.types import Array, PyTree


def one_by_one(fn: Callable[[Array], PyTree], stack: Array) -> PyTree:
    """`fn` of each matrix of a stack [..., m, n], one after another, its results stacked [..., *shape].

    For decompositions, in place of their batched versions: only one needs workspace at a time. And jaxlib 0.10 to 0.12
    divides a batched LAPACK call over the threads it is itself called from, one for each CPU device, and waits: where as
    many devices as there are threads do so at once, for ever.
    """
    *lead, m, n = stack.shape
    found = jax.lax.map(fn, stack.reshape(math.prod(lead), m, n))
    return jax.tree.map(lambda y: y.reshape(*lead, *y.shape[1:]), found)


def svd(w: Array) -> tuple[Array, Array, Array]:
    """u [..., m, k], s [..., k] and vt [..., k, n] of each matrix, k = min(m, n)."""
    return one_by_one(lambda x: jnp.linalg.svd(x, full_matrices=False), w)


def qr(w: Array) -> tuple[Array, Array]:
    """q [..., m, k] and r [..., k, n] of each matrix, k = min(m, n)."""
    return one_by_one(jnp.linalg.qr, w)
