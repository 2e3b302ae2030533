"""MCL's swaps and insertions have exact numbers and can be undone; UL2's rows hold the text, its modes the right shares."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxpt.objectives.corruption import operations, positions
from jaxpt.objectives.corruption.denoisers import UL2, Denoiser, Mixture, example, of_denoiser

S = 32
quick = settings(max_examples=40, deadline=None, derandomize=True)
seeds = st.integers(0, 2**31 - 1)
MODES = (("R", 2), ("S", 3), ("X", 4))
MIX = Mixture(modes=MODES, sentinel=999, eos_id=1)


@functools.cache
def swapper(number):
    return jax.jit(lambda key, ids, allowed: operations.swap(key, ids, allowed, number, 8))


@quick
@given(seeds, st.lists(st.booleans(), min_size=S, max_size=S), st.sampled_from([0, 1, 2, 5, 8]))
def test_a_swap_moves_every_chosen_token_and_loses_none(seed, allowed, number):
    ids = jnp.arange(100, 100 + S)
    after, chosen = swapper(number)(jax.random.key(seed), ids, jnp.asarray(allowed))
    moved = np.asarray(after != ids)
    mask = np.asarray(positions.spread(chosen, S))
    assert sorted(np.asarray(after).tolist()) == np.asarray(ids).tolist()
    assert not mask[~np.asarray(allowed)].any() and mask.sum() == min(number, sum(allowed))
    np.testing.assert_array_equal(moved, mask if mask.sum() > 1 else np.zeros(S, bool))


@functools.cache
def inserter():
    return jax.jit(lambda key, ids, length, number: operations.insert(key, ids, length, number, 7))


@quick
@given(seeds, st.integers(0, S), st.integers(0, S))
def test_removing_what_was_inserted_gives_the_row_back(seed, length, number):
    ids = jnp.where(jnp.arange(S) < length, jnp.arange(100, 100 + S), 0)
    after, inserted = inserter()(jax.random.key(seed), ids, length, number)
    expected = min(number, max(length - 1, 0))
    assert int(inserted.sum()) == expected and not bool(inserted[0])
    assert (np.asarray(after)[np.asarray(inserted)] == 7).all() and not np.asarray(inserted)[length:].any()
    kept = np.where(np.arange(S) < length - expected, ids, 0)
    np.testing.assert_array_equal(operations.remove(after, inserted, 0), kept)
    np.testing.assert_array_equal(after[length:], ids[length:])


def test_insertions_are_spread_evenly():
    """4 of 31 places: each within 4.5 standard deviations of 4/31 over 4000 draws."""
    keys = jax.random.split(jax.random.key(0), 4000)
    found = jax.jit(jax.vmap(lambda key: operations.insert(key, jnp.arange(S), S, 4, 7)[1]))(keys).mean(0)
    share = 4 / 31
    assert (np.abs(np.asarray(found[1:]) - share) < 4.5 * np.sqrt(share * (1 - share) / 4000)).all()


@functools.cache
def maker():
    return jax.jit(lambda key, ids, length, which: of_denoiser(key, ids, length, which, MIX))


def text_of(row):
    """The text of a row of the prefix language model, put together by hand."""
    ids, prefix, length = np.asarray(row.ids), int(row.prefix), int(row.length)
    inputs, targets = ids[1:prefix].tolist(), ids[prefix : length - 1].tolist()
    if not any(i > 500 for i in inputs):
        return inputs + targets
    out = []
    for token in inputs:
        if token > 500:
            at = targets.index(token) + 1
            while at < len(targets) and targets[at] <= 500:
                out.append(targets[at])
                at += 1
        else:
            out.append(token)
    return out


@quick
@given(seeds, st.integers(0, S), st.integers(0, len(UL2) - 1))
def test_every_denoiser_keeps_the_text(seed, length, which):
    ids = jnp.arange(100, 100 + S)
    row = maker()(jax.random.key(seed), ids, length, which)
    assert text_of(row) == list(range(100, 100 + length))
    assert len(row.ids) == MIX.size(S) and int(row.ids[0]) == dict(MODES)[UL2[which].mode]
    assert int(row.ids[int(row.length) - 1]) == 1 and not np.asarray(row.ids)[int(row.length) :].any()
    if UL2[which].mean_length is None and length >= 2:
        assert 1 <= int(row.length) - 1 - int(row.prefix) <= max(1, length // 2)


def test_suffixes_are_uniform_from_one_token_to_half_of_the_text():
    keys = jax.random.split(jax.random.key(0), 4000)
    rows = jax.jit(jax.vmap(lambda key: of_denoiser(key, jnp.arange(S), S, 2, MIX)))(keys)
    rest = np.asarray(rows.length - 1 - rows.prefix)
    shares = np.bincount(rest, minlength=17)[1:] / 4000
    assert rest.min() == 1 and rest.max() == 16
    assert (np.abs(shares - 1 / 16) < 4.5 * np.sqrt(1 / 16 * 15 / 16 / 4000)).all()


@pytest.mark.parametrize("rates", [None, (1.0, 1.0, 2.0, 0.0, 1.0, 1.0, 4.0)])
def test_denoisers_are_drawn_at_their_rates(rates):
    mix = Mixture(modes=MODES, sentinel=999, eos_id=1, rates=rates)
    keys = jax.random.split(jax.random.key(0), 5000)
    rows = jax.jit(jax.vmap(lambda key: example(key, jnp.arange(100, 116), 16, mix)))(keys)
    found = np.bincount(np.asarray(rows.denoiser), minlength=7) / 5000
    expected = np.asarray(rates or (1.0,) * 7) / sum(rates or (1.0,) * 7)
    assert (np.abs(found - expected) <= 4.5 * np.sqrt(expected * (1 - expected) / 5000)).all()
    modes = np.asarray([dict(MODES)[d.mode] for d in UL2])
    np.testing.assert_array_equal(rows.ids[:, 0], modes[np.asarray(rows.denoiser)])


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"denoisers": (Denoiser("Q", 0.15, 3.0),)}, "unknown mode 'Q'"),
        ({"rates": (1.0,)}, "one rate, not negative, for each of 7"),
        ({"denoisers": (Denoiser("R", 1.5, 3.0),)}, "density in"),
    ],
)
def test_impossible_mixtures_are_named(fields, message):
    with pytest.raises(ValueError, match=message):
        Mixture(**({"modes": MODES, "sentinel": 999, "eos_id": 1} | fields))
