"""Adam in 8 bits: its codes, the error of quantisation, bitsandbytes step by step, and training beside float32."""

from __future__ import annotations

import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxpt.models import decoder
from jaxpt.objectives import causal_lm
from jaxpt.optim import Adam8bitConfig, AdamConfig
from jaxpt.optim.adam_8bit import code, quantise, read, scale_by_adam_8bit, value
from jaxpt.training.ledger import persistent_bytes
from jaxpt.training.state import create
from jaxpt.training.step import make_step

GOLDEN = Path(__file__).parent / "golden"


@functools.cache
def values(signed):
    """The value of each of the 256 codes, sorted."""
    codes = jnp.arange(256).astype(jnp.uint8)
    return np.sort(np.asarray(value(codes.astype(jnp.int8) if signed else codes, signed), np.float64))


def dynamic_map(signed):
    """arXiv 2110.02861, section 1.3: the middles of even steps of [0.1, 1], 2^i of them in the i-th decade from below."""
    found = [0.0, 1.0]
    for i in range(7):
        edges = np.linspace(0.1, 1, 2 ** (i if signed else i + 1) + 1)
        middles = 10.0 ** (i - 6) * (edges[:-1] + edges[1:]) / 2
        found += [*middles, *(-middles if signed else [])]
    return np.sort(found)


@pytest.mark.parametrize("signed", [True, False])
def test_the_codes_are_the_papers(signed):
    assert len(dynamic_map(signed)) == 256
    np.testing.assert_allclose(values(signed), dynamic_map(signed), rtol=1e-5)


@pytest.mark.parametrize("signed", [True, False])
def test_every_number_gets_its_nearest_code(signed):
    rng = np.random.default_rng(0)
    x = (10.0 ** rng.uniform(-8, 0, 4000) * (rng.choice([-1, 1], 4000) if signed else 1)).astype(np.float32)
    x = np.concatenate([x, values(signed).astype(np.float32)])
    found = np.asarray(value(jax.jit(code, static_argnums=1)(x, signed), signed))
    best = np.abs(values(signed)[None] - x[:, None]).min(1)
    np.testing.assert_allclose(np.abs(found - x), best, atol=1e-7)
    np.testing.assert_array_equal(np.sign(found) * np.sign(x) >= 0, True)


def test_a_block_is_off_by_less_than_its_steps_and_no_block_sees_another():
    """At most half a step of the entry's decade; an entry that is huge spoils its own block alone."""
    rng = np.random.default_rng(1)
    x = jnp.asarray(rng.normal(size=(5, 600)), jnp.float32)  # two blocks of 256 and one of 88
    stored = quantise(x, True)
    assert stored.codes.shape == (5, 600) and stored.scales.shape == (5, 3)
    assert (stored.codes.dtype, stored.scales.dtype) == (jnp.int8, jnp.float32)
    size = np.repeat(np.asarray(stored.scales), [256, 256, 88], axis=1)
    error = np.abs(read(stored) - x)
    relative = np.abs(x) / size
    step = np.where(relative > 0.1, 0.9 / 64, np.where(relative > 0.01, 0.09 / 32, 0.009 / 16))
    assert (error <= size * step * 0.51).all()
    spoiled = read(quantise(x.at[0, 3].set(1e8), True))
    np.testing.assert_array_equal(spoiled[0, 256:], read(stored)[0, 256:])
    assert not spoiled[0, 4:256].any()


def test_zeros_are_code_zero_and_nothing_else_is_needed_for_them():
    for signed in (True, False):
        stored = quantise(jnp.zeros((2, 300)), signed)
        assert not stored.codes.any() and not stored.scales.any() and not read(stored).any()


def test_bitsandbytes_step_by_step():
    """Its Adam8bit on a CPU over 8 steps. A few of a thousand codes differ, since its search for the nearest is approximate
    (ours is exact: the test above), which moves 1 % of the weights by up to 8 % of a step."""
    golden = np.load(GOLDEN / "adam_8bit.npz")
    params = {"big": jnp.asarray(golden["start/big"])}
    optimizer = optax.chain(scale_by_adam_8bit(where=("*",)), optax.scale(-1e-2))
    state, update = optimizer.init(params), jax.jit(optimizer.update)
    for t in range(8):
        updates, state = update({"big": jnp.asarray(golden["gradient/big"][t])}, state)
        params = optax.apply_updates(params, updates)
        off = np.abs(np.asarray(params["big"]) - golden["plain/big"][t])
        assert (off > 1e-5).mean() < 0.02 and off.max() < 1e-3, t
    # Theirs are sorted by value, so that 0 has the number 127 where there is a sign.
    for name, stored, zero in (("1", state[0].mu["big"], 127), ("2", state[0].nu["big"], 0)):
        ours = (stored.codes.astype(jnp.int32) + zero) % 256
        assert (np.asarray(ours) != golden[f"codes/{name}"]).mean() < 5e-3
        np.testing.assert_allclose(stored.scales.reshape(-1), golden[f"scales/{name}"], rtol=1e-2)


CFG = decoder.Config(vocab_size=32, width=32, heads=2, ffn=64, layers=1, activation="gelu")


def train(cfg, steps=60):
    """Losses of a decoder on sequences that count upwards from a random start, and its state."""
    optimizer = cfg.make(steps)
    state = create(decoder.init(jax.random.key(0), CFG), optimizer)
    step = make_step(lambda p, b, k: causal_lm.loss(p, b, k, CFG), optimizer)
    rng, losses = np.random.default_rng(0), []
    for _ in range(steps):
        ids = (rng.integers(0, 32, (16, 1)) + np.arange(17) * rng.integers(1, 4, (16, 1))) % 32
        batch = {"inputs": ids[:, :-1], "labels": ids[:, 1:], "loss_weight": np.ones((16, 16), np.float32)}
        state, metrics = step.run(state, {k: jnp.asarray(x) for k, x in batch.items()})
        losses.append(float(metrics["loss"]))
    return np.array(losses), state


def test_training_follows_float32():
    full, state = train(AdamConfig(rate=1e-2))
    small, reduced = train(Adam8bitConfig(rate=1e-2))
    assert full[-1] < 0.6 * full[0]
    np.testing.assert_allclose(small, full, atol=0.08)
    assert not np.array_equal(small, full)
    of = lambda state: persistent_bytes(state) - persistent_bytes(create(state.params, optax.identity()))  # noqa: E731
    assert of(reduced) < 0.5 * of(state)


def test_what_is_quantised_goes_by_path():
    params = {
        "blocks": {"up": {"kernel": jnp.ones((2, 8, 300)), "bias": jnp.ones((2, 8))}},
        "embedding": jnp.ones((9, 4)),
    }
    state = scale_by_adam_8bit().init(params)
    assert state.mu["blocks"]["up"]["kernel"].codes.shape == (2, 8, 300)
    assert state.nu["blocks"]["up"]["kernel"].scales.shape == (2, 8, 2)
    assert state.nu["blocks"]["up"]["kernel"].codes.dtype == jnp.uint8
    assert state.mu["blocks"]["up"]["bias"].dtype == state.mu["embedding"].dtype == jnp.float32
    kernel = sum(x.nbytes for tree in (state.mu, state.nu) for x in jax.tree.leaves(tree["blocks"]["up"]["kernel"]))
    assert kernel == 2 * 8 * (2 * 300 + 2 * 2 * 4)
