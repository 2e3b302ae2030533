"""Packing: which pieces of which records make up a sequence of S tokens. An index only; no token is read.

isolate      pieces of documents, packed best-fit; each piece is a segment that sees only itself
concatenate  all documents one after the other, cut every S tokens; all of a sequence sees all before it
"""

from __future__ import annotations

import dataclasses
import hashlib
from typing import Literal

import jax
import numpy as np

from jaxpt.core.names import nearest_error
from jaxpt.data.records import TokenRecords

Mode = Literal["isolate", "concatenate"]


@dataclasses.dataclass(frozen=True)
class Packing:
    """Spans in sequence order; sequence i owns spans[offsets[i]:offsets[i + 1]].

    Attributes:
      spans: [P, 3] int64 of (record, first token, number of tokens).
      offsets: [sequences + 1].
    """

    spans: np.ndarray
    offsets: np.ndarray
    sequence_length: int
    mode: str

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def tokens(self) -> int:
        """Real tokens in all sequences."""
        return int(self.spans[:, 2].sum())

    @property
    def fingerprint(self) -> str:
        """Hash of the index."""
        parts = (self.spans.tobytes(), self.offsets.tobytes(), f"{self.sequence_length}{self.mode}".encode())
        return hashlib.sha256(b"".join(parts)).hexdigest()[:16]

    def sequence(self, i: int) -> np.ndarray:
        """[n, 3] spans of one sequence."""
        return self.spans[self.offsets[i] : self.offsets[i + 1]]


def pack(
    records: TokenRecords,
    sequence_length: int,
    mode: Mode = "isolate",
    domains: tuple[str, ...] | None = None,
) -> Packing:
    """The packing of a split, or of some of its domains.

    Raises:
      ValueError: sequence_length < 2, an unknown mode or domain, or nothing to pack.
    """
    if mode not in ("isolate", "concatenate"):
        raise nearest_error("packing mode", mode, ("isolate", "concatenate"))
    chosen = _choose(records, sequence_length, domains)
    spans = _pieces(chosen, records.lengths[chosen], sequence_length, aligned=mode == "isolate")
    return isolate(spans, sequence_length) if mode == "isolate" else concatenate(spans, sequence_length)


def _choose(records: TokenRecords, sequence_length: int, domains: tuple[str, ...] | None) -> np.ndarray:
    """Indices of the records of these domains, or of all."""
    if sequence_length < 2:
        raise ValueError(f"sequence_length must be at least 2, got {sequence_length}")
    if domains is None:
        return np.arange(len(records))
    known = set(records.documents.domain.tolist())
    for domain in domains:
        if domain not in known:
            raise nearest_error("domain", domain, known)
    return np.flatnonzero(np.isin(records.documents.domain[records.document], domains))


def isolate(spans: np.ndarray, sequence_length: int) -> Packing:
    """Best-fit decreasing: each piece goes to the fullest sequence it fits in. Deterministic."""
    order = np.lexsort((spans[:, 1], spans[:, 0], -spans[:, 2]))
    bins: list[list[int]] = [[] for _ in range(sequence_length + 1)]  # room left -> sequences with that room
    rooms = 0  # bit r is set where bins[r] is not empty: the smallest room that fits is one lowest set bit
    placed: list[int] = []
    sequences = 0
    for length in spans[order, 2].tolist():
        fitting = rooms >> length
        if fitting:
            room = length + (fitting & -fitting).bit_length() - 1
            sequence = bins[room].pop()
            if not bins[room]:
                rooms ^= 1 << room
        else:
            sequence, room = sequences, sequence_length
            sequences += 1
        placed.append(sequence)
        if left := room - length:
            bins[left].append(sequence)
            rooms |= 1 << left
    owner = np.empty(len(spans), np.int64)
    owner[order] = placed
    arranged = np.lexsort((spans[:, 1], spans[:, 0], owner))
    offsets = np.concatenate([[0], np.cumsum(np.bincount(owner, minlength=sequences))])
    return Packing(spans[arranged], offsets, sequence_length, "isolate")


def concatenate(spans: np.ndarray, sequence_length: int) -> Packing:
    """One stream, cut every S tokens; the incomplete end is dropped unless it is all there is."""
    ends = np.cumsum(spans[:, 2])
    starts = ends - spans[:, 2]
    sequences = max(1, int(ends[-1]) // sequence_length)
    borders = np.minimum(np.arange(1, sequences + 1) * sequence_length, ends[-1])
    cuts = np.unique(np.concatenate([starts, ends, borders]))
    cuts = cuts[cuts <= borders[-1]]
    first, last = cuts[:-1], cuts[1:]
    of = np.searchsorted(ends, first, side="right")
    pieces = np.stack([spans[of, 0], spans[of, 1] + first - starts[of], last - first], 1)
    offsets = np.searchsorted(first, np.concatenate([[0], borders]))
    return Packing(pieces, offsets, sequence_length, "concatenate")


def _pieces(records: np.ndarray, lengths: np.ndarray, size: int, aligned: bool) -> np.ndarray:
    """[P, 3]: every record as one span, or cut into spans of at most `size` tokens."""
    if not len(records):
        raise ValueError("there is nothing to pack: no record is chosen")
    if not aligned:
        return np.stack([records, np.zeros_like(records), lengths], 1).astype(np.int64)
    counts = -(-lengths // size)
    record = np.repeat(records, counts)
    within = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
    start = within * size
    return np.stack([record, start, np.minimum(size, np.repeat(lengths, counts) - start)], 1).astype(np.int64)


def batch_shapes(rows: int, length: int) -> dict[str, jax.ShapeDtypeStruct]:
    """What a batch of examples holds, without the text."""
    integers = ("inputs", "labels", "segment_ids", "positions")
    dtypes = dict.fromkeys(integers, np.int32) | {"loss_weight": np.float32}
    return {name: jax.ShapeDtypeStruct((rows, length), dtype) for name, dtype in dtypes.items()}


def example(records: TokenRecords, packing: Packing, i: int) -> dict[str, np.ndarray]:
    """One sequence: inputs, labels, loss_weight, segment_ids, positions, each [S]."""
    size, spans = packing.sequence_length, packing.sequence(i)
    out = {name: np.zeros(size, np.int32) for name in ("inputs", "labels", "segment_ids", "positions")}
    out["loss_weight"] = np.zeros(size, np.float32)
    at, isolated = 0, packing.mode == "isolate"
    for segment, ((_, start, length), record) in enumerate(zip(spans, records.read(spans[:, 0]), strict=True)):
        place = slice(at, at + length)
        out["inputs"][place] = record[start : start + length]
        out["labels"][place] = record[start + 1 : start + length + 1]
        out["loss_weight"][place] = 1
        out["segment_ids"][place] = segment + 1 if isolated else 1
        out["positions"][place] = np.arange(length) if isolated else np.arange(at, at + length)
        at += int(length)
    return out
