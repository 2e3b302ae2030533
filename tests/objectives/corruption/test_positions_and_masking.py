"""Positions are exact and without replacement, never special or padding; what replaces them has the published shares."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxpt.objectives.corruption import masking, over_rows, positions, span_priority
from jaxpt.objectives.corruption.masking import Masking
from jaxpt.objectives.corruption.rows import real_tokens

S = 40
quick = settings(max_examples=40, deadline=None, derandomize=True)
masks_of_s = st.lists(st.booleans(), min_size=S, max_size=S).map(np.asarray)
seeds = st.integers(0, 2**31 - 1)


def within(found, share, trials, sigmas=4.5):
    """A frequency within so many standard deviations of a binomial's: two-sided chance of failing below 1e-5."""
    assert abs(found - share) <= sigmas * np.sqrt(share * (1 - share) / trials), (found, share, trials)


@functools.cache
def drawer(size):
    return jax.jit(lambda key, allowed, number: positions.draw(key, allowed, number, size))


@quick
@given(seeds, masks_of_s, st.integers(0, S), st.sampled_from([1, 6, S]))
def test_a_draw_is_exact_distinct_and_allowed(seed, allowed, number, size):
    key, allowed = jax.random.key(seed), jnp.asarray(allowed)
    chosen = drawer(size)(key, allowed, number)
    found = np.asarray(chosen.position)[np.asarray(chosen.valid)]
    assert len(found) == len(set(found.tolist())) == min(number, size, int(allowed.sum()))
    assert np.asarray(allowed)[found].all()
    assert not np.asarray(chosen.position)[~np.asarray(chosen.valid)].any()
    row = jnp.arange(S) + 100
    after = positions.put(row, chosen, -jnp.ones(size, row.dtype))
    np.testing.assert_array_equal(np.asarray(after) == -1, np.asarray(positions.spread(chosen, S)))
    assert (np.asarray(after) == -1).sum() == len(found)


def test_each_allowed_position_is_as_likely_as_any_other():
    """6 of the 30 allowed: 1/5 each, over 4000 draws; and any of them may come first."""
    allowed = jnp.arange(S) % 4 != 0
    keys = jax.random.split(jax.random.key(0), 4000)
    chosen = jax.jit(jax.vmap(lambda key: positions.draw(key, allowed, 6, 6)))(keys)
    counts = np.bincount(np.asarray(chosen.position).ravel(), minlength=S)
    first = np.bincount(np.asarray(chosen.position[:, 0]), minlength=S)
    for i in range(S):
        within(counts[i] / 4000, 0.2 if allowed[i] else 0.0, 4000)
        within(first[i] / 4000, 1 / 30 if allowed[i] else 0.0, 4000)


@pytest.mark.parametrize(
    ("rate", "n", "expected"), [(0.15, 40, 6), (0.15, 3, 1), (0.15, 0, 0), (0.5, 5, 2), (1.0, 7, 7)]
)
def test_the_number_of_positions(rate, n, expected):
    assert int(positions.count(rate, jnp.asarray(n))) == expected
    assert max(1, expected) == positions.capacity(rate, max(1, n))


def test_the_static_size_holds_every_count():
    for rate in (0.15, 0.3, 0.5, 1.0):
        counts = jax.vmap(lambda n, rate=rate: positions.count(rate, n))(jnp.arange(1, 600))
        sizes = [positions.capacity(rate, n) for n in range(1, 600)]
        np.testing.assert_array_equal(counts, sizes)
        assert sizes == sorted(sizes)


CFG = Masking(mask_id=4, vocab_size=64, special_ids=(0, 1, 9))


def example(rows=3, length=S):
    rng = np.random.default_rng(0)
    ids = rng.integers(0, 64, (rows, length))
    segments = np.where(np.arange(length) < length - 7, 1 + (np.arange(length) > 15), 0)
    return {"inputs": jnp.asarray(ids), "segment_ids": jnp.asarray(np.broadcast_to(segments, ids.shape))}


@pytest.mark.parametrize("by", ["tokens", "spans", "units"])
def test_masked_rows(by):
    """Labels are the originals, only valid entries change the row, no special token and no padding is chosen."""
    batch = example(rows=64)
    batch["unit_ids"] = jnp.broadcast_to(1 + jnp.arange(S) // 3, (64, S))
    cfg = Masking(mask_id=4, vocab_size=64, special_ids=(0, 1, 9), by=by)
    masked = jax.jit(lambda key: masking.mask_batch(key, batch, cfg))(jax.random.key(0))
    before, after = np.asarray(batch["inputs"]), np.asarray(masked.inputs)
    for row in range(64):
        valid = np.asarray(masked.weight[row]) == 1
        index = np.asarray(masked.position[row])[valid]
        assert len(set(index.tolist())) == len(index)
        np.testing.assert_array_equal(np.asarray(masked.labels[row])[valid], before[row][index])
        untouched = np.ones(S, bool)
        untouched[index] = False
        np.testing.assert_array_equal(after[row][untouched], before[row][untouched])
        assert not np.isin(before[row][index], [0, 1, 4, 9]).any() and (index < S - 7).all()
        assert not np.isin(after[row][index], [0, 1, 9]).any()
        if by == "tokens":
            assert len(index) == 5  # round(0.15 * 33)


def test_shares_of_replacements():
    """80 % [MASK], 10 % random (one in 60 of which is the token itself), 10 % kept; random tokens are all ordinary ones."""
    ids = jnp.full(60_000, 20)
    found = np.asarray(jax.jit(lambda key: masking.replace(key, ids, CFG))(jax.random.key(3)))
    within((found == 4).mean(), 0.8, len(found))
    within((found == 20).mean(), 0.1 + 0.1 / 60, len(found))
    others = np.unique(found[(found != 4) & (found != 20)])
    assert set(others.tolist()) == set(range(64)) - {0, 1, 4, 9, 20}
    counts = np.bincount(found, minlength=64)
    for token in others:
        within(counts[token] / len(found), 0.1 / 60, len(found))
    electra = Masking(mask_id=4, vocab_size=64, mask=0.85, random=0.0)
    found = np.asarray(masking.replace(jax.random.key(0), ids, electra))
    within((found == 4).mean(), 0.85, len(found))
    assert set(np.unique(found).tolist()) == {4, 20}


@quick
@given(seeds, st.lists(st.integers(0, 12), min_size=S, max_size=S), st.sampled_from([0.1, 0.3, 1.0]), st.integers(0, S))
def test_units_are_whole_exact_and_within_the_budget(seed, units, rate, budget):
    units = np.asarray(units)
    found = np.asarray(chooser(rate)(jax.random.key(seed), jnp.asarray(units), budget))
    sizes = np.bincount(units, minlength=13)[1:]
    taken = [u for u in range(1, 13) if found[units == u].any()]
    assert all(found[units == u].all() for u in taken) and not found[units == 0].any()
    present = int((sizes > 0).sum())
    wanted = max(1, int(np.round(np.float32(rate) * present))) if present else 0
    assert len(taken) <= wanted and found.sum() <= budget
    if sizes.sum() <= budget:
        assert len(taken) == wanted


@functools.cache
def chooser(rate):
    return jax.jit(lambda key, units, budget: masking.choose_units(key, units, rate, budget))


def test_unit_ids_count_the_members():
    starts = jnp.asarray([True, True, False, True, False, False])
    member = jnp.asarray([False, True, True, True, True, False])
    np.testing.assert_array_equal(masking.unit_ids(starts, member), [0, 1, 1, 2, 2, 0])


def by_the_loop(lengths, u, kind, counts, real, allowed, number):
    """GPT-BERT's spans one after the other, written down."""
    span = []
    for i, n in enumerate(lengths):
        span += [i] * int(n)
    span = np.asarray(span[: len(real)])
    weight = np.exp(counts - counts[allowed].max()) * allowed
    priority = np.where(allowed, u[span] * (weight / weight.sum()).astype(np.float32), np.inf)
    last = np.sort(priority)[max(1, number) - 1]
    return (priority <= last) & allowed, kind[span]


def test_span_priority_is_the_releases_rule():
    """Against the rule written as a loop, from the same random numbers, with counts of earlier passes."""
    rng = np.random.default_rng(0)
    real, rate = np.arange(S) < 36, 0.3
    for seed in range(20):
        key = jax.random.key(seed)
        allowed = real & (rng.random(S) < 0.9)
        counts = rng.integers(0, 3, S)
        chosen, kind = span_drawer()(key, jnp.asarray(real), jnp.asarray(allowed), jnp.asarray(counts))
        fold = span_priority.fold
        lengths = jax.random.randint(fold(key, "lengths"), (S,), 1, 4)
        u, kinds, more = (
            np.asarray(jax.random.uniform(fold(key, n), s))
            for n, s in (("priority", (S,)), ("kind", (S,)), ("number", ()))
        )
        expected, of_span = by_the_loop(lengths, u, kinds, counts, real, allowed, int(np.floor(36 * rate + more)))
        found = np.asarray(chosen.position)[np.asarray(chosen.valid)]
        np.testing.assert_array_equal(found, np.flatnonzero(expected))
        np.testing.assert_allclose(np.asarray(kind)[np.asarray(chosen.valid)], of_span[found])


@functools.cache
def span_drawer():
    return jax.jit(lambda key, real, allowed, counts: span_priority.draw(key, real, allowed, 0.3, 24, counts))


def test_whole_spans_are_masked_and_somewhat_more_than_the_rate():
    """At n = 126 and 15 % on a first pass: 18.9 wanted; ties of the last span make it about 19.6 (as the release)."""
    everything, n = jnp.ones(126, bool), 126
    size = Masking(mask_id=4, vocab_size=64, by="spans").size(n)

    def one(key):
        chosen, _ = span_priority.draw(key, everything, everything, 0.15, size)
        return chosen.valid.sum(), chosen

    number, chosen = jax.jit(jax.vmap(one))(jax.random.split(jax.random.key(0), 2000))
    assert 19.3 < float(number.mean()) < 19.9
    assert int(number.max()) <= int(0.15 * n) + 3 and int(number.min()) >= 18
    # neighbours are masked together far more often than by chance (0.156 squared)
    hidden = np.asarray(jax.vmap(lambda c: positions.spread(c, n))(chosen))
    assert (hidden[:, 1:] & hidden[:, :-1]).mean() > 0.07


def test_counters_even_out_who_is_masked():
    """Over 30 passes the variance of the counts is under half of that of independent draws."""
    real = jnp.ones((64, S), bool)
    cfg = Masking(mask_id=4, vocab_size=64, rate=0.15, by="spans")

    def one_pass(carry, key):
        batch = {"inputs": jnp.full((64, S), 20), "mask_counts": carry}
        masked = masking.mask_batch(key, batch, cfg)
        return span_priority.counted(carry, masked.position, masked.weight), masked.weight.sum(-1)

    keys = jax.random.split(jax.random.key(0), 30)
    counts, numbers = jax.jit(lambda: jax.lax.scan(one_pass, jnp.zeros((64, S), jnp.int32), keys))()
    assert int(counts.sum()) == int(numbers.sum())
    p = float(counts.mean()) / 30
    assert float(counts.var()) < 0.5 * 30 * p * (1 - p)
    assert real.all()


def test_a_rate_of_each_row():
    batch = {"inputs": jnp.full((2, 100), 20), "mask_rate": jnp.asarray([0.15, 0.3])}
    cfg = Masking(mask_id=4, vocab_size=64, rate=0.3)
    masked = jax.jit(lambda key: masking.mask_batch(key, batch, cfg))(jax.random.key(0))
    np.testing.assert_array_equal(masked.weight.sum(-1), [15, 30])


@pytest.mark.parametrize("by", ["tokens", "spans", "units"])
def test_draws_depend_on_key_row_and_position_alone(by):
    """Padding, other rows, jit and being part of a batch change nothing; another key or row does."""
    batch = example()
    batch["unit_ids"] = jnp.broadcast_to(1 + jnp.arange(S) // 2, (3, S)) * real_tokens(batch)
    cfg, key = Masking(mask_id=4, vocab_size=64, by=by, rate=0.3), jax.random.key(7)
    run = jax.jit(lambda key, batch: masking.mask_batch(key, batch, cfg).inputs)
    whole = run(key, batch)
    np.testing.assert_array_equal(whole, run(key, batch))
    longer = {name: jnp.pad(x, ((0, 0), (0, 9))) for name, x in batch.items()}
    np.testing.assert_array_equal(run(key, longer)[:, :S], whole)
    part = {name: x[1:] for name, x in batch.items()} | {"row": jnp.asarray([1, 2])}
    np.testing.assert_array_equal(run(key, part), whole[1:])
    assert (run(jax.random.key(8), batch) != whole).any()
    same = batch | {"inputs": jnp.broadcast_to(batch["inputs"][:1], (3, S))}
    assert (run(key, same)[0] != run(key, same)[1]).any()


def test_a_row_without_allowed_positions_is_left_alone():
    batch = {"inputs": jnp.zeros((2, 8), jnp.int32), "segment_ids": jnp.asarray([[0] * 8, [1] * 8])}
    for by in ("tokens", "spans"):
        cfg = Masking(mask_id=4, vocab_size=64, special_ids=(0,), by=by)
        masked = jax.jit(lambda key, cfg=cfg: masking.mask_batch(key, batch, cfg))(jax.random.key(0))
        np.testing.assert_array_equal(masked.inputs, batch["inputs"])
        assert not masked.weight.any()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"by": "token"}, "did you mean 'tokens'"),
        ({"rate": 0.0}, "rate=0.0"),
        ({"mask": 0.8, "random": 0.3}, "sum to at most 1"),
        ({"special_ids": (70,)}, r"ids \[70\] are not in a vocabulary of 64"),
        ({"vocab_size": 5, "special_ids": (0, 1, 2, 3)}, "all 5 ids"),
    ],
)
def test_impossible_settings_are_named(fields, message):
    with pytest.raises(ValueError, match=message):
        Masking(**({"mask_id": 4, "vocab_size": 64} | fields))


def test_missing_units_and_impossible_sizes_are_named():
    batch = {"inputs": jnp.zeros((2, 8), jnp.int32)}
    with pytest.raises(ValueError, match="unit_ids"):
        masking.mask_batch(jax.random.key(0), batch, Masking(mask_id=4, vocab_size=64, by="units"))
    with pytest.raises(ValueError, match="between 1 and the row's 8, got 9"):
        over_rows(lambda k, x: positions.draw(k, x, 1, 9), jax.random.key(0), batch, jnp.ones((2, 8), bool))
