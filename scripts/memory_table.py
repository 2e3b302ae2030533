"""Bytes of every arm of the memory benchmark at the papers' sizes: the table of docs/memory.md.

    python scripts/memory_table.py                                      # by the memory model, in seconds
    python scripts/memory_table.py --compile v5e:2x4 --size 1b          # and by the TPU compiler, minutes an arm
    python scripts/memory_table.py --compile v5e:2x4 --size 1b --arm galore fira
    python scripts/memory_table.py --layerwise v5e:1x1 --size 1b --arm "full rank" "adam 8 bit"

Weights and optimizer are exact: shapes and formats of the state. "Step" adds gradients, activations and workspace, one
sequence a microbatch and block inputs alone kept, on one chip; with --compile it is the compiler's, per chip of the slice.
--layerwise compiles the ordinary step and the one that updates each layer in the backward pass, 16 sequences a chip.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import jax
from jax.sharding import Mesh

from jaxpt import reporting
from jaxpt.core import spec as specs
from jaxpt.models import decoder
from jaxpt.sharding import aot, topology
from jaxpt.sharding.report import Report
from jaxpt.training import memory
from jaxpt.training.layerwise import make_layerwise_step
from jaxpt.training.state import TrainState
from jaxpt.training.step import Step

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # recipes are run from the repository, not installed
from recipes import memory_benchmark

# GB of weights and optimizer in the papers' own accounts, by size: GaLore's main table (arXiv 2403.03507) and SLTrain's
# (arXiv 2406.02214). They count by formulas, 2 bytes a number, 8 an index of SLTrain.
PAPERS = {
    "full rank": {"60m": 0.36, "130m": 0.76, "350m": 2.06, "1b": 7.80},
    "galore": {"60m": 0.24, "130m": 0.52, "350m": 1.22, "1b": 4.38},
    "low rank": {"60m": 0.26, "130m": 0.54, "350m": 1.08, "1b": 3.57},
    "relora": {"60m": 0.36, "130m": 0.80, "350m": 1.76, "1b": 6.17},
    "sltrain": {"60m": 0.27, "130m": 0.60, "350m": 1.24, "1b": 4.16},
}


def rows(size: str, where: topology.Topology | None, arms: list[str]) -> list[list[str]]:
    """One row an arm."""
    setting = memory_benchmark.PRESETS[f"paper_{size}"]
    data = setting.data
    found = []
    for arm in arms:
        cfg = memory_benchmark.ARMS[arm](setting)
        spec, optimizer = decoder.spec(cfg.model), cfg.optimizer.make(cfg.run.steps)
        size_of = memory.estimate(
            spec, optimizer, cfg.model, data.batch_size, data.sequence_length, accumulate=data.batch_size
        )  # fmt: skip
        paper = PAPERS.get(arm, {}).get(size)
        row = [arm, f"{specs.count(spec) / 1e6:,.1f}", _gb(size_of.parameters + size_of.fixed), _gb(size_of.optimizer),
               _gb(size_of.passed_in), "" if paper is None else f"{paper:.2f}", _gb(size_of.total)]  # fmt: skip
        if where is not None:
            job = aot.Job(cfg.model, optimizer, batch=data.batch_size, length=data.sequence_length,
                          accumulate=data.batch_size // (16 * where.chips), mesh=cfg.mesh, name=arm)  # fmt: skip
            report = aot.compile_job(job, where)
            row.append(_gib(report))
            print(f"{arm}: {row[-1]} GiB on {where.name}", file=sys.stderr, flush=True)
        found.append(row)
    return found


def layerwise_rows(size: str, where: topology.Topology, arms: list[str]) -> list[list[str]]:
    """One row an arm: GiB a chip of both steps, as compiled, neither with microbatches."""
    setting = memory_benchmark.PRESETS[f"paper_{size}"]
    found = []
    for arm in arms:
        cfg = memory_benchmark.ARMS[arm](setting)
        optimizer, batch, length = cfg.optimizer.make(cfg.run.steps), 16 * where.chips, setting.data.sequence_length
        job = aot.Job(cfg.model, optimizer, batch=batch, length=length, mesh=cfg.mesh)
        shapes = {name: jax.ShapeDtypeStruct((batch, length), dtype) for name, dtype in job.arrays.items()}

        def build(mesh: Mesh, shardings: TrainState, job: aot.Job = job) -> Step:
            return make_layerwise_step(job.cfg, job.optimizer, mesh=mesh, shardings=shardings)

        reports = [
            aot.compile_job(job, where),
            aot.compile_step(build, decoder.spec(cfg.model), optimizer, shapes, where, cfg.mesh),
        ]
        found.append([arm, *(_gib(report) for report in reports)])
        print(" ".join(found[-1]), file=sys.stderr, flush=True)
    return found


def _gib(report: Report) -> str:
    return f"{report.memory.total / 2**30:.2f} {'' if report.fits else '(refused)'}".strip()


def _gb(nbytes: float) -> str:
    return f"{nbytes / 1e9:.2f}"


def main() -> int:
    """Prints the table of each size."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--size", nargs="+", default=["60m", "1b", "7b"])
    parser.add_argument("--compile", metavar="TOPOLOGY", help="also compile every arm for this slice")
    parser.add_argument(
        "--layerwise", metavar="TOPOLOGY", help="compile both kinds of steps for this slice, no table else"
    )
    arms = list(memory_benchmark.ARMS)
    parser.add_argument("--arm", nargs="+", default=arms, choices=arms, help="these arms alone")
    options = parser.parse_args()
    where = topology.parse(options.compile) if options.compile else None
    if options.layerwise:
        for size in options.size:
            header = ["arm", "all gradients", "layer by layer"]
            rows_of = layerwise_rows(size, topology.parse(options.layerwise), options.arm)
            print(f"\n{size}, GiB a chip of {options.layerwise}\n\n{reporting.table([header, *rows_of])}")
        return 0
    header = ["arm", "M parameters", "weights GB", "optimizer GB", "both GB", "in the paper GB", "step GB, one chip"]
    if where:
        header.append(f"step GiB, {where.name}")
    for size in options.size:
        print(f"\n{size}\n")
        print(reporting.table([header, *rows(size, where, options.arm)]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
