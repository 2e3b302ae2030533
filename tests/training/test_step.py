"""The pure step: the same update on a mesh, in microbatches, by groups; and what it must leave alone."""

from __future__ import annotations

import dataclasses
import functools
import os

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxpt import optim, weights
from jaxpt.core import spec as specs
from jaxpt.core import trees
from jaxpt.models import decoder
from jaxpt.objectives import causal_lm
from jaxpt.sharding import MeshConfig, make_mesh
from jaxpt.training.state import create, create_sharded, state_shardings
from jaxpt.training.step import make_step, put_batch

CFG = decoder.Config(
    vocab_size=32,
    width=16,
    heads=4,
    ffn=24,
    layers=2,
    weights=(("blocks/mlp/*", weights.SparseLowRank(rank=2, density=0.25)),),
)
B, S, UPDATES = 8, 12, 4


def adam():
    return optim.groups([("embedding", optim.adam(1e-2)), ("*", optim.adam(2e-2, weight_decay=0.1))])


def loss(params, batch, key):
    return causal_lm.loss(params, batch, key, CFG)


def batches(count=UPDATES):
    """Of unequal numbers of real tokens, so that a mean of means would differ from the mean."""
    rng = np.random.default_rng(0)
    for _ in range(count):
        ids = rng.integers(0, CFG.vocab_size, (B, S + 1)).astype(np.int32)
        real = np.arange(S) < rng.integers(1, S + 1, (B, 1))
        segments = real * (1 + (np.arange(S) > 3)).astype(np.int32)
        yield {
            "inputs": ids[:, :-1],
            "labels": ids[:, 1:],
            "loss_weight": real.astype(np.float32),
            "segment_ids": segments.astype(np.int32),
        }


def run(step, state, found=None):
    """(losses and norms [updates, 2], last state)."""
    rows = []
    for batch in batches() if found is None else found:
        state, metrics = step.run(state, put_batch(batch, step.mesh))
        rows.append([float(metrics["loss"]), float(metrics["gradient_norm"])])
    return np.array(rows), state


def fresh(optimizer=None):
    return create(jax.tree.map(jnp.asarray, initial()), optimizer or adam())


@functools.cache
def initial():
    return jax.device_get(jax.jit(lambda: decoder.init(jax.random.key(0), CFG))())


def hard_first(losses, step):
    """Weights that need all losses of the global batch."""
    return jax.nn.softmax(2 * losses) * losses.shape[0] * (1 + 0.1 * step)


@functools.cache
def reference(weighted=False):
    weight_fn = hard_first if weighted else None
    rows, state = run(make_step(loss, adam(), clip=0.5, weight_fn=weight_fn), fresh())
    return rows, jax.device_get(state)


def assert_close(found, expected, tolerance=1e-5):
    np.testing.assert_allclose(found[0], expected[0], rtol=tolerance, atol=tolerance)


TWO_BY_FOUR = MeshConfig(data=2, model=4)
MESHES = {  # name -> (mesh, weight_fn or not, microbatches)
    "data 2 x model 4": (TWO_BY_FOUR, False, 1),
    "data 2 x model 4, weight_fn": (TWO_BY_FOUR, True, 1),
    "fsdp 2 x model 4, 2 microbatches": (MeshConfig(data=1, fsdp=2, model=4), False, 2),
    "data 2 x fsdp 4, weight_fn, 2 microbatches": (MeshConfig(data=2, fsdp=4), True, 2),
}


@pytest.mark.parametrize("name", MESHES)
def test_a_mesh_of_eight_devices_gives_the_losses_of_one(name):
    layout, weighted, accumulate = MESHES[name]
    mesh, optimizer = make_mesh(layout), adam()
    where = state_shardings(decoder.spec(CFG), optimizer, mesh)
    weight_fn = hard_first if weighted else None
    step = make_step(loss, optimizer, clip=0.5, weight_fn=weight_fn, accumulate=accumulate, mesh=mesh, shardings=where)
    state = create_sharded(decoder.spec(CFG), optimizer, mesh)
    assert len(state.trainable["embedding"].sharding.device_set) == 8
    found = run(step, state)
    assert_close(found, reference(weighted))
    for array, sharding in zip(jax.tree.leaves(found[1]), jax.tree.leaves(where), strict=True):
        assert array.sharding.is_equivalent_to(sharding, array.ndim)


@pytest.mark.parametrize("weighted", [False, True], ids=["plain", "weight_fn"])
@pytest.mark.parametrize("accumulate", [2, 4])
def test_microbatches_do_not_change_the_update(accumulate, weighted):
    weight_fn = hard_first if weighted else None
    step = make_step(loss, adam(), clip=0.5, weight_fn=weight_fn, accumulate=accumulate)
    found = run(step, fresh())
    assert_close(found, reference(weighted))
    assert not np.allclose(reference(True)[0][:, 0], reference(False)[0][:, 0], rtol=1e-3)


def test_a_batch_that_cannot_be_cut_is_refused():
    step = make_step(loss, adam(), accumulate=3)
    with pytest.raises(ValueError, match="batch of 8 sequences cannot be cut into accumulate=3"):
        step.run(fresh(), put_batch(next(batches()), None))


def test_the_loss_is_the_mean_over_real_tokens():
    params, batch = initial(), next(batches())
    apply = jax.jit(lambda p, inputs, segments: decoder.apply(p, inputs, CFG, segments=segments))
    log_p = jax.nn.log_softmax(apply(params, batch["inputs"], batch["segment_ids"]))
    each = -np.take_along_axis(np.asarray(log_p), batch["labels"][..., None], -1)[..., 0]
    expected = (each * batch["loss_weight"]).sum() / batch["loss_weight"].sum()
    assert reference()[0][0, 0] == pytest.approx(expected, rel=1e-5)


def test_clipping_bounds_the_update_and_reports_the_norm_before():
    start = fresh(optax.sgd(1.0))
    before = jax.device_get(start.trainable)
    step = make_step(loss, optax.sgd(1.0), clip=0.01)
    rows, state = run(step, start, [next(batches())])
    change = jax.tree.map(lambda a, b: a - b, jax.device_get(state.trainable), before)
    assert float(optax.tree.norm(change)) == pytest.approx(0.01, rel=1e-4) and rows[0, 1] > 0.1


def test_each_group_of_parameters_has_its_own_optimizer():
    optimizer = optim.groups([("embedding", optax.sgd(0.0)), ("head", optax.sgd(0.5)), ("*", optim.adam(1e-2))])
    start = fresh(optimizer)
    before = jax.device_get(start.params)
    _, state = run(make_step(loss, optimizer), start, [next(batches())])
    differs = jax.tree.map(lambda a, b: np.any(a != b), before, state.params)
    changed = {path for path, x in trees.leaves_with_path(differs) if x}
    every = {path for path, _ in trees.leaves_with_path(before)}
    still = {path for path in every if path == "embedding" or path.endswith("support")}
    assert changed.isdisjoint(still) and "head/kernel/w" in changed
    assert {path for path in every - still if not path.endswith("/a")} <= changed  # A has no gradient while B is 0

    @functools.partial(jax.grad, allow_int=True)
    def gradient(params):
        found = loss(params, {name: jnp.asarray(x) for name, x in next(batches()).items()}, None)
        return found.sums.sum() / found.weights.sum()

    by_hand = before["head"]["kernel"].w - 0.5 * jax.jit(gradient)(before)["head"]["kernel"].w
    np.testing.assert_allclose(state.params["head"]["kernel"].w, by_hand, rtol=1e-4, atol=1e-6)


def test_fixed_arrays_never_change_and_have_no_moments():
    start = fresh()
    before = jax.device_get(start.fixed)
    assert len(jax.tree.leaves(before)) == 3
    assert not any("support" in path for path, _ in trees.leaves_with_path(start.opt_state))
    for a, b in zip(jax.tree.leaves(before), jax.tree.leaves(reference()[1].fixed), strict=True):
        np.testing.assert_array_equal(a, b)


def test_probe_leaves_the_state_alone_and_run_gives_it_up(monkeypatch):
    if "fusion_emitters" in os.environ["XLA_FLAGS"]:  # the tests' quick compiler rounds the two programs differently
        ordinary = functools.partial(jax.jit, compiler_options={"xla_cpu_use_fusion_emitters": True})
        monkeypatch.setattr(jax, "jit", ordinary)
    step, state = make_step(loss, adam(), clip=0.5), fresh()
    batch = put_batch(next(batches()), None)
    before = jax.tree.map(np.array, state)  # a view would keep the arrays from being given up
    probed, metrics = step.probe(state, batch)
    for a, b in zip(jax.tree.leaves(before), jax.tree.leaves(state), strict=True):
        np.testing.assert_array_equal(a, b)
    ran, again = step.run(state, batch)
    assert state.trainable["embedding"].is_deleted() and not probed.trainable["embedding"].is_deleted()
    assert float(metrics["loss"]) == float(again["loss"])
    for a, b in zip(jax.tree.leaves(probed), jax.tree.leaves(ran), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_bad_batch_halts_at_the_last_good_state(bad):
    step, (good, poisoned, later) = make_step(loss, adam()), batches(3)
    poisoned["loss_weight"][1, 0] = bad
    state, _ = step.run(fresh(), put_batch(good, None))
    kept = jax.device_get(state)
    for batch in (poisoned, later):
        state, metrics = step.run(state, put_batch(batch, None))
        assert not metrics["finite"] and state.halted and state.step == 1
    for a, b in zip(jax.tree.leaves(kept.replace(halted=state.halted)), jax.tree.leaves(state), strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_state_is_made_the_same_on_a_mesh_and_on_one_device():
    mesh = make_mesh(TWO_BY_FOUR)
    sharded = create_sharded(decoder.spec(CFG), adam(), mesh, seed=3, init_seed=5)
    alone = create(decoder.init(jax.random.key(5), CFG), adam(), seed=3)
    for (path, a), b in zip(trees.leaves_with_path(alone), jax.tree.leaves(sharded), strict=True):
        np.testing.assert_allclose(np.asarray(a), np.asarray(b), rtol=1e-6, atol=1e-7, err_msg=path)


def test_half_precision_parameters_keep_their_format():
    cfg = dataclasses.replace(CFG, param_dtype="bfloat16", compute_dtype="bfloat16")
    state = create(specs.init(jax.random.key(0), decoder.spec(cfg)), adam())
    step = make_step(lambda p, b, k: causal_lm.loss(p, b, k, cfg), adam(), accumulate=2)
    kinds = [x.dtype for x in jax.tree.leaves(state)]
    rows, state = run(step, state)
    assert [x.dtype for x in jax.tree.leaves(state)] == kinds and jnp.bfloat16 in kinds
    np.testing.assert_allclose(rows[:, 0], reference()[0][:, 0], rtol=0.05)
