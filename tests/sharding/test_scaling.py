"""From 16 to 256 chips, by the real TPU compiler: the work of a chip stays the same, and a dropped constraint is caught."""

from __future__ import annotations

import dataclasses
import functools

import pytest

from jaxpt.layers import block, embeddings
from jaxpt.models import decoder
from jaxpt.optim import adam
from jaxpt.sharding import topology
from jaxpt.sharding.aot import Job, compile_job
from jaxpt.sharding.scaling import Scaling

pytestmark = [
    pytest.mark.skipif(not topology.installed(), reason="the TPU compiler is not installed: pip install 'jaxpt[tpu]'"),
    pytest.mark.xdist_group("libtpu"),  # one process at a time may hold it
]
SMALL, MIDDLE, LARGE = "v5e:4x4", "v5e:8x8", "v5e:16x16"
CFG = decoder.Config(
    vocab_size=512,
    layers=2,
    width=256,
    heads=2,
    ffn=512,
    remat="full",
    attention="xla",  # splash attention names its own layout, and hides a constraint that is lost before it
    param_dtype="bfloat16",
    compute_dtype="bfloat16",
)


def job(chips: int) -> Job:
    """16 sequences a chip, parameters split over all chips: the layout in which a lost constraint costs most."""
    return Job(CFG, adam(1e-3), batch=16 * chips, length=256)


@functools.cache
def small():
    return compile_job(job(16), topology.parse(SMALL))


def test_the_work_of_a_chip_does_not_grow_with_the_number_of_chips():
    found = Scaling(small(), compile_job(job(256), topology.parse(LARGE)))
    found.check()
    assert 0.95 < found.flops < 1.05 and found.temporaries < 1.05  # a chip's share of the gradients shrinks
    assert small().fits and small().memory.parameters > 0


def test_dropped_activation_constraints_are_caught(monkeypatch):
    for room in (block, embeddings):
        monkeypatch.setattr(room, "constrain", lambda x, *axes: x)
    found = Scaling(small(), compile_job(job(64), topology.parse(MIDDLE)))  # it shows at 64, and compiles much faster
    assert not found.holds and max(found.flops, found.temporaries) > 1.5
    with pytest.raises(ArithmeticError, match="at most 1.05 is allowed. Look for an activation without `constrain`"):
        found.check()


def test_a_refused_program_does_not_pass_the_gate():
    refused = dataclasses.replace(small(), flops_compiled=None)
    assert not Scaling(small(), refused).holds
