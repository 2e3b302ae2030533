"""Many hosts: start-up, and which rows of a batch are this process's.

    python -m recipes.NAME train ...                        one process: nothing happens
    srun python -m recipes.NAME train ...                   Slurm, a TPU pod, a GKE JobSet: recognised
    python ... --coordinator 10.0.0.1:1234 --num-processes 2 --process-id 0        anywhere else

`initialize()` must run before anything touches a device. On CPUs the processes talk through Gloo, JAX's default.
"""

from __future__ import annotations

import argparse
import ctypes
import dataclasses
import importlib.util
import os
import re
import signal
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from jaxpt.sharding.rules import RULES

TPU_PORT, JOBSET_PORT = 8482, 1234


class DistributedError(RuntimeError):
    """The processes of a run cannot find each other, or do not agree on who they are."""


@dataclasses.dataclass(frozen=True)
class Cluster:
    """Where a run's processes meet.

    Attributes:
      kind: what was recognised, for messages.
      coordinator: host:port of process 0; None where JAX asks the machine itself (a TPU VM's metadata).
      num_processes, process_id: as the coordinator.
      local_devices: the only devices of this host that are this process's; None for all.
    """

    kind: str
    coordinator: str | None = None
    num_processes: int | None = None
    process_id: int | None = None
    local_devices: tuple[int, ...] | None = None


_started: Cluster | None = None
_abort_handler: Any = None


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """--coordinator, --num-processes and --process-id, for `initialize`."""
    parser.add_argument(
        "--coordinator", metavar="HOST:PORT", help="where process 0 listens; not needed on a known cluster"
    )
    parser.add_argument("--num-processes", type=int, metavar="N", help="processes in all")
    parser.add_argument("--process-id", type=int, metavar="I", help="number of this process, from 0")


def initialize(
    coordinator: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    *,
    timeout: int = 300,
) -> Cluster | None:
    """Starts `jax.distributed` where there are several processes; a second call changes nothing.

    Args:
      coordinator, num_processes, process_id: all three or none; by default the environment tells (`detect`).
      timeout: seconds to wait for the other processes.

    Returns:
      What was started; None on one process.

    Raises:
      DistributedError: arguments that are incomplete, malformed or not those of the first call; a device was
        used before; the processes did not find each other in time.
    """
    global _started
    given = (coordinator, num_processes, process_id)
    if jax.distributed.is_initialized():
        running = _started or Cluster("jax.distributed", None, jax.process_count(), jax.process_index())
        known = (running.coordinator, running.num_processes, running.process_id)
        if any(new is not None and old is not None and new != old for new, old in zip(given, known, strict=True)):
            raise DistributedError(f"already started as {running}, cannot start again as {given}")
        return running
    cluster = detect(os.environ) if given == (None, None, None) else _explicit(coordinator, num_processes, process_id)
    if cluster is None or cluster.num_processes == 1:
        return None
    me = f"process {_or(cluster.process_id)} of {_or(cluster.num_processes)} ({cluster.kind})"
    failure = (
        f"{me} did not meet the others at {_or(cluster.coordinator, 'the first host of the slice')} within {timeout} s. "
        f"Check that all {_or(cluster.num_processes, '')} processes were started, with the same coordinator and different "
        "process ids, and that its port is free on process 0 and open from here; then start all of them again"
    )
    on_abort(lambda: (failure, 1))
    try:
        jax.distributed.initialize(
            cluster.coordinator,
            cluster.num_processes,
            cluster.process_id,
            local_device_ids=cluster.local_devices,
            cluster_detection_method=None if cluster.coordinator is None else "deactivate",
            initialization_timeout=timeout,
        )
    except Exception as error:
        reason = " ".join(str(error).split())[:300]
        if "before any JAX calls" in reason:
            raise DistributedError(f"{me}: call initialize() first, before any array or jax.devices()") from error
        raise DistributedError(f"{failure} ({reason})") from error
    finally:
        on_abort(None)
    _started = cluster
    return cluster


def detect(environ: Mapping[str, str]) -> Cluster | None:
    """The cluster this process was started in; None where nothing says that there are others.

    Known are JAX_COORDINATOR_ADDRESS with JAX_NUM_PROCESSES and JAX_PROCESS_ID; TPU slices on GKE
    (TPU_WORKER_HOSTNAMES, with MEGASCALE_* for several slices); a GKE JobSet (JOBSET_NAME, JOB_COMPLETION_INDEX,
    PROCESSES_IN_JOB; JOB_INDEX and JAX_PROCESS_COUNT for more than one job); a Slurm step (srun); a TPU VM.

    Raises:
      DistributedError: an environment that says one half and not the other.
    """
    may_be_tpu = environ.get("JAX_PLATFORMS", "") in ("", "tpu", "tpu,cpu")
    if "JAX_NUM_PROCESSES" in environ or "JAX_PROCESS_ID" in environ:
        names = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
        address, count, index = (_need(environ, name, "JAX_*") for name in names)
        return _explicit(address, _number(count, names[1]), _number(index, names[2]))
    if may_be_tpu and environ.get("TPU_WORKER_HOSTNAMES") and "TPU_WORKER_ID" in environ:
        return _gke_tpu(environ)
    if "JOBSET_NAME" in environ and "JOB_COMPLETION_INDEX" in environ:
        return _jobset(environ)
    if "SLURM_STEP_NODELIST" in environ and int(environ.get("SLURM_NTASKS", "1")) > 1:
        return _slurm(environ)
    if may_be_tpu and _on_tpu_vm(environ):
        return Cluster("TPU VM")
    return None


def on_abort(explain: Callable[[], tuple[str, int] | None] | None) -> None:
    """What to print, and the exit code, when native code aborts this process; None to let it.

    JAX aborts a process, past all exceptions, when it cannot reach the coordinator. The function runs on whatever
    thread did it, and the process ends after it.
    """
    global _abort_handler
    libc = ctypes.CDLL(None)
    if explain is None:
        libc.signal(int(signal.SIGABRT), None)
        return
    chosen = explain

    def handler(number: int) -> None:
        found = chosen()
        if found is not None:
            os.write(2, f"jaxpt: {found[0]}\n".encode())
            os._exit(found[1])

    _abort_handler = ctypes.CFUNCTYPE(None, ctypes.c_int)(handler)  # kept, for C holds no reference
    libc.signal(int(signal.SIGABRT), _abort_handler)


def coordination() -> Any:
    """The client of the coordination service (keys, values, barriers); None on one process."""
    from jax._src import distributed  # JAX has no public name for it; Orbax reaches for the same one

    return distributed.global_state.client


def coordinator_address() -> str | None:
    """host:port of process 0's coordination service."""
    from jax._src import distributed

    return distributed.global_state.coordinator_address


def shards(mesh: Mesh, process: int | None = None) -> tuple[list[int], int]:
    """(this process's shares of a batch, shares in all): over the mesh axes that the rules give to "batch"."""
    process = jax.process_index() if process is None else process
    axes = [mesh.axis_names.index(name) for name in RULES["batch"]]
    sizes = [mesh.devices.shape[axis] for axis in axes]
    mine = {
        int(np.ravel_multi_index([place[axis] for axis in axes], sizes))
        for place, device in np.ndenumerate(mesh.devices)
        if device.process_index == process
    }
    return sorted(mine), int(np.prod(sizes))


def local_rows(mesh: Mesh | None, rows: int, process: int | None = None) -> np.ndarray:
    """Which rows of a global batch this process must read, int64, in order.

    Hosts that hold other parts of the model for the same rows read the same rows. So a batch is the same on any
    mesh and any number of processes.

    Raises:
      ValueError: on several processes, a batch that does not divide over the mesh.
    """
    if mesh is None or (process is None and jax.process_count() == 1):
        return np.arange(rows)
    mine, total = shards(mesh, process)
    if rows % total:
        raise ValueError(
            f"a batch of {rows} sequences does not divide over the {total} shares of mesh {dict(mesh.shape)}; "
            f"take a multiple of {total}, or fewer shares ({' x '.join(RULES['batch'])})"
        )
    share = rows // total
    return np.concatenate([np.arange(i * share, (i + 1) * share) for i in mine])


def _explicit(coordinator: str | None, num_processes: int | None, process_id: int | None) -> Cluster:
    named = {"coordinator": coordinator, "num_processes": num_processes, "process_id": process_id}
    missing = [f"--{name.replace('_', '-')}" for name, x in named.items() if x is None]
    if num_processes == 1 and process_id in (None, 0):
        return Cluster("given", coordinator, 1, 0)
    if coordinator is None or num_processes is None or process_id is None:
        raise DistributedError(
            f"{', '.join(missing)} missing: several processes need all of {list(named)}, got {named}"
        )
    host, colon, port = coordinator.rpartition(":")
    if not colon or not host or not port.isdigit() or not 0 < int(port) < 65536:
        raise DistributedError(f"the coordinator must be HOST:PORT, for example 10.0.0.1:1234, got {coordinator!r}")
    if not 0 <= process_id < num_processes:
        raise DistributedError(
            f"process id {process_id} is not one of {num_processes} processes (0 to {num_processes - 1})"
        )
    return Cluster("given", coordinator, num_processes, process_id)


def _gke_tpu(environ: Mapping[str, str]) -> Cluster:
    hosts = [host.strip() for host in environ["TPU_WORKER_HOSTNAMES"].split(",")]
    slices = _number(environ.get("MEGASCALE_NUM_SLICES", "1"), "MEGASCALE_NUM_SLICES")
    slice_id = _number(environ.get("MEGASCALE_SLICE_ID", "0"), "MEGASCALE_SLICE_ID")
    worker = _number(environ["TPU_WORKER_ID"], "TPU_WORKER_ID")
    first = environ.get("MEGASCALE_COORDINATOR_ADDRESS", hosts[0]).split(":")[0]
    if slices > 1 and "MEGASCALE_COORDINATOR_ADDRESS" not in environ:
        _need(environ, "MEGASCALE_COORDINATOR_ADDRESS", "MEGASCALE_NUM_SLICES")
    port = environ.get("JAX_COORDINATOR_PORT", TPU_PORT)
    return Cluster("GKE TPU slice", f"{first}:{port}", slices * len(hosts), slice_id * len(hosts) + worker)


def _jobset(environ: Mapping[str, str]) -> Cluster:
    """Every pod of a JobSet runs one process; names are those the manifest gives its pods."""
    in_job = _number(_need(environ, "PROCESSES_IN_JOB", "JOBSET_NAME"), "PROCESSES_IN_JOB")
    count = _number(environ.get("JAX_PROCESS_COUNT", str(in_job)), "JAX_PROCESS_COUNT")
    job = _number(environ.get("JOB_INDEX", "0"), "JOB_INDEX")
    index = _number(environ["JOB_COMPLETION_INDEX"], "JOB_COMPLETION_INDEX")
    address = environ.get("JAX_COORDINATOR_ADDRESS")
    if address is None:  # JobSet's stable host name of the first pod of the first job
        name = environ["JOBSET_NAME"]
        address = f"{name}-{_need(environ, 'REPLICATED_JOB_NAME', 'JOBSET_NAME')}-0-0.{name}"
    if ":" not in address:
        address = f"{address}:{environ.get('JAX_COORDINATOR_PORT', JOBSET_PORT)}"
    return Cluster("GKE JobSet", address, count, job * in_job + index)


def _slurm(environ: Mapping[str, str]) -> Cluster:
    """A step of several tasks. Several tasks on one host with GPUs in common take one GPU each."""
    nodes = environ["SLURM_STEP_NODELIST"]
    match = re.match(r"([^,\[]+)(?:\[(\d+))?", nodes)
    job = environ.get("SLURM_JOB_ID", "")
    if match is None or not job.isdigit():
        raise DistributedError(f"cannot read SLURM_STEP_NODELIST={nodes!r} or SLURM_JOB_ID={job!r}; give --coordinator")
    port = environ.get("JAX_COORDINATOR_PORT") or 61440 + int(job) % 4096  # one a job, above the usual servers
    index = _number(_need(environ, "SLURM_PROCID", "SLURM_STEP_NODELIST"), "SLURM_PROCID")
    on_host = int(environ.get("SLURM_STEP_TASKS_PER_NODE", "1").split("(")[0].split(",")[0])
    visible = environ.get("CUDA_VISIBLE_DEVICES", "")
    local = (int(environ["SLURM_LOCALID"]),) if on_host > 1 and "," in visible and "SLURM_LOCALID" in environ else None
    coordinator = f"{match[1]}{match[2] or ''}:{port}"
    return Cluster("Slurm", coordinator, int(environ["SLURM_NTASKS"]), index, local)


def _on_tpu_vm(environ: Mapping[str, str]) -> bool:
    """Whether this host has TPU chips and the library for them; JAX then asks the VM's metadata for the rest."""
    chips = any(Path("/dev").glob("accel*")) or Path("/dev/vfio/0").exists()
    return chips and "TPU_SKIP_MDS_QUERY" not in environ and importlib.util.find_spec("libtpu") is not None


def _need(environ: Mapping[str, str], name: str, because: str) -> str:
    if name not in environ:
        raise DistributedError(f"{because} is set and {name} is not; set it too, or give --coordinator")
    return environ[name]


def _number(text: str, name: str) -> int:
    if not text.isdigit():
        raise DistributedError(f"{name} must be a number, got {text!r}")
    return int(text)


def _or(value: Any, otherwise: str = "?") -> Any:
    return otherwise if value is None else value
