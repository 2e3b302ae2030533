"""Packing: every token once, nothing overflows, documents are kept apart and whole."""

from __future__ import annotations

import time
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxpt.data.packing import Packing, example, pack

LENGTHS = st.lists(st.integers(1, 90), min_size=1, max_size=40)


class Records:
    """Token records in memory: token k of record r is 1000 r + k, with 1000 r + 999 in front."""

    def __init__(self, lengths: list[int], domains: str = "") -> None:
        self.lengths = np.array(lengths, np.int64)
        self.document = np.arange(len(lengths))
        names = np.array(list(domains or "a" * len(lengths)))
        self.documents = SimpleNamespace(domain=names)

    def __len__(self) -> int:
        return len(self.lengths)

    def read(self, indices: np.ndarray) -> list[np.ndarray]:
        return [np.concatenate([[1000 * r + 999], 1000 * r + np.arange(self.lengths[r])]) for r in indices]


def covered(packing: Packing) -> list[tuple[int, int]]:
    return [(r, k) for r, start, n in packing.spans.tolist() for k in range(start, start + n)]


def sizes(packing: Packing) -> list[int]:
    return [int(packing.sequence(i)[:, 2].sum()) for i in range(len(packing))]


@settings(deadline=None, max_examples=60)
@given(LENGTHS, st.integers(2, 40))
def test_isolate_holds_every_token_once_and_never_overflows(lengths: list[int], size: int) -> None:
    packing = pack(Records(lengths), size, "isolate")
    assert sorted(covered(packing)) == [(r, k) for r, n in enumerate(lengths) for k in range(n)]
    assert min(sizes(packing)) > 0 and max(sizes(packing)) <= size
    for record, start, n in packing.spans.tolist():  # a record is cut only where it is longer than a sequence
        assert start % size == 0 and (n == size or start + n == lengths[record])


@settings(deadline=None, max_examples=60)
@given(LENGTHS, st.integers(2, 40))
def test_concatenate_is_one_stream_cut_every_s_tokens(lengths: list[int], size: int) -> None:
    packing = pack(Records(lengths), size, "concatenate")
    stream = [(r, k) for r, n in enumerate(lengths) for k in range(n)]
    full = max(1, len(stream) // size)
    assert covered(packing) == stream[: full * size]
    assert sizes(packing) == ([size] * full if len(stream) >= size else [len(stream)])


def test_best_fit_wastes_little_and_is_fast_and_deterministic() -> None:
    lengths = np.random.default_rng(0).integers(1, 1500, 1_000_000)
    began = time.monotonic()
    packing = pack(Records(lengths), 1024, "isolate")  # type: ignore[arg-type]
    assert time.monotonic() - began < 60  # tens of times what it takes: guards against quadratic behaviour only
    assert packing.tokens / (len(packing) * 1024) > 0.99
    again = pack(Records(lengths[:5000]), 1024, "isolate")  # type: ignore[arg-type]
    assert again.fingerprint == pack(Records(lengths[:5000]), 1024, "isolate").fingerprint  # type: ignore[arg-type]


def test_example_isolates_segments_and_restarts_positions() -> None:
    records = Records([3, 2])
    row = example(records, pack(records, 8, "isolate"), 0)  # type: ignore[arg-type]
    assert row["inputs"].tolist() == [999, 0, 1, 1999, 1000, 0, 0, 0]
    assert row["labels"].tolist() == [0, 1, 2, 1000, 1001, 0, 0, 0]
    assert row["loss_weight"].tolist() == [1, 1, 1, 1, 1, 0, 0, 0]
    assert row["segment_ids"].tolist() == [1, 1, 1, 2, 2, 0, 0, 0]
    assert row["positions"].tolist() == [0, 1, 2, 0, 1, 0, 0, 0]
    assert row["inputs"].dtype == np.int32 and row["loss_weight"].dtype == np.float32


def test_example_concatenates_across_documents() -> None:
    records = Records([3, 6])
    packing = pack(records, 4, "concatenate")
    first, second = (example(records, packing, i) for i in range(2))  # type: ignore[arg-type]
    assert first["inputs"].tolist() == [999, 0, 1, 1999] and first["labels"].tolist() == [0, 1, 2, 1000]
    assert second["inputs"].tolist() == [1000, 1001, 1002, 1003]
    assert first["segment_ids"].tolist() == [1] * 4 and first["positions"].tolist() == [0, 1, 2, 3]


def test_domains_are_chosen_by_name() -> None:
    records = Records([4, 5, 6], domains="aba")
    assert set(pack(records, 8, "isolate", domains=("a",)).spans[:, 0].tolist()) == {0, 2}
    with pytest.raises(ValueError, match="unknown domain 'c'"):
        pack(records, 8, "isolate", domains=("c",))


def test_bad_requests() -> None:
    with pytest.raises(ValueError, match="at least 2, got 1"):
        pack(Records([4]), 1)
    with pytest.raises(ValueError, match="did you mean 'isolate'"):
        pack(Records([4]), 8, "isolated")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="nothing to pack"):
        pack(Records([4]), 8, domains=())
