"""Updates inside the backward pass: the ordinary step's update, in less memory."""

from __future__ import annotations

import dataclasses
import functools

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
from jaxpt.training.layerwise import make_layerwise_step
from jaxpt.training.state import create, create_sharded, state_shardings
from jaxpt.training.step import make_step, put_batch

CFG = decoder.Config(
    vocab_size=32, width=16, heads=4, ffn=24, layers=3, remat="full", tied_head=True, learned_positions=12
)
SPARSE = dataclasses.replace(
    CFG, tied_head=False, weights=(("blocks/mlp/*", weights.SparseLowRank(rank=2, density=0.25)),)
)
OPTIMIZERS = {
    "adam": (optim.AdamConfig(weight_decay=0.1), CFG),
    "adam, sparse and low rank": (optim.AdamConfig(weight_decay=0.1), SPARSE),
    "adam, 8 bit": (optim.Adam8bitConfig(), dataclasses.replace(CFG, tied_head=False)),
    "galore": (optim.GaloreConfig(rank=4, gap=2, weight_decay=0.1), CFG),
    "fira": (optim.FiraConfig(rank=4, gap=2), CFG),
    "stable spam": (optim.StableSpamConfig(gap=2, theta=0.9), CFG),
}


def batches(count=3, size=8):
    rng = np.random.default_rng(0)
    for _ in range(count):
        ids = rng.integers(0, 32, (size, 13)).astype(np.int32)
        real = np.arange(12) < rng.integers(1, 13, (size, 1))
        yield {
            "inputs": ids[:, :-1],
            "labels": ids[:, 1:],
            "loss_weight": real.astype(np.float32),
            "segment_ids": (real * (1 + (np.arange(12) > 3))).astype(np.int32),
        }


def run(step, state, found=None):
    rows = []
    for batch in batches() if found is None else found:
        state, metrics = step.run(state, put_batch(batch, step.mesh))
        rows.append({name: np.asarray(x) for name, x in metrics.items()})
    return rows, state


def make(kind, cfg, optimizer, **kwargs):
    if kind == "layerwise":
        return make_layerwise_step(cfg, optimizer, **kwargs)
    return make_step(lambda p, b, k: causal_lm.loss(p, b, k, cfg), optimizer, **kwargs)


@functools.cache
def initial(cfg):
    return jax.device_get(jax.jit(lambda: decoder.init(jax.random.key(0), cfg))())


@functools.cache
def result(kind, name, clip=None):
    optim_cfg, cfg = OPTIMIZERS[name]
    optimizer = dataclasses.replace(optim_cfg, rate=3e-3).make(10)
    return run(make(kind, cfg, optimizer, clip=clip), create(initial(cfg), optimizer))


def assert_same(found, expected, atol=1e-6):
    """Singular vectors to 1e-5: where singular values lie close, rounding turns them more than it moves the weights."""
    for one, other in zip(found[0], expected[0], strict=True):
        assert one.keys() == other.keys()
        for key in one:
            np.testing.assert_allclose(one[key], other[key], rtol=1e-5, err_msg=key)
    assert jax.tree.structure(found[1]) == jax.tree.structure(expected[1])
    for (path, a), b in zip(trees.leaves_with_path(found[1]), jax.tree.leaves(expected[1]), strict=True):
        turned = path.startswith("opt_state/0/") and path.split("/")[2] in ("projector", "mu", "nu")
        np.testing.assert_allclose(a, b, atol=10 * atol if turned else atol, rtol=1e-5, err_msg=path)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_update_is_the_ordinary_steps(name):
    """Parameters, optimizer state and metrics of three updates, to 1e-6."""
    assert_same(result("layerwise", name), result("ordinary", name))


def test_clipping_makes_two_passes_and_is_the_ordinary_one():
    found = result("layerwise", "adam", 0.3)
    assert found[0][0]["gradient_norm"] > 0.3
    assert_same(found, result("ordinary", "adam", 0.3))


def test_a_rate_in_the_state():
    """As proxies have it."""
    optimizer = optax.inject_hyperparams(lambda peak: optim.AdamConfig(weight_decay=0.1).make(10, peak))(peak=1e-2)
    found = [run(make(kind, CFG, optimizer), create(initial(CFG), optimizer)) for kind in ("layerwise", "ordinary")]
    assert_same(*found)


def test_groups_of_optimizers_are_refused():
    optimizer = optim.groups([("embedding", optax.sgd(0.1)), ("*", optim.adam(1e-2))])
    with pytest.raises(ValueError, match="one optimizer for all arrays"):
        run(make("layerwise", CFG, optimizer), create(initial(CFG), optimizer))


def test_on_a_mesh_it_is_what_it_is_on_one_device():
    optimizer = dataclasses.replace(OPTIMIZERS["galore"][0], rate=3e-3).make(10)
    mesh, spec = make_mesh(MeshConfig(data=2, fsdp=2, model=2)), decoder.spec(CFG)
    where = state_shardings(spec, optimizer, mesh)
    step = make_layerwise_step(CFG, optimizer, mesh=mesh, shardings=where)
    rows, state = run(step, create_sharded(spec, optimizer, mesh))
    expected, alone = result("ordinary", "galore")
    np.testing.assert_allclose([r["loss"] for r in rows], [r["loss"] for r in expected], rtol=1e-5)
    for a, b in zip(jax.tree.leaves(state.trainable), jax.tree.leaves(alone.trainable), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5)


@pytest.mark.parametrize("clip", [None, 1.0])
def test_a_bad_batch_halts(clip):
    optimizer = optim.AdamConfig().make(10)
    step = make_layerwise_step(CFG, optimizer, clip=clip)
    good, bad, later = batches()
    bad["loss_weight"][1, 0] = np.nan
    rows, state = run(step, create(initial(CFG), optimizer), [good])
    kept = jax.device_get(state)
    rows, state = run(step, state, [bad, later])
    assert not any(row["finite"] for row in rows) and state.halted and state.step == 1
    for a, b in zip(jax.tree.leaves(kept.replace(halted=state.halted)), jax.tree.leaves(state), strict=True):
        np.testing.assert_array_equal(a, b)


def test_an_optimizer_that_mixes_layers_is_refused():
    """One that keeps a single number for a whole stack."""
    norm_of_all = optax.GradientTransformation(
        lambda params: jax.tree.map(lambda x: jnp.zeros(()), params), lambda g, s, p=None: (g, s)
    )
    step = make_layerwise_step(CFG, norm_of_all)
    with pytest.raises(
        ValueError, match=r"the optimizer's blocks/.* is \(\): it is not kept apart for each of 3 layers"
    ):
        run(step, create(initial(CFG), norm_of_all))


DEEP = decoder.Config(vocab_size=32, width=32, heads=2, ffn=128, layers=32, remat="full")


@pytest.mark.parametrize("name", ["adam", "galore"])
def test_a_deep_narrow_stack_needs_less_memory(name):
    """Compiled temporaries are below the ordinary step's: 4.58 MB against 5.02 MB for Adam on a CPU, where gradients of all
    layers take 2.11 MB. What else the layerwise program holds has not been found out."""
    optimizer = {"adam": optim.AdamConfig(), "galore": optim.GaloreConfig(rank=4)}[name].make(10)
    spec = decoder.spec(DEEP)
    state = jax.eval_shape(lambda: create(specs.init(jax.random.key(0), spec), optimizer))
    kinds = {"inputs": jnp.int32, "labels": jnp.int32, "loss_weight": jnp.float32}
    batch = {name: jax.ShapeDtypeStruct((1, 8), kind) for name, kind in kinds.items()}
    used = {}
    for kind in ("layerwise", "ordinary"):
        used[kind] = make(kind, DEEP, optimizer).run.lower(state, batch).compile().memory_analysis().temp_size_in_bytes
    assert used["layerwise"] < 0.95 * used["ordinary"], used
