"""A stack of blocks: layers stacked on a leading axis, run under `lax.scan`, in order or along a path of layer indices."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxpt.core.names import nearest_error
from jaxpt.core.types import Array, Float, Int, Params
from jaxpt.layers.block import BlockConfig, Cache, Context, routed_block

REMAT = {
    "none": None,
    "full": jax.checkpoint_policies.nothing_saveable,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class StackConfig(BlockConfig):
    """A stack of blocks, as decoders and encoders have one.

    Attributes:
      remat: "none", "full" (keep only block inputs), "dots" (keep matrix products).
      unroll: layers per iteration of the scan; `layers` unrolls it wholly.
    """

    layers: int = 2
    remat: str = "none"
    unroll: int = 1


class Hidden(NamedTuple):
    """Final normalised states [B, S, D], the residual stream before each layer and after the last [N+1, B, S, D] if
    captured, the cache if one was given, and the routers' logits [N, B, S, E] where blocks have experts."""

    final: Float[Array, "B S D"]
    layers: Float[Array, "N B S D"] | None
    cache: Cache | None
    router_logits: Float[Array, "N B S E"] | None = None


def empty_cache(cfg: StackConfig, batch: int, length: int) -> Cache:
    """A cache for `length` tokens of `batch` rows."""
    shape = (cfg.layers, batch, length, cfg.groups, cfg.per_head)
    k, v = jnp.zeros(shape, cfg.compute_dtype), jnp.zeros(shape, cfg.compute_dtype)  # two, so that both can be donated
    return Cache(k, v, jnp.zeros((batch, length), bool), jnp.zeros((), jnp.int32))


def run(
    blocks: Params,
    x: Float[Array, "B S D"],
    cfg: StackConfig,
    context: Context,
    path: Sequence[int] | Int[Array, " N"] | None,
    capture: bool,
    cache: Cache | None,
) -> Hidden:
    """`lax.scan` of the block over the layers, or over the layer indices of `path`. The last states are not normalised."""
    if cfg.remat not in REMAT:
        raise nearest_error("remat policy", cfg.remat, REMAT)
    if path is not None:
        path = _checked_path(path, cfg.layers)

    def one_layer(x: Array, layer: tuple[Any, Any]) -> tuple[Array, tuple[Any, Any, Any]]:
        p, kv = layer
        if path is not None:
            p = jax.tree.map(lambda t: t[p], blocks)
        own = None if cache is None else dataclasses.replace(cache, k=kv[0], v=kv[1])
        y, own, logits = routed_block(x, p, cfg, context, own)
        return y, (x if capture else None, None if own is None else (own.k, own.v), logits)

    if cfg.remat != "none":
        # a loop keeps the compiler from merging the recomputation with the first pass; without one it must be forbidden
        no_loop = cfg.unroll >= (cfg.layers if path is None else len(path))
        one_layer = jax.checkpoint(one_layer, policy=REMAT[cfg.remat], prevent_cse=no_loop)
    if cache is not None and path is not None:
        raise ValueError("a decoding cache holds one entry per layer in order; it cannot be used with a path")
    over = blocks if path is None else path
    kv = None if cache is None else (cache.k, cache.v)
    x, (before, kv, logits) = jax.lax.scan(one_layer, x, (over, kv), unroll=cfg.unroll)
    captured = jnp.concatenate([before, x[None]]) if capture else None
    return Hidden(x, captured, None if cache is None else dataclasses.replace(cache, k=kv[0], v=kv[1]), logits)


def bottom(params: Params, layers: int, where: str = "blocks") -> Params:
    """The parameters of a model with the lowest layers of this one alone; all else, such as embeddings, is as it was.

    Args:
      params: with a stack at `where`, layers on the leading axis of its arrays.

    Raises:
      ValueError: no stack is there, or it has fewer layers.
    """
    if where not in params:
        raise nearest_error("stack of layers", where, params)
    depths = {x.shape[0] if x.ndim else 0 for x in jax.tree.leaves(params[where])}
    if len(depths) != 1:
        raise ValueError(f"arrays of {where} do not have layers on their leading axis, its sizes are {sorted(depths)}")
    (depth,) = depths
    if not 1 <= layers <= depth:
        raise ValueError(f"the lowest {layers} layers of {where} cannot be taken, there are {depth}")
    return {**params, where: jax.tree.map(lambda x: x[:layers], params[where])}


def _checked_path(path: Sequence[int] | Int[Array, " N"], layers: int) -> Int[Array, " N"]:
    """The path as an array. Indices known now are checked; a traced one that is out of range is clamped."""
    if isinstance(path, jax.core.Tracer):
        return path.astype(jnp.int32)
    known = np.asarray(path, np.int32)
    outside = known[(known < 0) | (known >= layers)]
    if outside.size:
        raise ValueError(f"path {known.tolist()} goes outside layers 0 to {layers - 1}: {outside.tolist()}")
    return jnp.asarray(known)
