"""The loop: order at a boundary, metrics, resuming only what is the same run, events that change the tree."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
import pytest
import tiny_run
from tiny_run import MODEL, Tiny

from jaxpt import optim, weights
from jaxpt.core import config
from jaxpt.core import spec as specs
from jaxpt.data.held_out import held_out
from jaxpt.data.records import TokenRecords
from jaxpt.evaluate import bits_per_byte, make_scorer
from jaxpt.models import decoder
from jaxpt.models.flops import decoder_flops
from jaxpt.objectives import causal_lm
from jaxpt.sharding import MeshConfig, make_mesh
from jaxpt.training.checkpoint import ResumeError
from jaxpt.training.events import at, every
from jaxpt.training.loop import train
from jaxpt.training.metrics import Log, Meter, Progress, peak_flops
from jaxpt.training.run import RunConfig
from jaxpt.training.state import create, create_sharded, state_shardings
from jaxpt.training.step import make_step


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_run.write_records(tmp_path_factory.mktemp("records") / "data")


def test_without_a_folder_nothing_is_written_and_losses_fall(data, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = tiny_run.run(Tiny(steps=20), data)
    assert [step for step, _ in result.curve] == list(range(1, 21))
    assert result.curve[-1][1] < result.curve[0][1] - 0.5 and int(result.state.step) == 20
    assert not result.interrupted and result.resumed_from is None and list(tmp_path.iterdir()) == []


def test_events_then_evaluation_then_the_checkpoint(data, tmp_path):
    seen = []

    def note(name):
        def event(step, state):
            assert int(state.step) == step
            seen.append((name, step))
            return state.replace(seed=state.seed + 1)

        return event

    def evaluate(params):
        seen.append(("evaluate", len([s for s in seen if s[0] == "a"])))
        return {"size": float(np.size(params["embedding"]))}

    plan = [every(2, note("a")), every(2, note("b")), at(0.5, note("half"))]
    how = {"steps": 4, "out": str(tmp_path), "evaluate_every": 2, "checkpoint_every": 2}
    how |= {"tensorboard": False, "quiet": True}
    step, make_state = tiny_run.build()
    loader = tiny_run.make_loader(data)
    seed = make_state().seed
    result = train(RunConfig(**how), step, make_state(), loader, events=plan, evaluate=evaluate)
    assert seen == [("a", 2), ("b", 2), ("half", 2), ("evaluate", 1), ("a", 4), ("b", 4), ("evaluate", 2)]
    assert result.evaluation == {"size": 259.0 * 16}
    assert [r for r in result.rows if "evaluation/size" in r] == [
        {"step": t, "evaluation/size": 4144.0} for t in (2, 4)
    ]
    again = train(RunConfig(**how), step, make_state(), loader, events=plan, evaluate=evaluate)
    np.testing.assert_array_equal(again.state.seed, seed + 5)  # the checkpoint holds what the events made
    assert again.evaluation == result.evaluation and again.rows == result.rows and len(seen) == 7


def test_metrics_survive_a_torn_line_and_are_cut_back_to_the_checkpoint(data, tmp_path):
    def crash(step, state):
        raise KeyError("stop here")

    with pytest.raises(KeyError, match="stop here"):
        tiny_run.run(Tiny(str(tmp_path)), data, events=[at(5, crash)])
    path = tmp_path / "metrics.jsonl"
    assert len(path.read_text().splitlines()) == 5
    path.write_text(path.read_text() + '{"step": 6, "lo')
    result = tiny_run.run(Tiny(str(tmp_path)), data)
    assert result.resumed_from == 3
    written = [json.loads(line) for line in path.read_text().splitlines()]
    assert [row["step"] for row in written] == list(range(1, 13)) and written == result.rows


def test_the_configuration_is_written_before_the_first_update_and_a_row_tells_all(data, tmp_path):
    def look(step, state):
        assert json.loads((tmp_path / "config.json").read_text())["config"]["rate"] == 1e-2
        return state

    rate = optim.warmup_cosine(1.0, 12, 4)
    result = tiny_run.run(Tiny(str(tmp_path)), data, events=[at(1, look)], learning_rate=rate)
    loader = tiny_run.make_loader(data)
    for row in result.rows:
        assert row["learning_rate"] == pytest.approx(float(rate(row["step"] - 1)))
        assert row["tokens"] == loader.batch(row["step"] - 1)["loss_weight"].sum()
        assert {"loss", "gradient_norm", "accuracy"} <= row.keys()
    assert result.rows[5]["tokens_per_second"] > 0 and result.rows[5]["step_seconds"] > 0


def test_the_ledger_is_the_same_with_and_without_a_stop(data, tmp_path):
    whole = tiny_run.run(Tiny(steps=8), data)
    with pytest.raises(KeyError):
        tiny_run.run(Tiny(str(tmp_path), steps=8), data, events=[at(5, lambda t, s: {}[t])])
    resumed = tiny_run.run(Tiny(str(tmp_path), steps=8), data)
    assert resumed.resumed_from == 3 and resumed.ledger == whole.ledger
    assert whole.ledger.steps == 8 and whole.ledger.parameters == specs.count(whole.state.trainable)
    cost = decoder_flops(whole.state.params, MODEL, tiny_run.BATCH, tiny_run.SEQUENCE)
    assert whole.ledger.flops_nominal == 8 * cost.nominal and whole.ledger.flops_executed == 8 * int(cost.executed)
    assert whole.ledger.tokens == tiny_run.make_loader(data).ledger(8)["tokens"]


def test_another_configuration_or_other_data_is_not_resumed(data, tmp_path):
    out = str(tmp_path / "run")
    tiny_run.run(Tiny(out, steps=3), data)
    with pytest.raises(ResumeError, match=r"another run: rate: 0.01 -> 0.02. Start in another folder"):
        tiny_run.run(Tiny(out, steps=3, rate=0.02), data)
    other = tiny_run.write_records(tmp_path / "other", documents=30)
    with pytest.raises(ResumeError, match="data fingerprint: "):
        tiny_run.run(Tiny(out, steps=3), other)
    assert tiny_run.run(Tiny(out, steps=3, keep=1), data).resumed_from == 3


def test_of_a_run_config_only_the_steps_decide_and_resume_anyway_is_possible(data, tmp_path):
    step, make_state = tiny_run.build()
    loader = tiny_run.make_loader(data)
    how = RunConfig(3, str(tmp_path), tensorboard=False, quiet=True)

    def go(**changes):
        return train(dataclasses.replace(how, **changes), step, make_state(), loader)

    go()
    assert go(log_every=1, checkpoint_every=1, keep=5).resumed_from == 3
    with pytest.raises(ResumeError, match="steps: 3 -> 5"):
        go(steps=5)
    result = go(steps=5, resume_anyway=True)
    assert result.resumed_from == 3 and int(result.state.step) == 5


def cost(params, _):
    return decoder_flops(params, MODEL, tiny_run.BATCH, tiny_run.SEQUENCE)


def densify(step, state):
    return dense_state(state).replace(step=state.step, seed=state.seed)


@jax.jit
def dense_state(state):
    tree = weights.convert(jax.random.key(0), state.params, where="blocks/mlp/*", to=weights.Dense())
    return create(tree, optax.sgd(0.1))


def test_an_event_may_change_the_tree_and_the_run_still_resumes(data, tmp_path):
    optimizer = optax.sgd(0.1)
    step = make_step(lambda p, b, k: causal_lm.loss(p, b, k, MODEL), optimizer)
    loader, plan = tiny_run.make_loader(data), [at(4, densify, changes_tree=True)]
    fresh = jax.jit(lambda: create(decoder.init(jax.random.key(0), MODEL), optimizer))

    def go(out, *more):
        how = RunConfig(8, out, checkpoint_every=3, log_every=1, tensorboard=False, quiet=True)
        return train(how, step, fresh(), loader, events=[*plan, *more], flops_per_step=cost)

    whole = go(None)
    assert isinstance(weights.matrices(whole.state.params)["blocks/mlp/up/kernel"], weights.DenseMatrix)
    for stop in (5, 7):  # before and after a checkpoint of the new tree
        with pytest.raises(KeyError):
            go(str(tmp_path / str(stop)), at(stop, lambda t, s: {}[t]))
        resumed = go(str(tmp_path / str(stop)))
        assert resumed.resumed_from == (3 if stop == 5 else 6)
        assert resumed.curve == whole.curve and resumed.ledger == whole.ledger


def test_on_a_mesh_with_evaluation_and_resume(data, tmp_path):
    mesh, optimizer = make_mesh(MeshConfig(data=2, fsdp=4)), optim.adam(1e-2)
    spec = decoder.spec(MODEL)
    loss = lambda p, b, k: causal_lm.loss(p, b, k, MODEL)  # noqa: E731
    step = make_step(loss, optimizer, mesh=mesh, shardings=state_shardings(spec, optimizer, mesh))
    windows = held_out(TokenRecords(data, "validation"), tiny_run.SEQUENCE, 8)
    evaluate, loader = bits_per_byte(make_scorer(loss, mesh), windows), tiny_run.make_loader(data)

    def go(out, *plan):
        how = RunConfig(6, out, checkpoint_every=2, log_every=1, tensorboard=False, quiet=True)
        return train(how, step, create_sharded(spec, optimizer, mesh), loader, events=plan, evaluate=evaluate)

    whole = go(None)
    with pytest.raises(KeyError):
        go(str(tmp_path), at(5, lambda t, s: {}[t]))
    resumed = go(str(tmp_path))
    assert resumed.resumed_from == 4 and resumed.curve == whole.curve and resumed.evaluation == whole.evaluation
    assert set(whole.evaluation) >= {"bits_per_byte", "bits_per_byte/a", "bits_per_byte/b"}
    alone = bits_per_byte(make_scorer(loss), windows)(jax.device_get(whole.state.params))
    assert alone == pytest.approx(whole.evaluation, rel=1e-5)


def test_tensorboard_gets_every_row(data, tmp_path):
    step, make_state = tiny_run.build()
    how = RunConfig(4, str(tmp_path), log_every=2, quiet=True)
    result = train(how, step, make_state(), tiny_run.make_loader(data))
    (file,) = (tmp_path / "tensorboard").iterdir()
    content = file.read_bytes()
    assert content.count(b"gradient_norm") == 2 and [row["step"] for row in result.rows] == [2, 4]


@pytest.mark.parametrize("bar", [False, True])
def test_what_is_printed(data, tmp_path, capsys, bar):
    step, make_state = tiny_run.build()
    how = RunConfig(4, str(tmp_path), log_every=2, tensorboard=False, bar=bar)
    train(how, step, make_state(), tiny_run.make_loader(data), evaluate=lambda p: {"x": 2.0})
    printed = capsys.readouterr().out
    assert "evaluation/x 2" in printed and "loss" in printed and "4/4" in printed
    train(how, step, make_state(), tiny_run.make_loader(data))
    assert "resumed from step 4" in capsys.readouterr().out


def test_a_wrong_value_and_an_unknown_key_are_refused():
    with pytest.raises(ValueError, match="log_every must be at least 1, got 0"):
        RunConfig(5, log_every=0)
    with pytest.raises(ValueError, match="unknown config key 'chekpoint_every'; did you mean 'checkpoint_every'"):
        config.override(RunConfig(5), {"chekpoint_every": "2"})
    assert config.override(RunConfig(5), {"out": "runs/a", "bar": "false"}) == RunConfig(5, "runs/a", bar=False)


@pytest.mark.parametrize(
    ("kind", "peak"),
    [
        ("TPU v4", 275), ("TPU v5 lite", 197), ("TPU v5e", 197), ("TPU v5p", 459), ("TPU v5", 459),
        ("TPU v6 lite", 918), ("TPU v6e", 918), ("NVIDIA A100-SXM4-80GB", 312), ("NVIDIA H100 PCIe", 756),
        ("NVIDIA H100 80GB HBM3", 989), ("NVIDIA H200", 989), ("cpu", None),
    ],
)  # fmt: skip
def test_peak_of_a_chip(kind, peak):
    assert peak_flops(kind) == (None if peak is None else peak * 1e12)


def test_rates_leave_out_pauses(monkeypatch):
    now = iter([0.0, 1.0, 3.0, 100.0, 101.0])
    monkeypatch.setattr("jaxpt.training.metrics.time.perf_counter", lambda: next(now))
    meter: Any = Meter()
    for tokens in (10, 10, 20):
        meter.tick(tokens)
    meter.pause()
    for tokens in (99, 10):
        meter.tick(tokens)
    assert meter.read(8.0, 12.0) == {"step_seconds": 4 / 3, "tokens_per_second": 10.0, "mfu": 0.5}
    assert meter.read(8.0, 12.0) == {}


def test_log_without_a_folder_keeps_rows_in_memory(capsys):
    log = Log(None)
    log.write({"step": 1, "loss": 2.0})
    log.close()
    assert log.rows == [{"step": 1, "loss": 2.0}]
    Progress(0, 5, quiet=True).row(log.rows[0])
    assert capsys.readouterr().out == ""
