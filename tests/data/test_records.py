"""Token records: what is written is read, and damaged files are named."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest

from jaxpt.data.records import RECORD_TOKENS, RecordError, TokenRecords, cut, read_info, record_lengths
from jaxpt.data.shards import Item, write_folder
from jaxpt.data.vocabularies import ByteVocabulary

TEXTS = {"a:short": "hello", "a:long": "x" * 9000, "b:exact": "y" * (RECORD_TOKENS - 1), "b:two": "naïve ☃"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    items = [Item(name, name[0], len(text.encode()), text) for name, text in TEXTS.items()]
    return write_folder(tmp_path, {"train": items, "validation": items}, ByteVocabulary(), shard_bytes=5000)


def files(folder: Path) -> list[Path]:
    return sorted((folder / "train").glob("*.array_record"))


def test_records_hold_every_document_with_the_previous_token_first(folder: Path) -> None:
    records, vocabulary = TokenRecords(folder, "train"), ByteVocabulary()
    assert len(files(folder)) > 1
    for number, (name, text) in enumerate(TEXTS.items()):
        mine = np.flatnonzero(records.document == number)
        parts = [records[i] for i in mine]
        stream = np.concatenate([p[1:] for p in parts])
        assert stream.tolist() == [*vocabulary.encode(text), vocabulary.eos_id]
        previous = [vocabulary.bos_id, *(int(p[-1]) for p in parts[:-1])]
        assert [int(p[0]) for p in parts] == previous
        assert records.documents.id[number] == name and records.documents.domain[number] == name[0]
        assert records.documents.bytes[number] == len(text.encode())
        assert records.documents.tokens[number] == len(stream) == records.lengths[mine].sum()


def test_cut_and_lengths_agree() -> None:
    for n in (1, RECORD_TOKENS - 1, RECORD_TOKENS, RECORD_TOKENS + 1, 3 * RECORD_TOKENS):
        sizes = [len(r) // 2 - 1 for r in cut(np.zeros(n, np.int64), 2, np.dtype("<u2"))]
        assert sizes == record_lengths(n) and sum(sizes) == n


def test_a_pickled_reader_opens_again(folder: Path) -> None:
    records = TokenRecords(folder, "train")
    first = records[0]
    assert np.array_equal(pickle.loads(pickle.dumps(records))[0], first)


def test_missing_record_file_is_named(folder: Path) -> None:
    files(folder)[0].unlink()
    with pytest.raises(RecordError, match=files(folder)[0].name[:8]) as caught:
        TokenRecords(folder, "train")[0]
    assert "tokens-00000" in str(caught.value)


@pytest.mark.parametrize("damage", ["truncated", "empty", "overwritten"])
def test_damaged_record_file_is_named(folder: Path, damage: str) -> None:
    path = files(folder)[1]
    raw = bytearray(path.read_bytes())
    if damage == "overwritten":
        raw[:] = bytes(b ^ 0x5A for b in raw)
    path.write_bytes({"truncated": raw[: len(raw) // 2], "empty": b"", "overwritten": raw}[damage])
    with pytest.raises(RecordError, match=path.name):
        records = TokenRecords(folder, "train")
        for i in range(len(records)):
            records[i]


def test_token_out_of_range_names_record_and_document(folder: Path) -> None:
    path = folder / "dataset.json"
    path.write_text(path.read_text().replace('"vocabulary_size": 259', '"vocabulary_size": 100'))
    with pytest.raises(RecordError, match=r"token id 1\d\d in record 0 \(document 'a:short'\).*vocabulary of 100"):
        TokenRecords(folder, "train")[0]


def test_folder_that_is_not_prepared(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(RecordError, match="no split 'test'"):
        TokenRecords(folder, "test")
    with pytest.raises(RecordError, match=r"dataset\.json is missing"):
        read_info(tmp_path / "nowhere")
    (folder / "train" / "index.npz").write_bytes(b"not an index")
    with pytest.raises(RecordError, match=r"index\.npz is corrupt"):
        TokenRecords(folder, "train")
    (folder / "dataset.json").write_text("{")
    with pytest.raises(RecordError, match=r"dataset\.json is corrupt"):
        TokenRecords(folder, "train")
