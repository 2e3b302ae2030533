"""The launch scripts: valid bash, a dry run that prints every command and runs none, and errors that say what to type."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parents[2] / "scripts"
COMMAND = ["--", "python", "-m", "recipes.sltrain", "train", "--preset", "paper 1b", "--note", 'say "hi" $HOME']
QUEUED = ["--topology", "v5e:4x8", "--zone", "us-west4-a", "--project", "mine", "--bucket", "gs://bucket/"]


TOOLS = "bash cat date dirname env git mkdir mktemp rm sleep tr wc".split()
FAKE = """#!/usr/bin/env bash
echo "$(basename "$0") $*" >> "$CALLS"
case "$*" in *"describe first"*) echo ACTIVE ;; esac
"""


@pytest.fixture(scope="module")
def tools(tmp_path_factory):
    """A folder of programs with the shell's own and no cloud command."""
    folder = tmp_path_factory.mktemp("bin")
    for name in [*TOOLS, "basename"]:
        (folder / name).symlink_to(shutil.which(name))
    return folder


@pytest.fixture
def run(tools):
    def start(script: str, *arguments: str, path: str = "", **env: str) -> subprocess.CompletedProcess[str]:
        env = {"PATH": f"{path}:{tools}", "HOME": "/nonexistent"} | env
        command = [tools / "bash", SCRIPTS / script, *arguments]
        return subprocess.run(command, capture_output=True, text=True, env=env, timeout=60)

    return start


def fake(folder: Path, *names: str) -> None:
    """Programs that write down how they were called."""
    for name in names:
        (folder / name).write_text(FAKE)
        (folder / name).chmod(0o755)


def test_without_a_dry_run_the_same_commands_run_in_order(run, tmp_path):
    fake(tmp_path, "gcloud")
    calls = tmp_path / "calls"
    found = run("launch_tpu", *QUEUED, "--name", "first", *COMMAND, path=str(tmp_path), CALLS=str(calls))
    assert found.returncode == 0, found.stderr
    made = calls.read_text().splitlines()
    order = [
        "auth print",
        "storage ls",
        "accelerator-types",
        "storage cp",
        "create first",
        "describe first",
        "pip",
        "nohup",
    ]
    places = [next(i for i, line in enumerate(made) if words in line) for words in order]
    assert places == sorted(places)


def test_a_jobset_and_a_batch_script_are_submitted(run, tmp_path):
    fake(tmp_path, "kubectl", "sbatch")
    calls = tmp_path / "calls"
    given = ["--topology", "v6e:2x4", "--via", "gke", "--image", "i", "--bucket", "gs://b"]
    found = run("launch_tpu", *given, *COMMAND, path=str(tmp_path), CALLS=str(calls))
    assert found.returncode == 0, found.stderr
    (tmp_path / "venv/bin").mkdir(parents=True)
    fake(tmp_path / "venv/bin", "python")
    given = ["--nodes", "2", "--out", str(tmp_path / "out"), "--venv", str(tmp_path / "venv")]
    found = run("launch_slurm", *given, *COMMAND, path=str(tmp_path), CALLS=str(calls))
    assert found.returncode == 0, found.stderr
    made = calls.read_text()
    assert "kubectl apply -f -" in made and "sbatch" in made and (tmp_path / "out").is_dir()


@pytest.mark.parametrize("script", ["launch_tpu", "launch_slurm"])
def test_the_script_is_valid_bash_executable_and_explains_itself(script, run):
    assert subprocess.run(["bash", "-n", SCRIPTS / script]).returncode == 0
    found = run(script, "--help")
    assert found.returncode == 0 and "--dry-run" in found.stdout


def test_a_queued_resource_is_created_filled_started_and_can_be_given_back(run):
    found = run("launch_tpu", *QUEUED, "--name", "first", "--spot", "--dry-run", *COMMAND)
    assert found.returncode == 0, found.stderr
    create = next(line for line in found.stdout.splitlines() if "queued-resources create" in line)
    for words in ("create first", "--type v5litepod --topology 4x8", "--project mine", "v2-alpha-tpuv5-lite", "--spot"):
        assert words in create
    assert "storage cp" in found.stdout and "gs://bucket/runs/first/source.tgz" in found.stdout
    assert found.stdout.count("--worker=all") == 2
    assert "--delete" in found.stdout
    back = run("launch_tpu", "--topology", "v5e:4x8", "--zone", "z", "--name", "first", "--delete", "--dry-run")
    assert "queued-resources delete first" in back.stdout and "create" not in back.stdout


@pytest.mark.parametrize(
    ("topology", "expected"),
    [
        ("v5p:2x2x4", ["--type v5p --topology 2x2x4", "v2-alpha-tpuv5 "]),
        ("v6e:16x16", ["--type v6e --topology 16x16", "v2-alpha-tpuv6e"]),
    ],
)
def test_other_chips_have_their_own_names(topology, expected, run):
    found = run("launch_tpu", "--topology", topology, *QUEUED[2:], "--dry-run", *COMMAND)
    assert found.returncode == 0 and all(words in found.stdout for words in expected)


def test_a_command_survives_quoting_on_its_way_to_a_host(run):
    """What the remote shell would start, with the recipe replaced by a program that prints its arguments."""
    found = run("launch_tpu", *QUEUED, "--dry-run", *COMMAND)
    line = next(x for x in found.stdout.splitlines() if "nohup" in x)
    words = subprocess.run(
        ["bash", "-c", f'for last in {line}; do :; done; printf %s "$last"'], capture_output=True, text=True
    ).stdout
    inner = re.search(r"nohup (.*) > ~/run.log", words)
    shown = subprocess.run(["bash", "-c", f"printf '%s\\n' {inner[1]}"], capture_output=True, text=True, env={}).stdout
    assert shown.splitlines() == [*COMMAND[1:], "--out", "gs://bucket/runs/jaxpt"]


def test_a_jobset_has_one_pod_a_host_and_the_command_as_given(run):
    yaml = pytest.importorskip("yaml")
    given = ["--topology", "v5p:2x2x4", "--via", "gke", "--image", "me/jaxpt:1", "--bucket", "gs://b", "--spot"]
    found = run("launch_tpu", *given, "--dry-run", *COMMAND)
    assert found.returncode == 0, found.stderr
    job = yaml.safe_load(found.stdout.split("<<'YAML'\n")[1].split("\nYAML\n")[0])
    spec = job["spec"]["replicatedJobs"][0]["template"]["spec"]
    pod = spec["template"]["spec"]
    assert (spec["parallelism"], spec["completions"]) == (4, 4)
    assert pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"] == "2x2x4"
    assert pod["nodeSelector"]["cloud.google.com/gke-spot"] == "true"
    assert pod["containers"][0]["command"] == [*COMMAND[1:], "--out", "gs://b/runs/jaxpt"]
    assert pod["containers"][0]["resources"]["limits"]["google.com/tpu"] == 4
    json.dumps(job)


def test_a_batch_script_has_the_directives_and_one_process_a_node(run):
    found = run(
        "launch_slurm",
        "--nodes",
        "4",
        "--gpus",
        "8",
        "--out",
        "/shared/x/",
        "--partition",
        "big",
        "--dry-run",
        *COMMAND,
    )
    assert found.returncode == 0, found.stderr
    batch = found.stdout.split("<<'BATCH'\n")[1].split("\nBATCH")[0]
    for words in (
        "--nodes=4",
        "--ntasks-per-node=1",
        "--gpus-per-node=8",
        "--partition=big",
        "--output=/shared/x/slurm-%j.log",
    ):
        assert f"#SBATCH {words}" in batch
    assert subprocess.run(["bash", "-n"], input=batch, text=True).returncode == 0
    started = batch.splitlines()[-1].split("--kill-on-bad-exit=1 ")[1]
    shown = subprocess.run(["bash", "-c", f"printf '%s\\n' {started}"], capture_output=True, text=True, env={}).stdout
    assert shown.splitlines() == [*COMMAND[1:], "--out", "/shared/x"]


@pytest.mark.parametrize(
    ("script", "arguments", "message"),
    [
        ("launch_tpu", [], "--topology is missing"),
        ("launch_tpu", ["--topology", "v5e"], "cannot read --topology 'v5e'"),
        ("launch_tpu", ["--topology", "v5e:4x4x4"], "v5e and v6e slices have two sizes"),
        ("launch_tpu", ["--topology", "v9:4x4"], "cannot read --topology 'v9:4x4'"),
        ("launch_tpu", ["--topology", "v5e:4x8"], "no command"),
        ("launch_tpu", ["--topology", "v5e:4x8", *COMMAND], "--bucket '' is not gs://NAME"),
        ("launch_tpu", ["--topology", "v5e:4x8", "--bucket", "gs://b", "--dry-run", *COMMAND], "--zone is missing"),
        ("launch_tpu", ["--topology"], "--topology needs a value"),
        ("launch_tpu", ["--topolgy", "v5e:4x8"], "unknown option '--topolgy'"),
        ("launch_tpu", [*QUEUED, "--name", "A b", *COMMAND], "--name 'A b'"),
        ("launch_tpu", [*QUEUED, "--via", "ssh", *COMMAND], "--via 'ssh' is neither"),
        ("launch_tpu", [*QUEUED, *COMMAND], "'gcloud' is not on PATH: install the Google Cloud CLI"),
        ("launch_tpu", [*QUEUED, "--via", "gke", *COMMAND], "'kubectl' is not on PATH"),
        ("launch_tpu", [*QUEUED, "--via", "gke", "--dry-run", *COMMAND], "--image is missing"),
        ("launch_slurm", ["--nodes", "x", "--out", "/o", *COMMAND], "--nodes 'x' is not a number"),
        ("launch_slurm", ["--nodes", "2", "--out", "o", *COMMAND], "is not an absolute path"),
        ("launch_slurm", ["--nodes", "2", "--out", "/o"], "no command"),
        ("launch_slurm", ["--nodes", "2", "--out", "/o", *COMMAND], "'sbatch' is not on PATH"),
    ],
    ids=str,
)
def test_a_mistake_ends_with_what_to_type(script, arguments, message, run):
    found = run(script, *arguments)
    assert found.returncode == 2 and message in found.stderr and found.stdout == ""
