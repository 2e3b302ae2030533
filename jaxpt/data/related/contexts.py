"""Contexts along an order of documents: concatenated, cut every S tokens, and shown in an order that the plan shuffles.

Attention crosses the documents of a context: a mask between them would delete the effect. Contexts that follow each other
on the path are related, too; in one batch they would make its gradient a correlated one, so that they must be shuffled, and
`jaxpt.data.plan` does so in every epoch.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from jaxtyping import Int

from jaxpt.data.packing import Packing, _pieces, concatenate
from jaxpt.data.records import TokenRecords


@dataclasses.dataclass(frozen=True)
class Units:
    """What is put in order: whole documents, or pieces of them.

    Attributes:
      spans: [P, 3] of (record, first token, number of tokens), as in `Packing`.
      unit: [P] number of the unit that a span belongs to, not decreasing.
    """

    spans: np.ndarray
    unit: np.ndarray

    def __len__(self) -> int:
        return int(self.unit[-1]) + 1

    @property
    def lengths(self) -> np.ndarray:
        """[N] tokens of every unit."""
        return np.bincount(self.unit, self.spans[:, 2], len(self)).astype(np.int64)

    def of(self, units: np.ndarray) -> np.ndarray:
        """[P', 3] spans of these units, in their order; a unit may be there more than once."""
        first = np.searchsorted(self.unit, np.arange(len(self) + 1))
        counts = np.diff(first)[units]
        within = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
        return self.spans[np.repeat(first[units], counts) + within]

    def tokens(self, records: TokenRecords, unit: int) -> np.ndarray:
        """The tokens that a unit predicts."""
        spans = self.of(np.array([unit]))
        read = zip(spans, records.read(spans[:, 0]), strict=True)
        return np.concatenate([record[s + 1 : s + n + 1] for (_, s, n), record in read])


def whole_documents(records: TokenRecords) -> Units:
    """One unit a document."""
    count = len(records)
    spans = np.stack([np.arange(count), np.zeros(count, np.int64), records.lengths], 1).astype(np.int64)
    return Units(spans, records.document.astype(np.int64))


def pieces(records: TokenRecords, tokens: int, per_document: int) -> Units:
    """Pieces of exactly `tokens` tokens, at most so many of a document, evenly over it.

    A piece from inside a document begins with the token before it, as the first one does with BOS.

    Raises:
      ValueError: no document has so many tokens.
    """
    spans = _pieces(np.arange(len(records)), records.lengths, tokens, aligned=True)
    spans = spans[spans[:, 2] == tokens]
    document = records.document[spans[:, 0]]
    own = np.split(np.arange(len(spans)), np.flatnonzero(np.diff(document)) + 1)
    chosen = np.concatenate([i[np.linspace(0, len(i) - 1, min(per_document, len(i))).astype(int)] for i in own])
    if not len(chosen):
        raise ValueError(f"no document of {records.folder}/{records.split} has {tokens} tokens")
    return Units(spans[chosen], np.arange(len(chosen)))


def pack_in_order(units: Units, order: Int[np.ndarray, " N"], sequence_length: int) -> Packing:
    """The units one after the other in this order, cut every S tokens; a unit may lie in two contexts.

    Raises:
      ValueError: sequence_length < 2, an empty order, a number that is no unit.
    """
    if sequence_length < 2 or not len(order):
        raise ValueError(
            f"need sequence_length >= 2 and something to pack, got {sequence_length} and {len(order)} units"
        )
    if order.min() < 0 or order.max() >= len(units):
        raise ValueError(f"the order names units {order.min()} to {order.max()}, there are {len(units)}")
    return concatenate(units.of(order), sequence_length)


def nearest_first(
    idx: Int[np.ndarray, "N k"], lengths: Int[np.ndarray, " N"], sequence_length: int, order: Int[np.ndarray, " M"]
) -> Int[np.ndarray, " T"]:
    """The baseline with repetition: each document of `order`, then its neighbours, as many as a context holds, until there
    are as many tokens as in all of `order`. Documents that many others are near to come again and again, and the last ones
    of `order` may never come."""
    budget, found = int(lengths[order].sum()), []
    for document in order.tolist():
        room = sequence_length
        for other in [document, *(j for j in idx[document].tolist() if j >= 0)]:
            if room <= 0 or budget <= 0:
                break
            found.append(other)
            room, budget = room - int(lengths[other]), budget - int(lengths[other])
        if budget <= 0:
            break
    return np.array(found, np.int32)
