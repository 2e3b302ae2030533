"""Machines by name ("v5e:4x8", "v5p:4x4x4", "v6e:16x16"), what one chip of them can do, and their devices to compile for.

No such machine is needed: `jax[tpu]` brings the real TPU compiler, which runs on any CPU host.

    topology = parse("v5e:4x8")
    mesh = make_mesh(MeshConfig(fsdp=32, data=1), topology.devices())
"""

from __future__ import annotations

import dataclasses
import functools
import importlib.util
import math
import os
import re
from typing import Any

from jaxpt.core.names import nearest_error

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Chip:
    """One chip, by its vendor's published peaks (cloud.google.com/tpu/docs, "System architecture", one page a version).

    Attributes:
      name: the prefix of topology names.
      memory: bytes of high-bandwidth memory per device that the compiler lets a program use. It is what the compiler
        itself says when a program is too large, a little less than the data sheet.
      flops: bfloat16 floating-point operations per second and device.
      bandwidth: bytes per second between a device and its memory.
      link: bytes per second through one interconnect link in one direction.
      dimensions: of the torus; a device has two links in each.
      wraps: the smallest size of a dimension whose ends are joined. Below it the dimension is a line.
      devices: JAX devices per chip.
    """

    name: str
    memory: float
    flops: float
    bandwidth: float
    link: float
    dimensions: int
    wraps: int
    devices: int = 1


CHIPS = {
    chip.name: chip
    for chip in (
        Chip("v5e", 15.75 * GIB, 197e12, 819e9, 45e9, 2, 16),
        Chip("v5p", 95.74 * GIB, 459e12, 2765e9, 90e9, 3, 4),
        Chip("v6e", 31.25 * GIB, 918e12, 1640e9, 90e9, 2, 16),
    )
}
# Slices that are sold, smallest first: what "the smallest slice it fits on" is chosen from.
SLICES = {
    "v5e": ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16"),
    "v5p": ("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8", "8x8x8", "8x8x16"),
    "v6e": ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16"),
}


@dataclasses.dataclass(frozen=True)
class Topology:
    """A slice: its chip and the sizes of its torus."""

    chip: Chip
    shape: tuple[int, ...]

    @property
    def name(self) -> str:
        """As `parse` reads it."""
        return f"{self.chip.name}:{'x'.join(map(str, self.shape))}"

    @property
    def chips(self) -> int:
        """Number of chips."""
        return math.prod(self.shape)

    def devices(self) -> list[Any]:
        """Devices that can be compiled for, not run on, in the compiler's order.

        Raises:
          ModuleNotFoundError: libtpu is not installed.
          ValueError: the compiler knows no such slice.
        """
        return list(_description(self.name).devices)


def parse(name: str) -> Topology:
    """The topology of this name.

    Raises:
      ValueError: not CHIP:SIZExSIZE, a chip that is not known, or sizes that chip does not come in.
    """
    found = re.fullmatch(r"([a-z][a-z0-9]*):(\d+(?:x\d+)*)", name.strip().lower())
    if not found:
        raise ValueError(f"cannot read topology {name!r}: write CHIP:SIZES, for example v5e:4x8 or v5p:4x4x4")
    if found[1] in ("a100", "h100", "h200", "b200", "gpu", "cuda", "rocm"):
        raise ValueError(gpu_statement(name))
    if found[1] not in CHIPS:
        raise nearest_error("chip", found[1], CHIPS)
    chip, shape = CHIPS[found[1]], tuple(int(n) for n in found[2].split("x"))
    if len(shape) != chip.dimensions:
        raise ValueError(
            f"{name!r} has {len(shape)} sizes, but {chip.name} slices have {chip.dimensions}: "
            + ", ".join(f"{chip.name}:{s}" for s in SLICES[chip.name])
        )
    if any(n < 1 for n in shape):
        raise ValueError(f"sizes of a topology are at least 1, got {name!r}")
    return Topology(chip, shape)


def gpu_statement(name: str) -> str:
    """Why a GPU topology is refused."""
    return (
        f"{name!r}: only TPU topologies can be compiled for without the machine. XLA's GPU compiler needs the CUDA "
        f"plugin (pip install 'jaxpt[gpu]') and picks kernels by timing them on a GPU that is there; on a machine that "
        f"has one, the same report comes from the run itself. Known chips: {', '.join(CHIPS)}"
    )


def installed() -> bool:
    """Whether the TPU compiler is there."""
    return importlib.util.find_spec("libtpu") is not None


# The compiler's own words, before it is loaded: no metadata server is asked, other processes may compile too, quiet.
SETTINGS = {
    "TPU_SKIP_MDS_QUERY": "1",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_MIN_LOG_LEVEL": "3",
    "TPU_STDERR_LOG_LEVEL": "3",
    "TF_CPP_MIN_LOG_LEVEL": "3",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_WORKER_ID": "0",
}


@functools.cache
def _description(name: str) -> Any:
    if not installed():
        raise ModuleNotFoundError(
            "compiling for a TPU needs its compiler, libtpu, which also runs where there is no TPU: "
            "pip install 'jaxpt[tpu]'"
        )
    from jax.experimental import topologies

    before = {key: os.environ.get(key) for key in SETTINGS}
    os.environ.update({key: value for key, value in SETTINGS.items() if before[key] is None})
    try:
        # A host has 2 x 2 chips unless the slice is one chip.
        one = {"chips_per_host_bounds": (1, 1, 1)} if math.prod(parse(name).shape) == 1 else {}
        return topologies.get_topology_desc(platform="tpu", topology_name=name, **one)
    except Exception as error:
        raise ValueError(
            f"the TPU compiler knows no slice {name!r}: {str(error).splitlines()[0]}. Slices that are sold: "
            + ", ".join(f"{chip}:{s}" for chip, sizes in SLICES.items() for s in sizes if name.startswith(chip))
        ) from error
