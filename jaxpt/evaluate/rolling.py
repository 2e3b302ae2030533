"""Windows with more context: what lm-evaluation-harness calls rolling windows.

Disjoint windows let the first token of each window see one token. Here a window starts `stride` tokens after
the one before and scores only what that one has not: with stride 1 every token is scored with all the
context that S allows, at S times the cost; with stride S only the last window of a document, moved left
until it is full, gains context.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import numpy as np

from jaxpt.data.arrays import stacked
from jaxpt.data.held_out import HeldOut


@dataclasses.dataclass(frozen=True)
class Rolling:
    """Overlapping windows over the documents of a `HeldOut`."""

    held_out: HeldOut
    stride: int

    @property
    def domains(self) -> tuple[str, ...]:
        """Names, in the order of domain_index."""
        return self.held_out.domains

    @property
    def bytes(self) -> dict[str, int]:
        """UTF-8 bytes of the documents of each domain."""
        return self.held_out.bytes

    def batches(self) -> Iterator[dict[str, np.ndarray]]:
        """As those of `HeldOut`."""
        rows: list[dict[str, np.ndarray]] = []
        for row in self._rows():
            rows.append(row)
            if len(rows) == self.held_out.batch_size:
                yield stacked(rows)
                rows = []
        if rows:
            empty = {name: np.zeros_like(x) for name, x in rows[0].items()}
            yield stacked(rows + [empty] * (self.held_out.batch_size - len(rows)))

    def _rows(self) -> Iterator[dict[str, np.ndarray]]:
        held, records = self.held_out, self.held_out.records
        size = held.packing.sequence_length
        chosen = np.unique(held.packing.spans[:, 0])
        domain = dict(zip(held.packing.spans[:, 0].tolist(), held.row_domain.tolist(), strict=True))
        for document in np.unique(records.document[chosen]):
            parts = chosen[records.document[chosen] == document]
            texts = records.read(parts)
            stream = np.concatenate([texts[0][:1], *(t[1:] for t in texts)])  # [previous, t_1, ..., t_n]
            for first, last, scored in windows(len(stream) - 1, size, self.stride):
                row = _row(stream[first : last + 1], size, last - scored, records.eos_id)
                yield row | {"domain_index": np.array(domain[int(parts[0])], np.int32)}


def rolling(held_out: HeldOut, stride: int) -> Rolling:
    """The documents of `held_out` with windows every `stride` tokens.

    Raises:
      ValueError: a stride outside 1 to S.
    """
    size = held_out.packing.sequence_length
    if not 1 <= stride <= size:
        raise ValueError(f"the stride must be from 1 to the sequence length {size}, got {stride}")
    return Rolling(held_out, stride)


def windows(tokens: int, size: int, stride: int) -> Iterator[tuple[int, int, int]]:
    """(first, last, scored): a window predicts tokens first to last - 1 and scores those from `scored` on."""
    done = min(size, tokens)
    yield 0, done, 0
    while done < tokens:
        last = min(done + stride, tokens)
        yield last - size, last, done
        done = last


def _row(stream: np.ndarray, size: int, scored: int, eos_id: int) -> dict[str, np.ndarray]:
    """The arrays [S] of one window of [previous, tokens]; the last `scored` tokens count."""
    length = len(stream) - 1
    row = {name: np.zeros(size, np.int32) for name in ("inputs", "labels", "segment_ids", "positions")}
    row["inputs"][:length], row["labels"][:length] = stream[:-1], stream[1:]
    row["segment_ids"][:length], row["positions"][:length] = 1, np.arange(length)
    weight = np.zeros(size, np.float32)
    weight[length - scored : length] = stream[length - scored + 1 :] != eos_id
    return row | {"loss_weight": weight}
