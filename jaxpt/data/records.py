"""Token records: tokenised documents on disk, read at random.

A prepared folder holds, per split, ArrayRecord files and an index:

    dataset.json, vocabulary/, train/tokens-00000.array_record ..., train/index.npz, validation/...

One record is up to `RECORD_TOKENS` consecutive tokens of one document's stream encode(text) + [eos], with the
token before them in front (BOS at the start of a document): record = [previous, t_a, ..., t_b-1]. Inputs are
record[s : s + n] and labels record[s + 1 : s + n + 1], so every real token is predicted exactly once.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

RECORD_TOKENS = 4096


class RecordError(ValueError):
    """A record file that is missing, truncated, corrupt or not what its index says."""


@dataclasses.dataclass(frozen=True)
class DocumentTable:
    """Of each document of a split: id, domain, bytes of its UTF-8 text, tokens (EOS included)."""

    id: np.ndarray
    domain: np.ndarray
    bytes: np.ndarray
    tokens: np.ndarray


class TokenRecords:
    """Random access to the records of one split.

    Attributes:
      lengths: [N] tokens of each record, the previous token not counted.
      document: [N] index of each record's document; records of a document are consecutive.
      documents: the table of documents.
      fingerprint: hash of the contents, equal wherever the contents are.
    """

    def __init__(self, folder: Path, split: str) -> None:
        self.folder, self.split = Path(folder), split
        self.info = read_info(self.folder)
        if split not in self.info["splits"]:
            raise RecordError(f"{folder} has no split {split!r}; it has {sorted(self.info['splits'])}")
        index = _load_index(self.folder / split / "index.npz")
        self.lengths, self.document = index["lengths"], index["document"]
        self.documents = DocumentTable(*(index[f"document_{f}"] for f in ("id", "domain", "bytes", "tokens")))
        if not len(self.lengths):
            raise RecordError(
                f"split {split!r} of {folder} is empty; prepare more documents or a larger validation share"
            )
        self.vocabulary_size: int = self.info["vocabulary_size"]
        self.bos_id: int = self.info["bos_id"]
        self.eos_id: int = self.info["eos_id"]
        self.fingerprint: str = self.info["fingerprint"] + "/" + split
        self._dtype = np.dtype(self.info["dtype"])
        self._files = [self.folder / split / name for name in self.info["splits"][split]["files"]]
        self._reader: Any = None

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, i: int) -> np.ndarray:
        """[n + 1] int32: the previous token and the n tokens of record i.

        Raises:
          RecordError: the file is gone or corrupt, or the record is not what the index says.
        """
        return self.read([i])[0]

    def read(self, indices: Sequence[int] | np.ndarray) -> list[np.ndarray]:
        """Several records at once."""
        try:
            reader = self._open()
            found = [reader[int(i)] for i in indices]  # its own batched read starts a thread pool for each call
        except RecordError:
            raise
        except Exception as error:  # the reader raises whatever its C++ side says
            raise self._damage(error) from error
        return [self._decode(int(i), raw) for i, raw in zip(indices, found, strict=True)]

    def _decode(self, i: int, raw: bytes) -> np.ndarray:
        tokens = np.frombuffer(raw, self._dtype).astype(np.int32) if len(raw) % self._dtype.itemsize == 0 else None
        if tokens is None or len(tokens) != self.lengths[i] + 1:
            raise RecordError(f"record {i} of {self.folder / self.split} has {len(raw)} bytes, not the index's length")
        if tokens.max() >= self.vocabulary_size:
            document = str(self.documents.id[self.document[i]])
            raise RecordError(
                f"token id {tokens.max()} in record {i} (document {document!r}) of "
                f"{self.folder / self.split} is out of range of the vocabulary of {self.vocabulary_size}"
            )
        return tokens

    def _open(self) -> Any:
        """The reader, opened once per process (it does not survive pickling)."""
        if self._reader is None:
            from grain.sources import ArrayRecordDataSource

            for path in self._files:
                if not path.is_file():
                    raise RecordError(f"record file {path} is missing; prepare the data again")
            try:
                self._reader = ArrayRecordDataSource([str(p) for p in self._files])
                count = len(self._reader)
            except Exception as error:
                raise self._damage(error) from error
            if count != len(self.lengths):
                raise RecordError(
                    f"{self.folder / self.split} holds {count} records, its index says {len(self.lengths)}"
                )
        return self._reader

    def _damage(self, error: Exception) -> RecordError:
        """The error that names the damaged file: the reader's own does not, so every file is read through."""
        from array_record.python.array_record_module import ArrayRecordReader

        for path in self._files:
            cause: object = ""
            try:
                reader = ArrayRecordReader(str(path))
                sound = reader.ok() and bool(reader.read_all())
            except Exception as found:  # the reader raises whatever its C++ side says
                sound, cause = False, f" ({found})"
            if not sound:
                return RecordError(f"record file {path} is truncated or corrupt{cause}; prepare the data again")
        return RecordError(f"cannot read records of {self.folder / self.split}: {error}")

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_reader": None}


def read_info(folder: Path) -> dict[str, Any]:
    """dataset.json of a prepared folder."""
    path = Path(folder) / "dataset.json"
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        raise RecordError(f"{path} is missing: {folder} is not a (finished) prepared folder") from None
    except json.JSONDecodeError as error:
        raise RecordError(f"{path} is corrupt: {error}; prepare the data again") from None


def write_records(path: Path, records: Iterable[bytes]) -> int:
    """Writes one ArrayRecord file; returns the number of records."""
    from array_record.python.array_record_module import ArrayRecordWriter

    writer, count = ArrayRecordWriter(str(path), "group_size:1"), 0
    for record in records:
        writer.write(record)
        count += 1
    writer.close()
    return count


def cut(tokens: Sequence[int] | np.ndarray, bos_id: int, dtype: np.dtype) -> list[bytes]:
    """The records of one document's stream (EOS included)."""
    stream = np.concatenate([[bos_id], np.asarray(tokens, np.int64)]).astype(dtype)
    return [stream[a : a + RECORD_TOKENS + 1].tobytes() for a in range(0, len(tokens), RECORD_TOKENS)]


def record_lengths(tokens: int) -> list[int]:
    """Lengths of the records of a document of this many tokens."""
    return [min(RECORD_TOKENS, tokens - a) for a in range(0, tokens, RECORD_TOKENS)]


def _load_index(path: Path) -> dict[str, np.ndarray]:
    try:
        with np.load(path, allow_pickle=False) as stored:
            return {name: stored[name] for name in stored.files}
    except FileNotFoundError:
        raise RecordError(f"index {path} is missing; prepare the data again") from None
    except Exception as error:
        raise RecordError(f"index {path} is corrupt: {error}; prepare the data again") from error
