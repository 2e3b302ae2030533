"""Shards: the unit of work of a preparation, and how finished shards become a prepared folder.

A shard is a run of documents that becomes one ArrayRecord file and, beside it, a json sidecar with its
counts and hashes. The sidecar is written last, and both appear under their names in one step
(`os.replace`), so a shard is either finished or absent whatever is killed when. What writes a shard (local
processes, Beam) does not change it.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import uuid
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxpt.core.files import sha256, write_json
from jaxpt.data.records import RecordError, cut, record_lengths, write_records
from jaxpt.data.vocabularies import Vocabulary
from jaxpt.data.vocabularies import load as load_vocabulary

SHARD_BYTES = 1 << 21  # of text: seconds of work, so little is lost when a run is killed
SPLITS = ("train", "validation")


@dataclasses.dataclass(frozen=True)
class Item:
    """One document on its way to a shard: its text, or its token ids (without EOS)."""

    id: str
    domain: str
    bytes: int
    content: str | tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Shard:
    """Shard `number` of `of` of a split of the folder `out`."""

    out: Path
    split: str
    number: int
    of: int
    items: tuple[Item, ...]

    @property
    def path(self) -> Path:
        """The record file."""
        return self.out / self.split / f"tokens-{self.number:05d}-of-{self.of:05d}.array_record"

    @property
    def sidecar(self) -> Path:
        """The json file that says the shard is finished."""
        return self.path.with_suffix(".json")

    @property
    def source_hash(self) -> str:
        """Hash of what goes in; a finished shard made from other documents is made again."""
        return hashlib.sha256(repr(self.items).encode()).hexdigest()


def plan_shards(out: Path, split: str, items: Iterable[Item], shard_bytes: int = SHARD_BYTES) -> list[Shard]:
    """Cuts a split's documents, in their order, into runs of about `shard_bytes` bytes of text."""
    runs: list[list[Item]] = []
    room = 0
    for item in items:
        if room <= 0:
            runs.append([])
            room = shard_bytes
        runs[-1].append(item)
        room -= max(item.bytes, 1)
    return [Shard(out, split, number, len(runs), tuple(run)) for number, run in enumerate(runs)]


def write_shard(shard: Shard, vocabulary: Vocabulary | None = None) -> dict[str, Any]:
    """Tokenises a shard and writes its record file and sidecar; returns the sidecar.

    Raises:
      RecordError: a token id that is out of range of the vocabulary, with the document's name.
    """
    vocabulary = vocabulary or load_vocabulary(shard.out / "vocabulary")
    dtype = token_dtype(vocabulary.size)
    records: list[bytes] = []
    counts: list[int] = []
    for item, ids in zip(shard.items, _token_ids(shard.items, vocabulary), strict=True):
        stream = np.append(np.asarray(ids, np.int64), vocabulary.eos_id)
        _check_range(stream, vocabulary.size, item.id)
        records += cut(stream, vocabulary.bos_id, dtype)
        counts.append(len(stream))
    shard.path.parent.mkdir(parents=True, exist_ok=True)
    partial = shard.path.with_name(f".{shard.path.name}.{uuid.uuid4().hex}.partial")
    write_records(partial, records)
    done = {
        "source": shard.source_hash,
        "sha256": sha256(partial),
        "records": len(records),
        "tokens": counts,
    }
    os.replace(partial, shard.path)
    write_json(shard.sidecar, done)
    return done


def write_folder(
    out: Path,
    splits: Mapping[str, Sequence[Item]],
    vocabulary: Vocabulary,
    facts: dict[str, Any] | None = None,
    shard_bytes: int = SHARD_BYTES,
) -> Path:
    """A prepared folder of documents that are in memory, for `TokenRecords`; returns `out`."""
    (out / "vocabulary").mkdir(parents=True, exist_ok=True)
    vocabulary.save(out / "vocabulary")
    shards = [s for split, items in splits.items() for s in plan_shards(out, split, items, shard_bytes)]
    for shard in shards:
        write_shard(shard, vocabulary)
    assemble(out, shards, vocabulary, {"name": out.name} if facts is None else facts)
    return out


def finished(shard: Shard) -> dict[str, Any] | None:
    """The sidecar of a shard that is finished and intact, else None."""
    try:
        done = json.loads(shard.sidecar.read_text())
        intact = done["source"] == shard.source_hash and done["sha256"] == sha256(shard.path)
    except (OSError, json.JSONDecodeError, KeyError):
        return None
    return done if intact else None


def assemble(out: Path, shards: Sequence[Shard], vocabulary: Vocabulary, facts: dict[str, Any]) -> dict[str, Any]:
    """Writes index.npz of each split and, last, dataset.json, which says that the folder is complete.

    Args:
      facts: what else dataset.json should say (name, corpora, split rule).
    """
    splits: dict[str, Any] = {}
    hashes: list[str] = []
    for split in sorted({s.split for s in shards}):
        mine = [s for s in shards if s.split == split]
        sidecars = [_sidecar(s) for s in mine]
        for stale in (out / split).glob(".*.partial"):
            stale.unlink()
        tokens = [n for done in sidecars for n in done["tokens"]]
        items = [item for s in mine for item in s.items]
        _write_index(out / split / "index.npz", items, tokens)
        hashes += [done["sha256"] for done in sidecars]
        splits[split] = _counts(items, tokens) | {
            "records": sum(done["records"] for done in sidecars),
            "files": [s.path.name for s in mine],
        }
    info = facts | {
        "vocabulary_size": vocabulary.size,
        "bos_id": vocabulary.bos_id,
        "eos_id": vocabulary.eos_id,
        "pad_id": vocabulary.pad_id,
        "dtype": token_dtype(vocabulary.size).str,
        "splits": splits,
        "fingerprint": hashlib.sha256("".join(hashes).encode()).hexdigest(),
    }
    write_json(out / "dataset.json", info)
    return info


def token_dtype(vocabulary_size: int) -> np.dtype:
    """Little-endian uint16 where every id fits, else uint32."""
    return np.dtype("<u2" if vocabulary_size <= 1 << 16 else "<u4")


def _token_ids(items: Sequence[Item], vocabulary: Vocabulary) -> list[Sequence[int]]:
    texts = [item.content for item in items if isinstance(item.content, str)]
    encoded = iter(vocabulary.encode_batch(texts) if texts else [])
    return [next(encoded) if isinstance(item.content, str) else item.content for item in items]


def _check_range(ids: np.ndarray, size: int, document: str) -> None:
    bad = ids[(ids < 0) | (ids >= size)]
    if len(bad):
        raise RecordError(f"token id {bad[0]} in document {document!r} is out of range of the vocabulary of {size}")


def _sidecar(shard: Shard) -> dict[str, Any]:
    if not shard.sidecar.is_file():
        raise RecordError(f"shard {shard.path} is not finished; run the same preparation again to continue")
    return json.loads(shard.sidecar.read_text())


def _write_index(path: Path, items: Sequence[Item], tokens: Sequence[int]) -> None:
    lengths = [record_lengths(n) for n in tokens]
    arrays: dict[str, Any] = {
        "lengths": np.array([n for each in lengths for n in each], np.int64),
        "document": np.repeat(np.arange(len(items)), [len(each) for each in lengths]),
        "document_id": np.array([item.id for item in items]),
        "document_domain": np.array([item.domain for item in items]),
        "document_bytes": np.array([item.bytes for item in items], np.int64),
        "document_tokens": np.array(tokens, np.int64),
    }
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex}.partial")
    with partial.open("wb") as f:
        np.savez(f, **arrays)
    os.replace(partial, path)


def _counts(items: Sequence[Item], tokens: Sequence[int]) -> dict[str, Any]:
    domains: dict[str, Counter[str]] = {}
    total: Counter[str] = Counter()
    for item, n in zip(items, tokens, strict=True):
        for counter in (total, domains.setdefault(item.domain, Counter())):
            counter.update(documents=1, bytes=item.bytes, tokens=n)
    return dict(total) | {"domains": {d: dict(domains[d]) for d in sorted(domains)}}
