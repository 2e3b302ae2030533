"""What a run tells while it runs: metrics.jsonl, TensorBoard, a progress bar, and rates per second."""

from __future__ import annotations

import json
import os
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

Row = dict[str, Any]

# Dense bf16 peak of one chip in FLOP/s, by a part of JAX's device_kind in lower case; the first that fits.
PEAK_FLOPS = {
    "tpu v6": 918e12,
    "tpu v5 lite": 197e12,
    "tpu v5e": 197e12,
    "tpu v5": 459e12,
    "tpu v4": 275e12,
    "h200": 989e12,
    "h100 pcie": 756e12,
    "h100": 989e12,
    "a100": 312e12,
}


def peak_flops(device_kind: str) -> float | None:
    """Peak bf16 FLOP/s of a chip, or None where it is not in the table."""
    return next((peak for part, peak in PEAK_FLOPS.items() if part in device_kind.lower()), None)


class Meter:
    """Tokens and seconds per step since the last reading; compilation, evaluation and saving do not count."""

    def __init__(self) -> None:
        self._since: float | None = None
        self._steps, self._tokens, self._seconds = 0, 0.0, 0.0

    def tick(self, tokens: float) -> None:
        """An update has finished. The first after a pause only starts the clock."""
        now = time.perf_counter()
        if self._since is not None:
            self._steps, self._tokens = self._steps + 1, self._tokens + tokens
            self._seconds += now - self._since
        self._since = now

    def pause(self) -> None:
        """What happens until the next tick is no update."""
        self._since = None

    def read(self, flops: float, peak: float | None) -> Row:
        """step_seconds, tokens_per_second and, where the `peak` FLOP/s is known, mfu; then starts anew."""
        if not self._steps or not self._seconds:
            return {}
        seconds = self._seconds / self._steps
        found = {"step_seconds": seconds, "tokens_per_second": self._tokens / self._seconds}
        self._steps, self._tokens, self._seconds = 0, 0.0, 0.0
        return found | ({"mfu": flops / seconds / peak} if peak and flops else {})


STARVED_SHARE, STARVED_UPDATES = 0.2, 20


class Breakdown:
    """Where the loop's seconds go: waiting for input, events, evaluation, saving; the rest is computing."""

    NAMES = ("input", "events", "evaluation", "checkpoint")

    def __init__(self) -> None:
        self._seconds: dict[str, float] = defaultdict(float)
        self._since, self._step = time.perf_counter(), 0
        self._window: dict[str, float] | None = None  # None until compilation is behind us

    def start(self, step: int) -> None:
        """The loop begins, after update `step`."""
        self._since, self._step = time.perf_counter(), step

    @contextmanager
    def during(self, name: str) -> Iterator[None]:
        """Counts what happens inside as `name`."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self._seconds[name] += time.perf_counter() - start

    def read(self, step: int) -> Row:
        """Seconds per update since the last reading, by name; they add up to the wall clock. Then starts anew."""
        now, updates = time.perf_counter(), max(step - self._step, 1)
        compute = now - self._since - sum(self._seconds.values())
        found = {f"seconds/{name}": self._seconds[name] / updates for name in self.NAMES}
        if self._window is None:
            self._window = defaultdict(float)
        else:
            for name, x in (("updates", updates), ("input", self._seconds["input"]), ("compute", compute)):
                self._window[name] += x
        self._seconds, self._since, self._step = defaultdict(float), now, step
        return found | {"seconds/compute": compute / updates}

    def starved(self) -> str | None:
        """What to say where waiting for input took too large a share of the last updates."""
        window = self._window
        if window is None or window["updates"] < STARVED_UPDATES:
            return None
        share = window["input"] / (window["input"] + window["compute"])
        self._window = defaultdict(float)
        if share <= STARVED_SHARE:
            return None
        return (
            f"the device waits for input {share:.0%} of the time ({window['input'] / window['updates']:.3g} s of each "
            "update): give the loader more threads or prefetch, or put the records on a faster disk"
        )


class Log:
    """OUT/metrics.jsonl and OUT/tensorboard; nowhere if the folder is None.

    Args:
      step: the step the run goes on from. Rows after it, and a half-written last line, are cut off.
    """

    def __init__(self, folder: Path | None, step: int = 0, tensorboard: bool = True) -> None:
        self.rows: list[Row] = []
        self._file: Any = None
        self._board: Any = None
        if folder is None:
            return
        path = folder / "metrics.jsonl"
        self.rows = _read(path, step)
        temporary = path.with_suffix(".tmp")
        temporary.write_text("".join(json.dumps(row) + "\n" for row in self.rows))
        os.replace(temporary, path)
        self._file = path.open("a")
        if tensorboard:
            from tensorboardX import SummaryWriter

            self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1, flush_secs=10)

    def write(self, row: Row) -> None:
        """One row: "step" and numbers by name."""
        self.rows.append(row)
        if self._file is not None:
            self._file.write(json.dumps(row) + "\n")
            self._file.flush()
        for name, value in row.items() if self._board is not None else ():
            if name != "step":
                self._board.add_scalar(name, value, row["step"])

    def close(self) -> None:
        """Closes the files."""
        for file in (self._file, self._board):
            if file is not None:
                file.close()


def _read(path: Path, step: int) -> list[Row]:
    rows = []
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            row = json.loads(line)
        except json.JSONDecodeError:  # the process was killed while it wrote this line
            break
        if row["step"] <= step:
            rows.append(row)
    return rows


class Progress:
    """A progress bar on a terminal, else a line for every row.

    Args:
      bar: None to look whether standard output is a terminal.
      quiet: say nothing at all.
    """

    def __init__(self, step: int, total: int, bar: bool | None = None, quiet: bool = False) -> None:
        self._total, self._quiet = total, quiet
        self._bar: Any = None
        if not quiet and (sys.stdout.isatty() if bar is None else bar):
            from rich import progress as rich

            columns = [rich.TextColumn("{task.description}"), rich.BarColumn(), rich.MofNCompleteColumn()]
            self._bar = rich.Progress(*columns, rich.TimeElapsedColumn(), rich.TimeRemainingColumn())
            self._task = self._bar.add_task("training", total=total, completed=step)
            self._bar.start()

    def advance(self, step: int) -> None:
        """Moves the bar to `step`."""
        if self._bar is not None:
            self._bar.update(self._task, completed=step)

    def row(self, row: Row) -> None:
        """Shows a row of metrics."""
        if self._bar is not None and "loss" in row:
            rate = f"  {row['tokens_per_second']:,.0f} tokens/s" if "tokens_per_second" in row else ""
            self._bar.update(self._task, description=f"loss {row['loss']:.4f}{rate}")
            return
        numbers = "  ".join(
            f"{name} {_short(value)}" for name, value in row.items() if name != "step" and "seconds/" not in name
        )
        left = ""
        if "loss" in row and "step_seconds" in row:
            left = f"  ({(self._total - row['step']) * row['step_seconds']:.0f} s left)"
        self.say(f"step {row['step']}/{self._total}  {numbers}{left}")

    def say(self, text: str) -> None:
        """Prints a line, above the bar if there is one."""
        if self._bar is not None:
            self._bar.console.print(text)
        elif not self._quiet:
            print(text, flush=True)

    def close(self) -> None:
        """Ends the bar."""
        if self._bar is not None:
            self._bar.stop()


def _short(value: Any) -> str:
    if not isinstance(value, float):
        return str(value)
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
