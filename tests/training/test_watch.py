"""What a run tells of itself while it goes: where the time went, a trace, hunger for input, its stacks when it hangs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import warnings
from dataclasses import asdict
from pathlib import Path
from typing import Any

import jax
import pytest
import tiny_run
from tiny_run import Tiny

from jaxpt.training import metrics
from jaxpt.training.events import at, every
from jaxpt.training.lock import Lock, LockError
from jaxpt.training.metrics import Breakdown
from jaxpt.training.run import RunConfig

NAMES = ["seconds/input", "seconds/events", "seconds/evaluation", "seconds/checkpoint", "seconds/compute"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_run.write_records(tmp_path_factory.mktemp("records") / "data")


def nap(step: int, state: Any) -> Any:
    time.sleep(0.05)
    return state


def test_every_row_says_where_the_seconds_of_its_updates_went(data: Path, tmp_path: Path) -> None:
    def evaluate(params: Any) -> dict[str, float]:
        time.sleep(0.1)
        return {"x": 1.0}

    start = time.perf_counter()
    tiny = Tiny(str(tmp_path), steps=6, evaluate_every=0)
    result = tiny_run.run(tiny, data, events=[every(1, nap)], evaluate=evaluate)
    wall = time.perf_counter() - start
    rows = [row for row in result.rows if "loss" in row]
    assert all(row[name] >= 0 for row in rows for name in NAMES)
    assert all(row["seconds/events"] >= 0.05 for row in rows[1:]) and rows[0]["seconds/events"] == 0
    assert rows[3]["seconds/checkpoint"] > 0 and rows[2]["seconds/checkpoint"] == 0  # counted after update 3
    assert sum(row[name] for row in rows for name in NAMES) < wall


def test_the_parts_add_up_to_the_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(metrics.time, "perf_counter", lambda: now[0])
    breakdown = Breakdown()
    breakdown.start(4)
    for name, seconds in (("input", 1.0), ("checkpoint", 3.0)):
        with breakdown.during(name):
            now[0] += seconds
    now[0] += 6.0
    assert breakdown.read(6) == dict(zip(NAMES, [0.5, 0.0, 0.0, 1.5, 3.0], strict=True))
    now[0] += 1.0
    assert breakdown.read(8)["seconds/compute"] == 0.5


@pytest.mark.parametrize(
    ("waiting", "expected"), [(0.3, "waits for input 30% of the time (0.3 s of each"), (0.1, None)]
)
def test_hunger_is_judged_over_a_window_without_the_first_row(
    monkeypatch: pytest.MonkeyPatch, waiting: float, expected: str | None
) -> None:
    now = [0.0]
    monkeypatch.setattr(metrics.time, "perf_counter", lambda: now[0])
    breakdown, told = Breakdown(), []
    for step in range(1, 30):
        with breakdown.during("input"):
            now[0] += waiting if step > 1 else 100.0
        now[0] += 1 - waiting
        breakdown.read(step)
        told.append(breakdown.starved())
    found = [text for text in told if text]
    assert [expected in text for text in found] == [True] if expected else not found


class Slow:
    """A loader on a slow disk."""

    def __init__(self, loader: Any, seconds: float) -> None:
        self._loader, self._seconds = loader, seconds
        self.fingerprint, self.ledger = loader.fingerprint, loader.ledger

    def batches(self, start_step: int = 0) -> Any:
        for batch in self._loader.batches(start_step):
            time.sleep(self._seconds)
            yield batch


def test_a_starved_device_is_said_once(data: Path) -> None:
    loader = Slow(tiny_run.make_loader(data), 0.05)
    with pytest.warns(UserWarning, match="the device waits for input .* give the loader more threads") as found:
        tiny_run.run(Tiny(steps=50), data, loader=loader)
    assert len([w for w in found if "waits for input" in str(w.message)]) == 1


def test_a_trace_of_the_chosen_updates(data: Path, tmp_path: Path) -> None:
    tiny_run.run(Tiny(str(tmp_path), steps=8, profile="4:6"), data)
    (file,) = (tmp_path / "profile").glob("plugins/profile/*/*.xplane.pb")
    trace = jax.profiler.ProfileData.from_file(str(file))
    seen = [
        dict(event.stats)["step_num"]
        for plane in trace.planes
        for line in plane.lines
        for event in line.events
        if event.name == "train"
    ]
    assert sorted(seen) == [4, 5, 6]


def test_a_run_that_ends_inside_the_window_leaves_a_trace_and_a_resumed_one_traces_the_rest(
    data: Path, tmp_path: Path
) -> None:
    with pytest.raises(KeyError):
        tiny_run.run(Tiny(str(tmp_path), profile="4:8"), data, events=[at(5, lambda t, s: {}[t])])
    assert len(list((tmp_path / "profile").glob("plugins/profile/*/*.xplane.pb"))) == 1
    time.sleep(1.1)  # the folder of a trace is named by the second
    assert tiny_run.run(Tiny(str(tmp_path), profile="2:8"), data).resumed_from == 3
    assert len(list((tmp_path / "profile").glob("plugins/profile/*/*.xplane.pb"))) == 2


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"profile": "4"}, "profile must be START:END, two updates counted from 1, for example 10:12; got '4'"),
        ({"profile": "6:4"}, "got '6:4'"),
        ({"profile": "0:4"}, "got '0:4'"),
        ({"profile": "4:11"}, "profile='4:11' must end by update 10"),
        ({"profile": "4:6", "out": None}, "needs a folder out"),
        ({"watchdog": -1.0}, "watchdog must be seconds, 0 or more, got -1.0"),
        ({"peer_timeout": 0.0}, "peer_timeout must be seconds above 0 and at most 90, got 0.0"),
    ],
)
def test_wrong_settings_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RunConfig(**({"steps": 10, "out": "runs/a"} | fields))


def test_a_run_that_hangs_prints_its_stacks_and_ends(data: Path, tmp_path: Path) -> None:
    tiny = Tiny(str(tmp_path / "run"), watchdog=10, hang_at=5, slow=0.01)
    command = [sys.executable, tiny_run.__file__, str(data), json.dumps(asdict(tiny))]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 75, done.stderr
    assert "jaxpt: this process all threads:" in done.stderr and "in hang" in done.stderr
    assert "(watchdog): after step 5, running events. Checkpoint 3 in" in done.stderr
    assert "is complete: type the same command, and the run goes on from there" in done.stderr
    assert tiny_run.run(Tiny(str(tmp_path / "run")), data).resumed_from == 3  # the lock it left is stale


def test_a_watchdog_leaves_alone_what_moves(data: Path) -> None:
    result = tiny_run.run(Tiny(steps=6, watchdog=2), data, events=[every(1, lambda t, s: (time.sleep(0.6), s)[1])])
    assert not result.interrupted  # 3.6 s in all


def test_a_second_run_on_a_folder_is_refused_and_the_first_loses_nothing(data: Path, tmp_path: Path) -> None:
    def second(step: int, state: Any) -> Any:
        with pytest.raises(LockError, match=rf"{tmp_path} is in use by process {os.getpid()} on host .*--out"):
            tiny_run.run(Tiny(str(tmp_path)), data)
        return state

    result = tiny_run.run(Tiny(str(tmp_path)), data, events=[at(4, second)])
    assert [row["step"] for row in result.rows] == list(range(1, 13))
    Lock(tmp_path).release()


def test_a_slow_disk_delays_nothing_but_the_next_save(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While a checkpoint is written slowly, updates go on; the next save waits for it, and the rows say so."""
    whole = tiny_run.run(Tiny(str(tmp_path / "quick"), steps=9), data)
    rename = os.rename

    def slow_rename(source: Any, target: Any, **kwargs: Any) -> None:
        if "checkpoints" in str(source):
            time.sleep(1.0)
        rename(source, target, **kwargs)

    monkeypatch.setattr(os, "rename", slow_rename)
    seen: dict[int, list[str]] = {}

    def look(step: int, state: Any) -> Any:
        seen[step] = [path.name for path in (tmp_path / "slow/checkpoints").iterdir() if path.name.isdigit()]
        return state

    result = tiny_run.run(Tiny(str(tmp_path / "slow"), steps=9, watchdog=30), data, events=[every(1, look)])
    assert seen[5] == []  # two updates after the save of 3 began, it is still being written
    waits = {row["step"]: row["seconds/checkpoint"] for row in result.rows}
    assert waits[7] > 0.3 and waits[8] < 0.3  # the save after update 6 waited for that of 3
    assert result.curve == whole.curve
    assert sorted(path.name for path in (tmp_path / "slow/checkpoints").iterdir() if path.name.isdigit()) == ["6", "9"]


@pytest.mark.parametrize("damage", ["cut", "gone"])
def test_records_that_break_under_a_run_end_it_with_their_name_and_it_goes_on_when_they_are_back(
    data: Path, tmp_path: Path, damage: str
) -> None:
    whole = tiny_run.run(Tiny(), data)
    files = list((data / "train").glob("*.array_record"))
    contents = {path: path.read_bytes() for path in files}

    def strike(step: int, state: Any) -> Any:
        for path in files:
            if damage == "cut":
                os.truncate(path, path.stat().st_size // 2)
                tiny_run.reopen(loader)
            else:
                path.unlink()
        return state

    out = Tiny(str(tmp_path))
    try:
        loader = tiny_run.make_loader(data, prefetch=1)
        if damage == "cut":
            with pytest.raises(ValueError, match=r"record file .*\.array_record is truncated or corrupt") as found:
                tiny_run.run(out, data, loader=loader, events=[at(4, strike)])
            assert "is saved; the same command goes on from there" in found.value.__notes__[-1]
        else:  # an open file outlives its name: the run goes on, and the next one names what is missing
            with pytest.raises(KeyError):
                tiny_run.run(out, data, loader=loader, events=[at(4, strike), at(8, lambda t, s: {}[t])])
            with pytest.raises(ValueError, match=r"record file .*\.array_record is missing; prepare the data again"):
                tiny_run.run(out, data)
    finally:
        for path, content in contents.items():
            path.write_bytes(content)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        result = tiny_run.run(out, data)
    assert result.resumed_from is not None and result.resumed_from >= 4 and result.curve == whole.curve
