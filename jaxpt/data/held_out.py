"""Held-out documents as batches: each document cut in windows of S tokens, one window a row, every token scored once."""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Iterator
from typing import Literal

import numpy as np

from jaxpt.data.packing import Packing, _pieces, example
from jaxpt.data.records import DocumentTable, TokenRecords

Part = Literal["all", "tuning", "report"]


@dataclasses.dataclass(frozen=True)
class HeldOut:
    """Windows of a set of documents.

    Attributes:
      domains: names, in the order of domain_index.
      bytes: UTF-8 bytes of the chosen documents, by domain: the denominator of bits per byte.
      documents: how many were chosen.
    """

    records: TokenRecords
    packing: Packing
    batch_size: int
    domains: tuple[str, ...]
    bytes: dict[str, int]
    documents: int
    row_domain: np.ndarray

    def batches(self) -> Iterator[dict[str, np.ndarray]]:
        """Arrays [B, S] as in training, with domain_index [B]; the last batch is filled with empty rows of weight 0.

        Labels that are EOS carry no weight: they have no bytes in the text.
        """
        rows = len(self.packing)
        for start in range(0, rows, self.batch_size):
            chosen = range(start, min(start + self.batch_size, rows))
            found = [example(self.records, self.packing, i) for i in chosen]
            missing = self.batch_size - len(found)
            batch = {k: np.stack([f[k] for f in found] + [np.zeros_like(found[0][k])] * missing) for k in found[0]}
            batch["loss_weight"] = batch["loss_weight"] * (batch["labels"] != self.records.eos_id)
            batch["domain_index"] = np.concatenate([self.row_domain[chosen], np.zeros(missing, np.int32)])
            yield batch


def held_out(
    records: TokenRecords,
    sequence_length: int,
    batch_size: int,
    *,
    part: Part = "all",
    max_tokens: int | None = None,
) -> HeldOut:
    """Chooses documents in an order given by the hash of their ids.

    Args:
      part: half of the documents for choosing hyperparameters, the other half for reporting; or all.
      max_tokens: each domain gives documents until it has its share of so many tokens, and at least one.

    Raises:
      ValueError: no document is left.
    """
    table = records.documents
    hashes = np.array([zlib.crc32(str(i).encode()) for i in table.id.tolist()], np.int64)
    order = np.argsort(hashes, kind="stable")
    if part != "all":
        order = order[(hashes[order] // 7) % 2 == (0 if part == "tuning" else 1)]
    if max_tokens is not None:
        order = _first_of_each_domain(order, table, max_tokens)
    if not len(order):
        raise ValueError(f"no held-out document left in part {part!r} of {records.folder}/{records.split}")
    domains = tuple(sorted(set(table.domain[order].tolist())))
    sizes = {d: int(table.bytes[order][table.domain[order] == d].sum()) for d in domains}
    chosen = np.flatnonzero(np.isin(records.document, order))
    spans = _pieces(chosen, records.lengths[chosen], sequence_length, aligned=True)
    packing = Packing(spans, np.arange(len(spans) + 1), sequence_length, "isolate")
    of_row = table.domain[records.document[spans[:, 0]]]
    row_domain = np.array([domains.index(d) for d in of_row.tolist()], np.int32)
    return HeldOut(records, packing, batch_size, domains, sizes, len(order), row_domain)


def _first_of_each_domain(order: np.ndarray, table: DocumentTable, max_tokens: int) -> np.ndarray:
    """The documents of `order` that come before their domain has its share of `max_tokens`."""
    share = max_tokens / max(table.tokens[order].sum(), 1)
    kept = []
    for domain in set(table.domain[order].tolist()):
        own = order[table.domain[order] == domain]
        before = np.cumsum(table.tokens[own]) - table.tokens[own]
        kept.append(own[before < share * table.tokens[own].sum()])
    return order[np.isin(order, np.concatenate(kept))] if kept else order
