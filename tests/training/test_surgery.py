"""Events that change the weights in a run: what they do to the state; a run killed among them resumes bit for bit."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny_run

from jaxpt import optim, weights
from jaxpt.core import trees
from jaxpt.models import decoder
from jaxpt.models.flops import decoder_flops
from jaxpt.objectives import causal_lm
from jaxpt.optim import RampedAdam, Ramps, RestartSchedule
from jaxpt.sharding import MeshConfig, make_mesh
from jaxpt.training import events, surgery
from jaxpt.training.loop import train
from jaxpt.training.run import RunConfig
from jaxpt.training.state import create, create_sharded, state_shardings
from jaxpt.training.step import make_step
from jaxpt.weights import pruning
from jaxpt.weights.pruning import PruneSchedule

UPDATES = 10
TOKENS = tiny_run.SEQUENCE * tiny_run.BATCH


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_run.write_records(tmp_path_factory.mktemp("records") / "data")


@dataclasses.dataclass
class Job:
    """A model, its optimizer with ramps, its step, and how often it was traced."""

    forms: tuple
    ramps: Ramps
    traces: int = 0

    def __post_init__(self):
        self.model = dataclasses.replace(tiny_run.MODEL, weights=self.forms)
        self.cfg = RampedAdam(rate=1e-2, weight_decay=0.1, ramps=self.ramps)
        self.optimizer = self.cfg.make(UPDATES)
        self.step = make_step(self.loss, self.optimizer)
        self.create = jax.jit(lambda: create(decoder.init(jax.random.key(0), self.model), self.optimizer))

    def loss(self, params, batch, key):
        self.traces += 1
        return causal_lm.loss(params, batch, key, self.model)

    def run(self, data, out, plan, **kwargs):
        how = RunConfig(UPDATES, out, checkpoint_every=2, log_every=1, tensorboard=False, quiet=True)
        cost = lambda params, _: decoder_flops(params, self.model, tiny_run.BATCH, tiny_run.SEQUENCE)  # noqa: E731
        loader = tiny_run.make_loader(data)
        return train(how, self.step, self.create(), loader, events=plan, flops_per_step=cost, **kwargs)


@functools.cache
def sparse():
    """Attention pruned to a quarter, feed-forward Monarch; everything dense at 60 %."""
    forms = (("blocks/attention/*", weights.Masked(0.0)), ("blocks/mlp/*", weights.Monarch(2)))
    job = Job(forms, Ramps(at=(0.6,), recovery_steps=3))
    schedule = PruneSchedule(0.75, start=0.1, end=0.5, unit="step", events=3)
    plan = pruning.plan(schedule, pruning.size(decoder.spec(job.model)), TOKENS, updates=UPDATES)
    return job, plan, [surgery.prunes(plan), surgery.switch(job.ramps, job.optimizer, where="blocks")]


@functools.cache
def low_rank():
    """Restarts of low-rank and SLTrain matrices, merges of ReLoRA ones."""
    forms = (
        ("*/query", weights.LowRank(2)),
        ("blocks/attention/*", weights.SparseLowRank(2, 0.2)),
        ("blocks/mlp/*", weights.ReLoRA(2)),
    )
    job = Job(forms, RestartSchedule(every=3, recovery_steps=2))
    return job, None, [surgery.merges(job.ramps), *job.ramps.events()]


def die(step, state):
    raise KeyError(step)


@pytest.mark.parametrize("make", [sparse, low_rank])
def test_a_run_killed_among_its_events_ends_bit_for_bit_like_one_that_was_not(make, data, tmp_path):
    job, _, plan = make()
    whole = job.run(data, None, plan)
    assert whole.curve[-1][1] < whole.curve[0][1] - 0.1
    for stop, resumed_from in ((5, 4), (7, 6)):
        out = str(tmp_path / str(stop))
        with pytest.raises(KeyError):
            job.run(data, out, [*plan, events.at(stop, die)])
        resumed = job.run(data, out, plan)
        assert resumed.resumed_from == resumed_from
        assert resumed.curve == whole.curve and resumed.ledger == whole.ledger
        assert jax.tree.structure(resumed.state) == jax.tree.structure(whole.state)
        for (path, one), two in zip(trees.leaves_with_path(resumed.state), jax.tree.leaves(whole.state), strict=True):
            np.testing.assert_array_equal(one, two, err_msg=path)


def test_pruning_in_a_run_follows_its_plan_and_costs_no_compilation(data):
    """The mean of what was active is the plan's average; weights and moments off the masks are zero at every step."""
    job, plan, (prune, switch) = sparse()
    active, traces = [], job.traces

    def look(step, state):
        active.append(pruning.active(state.params) if step < 6 else None)
        for path, matrix in weights.matrices(state.params).items():
            if isinstance(matrix, weights.MaskedMatrix) and step in dict(plan.events):
                off = ~np.asarray(matrix.active())
                adam = state.opt_state[0]
                for values in (matrix.w, weights.matrices(adam.mu)[path].w, weights.matrices(adam.nu)[path].w):
                    assert (np.asarray(values)[off] == 0).all(), path
                assert off.sum() == off.size - len(off) * round(dict(plan.events)[step] * off[0].size)
        return state

    result = job.run(data, None, [prune, events.every(1, look), switch])
    found = [active[t - 2] if t > 1 else plan.n0 for t in range(1, 7)]  # update t sees what the boundary before it left
    expected = plan.n0 * plan.densities()[:6]
    np.testing.assert_allclose(found, expected, rtol=5e-3)
    mean = pruning.average_parameters(np.array([*found, *[found[-1]] * 4]) / plan.n0, TOKENS, plan.n0)
    assert mean == pytest.approx(plan.average, rel=5e-3)
    assert job.traces - traces <= 2  # nothing, or the two trees where no test before this one has compiled them
    matrices = weights.matrices(result.state.params)
    assert {type(w) for p, w in matrices.items() if p.startswith("blocks/")} == {weights.DenseMatrix}
    assert all((np.asarray(w.w) != 0).mean() > 0.99 for w in matrices.values())  # revived entries are trained


def test_a_switch_keeps_the_function_bit_for_bit_restarts_moments_and_goes_on_in_the_schedule():
    job, _, (_, switch) = sparse()
    state = job.create().replace(step=jnp.asarray(6))
    params = pruning.prune(state.params, 0.25)
    state = state.replace(trainable=trees.split(params)[0], fixed=trees.split(params)[1])
    counts = dataclasses.replace(state, opt_state=jax.tree.map(lambda x: x + 3, state.opt_state))
    ids = jnp.arange(24).reshape(2, 12)
    before = decoder.apply(state.params, ids, job.model)
    after = events.run([switch], 6, UPDATES, counts)
    half = weights.convert(jax.random.key(0), state.params, where="blocks/attention", to=weights.Dense())
    np.testing.assert_array_equal(decoder.apply(half, ids, job.model), before)  # masks: no bit changes
    np.testing.assert_allclose(decoder.apply(after.params, ids, job.model), before, atol=1e-5)  # Monarch: to rounding

    fresh = job.optimizer.init(after.trainable)
    assert jax.tree.structure(after.opt_state) == jax.tree.structure(fresh)
    for one, two in zip(jax.tree.leaves(after.opt_state[0]), jax.tree.leaves(fresh[0]), strict=True):
        np.testing.assert_array_equal(one, two)
    assert int(after.opt_state[-1].count) == 3 and (int(after.step), after.seed.tolist()) == (6, counts.seed.tolist())
    rates = job.cfg.rates(UPDATES)
    assert float(rates(6)) == pytest.approx(1e-3 * float(rates(9)), rel=1e-4)


def test_a_peak_rate_in_the_optimizers_state_and_the_moments_of_groups_survive_a_change_of_tree():
    make = lambda peak: optim.groups([("embedding", optim.adam(peak)), ("*", optim.adam(peak))])  # noqa: E731
    optimizer = optax.inject_hyperparams(make)(peak=1.0)
    trainable, _ = trees.split({"embedding": jnp.ones((3, 2)), "up": weights.ReLoRAMatrix(*[jnp.ones((2, 2))] * 3)})
    old = jax.tree.map(lambda x: x + 7, optimizer.init(trainable))
    new, _ = trees.split({"embedding": jnp.ones((3, 2)), "up": weights.DenseMatrix(jnp.ones((2, 2)))})
    found = surgery.restarted_for(optimizer, old, new)
    assert jax.tree.structure(found) == jax.tree.structure(optimizer.init(new))
    assert float(found.hyperparams["peak"]) == 8.0 and int(found.count) == 7
    moments = [leaf for path, leaf in trees.leaves_with_path(found) if "/mu/" in path or "/nu/" in path]
    assert len(moments) == 4 and all((leaf == 0).all() for leaf in moments)


@pytest.mark.parametrize("placed", [True, False])
def test_on_a_mesh_a_change_of_tree_gives_what_one_device_gives(placed, data):
    forms = (("blocks/attention/*", weights.Masked(0.5)), ("blocks/mlp/*", weights.Monarch(2)))
    model, mesh = dataclasses.replace(tiny_run.MODEL, weights=forms), make_mesh(MeshConfig(data=2, fsdp=4))
    optimizer, ramps = optim.adam(1e-2), Ramps(at=(2,))
    loss = lambda p, b, k: causal_lm.loss(p, b, k, model)  # noqa: E731
    dense = state_shardings(decoder.spec(dataclasses.replace(model, weights=())), optimizer, mesh)
    how = RunConfig(4, log_every=1, tensorboard=False, quiet=True)

    def go(mesh, where, state, placed):
        step = make_step(loss, optimizer, mesh=mesh, shardings=where)
        plan = [surgery.switch(ramps, optimizer, where="blocks", shardings=dense if placed else None)]
        return train(how, step, state, tiny_run.make_loader(data, mesh), events=plan)

    spec = decoder.spec(model)
    found = go(mesh, state_shardings(spec, optimizer, mesh), create_sharded(spec, optimizer, mesh), placed)
    alone = go(None, None, create(decoder.init(jax.random.key(0), model), optimizer), False)
    np.testing.assert_allclose([x for _, x in found.curve], [x for _, x in alone.curve], rtol=1e-4)
    kernel = found.state.params["blocks"]["mlp"]["up"]["kernel"]
    assert isinstance(kernel, weights.DenseMatrix)
    if placed:
        assert kernel.w.sharding.is_equivalent_to(dense.trainable["blocks"]["mlp"]["up"]["kernel"].w, kernel.w.ndim)


def test_errors_are_raised_when_the_run_starts_or_name_what_is_missing():
    job, _, (prune, _) = sparse()
    with pytest.raises(ValueError, match="the pruning plan is of 10 updates, the run of 20"):
        events.check([prune], 20)
    state = job.create()
    with pytest.raises(ValueError, match="there is no ReLoRA matrix to merge"):
        events.run([surgery.merges(Ramps(at=(3,)))], 3, 10, state)
    with pytest.raises(ValueError, match="no matrix matches 'blocks/mpl'"):
        events.run([surgery.switch(Ramps(at=(3,)), job.optimizer, where="blocks/mpl")], 3, 10, job.create())


def test_an_optimizer_without_moments_goes_on_after_a_switch():
    params = decoder.init(
        jax.random.key(0), decoder.Config(width=16, heads=2, ffn=24, weights=(("blocks", weights.Monarch(2)),))
    )
    change = surgery.switch(Ramps(at=(3,)), optax.sgd(0.1), where="blocks")
    state = events.run([change], 3, 10, create(params, optax.sgd(0.1)))
    assert isinstance(state.params["blocks"]["mlp"]["up"]["kernel"], weights.DenseMatrix)
