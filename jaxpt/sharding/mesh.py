"""The mesh: four named axes, sizes from config, from one CPU device to pods."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh

AXES = ("data", "fsdp", "model", "expert")


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """Sizes of the mesh axes; at most one may be -1, which takes the devices the others leave.

    `data`: batch, parameters replicated. `fsdp`: batch, parameters sharded. `model`: heads, feed-forward, vocabulary.
    `expert`: experts.
    """

    data: int = -1
    fsdp: int = 1
    model: int = 1
    expert: int = 1

    def sizes(self, devices: int) -> tuple[int, ...]:
        """The four sizes for this many devices.

        Raises:
          ValueError: the sizes do not multiply to the number of devices.
        """
        given = [getattr(self, axis) for axis in AXES]
        if given.count(-1) > 1 or any(n < 1 and n != -1 for n in given):
            raise ValueError(f"mesh sizes must be positive, at most one of them -1; got {self}")
        known = math.prod(n for n in given if n != -1)
        if -1 in given and devices % known == 0:
            given[given.index(-1)] = devices // known
        if math.prod(given) != devices:
            raise ValueError(
                f"mesh {dict(zip(AXES, given, strict=True))} needs {math.prod(n for n in given if n > 0)} devices "
                f"or a multiple, but there are {devices}; change the sizes or set one of them to -1"
            )
        return tuple(given)


def make_mesh(cfg: MeshConfig | None = None, devices: Sequence[Any] | None = None) -> Mesh:
    """The mesh of `cfg` over `devices` (all devices by default), every axis Auto.

    Raises:
      ValueError: the sizes do not multiply to the number of devices.
    """
    cfg, devices = cfg or MeshConfig(), list(jax.devices() if devices is None else devices)
    sizes = cfg.sizes(len(devices))
    types = (AxisType.Auto,) * len(AXES)
    if devices[0].platform == "cpu":  # the search for a good order only helps where there is a network topology
        return Mesh(np.asarray(devices).reshape(sizes), AXES, axis_types=types)
    # Splitting an axis of the torus is allowed: jax.make_mesh forbids it on most chips, and 2 of 4 x 4 x 4 is then an error.
    ordered = mesh_utils.create_device_mesh(sizes, devices, allow_split_physical_axes=True)
    return Mesh(ordered, AXES, axis_types=types)


def platform() -> str:
    """ "cpu", "gpu" or "tpu": that of the ambient mesh (which may be one to compile for), else JAX's default."""
    mesh = jax.sharding.get_abstract_mesh()
    device = None if mesh.empty else mesh.abstract_device
    return jax.default_backend() if device is None else device.platform
