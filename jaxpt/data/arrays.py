"""Examples as dictionaries of arrays: how they are stacked, and a loader of those in memory, in an order that the plan
shuffles anew in every epoch."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from jaxpt.data.plan import Plan, Source


def stacked(rows: Sequence[Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Examples of arrays [...] as a batch of arrays [N, ...]."""
    return {name: np.stack([row[name] for row in rows]) for name in rows[0]}


class OneSize:
    """What a run asks of data whose batches all have one size."""

    batch_size: int
    sequence_length: int

    def size_at(self, update: int) -> tuple[int, int]:
        """(sequences, tokens of each) of an update, counted from 0."""
        return self.batch_size, self.sequence_length


class ArrayLoader:
    """Batches by step: {name: [N, ...]} -> {name: [B, ...]}.

    Args:
      tokens: in each example, for the ledger.
      rows: those of a batch that this process reads.

    Raises:
      ValueError: arrays of different lengths.
    """

    def __init__(
        self, arrays: Mapping[str, np.ndarray], batch_size: int, seed: int, tokens: int, rows: np.ndarray | None = None
    ) -> None:
        counts = {name: len(x) for name, x in arrays.items()}
        if len(set(counts.values())) != 1:
            raise ValueError(f"arrays must have one length, got {counts}")
        self.arrays, self.tokens = dict(arrays), tokens
        self.plan = Plan((Source("all", next(iter(counts.values())), 1.0),), batch_size, seed)
        self._rows = np.arange(batch_size) if rows is None else rows

    @property
    def fingerprint(self) -> str:
        """Hash of the arrays and the plan: equal fingerprints give equal batches."""
        parts = [f"{name}{x.dtype}{x.shape}".encode() + x.tobytes() for name, x in sorted(self.arrays.items())]
        return hashlib.sha256(b"|".join([*parts, self.plan.fingerprint.encode()])).hexdigest()[:16]

    def batch(self, step: int) -> dict[str, np.ndarray]:
        """This process's rows of the batch of one step, with sequence_ids [rows]."""
        sequence = self.plan.rows(step, self._rows)[1]
        return {name: x[sequence] for name, x in self.arrays.items()} | {"sequence_ids": sequence}

    def batches(self, start_step: int = 0) -> Iterator[dict[str, np.ndarray]]:
        """The batches of start_step, start_step + 1, ... for ever."""
        while True:
            yield self.batch(start_step)
            start_step += 1

    def ledger(self, step: int) -> dict[str, float]:
        """Tokens and distinct tokens before `step`."""
        drawn, unique = self.plan.cursors(step)[0], self.plan.unique_sequences(step)["all"]
        return {"tokens": float(drawn * self.tokens), "unique_tokens": float(unique * self.tokens)}
