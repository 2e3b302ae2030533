"""What is known of a training step before it runs anywhere: memory, operations, traffic, and the time they must take."""

from __future__ import annotations

import dataclasses
import math
import re
from typing import Any

from rich.console import Group
from rich.table import Table

from jaxpt.sharding.collectives import Collective
from jaxpt.sharding.topology import GIB, Chip

_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40, "B": 1}


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes on one device.

    Attributes:
      parameters, optimizer, fixed, batch: what is passed in, as it is split over the mesh. `fixed` are the arrays that are
        never trained: supports, masks, frozen bases.
      temporaries: gradients, activations and everything else that lives inside the step. Where the compiler refused, what
        it asked for; NaN where it did not say.
      other: padding of the arrays above, scalars, results that are not written in place, the program itself.
      limit: what the compiler lets a program use.
    """

    parameters: float
    optimizer: float
    fixed: float
    batch: float
    temporaries: float
    other: float
    limit: float

    @property
    def total(self) -> float:
        """All of it."""
        return self.parameters + self.optimizer + self.fixed + self.batch + self.temporaries + self.other

    @property
    def fits(self) -> bool:
        """Whether it is within the limit."""
        return self.total <= self.limit

    @property
    def over(self) -> float:
        """By how many bytes it does not fit; negative: what is left."""
        return self.total - self.limit


@dataclasses.dataclass(frozen=True)
class Roofline:
    """Least seconds of one step, by what each part of a device must do at its published peak.

    `step` is the largest of the three, reached only if they overlap wholly; `serial` their sum, if nothing overlaps.
    `utilisation` is the model's operations at peak over `step`: no run of this program can have a higher one.
    """

    compute: float
    memory: float
    interconnect: float
    utilisation: float

    @property
    def step(self) -> float:
        """The largest."""
        return max(self.compute, self.memory, self.interconnect)

    @property
    def serial(self) -> float:
        """The sum."""
        return self.compute + self.memory + self.interconnect

    @property
    def bound(self) -> str:
        """Which part it is."""
        return max(("compute", "memory", "interconnect"), key=lambda name: getattr(self, name))


@dataclasses.dataclass(frozen=True)
class Report:
    """One training step on one slice.

    Attributes:
      name: what was compiled, in words.
      topology, chips, mesh: the slice, and the sizes of the mesh axes.
      batch: sequences and tokens of each, over all chips.
      memory: bytes per chip.
      flops_model: operations a chip's share of the model needs (`training.ledger`), nothing recomputed; None: not given.
      flops_compiled: operations the compiled program does on one chip, loops multiplied out. None where refused.
      flops_counted_once, bytes_counted_once: XLA's own numbers, which count the body of a loop once.
      bytes_accessed: bytes between a chip and its memory.
      collectives: what the chips send each other.
      roofline: least time of a step. None where the compiler refused.
      compile_seconds: of this machine.
      refused: the compiler's first line, where it refused.
      notes: what the numbers leave out.
    """

    name: str
    topology: str
    chips: int
    mesh: dict[str, int]
    batch: tuple[int, int]
    memory: Memory
    flops_model: float | None
    flops_compiled: float | None
    flops_counted_once: float | None
    bytes_accessed: float | None
    bytes_counted_once: float | None
    collectives: tuple[Collective, ...]
    roofline: Roofline | None
    compile_seconds: float
    refused: str | None = None
    notes: tuple[str, ...] = ()

    @property
    def fits(self) -> bool:
        """Whether the compiler accepted it and it is within the chip's memory."""
        return self.refused is None and self.memory.fits

    def to_dict(self) -> dict[str, Any]:
        """For JSON: the fields, and the totals they imply. NaN becomes null."""
        found = dataclasses.asdict(self) | {"fits": self.fits}
        found["memory"] |= {"total": self.memory.total, "over": self.memory.over}
        if self.roofline is not None:
            found["roofline"] |= {
                "step": self.roofline.step,
                "serial": self.roofline.serial,
                "bound": self.roofline.bound,
            }
        return _finite(found)

    def table(self) -> Group:
        """For a terminal."""
        return Group(*(t for t in (_memory_table(self), _work_table(self), _collective_table(self)) if t is not None))


def roofline(
    chip: Chip, flops: float, accessed: float, collectives: tuple[Collective, ...], model_flops: float | None
) -> Roofline:
    """Times at the chip's peaks. Without the model's operations, the compiled ones stand in for them."""
    times = (flops / chip.flops, accessed / chip.bandwidth, sum(c.seconds for c in collectives))
    useful = flops if model_flops is None else model_flops
    return Roofline(*times, utilisation=useful / chip.flops / max(*times, 1e-30))


def refusal(message: str) -> tuple[float, float]:
    """(bytes asked for, bytes there are) of a compiler's complaint about memory; NaN where it names none.

    Raises:
      ValueError: the message is not about memory.
    """
    if "RESOURCE_EXHAUSTED" not in message and "Ran out of memory" not in message:
        raise ValueError(f"not a complaint about memory: {message.partition(chr(10))[0]}")
    for pattern in (
        r"required for [^(]*\(([\d.]+)([KMGT]?)\w*\) exceeds available \w+ \(([\d.]+)([KMGT]?)",
        r"Used ([\d.]+)([KMGT]?)\w* of ([\d.]+)([KMGT]?)\w* hbm",
    ):
        found = re.search(pattern, message)
        if found:
            return float(found[1]) * _UNITS[found[2]], float(found[3]) * _UNITS[found[4]]
    return math.nan, math.nan


def size(n: float) -> str:
    """Bytes for people."""
    if math.isnan(n):
        return "not said"
    for unit, scale in (("GiB", GIB), ("MiB", 2**20), ("KiB", 2**10)):
        if abs(n) >= scale:
            return f"{n / scale:.2f} {unit}"
    return f"{n:.0f} B"


def verdict(report: Report) -> str:
    """One line: fits with what is left, or by how much it does not."""
    over = report.memory.over
    if report.fits:
        return f"fits, {size(-over)} per chip to spare"
    if math.isnan(over):
        return f"does not fit: {report.refused}"
    return f"does not fit: {size(over)} per chip too much"


def _memory_table(r: Report) -> Table:
    table = Table(title=f"{r.name} on {r.topology} ({r.chips} chips), {_mesh(r)}, batch {r.batch[0]} x {r.batch[1]}")
    table.add_column("bytes per chip")
    table.add_column("", justify="right")
    for name in ("parameters", "optimizer", "fixed", "batch", "temporaries", "other"):
        table.add_row(name, size(getattr(r.memory, name)))
    table.add_section()
    table.add_row("total", size(r.memory.total))
    table.add_row("memory of a chip", size(r.memory.limit))
    table.add_row("verdict", verdict(r))
    return table


def _work_table(r: Report) -> Table | None:
    if r.roofline is None or r.flops_compiled is None or r.bytes_accessed is None:
        return None
    table = Table(caption="; ".join(r.notes) or None)
    table.add_column("per chip and step")
    table.add_column("", justify="right")
    table.add_column("least time", justify="right")
    table.add_row("operations, compiled", f"{r.flops_compiled:.3e}", f"{1e3 * r.roofline.compute:.1f} ms")
    if r.flops_model is not None:
        table.add_row("operations, model", f"{r.flops_model:.3e}", "")
    table.add_row("bytes accessed", size(r.bytes_accessed), f"{1e3 * r.roofline.memory:.1f} ms")
    sent = sum(c.bytes for c in r.collectives)
    table.add_row("bytes sent", size(sent), f"{1e3 * r.roofline.interconnect:.1f} ms")
    table.add_section()
    table.add_row("roofline step", f"bound by {r.roofline.bound}", f"{1e3 * r.roofline.step:.1f} ms")
    table.add_row("utilisation at most", f"{100 * r.roofline.utilisation:.0f} %", "")
    table.add_row("compiled in", f"{r.compile_seconds:.0f} s", "")
    return table


def _collective_table(r: Report) -> Table | None:
    if not r.collectives:
        return None
    table = Table("collective", "mesh axis", "of devices", "count", "bytes sent", "least time")
    for c in r.collectives:
        table.add_row(c.kind, c.axes, str(c.devices), str(c.count), size(c.bytes), f"{1e3 * c.seconds:.2f} ms")
    return table


def _mesh(r: Report) -> str:
    return ", ".join(f"{axis}={n}" for axis, n in r.mesh.items() if n > 1) or "one device"


def _finite(x: Any) -> Any:
    if isinstance(x, dict):
        return {k: _finite(v) for k, v in x.items()}
    if isinstance(x, (list, tuple)):
        return [_finite(v) for v in x]
    return None if isinstance(x, float) and not math.isfinite(x) else x
