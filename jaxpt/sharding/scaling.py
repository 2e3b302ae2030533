"""The weak-scaling gate: at a constant batch per chip, more chips must not make one chip do or hold more.

A sharding mistake, such as one dropped constraint on an activation, leaves a program that compiles and gives the right
losses, and in which every chip does a part of its neighbours' work. On 16 chips that hardly shows; on 256 it does.
"""

from __future__ import annotations

import dataclasses

from rich.table import Table

from jaxpt.sharding.aot import Job, compile_job
from jaxpt.sharding.report import Report, size
from jaxpt.sharding.topology import Topology

TOLERANCE = 0.05


@dataclasses.dataclass(frozen=True)
class Scaling:
    """The same job on a small and on a large slice, the batch in proportion."""

    small: Report
    large: Report
    tolerance: float = TOLERANCE

    @property
    def flops(self) -> float:
        """Operations per chip on the large slice over those on the small one."""
        return _ratio(self.large.flops_compiled, self.small.flops_compiled)

    @property
    def temporaries(self) -> float:
        """The same of temporary bytes."""
        return _ratio(self.large.memory.temporaries, self.small.memory.temporaries)

    @property
    def holds(self) -> bool:
        """Whether neither grows by more than the tolerance; a chip's share of split gradients may shrink."""
        return all(x <= 1 + self.tolerance for x in (self.flops, self.temporaries))

    def check(self) -> None:
        """Raises ArithmeticError, with both numbers, where it does not hold."""
        if not self.holds:
            raise ArithmeticError(
                f"weak scaling from {self.small.topology} to {self.large.topology} at the same batch per chip: operations "
                f"per chip {self.flops:.3f} times as many, temporaries {self.temporaries:.3f} times as many bytes; at most "
                f"{1 + self.tolerance:.2f} is allowed. Look for an activation without `constrain`, or a parameter axis "
                f"that the rules table replicates."
            )

    def table(self) -> Table:
        """For a terminal."""
        shown = Table("on", "chips", "batch", "operations per chip", "temporaries per chip", "bytes sent per chip")
        for r in (self.small, self.large):
            sent = sum(c.bytes for c in r.collectives)
            flops = "refused" if r.flops_compiled is None else f"{r.flops_compiled:.4e}"
            shown.add_row(r.topology, str(r.chips), str(r.batch[0]), flops, size(r.memory.temporaries), size(sent))
        verdict = "holds" if self.holds else "does not hold"
        shown.add_row("ratio", "", "", f"{self.flops:.3f}", f"{self.temporaries:.3f}", verdict)
        return shown


def weak_scaling(job: Job, small: Topology, large: Topology) -> Scaling:
    """Compiles the job on both slices; its batch is that of the small one."""
    if job.batch * large.chips % small.chips:
        raise ValueError(f"a batch of {job.batch} on {small.chips} chips is not a whole one on {large.chips}")
    grown = dataclasses.replace(job, batch=job.batch * large.chips // small.chips)
    return Scaling(compile_job(job, small), compile_job(grown, large))


def _ratio(large: float | None, small: float | None) -> float:
    """Infinite where either was refused."""
    return float("inf") if not large or not small else large / small
