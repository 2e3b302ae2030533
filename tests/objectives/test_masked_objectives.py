"""Masked, hybrid and denoising losses are what their equations say, and see exactly what their masks let them see."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpt.layers import masks
from jaxpt.models import decoder, encoder
from jaxpt.objectives import causal_lm, denoising, hybrid_lm, masked_lm, masked_next_token
from jaxpt.objectives.corruption import Masking
from jaxpt.objectives.corruption.denoisers import Denoiser, Mixture

B, S, V = 4, 16, 32
CFG = decoder.Config(vocab_size=V, layers=2, width=16, heads=2, ffn=24, initializer_stddev=0.3)
BERT = encoder.Config(
    vocab_size=V, layers=1, width=16, heads=2, ffn=24, initializer_stddev=0.3, learned_positions=S, mlm_head=True
)
MASKING = Masking(mask_id=3, vocab_size=V, rate=0.3, special_ids=(0, 1))
MNTP = masked_next_token.MaskedNextToken(model=CFG, masking=MASKING)
SEGMENTS = np.asarray([[1] * 7 + [2] * 6 + [0] * 3] * B)


@functools.cache
def params(cfg=CFG):
    model = decoder if isinstance(cfg, decoder.Config) else encoder
    return jax.tree.map(
        lambda x: x + 0.1 * jnp.cos(jnp.arange(x.size)).reshape(x.shape), model.init(jax.random.key(0), cfg)
    )


def batch(segments=True):
    ids = np.random.default_rng(0).integers(5, V, (B, S + 1))
    whole = {
        "inputs": jnp.asarray(ids[:, :-1]),
        "labels": jnp.asarray(ids[:, 1:]),
        "loss_weight": jnp.ones((B, S), jnp.float32),
    }
    return whole | ({"segment_ids": jnp.asarray(SEGMENTS)} if segments else {})


def draw(module, cfg, given):
    """What the objective draws of a batch, with key 0."""
    return jax.jit(lambda key: module.corrupt(key, given, cfg))(jax.random.key(0))


def logits_of(inputs, segments, prefix, model=CFG):
    """Of the whole vocabulary at every position, under a full mask where no prefix is given."""

    def run(tree):
        if model is not CFG:
            return encoder.mlm_logits(tree, encoder.apply(tree, inputs, BERT, segments=segments), BERT)
        mask = masks.full(segments) if prefix is None else masks.prefix_lm(prefix, segments)
        return decoder.apply(tree, inputs, CFG, mask=mask)

    return jax.jit(run)(params(model))


def log_p(logits, rows, positions, labels):
    return jax.nn.log_softmax(logits)[rows, positions, labels]


@pytest.mark.parametrize("model", [CFG, BERT], ids=["decoder", "encoder"])
def test_masked_lm_is_the_negative_log_likelihood_of_the_hidden_tokens(model):
    cfg = masked_lm.MaskedLM(model=model, masking=MASKING)
    drawn = draw(masked_lm, cfg, batch())
    found = jax.jit(lambda p: masked_lm.of_corrupted(p, drawn, cfg))(params(model))
    logits = logits_of(drawn["inputs"], drawn["segment_ids"], None, model)
    rows = jnp.arange(B)[:, None]
    each = -log_p(logits, rows, drawn["predict_index"], drawn["predict_labels"]) * drawn["predict_weight"]
    np.testing.assert_allclose(found.sums, each.sum(1), rtol=1e-5)
    np.testing.assert_array_equal(found.weights, [4.0] * B)  # round(0.3 * 13)
    at = np.asarray(drawn["predict_index"])
    np.testing.assert_array_equal(np.take_along_axis(np.asarray(batch()["inputs"]), at, 1), drawn["predict_labels"])


def test_the_state_before_a_hidden_token_predicts_it():
    drawn = draw(masked_next_token, MNTP, batch())
    found = jax.jit(lambda p: masked_next_token.of_corrupted(p, drawn, MNTP))(params())
    logits = logits_of(drawn["inputs"], drawn["segment_ids"], None)
    before = np.asarray(drawn["predict_index"])
    valid = np.asarray(drawn["predict_weight"]) > 0
    each = -log_p(logits, jnp.arange(B)[:, None], before, drawn["predict_labels"]) * drawn["predict_weight"]
    np.testing.assert_allclose(found.sums, each.sum(1), rtol=1e-5)
    original = np.asarray(batch()["inputs"])
    for row in range(B):
        hidden = before[row][valid[row]] + 1
        np.testing.assert_array_equal(original[row][hidden], np.asarray(drawn["predict_labels"])[row][valid[row]])
        assert (SEGMENTS[row][hidden] == SEGMENTS[row][hidden - 1]).all() and (SEGMENTS[row][hidden] > 0).all()
        changed = np.flatnonzero(original[row] != np.asarray(drawn["inputs"])[row])
        assert set(changed.tolist()) <= set(hidden.tolist())


def test_the_logits_of_all_tokens_are_never_formed():
    """At V = 32000 and S = 512 the temporaries of a masked loss and its gradient stay under one [B, S, V] buffer."""
    model = dataclasses.replace(BERT, vocab_size=32_000, learned_positions=512)
    cfg = masked_lm.MaskedLM(model=model, masking=Masking(mask_id=3, vocab_size=32_000))
    shapes = jax.eval_shape(lambda: encoder.init(jax.random.key(0), model))
    ids = jax.ShapeDtypeStruct((2, 512), jnp.int32)

    def run(params, ids):
        return jax.grad(lambda p: masked_lm.loss(p, {"inputs": ids}, jax.random.key(0), cfg).sums.sum())(params)

    memory = jax.jit(run).lower(shapes, ids).compile().memory_analysis()
    assert memory.temp_size_in_bytes < 2 * 512 * 32_000 * 4 / 2


def hybrid(masked, **kwargs):
    return hybrid_lm.HybridLM(model=CFG, masking=MASKING, masked=masked, **kwargs)


def gradient(fn):
    def mean(p):
        found = fn(p)
        return found.sums.sum() / found.weights.sum()

    return jax.jit(jax.value_and_grad(mean))(params())


def assert_close(found, expected, atol=1e-6):
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=atol)


def test_a_hybrid_of_one_kind_is_that_kind():
    """All rows masked: masked next-token prediction; none: causal language modeling. Losses and gradients."""
    key = jax.random.key(0)
    drawn = draw(masked_next_token, MNTP, batch())
    assert_close(
        gradient(lambda p: hybrid_lm.loss(p, batch(), key, hybrid((1, 1)))),
        gradient(lambda p: masked_next_token.of_corrupted(p, drawn, MNTP)),
    )
    assert_close(
        gradient(lambda p: hybrid_lm.loss(p, batch(), key, hybrid((0, 1)))),
        gradient(lambda p: causal_lm.loss(p, batch(), None, CFG)),
    )


def test_a_hybrid_is_the_shares_of_two_means():
    """3/4 of the mean over hidden tokens of three rows, 1/4 of the mean over tokens of one, whatever their numbers are."""
    cfg, key = hybrid((3, 4)), jax.random.key(0)
    found = jax.jit(lambda p: hybrid_lm.loss(p, batch(), key, cfg))(params())
    drawn = draw(masked_next_token, MNTP, batch())
    first, rest = {k: x[:3] for k, x in drawn.items()}, {k: x[3:] for k, x in batch().items()}
    masked = jax.jit(lambda p: masked_next_token.of_corrupted(p, first, MNTP))(params())
    causal = jax.jit(lambda p: causal_lm.loss(p, rest, None, CFG))(params())
    means = [x.sums.sum() / x.weights.sum() for x in (masked, causal)]
    np.testing.assert_allclose(found.sums.sum() / found.weights.sum(), 0.75 * means[0] + 0.25 * means[1], rtol=1e-5)
    for mean, name in zip(means, ("loss_masked", "loss_causal"), strict=True):
        np.testing.assert_allclose(found.metrics[name][0] / found.metrics[name][1], mean, rtol=1e-5)
    np.testing.assert_allclose(found.weights.sum(), masked.weights.sum() + causal.weights.sum(), rtol=1e-5)


def test_counts_of_masked_rows_alone_go_up():
    given = batch() | {"mask_counts": jnp.ones((B, S), jnp.int32)}
    cfg = dataclasses.replace(hybrid((1, 2)), masking=dataclasses.replace(MASKING, by="spans"))
    drawn = draw(hybrid_lm, cfg, given)
    more = np.asarray(drawn["mask_counts"]) - 1
    assert more[:2].any(1).all() and not more[2:].any() and set(np.unique(more).tolist()) == {0, 1}
    np.testing.assert_array_equal(drawn["inputs"][2:], given["inputs"][2:])


def sensitivity(cfg, module, drawn):
    """[row, i, j]: the largest derivative of the loss of the i-th prediction by the embedded input at position j."""
    embedded = jnp.take(params()["embedding"], drawn["inputs"], axis=0)
    names = [n for n in ("predict_weight", "loss_weight") if n in drawn]
    entries = sum(drawn[n].shape[1] for n in names)

    def one(x, i):
        only, start = {}, 0
        for n in names:
            only[n] = drawn[n] * (jnp.arange(drawn[n].shape[1]) == i - start)
            start += drawn[n].shape[1]
        return module.of_corrupted(params(), drawn | only | {"inputs": x}, cfg).sums.sum()

    found = jax.jit(jax.vmap(jax.grad(one), in_axes=(None, 0)))(embedded, jnp.arange(entries))
    return np.abs(np.asarray(found)).max(-1).swapaxes(0, 1)


def test_masked_rows_see_both_ways_and_causal_rows_do_not():
    """Exact zeros after the position in causal rows, none of them in masked rows; other documents always exactly zero."""
    cfg = hybrid((1, 2))
    drawn = draw(hybrid_lm, cfg, batch())
    found = sensitivity(cfg, hybrid_lm, drawn)
    n = drawn["predict_index"].shape[1]
    same = (SEGMENTS[0][:, None] == SEGMENTS[0]) & (SEGMENTS[0] > 0)
    for row in range(2):
        for i in range(n):
            expected = same[int(drawn["predict_index"][row, i])] & bool(drawn["predict_weight"][row, i] > 0)
            np.testing.assert_array_equal(found[row, i] > 0, expected)
        assert not found[row, n:].any()
    for row in range(2, B):
        expected = same & np.tril(np.ones((S, S), bool)) | np.eye(S, dtype=bool)
        np.testing.assert_array_equal(found[row, n:] > 0, expected)
        assert not found[row, :n].any()


@pytest.mark.parametrize(
    ("module", "kind"),
    [(masked_lm, masked_lm.MaskedLM), (masked_next_token, masked_next_token.MaskedNextToken)],
    ids=["masked", "next"],
)
def test_what_stood_at_a_hidden_position_cannot_be_seen(module, kind):
    """With [MASK] at all chosen positions, other original tokens there change the labels and nothing else."""
    cfg = kind(model=CFG, masking=dataclasses.replace(MASKING, mask=1.0, random=0.0))
    drawn = draw(module, cfg, batch())
    hidden = np.asarray(drawn["inputs"]) == 3
    assert hidden.any(1).all()
    other = jnp.where(hidden, 5 + (batch()["inputs"] - 4) % (V - 5), batch()["inputs"])
    again = draw(module, cfg, batch() | {"inputs": other})
    np.testing.assert_array_equal(again["inputs"], drawn["inputs"])
    assert (np.asarray(again["predict_labels"]) != np.asarray(drawn["predict_labels"])).any()


def mixture(*denoisers):
    return Mixture(denoisers=denoisers, modes=(("R", 2), ("S", 3), ("X", 4)), sentinel=31, sentinels=8, eos_id=1)


def test_denoising_is_the_prefix_lm_of_its_rows():
    cfg = denoising.Denoising(model=CFG, mixture=mixture(Denoiser("R", 0.3, 2.0), Denoiser("S", 0.25, None)))
    drawn = draw(denoising, cfg, batch())
    found = jax.jit(lambda p: denoising.of_corrupted(p, drawn, cfg))(params())
    logits = logits_of(drawn["inputs"], None, drawn["prefix"])
    for row in range(B):
        length = int(drawn["segment_ids"][row].sum())
        each = -jax.nn.log_softmax(logits)[row, jnp.arange(length), drawn["labels"][row, :length]]
        weight = np.asarray(drawn["loss_weight"][row, :length])
        np.testing.assert_allclose(found.sums[row], (each * weight).sum(), rtol=1e-4)
        first = int(drawn["prefix"][row]) - 1
        assert not weight[:first].any() and weight[first:].sum() == found.weights[row]
    both = sum(np.asarray(found.metrics[f"loss_{mode}"]) for mode in "RS")
    np.testing.assert_allclose(both, [found.sums.sum(), found.weights.sum()], rtol=1e-6)


def test_targets_are_seen_in_order_and_inputs_by_all():
    cfg = denoising.Denoising(model=CFG, mixture=mixture(Denoiser("X", 0.5, 2.0)))
    drawn = draw(denoising, cfg, batch())
    found, size = sensitivity(cfg, denoising, drawn), drawn["inputs"].shape[1]
    at = np.arange(size)
    for row in range(B):
        prefix, predicted = int(drawn["prefix"][row]), np.asarray(drawn["loss_weight"][row]) > 0
        expected = (at[None, :] < prefix) | (at[None, :] <= at[:, None])
        np.testing.assert_array_equal(found[row] > 0, expected & predicted[:, None])


def test_sequential_denoising_is_causal_where_the_prefix_is_the_mode_token():
    """Of rows of two tokens S hides the second: with one mode and one token before it, plain next-token losses."""
    cfg = denoising.Denoising(model=CFG, mixture=mixture(Denoiser("S", 0.25, None)))
    ids = batch(segments=False)["inputs"][:, :2]
    found = jax.jit(lambda p: denoising.loss(p, {"inputs": ids}, jax.random.key(0), cfg))(params())
    rows = jnp.concatenate([jnp.full((B, 1), 3), ids, jnp.full((B, 1), 1)], 1)
    seen = {"inputs": rows[:, :-1], "labels": rows[:, 1:], "loss_weight": jnp.asarray([[0.0, 1.0, 1.0]] * B)}
    logits = logits_of(seen["inputs"], None, jnp.full(B, 2))
    each = -jnp.take_along_axis(jax.nn.log_softmax(logits), seen["labels"][..., None], -1)[..., 0]
    np.testing.assert_allclose(found.sums, (each * seen["loss_weight"]).sum(1), rtol=1e-5)


def test_impossible_settings_are_named():
    with pytest.raises(ValueError, match="mlm_head=True"):
        masked_lm.MaskedLM(model=dataclasses.replace(BERT, mlm_head=False), masking=MASKING)
    for kind in (masked_lm.MaskedLM, masked_next_token.MaskedNextToken):
        with pytest.raises(ValueError, match="33 tokens, the model has vocab_size=32"):
            kind(model=CFG, masking=dataclasses.replace(MASKING, vocab_size=33))
    with pytest.raises(ValueError, match=r"fraction between 0 and 1, got \(3, 2\)"):
        hybrid((3, 2))
    with pytest.raises(ValueError, match="1/3 of 4 rows is no whole number"):
        hybrid_lm.loss(params(), batch(), jax.random.key(0), hybrid((1, 3)))
    with pytest.raises(ValueError, match="uses token 40, the model has vocab_size=32"):
        denoising.Denoising(
            model=CFG, mixture=Mixture(modes=(("R", 2), ("S", 3), ("X", 4)), sentinel=40, sentinels=8, eos_id=1)
        )
