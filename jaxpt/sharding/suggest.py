"""What would make a training step fit: other settings, each really compiled.

Tried in order of what they cost: first what recomputes more, then microbatches, which keep fewer activations at once, then
splits over more of the mesh. A refusal for lack of memory takes the compiler seconds; an acceptance takes minutes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

from rich.table import Table

from jaxpt.core.names import nearest_error
from jaxpt.sharding import topology
from jaxpt.sharding.aot import Job, compile_job
from jaxpt.sharding.mesh import MeshConfig
from jaxpt.sharding.report import Report, size, verdict
from jaxpt.sharding.topology import SLICES, Topology

REMATS = ("none", "dots", "full")  # from what keeps most to what keeps least
MODEL_SIZES = (2, 4, 8)
TRIES = 12


def suggest(job: Job, where: Topology, tries: int = TRIES) -> list[Report]:
    """Reports of the job and, where it does not fit, of other settings until one does, at most `tries` in all."""
    found = [compile_job(job, where)]
    for other in candidates(job, where):
        if found[-1].fits or len(found) >= tries:
            break
        found.append(compile_job(other, where))
    return found


def candidates(job: Job, where: Topology) -> Iterator[Job]:
    """Other settings of the same update, cheapest first: the same batch, the same losses."""
    remats = list(REMATS[REMATS.index(job.cfg.remat) + 1 :]) if job.cfg.remat in REMATS else []
    meshes = list(_meshes(job, where))
    for remat in remats:
        yield _at(job, remat=remat)
    for mesh in meshes[:1]:  # everything split over every chip, before anything is run in pieces
        yield _at(job, remat="full", mesh=mesh)
    for mesh in (job.mesh, *meshes):
        for accumulate in _microbatches(job, where, mesh):
            yield _at(job, remat="full", mesh=mesh, accumulate=accumulate)


def smallest_slice(job: Job, chip: str, rows: int | None = None) -> list[Report]:
    """Reports on the slices of this chip that are sold, from the smallest up, until one fits.

    Slices over which the batch cannot be shared evenly are passed over.

    Args:
      rows: as for `in_microbatches`; the job's own microbatches where None.
    """
    if chip not in SLICES:
        raise nearest_error("chip", chip, SLICES)
    found: list[Report] = []
    for sizes in SLICES[chip]:
        where = topology.parse(f"{chip}:{sizes}")
        if job.batch % where.chips:
            continue
        found.append(compile_job(job if rows is None else in_microbatches(job, where, rows), where))
        if found[-1].fits:
            return found
    if not found:
        raise ValueError(f"no {chip} slice shares a batch of {job.batch} sequences evenly")
    return found


def in_microbatches(job: Job, where: Topology, rows: int) -> Job:
    """The job in the fewest microbatches of which a chip holds at most `rows` sequences."""
    data, fsdp, _, _ = job.mesh.sizes(where.chips * where.chip.devices)
    for accumulate in range(1, job.batch + 1):
        if job.batch % (accumulate * data * fsdp) == 0 and job.batch // (accumulate * data * fsdp) <= rows:
            return dataclasses.replace(job, accumulate=accumulate)
    raise ValueError(f"a batch of {job.batch} sequences cannot be shared evenly by {data * fsdp} chips (data x fsdp)")


def table(reports: list[Report]) -> Table:
    """One line a try."""
    shown = Table("tried", "on", "mesh", "bytes per chip", "verdict", "roofline step")
    for r in reports:
        mesh = ", ".join(f"{axis}={n}" for axis, n in r.mesh.items() if n > 1)
        step = "" if r.roofline is None else f"{1e3 * r.roofline.step:.0f} ms, bound by {r.roofline.bound}"
        shown.add_row(r.name, r.topology, mesh, size(r.memory.total), verdict(r), step)
    return shown


def _at(job: Job, remat: str, mesh: MeshConfig | None = None, accumulate: int | None = None) -> Job:
    return dataclasses.replace(
        job,
        cfg=dataclasses.replace(job.cfg, remat=remat),
        mesh=job.mesh if mesh is None else mesh,
        accumulate=job.accumulate if accumulate is None else accumulate,
    )


def _meshes(job: Job, where: Topology) -> Iterator[MeshConfig]:
    chips = where.chips * where.chip.devices
    now = job.mesh.sizes(chips)
    for model in (1, *MODEL_SIZES):
        mesh = MeshConfig(data=1, fsdp=chips // model, model=model)
        if chips % model == 0 and mesh.sizes(chips) != now and job.batch % (chips // model) == 0:
            yield mesh


def _microbatches(job: Job, where: Topology, mesh: MeshConfig) -> Iterator[int]:
    """2, 4, 8, ... while every chip still has a row in each."""
    data, fsdp, _, _ = mesh.sizes(where.chips * where.chip.devices)
    accumulate = 2 * job.accumulate
    while job.batch % (accumulate * data * fsdp) == 0:
        yield accumulate
        accumulate *= 2
