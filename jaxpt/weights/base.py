"""What a form of a matrix is: hyperparameters that describe (`Form`) and arrays that compute (`Matrix`).

Every matrix of a model is logically W of shape [out, in], applied as y = x W^T. Leading stacked axes (the layers of a
scan) are allowed on the arrays; `apply` sees them only after the scan has taken them off.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

from jaxpt.core.types import Array, Float, PRNGKeyArray


class Cost(NamedTuple):
    """Floating-point operations of one forward and backward pass over one matrix.

    `nominal` counts what the method needs, 6 per trainable entry and token, 4 where the entry is frozen and 0 where a mask
    has it off; `executed` counts what our implementation does.
    """

    nominal: float
    executed: float


class Matrix:
    """The arrays of one matrix, a frozen pytree dataclass. Subclasses live one per file."""

    @property
    def shape(self) -> tuple[int, int]:
        """(out, in), without stacked axes. Holds for arrays and for specs."""
        raise TypeError(f"{type(self).__name__} does not say its shape")

    def apply(self, x: Float[Array, "*B I"]) -> Float[Array, "*B O"]:
        """x W^T."""
        raise TypeError(f"{type(self).__name__} cannot be applied")

    def dense(self) -> Float[Array, "*L O I"]:
        """W as one array, stacked axes included."""
        raise TypeError(f"{type(self).__name__} has no dense form")

    def cost(self, tokens: int) -> Cost:
        """Operations of one training step over `tokens` tokens, for one layer."""
        raise TypeError(f"{type(self).__name__} does not know its cost")


@dataclasses.dataclass(frozen=True)
class Form:
    """How a matrix is to be represented: a small hashable configuration. Subclasses live beside their Matrix."""

    def spec(
        self, out_size: int, in_size: int, axes: tuple[str, str], stack: Sequence[int] = (), dtype: str = "float32"
    ) -> Any:
        """The spec of an [out, in] matrix (or a stack of them) in this form.

        Args:
          axes: logical axis names of (out, in), for sharding.
          stack: leading sizes, normally (layers,).
        """
        raise TypeError(f"{type(self).__name__} has no spec")

    def from_dense(self, key: PRNGKeyArray, w: Float[Array, "*L O I"]) -> Matrix:
        """The matrix of this form nearest to W, by the projection the form's docstring states."""
        raise TypeError(f"{type(self).__name__} cannot be made from a dense matrix")


def stack_axes(stack: Sequence[int]) -> tuple[str, ...]:
    """Logical names of the stacked axes."""
    return ("layers",) * len(stack)
