"""One letter table for array shapes, used in every annotation of the project.

B batch, S sequence, T key/value sequence, D model width, F feed-forward width, H heads, G key/value heads, K head dim,
V vocabulary, E experts, R rank, L layers. `*L` stands for any stacked leading axes, normally the layers of a scan.
"""

from __future__ import annotations

from typing import Any, TypeAlias

from jaxtyping import Array, Bool, Float, Int, Key, PRNGKeyArray, Shaped, UInt8, UInt32

PyTree: TypeAlias = Any
Params: TypeAlias = Any  # nested dicts whose matrices are weight forms and whose vectors are arrays
Metrics: TypeAlias = dict[str, tuple[Any, Any]]  # name -> (sum, count); the value is sum / count

__all__ = [
    "Array",
    "Bool",
    "Float",
    "Int",
    "Key",
    "Metrics",
    "PRNGKeyArray",
    "Params",
    "PyTree",
    "Shaped",
    "UInt8",
    "UInt32",
]
