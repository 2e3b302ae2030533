"""The state of a run: everything a checkpoint must hold, as one pytree."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jax.sharding import Mesh, NamedSharding

from jaxpt.core import spec as specs
from jaxpt.core import trees
from jaxpt.core.rng import fold
from jaxpt.core.types import Array, Bool, Int, Params, PyTree, UInt32
from jaxpt.sharding.rules import partition_spec


@struct.dataclass
class TrainState:
    """Attributes:
    step: number of updates done.
    trainable: parameters that the optimizer sees (None where an array is fixed).
    fixed: supports, masks, frozen bases (None where an array is trainable).
    opt_state: the optimizer's.
    seed: two words; every random number of the run is a fold of it.
    halted: set by a non-finite loss or gradient; the state is then the last good one and stays so.
    """

    step: Int[Array, ""]
    trainable: PyTree
    fixed: PyTree
    opt_state: PyTree
    seed: UInt32[Array, 2]
    halted: Bool[Array, ""]

    @property
    def params(self) -> Params:
        """The whole tree of parameters, as models take it."""
        return trees.merge(self.trainable, self.fixed)


def create(params: Params, optimizer: optax.GradientTransformation, seed: int = 0) -> TrainState:
    """A state at step 0 for a copy of these parameters (the step will donate the state's arrays, never the caller's)."""
    trainable, fixed = trees.split(jax.tree.map(jnp.copy, params))
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        trainable=trainable,
        fixed=fixed,
        opt_state=optimizer.init(trainable),
        seed=jax.random.key_data(fold(jax.random.key(seed), "training")),
        halted=jnp.zeros((), bool),
    )


def state_shardings(spec: Params, optimizer: optax.GradientTransformation, mesh: Mesh) -> TrainState:
    """The sharding of every array of the state: parameters by their logical axes, what the optimizer keeps of a parameter
    by those of its dimensions that are the parameter's (`like_parameters`), everything else replicated."""
    found = jax.eval_shape(lambda: create(specs.init(jax.random.key(0), spec), optimizer))
    axes = like_parameters(found, spec)

    def place(path: str, leaf: jax.ShapeDtypeStruct) -> NamedSharding:
        return NamedSharding(mesh, partition_spec(axes[path], leaf.shape, dict(mesh.shape)))

    return trees.map_with_path(place, found)


def like_parameters(state: PyTree, spec: Params) -> dict[str, tuple[str | None, ...]]:
    """path -> logical axes, for every array of a state.

    An array is kept of a parameter if the parameter's path is in its own, whole. Each of its dimensions that has the size of
    the parameter's dimension in the same position bears that dimension's name; every other dimension bears none. So moments
    of a parameter's shape are split like it, and projected ones, projectors and scales of blocks where they can be.
    """
    known = dict(trees.leaves_with_path(spec))

    def axes(path: str, shape: tuple[int, ...]) -> tuple[str | None, ...]:
        owner = trees.owner(path, known)
        of = known[owner] if owner is not None else specs.ArraySpec((), (), specs.zeros)
        same = [axis if n == m else None for axis, n, m in zip(of.axes, of.shape, shape, strict=False)]
        return (*same, *(None,) * (len(shape) - len(same)))

    return {path: axes(path, leaf.shape) for path, leaf in trees.leaves_with_path(state)}


def create_sharded(
    spec: Params, optimizer: optax.GradientTransformation, mesh: Mesh, seed: int = 0, init_seed: int = 0
) -> TrainState:
    """A state at step 0, every array made where it will live, so that no device holds more than its share."""

    def build() -> TrainState:
        return create(specs.init(jax.random.key(init_seed), spec), optimizer, seed)

    with jax.set_mesh(mesh):
        return jax.jit(build, out_shardings=state_shardings(spec, optimizer, mesh))()
