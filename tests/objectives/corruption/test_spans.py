"""Span corruption has T5's exact numbers, loses no token, and is the same on JAX, NumPy and TensorFlow."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxpt.objectives.corruption import backends, spans
from jaxpt.objectives.corruption.spans import SpanCorruption, apply_sentinels, count_table, noise_mask, sizes

S = 48
SHAPES = ((3.0, 0.15), (8.0, 0.15), (3.0, 0.5), (8.0, 0.5), (64.0, 0.15), (64.0, 0.5), (1.0, 0.9))
quick = settings(max_examples=60, deadline=None, derandomize=True)


def cfg(mean=3.0, density=0.15, **kwargs):
    return SpanCorruption(density=density, mean_length=mean, sentinel=999, **({"eos_id": 1} | kwargs))


def everything(uniforms, ids, length, counts, eos, backend):
    """The mask, inputs and targets, with room for all there can be."""
    mask = noise_mask(uniforms, length, counts[0], counts[1], backend)
    return mask, *apply_sentinels(ids, mask, None, length, cfg(eos_id=eos), (S + 1, 2 * S + 1), backend)


@functools.cache
def on_jax(eos):
    """Rows of any density and length in one program."""
    return jax.jit(lambda *row: everything(*row, eos, backends.JAX))


@pytest.mark.parametrize(
    ("mean", "density", "noise", "number", "inputs", "targets"),
    [
        (3, 0.15, 77, 26, 462, 104), (8, 0.15, 77, 10, 446, 88), (3, 0.5, 256, 85, 342, 342),
        (8, 0.5, 256, 32, 289, 289), (64, 0.15, 77, 1, 437, 79), (64, 0.5, 256, 4, 261, 261),
    ],
)  # fmt: skip
def test_the_numbers_of_t5_at_512(mean, density, noise, number, inputs, targets):
    assert count_table(512, density, mean)[512].tolist() == [noise, number]
    assert sizes(cfg(mean, density), 512) == (inputs, targets)


@pytest.mark.parametrize(("mean", "density", "raw"), [(3, 0.15, 568), (3, 0.5, 766), (8, 0.5, 908), (64, 0.5, 1006)])
def test_the_raw_length_for_512_inputs(mean, density, raw):
    assert spans.raw_length(512, cfg(mean, density)) == raw


@quick
@given(
    st.integers(0, 2**31 - 1), st.integers(0, S), st.integers(0, len(SHAPES) - 1), st.sampled_from([None, 1]),
    st.lists(st.integers(0, 500), min_size=S, max_size=S),
)  # fmt: skip
def test_round_trip_with_exact_numbers(seed, length, which, eos, ids):
    """For every length and denoiser: the text comes back, noise, spans and sizes are what the table says, and NumPy
    computes the same from the same numbers."""
    found, uniforms = cfg(*SHAPES[which], eos_id=eos), np.random.default_rng(seed).random((2, S)).astype(np.float32)
    noise, number = counts = count_table(S, found.density, found.mean_length)[length]
    row = (uniforms, np.asarray(ids, np.int32), length, counts)
    _, *parts = ours = on_jax(eos)(*row)
    for one, two in zip(ours, everything(*row, eos, backends.NUMPY), strict=True):
        np.testing.assert_array_equal(one, two)
    pair = spans.Pair(*parts)
    np.testing.assert_array_equal(spans.restore(pair, found), ids[:length])
    end = eos is not None
    assert (int(pair.input_length), int(pair.target_length)) == (length - noise + number + end, noise + number + end)
    room = sizes(found, S)
    assert int(pair.input_length) <= room[0] and int(pair.target_length) <= room[1]
    for row, n in ((pair.inputs, int(pair.input_length)), (pair.targets, int(pair.target_length))):
        assert (np.asarray(row)[n:] == 0).all()
        assert not end or int(row[n - 1]) == 1
    sentinels = [i for i in np.asarray(pair.targets).tolist() if i > 500]
    assert sentinels == list(range(999, 999 - number, -1))
    if number:
        assert int(pair.inputs[0]) == ids[0] and int(pair.inputs[int(pair.input_length) - 1 - end]) == 1000 - number


@functools.cache
def many_masks(mean, density, draws=4000):
    noise, number = count_table(S, density, mean)[S]
    keys = jax.random.split(jax.random.key(0), draws)
    run = jax.jit(jax.vmap(lambda key: noise_mask(spans.uniforms(key, S), S, noise, number)))
    return np.asarray(run(keys)), int(noise), int(number)


@pytest.mark.parametrize(("mean", "density"), [(3.0, 0.15), (3.0, 0.5)])
def test_marginals_are_the_exact_law_of_random_compositions(mean, density):
    """First never noise, last always; the first span's start and length have the law of a uniform composition."""
    from scipy.special import comb

    mask, noise, number = many_masks(mean, density)
    assert not mask[:, 0].any() and mask[:, -1].all()
    assert (mask.sum(1) == noise).all()
    starts = mask[:, 1:] & ~mask[:, :-1]
    assert (starts.sum(1) == number).all()
    first = starts.argmax(1) + 1  # length of the first part of the text
    for value in range(1, 6):
        share = comb(S - noise - value - 1, number - 2) / comb(S - noise - 1, number - 1)
        found = (first == value).mean()
        assert abs(found - share) <= 4.5 * np.sqrt(share * (1 - share) / len(mask)), (value, found, share)
    length = (~mask[np.arange(len(mask))[:, None], np.minimum(first[:, None] + np.arange(S), S - 1)]).argmax(1)
    for value in range(1, min(4, noise - number + 1)):
        share = comb(noise - value - 1, number - 2) / comb(noise - 1, number - 1)
        found = (length == value).mean()
        assert abs(found - share) <= 4.5 * np.sqrt(share * (1 - share) / len(mask)), (value, found, share)


def test_one_span_is_the_end_of_the_row():
    mask, noise, number = many_masks(64.0, 0.15, 50)
    assert number == 1 and (mask == (np.arange(S) >= S - noise)).all()


def test_longer_rows_and_other_keys():
    """Padding at the end changes nothing; another key gives another mask."""
    ids = jnp.arange(100, 100 + S)
    run = jax.jit(lambda key, ids: spans.corrupt(key, ids, 37, cfg()))
    short, long = run(jax.random.key(0), ids[:40]), run(jax.random.key(0), ids)
    np.testing.assert_array_equal(short.inputs, long.inputs[: len(short.inputs)])
    np.testing.assert_array_equal(short.targets, long.targets[: len(short.targets)])
    other = run(jax.random.key(1), ids)
    assert (other.inputs != long.inputs).any()


def test_tf_data_computes_what_jax_does():
    """The same uniforms give the same inputs and targets in a `tf.data` pipeline, in a graph, for rows of unknown size."""
    tf = pytest.importorskip("tensorflow")
    rng, backend = np.random.default_rng(0), backends.tensorflow()
    rows = []
    for mean, density in SHAPES * 3:
        length = int(rng.integers(0, S + 1))
        numbers, ids = rng.random((2, S)).astype(np.float32), rng.integers(2, 500, S).astype(np.int32)
        rows.append((numbers, ids, length, count_table(S, density, mean)[length]))
    kinds = [
        tf.TensorSpec(s, k) for s, k in (((2, None), tf.float32), ((None,), tf.int32), ((), tf.int32), (2, tf.int32))
    ]
    # copies: TensorFlow computes in place in the arrays that a generator gives it
    copies = [tuple(np.array(x) for x in row) for row in rows]
    data = tf.data.Dataset.from_generator(lambda: iter(copies), output_signature=tuple(kinds))
    found = data.map(lambda *row: everything(*row, 1, backend))
    for row, theirs in zip(rows, found.as_numpy_iterator(), strict=True):
        for one, two in zip(on_jax(1)(*row), theirs, strict=True):
            np.testing.assert_array_equal(one, two)


def test_units_side_by_side_have_a_sentinel_each():
    """Cells 1 and 2 masked: two sentinels, in order, and the row comes back; so does one that begins with noise."""
    ids = jnp.asarray([10, 11, 12, 13, 14, 15, 16, 17])
    noise = jnp.asarray([1, 1, 0, 1, 1, 1, 0, 0], bool)
    starts = jnp.asarray([1, 0, 0, 1, 0, 1, 0, 0], bool)
    pair = apply_sentinels(ids, noise, starts, 8, cfg(), (10, 10))
    np.testing.assert_array_equal(pair.inputs, [999, 12, 998, 997, 16, 17, 1, 0, 0, 0])
    np.testing.assert_array_equal(pair.targets, [999, 10, 11, 998, 13, 14, 997, 15, 1, 0])
    np.testing.assert_array_equal(spans.restore(pair, cfg()), ids)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"density": 0.0}, "got 0.0"),
        ({"mean_length": 0.5}, "got 0.15 and 0.5"),
        ({"sentinel": 7}, "counted down from 7"),
    ],
)
def test_impossible_settings_are_named(fields, message):
    with pytest.raises(ValueError, match=message):
        SpanCorruption(**({"sentinel": 999} | fields))


def test_too_few_sentinels_and_targets_of_another_row_are_errors():
    with pytest.raises(ValueError, match="26 spans, but there are 8 sentinels"):
        spans.corrupt(jax.random.key(0), jnp.zeros(512, jnp.int32), 512, cfg(sentinels=8))
    pair = spans.corrupt(jax.random.key(0), jnp.arange(100, 148), 48, cfg())
    with pytest.raises(ValueError, match="must begin with a sentinel"):
        spans.restore(pair._replace(targets=pair.targets[1:]), cfg())
    with pytest.raises(ValueError, match="inputs have the sentinels"):
        spans.restore(pair._replace(target_length=pair.target_length * 0 + 3), cfg())
