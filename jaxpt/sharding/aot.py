"""Ahead-of-time compilation: the real compiler of a machine that is not there, and what it says about a training step.

    job = Job(cfg, adam(3e-3), batch=512, length=256)
    report = compile_job(job, topology.parse("v5e:4x8"))
    print(report.memory.fits, report.roofline.step)

A recipe's command line is three lines: `add_arguments(parser)`, then `raise SystemExit(run(options, job))`.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from jaxpt.core import spec as specs
from jaxpt.core.config import override, parse_overrides
from jaxpt.core.types import Params, PyTree
from jaxpt.data.packing import batch_shapes
from jaxpt.layers import stack
from jaxpt.objectives.base import Objective
from jaxpt.objectives.causal_lm import CausalLM
from jaxpt.sharding import collectives, cost, hlo, topology
from jaxpt.sharding.mesh import MeshConfig, make_mesh
from jaxpt.sharding.report import Memory, Report, refusal, roofline
from jaxpt.sharding.topology import Topology
from jaxpt.training.state import TrainState, create, state_shardings
from jaxpt.training.step import Step, batch_sharding, make_step

Build = Callable[[Mesh, TrainState], Step]  # (mesh, shardings of the state) -> the step
Shapes = Mapping[str, jax.ShapeDtypeStruct]


@dataclasses.dataclass(frozen=True)
class Job:
    """A training step in general terms, so that it can be compiled at other settings than its own.

    Attributes:
      cfg: the model's configuration, with a field `remat`.
      optimizer: an optax transformation.
      batch, length: sequences of the global batch, tokens of each.
      accumulate, clip: as in `make_step`.
      mesh: sizes of the mesh axes. Parameters are split over every chip by default.
      name: for the report.
      objective: what is minimised; of one in phases, give each phase.
      shapes: (batch, length) -> what a batch holds; packed text by default.
    """

    cfg: Any
    optimizer: optax.GradientTransformation
    batch: int
    length: int
    accumulate: int = 1
    clip: float | None = None
    mesh: MeshConfig = dataclasses.field(default_factory=lambda: MeshConfig(data=1, fsdp=-1))
    name: str = "model"
    objective: Objective = dataclasses.field(default_factory=CausalLM)
    shapes: Callable[[int, int], Shapes] = batch_shapes

    @property
    def trained(self) -> Objective:
        """The objective on the model."""
        return self.objective.on(self.cfg)

    def build(self, mesh: Mesh, shardings: TrainState) -> Step:
        """The step."""
        return make_step(
            self.trained.loss, self.optimizer, prepare=self.trained.prepare, accumulate=self.accumulate, clip=self.clip,
            mesh=mesh, shardings=shardings,
        )  # fmt: skip

    def model_flops(self) -> float:
        """Operations of one step over all chips that the model needs, nothing recomputed."""
        return float(self.trained.cost(self.trained.spec(), self.batch, self.length).nominal)


def compile_job(job: Job, where: Topology) -> Report:
    """The report of a job on a slice. Raises as `compile_step`."""
    batch = job.shapes(job.batch, job.length)
    report = compile_step(job.build, job.trained.spec(), job.optimizer, batch, where, job.mesh, job.model_flops())
    remat, micro = getattr(job.cfg, "remat", "none"), job.accumulate
    settings = f"remat {remat}, {micro} microbatch{'es' if micro > 1 else ''}"
    return dataclasses.replace(report, name=f"{job.name} ({settings})")


def compile_step(
    build: Build,
    spec: Params,
    optimizer: optax.GradientTransformation,
    batch: Shapes,
    where: Topology,
    mesh: MeshConfig | None = None,
    model_flops: float | None = None,
) -> Report:
    """Compiles a training step for a slice and reads off what it will take. No array is made.

    Args:
      build: the step for a mesh and the shardings of its state.
      batch: name -> shape over all chips, [B, ...]; "inputs" says how long a sequence is.
      model_flops: operations of one step over all chips, for the utilisation.

    Raises:
      ModuleNotFoundError: libtpu is not installed.
      ValueError: a slice or a mesh that does not exist, rows of the batch that the chips do not share evenly.
    """
    devices = where.devices()
    made = make_mesh(mesh or MeshConfig(), devices)
    shape = batch.get("inputs", next(iter(batch.values()))).shape
    split = made.shape["data"] * made.shape["fsdp"]
    if shape[0] % split:
        raise ValueError(f"a batch of {shape[0]} sequences cannot be shared evenly by {split} chips (data x fsdp)")
    state, sharded = abstract_state(spec, optimizer, made)
    inputs = {
        k: jax.ShapeDtypeStruct(v.shape, v.dtype, sharding=batch_sharding(made, v.shape)) for k, v in batch.items()
    }
    memory = _passed_in(state, inputs, where)
    common: dict[str, Any] = {
        "name": "step",
        "topology": where.name,
        "chips": where.chips,
        "mesh": dict(made.shape),
        "batch": (shape[0], shape[-1] if len(shape) > 1 else 1),
        "flops_model": None if model_flops is None else model_flops / len(devices),
    }
    started = time.perf_counter()
    try:
        # Without the cache on disk: an executable that was loaded from it cannot be read again for another machine.
        compiled = build(made, sharded).run.lower(state, inputs).compile()  # type: ignore[attr-defined]
    except jax.errors.JaxRuntimeError as error:
        return _refused(common, memory, str(error), time.perf_counter() - started)
    return _accepted(common, memory, compiled, made, where, time.perf_counter() - started)


def abstract_state(spec: Params, optimizer: optax.GradientTransformation, mesh: Mesh) -> tuple[TrainState, TrainState]:
    """(shapes with shardings, shardings) of a state at step 0."""
    sharded = state_shardings(spec, optimizer, mesh)
    shapes = jax.eval_shape(lambda: create(specs.init(jax.random.key(0), spec), optimizer))
    place = lambda a, s: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=s)  # noqa: E731
    return jax.tree.map(place, shapes, sharded), sharded


def shard_bytes(tree: PyTree) -> int:
    """Bytes on one device of arrays or shapes that have shardings."""
    return sum(
        jnp.dtype(x.dtype).itemsize * int(jnp.prod(jnp.array(x.sharding.shard_shape(x.shape), dtype=float)))
        for x in jax.tree.leaves(tree)
    )


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `compile`."""
    parser.add_argument("--topology", required=True, help="v5e:4x8, v5p:4x4x4, v6e:16x16, ...; v5e:smallest tries them")
    parser.add_argument("--mesh", default=None, help="sizes of mesh axes, e.g. data=2,fsdp=-1,model=4")
    parser.add_argument("--batch", type=int, default=None, help="sequences of the global batch")
    parser.add_argument("--length", type=int, default=None, help="tokens of a sequence")
    parser.add_argument("--accumulate", type=int, default=None, help="microbatches of an update")
    parser.add_argument("--microbatch", type=int, default=None, help="instead: sequences of a microbatch on one chip")
    parser.add_argument("--remat", default=None, choices=sorted(stack.REMAT), help="what the backward pass recomputes")
    parser.add_argument("--suggest", action="store_true", help="where it does not fit, compile settings that may")
    parser.add_argument(
        "--weak-scaling", default=None, metavar="TOPOLOGY", help="the same batch per chip there: the gate"
    )
    parser.add_argument("--json", action="store_true", help="print JSON alone")


def run(options: argparse.Namespace, job: Job) -> int:
    """Compiles the job with the options over it, prints the report; the exit status: 0 fits, 1 does not.

    Raises:
      ValueError: an option that makes no sense, said in words.
    """
    from jaxpt.sharding import suggest

    job, rows = configured(job, options), options.microbatch
    if options.weak_scaling is not None:
        return _run_weak_scaling(options, job)
    if options.topology.endswith(":smallest"):
        tried = suggest.smallest_slice(job, options.topology.removesuffix(":smallest"), rows)
    else:
        where = topology.parse(options.topology)
        job = job if rows is None else suggest.in_microbatches(job, where, rows)
        tried = suggest.suggest(job, where) if options.suggest else [compile_job(job, where)]
    best = next((r for r in tried if r.fits), tried[0])
    if options.json:
        print(json.dumps(best.to_dict() | {"tried": [r.to_dict() for r in tried]}, indent=1))
    else:
        _show(*([suggest.table(tried)] if len(tried) > 1 else []), best.table())
    return 0 if best.fits else 1


def _run_weak_scaling(options: argparse.Namespace, job: Job) -> int:
    from jaxpt.sharding.scaling import weak_scaling

    found = weak_scaling(job, topology.parse(options.topology), topology.parse(options.weak_scaling))
    if options.json:
        ratios = {"flops": found.flops, "temporaries": found.temporaries, "holds": found.holds}
        print(json.dumps(ratios | {"small": found.small.to_dict(), "large": found.large.to_dict()}, indent=1))
    else:
        _show(found.table())
    return 0 if found.holds else 1


def _show(*tables: Any) -> None:
    from rich.console import Console

    console = Console()
    for shown in tables:
        console.print(shown)


def configured(job: Job, options: argparse.Namespace) -> Job:
    """The job with the options that were given."""
    if options.remat is not None:
        job = dataclasses.replace(job, cfg=dataclasses.replace(job.cfg, remat=options.remat))
    if options.mesh is not None:
        sizes = parse_overrides(part for part in options.mesh.split(",") if part)
        whole = {"data": "1"} if "fsdp" in sizes and sizes["fsdp"] == "-1" else {}
        job = dataclasses.replace(job, mesh=override(MeshConfig(), whole | sizes))
    given = {name: getattr(options, name) for name in ("batch", "length", "accumulate")}
    return dataclasses.replace(job, **{name: value for name, value in given.items() if value is not None})


def _passed_in(state: TrainState, batch: Any, where: Topology) -> Memory:
    return Memory(
        parameters=shard_bytes(state.trainable),
        optimizer=shard_bytes(state.opt_state),
        fixed=shard_bytes(state.fixed),
        batch=shard_bytes(batch),
        temporaries=float("nan"),
        other=0.0,
        limit=where.chip.memory,
    )


def _refused(common: dict[str, Any], memory: Memory, message: str, seconds: float) -> Report:
    try:
        asked, limit = refusal(message)
    except ValueError:
        raise RuntimeError(f"the compiler failed on {common['topology']}, mesh {common['mesh']}: {message}") from None
    passed = memory.parameters + memory.optimizer + memory.fixed + memory.batch
    alone = "HLO temporaries" in message.split("exceeds")[0]  # else what is passed in is part of what it asks for
    memory = dataclasses.replace(memory, temporaries=asked if alone else asked - passed)
    if limit == limit:
        memory = dataclasses.replace(memory, limit=limit)
    return Report(
        **common,
        memory=memory,
        flops_compiled=None,
        flops_counted_once=None,
        bytes_accessed=None,
        bytes_counted_once=None,
        collectives=(),
        roofline=None,
        compile_seconds=seconds,
        refused=message.splitlines()[0],
    )


def _accepted(
    common: dict[str, Any], memory: Memory, compiled: Any, mesh: Mesh, where: Topology, seconds: float
) -> Report:
    program = hlo.parse(compiled.as_text())
    stats, counted = compiled.memory_analysis(), compiled.cost_analysis()
    passed = memory.parameters + memory.optimizer + memory.fixed + memory.batch
    memory = dataclasses.replace(
        memory,
        temporaries=stats.temp_size_in_bytes,
        other=stats.argument_size_in_bytes
        - passed
        + stats.output_size_in_bytes
        - stats.alias_size_in_bytes
        + stats.generated_code_size_in_bytes,
    )
    sent = collectives.collectives(program, mesh, where.chip)
    flops, accessed = cost.flops(program), cost.bytes_accessed(program)
    return Report(
        **common,
        memory=memory,
        flops_compiled=flops,
        flops_counted_once=counted.get("flops"),
        bytes_accessed=accessed,
        bytes_counted_once=counted.get("bytes accessed"),
        collectives=sent,
        roofline=roofline(where.chip, flops, accessed, sent, common["flops_model"]),
        compile_seconds=seconds,
        notes=tuple(_notes(program)),
    )


def _notes(program: hlo.Program) -> list[str]:
    notes = []
    if program.uncounted_loops:
        notes.append(f"loops of unknown length counted once: {', '.join(program.uncounted_loops)}")
    unknown = cost.unknown_kernels(program)
    if unknown:
        notes.append(f"kernels of which only the bytes are counted: {', '.join(sorted(unknown))}")
    return notes
