"""Spec trees, random keys, precision, names, and what importing the package costs."""

from __future__ import annotations

import zlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpt.core import names, rng
from jaxpt.core import spec as specs
from jaxpt.core.precision import Precision, cast_floating
from jaxpt.core.spec import ArraySpec
from jaxpt.weights import SparseLowRank


def small_spec(width: int = 6):
    return {
        "scale": ArraySpec((width,), ("norm",), specs.ones),
        "kernel": SparseLowRank(rank=2, density=0.25).spec(8, width, ("mlp", "embed"), (2,)),
        "table": ArraySpec((5, width), ("vocab", "embed"), specs.normal(0.02), "bfloat16"),
    }


def test_a_spec_gives_arrays_shapes_counts_and_bytes():
    spec = small_spec()
    arrays, shapes = specs.init(jax.random.key(0), spec), specs.abstract(spec)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), arrays) == jax.tree.map(lambda x: (x.shape, x.dtype), shapes)
    entries = 6 + 2 * (8 * 2 + 2 * 6 + 12) + 5 * 6
    assert specs.count(spec) == specs.count(arrays) == specs.count(shapes) == entries
    expected = 4 * 6 + 4 * 2 * (8 * 2 + 2 * 6 + 12 + 12) + 2 * 5 * 6
    assert specs.nbytes(spec) == specs.nbytes(arrays) == specs.nbytes(shapes) == expected
    assert spec["table"].size == 30 and spec["table"].nbytes == 60


def test_one_array_does_not_depend_on_the_others():
    whole = specs.init(jax.random.key(0), small_spec())
    alone = specs.init(jax.random.key(0), {"table": small_spec()["table"]})
    np.testing.assert_array_equal(whole["table"], alone["table"])


@pytest.mark.parametrize(
    ("shape", "axes", "message"),
    [
        ((2, 3), ("embed",), r"shape \(2, 3\) needs 2 axis names"),
        ((2, -1), ("mlp", "embed"), "negative dimension"),
    ],
)
def test_an_impossible_spec_is_an_error(shape, axes, message):
    with pytest.raises(ValueError, match=message):
        ArraySpec(shape, axes, specs.zeros)


def test_initializers():
    key = jax.random.key(0)
    uniform = specs.uniform_fan_in(25)(key, (4000,), jnp.float32)
    assert 0.19 < float(uniform.max()) <= 0.2 and -0.2 <= float(uniform.min()) < -0.19
    assert abs(float(specs.normal(0.5)(key, (4000,), jnp.float32).std()) - 0.5) < 0.02
    assert specs.uniform_fan_in(0)(key, (0, 3), jnp.bfloat16).dtype == jnp.bfloat16


def test_keys_are_folds_of_names_and_numbers_in_order():
    key = jax.random.key(7)
    by_hand = jax.random.fold_in(jax.random.fold_in(key, zlib.crc32(b"data")), 3)
    np.testing.assert_array_equal(jax.random.key_data(rng.fold(key, "data", 3)), jax.random.key_data(by_hand))
    variants = [("data", 3), ("data", 4), ("dat", 3), (3, "data"), ("data",), ()]
    assert len({jax.random.key_data(rng.fold(key, *labels)).tobytes() for labels in variants}) == len(variants)
    traced = jax.jit(lambda step: jax.random.key_data(rng.fold(key, "data", step)))(3)
    np.testing.assert_array_equal(traced, jax.random.key_data(by_hand))


def test_precision_casts_floating_arrays_only():
    tree = {"a": jnp.ones(2), "i": jnp.arange(2), "n": None}
    cast = Precision(compute="bfloat16").cast(tree)
    assert cast["a"].dtype == jnp.bfloat16 and cast["i"].dtype == jnp.int32 and cast["n"] is None
    assert cast_floating(cast, jnp.float32)["a"].dtype == jnp.float32


def test_errors_name_the_nearest():
    assert "did you mean 'low_rank'" in str(names.nearest_error("form", "lowrank", ["dense", "low_rank"]))
    assert str(names.nearest_error("form", "x", [])) == "unknown form 'x' Known: none."
    long = str(names.nearest_error("form", "zzz", [f"n{i:03}" for i in range(99)]))
    assert "n029, ..." in long and "n030" not in long
