"""Which number format is used where. Losses, norms, softmax and accumulations are always float32."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from jaxpt.core.types import PyTree


@dataclasses.dataclass(frozen=True)
class Precision:
    """`params`: what is stored and updated. `compute`: what matrices are multiplied in.

    The default for accelerators is float32 parameters with bfloat16 compute; SLTrain's authors keep both in bfloat16.
    """

    params: str = "float32"
    compute: str = "float32"

    def cast(self, tree: PyTree) -> PyTree:
        """Floating arrays of `tree` in the compute format; integers and None stay as they are."""
        return cast_floating(tree, jnp.dtype(self.compute))


def cast_floating(tree: PyTree, dtype: Any) -> PyTree:
    """Every floating-point leaf cast to `dtype`."""
    return jax.tree.map(lambda x: x.astype(dtype) if jnp.issubdtype(x.dtype, jnp.floating) else x, tree)
