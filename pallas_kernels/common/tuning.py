"""Tile sizes per operation, chip and shape: a small table in `tuned.json`, made by `python -m pallas_kernels.tune`.

An entry holds up to the largest shape it was made for. Its `source` says what it rests on: "compiled" (the largest tiles the
compiler accepts for that chip, chosen by arithmetic intensity; nobody has timed them) or "timed" (the fastest on the chip).
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib import resources
from typing import Any

from pallas_kernels.common.chips import Chip

_OVERRIDES: dict[str, dict[str, int]] = {}


@contextmanager
def use(operation: str, sizes: dict[str, int]) -> Iterator[None]:
    """Within this, traces of an operation take these sizes instead of the table's: for the search."""
    _OVERRIDES[operation] = sizes
    try:
        yield
    finally:
        del _OVERRIDES[operation]


@functools.cache
def table() -> list[dict[str, Any]]:
    """All entries: {"operation", "chip", "shape", "sizes", "source"}."""
    return json.loads(resources.files("pallas_kernels").joinpath("tuned.json").read_text(encoding="utf-8"))


def sizes(operation: str, chip: Chip | None, shape: Mapping[str, int]) -> dict[str, int]:
    """The tile sizes of the smallest entry that covers `shape`, else of the largest there is.

    A chip without entries of its own uses those of v5e or H100; so does the CPU's interpreter.
    """
    if operation in _OVERRIDES:
        return dict(_OVERRIDES[operation])
    name = chip.name if chip and any(e["chip"] == chip.name and e["operation"] == operation for e in table()) else "v5e"
    if chip is not None and chip.platform == "gpu" and name == "v5e":
        name = "h100"
    own = [e for e in table() if e["operation"] == operation and e["chip"] == name]
    own.sort(key=lambda e: tuple(e["shape"].values()))
    covering = (e for e in own if all(shape[k] <= n for k, n in e["shape"].items()))
    return dict(next(covering, own[-1])["sizes"])
