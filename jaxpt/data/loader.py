"""The loader: the sequences of the plan, read through Grain, as rows of batches."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from jaxpt.data.arrays import stacked
from jaxpt.data.packing import Packing, example
from jaxpt.data.plan import Plan, Source
from jaxpt.data.records import TokenRecords

FOREVER = 2**62
SOURCE_SHIFT = 40  # a sequence id is source << 40 | sequence number


class Loader:
    """Batches by step, for one of several processes.

    Args:
      sources: name -> (records, packing), in the order of the plan's sources.
      plan: maps a step to sequences.
      process_index, process_count: this process reads rows [h B / H, (h + 1) B / H) of each batch of B.
      rows: the rows it reads, in their place: those that `sharding.local_rows` names for its part of a mesh.
      threads, prefetch: Grain's reading threads, and how many batches they read ahead.

    Raises:
      ValueError: the plan's sources are not these, or the batch does not divide over the processes.
    """

    def __init__(
        self,
        sources: Mapping[str, tuple[TokenRecords, Packing]],
        plan: Plan,
        *,
        process_index: int = 0,
        process_count: int = 1,
        rows: np.ndarray | None = None,
        threads: int = 2,
        prefetch: int = 8,
    ) -> None:
        if [s.name for s in plan.sources] != list(sources):
            raise ValueError(f"the plan's sources {[s.name for s in plan.sources]} are not {list(sources)}")
        for source in plan.sources:
            if source.sequences != len(sources[source.name][1]):
                found = len(sources[source.name][1])
                raise ValueError(f"the plan counts {source.sequences} sequences of {source.name!r}, there are {found}")
        if plan.batch_size % process_count:
            raise ValueError(f"a batch of {plan.batch_size} does not divide over {process_count} processes")
        if not 0 <= process_index < process_count:
            raise ValueError(f"process_index {process_index} is not one of {process_count} processes")
        share = plan.batch_size // process_count
        self.plan, self._sources = plan, list(sources.values())
        self._rows = np.arange(process_index * share, (process_index + 1) * share) if rows is None else rows
        self._threads, self._prefetch = threads, prefetch

    @property
    def fingerprint(self) -> str:
        """Hash of records, packing and plan: equal fingerprints give equal batches."""
        parts = [f"{r.fingerprint}:{p.fingerprint}" for r, p in self._sources]
        return hashlib.sha256("|".join([*parts, self.plan.fingerprint]).encode()).hexdigest()[:16]

    def batch(self, step: int) -> dict[str, np.ndarray]:
        """This process's rows of the batch of one step: arrays [rows, S], and sequence_ids [rows] int64."""
        source, sequence = self.plan.rows(step, self._rows)
        rows = [self._row(int(s), int(i)) for s, i in zip(source, sequence, strict=True)]
        return stacked(rows) | {"sequence_ids": source << SOURCE_SHIFT | sequence}

    def _row(self, source: int, sequence: int) -> dict[str, np.ndarray]:
        records, packing = self._sources[source]
        return example(records, packing, sequence)

    def batches(self, start_step: int = 0) -> Iterator[dict[str, np.ndarray]]:
        """The batches of start_step, start_step + 1, ... for ever, read ahead by threads until `close()`."""
        import grain

        options = grain.ReadOptions(num_threads=self._threads, prefetch_buffer_size=self._prefetch)
        steps = grain.MapDataset.source(_Steps(self, start_step))
        return iter(steps.to_iter_dataset(options))

    def ledger(self, step: int) -> dict[str, float]:
        """Tokens and distinct tokens before `step`: sequences seen times a source's average tokens in one."""
        unique, drawn = self.plan.unique_sequences(step), self.plan.cursors(step)
        density = [p.tokens / len(p) for _, p in self._sources]
        seen = [unique[s.name] for s in self.plan.sources]
        return {
            "tokens": float(np.dot(drawn, density)),
            "unique_tokens": float(np.dot(seen, density)),
        }


@dataclasses.dataclass(frozen=True)
class _Steps:
    """The loader as a Grain data source: element i is the batch of step start + i."""

    loader: Loader
    start: int

    def __len__(self) -> int:
        return FOREVER

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        return self.loader.batch(self.start + int(index))


def single_source(records: TokenRecords, packing: Packing, batch_size: int, seed: int = 0, **kwargs: Any) -> Loader:
    """A loader over one packed split."""
    return mixture({"all": (records, packing, 1.0)}, batch_size, seed, **kwargs)


def mixture(
    parts: Mapping[str, tuple[TokenRecords, Packing, float]], batch_size: int, seed: int = 0, **kwargs: Any
) -> Loader:
    """A loader over a static mixture: name -> (records, packing, weight)."""
    plan = Plan(tuple(Source(n, len(p), w) for n, (_, p, w) in parts.items()), batch_size, seed)
    return Loader({name: (r, p) for name, (r, p, _) in parts.items()}, plan, **kwargs)
