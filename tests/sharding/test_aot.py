"""The real TPU compiler on this host: a mesh of chips that are not there, and a refusal that says by how much."""

from __future__ import annotations

import jax
import pytest

from jaxpt.models import decoder
from jaxpt.optim import adam
from jaxpt.sharding import MeshConfig, make_mesh, platform, topology
from jaxpt.sharding.aot import Job, abstract_state, compile_job, shard_bytes
from jaxpt.sharding.topology import GIB

pytestmark = [
    pytest.mark.skipif(not topology.installed(), reason="the TPU compiler is not installed: pip install 'jaxpt[tpu]'"),
    pytest.mark.xdist_group("libtpu"),  # one process at a time may hold it
]
CFG = decoder.Config(vocab_size=32000, layers=4, width=1024, heads=8, ffn=2816, param_dtype="bfloat16")


def test_the_platform_of_a_mesh_of_absent_chips_is_theirs_and_an_axis_of_the_torus_may_be_split():
    with jax.set_mesh(make_mesh(MeshConfig(data=2, fsdp=16, model=2), topology.parse("v5p:4x4x4").devices())):
        assert platform() == "tpu"
    assert platform() == "cpu"


def test_a_step_that_is_too_large_is_refused_with_what_it_wanted():
    found = compile_job(Job(CFG, adam(1e-3), batch=2048, length=256), topology.parse("v5e:1x1"))
    assert not found.fits and "RESOURCE_EXHAUSTED" in found.refused
    assert found.memory.limit == pytest.approx(15.75 * GIB) and found.memory.over > 0
    state, _ = abstract_state(decoder.spec(CFG), adam(1e-3), make_mesh(None, topology.parse("v5e:1x1").devices()))
    assert found.memory.parameters == shard_bytes(state.trainable) and found.roofline is None


def test_a_batch_or_a_slice_that_makes_no_sense_is_named():
    with pytest.raises(ValueError, match="a batch of 6 sequences cannot be shared evenly by 4 chips"):
        compile_job(Job(CFG, adam(1e-3), batch=6, length=256), topology.parse("v5e:2x2"))
    with pytest.raises(ValueError, match="the TPU compiler knows no slice 'v5e:3x5'.*Slices that are sold: v5e:1x1"):
        topology.parse("v5e:3x5").devices()
    mesh = MeshConfig(data=1, fsdp=3)
    with pytest.raises(ValueError, match="needs 3 devices.*there are 4"):
        compile_job(Job(CFG, adam(1e-3), batch=6, length=256, mesh=mesh), topology.parse("v5e:2x2"))
