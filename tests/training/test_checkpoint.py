"""Checkpoints: what goes in comes out, wherever it lives; any change of a byte is seen."""

from __future__ import annotations

import os

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxpt import optim, weights
from jaxpt.core import spec as specs
from jaxpt.core import trees
from jaxpt.core.spec import ArraySpec, normal
from jaxpt.sharding import MeshConfig, make_mesh
from jaxpt.training.checkpoint import (
    CheckpointError,
    Checkpoints,
    ResumeError,
    fingerprints,
    restore_params_only,
    shape_of,
)
from jaxpt.training.state import create, create_sharded

SPEC = {
    "embedding": ArraySpec((16, 8), ("vocab", "embed"), normal(1.0)),
    "blocks": {"up": {"kernel": weights.SparseLowRank(rank=2, density=0.3).spec(8, 8, ("mlp", "embed"), (3,))}},
    "half": ArraySpec((4, 8), (None, "embed"), normal(1.0), "bfloat16"),
}
OPTIMIZER = optim.groups([("embedding", optax.sgd(0.1, momentum=0.9)), ("*", optim.adam(1e-3))])


def state(step=0, seed=0):
    made = create(specs.init(jax.random.key(seed), SPEC), OPTIMIZER, seed)
    return made.replace(step=jnp.asarray(step, jnp.int32))


def same(one, two):
    assert jax.tree.structure(one) == jax.tree.structure(two)
    for (path, a), b in zip(trees.leaves_with_path(one), jax.tree.leaves(two), strict=True):
        assert a.dtype == b.dtype, path
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b), path)


def open_at(tmp_path, keep=2):
    return Checkpoints(tmp_path, keep)


def targets(like):
    return lambda step: jax.tree.map(shape_of, like)


def test_a_state_comes_back_whole_with_its_meta(tmp_path):
    saved, meta = state(7), {"config": {"a": (1, 2)}, "ledger": {"flops": 2**80, "tokens": 0.1}}
    checkpoints = open_at(tmp_path)
    checkpoints.save(saved, meta)
    found, back = checkpoints.restore(targets(state()))
    checkpoints.close()
    same(found, saved)
    assert back["config"] == {"a": [1, 2]} and back["ledger"] == meta["ledger"]
    assert set(back["fingerprints"]) == {path for path, _ in trees.leaves_with_path(saved)}


def test_an_empty_folder_has_nothing_to_restore(tmp_path):
    checkpoints = open_at(tmp_path)
    assert checkpoints.restore(targets(state())) is None and checkpoints.steps() == []
    checkpoints.close()


def test_the_newest_are_kept_and_a_saved_step_is_not_saved_again(tmp_path):
    checkpoints = open_at(tmp_path, keep=2)
    for step in (1, 2, 3, 4):
        checkpoints.save(state(step, seed=step), {})
        checkpoints.save(state(step, seed=99), {})
    checkpoints.wait()
    assert checkpoints.steps() == [3, 4]
    same(checkpoints.restore(targets(state()))[0], state(4, seed=4))
    checkpoints.close()
    with pytest.raises(ValueError, match="keep must be at least 1, got 0"):
        open_at(tmp_path, keep=0)


def test_saving_in_the_background_keeps_what_the_next_update_overwrites(tmp_path):
    other = (
        os.getpid()
    )  # another program every time: on a CPU, one that comes from the compilation cache donates nothing

    def spoil(s):
        return jax.tree.map(lambda x: ~x if x.dtype == bool else x + jnp.asarray(other, x.dtype), s)

    donating, current = jax.jit(spoil, donate_argnums=0), state(5)
    before = jax.tree.map(np.array, current)
    checkpoints = open_at(tmp_path)
    checkpoints.save(current, {})
    donating(current)
    assert current.trainable["embedding"].is_deleted()
    same(checkpoints.restore(targets(state()))[0], before)
    checkpoints.close()


def test_a_state_moves_between_one_device_and_a_mesh(tmp_path):
    mesh = make_mesh(MeshConfig(data=1, fsdp=2, model=4))
    sharded = create_sharded(SPEC, OPTIMIZER, mesh)
    assert len(sharded.trainable["embedding"].sharding.device_set) == 8
    checkpoints = open_at(tmp_path)
    checkpoints.save(sharded, {})
    alone, _ = checkpoints.restore(targets(state()))
    same(alone, sharded)
    assert len(alone.trainable["embedding"].sharding.device_set) == 1
    again, _ = checkpoints.restore(targets(sharded))
    same(again, sharded)
    for a, b in zip(jax.tree.leaves(again), jax.tree.leaves(sharded), strict=True):
        assert a.sharding == b.sharding
    checkpoints.close()
    assert fingerprints(alone) == fingerprints(sharded)


def test_parameters_alone(tmp_path):
    checkpoints = open_at(tmp_path)
    for step in (3, 8):
        checkpoints.save(state(step, seed=step), {})
    checkpoints.close()
    shapes = specs.abstract(SPEC)
    same(restore_params_only(tmp_path, shapes), state(8, seed=8).params)
    same(restore_params_only(tmp_path, shapes, step=3), state(3, seed=3).params)
    with pytest.raises(CheckpointError, match=r"no checkpoint 5 in .*; there are \[3, 8\]"):
        restore_params_only(tmp_path, shapes, step=5)
    with pytest.raises(ResumeError, match=r"trainable/more is absent there and float32\[2\] here"):
        restore_params_only(tmp_path, shapes | {"more": jax.ShapeDtypeStruct((2,), jnp.float32)})


def test_another_tree_or_shape_is_refused(tmp_path):
    checkpoints = open_at(tmp_path)
    checkpoints.save(state(3), {})
    wider = SPEC | {"embedding": ArraySpec((16, 9), ("vocab", "embed"), normal(1.0))}
    fewer = {k: v for k, v in SPEC.items() if k != "half"}
    for spec, message in (
        (wider, r"trainable/embedding is float32\[16,8\] there and float32\[16,9\] here"),
        (fewer, r"trainable/half is bfloat16\[4,8\] there and absent here"),
    ):
        other = create(specs.init(jax.random.key(0), spec), OPTIMIZER)
        with pytest.raises(ResumeError, match=message):
            checkpoints.restore(targets(other))
    same(checkpoints.restore(targets(state()))[0], state(3))
    checkpoints.close()


def test_a_refusal_is_not_damage(tmp_path):
    def refuse(meta):
        raise ResumeError(f"not {meta['name']}")

    checkpoints = open_at(tmp_path)
    checkpoints.save(state(3), {"name": "mine"})
    with pytest.raises(ResumeError, match="not mine"):
        checkpoints.restore(targets(state()), refuse)
    assert checkpoints.steps() == [3]
    checkpoints.close()


KINDS = ["float32", "bfloat16", "float16", "int32", "uint8", "bool", "int8"]


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(KINDS), st.integers(0, 59), st.integers(0, 7))
def test_a_change_of_any_single_bit_changes_the_fingerprint(kind, at, bit):
    x = np.random.default_rng(0).integers(0, 2, (3, 4, 5)).astype(jnp.dtype(kind))
    y = x.copy()
    if kind == "bool":
        y.reshape(-1)[at] ^= True
    else:
        y.view(np.uint8).reshape(-1)[at * x.itemsize] ^= 1 << bit
    one, two = fingerprints({"x": jnp.asarray(x)}), fingerprints({"x": jnp.asarray(y)})
    assert one["x"] != two["x"] and 0 <= one["x"] < 2**32


def test_the_fingerprint_is_the_sum_its_docstring_states():
    x = np.random.default_rng(1).standard_normal((7, 3)).astype(np.float32)
    words = x.view(np.uint32).reshape(-1).astype(object)
    expected = sum(w * (2 * i + 1) for i, w in enumerate(words)) % 2**32
    assert fingerprints({"x": jnp.asarray(x)}) == {"x": expected}
