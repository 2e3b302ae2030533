"""The spec tree: one description of every array of a model, before any array exists.

A spec tree has the structure of the parameters with an `ArraySpec` at each leaf. From it come initial values (`init`),
shapes for ahead-of-time work (`abstract`), shardings (`jaxpt.sharding.rules.shardings`), parameter counts and bytes.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxpt.core import trees
from jaxpt.core.rng import fold
from jaxpt.core.types import Array, PRNGKeyArray, PyTree

Initializer = Callable[[PRNGKeyArray, tuple[int, ...], Any], Array]


@dataclasses.dataclass(frozen=True)
class ArraySpec:
    """One array: its shape, one logical axis name (or None) per dimension, its initial values, its dtype."""

    shape: tuple[int, ...]
    axes: tuple[str | None, ...]
    init: Initializer
    dtype: str = "float32"

    def __post_init__(self) -> None:
        if len(self.shape) != len(self.axes):
            raise ValueError(f"an array of shape {self.shape} needs {len(self.shape)} axis names, got {self.axes}")
        if any(n < 0 for n in self.shape):
            raise ValueError(f"negative dimension in shape {self.shape}")

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of the array."""
        return self.size * jnp.dtype(self.dtype).itemsize


def array(shape: tuple[int, ...], axes: tuple[str | None, ...], init: Initializer, dtype: str = "float32") -> Any:
    """An `ArraySpec`, for a place that is declared to hold the array it describes."""
    return ArraySpec(shape, axes, init, dtype)


def init(key: PRNGKeyArray, spec: PyTree) -> PyTree:
    """Initial values. Each array's key is folded from its path, so one array's numbers do not depend on the others."""
    return trees.map_with_path(lambda path, s: s.init(fold(key, path), s.shape, jnp.dtype(s.dtype)), spec)


def abstract(spec: PyTree) -> PyTree:
    """The tree of `jax.ShapeDtypeStruct`."""
    return jax.tree.map(lambda s: jax.ShapeDtypeStruct(s.shape, jnp.dtype(s.dtype)), spec)


def count(tree: PyTree) -> int:
    """Number of trainable elements of a spec tree, an abstract tree or a tree of arrays."""
    return sum(math.prod(x.shape) for x in jax.tree.leaves(trees.split(tree)[0]))


def nbytes(tree: PyTree) -> int:
    """Bytes of all arrays, fixed ones included."""
    return sum(math.prod(x.shape) * jnp.dtype(x.dtype).itemsize for x in jax.tree.leaves(tree))


# Initializers. Each is `f(key, shape, dtype)`; `fan_in` is given, since a stacked or factored array cannot tell it.


def zeros(key: PRNGKeyArray, shape: tuple[int, ...], dtype: Any) -> Array:
    """All zeros."""
    return jnp.zeros(shape, dtype)


def ones(key: PRNGKeyArray, shape: tuple[int, ...], dtype: Any) -> Array:
    """All ones."""
    return jnp.ones(shape, dtype)


def normal(stddev: float) -> Initializer:
    """N(0, stddev^2)."""
    return lambda key, shape, dtype: stddev * jax.random.normal(key, shape, dtype)


def uniform_fan_in(fan_in: int) -> Initializer:
    """U(-1/sqrt(fan_in), 1/sqrt(fan_in)): PyTorch's default for a linear layer (Kaiming uniform with a = sqrt 5)."""
    bound = 1 / np.sqrt(max(fan_in, 1))
    return lambda key, shape, dtype: jax.random.uniform(key, shape, dtype, -bound, bound)
