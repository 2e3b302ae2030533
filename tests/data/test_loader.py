"""The loader: the same batches on any number of processes, after any resume; held-out tokens scored once."""

from __future__ import annotations

import itertools
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from jaxpt.data.loader import Loader
from jaxpt.data.packing import pack
from jaxpt.data.plan import Plan, Source
from jaxpt.data.records import RecordError, TokenRecords
from jaxpt.data.shards import Item, write_folder
from jaxpt.data.vocabularies import ByteVocabulary

SIZE = 32


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> TokenRecords:
    return make(tmp_path_factory.mktemp("prepared"))


def make(folder: Path) -> TokenRecords:
    """60 documents of 5 to 200 bytes in two domains, in one split."""
    rng = np.random.default_rng(0)
    texts = ["".join(map(chr, rng.integers(97, 123, n))) for n in rng.integers(5, 200, 60)]
    items = [Item(f"d{i}", "ab"[i % 2], len(t), t) for i, t in enumerate(texts)]
    write_folder(folder, {"train": items}, ByteVocabulary(), shard_bytes=2000)
    return TokenRecords(folder, "train")


def loader(records: TokenRecords, mode: str = "isolate", **kwargs: int) -> Loader:
    parts = {d: (records, pack(records, SIZE, mode, domains=(d,))) for d in ("a", "b")}  # type: ignore[arg-type]
    plan = Plan((Source("a", len(parts["a"][1]), 2.0), Source("b", len(parts["b"][1]), 1.0)), 8, seed=3, block=12)
    return Loader(parts, plan, **kwargs)


def take(from_: Loader, count: int, start: int = 0) -> list[dict[str, np.ndarray]]:
    batches = from_.batches(start)
    found = list(itertools.islice(batches, count))
    batches.close()  # type: ignore[attr-defined]
    return found


def same(one: dict[str, np.ndarray], two: dict[str, np.ndarray]) -> bool:
    return one.keys() == two.keys() and all(np.array_equal(one[k], two[k]) for k in one)


@pytest.mark.parametrize("mode", ["isolate", "concatenate"])
@pytest.mark.parametrize("processes", [2, 4])
def test_any_number_of_processes_reads_the_same_global_batch(records: TokenRecords, mode: str, processes: int) -> None:
    whole = take(loader(records, mode), 5)
    shares = [take(loader(records, mode, process_index=h, process_count=processes), 5) for h in range(processes)]
    for step, batch in enumerate(whole):
        joined = {k: np.concatenate([share[step][k] for share in shares]) for k in batch}
        assert same(batch, joined)


def test_a_batch_has_the_promised_arrays(records: TokenRecords) -> None:
    (batch,) = take(loader(records), 1)
    kinds = {k: (v.shape, v.dtype.name) for k, v in batch.items()}
    matrix = dict.fromkeys(("inputs", "labels", "segment_ids", "positions"), ((8, SIZE), "int32"))
    assert kinds == matrix | {"loss_weight": ((8, SIZE), "float32"), "sequence_ids": ((8,), "int64")}
    real = batch["segment_ids"] > 0
    assert np.array_equal(real, batch["loss_weight"] == 1)
    assert set((batch["sequence_ids"] >> 40).tolist()) == {0, 1}


def test_resume_gives_the_batches_of_the_uninterrupted_stream(records: TokenRecords) -> None:
    whole = take(loader(records), 12)
    for start in (1, 5, 11):
        resumed = take(loader(records), 12 - start, start)
        assert all(same(a, b) for a, b in zip(whole[start:], resumed, strict=True))


def test_threads_do_not_change_the_order(records: TokenRecords) -> None:
    one, many = (
        take(loader(records, threads=1, prefetch=1), 20),
        take(loader(records, threads=8, prefetch=16), 20),
    )
    assert all(same(a, b) for a, b in zip(one, many, strict=True))


def test_closing_ends_the_reading_threads(records: TokenRecords) -> None:
    before = set(threading.enumerate())
    take(loader(records), 2)
    deadline = time.monotonic() + 20
    while (left := set(threading.enumerate()) - before) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not left


def test_one_epoch_shows_every_token_once(records: TokenRecords) -> None:
    packing = pack(records, SIZE)
    plan = Plan((Source("all", len(packing), 1.0),), 1)
    source = Loader({"all": (records, packing)}, plan)
    batches = [source.batch(step) for step in range(len(packing))]
    assert sum(b["loss_weight"].sum() for b in batches) == records.lengths.sum()
    assert source.ledger(len(packing)) == {
        "tokens": records.lengths.sum(),
        "unique_tokens": records.lengths.sum(),
    }
    assert source.ledger(2 * len(packing))["tokens"] == 2 * records.lengths.sum()
    assert source.ledger(2 * len(packing))["unique_tokens"] == records.lengths.sum()


def test_fingerprint_changes_with_packing_and_plan(records: TokenRecords) -> None:
    prints = {loader(records).fingerprint, loader(records, "concatenate").fingerprint}
    packing = pack(records, SIZE)
    prints |= {
        Loader({"x": (records, packing)}, Plan((Source("x", len(packing), 1.0),), 8, s)).fingerprint for s in (0, 1)
    }
    assert len(prints) == 4 and loader(records).fingerprint == loader(records, process_count=2).fingerprint


def test_bad_requests(records: TokenRecords) -> None:
    with pytest.raises(ValueError, match="batch of 8 does not divide over 3 processes"):
        loader(records, process_count=3)
    with pytest.raises(ValueError, match="process_index 2 is not one of 2"):
        loader(records, process_index=2, process_count=2)
    packing = pack(records, SIZE)
    with pytest.raises(ValueError, match="plan counts 5 sequences of 'x'"):
        Loader({"x": (records, packing)}, Plan((Source("x", 5, 1.0),), 8))
    with pytest.raises(ValueError, match="plan's sources"):
        Loader({"y": (records, packing)}, Plan((Source("x", 5, 1.0),), 8))


def test_a_record_file_that_vanishes_or_breaks_stops_the_stream_with_its_name(tmp_path: Path) -> None:
    broken = make(tmp_path)
    path = sorted((tmp_path / "train").glob("*.array_record"))[1]
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(RecordError, match=path.name):
        take(loader(broken), 50)
    path.unlink()
    with pytest.raises(RecordError, match=path.name):
        take(loader(TokenRecords(tmp_path, "train")), 1)
