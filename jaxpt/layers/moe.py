"""Mixture-of-experts feed-forward, dropless: each token goes to its best k of E experts, and none is left out.

    y_t = sum over the k chosen e of g_te * ffn_e(x_t),     g = softmax of the chosen router logits

Tokens are sorted by expert and multiplied with the matrices of their experts in one `jax.lax.ragged_dot`, which gives every
expert as many rows as it was chosen for (MegaBlocks, arXiv 2211.15841; gates as in Mixtral, arXiv 2401.04088). On a mesh a
device sorts its own rows of the batch, holds the experts that the axis "expert" gives it, and adds nothing for the others;
the sum over devices is that over experts.

A model returns the router's logits (`stack.Hidden.router_logits`), and auxiliary losses are functions of them: `balance` and
`z_loss`, which `jaxpt.objectives.routed_lm` adds to what is minimised.

Experts have any form of a matrix (the path is ".../mlp/experts/up"); they are multiplied as dense ones. They have no biases.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from jaxpt import weights
from jaxpt.core.spec import ArraySpec
from jaxpt.core.types import Array, Float, Params
from jaxpt.layers.mlp import ACTIVATIONS, gated
from jaxpt.sharding import batch_axes, partition_spec

AXES = {"gate": ("experts", "mlp", None), "up": ("experts", "mlp", None), "down": ("experts", None, "mlp")}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Experts:
    """The experts of a block.

    Attributes:
      count: E.
      per_token: k.
      ffn: feed-forward width of each; the block's where None.
      renormalize: gates are a softmax over the chosen logits and sum to 1 (Mixtral); else they are the chosen entries of the
        softmax over all experts (Switch, OLMoE).
    """

    count: int = 8
    per_token: int = 2
    ffn: int | None = None
    renormalize: bool = True

    def __post_init__(self) -> None:
        if not 1 <= self.per_token <= self.count:
            raise ValueError(
                f"a token goes to 1 to {self.count} of {self.count} experts, got per_token={self.per_token}"
            )


def spec(
    cfg: Experts,
    linears: Mapping[str, Any],
    stack: tuple[int, ...],
    router: weights.Matrix,
    linear: Callable[..., dict[str, Any]],
    path: str,
) -> Params:
    """The router, and the matrices of the experts stacked behind those of the layers.

    Args:
      linears: name -> ((axis, size) out, (axis, size) in) of one expert.
      router: the spec of its [E, D] matrix.
      linear: `block.linear_spec` of a block's configuration.
    """

    def one(name: str, shape: Any) -> dict[str, Any]:
        found = linear(f"{path}/experts/{name}", *shape, (*stack, cfg.count), bias=False)
        return jax.tree.map(lambda s: _over_experts(s, len(stack)), found)

    return {"router": {"kernel": router}, "experts": {name: one(name, shape) for name, shape in linears.items()}}


def _over_experts(spec: ArraySpec, place: int) -> ArraySpec:
    axes = list(spec.axes)
    if len(axes) > place and axes[place] == "layers":  # what all experts share, such as a mask, has no such axis
        axes[place] = "experts"
    return dataclasses.replace(spec, axes=tuple(axes))


def feed_forward(
    x: Float[Array, "B S D"], p: Params, cfg: Experts, activation: str
) -> tuple[Float[Array, "B S D"], Float[Array, "B S E"]]:
    """(y, the router's logits in float32)."""
    logits = p["router"]["kernel"].apply(x.astype(jnp.float32))
    matrices = {name: q["kernel"].dense().astype(x.dtype) for name, q in p["experts"].items()}
    return _over_mesh(x, logits, matrices, cfg, activation), logits


def choose(logits: Float[Array, "*B E"], cfg: Experts) -> tuple[Float[Array, "*B k"], Array]:
    """(gates, numbers of the chosen experts), best first."""
    best, chosen = jax.lax.top_k(logits, cfg.per_token)
    if cfg.renormalize:
        return jax.nn.softmax(best, -1), chosen
    return jnp.exp(best - jax.nn.logsumexp(logits, -1, keepdims=True)), chosen


def _over_mesh(x: Array, logits: Array, matrices: dict[str, Array], cfg: Experts, activation: str) -> Array:
    """`_experts` on each device's own rows and experts: left to the compiler, tokens would be sorted over all devices."""
    mesh = jax.sharding.get_abstract_mesh()
    free = () if mesh.empty or mesh.size == 1 else mesh.auto_axes  # the others belong to a shard_map around this
    if not free:
        return _experts(x, logits, matrices, jnp.zeros((), jnp.int32), cfg, activation)
    sizes = {name: mesh.shape[name] if name in free else 1 for name in mesh.axis_names}
    rows = PartitionSpec(batch_axes(x.shape[0], sizes) or None)
    split = {name: partition_spec(AXES[name], w.shape, sizes) for name, w in matrices.items()}
    summed = tuple(axis for entry in split["up"] if entry for axis in ([entry] if isinstance(entry, str) else entry))

    def local(x: Array, logits: Array, matrices: dict[str, Array]) -> Array:
        mine = matrices["up"].shape[0]
        first = jax.lax.axis_index("expert") * mine if "expert" in summed else jnp.zeros((), jnp.int32)
        y = _experts(x, logits, matrices, first, cfg, activation)
        return jax.lax.psum(y, summed) if summed else y

    run = jax.shard_map(
        local, in_specs=(rows, rows, split), out_specs=rows, axis_names=set(free), check_vma=False
    )  # fmt: skip
    return run(x, logits, matrices)


def _experts(x: Array, logits: Array, matrices: dict[str, Array], first: Array, cfg: Experts, activation: str) -> Array:
    """What the experts first, first + 1, ... add, as many as there are matrices."""
    tokens, count = x.reshape(-1, x.shape[-1]), matrices["up"].shape[0]
    gates, chosen = choose(logits.reshape(len(tokens), -1), cfg)
    expert = chosen.ravel() - first
    mine = (expert >= 0) & (expert < count)
    expert = jnp.where(mine, expert, count)  # others' rows come last, and belong to no group
    order = jnp.argsort(expert, stable=True)
    row, sizes = order // cfg.per_token, jnp.bincount(expert, length=count).astype(jnp.int32)

    def product(rows: Array, name: str) -> Array:
        return jax.lax.ragged_dot(rows, jnp.swapaxes(matrices[name], 1, 2), sizes)

    given, act = tokens[row], ACTIVATIONS[activation]
    hidden = act(product(given, "gate")) * product(given, "up") if gated(activation) else act(product(given, "up"))
    gate = jnp.where(mine, gates.ravel(), 0)[order][:, None].astype(x.dtype)
    found = jnp.where(gate != 0, product(hidden, "down") * gate, 0)
    return jnp.zeros_like(tokens).at[row].add(found).reshape(x.shape)


def balance(logits: Float[Array, "B S E"], weight: Float[Array, "B S"], cfg: Experts) -> Float[Array, " B"]:
    """E / k * sum over experts of (share of a sequence's choices) * (mean probability), of each sequence: 1 where experts
    are used evenly, E / k at most. Only probabilities have a gradient (Switch, arXiv 2101.03961, eq. 4).

    It is taken over sequences, not over the batch (DeepSeek-V3, arXiv 2412.19437, eq. 17), so that it is the same for any
    number of devices and microbatches. Tokens count by their weight.
    """
    chosen = jax.nn.one_hot(choose(logits, cfg)[1], cfg.count).sum(-2) / cfg.per_token
    mean = weight / jnp.maximum(weight.sum(-1, keepdims=True), 1e-9)
    share, probability = (jnp.einsum("bs,bse->be", mean, t) for t in (chosen, jax.nn.softmax(logits, -1)))
    return cfg.count * (jax.lax.stop_gradient(share) * probability).sum(-1)


def z_loss(logits: Float[Array, "B S E"], weight: Float[Array, "B S"]) -> Float[Array, " B"]:
    """Weighted mean over each sequence of the squared log-sum-exp of the logits (ST-MoE, arXiv 2202.08906, eq. 5)."""
    squared = jnp.square(jax.nn.logsumexp(logits, -1))
    return (weight * squared).sum(-1) / jnp.maximum(weight.sum(-1), 1e-9)
