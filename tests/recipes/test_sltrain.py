"""SLTrain's recipe: the paper's counts, and a claim that runs, resumes after a kill and says the same."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import recipes
from jaxpt.models import decoder
from jaxpt.training import ledger
from recipes import sltrain

ROOT = Path(__file__).resolve().parents[2]
TINY = ["model.width=16", "model.heads=2", "model.ffn=24", "run.steps=4", "rank=2"]
TINY += ["data.sequence_length=32", "data.batch_size=16", "data.evaluation_tokens=2000"]


@pytest.mark.parametrize(
    ("preset", "full", "low", "sparse", "gigabytes"),
    [
        ("paper_60m", 58.1, 42.8, 43.5, 0.27),
        ("paper_130m", 134.1, 94.0, 96.5, 0.60),
        ("paper_350m", 368.0, 185.2, 194.3, 1.24),
        ("paper_1b", 1339.1, 609.3, 645.5, 4.16),
    ],
)
def test_parameters_and_bytes_of_the_papers_main_table(preset, full, low, sparse, gigabytes):
    setting = sltrain.PRESETS[preset]
    arms = (sltrain.full_rank, sltrain.low_rank, sltrain.sltrain)
    counts = [sltrain.parameters(arm(setting)) / 1e6 for arm in arms]
    assert counts == pytest.approx([full, low, sparse], abs=0.051)
    size = ledger.memory_model(decoder.spec(sltrain.sltrain(setting).model))["total"] / 1e9
    assert size == pytest.approx(gigabytes, abs=0.0051)


def test_the_matched_arm_has_as_many_parameters_but_not_more():
    setting = sltrain.TINY
    target = sltrain.parameters(sltrain.sltrain(setting))
    rank = sltrain.matched_rank(setting)
    assert sltrain.parameters(sltrain.low_rank_matched(setting)) <= target
    assert sltrain.parameters(sltrain.with_form(setting, sltrain.LowRank(rank + 1))) > target


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory, one_device: dict[str, str]) -> dict[str, str]:
    """Prepared text, shared by the processes of this file."""
    return one_device | {"JAXPT_CACHE": str(tmp_path_factory.mktemp("cache"))}


def claim(out: Path, cache: dict[str, str]) -> subprocess.Popen[str]:
    command = [sys.executable, "-u", "-m", "recipes.sltrain", "claim", "--seeds", "2", "--workers", "1"]
    command += ["rates=(0.003,)", "stddevs=(0.02,)"]
    return subprocess.Popen(
        [*command, "--out", str(out), *TINY], cwd=ROOT, env=os.environ | cache, text=True, stdout=-1, stderr=-1
    )


def content(out: Path) -> dict[str, Any]:
    """claim.json without what may differ between two runs of one claim: seconds."""
    found = json.loads((out / "claim.json").read_text())
    for arm in found["arms"].values():
        for seed in arm["seeds"].values():
            del seed["seconds"]
    return {name: value for name, value in found.items() if name != "seconds"}


@pytest.mark.timeout(400)
def test_a_claim_killed_and_typed_again_says_what_an_uninterrupted_one_says(tmp_path, cache):
    whole = claim(tmp_path / "whole", cache)
    printed, errors = whole.communicate()
    assert whole.returncode == 0, errors
    assert "SLTrain beats low rank at equal parameters" in " ".join(printed.split()) or "checks" in printed

    killed = claim(tmp_path / "killed", cache)
    for line in killed.stdout or ():
        if "[  4/10]" in line:
            killed.send_signal(signal.SIGKILL)
    assert killed.wait() == -signal.SIGKILL
    assert not (tmp_path / "killed" / "claim.json").exists()
    again = claim(tmp_path / "killed", cache)
    printed, errors = again.communicate()
    assert again.returncode == 0, errors
    assert "[  4/10]" not in printed  # trial 4 was kept
    assert content(tmp_path / "killed") == content(tmp_path / "whole")

    found = content(tmp_path / "whole")
    assert found["name"] == "sltrain"
    assert found["paper"] == 9
    assert set(found["arms"]) == set(sltrain.ARMS)
    first = found["arms"]["sltrain"]["seeds"]["0"]
    assert {"value", "parameters", "tokens", "unique_tokens", "flops_nominal", "bytes_persistent"} <= set(first)
    assert all({"what", "value", "bound", "holds"} <= set(check) for check in found["checks"])
    for name in ("claim.md", "loss.png", "spectra.png", "memory.png"):
        assert (tmp_path / "whole" / name).stat().st_size > 500


def test_train_goes_on_and_a_mistake_is_one_line(tmp_path, cache, monkeypatch, capsys):
    monkeypatch.setenv("JAXPT_CACHE", cache["JAXPT_CACHE"])
    recipe = recipes.load("sltrain")
    arguments = ["train", "--out", str(tmp_path / "run"), *TINY, "run.tensorboard=false"]
    assert recipe.main(arguments) == 0
    printed = capsys.readouterr().out
    assert "step 4/4" in printed
    assert "bits_per_byte" in printed
    assert recipe.main(arguments) == 0
    assert "resumed from step 4" in capsys.readouterr().out

    for wrong, message in (
        (["train", "--preset", "tyni"], "unknown preset of sltrain 'tyni'; did you mean 'tiny'?"),
        (["train", "--arm", "sltrian"], "did you mean 'sltrain'?"),
        (["train", "model.widht=8"], "did you mean 'model.width'?"),
        (["train", "model.width=8.5"], "should be a int"),
        (["claim", "--seeds", "0"], "need --seeds >= 1"),
        ([*arguments, "optimizer.rate=1.0"], "holds checkpoints of another run"),
        (["train", "model.vocab_size=100", *TINY, "--out", str(tmp_path / "b")], "model.vocab_size=384"),
    ):
        assert recipe.main(wrong) == 2
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1


def test_the_methods_table():
    found = json.loads(subprocess.check_output([sys.executable, "-m", "recipes", "--json"], cwd=ROOT, text=True))
    assert [row["name"] for row in found] == sorted(recipes.names(), key=lambda n: recipes.load(n).paper)
    row = next(row for row in found if row["name"] == "sltrain")
    assert row["paper"] == 9
    assert {"title", "family", "module", "presets", "claim"} <= set(row)
    for row in found:
        assert "tiny" in row["presets"]
        assert row["claim"] is None or isinstance(row["claim"]["holds"], bool)
        __import__(row["module"])
