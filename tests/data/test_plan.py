"""The plan: pure, exact in every block, closed-form cursors, whole epochs before any repeat."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxpt.data.plan import Plan, Source, permute

PLAN = Plan((Source("a", 37, 3.0), Source("b", 5, 1.0), Source("c", 1000, 0.5)), batch_size=6, seed=7, block=20)


def stream(plan: Plan, steps: int) -> list[tuple[int, int]]:
    rows = [plan.rows(step) for step in range(steps)]
    return [(int(s), int(q)) for source, sequence in rows for s, q in zip(source, sequence, strict=True)]


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 3000), st.integers(0, 2**31))
def test_permute_is_a_bijection(length: int, seed: int) -> None:
    assert sorted(permute(np.arange(length), length, (seed,)).tolist()) == list(range(length))


def test_permute_shuffles_and_depends_on_the_seed() -> None:
    one, two = (permute(np.arange(10_000), 10_000, (seed,)) for seed in (0, 1))
    assert abs(np.corrcoef(np.arange(10_000), one)[0, 1]) < 0.05
    assert (one == two).mean() < 0.01
    big = permute(np.arange(1000), 10**12, (0,))  # nothing of that size is stored
    assert len(set(big.tolist())) == 1000 and big.max() < 10**12


def test_every_block_holds_exact_counts() -> None:
    drawn = [source for source, _ in stream(PLAN, 100)]
    for start in range(0, 600, 20):
        assert Counter(drawn[start : start + 20]) == dict(enumerate(PLAN.quotas.tolist()))
    assert PLAN.quotas.tolist() == [13, 5, 2]  # 13.3, 4.4, 2.2: the largest remainder takes the last place


@settings(deadline=None, max_examples=40)
@given(st.lists(st.floats(0.01, 100), min_size=1, max_size=6), st.integers(6, 500))
def test_quotas_fill_the_block(weights: list[float], block: int) -> None:
    plan = Plan(tuple(Source(str(i), 10, w) for i, w in enumerate(weights)), 4, block=block)
    assert plan.quotas.sum() == block and plan.quotas.min() >= 1


def test_cursors_are_those_of_a_simulation() -> None:
    seen = Counter[int]()
    distinct: list[set[int]] = [set(), set(), set()]
    for step in range(60):
        assert PLAN.cursors(step).tolist() == [seen[i] for i in range(3)]
        assert list(PLAN.unique_sequences(step).values()) == [len(d) for d in distinct]
        assert PLAN.epochs(step)["b"] == pytest.approx(seen[1] / 5)
        for source, sequence in zip(*PLAN.rows(step), strict=True):
            seen[int(source)] += 1
            distinct[source].add(int(sequence))


def test_an_epoch_shows_everything_before_anything_repeats() -> None:
    of_a = [sequence for source, sequence in stream(PLAN, 100) if source == 0]
    epochs = [of_a[i : i + 37] for i in range(0, len(of_a) - 36, 37)]
    assert len(epochs) > 5 and all(sorted(e) == list(range(37)) for e in epochs)
    assert epochs[0] != epochs[1]


def test_rows_are_pure_in_seed_and_step() -> None:
    fresh = Plan(PLAN.sources, 6, seed=7, block=20)
    for step in (0, 3, 10**9, 2):
        assert all(np.array_equal(x, y) for x, y in zip(PLAN.rows(step), fresh.rows(step), strict=True))
    other = Plan(PLAN.sources, 6, seed=8, block=20)
    assert stream(other, 5) != stream(PLAN, 5)
    assert other.fingerprint != PLAN.fingerprint == fresh.fingerprint


def test_the_rows_of_a_slice_are_a_slice_of_the_rows() -> None:
    for step in range(8):
        whole = PLAN.rows(step)
        for rows in (slice(0, 3), slice(3, 6), slice(2, 4)):
            assert all(np.array_equal(w[rows], p) for w, p in zip(whole, PLAN.rows(step, rows), strict=True))


def test_bad_plans() -> None:
    with pytest.raises(ValueError, match="'a' has no sequences"):
        Plan((Source("a", 0, 1.0),), 4)
    with pytest.raises(ValueError, match="positive weight, got -1"):
        Plan((Source("a", 3, -1.0),), 4)
    with pytest.raises(ValueError, match="batch_size >= 1"):
        Plan((Source("a", 3, 1.0),), 0)
    with pytest.raises(ValueError, match="needs sources"):
        Plan((), 4)
