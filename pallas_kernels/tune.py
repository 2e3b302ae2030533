"""Searches tile sizes for one operation and writes the best into the table.

python -m pallas_kernels.tune OPERATION [--size square-2048 ...] [--tokens 8192] [--compile-for v5e] [--out FILE]

On an accelerator every candidate is timed (forward and backward, median of several rounds in turns) and the fastest is kept,
with source "timed". With --compile-for CHIP nothing is run: candidates are compiled for that TPU, those it refuses are
dropped, and of the others the one that moves the fewest bytes is kept, with source "compiled".
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import sys
from pathlib import Path
from typing import Any

import jax

from jaxpt.core.files import write_text
from jaxpt.core.names import nearest_error
from jaxpt.sharding import platform
from pallas_kernels import aot
from pallas_kernels.bench import prepare
from pallas_kernels.cases import Case, cases, with_gradients
from pallas_kernels.common import chips, tuning
from pallas_kernels.common.dispatch import KERNEL, OPERATIONS

# per operation and platform: values to try for each size
SPACES: dict[tuple[str, str], dict[str, tuple[int, ...]]] = {
    ("sparse_low_rank", "tpu"): {
        "tokens": (256, 512, 1024),
        "panel": (256, 512, 1024),
        "chunk": (512,),
        "g_tile": (256, 512, 1024),
        "g_tokens": (512, 1024),
    },
    ("monarch", "tpu"): {
        "tokens": (256, 512, 1024),
        "backward_tokens": (128, 256, 512),
        "groups": (1,),
        "backward_groups": (1, 2),
    },
    ("block_sparse", "tpu"): {"tokens": (512, 1024, 2048), "gradient_tokens": (128, 256, 512)},
    ("monarch", "gpu"): {"tokens": (32, 64, 128), "columns": (32, 64, 128), "warps": (4, 8), "stages": (2, 3)},
    ("block_sparse", "gpu"): {"tokens": (64, 128, 256), "warps": (4, 8), "stages": (2, 3, 4)},
}


def candidates(operation: str, place: str) -> list[dict[str, int]]:
    """Every combination of sizes."""
    if (operation, place) not in SPACES:
        raise ValueError(f"there is no kernel of {operation} for {place}; there are {sorted(SPACES)}")
    space = SPACES[operation, place]
    return [dict(zip(space, values, strict=True)) for values in itertools.product(*space.values())]


def compiled_cost(case: Case, mesh: Any, sizes: dict[str, int]) -> float:
    """Bytes that the largest program moves, or infinity where the compiler refuses it."""
    name = next(n for n in case.variants if "pallas_tpu" in n)
    variant = case.variants[name]
    shapes = [jax.ShapeDtypeStruct(a.shape, a.dtype) for a in variant.arguments]
    shapes.append(jax.eval_shape(variant.fn, *shapes))
    try:
        with tuning.use(case.operation, sizes):
            return aot.compile_for(mesh, with_gradients(variant), *shapes).bytes_accessed
    except (ValueError, RuntimeError):
        return float("inf")


def timed_costs(case: Case, kernel: str, tried: list[dict[str, int]], rounds: int = 7) -> list[float]:
    """Seconds of forward and backward per candidate, in turns; infinity where it cannot run."""
    variant = case.variants[next(n for n in case.variants if kernel in n)]
    runners = []
    for sizes in tried:
        try:
            with tuning.use(case.operation, sizes):
                runners.append(prepare(variant, True))
        except (ValueError, RuntimeError) as error:
            print(f"{sizes}: {str(error).splitlines()[0][:100]}", flush=True)
            runners.append(lambda: float("inf"))
    rounds_of = [[run() for run in runners] for _ in range(rounds)]
    return [statistics.median(column) for column in zip(*rounds_of, strict=True)]


def main(arguments: list[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("operation")
    parser.add_argument("--size", nargs="*", default=["square-1024", "square-2048", "square-4096"])
    parser.add_argument("--tokens", type=int, default=8192)
    parser.add_argument("--compile-for")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("tuned.json"))
    args = parser.parse_args(arguments)
    if args.operation not in OPERATIONS:
        raise nearest_error("operation", args.operation, OPERATIONS)
    place = "tpu" if args.compile_for else platform()
    chip = chips.CHIPS[args.compile_for] if args.compile_for else chips.current()
    if place == "cpu" or chip is None:
        raise ValueError(f"no times from {jax.devices()[0].device_kind}: run on a TPU or GPU, or give --compile-for")
    entries = []
    for case in (c for size in args.size for c in cases(args.operation, size, args.tokens)):
        tried = candidates(args.operation, place)
        if args.compile_for:
            mesh = aot.tpu_mesh(args.compile_for)
            costs = [compiled_cost(case, mesh, sizes) for sizes in tried]
        else:
            costs = timed_costs(case, KERNEL[place], tried)
        best = min(range(len(tried)), key=costs.__getitem__)
        if costs[best] == float("inf"):
            print(f"{case.name}: no candidate can run", flush=True)
            continue
        out, inp = case.variants["dense"].arguments[1].shape
        print(f"{case.name}: {tried[best]} {costs[best]:.3e}", flush=True)
        source = "compiled" if args.compile_for else "timed"
        entries.append(entry(args.operation, chip.name, {"in": inp, "out": out}, tried[best], source))
    write_text(args.out, merge(tuning.table(), entries))
    return 0


def entry(operation: str, chip: str, shape: dict[str, int], sizes: dict[str, int], source: str) -> dict[str, Any]:
    """One entry of the table."""
    return {"operation": operation, "chip": chip, "shape": shape, "sizes": sizes, "source": source}


def merge(table: list[dict[str, Any]], entries: list[dict[str, Any]]) -> str:
    """The table with the entries in place of those for the same operation, chip and shape, as text, one entry a line."""
    same = ("operation", "chip", "shape")
    kept = [t for t in table if not any(all(t[k] == e[k] for k in same) for e in entries)]
    return "[\n" + ",\n".join(json.dumps(e) for e in [*kept, *entries]) + "\n]\n"


if __name__ == "__main__":
    sys.exit(main())
