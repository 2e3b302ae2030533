"""Text whose sequences grow longer and whose batches grow larger on the way: GPT-BERT's schedule (arXiv 2410.24159).

    PhasedData(sequence_length=128, batch_size=1024, steps=1000)
      until 70 % of the updates rows of 128 tokens, until 90 % of 256 and half as many, then of 512 and a quarter as many

Where `grow` says so, the number of rows rises in equal steps from `grow` times the full one, so that tokens per update do
too. The rate of hidden tokens falls on a line from the first to the second number of `mask_rate` and is the batch's
"mask_rate" [B], which `Masking` reads.

Everything is a function of (seed, step): each pair of a length and a number of rows is a loader of its own, all over the
same records, with an order of its own by the seed. So a run may see a text again before it has seen all.
Each shape compiles the step once more: a step's batch size changes `stages` times while it grows and len(lengths) - 1 times
after.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from collections.abc import Iterator

import jax
import numpy as np
from jax.sharding import Mesh

from jaxpt.data.loader import Loader, single_source
from jaxpt.data.packing import pack
from jaxpt.pretrain import Data, DataConfig
from jaxpt.sharding import local_rows


@dataclasses.dataclass(frozen=True, kw_only=True)
class PhasedData(DataConfig):
    """`sequence_length` and `batch_size` are those of the first phase, at its end; the held-out documents have them, too.

    Attributes:
      steps: updates of the run, of which the shares are.
      lengths: (share of the updates at which it begins, how many times longer, and fewer, rows are).
      grow: rows of the first updates as a share of the full number; 1 for no growth. They grow until the second length.
      stages: equal steps in which they do.
      mask_rate: at the first and after the last update; None for none.
    """

    steps: int = 300
    lengths: tuple[tuple[float, int], ...] = ((0.0, 1), (0.7, 2), (0.9, 4))
    grow: float = 1.0
    stages: int = 4
    mask_rate: tuple[float, float] | None = (0.3, 0.15)

    def __post_init__(self) -> None:
        shares = [share for share, _ in self.lengths]
        if not shares or shares[0] != 0 or shares != sorted(set(shares)) or shares[-1] >= 1:
            raise ValueError(f"lengths must begin at rising shares of the run, the first at 0, got {self.lengths}")
        bad = [times for _, times in self.lengths if times < 1 or self.batch_size % times]
        if bad:
            raise ValueError(f"a batch of {self.batch_size} rows cannot have rows {bad[0]} times longer and fewer")
        if not 0 < self.grow <= 1 or self.stages < 1 or self.steps < 1:
            raise ValueError(
                f"need 0 < grow <= 1, stages >= 1 and steps >= 1, got {self.grow}, {self.stages}, {self.steps}"
            )

    def open(self, vocab_size: int) -> PhasedText:
        plain = super().open(vocab_size)
        return PhasedText(self, plain.train, plain.validation)

    @functools.cached_property
    def phases(self) -> tuple[tuple[int, int, int], ...]:
        """(first update from 0, sequence length, rows) of each phase."""
        starts = [(round(share * self.steps), times) for share, times in self.lengths]
        found = []
        if self.grow < 1:
            until = starts[1][0] if len(starts) > 1 else self.steps
            for i in range(self.stages):
                share = self.grow + (1 - self.grow) * i / max(self.stages - 1, 1)
                found.append((until * i // self.stages, self.sequence_length, max(1, round(share * self.batch_size))))
            starts = starts[1:]
        return (*found, *((s, self.sequence_length * times, self.batch_size // times) for s, times in starts))

    def size_at(self, update: int) -> tuple[int, int]:
        """(sequences, tokens of each) of an update, counted from 0."""
        _, length, rows = self.phases[self.phase_at(update)]
        return rows, length

    def phase_at(self, update: int) -> int:
        """The number of the phase that an update, counted from 0, is in."""
        return max(i for i, (first, _, _) in enumerate(self.phases) if first <= update)

    def batch_shapes(self, rows: int, length: int) -> dict[str, jax.ShapeDtypeStruct]:
        rate = {} if self.mask_rate is None else {"mask_rate": jax.ShapeDtypeStruct((rows,), np.float32)}
        return super().batch_shapes(rows, length) | rate

    def rate_at(self, step: int) -> float:
        """Share of hidden tokens in the update after `step`."""
        first, last = (0.0, 0.0) if self.mask_rate is None else self.mask_rate
        return first + (last - first) * min(step / self.steps, 1.0)


@dataclasses.dataclass(frozen=True)
class PhasedText(Data):
    """Opened records; `loader` changes the batch's shape on the way."""

    cfg: PhasedData

    def loader(self, mesh: Mesh | None = None, seed: int | None = None) -> PhasedLoader:  # type: ignore[override]
        """The batches, of which this process reads the rows that its devices of the mesh need."""
        seed, loaders = self.cfg.seed if seed is None else seed, []
        packed = functools.cache(lambda length: pack(self.train, length, self.cfg.packing))  # type: ignore[arg-type]
        for number, (_, length, rows) in enumerate(self.cfg.phases):
            own = seed + (number << 32)  # another order in each phase
            loaders.append(single_source(self.train, packed(length), rows, own, rows=local_rows(mesh, rows)))
        return PhasedLoader(self.cfg, tuple(loaders))


@dataclasses.dataclass(frozen=True)
class PhasedLoader:
    """One loader after the other. Phase p's update s is its loader's update s - (first update of p)."""

    cfg: PhasedData
    loaders: tuple[Loader, ...]

    @property
    def fingerprint(self) -> str:
        """Changes with anything that changes a batch."""
        parts = [repr(self.cfg.phases), repr(self.cfg.mask_rate), *(x.fingerprint for x in self.loaders)]
        return hashlib.sha256("|".join(parts).encode()).hexdigest()[:16]

    def batch(self, step: int) -> dict[str, np.ndarray]:
        """This process's rows of the batch of one update, counted from 0."""
        number = self.cfg.phase_at(step)
        return self._with_rate(self.loaders[number].batch(step - self.cfg.phases[number][0]), step)

    def batches(self, start_step: int = 0) -> Iterator[dict[str, np.ndarray]]:
        """The batches from this update on, each phase's read ahead by threads."""
        for number, (first, _, _) in enumerate(self.cfg.phases):
            last = self._end(number)
            step = max(start_step, first)
            if last is not None and step >= last:
                continue
            for batch in self.loaders[number].batches(step - first):
                yield self._with_rate(batch, step)
                step += 1
                if step == last:
                    break

    def ledger(self, step: int) -> dict[str, float]:
        """Tokens before `step`, and distinct ones: at least those of the phase that has the most, which is what is given."""
        counts = []
        for number, (first, _, _) in enumerate(self.cfg.phases):
            last = self._end(number)
            counts.append(self.loaders[number].ledger(max(0, (step if last is None else min(step, last)) - first)))
        return {
            "tokens": sum(c["tokens"] for c in counts),
            "unique_tokens": max(c["unique_tokens"] for c in counts),
        }

    def _end(self, number: int) -> int | None:
        following = self.cfg.phases[number + 1 : number + 2]
        return following[0][0] if following else None

    def _with_rate(self, batch: dict[str, np.ndarray], step: int) -> dict[str, np.ndarray]:
        if self.cfg.mask_rate is None:
            return batch
        rows = len(batch["inputs"])
        return batch | {"mask_rate": np.full(rows, self.cfg.rate_at(step), np.float32)}
