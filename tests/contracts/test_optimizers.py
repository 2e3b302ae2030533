"""What every optimizer must do. A new one adds a row to ROWS and nothing else."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxpt import optim, weights
from jaxpt.core import config, trees
from jaxpt.core import spec as specs
from jaxpt.models import decoder
from jaxpt.sharding import MeshConfig, make_mesh
from jaxpt.training import ledger, memory
from jaxpt.training.checkpoint import Checkpoints
from jaxpt.training.state import TrainState, create, state_shardings

LAYERS, STEPS = 3, 4
GALORE = {"rank": 4, "gap": 2, "weight_decay": 0.1}


@dataclasses.dataclass(frozen=True)
class Row:
    """An optimizer, and by how much weights may differ where the order of rounding does: 8 bits round to coarse codes."""

    cfg: optim.OptimizerConfig
    atol: float = 1e-5


ROWS = {
    "adafactor": Row(optim.AdafactorConfig(scaled=False, weight_decay=0.1)),
    "adam": Row(optim.AdamConfig(weight_decay=0.1)),
    "adam in 8 bits": Row(optim.Adam8bitConfig(weight_decay=0.1), 2e-4),
    "galore": Row(optim.GaloreConfig(**GALORE)),
    "galore by iteration": Row(optim.GaloreConfig(**GALORE, projector="iterate")),
    "galore found once": Row(optim.GaloreConfig(rank=4, gap=None)),
    "fira of the paper": Row(optim.FiraConfig(**GALORE, residual="paper")),
    "fira of the code": Row(optim.FiraConfig(**GALORE, residual="code")),
    "lamb": Row(optim.LambConfig(weight_decay=0.1)),
    "lamb and an average": Row(optim.EmaLambConfig(weight_decay=0.1, ema=0.5)),
    "stable spam": Row(optim.StableSpamConfig(gap=3, total=6, theta=0.9, weight_decay=0.1)),
}  # fmt: skip
every_row = pytest.mark.parametrize("name", ROWS)


@functools.cache
def spec():
    """Stacked matrices of both sides and a norm, and the same without layers."""
    dense, ones = weights.Dense(), specs.ones
    return {
        "embedding": specs.ArraySpec((32, 16), ("vocab", "embed"), specs.normal(1.0)),
        "blocks": {
            "up": {"kernel": dense.spec(24, 16, ("mlp", "embed"), (LAYERS,))},
            "down": {"kernel": dense.spec(16, 24, ("embed", "mlp"), (LAYERS,))},
            "norm": {"scale": specs.ArraySpec((LAYERS, 16), ("layers", "norm"), ones)},
        },
        "head": {"kernel": dense.spec(32, 16, ("vocab", "embed"))},
    }


@functools.cache
def initial():
    return specs.init(jax.random.key(0), spec())


def gradients(step, dtype=jnp.float32):
    """Of full rank, with entries of very different sizes."""

    def one(path, x):
        i = np.arange(1, x.size + 1)
        return jnp.asarray(np.cos(0.37 * i * i + step + len(path)) ** 3, dtype).reshape(x.shape)

    return trees.map_with_path(one, initial())


def made(name):
    return dataclasses.replace(ROWS[name].cfg, rate=1e-2, schedule="linear").make(2 * STEPS)


def step_of(optimizer):
    def step(params, state, gradient):
        updates, state = optimizer.update(gradient, state, params)
        return optax.apply_updates(params, updates), state

    return step


@functools.cache
def after(name, steps=STEPS):
    """(params, state) after so many jitted updates."""
    optimizer = made(name)
    step, params, state = jax.jit(step_of(optimizer)), initial(), optimizer.init(initial())
    for i in range(steps):
        params, state = step(params, state, gradients(i))
    return params, state


def assert_close(found, expected, atol, rtol=0.0):
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for (path, one), other in zip(trees.leaves_with_path(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(one, other, atol=atol, rtol=rtol, err_msg=path)


def layer(tree, i):
    """One layer of what is stacked, all of the rest."""
    return trees.map_with_path(lambda path, x: x[i] if "blocks" in path.split("/") else x, tree)


def test_every_family_member_has_a_row():
    assert {type(row.cfg) for row in ROWS.values()} == set(optim.OPTIMIZERS.values())


@every_row
def test_its_description_can_be_written_down_and_read(name):
    cfg = ROWS[name].cfg
    assert config.from_dict(config.to_dict(cfg), optim.OPTIMIZERS.values()) == cfg
    assert hash(cfg) == hash(dataclasses.replace(cfg))


@every_row
def test_jit_equals_eager(name):
    optimizer = made(name)
    params, state = initial(), optimizer.init(initial())
    for i in range(2):
        params, state = step_of(optimizer)(params, state, gradients(i))
    assert_close(after(name, 2)[0], params, ROWS[name].atol)
    moved = jax.tree.map(lambda a, b: float(jnp.abs(a - b).mean()), params, initial())
    assert all(1e-4 < x < 5e-2 for x in jax.tree.leaves(moved)), moved


@every_row
def test_bfloat16_parameters_stay_finite_and_bfloat16(name):
    params = jax.tree.map(lambda x: x.astype(jnp.bfloat16), initial())
    optimizer = made(name)
    state = optimizer.init(params)
    kinds = [x.dtype for x in jax.tree.leaves(state)]
    step = jax.jit(step_of(optimizer))
    for i in range(STEPS):
        params, state = step(params, state, gradients(i, jnp.bfloat16))
    assert [x.dtype for x in jax.tree.leaves(state)] == kinds
    assert {x.dtype for x in jax.tree.leaves(params)} == {jnp.dtype("bfloat16")}
    for (path, one), other in zip(trees.leaves_with_path(params), jax.tree.leaves(after(name)[0]), strict=True):
        assert np.isfinite(np.asarray(one, np.float32)).all(), path
        assert np.abs(np.asarray(one, np.float32) - other).mean() < 0.02, path


@every_row
def test_a_stack_of_layers_is_updated_like_each_layer_alone(name):
    optimizer = made(name)
    step = jax.jit(step_of(optimizer))
    for i in range(LAYERS):
        params, state = layer(initial(), i), layer(optimizer.init(initial()), i)
        for t in range(STEPS):
            params, state = step(params, state, layer(gradients(t), i))
        assert_close((params, state), layer(after(name), i), ROWS[name].atol, rtol=1e-5)


@every_row
def test_vmap_over_runs_equals_one_run(name):
    optimizer = made(name)
    twice = jax.tree.map(lambda *x: jnp.stack(x), initial(), jax.tree.map(jnp.cos, initial()))
    state = jax.vmap(optimizer.init)(twice)
    step = jax.jit(jax.vmap(step_of(optimizer)))
    for t in range(2):
        twice, state = step(twice, state, jax.tree.map(lambda g: jnp.stack([g, -g]), gradients(t)))
    assert_close(jax.tree.map(lambda x: x[0], twice), after(name, 2)[0], ROWS[name].atol)


@every_row
def test_a_scan_of_updates_equals_the_updates(name):
    optimizer = made(name)
    stacked = jax.tree.map(lambda *x: jnp.stack(x), *(gradients(t) for t in range(STEPS)))

    def body(carry, gradient):
        return step_of(optimizer)(*carry, gradient), None

    start = (initial(), optimizer.init(initial()))
    (params, state), _ = jax.jit(lambda carry: jax.lax.scan(body, carry, stacked))(start)
    assert_close(params, after(name)[0], ROWS[name].atol)
    assert jax.tree.structure(state) == jax.tree.structure(start[1])


@functools.cache
def on_mesh(name):
    """(params, state, shardings) after the same updates on fsdp 2 x model 4, the state where `state_shardings` says."""
    optimizer, mesh = made(name), make_mesh(MeshConfig(data=1, fsdp=2, model=4))
    where = state_shardings(spec(), optimizer, mesh)
    with jax.set_mesh(mesh):
        step = jax.jit(step_of(optimizer), out_shardings=(where.trainable, where.opt_state))
        params = jax.device_put(initial(), where.trainable)
        state = jax.jit(optimizer.init, out_shardings=where.opt_state)(params)
        for t in range(STEPS):
            params, state = step(params, state, jax.device_put(gradients(t), where.trainable))
    return params, state, where.opt_state


@every_row
def test_a_mesh_of_two_by_four_gives_what_one_device_gives(name):
    params, state, where = on_mesh(name)
    assert_close(params, after(name)[0], ROWS[name].atol)
    for (path, x), sharding in zip(trees.leaves_with_path(state), jax.tree.leaves(where), strict=True):
        assert x.sharding.is_equivalent_to(sharding, x.ndim), path


@every_row
def test_what_is_kept_of_a_matrix_is_split_over_the_mesh(name):
    """Every dimension that is the parameter's own and bears a mesh axis is split: `up` is [L, mlp, embed], model x fsdp."""
    for path, x in trees.leaves_with_path(on_mesh(name)[1]):
        if "blocks/up/kernel" not in path or x.ndim < 3:
            continue
        split = [n // m for n, m in zip(x.shape, x.sharding.shard_shape(x.shape), strict=True)]
        assert split == [1, 4 if x.shape[1] == 24 else 1, 2 if x.shape[2] == 16 else 1], (path, x.shape)
        assert max(split) > 1, path


@every_row
@pytest.mark.parametrize("sizes", [{}, {"fsdp": 2, "model": 4}], ids=["one device", "mesh"])
def test_the_memory_model_counts_the_bytes_of_its_state(name, sizes):
    params, state, *_ = on_mesh(name) if sizes else after(name)
    mine = [x.addressable_shards[0].data.nbytes for x in jax.tree.leaves(state)]
    cfg = decoder.Config(width=16, ffn=24, layers=LAYERS, vocab_size=32)
    found = memory.estimate(spec(), made(name), cfg, batch=8, length=4, sizes=sizes)
    assert found.optimizer == sum(mine)
    whole = sum(x.nbytes for x in jax.tree.leaves((params, state)))
    assert ledger.persistent_bytes(TrainState(0, params, None, state, None, None)) == whole


@every_row
def test_a_checkpoint_brings_it_back_bit_for_bit(name, tmp_path):
    params, opt_state = after(name)
    state = dataclasses.replace(create(params, made(name)), opt_state=opt_state, step=jnp.asarray(STEPS))
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(state, {})
    checkpoints.wait()
    found, _ = checkpoints.restore(lambda step: create(initial(), made(name)))
    checkpoints.close()
    assert jax.tree.structure(found) == jax.tree.structure(state)
    for (path, one), other in zip(trees.leaves_with_path(found), jax.tree.leaves(state), strict=True):
        assert one.dtype == other.dtype and np.array_equal(one, other), path


@every_row
def test_gradients_of_zero_give_finite_updates(name):
    optimizer = made(name)
    zero, state = jax.tree.map(jnp.zeros_like, initial()), optimizer.init(initial())
    for start in (state, after(name)[1]):
        for _ in range(2):
            updates, start = jax.jit(optimizer.update)(zero, start, initial())
        for path, x in trees.leaves_with_path((updates, start)):
            assert np.isfinite(np.asarray(x, np.float32)).all(), path


@every_row
def test_moments_can_be_reset_and_the_next_update_has_the_size_of_the_first(name):
    optimizer = made(name)
    before = after(name)[1]
    state = optim.reset_moments(before)
    assert jax.tree.structure(state) == jax.tree.structure(before)
    for (path, x), old in zip(trees.leaves_with_path(state), jax.tree.leaves(before), strict=True):
        keys = path.removeprefix("inner/").split("/")  # of an optimizer inside another
        if "mu" in keys or "nu" in keys or keys[:2] == ["0", "count"]:
            assert not np.asarray(x).any(), path
        else:
            np.testing.assert_array_equal(x, old, err_msg=path)
    updates, _ = jax.jit(optimizer.update)(gradients(0), state, jax.tree.map(jnp.zeros_like, initial()))
    rate = float(dataclasses.replace(ROWS[name].cfg, rate=1e-2, schedule="linear").rates(2 * STEPS)(STEPS))
    assert np.median(np.abs(updates["embedding"])) == pytest.approx(rate, rel=0.01)
