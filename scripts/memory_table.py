"""Bytes of every arm of the memory benchmark at the papers' sizes: the table of docs/memory.md.

    python scripts/memory_table.py                                      # by the memory model, in seconds
    python scripts/memory_table.py --compile v5e:2x4 --size 1b          # and by the TPU compiler, minutes an arm
    python scripts/memory_table.py --compile v5e:2x4 --size 1b --arm galore fira

Weights and optimizer are exact: shapes and formats of the state. "Step" adds gradients, activations and workspace, one
sequence a microbatch and block inputs alone kept, on one chip; with --compile it is the compiler's, per chip of the slice.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from jaxpt import reporting
from jaxpt.core import spec as specs
from jaxpt.models import decoder
from jaxpt.sharding import aot, topology
from jaxpt.training import memory

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
            row.append(f"{report.memory.total / 2**30:.2f} {'' if report.fits else '(refused)'}".strip())
            print(f"{arm}: {row[-1]} GiB on {where.name}", file=sys.stderr, flush=True)
        found.append(row)
    return found


def _gb(nbytes: float) -> str:
    return f"{nbytes / 1e9:.2f}"


def main() -> int:
    """Prints the table of each size."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--size", nargs="+", default=["60m", "1b", "7b"])
    parser.add_argument("--compile", metavar="TOPOLOGY", help="also compile every arm for this slice")
    arms = list(memory_benchmark.ARMS)
    parser.add_argument("--arm", nargs="+", default=arms, choices=arms, help="these arms alone")
    options = parser.parse_args()
    where = topology.parse(options.compile) if options.compile else None
    header = ["arm", "M parameters", "weights GB", "optimizer GB", "both GB", "in the paper GB", "step GB, one chip"]
    if where:
        header.append(f"step GiB, {where.name}")
    for size in options.size:
        print(f"\n{size}\n")
        print(reporting.table([header, *rows(size, where, options.arm)]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
