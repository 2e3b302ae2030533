"""Topology names: what is known of a slice, and an error that says what to write instead."""

from __future__ import annotations

import pytest

from jaxpt.sharding import topology
from jaxpt.sharding.topology import CHIPS, SLICES


@pytest.mark.parametrize(
    ("name", "chips"), [("v5e:4x8", 32), ("v5p:4x4x4", 64), ("v6e:16x16", 256), (" V5E:2x2 ", 4), ("v6e:1x1", 1)]
)
def test_a_name_gives_a_slice(name, chips):
    found = topology.parse(name)
    assert found.chips == chips and found.name == name.strip().lower()
    assert topology.parse(found.name) == found


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("v5e", "cannot read topology 'v5e': write CHIP:SIZES, for example v5e:4x8"),
        ("v5e:4*8", "cannot read topology"),
        ("v5:4x8", "unknown chip 'v5'; did you mean 'v5"),
        ("v5e:4x4x4", "has 3 sizes, but v5e slices have 2: v5e:1x1, v5e:2x2"),
        ("v5p:4x4", "has 2 sizes, but v5p slices have 3"),
        ("v5e:0x4", "at least 1"),
        ("h100:8", "only TPU topologies can be compiled for without the machine"),
    ],
)
def test_a_wrong_name_says_what_is_wrong(name, message):
    with pytest.raises(ValueError, match=message):
        topology.parse(name)


def test_slices_are_named_smallest_first():
    for chip, sizes in SLICES.items():
        chips = [topology.parse(f"{chip}:{s}").chips for s in sizes]
        assert chips == sorted(chips) and chip in CHIPS


def test_without_libtpu_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setattr(topology, "installed", lambda: False)
    topology._description.cache_clear()
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'jaxpt\[tpu\]'"):
        topology.parse("v5e:8x16").devices()
