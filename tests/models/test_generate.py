"""Decoding with a cache against the full forward pass, and truncation against brute force."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxpt.models import decoder
from jaxpt.models.generate import Sampling, empty_cache, extend, generate, sample, truncate

BASE = decoder.Config(vocab_size=29, layers=2, width=16, heads=4, ffn=24, initializer_stddev=0.4)
CONFIGS = {
    "llama": dataclasses.replace(BASE, kv_heads=2),
    "gpt2": dataclasses.replace(
        BASE,
        norm="layer",
        activation="gelu_tanh",
        bias=True,
        rotary_fraction=0.0,
        learned_positions=20,
        tied_head=True,
    ),
    "neox": dataclasses.replace(
        BASE, norm="layer", activation="gelu", bias=True, rotary_fraction=0.5, parallel_residual=True
    ),
}
PROMPTS = jnp.asarray(np.random.default_rng(0).integers(0, 29, (3, 6)))
KEY = jax.random.key(0)


@functools.cache
def params(name):
    with jax.ensure_compile_time_eval():  # the first call may come from inside a jitted function
        return decoder.init(jax.random.key(5), CONFIGS[name])


def run(name="llama", prompts=PROMPTS, steps=5, temperature=0.0, **kwargs):
    kwargs = {"key": KEY} | kwargs
    return generate(
        params(name),
        prompts,
        CONFIGS[name],
        steps=steps,
        sampling=Sampling(temperature=temperature),
        **kwargs,
    )


@pytest.mark.parametrize(("name", "attention"), [("llama", "xla"), *((name, "blocks") for name in CONFIGS)])
def test_the_cache_gives_the_logits_of_the_full_pass(name, attention):
    """In pieces of 6, 1, 1 and 6 tokens."""
    cfg = dataclasses.replace(CONFIGS[name], attention=attention)
    ids = jnp.asarray(np.random.default_rng(1).integers(0, 29, (2, 14)))
    expected = jax.jit(lambda p: decoder.apply(p, ids, cfg))(params(name))
    step, cache, parts = jax.jit(lambda p, x, c: extend(p, x, cfg, c)), empty_cache(cfg, 2, 16), []
    for start, stop in ((0, 6), (6, 7), (7, 8), (8, 14)):
        found, cache = step(params(name), ids[:, start:stop], cache)
        parts.append(found)
    np.testing.assert_allclose(jnp.concatenate(parts, 1), expected, atol=1e-4)
    assert int(cache.length) == 14


@pytest.mark.parametrize("name", CONFIGS)
def test_greedy_text_is_the_argmax_of_the_full_pass(name):
    """Token by token without a cache."""
    ids, forward = PROMPTS, jax.jit(lambda p, x: decoder.apply(p, x, CONFIGS[name]))
    found = run(name)
    whole = jnp.concatenate([PROMPTS, found], 1)
    expected = forward(params(name), whole).argmax(-1)[:, ids.shape[1] - 1 : -1]
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(found, run(name, key=jax.random.key(77)))


@pytest.mark.parametrize("name", CONFIGS)
def test_left_padding_changes_nothing(name):
    padded = jnp.concatenate([jnp.full((3, 2), 7), PROMPTS], 1)
    valid = jnp.ones((3, 8), bool).at[:, :2].set(False)
    step = jax.jit(lambda x, valid: extend(params(name), x, CONFIGS[name], empty_cache(CONFIGS[name], *x.shape), valid))
    found, _ = step(padded, valid)
    expected, _ = step(PROMPTS, None)
    np.testing.assert_allclose(found[:, 2:], expected, atol=1e-4)


def test_a_text_does_not_depend_on_its_batch():
    """The first row alone, and beside other rows; with left padding forced on it by longer ones."""
    together = run(temperature=1.0, steps=8)
    np.testing.assert_array_equal(run(prompts=PROMPTS[:1], temperature=1.0, steps=8), together[:1])
    other = PROMPTS.at[1:].set(3)
    np.testing.assert_array_equal(run(prompts=other, temperature=1.0, steps=8)[:1], together[:1])
    longer = jnp.concatenate([jnp.full((3, 2), 7), PROMPTS], 1)
    valid = jnp.ones((3, 8), bool).at[0, :2].set(False)
    found = run(prompts=longer, temperature=1.0, steps=8, valid=valid)
    np.testing.assert_array_equal(found[:1], together[:1])


def test_sampling_is_determined_by_the_key_and_changes_with_it():
    first = run(temperature=1.0, steps=8)
    np.testing.assert_array_equal(first, run(temperature=1.0, steps=8))
    assert (first != run(temperature=1.0, steps=8, key=jax.random.key(1))).any()
    same_prompt = run(prompts=PROMPTS[:1].repeat(3, 0), temperature=1.0, steps=8)
    assert (same_prompt[0] != same_prompt[1]).any()


def test_after_the_stop_id_a_row_repeats_it_and_others_go_on():
    free = np.asarray(run(steps=8))
    stop = int(free[0, 2])
    found = np.asarray(run(steps=8, stop_id=stop))
    for row, text in zip(found, free, strict=True):
        hits = np.flatnonzero(text == stop)
        end = hits[0] if hits.size else len(text)
        np.testing.assert_array_equal(row[: end + 1], text[: end + 1])
        assert (row[end:] == stop).all()
    assert (found != stop).any()


def brute_force(logits, top_k, top_p):
    """Which tokens of a row stay: sort, cut at k, renormalise, stop once the mass reaches p."""
    order = sorted(range(len(logits)), key=lambda i: -logits[i])
    order = order[:top_k] if top_k else order
    weights = np.exp(np.asarray([logits[i] for i in order], np.float64) - max(logits))
    kept, mass = set(), 0.0
    for i, p in zip(order, weights / weights.sum(), strict=True):
        if mass >= top_p:
            break
        kept.add(i)
        mass += p
    return kept


@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 2**31 - 1), st.integers(0, 12), st.sampled_from([1e-6, 0.1, 0.5, 0.9, 0.999, 1.0]),
    st.sampled_from([0.1, 1.0, 5.0]),
)  # fmt: skip
def test_truncation_keeps_what_brute_force_keeps(seed, top_k, top_p, spread):
    logits = np.random.default_rng(seed).permutation(np.linspace(-1, 1, 10)).astype(np.float32)[None] * spread
    found = np.asarray(truncate(jnp.asarray(logits), Sampling(top_k=top_k, top_p=top_p)))[0]
    kept = set(np.flatnonzero(np.isfinite(found)).tolist())
    assert kept == brute_force(logits[0], top_k, top_p)
    np.testing.assert_array_equal(found[sorted(kept)], logits[0][sorted(kept)])


def test_samples_follow_the_tempered_truncated_distribution():
    logits = jnp.asarray([0.0, 1.0, 2.0, 3.0, -1.0])
    n, sampling = 20_000, Sampling(temperature=2.0, top_k=3)
    drawn = sample(jnp.broadcast_to(logits, (n, 5)), jax.random.split(KEY, n), sampling)
    expected = np.exp([-np.inf, 0.5, 1.0, 1.5, -np.inf])
    frequency = np.bincount(np.asarray(drawn), minlength=5) / n
    np.testing.assert_allclose(frequency, expected / expected.sum(), atol=0.015)
    assert frequency[0] == frequency[4] == 0


def test_min_p_keeps_what_is_likely_enough():
    """Of what top-k left, tokens with at least 0.1 times the likeliest one's probability."""
    logits = jnp.log(jnp.asarray([[0.5, 0.3, 0.1, 0.06, 0.04]]))
    kept = jnp.isfinite(truncate(logits, Sampling(min_p=0.1)))
    assert kept.tolist() == [[True, True, True, True, False]]
    assert jnp.isfinite(truncate(logits, Sampling(top_k=2, min_p=0.1))).sum() == 2
    assert jnp.isfinite(truncate(logits, Sampling(min_p=1.0))).sum() == 1


@pytest.mark.parametrize(
    "wrong", [{"temperature": -1.0}, {"top_k": -1}, {"top_p": 0.0}, {"top_p": 1.5}, {"min_p": 1.5}], ids=str
)
def test_impossible_sampling_is_an_error(wrong):
    with pytest.raises(ValueError, match="need temperature >= 0"):
        Sampling(**wrong)


def test_a_text_longer_than_the_position_table_is_an_error():
    with pytest.raises(ValueError, match="26 tokens .* learned_positions=20"):
        run("gpt2", steps=20)


def test_bfloat16_decoding_runs():
    cfg = dataclasses.replace(CONFIGS["llama"], compute_dtype="bfloat16")
    assert generate(params("llama"), PROMPTS, cfg, key=KEY, steps=3).shape == (3, 3)
