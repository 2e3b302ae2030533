"""python -m jaxpt.data: what it prints, and one clear line for a mistake."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from jaxpt.data.__main__ import main


@pytest.fixture
def corpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("JAXPT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "120")
    path = tmp_path / "corpus.jsonl"
    rows = [
        {"id": str(i), "domain": "tales", "text": f"Once upon a time, number {i} " + "went on " * i} for i in range(40)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return f"files:{path}"


def test_prepare_then_show(corpus: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    command = [
        "prepare",
        "--corpora",
        corpus,
        "--validation",
        "0.2",
        "--out",
        str(out),
        "--processes",
        "1",
        "--name",
        "tales-set",
    ]
    assert main(command) == 0
    printed = capfd.readouterr()
    assert printed.out.splitlines()[-1] == str(out) and "tales-set" in printed.out and "shard 1/2 train" in printed.err
    assert main(["show", str(out), "--sequence-length", "256", "--n", "2", "--split", "validation"]) == 0
    printed = capfd.readouterr()
    assert "Once upon a time" in printed.out and "sequences of 256, isolate" in printed.out
    assert "corpus.jsonl:" in printed.out and "sequence 1" in printed.out and "sequence 2" not in printed.out


def test_fetch_lists_and_counts(corpus: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["fetch", "--list"]) == 0
    assert "python-code" in capfd.readouterr().out
    assert main(["fetch", corpus]) == 0
    assert "40 documents" in capfd.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["fetch", "python-cod"], "did you mean 'python-code'"),
        (["prepare", "--task", "pyton"], "did you mean 'python'"),
        (["prepare"], "give either --task NAME or --corpora"),
        (["prepare", "--task", "python", "--processes", "0"], "at least 1, got 0"),
        (["prepare", "--corpora", ","], "needs a tuple of corpora"),
        (["show", "no/such/folder"], "dataset.json is missing"),
    ],
)
def test_mistakes_are_one_line_and_exit_code_2(
    arguments: list[str], message: str, capfd: pytest.CaptureFixture[str], corpus: str
) -> None:
    assert main(arguments) == 2
    lines = capfd.readouterr().err.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: ") and message in lines[0]


@pytest.mark.skipif(importlib.util.find_spec("apache_beam") is not None, reason="Apache Beam is installed")
def test_the_beam_runner_says_what_it_needs(corpus: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["prepare", "--corpora", corpus, "--runner", "beam"]) == 2
    assert "data extra" in capfd.readouterr().err


def test_bad_input_file_is_named_without_a_traceback(tmp_path: Path) -> None:
    path = tmp_path / "latin.txt"
    path.write_bytes("caf\u00e9".encode("latin-1"))
    command = [
        sys.executable,
        "-m",
        "jaxpt.data",
        "prepare",
        "--corpora",
        f"files:{path}",
        "--out",
        str(tmp_path / "out"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"JAXPT_CACHE": str(tmp_path)})
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "latin.txt" in done.stderr and "byte 3" in done.stderr


def test_nothing_loads_tensorflow_or_jax() -> None:
    heavy = {"tensorflow", "seqio", "apache_beam", "jax"}
    code = f"import sys, jaxpt.data.__main__; print({heavy} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
