"""Compiles operations for chips that are not here: TPUs by their own compiler (`libtpu`), an H100 as far as Triton.

python -m pallas_kernels.aot [--operation NAME ...] [--chip v5e v5p v6e h100] [--size 60m 1b 7b] [--json FILE]

Prints per operation, shape and chip what the compiler says: seconds to compile, bytes of main memory accessed, temporary
bytes, against the least possible bytes. Nothing is run, and no time but the compiler's own is measured.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
from jax.experimental.layout import Format, Layout
from jax.sharding import AbstractDevice, AbstractMesh, Mesh, NamedSharding, PartitionSpec

from jaxpt.core.files import write_json
from jaxpt.core.names import nearest_error
from jaxpt.sharding import AXES, MeshConfig, make_mesh
from pallas_kernels.cases import Case, cases, with_gradients
from pallas_kernels.common.dispatch import OPERATIONS

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
    cost, memory = compiled.cost_analysis() or {}, compiled.memory_analysis()
    return Report(
        seconds,
        cost.get("flops", 0.0),
        cost.get("bytes accessed", 0.0),
        0 if memory is None else memory.temp_size_in_bytes,
        compiled.as_text() or "",
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


def main(arguments: list[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--operation", nargs="*", default=list(OPERATIONS))
    parser.add_argument("--chip", nargs="*", default=[*TOPOLOGIES, "h100"])
    parser.add_argument("--size", nargs="*", default=["60m", "1b", "7b"])
    parser.add_argument("--tokens", type=int, default=8192)
    parser.add_argument("--all", action="store_true", help="every variant, not the kernels alone")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args(arguments)
    rows = []
    for chip in args.chip:
        mesh = None if chip == "h100" else tpu_mesh(chip)
        for case in (c for o in args.operation for size in args.size for c in cases(o, size, args.tokens)):
            for row in _rows(case, chip, mesh, args.all):
                print(_line(row), flush=True)
                rows.append(row)
                if args.json:
                    write_json(args.json, rows)
    return 1 if any("error" in row for row in rows) else 0


def _rows(case: Case, chip: str, mesh: Mesh | None, every: bool) -> Iterator[dict[str, Any]]:
    """One result per variant and direction."""
    kernel = "pallas_tpu" if mesh is not None else "pallas_gpu"
    other = "pallas_gpu" if mesh is not None else "pallas_tpu"
    for name, variant in case.variants.items():
        if other in name or not (kernel in name or (every and mesh is not None)):
            continue
        shapes = [jax.ShapeDtypeStruct(a.shape, a.dtype) for a in variant.arguments]
        for direction in ("forward", "forward and backward"):
            row = {
                "chip": chip,
                "operation": case.operation,
                "case": case.name,
                "variant": name,
                "direction": direction,
            }
            try:
                if direction == "forward":
                    yield row | _compiled(mesh, variant.fn, shapes, case)
                else:
                    dy = jax.eval_shape(variant.fn, *shapes)
                    yield row | _compiled(mesh, with_gradients(variant), [*shapes, dy], case)
            except (ValueError, RuntimeError) as error:  # what the compiler or the operation refuses is a result
                yield row | {"error": str(error).split("\n")[0][:300]}


def _compiled(mesh: Mesh | None, fn: Callable[..., Any], shapes: list[Any], case: Case) -> dict[str, Any]:
    if mesh is None:
        start = time.perf_counter()
        text = lower_for_h100(fn, *shapes)
        return {"seconds": time.perf_counter() - start, "triton_kernels": text.count("__gpu$xla.gpu.triton")}
    report = compile_for(mesh, fn, *shapes)
    return {
        "seconds": report.seconds,
        "flops": report.flops,
        "bytes": report.bytes_accessed,
        "least_bytes_forward": case.nbytes,
        "temporary": report.temporary,
    }


def _line(row: dict[str, Any]) -> str:
    head = f"{row['chip']:5s} {row['case']:28s} {row['variant']:28s} {row['direction']:21s}"
    if "error" in row:
        return f"{head} refused: {row['error']}"
    if "triton_kernels" in row:
        return f"{head} lowered in {row['seconds']:.1f} s, {row['triton_kernels']} Triton kernels"
    return (
        f"{head} {row['seconds']:5.1f} s {row['flops'] / 1e9:7.0f} GFLOP {row['bytes'] / 1e6:7.0f} MB "
        f"({row['bytes'] / row['least_bytes_forward']:.2f} x least forward) {row['temporary'] / 1e6:6.0f} MB temporary"
    )


if __name__ == "__main__":
    sys.exit(main())
