"""Chips the kernels are written for: published peak rates and the on-chip memory a kernel may fill."""

from __future__ import annotations

import dataclasses

import jax

MiB = 2**20


@dataclasses.dataclass(frozen=True)
class Chip:
    """One JAX device.

    Attributes:
      flops: dense bfloat16 operations per second.
      bandwidth: main-memory bytes per second.
      scratch: bytes of on-chip memory one kernel may ask for (VMEM of one core on TPU, shared memory of one SM on GPU).
      cores: TPU cores behind one JAX device, between which "parallel" grid dimensions are divided.
    """

    name: str
    platform: str
    flops: float
    bandwidth: float
    scratch: int
    cores: int = 1

    @property
    def ridge(self) -> float:
        """Operations per byte above which a kernel is bound by arithmetic."""
        return self.flops / self.bandwidth


# The TPU limits leave the compiler room for its own temporaries: 96 of 128 MiB, 56 of 64 MiB.
CHIPS = {
    "v5e": Chip("v5e", "tpu", 197e12, 819e9, 96 * MiB),
    "v5p": Chip("v5p", "tpu", 459e12, 2765e9, 56 * MiB, cores=2),
    "v6e": Chip("v6e", "tpu", 918e12, 1640e9, 96 * MiB),
    "h100": Chip("h100", "gpu", 989e12, 3350e9, 227 * 1024),
    "h200": Chip("h200", "gpu", 989e12, 4800e9, 227 * 1024),
}
_KINDS = {
    "TPU v5 lite": "v5e",
    "TPU v5e": "v5e",
    "TPU v5": "v5p",
    "TPU v5p": "v5p",
    "TPU v6 lite": "v6e",
    "TPU v6e": "v6e",
}


def find(device_kind: str) -> Chip | None:
    """The chip of a JAX device kind, or None where the table has none."""
    if device_kind in _KINDS:
        return CHIPS[_KINDS[device_kind]]
    return next((chip for name, chip in CHIPS.items() if name.upper() in device_kind.upper().split()), None)


def current() -> Chip | None:
    """The chip this trace is for: that of the ambient mesh (which may be one to compile for), else of this machine."""
    mesh = jax.sharding.get_abstract_mesh()
    device = None if mesh.empty else mesh.abstract_device
    return find(jax.devices()[0].device_kind if device is None else device.device_kind)
