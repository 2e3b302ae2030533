"""Preparation: resumable to the byte, the same on any number of processes, clear about bad requests."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from jaxpt.data import vocabularies
from jaxpt.data.packing import pack
from jaxpt.data.prepare import TASKS, TextTask, default_folder, named_task, prepare, prepared, split_documents
from jaxpt.data.records import RecordError, TokenRecords, read_info
from jaxpt.data.shards import Item, finished, plan_shards, write_shard

CORE = "import sys; from pathlib import Path; from jaxpt.data.prepare import *\n"


@pytest.fixture
def corpus(tmp_path: Path) -> str:
    """200 documents of two domains in a jsonl file."""
    rng = np.random.default_rng(0)
    words = ["".join(map(chr, rng.integers(97, 123, rng.integers(2, 9)))) for _ in range(800)]
    path = tmp_path / "corpus.jsonl"
    with path.open("w") as f:
        for i in range(200):
            row = {
                "id": str(i),
                "domain": "even" if i % 2 == 0 else "odd",
                "text": " ".join(rng.choice(words, 120)),
            }
            f.write(json.dumps(row) + "\n")
    return f"files:{path}"


def contents(folder: Path) -> dict[str, str]:
    """Hash of every file."""
    files = [p for p in folder.rglob("*") if p.is_file()]
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def run(code: str, **kwargs: int) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", CORE + code], stderr=subprocess.PIPE, **kwargs)  # type: ignore[call-overload]


@pytest.mark.parametrize("vocabulary", ["bytes", "bpe:400"])
def test_prepared_records_decode_to_the_documents(corpus: str, tmp_path: Path, vocabulary: str) -> None:
    task = TextTask("t", (corpus,), vocabulary, validation=0.1)
    folder = prepare(task, tmp_path / "out", processes=1)
    documents, words = split_documents(task), vocabularies.load(folder / "vocabulary")
    for split in ("train", "validation"):
        records = TokenRecords(folder, split)
        assert records.documents.id.tolist() == [d.id for d in documents[split]]
        for number, document in enumerate(documents[split]):
            ids = np.concatenate([records[int(i)][1:] for i in np.flatnonzero(records.document == number)])
            assert ids[-1] == words.eos_id and words.decode(ids[:-1].tolist()) == document.text
            assert records.documents.bytes[number] == len(document.text.encode())
    info = read_info(folder)
    assert info["splits"]["train"]["documents"] + info["splits"]["validation"]["documents"] == 200
    assert set(info["splits"]["train"]["domains"]) == {"even", "odd"}
    assert info["splits"]["train"]["tokens"] == pack(TokenRecords(folder, "train"), 64).tokens


def test_processes_do_not_change_a_byte(corpus: str, tmp_path: Path) -> None:
    task = TextTask("t", (corpus,), "bpe:300")
    one = prepare(task, tmp_path / "one", processes=1, shard_bytes=30_000)
    two = prepare(task, tmp_path / "two", processes=2, shard_bytes=30_000)
    assert contents(one) == contents(two)


def test_killed_and_resumed_is_byte_identical(corpus: str, tmp_path: Path) -> None:
    task = TextTask("t", (corpus,), "bpe:300")
    whole = contents(prepare(task, tmp_path / "whole", processes=1, shard_bytes=4000))
    out = tmp_path / "killed"
    slowly = f"""
import time
from jaxpt.data import shards, prepare as module
def slow(shard):
    time.sleep(.15)
    return shards.write_shard(shard)
module.write_shard = slow
prepare(TextTask("t", ({corpus!r},), "bpe:300"), Path({str(out)!r}), processes=1, shard_bytes=4000)
"""
    for wanted in (3, 9):
        child = run(slowly)
        deadline = time.monotonic() + 120
        while len(list(out.glob("train/*.json"))) < wanted and child.poll() is None and time.monotonic() < deadline:
            time.sleep(0.02)
        child.send_signal(signal.SIGKILL)
        child.communicate()
        assert child.returncode == -signal.SIGKILL and not (out / "dataset.json").exists()
    (out / "train" / ".tokens-00000-of-00099.array_record.0.partial").write_bytes(
        b"half"
    )  # as a kill in mid-write leaves
    kept = {p: p.stat().st_mtime_ns for p in out.glob("train/*.array_record")}
    prepare(task, out, processes=2, shard_bytes=4000)
    assert len(kept) >= 9 and all(p.stat().st_mtime_ns == t for p, t in kept.items())  # only missing shards were made
    assert contents(out) == whole


def test_workers_end_with_a_killed_parent(corpus: str, tmp_path: Path) -> None:
    waiting = """
import concurrent.futures, multiprocessing, os, time
from jaxpt.core.processes import die_with_parent
spawn = multiprocessing.get_context("spawn")
pool = concurrent.futures.ProcessPoolExecutor(1, spawn, initializer=die_with_parent)
print(pool.submit(os.getpid).result(), flush=True)
pool.submit(time.sleep, 600).result()
"""
    child = run(waiting, stdout=subprocess.PIPE)
    assert child.stdout is not None
    worker = int(child.stdout.readline())
    child.send_signal(signal.SIGKILL)
    child.communicate()
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        try:
            os.kill(worker, 0)
        except ProcessLookupError:
            return
        time.sleep(0.05)
    pytest.fail("the worker outlived its parent")


def test_a_damaged_or_foreign_shard_is_made_again(tmp_path: Path) -> None:
    vocabulary = vocabularies.load("bytes")
    (shard,) = plan_shards(tmp_path, "train", [Item("a", "d", 5, "hello")])
    assert finished(shard) is None
    done = write_shard(shard, vocabulary)
    assert finished(shard) == done
    (other,) = plan_shards(tmp_path, "train", [Item("a", "d", 5, "world")])
    assert finished(other) is None
    shard.path.write_bytes(shard.path.read_bytes()[:-1])
    assert finished(shard) is None


def test_two_preparations_do_not_mix(corpus: str, tmp_path: Path) -> None:
    out = prepare(TextTask("t", (corpus,)), tmp_path / "out", processes=1)
    with pytest.raises(ValueError, match="holds another preparation.*seed: 0 -> 1.*choose another folder"):
        prepare(TextTask("t", (corpus,), seed=1), out, processes=1)
    with Path(corpus.removeprefix("files:")).open("a") as f:
        f.write('{"id": "new", "text": "more"}\n')
    with pytest.raises(ValueError, match="holds another preparation.*files"):
        prepare(TextTask("t", (corpus,)), out, processes=1)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("precious")
    with pytest.raises(ValueError, match="not a prepared folder and not empty"):
        prepare(TextTask("t", (corpus,)), tmp_path / "mine", processes=1)


def test_prepared_finds_the_default_folder_again(
    corpus: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("JAXPT_CACHE", str(tmp_path / "cache"))
    task = TextTask("t", (corpus,))
    folder = prepared(task, processes=1)
    assert folder == default_folder(task) and folder.parent == tmp_path / "cache" / "prepared"
    assert "shard 1/2 train" in capfd.readouterr().err
    assert prepared(task) == folder and not capfd.readouterr().err
    assert default_folder(TextTask("t", (corpus,), seed=1)) != folder


def test_equal_texts_are_kept_once(tmp_path: Path) -> None:
    path = tmp_path / "c.jsonl"
    rows = [{"id": str(i), "text": f"text number {i % 20}"} for i in range(40)]
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    count = {
        flag: split_documents(TextTask("t", (f"files:{path}",), validation=0.3, deduplicate=flag))
        for flag in (True, False)
    }
    assert sum(map(len, count[True].values())) == 20 and sum(map(len, count[False].values())) == 40


def test_bad_requests(corpus: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(ValueError, match="did you mean 'python-code'"):
        prepare(TextTask("t", ("python-cod",)), out)
    with pytest.raises(ValueError, match="bpe:SIZE, for example"):
        prepare(TextTask("t", (corpus,), "bpe:many"), tmp_path / "b", processes=1)
    with pytest.raises(ValueError, match="unknown vocabulary 'byte'; did you mean 'bytes'"):
        prepare(TextTask("t", (corpus,), "byte"), tmp_path / "c", processes=1)
    with pytest.raises(ValueError, match="no document of 200 falls in split 'validation'"):
        prepare(TextTask("t", (corpus,), validation=1e-9), tmp_path / "d")
    with pytest.raises(ValueError, match="two documents have the id"):
        prepare(TextTask("t", (corpus, corpus)), tmp_path / "e")
    with pytest.raises(ValueError, match="between 0 and 1, got 5"):
        TextTask("t", (corpus,), validation=5)
    with pytest.raises(ValueError, match="tuple of corpora"):
        TextTask("t", "python-code")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="did you mean 'python'"):
        named_task("pyton")
    assert named_task("python") is TASKS["python"]


def test_token_out_of_range_names_the_document(tmp_path: Path) -> None:
    (shard,) = plan_shards(tmp_path, "train", [Item("fine", "d", 1, (5,)), Item("bad", "d", 1, (7, 300))])
    with pytest.raises(RecordError, match="token id 300 in document 'bad' is out of range of the vocabulary of 259"):
        write_shard(shard, vocabularies.load("bytes"))
    assert not list((tmp_path / "train").glob("*.array_record")) if (tmp_path / "train").exists() else True
