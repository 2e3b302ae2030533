"""The plan: which sequences make up the batch of a step, as a pure function of (seed, step).

Nothing is iterated: the batch of step 1,000,000 is computed as directly as that of step 0, on any number of
hosts, so a resumed run needs the step and nothing else. Positions of the global stream are cut into blocks;
each block holds an exact number of sequences of every source, in an order shuffled by the seed, so a
source's cursor is known in closed form. Inside a source, every epoch is another permutation, computed
position by position (a Feistel network), never stored.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib

import numpy as np

ROUNDS = 6


@dataclasses.dataclass(frozen=True)
class Source:
    """One source of a mixture: how many sequences it has, and its share (any positive scale)."""

    name: str
    sequences: int
    weight: float


@dataclasses.dataclass(frozen=True)
class Plan:
    """A static mixture of sources, cut into global batches.

    Raises:
      ValueError: an empty source, a weight that is not positive, or a batch or block size below 1.
    """

    sources: tuple[Source, ...]
    batch_size: int
    seed: int = 0
    block: int = 4096

    def __post_init__(self) -> None:
        if not self.sources or self.batch_size < 1 or self.block < len(self.sources):
            raise ValueError(f"a plan needs sources, batch_size >= 1 and block >= number of sources, got {self}")
        for source in self.sources:
            if source.sequences < 1:
                raise ValueError(f"source {source.name!r} has no sequences")
            if not source.weight > 0:
                raise ValueError(f"source {source.name!r} needs a positive weight, got {source.weight}")

    @property
    def fingerprint(self) -> str:
        """Changes with anything that changes a batch."""
        return hashlib.sha256(repr(self).encode()).hexdigest()[:16]

    @functools.cached_property
    def quotas(self) -> np.ndarray:
        """Sequences of each source in a block: its share, by largest remainder, at least 1."""
        shares = np.array([s.weight for s in self.sources], np.float64)
        exact = shares / shares.sum() * self.block
        counts = np.maximum(np.floor(exact).astype(np.int64), 1)
        while counts.sum() != self.block:
            step = 1 if counts.sum() < self.block else -1
            movable = np.where((counts > 1) | (step > 0), step * (exact - counts), -np.inf)
            counts[int(np.argmax(movable))] += step
        return counts

    def rows(self, step: int, rows: slice | np.ndarray = slice(None)) -> tuple[np.ndarray, np.ndarray]:
        """(source index, sequence index) of the rows of the global batch of `step`, int64 each."""
        positions = np.arange(step * self.batch_size, (step + 1) * self.batch_size)[rows]
        return self.at(positions)

    def at(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(source index, sequence index) at these positions of the global stream."""
        source, cursor = np.empty_like(positions), np.empty_like(positions)
        for block in np.unique(positions // self.block):
            here = positions // self.block == block
            order, rank = self._block(int(block))
            within = positions[here] % self.block
            source[here] = order[within]
            cursor[here] = rank[within] + block * self.quotas[order[within]]
        sequence = np.empty_like(positions)
        for index, s in enumerate(self.sources):
            mine = source == index
            sequence[mine] = self._shuffled(index, cursor[mine], s.sequences)
        return source, sequence

    def cursors(self, step: int) -> np.ndarray:
        """Sequences drawn from each source before `step`."""
        position = step * self.batch_size
        block, within = divmod(position, self.block)
        order = self._block(block)[0][:within]
        return block * self.quotas + np.bincount(order, minlength=len(self.sources))

    def unique_sequences(self, step: int) -> dict[str, int]:
        """Distinct sequences seen before `step`, by source: an epoch shows all before any repeats."""
        seen = zip(self.sources, self.cursors(step), strict=True)
        return {s.name: int(min(n, s.sequences)) for s, n in seen}

    def epochs(self, step: int) -> dict[str, float]:
        """Passes over each source before `step`."""
        return {s.name: float(n / s.sequences) for s, n in zip(self.sources, self.cursors(step), strict=True)}

    def _block(self, block: int) -> tuple[np.ndarray, np.ndarray]:
        return _block_order(self.seed, block, tuple(self.quotas.tolist()))

    def _shuffled(self, source: int, cursor: np.ndarray, length: int) -> np.ndarray:
        """cursor -> sequence: another permutation of range(length) in every epoch."""
        epoch, index = np.divmod(cursor, length)
        out = np.empty_like(index)
        for e in np.unique(epoch):
            here = epoch == e
            out[here] = permute(index[here], length, (self.seed, source, int(e)))
        return out


@functools.lru_cache(maxsize=64)
def _block_order(seed: int, block: int, quotas: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Of each position in a block: its source, and how many earlier ones of the block have the same."""
    order = np.repeat(np.arange(len(quotas)), quotas)
    np.random.default_rng((seed, 1, block)).shuffle(order)
    rank = np.empty_like(order)
    for index, quota in enumerate(quotas):
        rank[order == index] = np.arange(quota)
    for shared in (order, rank):
        shared.setflags(write=False)
    return order, rank


def permute(index: np.ndarray, length: int, seed: tuple[int, ...]) -> np.ndarray:
    """A pseudo-random permutation of range(length) evaluated at `index`, without storing it.

    A Feistel network on 2h bits with 4^h >= length, walked along its cycles until it lands inside the range.
    """
    half = max(1, ((length - 1).bit_length() + 1) // 2)
    mask = np.uint64((1 << half) - 1)
    keys = np.random.default_rng((*seed, 2)).integers(0, 2**63, ROUNDS, dtype=np.uint64)
    value = index.astype(np.uint64)
    outside = np.ones(value.shape, bool)
    while outside.any():
        left, right = value[outside] >> np.uint64(half), value[outside] & mask
        for key in keys:
            left, right = right, left ^ (_mix(right ^ key) & mask)
        value[outside] = (left << np.uint64(half)) | right
        outside = value >= length
    return value.astype(np.int64)


def _mix(x: np.ndarray) -> np.ndarray:
    """The finalizer of splitmix64: every input bit reaches every output bit."""
    with np.errstate(over="ignore"):
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
