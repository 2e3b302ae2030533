"""What the devices of a mesh send each other in a compiled program: kind, bytes, mesh axes, and the time it must take."""

from __future__ import annotations

import dataclasses
import math
import re
from typing import Any

import numpy as np
from jax.sharding import Mesh

from jaxpt.sharding.hlo import Computation, Instruction, Program
from jaxpt.sharding.topology import Chip

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "ragged-all-to-all", "collective-permute")
UNKNOWN = "?"


@dataclasses.dataclass(frozen=True)
class Collective:
    """All collectives of one kind over the same mesh axes.

    Attributes:
      kind: one of KINDS.
      axes: mesh axes along which the devices of a group differ, joined by "+"; "?" where it cannot be told.
      count: how many run in one step, loops multiplied out.
      bytes: what one device sends for them in one step.
      devices: of a group.
      seconds: the least time, at the links' full speed.
    """

    kind: str
    axes: str
    count: int
    bytes: float
    devices: int
    seconds: float


def collectives(program: Program, mesh: Mesh, chip: Chip) -> tuple[Collective, ...]:
    """The collectives of one step, largest first.

    A collective that the compiler cut into pieces, to overlap it with computation, appears in several fusions under one
    channel and is counted once.
    """
    found: dict[tuple[str, str, int], list[float]] = {}
    for name, times in program.runs.items():
        if name in program.fused:
            continue
        for i, scope in _here(program, name):
            kind = i.opcode.removesuffix("-start")
            group = _group(i, mesh)
            axes = _axes(group, mesh)
            payload = sum(scope[x].nbytes for x in i.operands if x in scope)
            n = len(group) if kind != "collective-permute" else 2
            sent = payload * _sent_per_byte(kind, n)
            total = found.setdefault((kind, axes, n), [0, 0.0, 0.0])
            total[0] += times
            total[1] += times * sent
            total[2] += times * sent / _speed(group, mesh, chip)
    rows = [Collective(k, axes, int(c), b, n, s) for (k, axes, n), (c, b, s) in found.items()]
    return tuple(sorted(rows, key=lambda r: -r.bytes))


def _here(program: Program, name: str) -> list[tuple[Instruction, Computation]]:
    """The collectives of a computation and of its fusions, each channel once."""
    seen: set[str] = set()
    found: list[tuple[Instruction, Computation]] = []

    def visit(scope: Computation) -> None:
        for i in scope.values():
            if i.opcode.removesuffix("-start") in KINDS:
                channel = re.search(r"channel_id=(\d+)", i.attributes)
                key = channel[1] if channel else i.name
                if key not in seen:
                    seen.add(key)
                    found.append((i, scope))
            elif i.opcode in ("fusion", "async-start"):
                callee = program.computations.get(i.attribute("calls") or "")
                if callee is not None:
                    visit(callee)

    visit(program.computations[name])
    return found


def _sent_per_byte(kind: str, n: int) -> float:
    """Bytes a device sends per byte of its operand, by the best known algorithm (ring)."""
    return {
        "all-gather": n - 1.0,
        "all-reduce": 2 * (n - 1) / n,
        "reduce-scatter": (n - 1) / n,
        "all-to-all": (n - 1) / n,
        "ragged-all-to-all": (n - 1) / n,
        "collective-permute": 1.0,
    }[kind]


def _group(i: Instruction, mesh: Mesh) -> list[int]:
    """The partitions (places in the mesh) of the first group; empty where the text cannot be read."""
    pairs = re.search(r"source_target_pairs=\{\{(\d+),(\d+)\}", i.attributes)
    if pairs:
        return [int(pairs[1]), int(pairs[2])]
    explicit = re.search(r"replica_groups=\{\{([\d,]+)\}", i.attributes)
    if explicit:
        return [int(n) for n in explicit[1].split(",")]
    iota = re.search(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", i.attributes)
    if iota:
        order = np.arange(mesh.size).reshape(_numbers(iota[2]))
        order = order.transpose(_numbers(iota[3])) if iota[3] else order
        return order.reshape(_numbers(iota[1]))[0].tolist()
    named = re.search(
        r"replica_groups=mesh\[([^\]]+)\](?:, device_ids=\(\[([\d,]+)\](?:T\(([\d,]+)\))?\))? ?(?:\{([^}]*)\})?",
        i.attributes,
    )
    if named:
        order = np.arange(mesh.size)
        if named[2]:
            order = order.reshape(_numbers(named[2]))
            order = order.transpose(_numbers(named[3])) if named[3] else order
        return _named_group(named[1], named[4] or "", order.reshape(-1))
    if "replica_groups={}" in i.attributes:
        return list(range(mesh.size))
    return []


def _named_group(axes: str, chosen: str, order: np.ndarray) -> list[int]:
    """The first group of a text like mesh['a'=2,'b'=8] {'b'}, where 'b':(2)4 is the part of b of size 4 that 2 precede."""
    sizes: dict[str, int] = {name: int(n) for name, n in re.findall(r"'([^']+)'=(\d+)", axes)}
    wanted = {
        name: (int(pre or 1), int(part or 0))
        for name, pre, part in re.findall(r"'([^']+)'(?::\((\d+)\)(\d+))?", chosen)
    }
    if math.prod(sizes.values()) != order.size or not set(wanted) <= set(sizes):
        return []
    dims, keep = [], []
    for name, n in sizes.items():
        pre, part = wanted.get(name, (1, 1))
        part = part or n
        if n % (pre * part):
            return []
        dims += [pre, part, n // (pre * part)]
        keep += [False, name in wanted, False]
    return order.reshape(dims)[tuple(slice(None) if k else 0 for k in keep)].reshape(-1).tolist()


def _numbers(text: str) -> list[int]:
    return [int(n) for n in text.split(",")]


def _axes(group: list[int], mesh: Mesh) -> str:
    if not group or max(group) >= mesh.size:
        return UNKNOWN
    places = np.array(np.unravel_index(group, mesh.devices.shape))
    return "+".join(a for a, row in zip(mesh.axis_names, places, strict=True) if len(set(row.tolist())) > 1) or UNKNOWN


def _speed(group: list[int], mesh: Mesh, chip: Chip) -> float:
    """Bytes per second at which a device of this group can send: its links in the directions the group spans.

    Two links in each such dimension of the torus, or one where the dimension is a line, whose ends are not joined.
    """
    if len(group) < 2 or max(group) >= mesh.size:
        return 2 * chip.link
    every = np.array([_coordinates(d) for d in mesh.devices.flat])
    sizes = every.max(0) + 1
    mine = every[group]
    spanned = [d for d in range(every.shape[1]) if len(set(mine[:, d].tolist())) > 1]
    return chip.link * max(1, sum(2 if sizes[d] >= chip.wraps else 1 for d in spanned))


def _coordinates(device: Any) -> tuple[int, ...]:
    return tuple(getattr(device, "coords", None) or (device.id,))
