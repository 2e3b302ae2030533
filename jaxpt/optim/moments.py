"""Momentum reset: Adam's moments and the counters that correct their bias go back to zero (arXiv 2505.22922, section 4.2).

    state = dataclasses.replace(state, opt_state=reset_moments(state.opt_state))

The schedule's count, a peak rate in the state, projectors and averages of gradient norms stay as they are.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxpt.core.types import PyTree


class Moments:
    """Base of an optimizer's state that holds moments: a flax dataclass that says which of its fields they are.

    `moments` names the moments and their bias-correction counters. Zeros must be their initial value.
    """

    moments: tuple[str, ...] = ()

    def reset(self) -> Any:
        """The same state with these fields zeroed."""
        return self.replace(**{name: zeros_like(getattr(self, name)) for name in self.moments})  # type: ignore[attr-defined]


def reset_moments(opt_state: PyTree) -> PyTree:
    """The state with every moment zeroed, wherever optimizers are chained, grouped or injected with hyperparameters.

    Known are the states that derive from `Moments` and that of `optax.scale_by_adam`.

    Raises:
      ValueError: there is no such state in it.
    """
    if not has_moments(opt_state):
        kinds = sorted({type(x).__name__ for x in jax.tree.leaves(opt_state, is_leaf=_is_state)})
        raise ValueError(f"no moments to reset: the optimizer's state is made of {', '.join(kinds) or 'nothing'}")
    return jax.tree.map(_reset, opt_state, is_leaf=_is_moments)


def has_moments(opt_state: PyTree) -> bool:
    """Whether there is anything to reset; plain gradient descent has nothing."""
    return any(_is_moments(x) for x in jax.tree.leaves(opt_state, is_leaf=_is_moments))


def zeros_like(tree: PyTree) -> PyTree:
    """Zeros of the same shapes, dtypes and shardings."""
    return jax.tree.map(jnp.zeros_like, tree)


def _is_moments(x: Any) -> bool:
    return isinstance(x, (Moments, optax.ScaleByAdamState))


def _reset(x: Any) -> Any:
    if isinstance(x, Moments):
        return x.reset()
    return zeros_like(x) if isinstance(x, optax.ScaleByAdamState) else x


def _is_state(x: Any) -> bool:
    return type(x).__name__.endswith("State")
