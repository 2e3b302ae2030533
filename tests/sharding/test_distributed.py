"""Start-up recognises where it runs, says what is wrong, and gives every process its rows of a batch."""

from __future__ import annotations

import subprocess
import sys
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from jax._src.clusters.cloud_tpu_cluster import GkeTpuCluster
from jax._src.clusters.slurm_cluster import SlurmCluster

from jaxpt.sharding import AXES, MeshConfig, initialize, local_rows, make_mesh
from jaxpt.sharding.distributed import DistributedError, coordination, detect

SLURM = {"SLURM_JOB_ID": "70001", "SLURM_NTASKS": "4", "SLURM_PROCID": "2", "SLURM_LOCALID": "0"}
JOBSET = {"JOBSET_NAME": "run", "REPLICATED_JOB_NAME": "slice", "JOB_COMPLETION_INDEX": "1", "PROCESSES_IN_JOB": "4"}
GKE = {"TPU_WORKER_HOSTNAMES": "t-0.x,t-1.x,t-2.x,t-3.x", "TPU_WORKER_ID": "3"}
PLAIN = {"JAX_COORDINATOR_ADDRESS": "10.0.0.1:99", "JAX_NUM_PROCESSES": "8", "JAX_PROCESS_ID": "7"}


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({}, None),
        ({"SLURM_JOB_ID": "7", "SLURM_NTASKS": "4", "SLURM_PROCID": "0"}, None),  # in salloc or sbatch, without srun
        (SLURM | {"SLURM_STEP_NODELIST": "tux[07-10]"}, ("Slurm", "tux07:61809", 4, 2)),
        (JOBSET, ("GKE JobSet", "run-slice-0-0.run:1234", 4, 1)),
        (
            JOBSET | {"JOB_INDEX": "1", "JAX_PROCESS_COUNT": "8", "JAX_COORDINATOR_ADDRESS": "a.b"},
            ("GKE JobSet", "a.b:1234", 8, 5),
        ),
        (GKE, ("GKE TPU slice", "t-0.x:8482", 4, 3)),
        (GKE | JOBSET, ("GKE TPU slice", "t-0.x:8482", 4, 3)),
        (
            GKE | {"MEGASCALE_NUM_SLICES": "2", "MEGASCALE_SLICE_ID": "1", "MEGASCALE_COORDINATOR_ADDRESS": "c:1"},
            ("GKE TPU slice", "c:8482", 8, 7),
        ),
        (GKE | {"JAX_PLATFORMS": "cpu"}, None),
        (PLAIN, ("given", "10.0.0.1:99", 8, 7)),
        (PLAIN | GKE | SLURM, ("given", "10.0.0.1:99", 8, 7)),
    ],
)
def test_what_is_recognised(environ, expected):
    found = detect(environ)
    assert (found and (found.kind, found.coordinator, found.num_processes, found.process_id)) == expected


@pytest.mark.parametrize("nodes", ["tux07", "tux07,b2", "tux[07-10],b2", "tux[07,09-10]", "a-b-1,c", "a-b-[3-4]"])
def test_the_slurm_coordinator_is_the_one_jax_takes(nodes, monkeypatch):
    environ = SLURM | {"SLURM_STEP_NODELIST": nodes}
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    assert detect(environ).coordinator == SlurmCluster.get_coordinator_address(None, None)


def test_the_numbers_of_gke_tpu_slices_are_those_jax_takes(monkeypatch):
    environ = GKE | {
        "MEGASCALE_NUM_SLICES": "3",
        "MEGASCALE_SLICE_ID": "2",
        "MEGASCALE_COORDINATOR_ADDRESS": "localhost",
    }
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    found = detect(environ)
    assert found.num_processes == GkeTpuCluster.get_process_count() == 12
    assert found.process_id == GkeTpuCluster.get_process_id() == 11
    assert found.coordinator == GkeTpuCluster.get_coordinator_address(1, None)


@pytest.mark.parametrize(
    ("visible", "tasks", "local"),
    [("0,1,2,3", "4(x2)", (1,)), ("2", "4(x2)", None), ("0,1,2,3", "1(x8)", None), (None, "4", None)],
)
def test_tasks_of_one_host_share_its_gpus(visible, tasks, local):
    """Tasks that all see all GPUs take one each; a task alone on its host, or with its own GPU, takes all it sees."""
    more = {} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}
    step = {"SLURM_STEP_NODELIST": "a", "SLURM_LOCALID": "1", "SLURM_STEP_TASKS_PER_NODE": tasks}
    assert detect(SLURM | step | more).local_devices == local


@pytest.mark.parametrize(
    ("environ", "message"),
    [
        ({"JAX_PROCESS_ID": "1"}, "JAX_COORDINATOR_ADDRESS is not; set it too, or give --coordinator"),
        (PLAIN | {"JAX_PROCESS_ID": "one"}, "JAX_PROCESS_ID must be a number, got 'one'"),
        (PLAIN | {"JAX_PROCESS_ID": "8"}, r"process id 8 is not one of 8 processes \(0 to 7\)"),
        ({"JOBSET_NAME": "a", "JOB_COMPLETION_INDEX": "0"}, "PROCESSES_IN_JOB is not"),
        (GKE | {"MEGASCALE_NUM_SLICES": "2"}, "MEGASCALE_COORDINATOR_ADDRESS is not"),
    ],
)
def test_half_an_environment_says_which_half_is_missing(environ, message):
    with pytest.raises(DistributedError, match=message):
        detect(environ)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("a:1", 2, None), "--process-id missing: several processes need all of"),
        ((None, 2, 1), "--coordinator missing"),
        (("a", 2, 1), "must be HOST:PORT, for example 10.0.0.1:1234, got 'a'"),
        (("a:99999", 2, 1), "must be HOST:PORT"),
        (("a:1", 2, 2), "process id 2 is not one of 2 processes"),
    ],
)
def test_wrong_arguments_are_named(arguments, message):
    with pytest.raises(DistributedError, match=message):
        initialize(*arguments)


def test_one_process_starts_nothing():
    assert initialize() is None and initialize("localhost:1", 1, 0) is None and initialize(None, 1) is None
    assert coordination() is None and not jax.distributed.is_initialized()


def test_too_late_is_said_plainly():
    jax.devices()
    with pytest.raises(DistributedError, match=r"process 1 of 2 \(given\): call initialize\(\) first"):
        initialize("127.0.0.1:9", 2, 1)


def test_processes_that_never_meet_end_with_what_to_check():
    code = "from jaxpt.sharding import initialize; initialize('127.0.0.1:9', 2, 1, timeout=1)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 1
    assert "process 1 of 2 (given) did not meet the others at 127.0.0.1:9 within 1 s. Check that all 2" in done.stderr


def of_processes(shape: tuple[int, ...], process_of: list[int]) -> SimpleNamespace:
    """A mesh of devices that belong to these processes, in the order of the mesh."""
    devices = np.array([SimpleNamespace(process_index=p) for p in process_of], object).reshape(shape)
    return SimpleNamespace(axis_names=AXES, devices=devices, shape=dict(zip(AXES, shape, strict=True)))


@pytest.mark.parametrize(
    ("shape", "process_of", "rows"),
    [
        ((2, 2, 1, 1), [0, 0, 1, 1], {0: [0, 1, 2, 3], 1: [4, 5, 6, 7]}),
        ((4, 1, 1, 1), [1, 0, 0, 1], {0: [2, 3, 4, 5], 1: [0, 1, 6, 7]}),  # an order that follows the network
        ((2, 1, 2, 1), [0, 1, 2, 3], {0: [0, 1, 2, 3], 1: [0, 1, 2, 3], 2: [4, 5, 6, 7], 3: [4, 5, 6, 7]}),
        ((1, 1, 4, 1), [0, 0, 1, 1], {0: list(range(8)), 1: list(range(8))}),  # all rows on both
        ((1, 4, 1, 1), [0, 1, 2, 3], {0: [0, 1], 3: [6, 7]}),
    ],
)
def test_rows_follow_the_mesh(shape, process_of, rows):
    for process, expected in rows.items():
        assert local_rows(of_processes(shape, process_of), 8, process).tolist() == expected


def test_a_batch_that_does_not_divide_is_refused_and_one_process_reads_all():
    with pytest.raises(ValueError, match=r"a batch of 6 sequences does not divide over the 4 shares .*multiple of 4"):
        local_rows(of_processes((2, 2, 1, 1), [0, 0, 1, 1]), 6, 0)
    assert local_rows(None, 3).tolist() == local_rows(make_mesh(MeshConfig()), 3).tolist() == [0, 1, 2]
