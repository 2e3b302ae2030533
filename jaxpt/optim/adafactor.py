"""Adafactor (arXiv 1804.04235): second moments of a matrix kept as one number a row and one a column, no first moment.

    V = R C / mean(R)     R, C running means of g^2 over rows and columns, with decay 1 - t^-0.8          (section 3, 7.2)
    u = g / sqrt(V);      u <- u / max(1, RMS(u) / clip_update)                                           (section 6)
    W <- W - rate max(scale_floor, RMS(W)) u                                                              (section 8)

T5's and UL2's optimizer, with schedule="inverse_sqrt", rate=1e-2 and 10,000 updates of warm-up: 1 / sqrt(max(step, 10^4)).
The factored moments, the clipping and the scale are optax's, applied to every layer of a stack by itself: RMS is of one
matrix, as where each layer has a variable of its own. optax clips before it scales, as the paper does.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct

from jaxpt.core import trees
from jaxpt.core.types import Array, Int, PyTree
from jaxpt.optim.adam import decoupled
from jaxpt.optim.config import OptimizerConfig
from jaxpt.optim.moments import Moments


@dataclasses.dataclass(frozen=True, kw_only=True)
class AdafactorConfig(OptimizerConfig):
    """Adafactor and its schedule. The defaults are T5's.

    Attributes:
      factored: the smallest side of a matrix whose moments are factored; those of others are kept whole.
      decay: the exponent of 1 - t^-decay.
      clip_update: bound of a matrix's RMS update; None for none.
      scaled: rates are relative to the RMS of a matrix, at least `scale_floor`.
    """

    rate: float = 1e-2
    schedule: str = "inverse_sqrt"
    floor: float = 0.0
    factored: int = 128
    decay: float = 0.8
    clip_update: float | None = 1.0
    scaled: bool = True
    scale_floor: float = 1e-3
    weight_decay: float = 0.0

    def with_rates(self, rates: optax.Schedule) -> optax.GradientTransformation:
        return decoupled(scale_by_adafactor(self), rates, self.weight_decay)


@struct.dataclass
class AdafactorState(Moments):
    """Attributes:
    count: updates since the moments were zero.
    nu: for each parameter its (rows, columns, whole) moments, of which optax fills the first two or the last.
    """

    count: Int[Array, ""]
    nu: PyTree
    moments = ("count", "nu")


def scale_by_adafactor(cfg: AdafactorConfig, stacked: tuple[str, ...] = ("blocks",)) -> optax.GradientTransformation:
    """Gradients -> directions, to be multiplied by the negative rate.

    Args:
      stacked: patterns of the arrays that may be a stack of layers, which then are arrays of their own: matrices of three
        dimensions, and all else of two.
    """
    moments = optax.scale_by_factored_rms(True, cfg.decay, 0, cfg.factored, 1e-30)
    after = [] if cfg.clip_update is None else [optax.clip_by_block_rms(cfg.clip_update)]
    after += [optax.scale_by_param_block_rms(cfg.scale_floor)] if cfg.scaled else []

    def first(x: Array) -> dict[str, Array]:
        found = moments.init(x)
        return {"rows": found.v_row, "columns": found.v_col, "whole": found.v}

    def one(g: Array, nu: dict[str, Array], w: Array, count: Array) -> tuple[Array, dict[str, Array]]:
        state = optax.FactoredState(count, nu["rows"], nu["columns"], nu["whole"])
        u, state = moments.update(g, state, w)
        for then in after:
            u, _ = then.update(u, then.init(w), w)
        return u.astype(g.dtype), {"rows": state.v_row, "columns": state.v_col, "whole": state.v}

    def in_layers(path: str, x: Array) -> bool:
        matrix = trees.matches_any(path, ("*/kernel", "kernel"))
        return trees.matches_any(path, stacked) and x.ndim > (2 if matrix else 1)

    def init(params: PyTree) -> AdafactorState:
        def each(path: str, x: Array) -> dict[str, Array]:
            return (jax.vmap(first) if in_layers(path, x) else first)(x)

        return AdafactorState(jnp.zeros((), jnp.int32), trees.map_with_path(each, params))

    def update(gradients: PyTree, state: AdafactorState, params: PyTree) -> tuple[PyTree, AdafactorState]:
        def each(path: str, g: Array, nu: dict[str, Array], w: Array) -> tuple[Array, dict[str, Array]]:
            layers = jax.vmap(one, in_axes=(0, 0, 0, None)) if in_layers(path, g) else one
            return layers(g, nu, w, state.count)

        tree: Any = jax.tree.structure(gradients)
        paths = [path for path, _ in trees.leaves_with_path(gradients)]
        parts = (jax.tree.leaves(gradients), tree.flatten_up_to(state.nu), jax.tree.leaves(params))
        found = [each(path, *part) for path, *part in zip(paths, *parts, strict=True)]
        updates, nu = (tree.unflatten(x) for x in zip(*found, strict=True))
        return updates, AdafactorState(optax.safe_increment(state.count), nu)

    return optax.GradientTransformation(init, update)
