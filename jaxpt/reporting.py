"""A claim's result as a table on a terminal and as a page of Markdown, from the content of its claim.json."""

from __future__ import annotations

import re
import statistics
from collections.abc import Mapping
from typing import Any

COLUMNS = (  # header, key of a trial's ledger, how to print it
    ("parameters", "parameters", "{:,.0f}"),
    ("in block matrices", "parameters_of_block_matrices", "{:,.0f}"),
    ("tokens", "tokens", "{:,.0f}"),
    ("GFLOP nominal", "flops_nominal", "{:,.0f}"),
    ("GFLOP executed", "flops_executed", "{:,.0f}"),
    ("persistent MB", "bytes_persistent", "{:.2f}"),
    ("peak MB", "bytes_peak", "{:.2f}"),
    ("tokens/s", "tokens_per_second", "{:,.0f}"),
    ("MB as in papers", "bytes_as_papers_count", "{:.2f}"),
    ("seconds", "seconds", "{:.0f}"),
)
SCALE = {
    "flops_nominal": 1e9,
    "flops_executed": 1e9,
    "bytes_persistent": 1e6,
    "bytes_peak": 1e6,
    "bytes_as_papers_count": 1e6,
}

HOW_TO_READ = (
    "Lower is better. Value: mean and standard deviation over seeds, on held-out data that nothing was chosen by. All arms "
    "have the same seeds, and those with equal tokens saw the same ones in the same order; how they were tuned is below."
)

Rows = list[list[str]]


def results(claim: Mapping[str, Any]) -> Rows:
    """Header and one row an arm: the chosen rate, mean and standard deviation over seeds, and what it cost."""
    first = next(iter(claim["arms"].values()))
    known = next(iter(first["seeds"].values()))
    columns = [c for c in COLUMNS if c[1] in known]
    metric = claim["metric"].replace("_", " ")
    rows = [["arm", "tuned to", metric, "each seed", *(header for header, _, _ in columns)]]
    for name, arm in claim["arms"].items():
        seeds = list(arm["seeds"].values())
        values = [seed["value"] for seed in seeds]
        costs = [_cost(seeds, key, text) for _, key, text in columns]
        point = ", ".join(f"{key} {value:g}" for key, value in arm["point"].items())
        rows.append([name, point, _mean_and_sd(values), ", ".join(map(_number, values)), *costs])
    return rows


def tuning(claim: Mapping[str, Any]) -> Rows:
    """Header and one row a point of the grid: the tuning part's metric of every arm that ran the grid."""
    points = list(next(iter(claim["arms"].values()))["tuning"])
    arms = {name: arm for name, arm in claim["arms"].items() if list(arm["tuning"]) == points}
    return [["point", *arms], *([p, *(_number(arm["tuning"][p]) for arm in arms.values())] for p in points)]


def checks(claim: Mapping[str, Any]) -> Rows:
    """Header and one row a check."""
    header = ["check", "value", "95 % interval", "bound", "result"]
    rows = ([c["what"], _number(c["value"]), interval(c), c["bound"], c["verdict"]] for c in claim["checks"])
    return [header, *rows]


def interval(check: Mapping[str, Any]) -> str:
    """The interval of a check's value, and the effect that would mostly have been found."""
    if check["interval"] is None:
        return ""
    low, high = check["interval"]
    return f"{low:+.4f} to {high:+.4f} (detectable {check['detectable']:.4f})"


def markdown(claim: Mapping[str, Any], title: str) -> str:
    """The whole page."""
    seeds = len(next(iter(claim["arms"].values()))["seeds"])
    cost = next(iter(claim["arms"].values()))["tuning_cost"]
    environment = ", ".join(f"{key} {value}" for key, value in claim["environment"].items())
    parts = [
        f"# {title}",
        f"Paper {claim['paper']}, preset `{claim['preset']}`, {seeds} seeds: **{claim['verdict']}**.",
        f"    python -m recipes.{claim['name']} claim --preset {claim['preset']} --seeds {seeds}",
        f"took {claim['seconds']:.0f} s ({environment}).",
        "## Result",
        table(results(claim)),
        HOW_TO_READ,
        "## Checks",
        table(checks(claim)),
        *(f"- {note}" for note in claim["notes"]),
        "## Tuning",
        f"First seed, on the tuning part of the held-out documents. Every arm paid for the whole grid: {cost['runs']} "
        f"runs, {cost['tokens']:,.0f} tokens.",
        table(tuning(claim)),
        *(f"![{name}]({name})" for name in claim["figures"]),
    ]
    return "\n\n".join(parts) + "\n"


def show(claim: Mapping[str, Any], title: str) -> None:
    """The same on a terminal."""
    from rich.console import Console
    from rich.table import Table

    console = Console()
    for name, rows in ((title, results(claim)), ("tuning", tuning(claim)), ("checks", checks(claim))):
        shown = Table(*rows[0], title=name, show_lines=False)
        for row in rows[1:]:
            shown.add_row(*row)
        console.print(shown)
    for note in claim["notes"]:
        console.print(f"- {note}", highlight=False)
    console.print(f"The claim: {claim['verdict']} ({claim['seconds']:.0f} s).", style="bold")


def slug(name: str) -> str:
    """A name as part of a file name."""
    return re.sub(r"[^A-Za-z0-9.]+", "-", name).strip("-").lower()


def table(rows: Rows) -> str:
    """Rows as Markdown, the first one as header."""
    lines = ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]
    return "\n".join([lines[0], "|" + "---|" * len(rows[0]), *lines[1:]])


def _cost(seeds: list[dict[str, Any]], key: str, text: str) -> str:
    found = [float(seed[key]) for seed in seeds if key in seed]
    return text.format(statistics.fmean(found) / SCALE.get(key, 1)) if found else ""


def _mean_and_sd(values: list[float | None]) -> str:
    if any(v is None for v in values):
        return "diverged"
    known = [v for v in values if v is not None]
    return _number(statistics.fmean(known)) + (f" ± {statistics.stdev(known):.4f}" if len(known) > 1 else "")


def _number(value: float | None) -> str:
    return "diverged" if value is None else f"{value:.4f}"
