"""T5's relative positions: the buckets that Transformers has, and the bias they give, with a cache and without."""

from __future__ import annotations

from pathlib import Path

import jax
import numpy as np
import pytest

from jaxpt.layers import positions

GOLDEN = Path(__file__).parent.parent / "golden"


@pytest.mark.parametrize(("name", "buckets", "max_distance"), [("t5_1_0", 16, 128), ("t5_1_1", 8, 20)])
def test_buckets_are_those_of_transformers(name, buckets, max_distance):
    with np.load(GOLDEN / f"{name}.npz") as arrays:
        for both_ways, expected in ((True, arrays["both_ways"]), (False, arrays["backward"])):
            found = positions.relative_buckets(arrays["distances"], buckets, max_distance, both_ways=both_ways)
            np.testing.assert_array_equal(found, expected)
            unused = {buckets // 2} if both_ways else set()  # a distance of 0 that is ahead
            assert set(expected) == set(range(buckets)) - unused


def test_t5s_own_buckets():
    """32 both ways up to 128: 8 exact each way, the last from 91 on (16 (1 - 1/8) log steps)."""
    ahead = np.array([0, -1, -7, -8, -15, -16, -90, -91, -128, -5000, 1, 7, 8, 91, 5000])
    expected = [0, 1, 7, 8, 9, 10, 14, 15, 15, 15, 17, 23, 24, 31, 31]
    np.testing.assert_array_equal(positions.relative_buckets(ahead, 32, 128, both_ways=True), expected)
    backward = positions.relative_buckets(np.array([5, 0, -15, -16, -127, -128]), 32, 128, both_ways=False)
    np.testing.assert_array_equal(backward, [0, 0, 15, 16, 31, 31])


@pytest.mark.parametrize("both_ways", [True, False])
def test_the_bias_is_the_table_at_the_bucket_of_each_pair(both_ways):
    table = jax.random.normal(jax.random.key(0), (8, 3))
    found = jax.jit(lambda t: positions.relative_bias(t, 30, 40, 20, both_ways=both_ways))(table)
    ahead = np.arange(40)[None] - np.arange(30)[:, None]
    bucket = positions.relative_buckets(ahead, 8, 20, both_ways=both_ways)
    np.testing.assert_array_equal(found, np.asarray(table)[bucket].transpose(2, 0, 1)[None])
    later = jax.jit(lambda start: positions.relative_bias(table, 5, 40, 20, both_ways=both_ways, start=start))(22)
    np.testing.assert_array_equal(later, found[:, :, 22:27])


def test_too_few_buckets_are_an_error():
    with pytest.raises(ValueError, match="2 buckets cannot cover a distance of 20 with both_ways=True"):
        positions.relative_buckets(np.arange(3), 2, 20, both_ways=True)
    with pytest.raises(ValueError, match="32 buckets cannot cover a distance of 8"):
        positions.relative_buckets(np.arange(3), 32, 8, both_ways=True)
