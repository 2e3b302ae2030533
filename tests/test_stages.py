"""Runs that start from other runs, and objectives that change inside one: on real text, with checkpoints on disk."""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path

import jax
import numpy as np
import optax
import pytest

from jaxpt import pretrain, stages
from jaxpt.core import trees
from jaxpt.models import decoder
from jaxpt.objectives.causal_lm import CausalLM
from jaxpt.objectives.corruption import Masking
from jaxpt.objectives.masked_lm import MaskedLM
from jaxpt.objectives.phases import Phases
from jaxpt.optim import AdamConfig
from jaxpt.pretrain import DataConfig, Pretrain
from jaxpt.stages import Stage, run_stages
from jaxpt.training.events import at
from jaxpt.training.run import RunConfig
from jaxpt.training.step import Phased

STEPS = 6
MASKED = MaskedLM(masking=Masking(mask_id=2, vocab_size=259, rate=0.4, mask=1.0, random=0.0))
MODEL = decoder.Config(layers=1, width=16, heads=2, ffn=24, vocab_size=259)


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    """The text of this project's own sources, in files of a user."""
    folder = tmp_path_factory.mktemp("text")
    for i, path in enumerate(sorted(Path(stages.__file__).parent.rglob("*.py"))[:40]):
        (folder / f"{i:02d}.txt").write_text(path.read_text())
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAXPT_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield DataConfig(
            corpora=(f"files:{folder}/*.txt",), sequence_length=32, batch_size=8, evaluation_tokens=512, validation=0.2
        )


def described(text, objective, steps=STEPS):
    how = RunConfig(steps=steps, log_every=1, quiet=True, tensorboard=False, checkpoint_every=2)
    return Pretrain(model=MODEL, objective=objective, data=text, run=how, optimizer=AdamConfig(rate=1e-2))


def digest(state):
    leaves = jax.tree.leaves(jax.device_get((state.params, state.opt_state)))
    return hashlib.sha256(b"".join(np.ascontiguousarray(x).tobytes() for x in leaves)).hexdigest()


def both(share):
    return Phases(phases=((share, CausalLM()), (1 - share, MASKED)))


def test_a_phase_of_the_whole_run_is_that_run_bit_for_bit(text):
    for share, objective in ((1.0, CausalLM()), (0.0, MASKED)):
        whole, phased = (pretrain.run(described(text, of)) for of in (objective, both(share)))
        assert digest(whole.state) == digest(phased.state)
        assert whole.evaluation == phased.evaluation
        assert whole.ledger == phased.ledger


def test_the_objective_changes_and_moments_stay(text, tmp_path):
    """The first half is that of the causal run, the second goes on from its moments; killed between, it resumes."""
    cfg = described(text, both(0.5))
    job = pretrain.build(cfg)
    assert isinstance(job.step, Phased) and job.step.at(2) is not job.step.at(3) and job.step.at(3) is job.step.at(5)
    whole, causal = pretrain.run(cfg, job), pretrain.run(described(text, CausalLM()))
    losses, first = (dict(result.curve) for result in (whole, causal))
    assert [losses[t] for t in (1, 2, 3)] == [first[t] for t in (1, 2, 3)] and losses[4] != first[4]
    assert set(whole.evaluation) == {"loss"} and "bits_per_byte" in causal.evaluation
    each = [pretrain.flops_per_step(cfg)(whole.state.params, t).nominal for t in range(STEPS)]
    assert each[2] > each[3]  # the head sees 40 % of the tokens
    assert whole.ledger.flops_nominal == sum(map(int, each))

    out = tmp_path / "run"
    saved = dataclasses.replace(cfg, run=dataclasses.replace(cfg.run, out=str(out)))
    started = pretrain.build(saved)

    class Killed(Exception):
        pass

    def kill(step, state):
        raise Killed

    with pytest.raises(Killed):
        pretrain.run(saved, started, events=[at(5, kill)])
    again = pretrain.run(saved, started)
    assert again.resumed_from == 4
    assert digest(again.state) == digest(whole.state)
    assert again.ledger == whole.ledger


def test_stages_start_from_each_other_and_are_not_run_twice(text, tmp_path):
    """A second stage takes the body and its own head; the moments where it keeps them; a second call trains nothing."""
    first = described(text, CausalLM(), steps=3)
    plan = (
        Stage(name="first", run=first),
        Stage(name="kept", run=described(text, MASKED, steps=2), start="first", optimizer="keep"),
        Stage(name="body", run=described(text, MASKED, steps=2), start="first", take=("blocks", "embedding")),
    )
    found = run_stages(plan, tmp_path)
    assert [int(r.state.step) for r in found.values()] == [3, 2, 2]
    before = found["first"].state

    kept = stages.started(pretrain.build(plan[1].run), plan[1], before.params, before.opt_state)
    assert same(kept.params, before.params)
    adam, schedule = kept.opt_state[0], kept.opt_state[-1]
    assert int(adam.count) == 3 and same(adam.mu, before.opt_state[0].mu)
    assert isinstance(schedule, optax.ScaleByScheduleState) and int(schedule.count) == 0

    job = pretrain.build(plan[2].run)
    body, fresh = stages.started(job, plan[2], before.params, before.opt_state), job.create()
    assert same(body.params["blocks"], before.params["blocks"])
    assert same(body.params["head"], fresh.params["head"])
    assert not same(body.params["head"], before.params["head"])
    assert int(body.opt_state[0].count) == 0 and same(body.opt_state, fresh.opt_state)

    again = run_stages(plan, tmp_path)
    assert [r.resumed_from for r in again.values()] == [3, 2, 2]
    assert {name: digest(r.state) for name, r in again.items()} == {name: digest(r.state) for name, r in found.items()}


def test_a_stage_may_start_from_parameters_that_no_stage_made(text, tmp_path):
    run, params = described(text, CausalLM(), steps=1), decoder.init(jax.random.key(7), MODEL)
    with pytest.raises(ValueError, match="two stages are named 'other'"):
        run_stages((Stage(name="other", run=run),), tmp_path, {"other": params})
    job = pretrain.build(run)
    state = stages.started(job, Stage(name="a", run=run, start="other", optimizer="keep"), params)
    assert same(state.params, params) and same(state.opt_state, job.create().opt_state)
    found = run_stages((Stage(name="a", run=run, start="other"),), tmp_path, {"other": params})
    assert same(found["a"].state.params, job.step.run(state, next(batches(run)))[0].params)


def batches(run):
    return run.data.open(run.model.vocab_size).loader().batches()


def same(a, b):
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return all(np.array_equal(np.asarray(x), np.asarray(y)) for x, y in pairs)


def test_impossible_stages_and_phases_are_named(text, tmp_path):
    run = described(text, CausalLM())
    with pytest.raises(ValueError, match="two stages are named 'a'"):
        run_stages((Stage(name="a", run=run), Stage(name="a", run=run)), tmp_path)
    with pytest.raises(ValueError, match="stage before 'b' 'c'"):
        run_stages((Stage(name="a", run=run), Stage(name="b", run=run, start="c")), tmp_path)
    own, other = (decoder.init(jax.random.key(0), dataclasses.replace(MODEL, width=w)) for w in (16, 32))
    with pytest.raises(ValueError, match=r"of shape \(259, 16\), what it starts from \(259, 32\)"):
        stages.taken(own, other, ("embedding",))
    with pytest.raises(ValueError, match="takes nothing"):
        stages.taken(own, own, ("decoder",))
    for shares in ((0.5, 0.4), (-0.5, 1.5), ()):
        with pytest.raises(ValueError, match="not be negative and sum to 1"):
            Phases(phases=tuple((share, CausalLM()) for share in shares)).on(MODEL)
    wide = CausalLM(model=dataclasses.replace(MODEL, width=32))
    with pytest.raises(ValueError, match="must train the same arrays"):
        Phases(phases=((0.5, CausalLM()), (0.5, wide))).on(MODEL)


def test_the_number_of_updates_of_a_phase_is_rounded_down():
    found = Phases(phases=((0.25, CausalLM()), (0.5, MASKED), (0.25, CausalLM()))).on(MODEL)
    assert [first for first, _ in found.starts(10)] == [0, 2, 7]
    assert [first for first, _ in found.starts(3)] == [0, 2]  # the first has none, and is left out
    assert found.last.likelihood
    assert len(trees.leaves_with_path(found.spec())) == len(trees.leaves_with_path(decoder.spec(MODEL)))
