"""The mesh builder and the one table from logical axes to mesh axes."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import PartitionSpec

from jaxpt.core import spec as specs
from jaxpt.core.spec import ArraySpec
from jaxpt.models import decoder
from jaxpt.sharding import AXES, RULES, MeshConfig, constrain, make_mesh, partition_spec, platform, shardings

SIZES = {"data": 2, "fsdp": 2, "model": 4, "expert": 1}


@pytest.mark.parametrize(
    ("given_sizes", "expected"),
    [
        ({}, (8, 1, 1, 1)),
        ({"fsdp": 2, "model": 4}, (1, 2, 4, 1)),
        ({"data": 2, "fsdp": -1}, (2, 4, 1, 1)),
        ({"data": 1, "model": 8}, (1, 1, 8, 1)),
    ],
    ids=str,
)
def test_mesh_sizes(given_sizes, expected):
    mesh = make_mesh(MeshConfig(**given_sizes))
    assert mesh.axis_names == AXES and mesh.devices.shape == expected
    assert {d.id for d in mesh.devices.flat} == {d.id for d in jax.devices()}


def test_a_mesh_over_some_devices():
    assert make_mesh(MeshConfig(fsdp=2), jax.devices()[:4]).devices.shape == (2, 2, 1, 1)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"data": 3}, "needs 3 devices.*there are 8; change the sizes or set one of them to -1"),
        ({"fsdp": 3}, "there are 8"),
        ({"data": 16}, "needs 16 devices"),
        ({"data": -1, "fsdp": -1}, "at most one of them -1"),
        ({"data": 0}, "must be positive"),
        ({"data": 1, "model": -2}, "must be positive"),
    ],
    ids=str,
)
def test_a_wrong_mesh_size_says_what_is_there(wrong, message):
    with pytest.raises(ValueError, match=message):
        make_mesh(MeshConfig(**wrong))


@pytest.mark.parametrize(
    ("axes", "shape", "expected"),
    [
        (("mlp", "embed"), (16, 8), (("model",), ("fsdp",))),
        (("layers", "mlp", "embed"), (3, 16, 8), (None, ("model",), ("fsdp",))),
        (("batch", "sequence", "features"), (8, 5, 6), (("data", "fsdp"), None, None)),
        (("batch", "sequence", "vocab"), (8, 5, 12), (("data", "fsdp"), None, ("model",))),
        (("batch",), (6,), (("data",),)),  # 6 rows: data divides, data * fsdp does not
        (("batch",), (3,), (None,)),
        (("mlp", "embed"), (18, 7), (None, None)),  # nothing divides: replicated
        (("heads", "mlp"), (16, 16), (("model",), None)),  # a mesh axis is used once
        ((None, "embed"), (4, 8), (None, ("fsdp",))),
        (("experts",), (8,), (None,)),  # an axis of size 1 is not named
    ],
)
def test_partition_specs(axes, shape, expected):
    assert partition_spec(axes, shape, SIZES) == PartitionSpec(*expected)


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_a_partition_spec_always_divides_and_uses_each_mesh_axis_once(data):
    axes = data.draw(st.lists(st.sampled_from([*RULES, None]), min_size=1, max_size=4))
    shape = data.draw(st.lists(st.integers(1, 48), min_size=len(axes), max_size=len(axes)))
    sizes = {name: data.draw(st.sampled_from([1, 2, 3, 4])) for name in AXES}
    spec = partition_spec(axes, shape, sizes)
    entries = [(entry,) if isinstance(entry, str) else entry or () for entry in spec]
    used = [name for entry in entries for name in entry]
    assert len(used) == len(set(used))
    for length, entry in zip(shape, entries, strict=True):
        assert length % int(np.prod([sizes[name] for name in entry])) == 0


def test_an_unknown_logical_axis_names_the_nearest():
    with pytest.raises(ValueError, match="unknown logical axis 'embd'; did you mean 'embed'"):
        partition_spec(("embd",), (8,), SIZES)
    with pytest.raises(ValueError, match="unknown logical axis"):
        shardings({"a": ArraySpec((8,), ("nope",), specs.zeros)}, make_mesh())


def test_every_axis_of_the_decoder_is_in_the_table_and_nothing_large_is_replicated():
    """On 2 x 4 devices, every matrix and table of a LLaMA is split over at least 4, most over 8."""
    cfg = decoder.Config(vocab_size=64, layers=2, width=16, heads=4, ffn=32)
    spec, mesh = decoder.spec(cfg), make_mesh(MeshConfig(data=1, fsdp=2, model=4))
    for array, sharding in zip(jax.tree.leaves(spec), jax.tree.leaves(shardings(spec, mesh)), strict=True):
        share = np.prod(sharding.shard_shape(array.shape)) / array.size
        assert share <= (1 / 8 if len(array.shape) - ("layers" in array.axes) == 2 else 1)


def test_constrain_lays_out_on_the_ambient_mesh_and_does_nothing_without_one():
    x = jnp.ones((8, 4, 6))
    assert constrain(x, "batch", "sequence", "features") is x
    with jax.set_mesh(make_mesh(MeshConfig(data=2, fsdp=4))):
        found = jax.jit(lambda x: constrain(x * 2, "batch", "sequence", "features"))(x)
    assert found.sharding.shard_shape(x.shape) == (1, 4, 6)


def test_the_platform_is_that_of_the_mesh_or_the_default():
    assert platform() == "cpu"
    with jax.set_mesh(make_mesh()):
        assert platform() == "cpu"
