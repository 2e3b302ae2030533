"""Logical axis names -> mesh axes, declared once for the whole project.

A model names the axes of its arrays ("embed", "mlp", "batch"); this table alone knows what that means on a mesh. A
dimension the mesh axes do not divide, or whose mesh axes another dimension of the same array already uses, is replicated.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxpt.core.names import nearest_error
from jaxpt.core.spec import ArraySpec
from jaxpt.core.types import Array, PyTree

RULES: dict[str, tuple[str, ...]] = {
    # parameters
    "layers": (),
    "embed": ("fsdp",),
    "mlp": ("model",),
    "heads": ("model",),
    "kv_heads": ("model",),
    "vocab": ("model",),
    "positions": (),
    "rank": ("fsdp",),
    "nonzeros": ("fsdp",),
    "norm": (),
    "experts": ("expert",),
    # activations
    "batch": ("data", "fsdp"),
    "sequence": (),
    "features": (),
    "head_dim": (),
}


def partition_spec(
    axes: Sequence[str | None],
    shape: Sequence[int],
    sizes: Mapping[str, int],
    rules: Mapping[str, tuple[str, ...]] = RULES,
) -> PartitionSpec:
    """The PartitionSpec of an array with these logical axes on a mesh with these axis sizes.

    Raises:
      ValueError: a logical axis that the table does not know.
    """
    used: set[str] = set()
    entries: list[tuple[str, ...] | None] = []
    for axis, length in zip(axes, shape, strict=True):
        if axis is not None and axis not in rules:
            raise nearest_error("logical axis", axis, rules)
        chosen: list[str] = []
        for name in rules[axis] if axis is not None else ():
            divisor = sizes[name]
            for other in chosen:
                divisor *= sizes[other]
            if name not in used and sizes[name] > 1 and length % divisor == 0:
                chosen.append(name)
        used.update(chosen)
        entries.append(tuple(chosen) or None)
    return PartitionSpec(*entries)


def shardings(spec: PyTree, mesh: Mesh) -> PyTree:
    """The NamedSharding of every array of a spec tree."""

    def one(s: ArraySpec) -> NamedSharding:
        return NamedSharding(mesh, partition_spec(s.axes, s.shape, dict(mesh.shape)))

    return jax.tree.map(one, spec)


def batch_axes(rows: int, sizes: Mapping[str, int]) -> tuple[str, ...]:
    """The axes of a mesh of these sizes that so many rows of a batch are divided over."""
    split = partition_spec(("batch",), (rows,), sizes)[0]
    return (split,) if isinstance(split, str) else tuple(split or ())


def over_batch(fn: Callable[..., Array], x: Array, *whole: Array, kernel: bool = False) -> Array:
    """fn(x, *whole) on each device's own rows of x [B, ...], with `whole` gathered first; fn(x, *whole) without a mesh.

    For a function of rows whose other operands are far smaller than what it makes of them: their gradients are summed
    over the rows of a device before anything is sent. Left to the compiler, what is made of them is sent instead.

    Args:
      kernel: fn holds a kernel, which the compiler cannot partition: it must have every axis of the mesh to itself, and
        where the rows do not divide over an axis its devices repeat each other's work.
    """
    mesh = jax.sharding.get_abstract_mesh()
    free = () if mesh.empty or mesh.size == 1 else mesh.auto_axes  # the others belong to a shard_map around this
    sizes = {name: mesh.shape[name] if name in free else 1 for name in mesh.axis_names}
    names = batch_axes(x.shape[0], sizes) if free else ()
    chosen = set(free if kernel else names)
    if not chosen:
        return fn(x, *whole)
    split = PartitionSpec(names or None)
    manual = jax.shard_map(
        fn,
        in_specs=(split, *(PartitionSpec(),) * len(whole)),
        out_specs=split,
        axis_names=chosen,
        check_vma=False,  # a kernel's call does not say how its outputs vary over the mesh
    )
    return manual(x, *whole)


def constrain(x: Array, *axes: str | None) -> Array:
    """Asks the compiler to lay out an activation by its logical axes on the ambient mesh; nothing without a mesh."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return x
    return jax.lax.with_sharding_constraint(x, partition_spec(axes, x.shape, dict(mesh.shape)))
