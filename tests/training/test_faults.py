"""Whatever kills a run, and when: typed again, it does what an uninterrupted one does, bit for bit."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_run
from tiny_run import Poisoned, Tiny

from jaxpt.training import events
from jaxpt.training.checkpoint import CheckpointError
from jaxpt.training.run import NonFiniteError

SPEED = ("step_seconds", "tokens_per_second", "mfu", "seconds/")
STEPS = 12


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_run.write_records(tmp_path_factory.mktemp("records") / "data")


@pytest.fixture(scope="module")
def program(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[Tiny], subprocess.Popen[str]]:
    """Starts a tiny run as a process of its own; compiled programs are shared between these processes."""
    cache = {
        "JAX_COMPILATION_CACHE_DIR": str(tmp_path_factory.mktemp("compiled")),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }

    def start(tiny: Tiny) -> subprocess.Popen[str]:
        command = [sys.executable, tiny_run.__file__, str(data), json.dumps(asdict(tiny))]
        return subprocess.Popen(command, env=os.environ | cache, text=True, stdout=-1, stderr=-1)

    return start


@pytest.fixture(scope="module")
def whole(program: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an uninterrupted run of 12 updates."""
    out = tmp_path_factory.mktemp("whole") / "run"
    code, _, errors = finish(program(Tiny(str(out))))
    assert code == 0, errors
    return out


def finish(process: subprocess.Popen[str]) -> tuple[int, dict[str, Any], str]:
    """(exit code, the report, standard error)."""
    output, errors = process.communicate(timeout=120)
    return process.returncode, json.loads(output.splitlines()[-1]) if output.strip() else {}, errors


def rows(out: Path) -> list[dict[str, Any]]:
    lines = (out / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if not k.startswith(SPEED)} for line in lines]


def meta(out: Path, step: int = STEPS) -> dict[str, Any]:
    """What the checkpoint says of itself: ledger, fingerprints of every array, and more."""
    return json.loads((out / f"checkpoints/{step}/meta/metadata").read_text())["content"]


def assert_same(out: Path, whole: Path) -> None:
    assert [row["step"] for row in rows(out)] == list(range(1, STEPS + 1))
    assert rows(out) == rows(whole)
    assert meta(out) == meta(whole)


def test_sigkill_at_three_random_steps(program: Any, whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    for number, update in enumerate(sorted(random.Random(2).sample(range(2, STEPS), 3))):
        code, _, errors = finish(program(Tiny(str(out), die_at=update)))
        assert code == -signal.SIGKILL, errors
        assert rows(out)[-1]["step"] == update, number
    code, report, errors = finish(program(Tiny(str(out))))
    assert code == 0, errors
    assert report["resumed_from"] >= 3
    assert_same(out, whole)


def test_sigkill_while_a_checkpoint_is_being_written(program: Any, whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    code, _, errors = finish(program(Tiny(str(out), die_saving=6)))
    assert code == -signal.SIGKILL, errors
    left = sorted(path.name for path in (out / "checkpoints").iterdir() if path.is_dir())
    assert left == ["3", "6.orbax-checkpoint-tmp"]
    code, report, errors = finish(program(Tiny(str(out))))
    assert code == 0, errors
    assert report["resumed_from"] == 3
    assert_same(out, whole)
    assert sorted(path.name for path in (out / "checkpoints").iterdir() if path.is_dir()) == ["12", "9"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=lambda n: n.name)
def test_a_signal_saves_and_exits_with_0(program: Any, data: Path, whole: Path, tmp_path: Path, number: int) -> None:
    out = tmp_path / "run"
    process = program(Tiny(str(out), slow=0.3))
    deadline = time.monotonic() + 60
    while not (out / "metrics.jsonl").exists() or len(rows(out)) < 2:
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.01)
    process.send_signal(number)
    code, report, errors = finish(process)
    assert code == 0, errors
    last = rows(out)[-1]["step"]
    assert report["interrupted"] and report["ledger"]["steps"] == last < STEPS
    assert meta(out, last)["ledger"] == report["ledger"]
    result = tiny_run.run(Tiny(str(out)), data)
    assert result.resumed_from == last and not result.interrupted
    assert_same(out, whole)


def test_a_file_that_cannot_be_written_stops_the_run_and_loses_nothing(
    program: Any, whole: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    code, _, errors = finish(program(Tiny(str(out), keep=1, largest_file=8_000)))
    assert code == 1
    assert "CheckpointError: could not save step 6 in" in errors and "checkpoint 3 is intact" in errors
    assert "bytes free" in errors and "type the same command again" in errors
    code, report, errors = finish(program(Tiny(str(out))))
    assert code == 0, errors
    assert report["resumed_from"] == 3
    assert_same(out, whole)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 4 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", folder], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("this user cannot mount a file system")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


def test_a_full_disk_stops_the_run_and_loses_nothing(data: Path, whole: Path, small_disk: Path) -> None:
    filler = small_disk / "filler"

    def fill(step: int, state: Any) -> Any:
        tiny_run.wait_for_checkpoint(small_disk / "run", 3)
        filler.write_bytes(bytes(shutil.disk_usage(small_disk).free - 64 * 1024))
        return state

    tiny = Tiny(str(small_disk / "run"), keep=1)
    with pytest.raises(CheckpointError, match=r"could not save step 6 .* bytes free.* checkpoint 3 is intact"):
        tiny_run.run(tiny, data, events=[events.at(5, fill)])
    filler.unlink()
    assert tiny_run.run(tiny, data).resumed_from == 3
    assert_same(small_disk / "run", whole)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)


def largest(folder: Path) -> Path:
    """The file that holds most of the arrays."""
    return max((p for p in folder.glob("**/d/*") if p.is_file()), key=lambda p: p.stat().st_size)


def swap_parameters(newest: Path) -> None:
    """Readable, and wrong: the parameters of the other checkpoint."""
    shutil.rmtree(newest / "params")
    shutil.copytree(newest.parent / "9" / "params", newest / "params")


DAMAGES: dict[str, Callable[[Path], Any]] = {
    "truncated parameters": lambda newest: truncate(largest(newest / "params")),
    "flipped bit in the parameters": lambda newest: flip(largest(newest / "params")),
    "flipped bit in the moments": lambda newest: flip(largest(newest / "optimizer")),
    "flipped bit in the meta data": lambda newest: flip(newest / "meta" / "metadata"),
    "truncated meta data": lambda newest: truncate(newest / "meta" / "metadata"),
    "missing moments": lambda newest: shutil.rmtree(newest / "optimizer"),
    "other parameters": swap_parameters,
}


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # reads that Orbax gave up
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_corrupt_newest_checkpoint_gives_way_to_the_one_before(
    data: Path, whole: Path, tmp_path: Path, damage: str
) -> None:
    out = tmp_path / "run"
    shutil.copytree(whole, out)
    DAMAGES[damage](out / "checkpoints" / "12")
    with pytest.warns(UserWarning, match=r"checkpoints/12 is not usable: \S+"):
        result = tiny_run.run(Tiny(str(out)), data)
    assert result.resumed_from == 9 and (out / "checkpoints" / "broken.12.0").is_dir()
    assert_same(out, whole)
    assert tiny_run.run(Tiny(str(out)), data).resumed_from == 12


@pytest.mark.filterwarnings("ignore:checkpoint", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_no_readable_checkpoint_is_an_error_that_names_them_all(data: Path, whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    shutil.copytree(whole, out)
    for step in (9, 12):
        truncate(largest(out / f"checkpoints/{step}/params"))
    with pytest.raises(CheckpointError, match=r"no checkpoint can be read \(.*/12: .*/9: "):
        tiny_run.run(Tiny(str(out)), data)
    assert (out / "checkpoints" / "12").is_dir() and (out / "checkpoints" / "9").is_dir()


@pytest.mark.parametrize("update", [5, 7])  # after a step without a checkpoint, and after one with
def test_a_planted_nan_stops_at_the_last_good_state(data: Path, whole: Path, tmp_path: Path, update: int) -> None:
    out = tmp_path / "run"
    ids = tiny_run.make_loader(data).batch(update - 1)["sequence_ids"].tolist()
    with pytest.raises(NonFiniteError, match=rf"update {update} is not finite: loss nan.*{ids[0]}.*saved"):
        tiny_run.run(Tiny(str(out), poison=update), data)
    report = json.loads((out / "nonfinite.json").read_text())
    assert (report["step"], report["sequence_ids"], report["loss"]) == (update, ids, "nan")
    assert max(int(p.name) for p in (out / "checkpoints").iterdir() if p.is_dir()) == update - 1
    assert rows(out) == rows(whole)[: update - 1]
    assert tiny_run.run(Tiny(str(out)), data).resumed_from == update - 1
    assert_same(out, whole)


def test_an_infinite_weight_stops_too_and_without_a_folder(data: Path) -> None:
    loader = Poisoned(tiny_run.make_loader(data), 2, np.inf)
    with pytest.raises(NonFiniteError, match="update 2 is not finite"):
        tiny_run.run(Tiny(), data, loader=loader)


class Breaking:
    """A loader that fails before an update, or ends there."""

    def __init__(self, loader: Any, update: int, error: type[Exception]) -> None:
        self._loader, self._update, self._error = loader, update, error
        self.fingerprint, self.ledger = loader.fingerprint, loader.ledger

    def batches(self, start_step: int = 0) -> Iterator[Any]:
        for step, batch in enumerate(self._loader.batches(start_step), start_step + 1):
            if step == self._update:
                if self._error is StopIteration:
                    return
                raise self._error("the cable is out")
            yield batch


@pytest.mark.parametrize(("error", "seen"), [(OSError, OSError), (StopIteration, ValueError)])
def test_a_loader_that_fails_leaves_the_last_state_saved(
    data: Path, whole: Path, tmp_path: Path, error: type[Exception], seen: type[Exception]
) -> None:
    out = tmp_path / "run"
    with pytest.raises(seen, match=r"the cable is out|the loader ended after 4 of 12 batches") as found:
        tiny_run.run(Tiny(str(out)), data, loader=Breaking(tiny_run.make_loader(data), 5, error))
    assert found.value.__notes__ == ["The state after step 4 is saved; the same command goes on from there."]
    assert tiny_run.run(Tiny(str(out)), data).resumed_from == 4
    assert_same(out, whole)


def test_an_evaluation_that_fails_leaves_the_last_state_saved(data: Path, whole: Path, tmp_path: Path) -> None:
    def evaluate(params: Any) -> dict[str, float]:
        raise ZeroDivisionError("no documents")

    with pytest.raises(ZeroDivisionError, match="no documents") as found:
        tiny_run.run(Tiny(str(tmp_path)), data, evaluate=evaluate)
    assert "after step 12 is saved" in found.value.__notes__[0]
    assert meta(tmp_path) == meta(whole)


def test_a_second_failure_does_not_hide_the_first(data: Path, tmp_path: Path) -> None:
    loader = Breaking(Poisoned(tiny_run.make_loader(data), 4), 5, OSError)
    with pytest.raises(OSError, match="the cable is out") as found:
        tiny_run.run(replace(Tiny(str(tmp_path))), data, loader=loader)
    assert "update 4 is not finite" in found.value.__notes__[0]
