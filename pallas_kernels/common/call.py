"""The wrapper around `pallas_call`: interpretation on CPUs, compiler settings, cost, and types under `shard_map`."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jax.experimental.pallas import triton as plgpu
from jax.sharding import ManualAxisType

from jaxpt.sharding import batch_axes, over_batch
from pallas_kernels.common.dispatch import interpret

LANES = 128


def tpu_call(
    kernel: Callable[..., None],
    out: Any,
    *args: jax.Array,
    grid_spec: Any,
    semantics: Sequence[Literal["parallel", "arbitrary"]],
    scratch: int,
    flops: float,
    nbytes: float,
    name: str,
) -> Any:
    """Runs a TPU kernel on `args`.

    Args:
      out: shapes of the outputs, made with `like`.
      semantics: "parallel" or "arbitrary" per grid dimension.
      scratch: limit of VMEM in bytes.
      flops, nbytes: what the compiler cannot see: operations, and bytes of main memory moved.
    """
    return pl.pallas_call(
        kernel,
        out_shape=out,
        grid_spec=grid_spec,
        compiler_params=pltpu.CompilerParams(dimension_semantics=tuple(semantics), vmem_limit_bytes=scratch),
        cost_estimate=pl.CostEstimate(flops=int(flops), transcendentals=0, bytes_accessed=int(nbytes)),
        interpret=interpret(),
        name=name,
    )(*args)


def gpu_call(
    kernel: Callable[..., None],
    out: Any,
    *args: jax.Array,
    grid: tuple[int, ...],
    warps: int,
    stages: int,
    flops: float,
    nbytes: float,
    name: str,
) -> Any:
    """Runs a Triton kernel whose references are the whole arrays. The parameters name the backend, since the default
    backend of `pallas_call` on GPU is not the same in every version of JAX."""
    return pl.pallas_call(
        kernel,
        out_shape=out,
        grid=grid,
        compiler_params=plgpu.CompilerParams(num_warps=warps, num_stages=stages),
        cost_estimate=pl.CostEstimate(flops=int(flops), transcendentals=0, bytes_accessed=int(nbytes)),
        interpret=interpret(),
        name=name,
    )(*args)


def like(shape: Sequence[int], dtype: Any, *inputs: jax.Array) -> jax.ShapeDtypeStruct:
    """The type of an output: varies over the mesh axes of a `shard_map` over which any input does."""
    varying = ManualAxisType(varying=_varying(*inputs))
    return jax.ShapeDtypeStruct(tuple(shape), dtype, manual_axis_type=varying)


def same_varying(*inputs: jax.Array) -> tuple[jax.Array, ...]:
    """Under `shard_map`, every input made to vary over the axes that any of them varies over; else as they are.

    The transpose of this is the sum over devices that a shared weight's gradient needs.
    """
    axes = _varying(*inputs)
    return tuple(_vary(x, tuple(axes - jax.typeof(x).manual_axis_type.varying)) for x in inputs)


def _vary(x: jax.Array, axes: tuple[str, ...]) -> jax.Array:
    return jax.lax.pcast(x, axes, to="varying") if axes else x


def _varying(*inputs: jax.Array) -> frozenset[str]:
    return frozenset().union(*(jax.typeof(x).manual_axis_type.varying for x in inputs))


def over_mesh(fn: Callable[..., jax.Array], x: jax.Array, *weights: jax.Array) -> jax.Array:
    """fn(x, *weights) for a kernel: each device takes its rows of the batch, and weights are gathered."""
    return over_batch(lambda *t: fn(*same_varying(*t)), x, *weights, kernel=True)


def mesh_objection(rows: int) -> str | None:
    """Why a kernel is a bad choice on the ambient mesh: devices that would all compute the same rows."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1 or not mesh.auto_axes:
        return None
    used = math.prod(mesh.shape[axis] for axis in batch_axes(rows, mesh.shape))
    if used == mesh.size:
        return None
    return (
        f"of the {mesh.size} devices of the mesh only {used} can take their own rows of a batch of {rows}; "
        "the others would repeat them (call it inside shard_map to divide the weights)"
    )


def round_up(n: int, multiple: int) -> int:
    """The next multiple."""
    return -(-n // multiple) * multiple


def pad_to(x: jax.Array, shape: Sequence[int], value: int = 0) -> jax.Array:
    """x with `value` appended along each axis until it has this shape."""
    widths = [(0, n - have) for n, have in zip(shape, x.shape, strict=True)]
    return jnp.pad(x, widths, constant_values=value) if any(w for _, w in widths) else x


def inside(block: jax.Array, start: Sequence[Any], shape: Sequence[int]) -> jax.Array:
    """A block of an array of `shape` that starts at `start`, with zeros beyond the array, where a kernel sees rubbish.

    Costs nothing along an axis that whole blocks divide.
    """
    for axis, (at, length) in enumerate(zip(start, shape, strict=True)):
        if length % block.shape[axis]:
            index = at + jax.lax.broadcasted_iota(jnp.int32, block.shape, axis)
            block = jnp.where(index < length, block, jnp.zeros_like(block))
    return block


def precision(dtype: Any) -> jax.lax.Precision:
    """float32 is multiplied as float32, narrower formats as they are."""
    return jax.lax.Precision.DEFAULT if jnp.dtype(dtype).itemsize < 4 else jax.lax.Precision.HIGHEST
