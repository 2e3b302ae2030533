"""Several real processes train as one does; what happens to one ends all of them soon, says why, and loses nothing."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny_run
from tiny_run import Tiny

from jaxpt.training.checkpoint import read_meta

PROGRAM = Path(tiny_run.__file__).with_name("processes.py")
STEPS, AGAIN = 12, 75
Launch = Callable[..., "Outcome"]


@dataclasses.dataclass(frozen=True)
class Outcome:
    """Of each process: exit code, seconds after the start of all, standard error, and its report."""

    codes: list[int]
    seconds: list[float]
    errors: list[str]
    reports: list[dict[str, Any]]

    def __str__(self) -> str:
        return f"{self.codes} {self.seconds}\n" + "\n====\n".join(error[-3000:] for error in self.errors)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_run.write_records(tmp_path_factory.mktemp("records") / "data")


@pytest.fixture(scope="module")
def launch(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Launch:
    """Runs processes, DEVICES devices each: all the same, but for what `special` changes for one of them."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}

    def start(tiny: Tiny, count: int, devices: int, special: dict[int, dict[str, Any]] | None = None) -> Outcome:
        folder = tmp_path_factory.mktemp("processes")
        runs = [dataclasses.asdict(tiny) | (special or {}).get(i, {}) for i in range(count)]
        command = [sys.executable, str(PROGRAM), str(data), str(folder), json.dumps(runs), str(devices)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=500, check=False)
        assert done.returncode == 0, done.stderr
        found = json.loads(done.stdout.splitlines()[-1])
        output = [(folder / f"{i}.out").read_text().splitlines() for i in range(count)]
        return Outcome(
            [found["codes"][str(i)] for i in range(count)],
            [found["seconds"][str(i)] for i in range(count)],
            [(folder / f"{i}.err").read_text() for i in range(count)],
            [json.loads(lines[-1]) if lines and lines[-1].startswith("{") else {} for lines in output],
        )

    return start


@pytest.fixture(scope="module")
def alone(data: Path) -> tuple[list[float], dict[str, float]]:
    """Losses and last evaluation of one process on one device."""
    result = tiny_run.run(Tiny(evaluate_every=6), data)
    assert result.evaluation is not None
    return [loss for _, loss in result.curve], result.evaluation


@pytest.fixture(scope="module")
def four(launch: Launch, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Outcome]:
    """The folder of an uninterrupted run on four processes, a device each."""
    out = tmp_path_factory.mktemp("four") / "run"
    outcome = launch(Tiny(str(out), mesh=(2, 2, 1), evaluate_every=6), 4, 1)
    assert outcome.codes == [0] * 4, outcome
    return out, outcome


@pytest.fixture(scope="module")
def killed(launch: Launch, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Outcome]:
    """The same run when process 3 was killed after update 8, with checkpoint 6 on disk."""
    out = tmp_path_factory.mktemp("killed") / "run"
    tiny = Tiny(str(out), mesh=(2, 2, 1), evaluate_every=6, peer_timeout=6)
    return out, launch(tiny, 4, 1, {3: {"die_at": 8}})


def rows(out: Path) -> list[dict[str, Any]]:
    speed = ("step_seconds", "tokens_per_second", "mfu", "seconds/")
    lines = (out / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if not k.startswith(speed)} for line in lines]


def losses(out: Path) -> list[float]:
    return [row["loss"] for row in rows(out) if "loss" in row]


def steps(out: Path) -> list[int]:
    return sorted(int(path.name) for path in (out / "checkpoints").iterdir() if path.name.isdigit())


def test_four_processes_have_the_losses_of_one(four: tuple[Path, Outcome], alone: Any) -> None:
    out, outcome = four
    expected, evaluation = alone
    assert losses(out) == pytest.approx(expected, rel=1e-5) and steps(out) == [9, 12]
    for report in outcome.reports:
        assert report["evaluation"] == pytest.approx(evaluation, rel=1e-5)
        assert [loss for _, loss in report["curve"]] == losses(out)
    assert not (out / "lock.json").exists()


def test_when_one_of_four_is_killed_the_others_end_soon_and_a_restart_goes_on_exactly(
    launch: Launch, four: tuple[Path, Outcome], killed: tuple[Path, Outcome], tmp_path: Path
) -> None:
    out, outcome = killed
    assert outcome.codes == [AGAIN, AGAIN, AGAIN, -signal.SIGKILL], outcome
    assert max(outcome.seconds) - outcome.seconds[3] < 45, outcome
    for index, error in enumerate(outcome.errors[:3]):
        assert f"jaxpt: process {index} of 4 stops. process 3 (host " in error, error
        assert "has given no sign of life for" in error and "last heard of after step" in error
        assert f"Checkpoint 6 in {out} is complete: start all processes again with the same command" in error
    shutil.copytree(out, tmp_path / "run")
    outcome = launch(Tiny(str(tmp_path / "run"), mesh=(2, 2, 1), evaluate_every=6), 4, 1)
    assert outcome.codes == [0] * 4, outcome
    assert [report["resumed_from"] for report in outcome.reports] == [6] * 4
    assert rows(tmp_path / "run") == rows(four[0])
    one, two = (read_meta(folder / "checkpoints" / "12") for folder in (tmp_path / "run", four[0]))
    assert one["fingerprints"] == two["fingerprints"] and one["ledger"] == two["ledger"]


def test_two_processes_go_on_from_four_and_agree_on_what_is_damaged(
    launch: Launch, killed: tuple[Path, Outcome], alone: Any, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    shutil.copytree(killed[0], out)
    parts = [path for path in (out / "checkpoints/6/params").glob("ocdbt.process_3/d/*") if path.is_file()]
    victim = max(parts, key=lambda path: path.stat().st_size)
    content = bytearray(victim.read_bytes())
    content[len(content) // 2] ^= 4
    victim.write_bytes(content)
    outcome = launch(Tiny(str(out), mesh=(1, 4, 1), evaluate_every=6), 2, 2)
    assert outcome.codes == [0, 0], outcome
    assert [report["resumed_from"] for report in outcome.reports] == [3, 3]
    assert (out / "checkpoints/broken.6.0").is_dir()
    assert losses(out) == pytest.approx(alone[0], rel=1e-5)
    assert outcome.reports[1]["evaluation"] == pytest.approx(alone[1], rel=1e-5)


def test_a_signal_to_all_saves_at_one_step_and_one_process_goes_on(
    launch: Launch, data: Path, alone: Any, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    outcome = launch(Tiny(str(out), mesh=(1, 1, 4), slow=0.3, term_at=5), 2, 2)
    assert outcome.codes == [0, 0], outcome
    assert [report["interrupted"] for report in outcome.reports] == [True, True], outcome
    last = outcome.reports[0]["curve"][-1][0]
    assert 5 <= last < STEPS and steps(out)[-1] == last
    result = tiny_run.run(Tiny(str(out)), data)
    assert result.resumed_from == last
    assert losses(out) == pytest.approx(alone[0], rel=1e-5)


def test_a_hung_process_is_found_and_its_stack_shown(launch: Launch, tmp_path: Path) -> None:
    tiny = Tiny(str(tmp_path / "run"), mesh=(4, 1, 1), watchdog=12, peer_timeout=30, slow=0.01)
    outcome = launch(tiny, 2, 2, {1: {"hang_at": 5}})
    assert outcome.codes == [AGAIN, AGAIN], outcome
    for error in outcome.errors:
        assert "no progress for" in error and "Furthest behind is process 1" in error, outcome
        assert "after step 5, running events" in error and "Checkpoint 3 in" in error
    assert "in hang" in outcome.errors[1] and "all threads:" in outcome.errors[0]


def test_an_error_of_one_process_is_told_by_all(launch: Launch, data: Path, tmp_path: Path) -> None:
    own = tmp_path / "data"
    shutil.copytree(data, own)
    tiny = Tiny(str(tmp_path / "run"), mesh=(4, 1, 1), peer_timeout=10)
    outcome = launch(tiny, 2, 2, {1: {"data": str(own), "cut_at": 5}})
    assert outcome.codes == [1, 1], outcome
    for error in outcome.errors:
        assert "RecordError: record file" in error and "is truncated or corrupt" in error, outcome
        assert f" in {tmp_path / 'run'} is complete: start all processes again with the same command" in error
    assert "jaxpt: process 0 of 2 stops. process 1 (host" in outcome.errors[0]


def test_when_the_coordinator_is_killed_while_saving_the_checkpoint_before_is_good(
    launch: Launch, data: Path, alone: Any, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    outcome = launch(Tiny(str(out), mesh=(2, 2, 1), peer_timeout=10), 2, 2, {0: {"die_saving": 6}})
    assert outcome.codes == [-signal.SIGKILL, AGAIN], outcome
    assert "jaxpt: process 1 of 2 stops. Process 0 (127.0.0.1:" in outcome.errors[1], outcome
    assert "is gone: it was killed, or its machine is gone. Checkpoint 3 in" in outcome.errors[1]
    assert tiny_run.run(Tiny(str(out)), data).resumed_from == 3
    assert losses(out) == pytest.approx(alone[0], rel=1e-5)
