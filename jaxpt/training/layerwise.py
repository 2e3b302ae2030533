"""A training step that updates each layer inside the backward pass: the gradients of all layers are never alive at once
(LOMO, arXiv 2306.09782, section 3.1; the per-layer updates of GaLore, arXiv 2403.03507, section 4.3).

    forward    x_0 = embed;   x_{l+1} = block(x_l, W_l), every x_l kept
    backward   for l = N-1 .. 0:   dW_l, dx_l = vjp of block at (W_l, x_l);   W_l, state_l <- optimizer(dW_l)
    last       embedding, final norm and head, whose gradients come from both ends

The update is that of `jaxpt.training.step.make_step` on a decoder with remat="full", for every optimizer that treats arrays
apart and keeps stacked arrays for stacked parameters: all of `jaxpt.optim.OPTIMIZERS`, but not `groups` of them. There are
no microbatches, which need whole gradients to add to. Clipping needs the norm of all gradients before the first update: with
`clip` the backward pass is made twice, the first time for the norm alone.

A gradient that is not finite halts the run here too, but without `clip` the layers above it have been updated by then.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from jaxpt.core import trees
from jaxpt.core.types import Array, Bool, Float, Params, PyTree
from jaxpt.layers import masks, norms
from jaxpt.layers.block import Context, block
from jaxpt.layers.embeddings import embed
from jaxpt.models import decoder
from jaxpt.objectives import causal_lm
from jaxpt.objectives.base import Losses
from jaxpt.training.state import TrainState
from jaxpt.training.step import Batch, Step, compiled, metrics_of

Update = Callable[[PyTree, PyTree, PyTree, Bool[Array, ""]], tuple[PyTree, PyTree]]


def make_layerwise_step(
    cfg: decoder.Config,
    optimizer: optax.GradientTransformation,
    *,
    clip: float | None = None,
    mesh: Mesh | None = None,
    shardings: TrainState | None = None,
) -> Step:
    """The step of next-token prediction on the decoder of `cfg`, to be used like `make_step`'s.

    Args:
      clip: global gradient norm above which gradients are scaled down; costs a second backward pass.
      mesh, shardings: as for `make_step`.
    """

    def update(state: TrainState, batch: Batch) -> tuple[TrainState, dict[str, Array]]:
        found = _forward(state, batch, cfg)
        go = jnp.isfinite(found.total.sums) & ~state.halted
        scale = 1 / jnp.maximum(found.total.weights, 1e-9)
        factor: Array | float = 1.0
        if clip is not None:
            norm = _backward(state, found, scale, None)[1]
            go, factor = go & jnp.isfinite(norm), jnp.minimum(1.0, clip / jnp.maximum(norm, 1e-12))

        def apply(gradients: PyTree, params: PyTree, opt_state: PyTree, go: Bool[Array, ""]) -> tuple[PyTree, PyTree]:
            gradients = jax.tree.map(lambda g, p: (g * factor).astype(p.dtype), gradients, params)
            updates, new = optimizer.update(gradients, opt_state, params)
            new = (optax.apply_updates(params, updates), new)
            return jax.tree.map(lambda a, b: jnp.where(go, a, b), new, (params, opt_state))

        (trainable, opt_state), norm, good = _backward(state, found, scale, apply, go)
        new = dataclasses.replace(state, step=state.step + good, trainable=trainable, opt_state=opt_state, halted=~good)
        return new, metrics_of(found.total, norm, good)

    return compiled(update, mesh, shardings)


class _Forward(NamedTuple):
    """Attributes:
    layer: (trainable, fixed arrays of a layer, x_l) -> x_{l+1}.
    inputs: x_l of all layers [L, B, S, D].
    begin: pulls dx_0 back to the rest of the parameters.
    dx, rest: gradients with respect to x_N, and through the end of the model to the rest of the parameters.
    total: sums over the batch, scalars.
    """

    layer: Callable[[PyTree, PyTree, Array], Array]
    inputs: Float[Array, "L B S D"]
    begin: Callable[[Array], tuple[PyTree]]
    dx: Float[Array, "B S D"]
    rest: PyTree
    total: Losses


def _forward(state: TrainState, batch: Batch, cfg: decoder.Config) -> _Forward:
    rest = _rest(state.trainable)

    def begin(rest: PyTree) -> tuple[Array, Array]:
        return embed(trees.merge(rest, state.fixed), batch["inputs"], batch.get("positions"), cfg.compute_dtype)

    def end(rest: PyTree, x: Array) -> tuple[Array, Losses]:
        params: Params = trees.merge(rest, state.fixed)
        found = causal_lm.of_hidden(params, norms.norm(x, params["final_norm"], cfg.norm_eps), batch, cfg)
        total = Losses(found.sums.sum(), found.weights.sum(), found.metrics)
        return total.sums, total

    x, pull_begin, positions = jax.vjp(begin, rest, has_aux=True)
    context = Context(masks.causal(batch.get("segment_ids")), positions)

    def layer(trainable: PyTree, fixed: PyTree, x: Array) -> Array:
        return block(x, trees.merge(trainable, fixed), cfg, context)[0]

    stack = (state.trainable["blocks"], state.fixed["blocks"])
    x, inputs = jax.lax.scan(lambda x, p: (layer(*p, x), x), x, stack)
    total_sum, pull_end, total = jax.vjp(end, rest, x, has_aux=True)
    of_rest, dx = pull_end(jnp.ones_like(total_sum))
    return _Forward(layer, inputs, pull_begin, dx, of_rest, total)


def _backward(
    state: TrainState, found: _Forward, scale: Float[Array, ""], apply: Update | None, go: Bool[Array, ""] | bool = True
) -> tuple[tuple[PyTree, PyTree], Float[Array, ""], Bool[Array, ""]]:
    """((trainable, optimizer state), norm of all gradients, whether everything was finite), updated by `apply` if given."""
    kinds = _Kinds(state)
    stacked = (_layers_only(state.trainable), kinds.pick(state.opt_state, "stack"))
    shared = kinds.pick(state.opt_state, "shared")

    def one(carry: tuple[Any, ...], xs: tuple[Array, Array, PyTree]) -> tuple[tuple[Any, ...], None]:
        dx, square, go, stacked = carry
        index, x, fixed = xs
        params, opt_state = jax.tree.map(lambda t: jax.lax.dynamic_index_in_dim(t, index, 0, False), stacked)
        _, pull = jax.vjp(lambda p, x: found.layer(p, fixed, x), params["blocks"], x)
        gradient, dx = pull(dx)
        gradient = _scaled(gradient, scale)
        square += _square(gradient)
        go &= jnp.isfinite(square)
        if apply is not None:
            whole = trees.merge(opt_state, shared)
            params, whole = apply({**params, "blocks": gradient}, params, whole, go)
            new = (params, kinds.pick(whole, "stack"))
            # Written back where they were read: the arrays of the stack are updated in place, never held twice.
            stacked = jax.tree.map(lambda t, new: jax.lax.dynamic_update_index_in_dim(t, new, index, 0), stacked, new)
        return (dx, square, go, stacked), None

    layers = found.inputs.shape[0]
    start = (found.dx, jnp.zeros((), jnp.float32), jnp.asarray(go), stacked)
    xs = (jnp.arange(layers), found.inputs, state.fixed["blocks"])
    (dx, square, go, stacked), _ = jax.lax.scan(one, start, xs, reverse=True)
    gradient = _scaled(jax.tree.map(jnp.add, found.rest, found.begin(dx)[0]), scale)
    square += _square(gradient)
    go &= jnp.isfinite(square)
    if apply is None:
        return (state.trainable, state.opt_state), jnp.sqrt(square), go
    rest, opt_state = apply(gradient, _rest(state.trainable), kinds.pick(state.opt_state, "rest", "shared"), go)
    return (trees.merge(stacked[0], rest), trees.merge(stacked[1], opt_state)), jnp.sqrt(square), go


class _Kinds:
    """Tells apart what an optimizer keeps of the stacked layers ("stack"), of other parameters ("rest"), and of none
    ("shared": counters, rates)."""

    def __init__(self, state: TrainState) -> None:
        masked = lambda x: isinstance(x, optax.MaskedNode)  # noqa: E731
        if any(map(masked, jax.tree.leaves(state.opt_state, is_leaf=masked))):
            raise ValueError("layer by layer, there can be only one optimizer for all arrays, not groups of them")
        self.names = [path for path, _ in trees.leaves_with_path(state.trainable)]
        layers = jax.tree.leaves(state.trainable["blocks"])[0].shape[0]
        for path, x in trees.leaves_with_path(state.opt_state):
            if self.of(path) == "stack" and x.shape[:1] != (layers,):
                raise ValueError(
                    f"the optimizer's {path} is {x.shape}: it is not kept apart for each of {layers} layers"
                )

    def of(self, path: str) -> str:
        owner = trees.owner(path, self.names)
        return "shared" if owner is None else "stack" if _is_stacked(owner) else "rest"

    def pick(self, tree: PyTree, *kinds: str) -> PyTree:
        """The tree with None in the place of all others."""
        return trees.map_with_path(lambda path, x: x if self.of(path) in kinds else None, tree)


def _is_stacked(path: str) -> bool:
    return path.startswith("blocks/")


def _rest(params: PyTree) -> PyTree:
    return trees.map_with_path(lambda path, x: None if _is_stacked(path) else x, params)


def _layers_only(params: PyTree) -> PyTree:
    return trees.map_with_path(lambda path, x: x if _is_stacked(path) else None, params)


def _scaled(tree: PyTree, scale: Float[Array, ""]) -> PyTree:
    return jax.tree.map(lambda g: g.astype(jnp.float32) * scale, tree)


def _square(tree: PyTree) -> Float[Array, ""]:
    return sum((jnp.sum(g * g) for g in jax.tree.leaves(tree)), jnp.zeros((), jnp.float32))
