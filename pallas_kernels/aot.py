"""Compiles operations for chips that are not here: TPUs by their own compiler (`libtpu`), an H100 as far as Triton.

python -m pallas_kernels.aot [--operation NAME ...] [--chip v5e v5p v6e h100] [--size 60m 1b 7b] [--json FILE]

Prints per operation, shape and chip what the compiler says: seconds to compile, bytes of main memory accessed, temporary
bytes, against the least possible bytes. Nothing is run, and no time but the compiler's own is measured.
"""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import jax
from jax.experimental.layout import Format, Layout
from jax.sharding import AbstractDevice, AbstractMesh, Mesh, NamedSharding, PartitionSpec

from jaxpt.core.names import nearest_error
from jaxpt.sharding import AXES, MeshConfig, make_mesh

TOPOLOGIES = {"v5e": "v5e:2x2", "v5p": "v5p:2x2x1", "v6e": "v6e:2x2"}


@dataclasses.dataclass(frozen=True)
class Report:
    """What the compiler says of one program. `bytes_accessed` and `flops` include what the kernels say of themselves."""

    seconds: float
    flops: float
    bytes_accessed: float
    temporary: int
    text: str


def tpu_mesh(chip: str) -> Mesh:
    """A mesh of one device of a chip that need not be here.

    Raises:
      ValueError: unknown chip.
      RuntimeError: no TPU compiler (install the `tpu` extra), or it refuses to start.
    """
    if chip not in TOPOLOGIES:
        raise nearest_error("chip", chip, TOPOLOGIES)
    # without these it looks for a TPU's metadata server, and refuses to share the machine with another compilation
    for name, value in {"TPU_SKIP_MDS_QUERY": "1", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1", "TPU_MIN_LOG_LEVEL": "3"}.items():
        os.environ.setdefault(name, value)
    from jax.experimental import topologies  # loads the compiler

    topology = topologies.get_topology_desc(platform="tpu", topology_name=TOPOLOGIES[chip])
    return make_mesh(MeshConfig(data=1), topology.devices[:1])


def compile_for(mesh: Mesh, fn: Callable[..., Any], *args: Any) -> Report:
    """Compiles fn for the devices of `mesh`, given arguments as arrays or shapes, replicated over it.

    Arguments and results are kept row-major, as they are inside a model; the compiler's own choice for a ragged width is to
    transpose at the border, which would be counted here.
    """
    sharding = NamedSharding(mesh, PartitionSpec())

    def row_major(x: Any) -> Format:
        return Format(Layout(tuple(range(len(x.shape)))), sharding)

    with jax.set_mesh(mesh):
        formats = jax.tree.map(row_major, (args, jax.eval_shape(fn, *args)))
        lowered = jax.jit(fn, in_shardings=formats[0], out_shardings=formats[1]).lower(*args)
        start = time.perf_counter()
        compiled = lowered.compile()
    seconds = time.perf_counter() - start
    cost = compiled.cost_analysis()
    return Report(
        seconds,
        cost.get("flops", 0.0),
        cost.get("bytes accessed", 0.0),
        compiled.memory_analysis().temp_size_in_bytes,
        compiled.as_text(),
    )


@contextmanager
def h100() -> Iterator[None]:
    """Within this, traces are for one H100 that need not be here."""
    device = AbstractDevice(device_kind="NVIDIA H100 80GB HBM3", num_cores=132, platform="gpu")
    types = (jax.sharding.AxisType.Auto,) * len(AXES)
    with jax.sharding.use_abstract_mesh(AbstractMesh((1,) * len(AXES), AXES, types, abstract_device=device)):
        yield


def lower_for_h100(fn: Callable[..., Any], *args: Any) -> str:
    """The StableHLO of fn for an H100, its kernels lowered to Triton. PTX is not made: that needs a GPU."""
    checks = [jax.export.DisabledSafetyCheck.custom_call("__gpu$xla.gpu.triton")]
    with h100():
        return jax.export.export(jax.jit(fn), platforms=["cuda"], disabled_checks=checks)(*args).mlir_module()
