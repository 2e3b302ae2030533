"""One update: batch in, new state and metrics out. Pure, jitted, sharded; nothing else of the run is in here.

The loss is a sum of weighted terms divided once by the global sum of weights. Gradients of the sums are accumulated in
float32 over microbatches and divided after the last, so 1, 2 or 4 microbatches are the same update.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding

from jaxpt.core import trees
from jaxpt.core.rng import fold
from jaxpt.core.types import Array, Bool, Float, Int, Params, PRNGKeyArray, PyTree
from jaxpt.objectives.base import Losses
from jaxpt.sharding import constrain, partition_spec
from jaxpt.sharding.distributed import shards
from jaxpt.training.state import TrainState

Batch = dict[str, jax.Array]
Loss = Callable[[Params, Batch, PRNGKeyArray], Losses]
Prepare = Callable[[PRNGKeyArray, Batch], Batch]
WeightFn = Callable[[Float[Array, " B"], Int[Array, ""]], Float[Array, " B"]]


@dataclasses.dataclass(frozen=True)
class Step:
    """`run(state, batch)` donates the state; `probe` is the same function and leaves it alone, for methods that branch.

    Both return (state, metrics); metrics are float32 scalars: loss (nats per weighted token), gradient_norm (before
    clipping), tokens (sum of loss weights), finite, and the objective's own.
    """

    run: Callable[[TrainState, Batch], tuple[TrainState, dict[str, Array]]]
    probe: Callable[[TrainState, Batch], tuple[TrainState, dict[str, Array]]]
    mesh: Mesh | None

    def at(self, update: int) -> Step:
        """The step of this update; all have the same."""
        return self


@dataclasses.dataclass(frozen=True)
class Phased:
    """Steps one after the other on the same state, for a run whose objective changes on the way.

    Attributes:
      steps: (number of the first update it does, from 0, ascending; the step).
    """

    steps: tuple[tuple[int, Step], ...]

    @property
    def mesh(self) -> Mesh | None:
        """Where all of them run."""
        return self.steps[0][1].mesh

    def at(self, update: int) -> Step:
        """The step of this update."""
        return [step for first, step in self.steps if first <= update][-1]


def make_step(
    loss: Loss,
    optimizer: optax.GradientTransformation,
    *,
    accumulate: int = 1,
    clip: float | None = None,
    weight_fn: WeightFn | None = None,
    prepare: Prepare | None = None,
    mesh: Mesh | None = None,
    shardings: TrainState | None = None,
) -> Step:
    """Builds the jitted step.

    Args:
      loss: (params, batch, key) -> Losses, one sum and one weight per sequence.
      optimizer: an optax transformation that returns updates to add.
      accumulate: microbatches per update; must divide the batch.
      clip: global gradient norm above which the gradient is scaled down; None for never.
      weight_fn: (mean loss of each sequence of the global batch [B], step) -> weight of each sequence [B]. With
        accumulation, the losses are first computed in a forward pass over all microbatches.
      prepare: (key, batch) -> batch, once per update and before the batch is cut into microbatches, of which the loss gets
        a key each. An objective that draws here (`corrupt`) draws the same however many there are.
      mesh, shardings: where the state lives (`state_shardings`); one device by default.
    """

    def update(state: TrainState, batch: Batch) -> tuple[TrainState, dict[str, Array]]:
        key = fold(jax.random.wrap_key_data(state.seed), "loss", state.step)
        if prepare is not None:
            batch = prepare(fold(key, "prepare"), batch)
        gradients, total = _gradients(loss, state, batch, key, accumulate, weight_fn)
        norm = optax.global_norm(gradients)
        if clip is not None:
            gradients = jax.tree.map(lambda g: g * jnp.minimum(1.0, clip / jnp.maximum(norm, 1e-12)), gradients)
        gradients = jax.tree.map(lambda g, p: g.astype(p.dtype), gradients, state.trainable)
        updates, opt_state = optimizer.update(gradients, state.opt_state, state.trainable)
        value = total.sums / jnp.maximum(total.weights, 1e-9)
        good = jnp.isfinite(value) & jnp.isfinite(norm) & ~state.halted
        new = dataclasses.replace(
            state, step=state.step + 1, trainable=optax.apply_updates(state.trainable, updates), opt_state=opt_state
        )
        new = jax.tree.map(lambda a, b: jnp.where(good, a, b), new, state)
        new = dataclasses.replace(new, halted=~good)
        return new, metrics_of(total, norm, good)

    return compiled(update, mesh, shardings)


def metrics_of(total: Losses, norm: Float[Array, ""], good: Bool[Array, ""]) -> dict[str, Array]:
    """What a step reports of sums over the batch, the gradient's norm and whether both are finite."""
    own = {name: s / jnp.maximum(n, 1e-9) for name, (s, n) in total.metrics.items()}
    value = total.sums / jnp.maximum(total.weights, 1e-9)
    return {"loss": value, "gradient_norm": norm, "tokens": total.weights, "finite": good, **own}


def compiled(
    update: Callable[[TrainState, Batch], tuple[TrainState, dict[str, Array]]],
    mesh: Mesh | None,
    shardings: TrainState | None,
) -> Step:
    """An update as a `Step`, jitted, on the mesh if there is one."""
    if mesh is None:
        return Step(jax.jit(update, donate_argnums=0), jax.jit(update), None)
    return Step(_on_mesh(update, mesh, shardings, donate_argnums=0), _on_mesh(update, mesh, shardings), mesh)


def batch_sharding(mesh: Mesh, shape: tuple[int, ...]) -> NamedSharding:
    """Rows over the data axes of the mesh."""
    return NamedSharding(mesh, partition_spec(("batch", *(None,) * (len(shape) - 1)), shape, dict(mesh.shape)))


def put_batch(batch: dict[str, Any], mesh: Mesh | None) -> Batch:
    """This process's rows of the global batch (`sharding.local_rows`) as one array over the mesh."""
    if mesh is None:
        return {name: jnp.asarray(x) for name, x in batch.items()}

    mine, total = shards(mesh) if jax.process_count() > 1 else ([0], 1)

    def place(x: Any) -> jax.Array:
        shape = (x.shape[0] * total // len(mine), *x.shape[1:])
        return jax.make_array_from_process_local_data(batch_sharding(mesh, shape), x, shape)

    return {name: place(x) for name, x in batch.items()}


def _on_mesh(update: Callable[..., Any], mesh: Mesh, shardings: TrainState | None, **kwargs: Any) -> Callable[..., Any]:
    """`update` jitted on a mesh. The state stays where `shardings` say; one whose tree an event has changed, where it is."""
    jitted: dict[Any, Any] = {}

    def of(state: TrainState) -> Any:
        tree: Any = jax.tree.structure(state)
        if tree not in jitted:
            given = shardings is None or jax.tree.structure(shardings) == tree
            where: Any = shardings if given else jax.tree.map(lambda x: x.sharding, state)
            placed: dict[str, Any] = {} if where is None else {"out_shardings": (where, None)}
            jitted[tree] = jax.jit(update, **kwargs, **placed)
        return jitted[tree]

    def run(*args: Any) -> Any:
        with jax.set_mesh(mesh):
            return of(args[0])(*args)

    run.lower = lambda *args: _lower(of(args[0]), mesh, args)  # type: ignore[attr-defined]
    return run


def _lower(fn: Any, mesh: Mesh, args: tuple[Any, ...]) -> Any:
    with jax.set_mesh(mesh):
        return fn.lower(*args)


def _gradients(
    loss: Loss, state: TrainState, batch: Batch, key: PRNGKeyArray, accumulate: int, weight_fn: WeightFn | None
) -> tuple[PyTree, Losses]:
    """Gradient of sum_i w_i sums_i / sum_i w_i weights_i, and the undivided totals (scalars) over the batch."""
    rows = next(iter(batch.values())).shape[0]
    if rows % accumulate:
        raise ValueError(f"a batch of {rows} sequences cannot be cut into accumulate={accumulate} microbatches")
    # Strided cut: each microbatch takes rows from every device's share, so nothing moves between devices.
    micro = jax.tree.map(lambda x: jnp.moveaxis(x.reshape(rows // accumulate, accumulate, *x.shape[1:]), 1, 0), batch)
    micro = jax.tree.map(lambda x: constrain(x, None, "batch", *(None,) * (x.ndim - 2)), micro)
    keys = jax.vmap(lambda i: fold(key, i))(jnp.arange(accumulate))

    def sequence_weights(weight_fn: WeightFn) -> Array:
        def forward(_: None, part: tuple[Batch, PRNGKeyArray]) -> tuple[None, Array]:
            found = loss(state.params, *part)
            return None, found.sums / jnp.maximum(found.weights, 1e-9)

        losses = jax.lax.scan(forward, None, (micro, keys))[1]  # [accumulate, rows / accumulate]
        return weight_fn(losses.T.reshape(rows), state.step).reshape(-1, accumulate).T

    def weighted(trainable: PyTree, part: Batch, key: PRNGKeyArray, weight: Array | None) -> tuple[Array, Losses]:
        found = loss(trees.merge(trainable, state.fixed), part, key)
        if weight_fn is not None and weight is None:  # one microbatch: its losses are the global batch's
            weight = weight_fn(jax.lax.stop_gradient(found.sums / jnp.maximum(found.weights, 1e-9)), state.step)
        scale = jnp.ones_like(found.sums) if weight is None else jax.lax.stop_gradient(weight)
        total = Losses(jnp.sum(scale * found.sums), jnp.sum(scale * found.weights), found.metrics)
        return total.sums, total

    gradient = jax.grad(weighted, has_aux=True)
    if accumulate == 1:
        summed, total = gradient(state.trainable, jax.tree.map(lambda x: x[0], micro), keys[0], None)
    else:
        summed, total = _accumulate(
            gradient, state, micro, keys, None if weight_fn is None else sequence_weights(weight_fn)
        )
    divisor = jnp.maximum(total.weights, 1e-9)
    return jax.tree.map(lambda g: g.astype(jnp.float32) / divisor, summed), total


def _accumulate(gradient: Any, state: TrainState, micro: Batch, keys: Array, weights: Any) -> tuple[PyTree, Losses]:
    def one(carry: tuple[PyTree, Losses], part: tuple[Batch, Array, Any]) -> tuple[tuple[PyTree, Losses], None]:
        return jax.tree.map(lambda a, b: a + b.astype(jnp.float32), carry, gradient(state.trainable, *part)), None

    first = jax.tree.map(lambda x: x[0], (micro, keys, weights))
    shapes = jax.eval_shape(gradient, state.trainable, *first)
    zero = jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.float32), shapes)
    return jax.lax.scan(one, zero, (micro, keys, weights))[0]
