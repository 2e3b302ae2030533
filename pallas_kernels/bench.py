"""Checks and times every operation on the accelerator at hand, against dense `x @ W` and against XLA, in one run.

python -m pallas_kernels.bench [--operation NAME ...] [--size square-1024 square-2048 square-4096] [--tokens 8192]
                               [--rounds 20] [--check-only] [--json FILE]

First every variant's value and gradients are compared with the float32 reference; a variant that differs is not timed. Then
all variants of a case take turns, round by round, forward alone and forward with backward, bfloat16, on inputs that rotate;
the median is printed with operations and bytes per second against the chip's roofline. On a CPU the kernels are interpreted,
and are not timed.
"""

from __future__ import annotations

import argparse
import datetime
import functools
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxpt.core.files import write_json
from jaxpt.sharding import platform
from pallas_kernels.cases import Case, Variant, cases, with_gradients
from pallas_kernels.common import chips
from pallas_kernels.common.dispatch import KERNEL, OPERATIONS

CALLS = 10  # per timing, so that the time to start one is hidden behind the one before
ROTATION = 4  # input sets, so that nothing stays in a cache from one call to the next
TOLERANCE = 2e-2  # bfloat16 against float32


def main(arguments: list[str] | None = None) -> int:
    """The command line; 1 where a variant is wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--operation", nargs="*", default=list(OPERATIONS))
    parser.add_argument("--size", nargs="*", default=["square-1024", "square-2048", "square-4096"])
    parser.add_argument("--tokens", type=int, default=8192)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--check-only", action="store_true")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args(arguments)
    device = jax.devices()[0]
    report: dict[str, Any] = {
        "device": device.device_kind,
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "jax": jax.__version__,
        "tokens": args.tokens,
        "rows": [],
    }
    print(f"{device.device_kind}, jax {jax.__version__}, {args.tokens} tokens, bfloat16", flush=True)
    for operation in args.operation:
        for size in args.size:
            for case in cases(operation, size, args.tokens):
                for row in measure(case, args.rounds, args.check_only):
                    report["rows"].append(row)
                    print(line(row), flush=True)
                    if args.json:
                        write_json(args.json, report)
    return int(any("wrong" in row for row in report["rows"]))


def refusal(name: str) -> str | None:
    """Why a variant is not run here, or None."""
    here = platform()
    if "pallas" not in name:
        return None
    if here == "cpu":
        return "interpreted on a CPU, which says nothing of its speed"
    return None if KERNEL[here] in name else f"not for a {here}"


def measure(case: Case, rounds: int, check_only: bool) -> list[dict[str, Any]]:
    """One row per variant and direction."""
    rows, runners = [], {}
    for name, variant in case.variants.items():
        row: dict[str, Any] = {"operation": case.operation, "case": case.name, "variant": name}
        reason = refusal(name)
        if reason is None:
            try:
                error = check(case, name)
                if error > TOLERANCE:
                    row["wrong"] = f"differs from the reference by {error:.1e} of the largest entry"
                elif check_only:
                    row["error"] = error
                else:
                    runners[name] = (prepare(variant, False), prepare(variant, True))
                    continue
            except ValueError as refused:
                reason = str(refused)
        rows.append(row | ({"refused": reason} if reason else {}))
    for backward in (False, True):
        direction = "forward and backward" if backward else "forward"
        times: dict[str, list[float]] = {name: [] for name in runners}
        for _ in range(rounds):
            for name, pair in runners.items():
                times[name].append(pair[backward]())
        for name, seconds in times.items():
            rows.append(result(case, name, direction, statistics.median(seconds), times["dense"]))
    return rows


def result(case: Case, name: str, direction: str, seconds: float, dense: list[float]) -> dict[str, Any]:
    """A timing with its rates: of the operations and bytes that the form needs, not of what was executed."""
    factor = 1 if direction == "forward" else 3
    flops = factor * (case.flops if name != "dense" else _dense_flops(case))
    nbytes = factor * (case.nbytes if name != "dense" else sum(a.nbytes for a in case.variants["dense"].arguments))
    row = {
        "operation": case.operation,
        "case": case.name,
        "variant": name,
        "direction": direction,
        "seconds": seconds,
        "flops_per_second": flops / seconds,
        "bytes_per_second": nbytes / seconds,
        "speed_against_dense": statistics.median(dense) / seconds,
    }
    chip = chips.current()
    if chip is not None:
        row["of_roofline"] = max(flops / chip.flops, nbytes / chip.bandwidth) / seconds
    return row


def prepare(variant: Variant, backward: bool) -> Callable[[], float]:
    """A function that runs the variant CALLS times and gives the seconds of one."""
    rng = np.random.default_rng(0)
    arguments = tuple(a.array(rng) for a in variant.arguments)
    rotated = [tuple(a + 0 if i < variant.trained else a for i, a in enumerate(arguments)) for _ in range(ROTATION)]
    if backward:
        dy = jax.eval_shape(variant.fn, *arguments)
        rotated = [(*a, jnp.asarray(rng.normal(size=dy.shape), dy.dtype)) for a in rotated]
    run = jax.jit(with_gradients(variant) if backward else variant.fn)
    jax.block_until_ready(run(*rotated[0]))

    def once() -> float:
        start = time.perf_counter()
        out = [run(*rotated[i % ROTATION]) for i in range(CALLS)]
        jax.block_until_ready(out)
        return (time.perf_counter() - start) / CALLS

    return once


def check(case: Case, name: str, tokens: int = 512) -> float:
    """The largest difference of value and gradients from the same function in float32 by its reference, as a share of the
    largest entry of each, on fewer tokens."""
    variant = case.variants[name]
    rng = np.random.default_rng(1)
    x, *rest = (a.array(rng) for a in variant.arguments)
    arguments = (x[:tokens], *rest)
    dy = jax.eval_shape(variant.fn, *arguments)
    dy = jnp.asarray(rng.normal(size=dy.shape), dy.dtype)
    wide = [t.astype(jnp.float32) if jnp.issubdtype(t.dtype, jnp.floating) else t for t in (*arguments, dy)]
    reference = Variant(reference_of(variant.fn), variant.arguments, variant.trained)
    with jax.default_matmul_precision("highest"):
        expected = jax.jit(with_gradients(reference))(*wide)
    found = jax.jit(with_gradients(variant))(*arguments, dy)
    errors = []
    for one, other in zip(found, expected, strict=True):
        difference = jnp.abs(one.astype(jnp.float32) - other).max(initial=0)
        errors.append(float(difference / jnp.maximum(jnp.abs(other).max(initial=0), 1e-30)))
    return max(errors)


def reference_of(fn: Callable[..., Any]) -> Callable[..., Any]:
    """The reference of a public function with its implementation bound; of any other function, itself."""
    bound = "implementation" in getattr(fn, "keywords", {})
    return functools.partial(fn, implementation="reference") if bound else fn


def line(row: dict[str, Any]) -> str:
    """A row as text."""
    head = f"{row['case']:28s} {row['variant']:28s}"
    for word in ("refused", "wrong"):
        if word in row:
            return f"{head} {word}: {row[word]}"
    if "seconds" not in row:
        return f"{head} right to {row['error']:.1e}"
    roof = f" {row['of_roofline']:6.1%} of roofline" if "of_roofline" in row else ""
    return (
        f"{head} {row['direction']:21s} {row['seconds'] * 1e3:8.3f} ms {row['flops_per_second'] / 1e12:7.1f} TFLOP/s "
        f"{row['bytes_per_second'] / 1e9:7.0f} GB/s {row['speed_against_dense']:5.2f} x dense{roof}"
    )


def _dense_flops(case: Case) -> float:
    x, w = case.variants["dense"].arguments
    return 2.0 * x.shape[0] * w.shape[0] * w.shape[1]


if __name__ == "__main__":
    sys.exit(main())
