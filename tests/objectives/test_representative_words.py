"""PROP's loss is a sigmoid, hides whole words of the document alone, and its two means are exact in parts of a batch."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpt.models import encoder
from jaxpt.objectives import representative_words
from jaxpt.objectives.corruption import Masking
from jaxpt.objectives.representative_words import RepresentativeWords, pair_loss

V, B, S = 64, 6, 24
MODEL = encoder.Config(
    vocab_size=V, layers=1, width=16, heads=2, ffn=24, learned_positions=S, pooler=True, mlm_head=True,
    initializer_stddev=0.3,
)  # fmt: skip
MASKING = Masking(mask_id=V - 1, vocab_size=V, rate=0.3, special_ids=(0, V - 2, V - 3), by="units")
CFG = RepresentativeWords(model=MODEL, masking=MASKING)
KEY = jax.random.key(0)


@functools.cache
def batch():
    """[CLS], three words, [SEP], a document of units of one to three tokens, [SEP]."""
    ids = np.random.default_rng(0).integers(5, V - 3, (B, 2, S))
    ids[..., 0], ids[..., 4], ids[..., -1] = V - 3, V - 2, V - 2
    units = np.zeros(S, int)
    units[5:-1] = np.repeat(np.arange(1, 10), [1, 2, 3, 1, 2, 3, 1, 2, 3])
    types = np.arange(S) > 4
    found = {"inputs": ids, "unit_ids": units, "token_types": types, "segment_ids": np.ones(S, int)}
    return {name: jnp.asarray(np.broadcast_to(x, ids.shape).astype(np.int32)) for name, x in found.items()}


@functools.cache
def params():
    return representative_words.init(jax.random.key(0), MODEL)


def test_the_loss_of_a_pair_is_the_hinge_over_the_softmax():
    s = jax.random.normal(KEY, (10_000, 2)) * 4
    p = jax.nn.softmax(s)
    hinge = jnp.maximum(0, 1 - p[:, 0] + p[:, 1])
    np.testing.assert_allclose(pair_loss(s[:, 0], s[:, 1]), hinge, atol=1e-6)
    np.testing.assert_allclose(pair_loss(s[:, 0], s[:, 1], "logistic"), -jax.nn.log_softmax(s)[:, 0], atol=1e-5)
    assert float(pair_loss(s[:1, 0], s[:1, 0])[0]) == 1.0
    gradient = jax.grad(lambda d: pair_loss(d, jnp.zeros(1))[0])(jnp.full(1, 0.3))
    ahead, behind = (2 / (1 + np.exp(0.3 + e)) for e in (1e-4, -1e-4))
    np.testing.assert_allclose(gradient[0], (ahead - behind) / 2e-4, rtol=1e-4)


def test_whole_words_of_the_document_are_hidden_and_nothing_else():
    given = batch()
    made = jax.jit(lambda key: CFG.prepare(key, given))
    everywhere = np.zeros(S)
    differ = 0
    for seed in range(30):
        found = made(jax.random.key(seed))
        hidden = np.zeros((B, 2, S), bool)
        for (b, side, n), weight in np.ndenumerate(found["predict_weight"]):
            if weight > 0:
                hidden[b, side, int(found["predict_index"][b, side, n])] = True
        for row in hidden.reshape(-1, S):
            units = np.asarray(batch()["unit_ids"])[0, 0]
            assert not row[units == 0].any()
            assert all(len(set(row[units == n])) == 1 for n in range(1, 10)) and 1 <= len(set(units[row])) <= 3
        everywhere += hidden.sum((0, 1))
        differ += (hidden[:, 0] != hidden[:, 1]).any(-1).sum()
    assert (everywhere[5:-1] > 0).all() and differ > 30 * B / 2


def test_the_loss_is_the_sum_of_both_means():
    made = CFG.prepare(KEY, batch())
    found = CFG.loss(params(), made, KEY)
    rows = {name: x.reshape(2 * B, -1) for name, x in made.items() if x.ndim == 3}
    hidden = encoder.apply(params(), rows["inputs"], MODEL, token_types=rows["token_types"])
    s = representative_words.scores(params(), hidden).reshape(B, 2)
    logits = jax.nn.log_softmax(encoder.mlm_logits(params(), hidden, MODEL))
    at = jnp.take_along_axis(logits, rows["predict_index"][..., None], 1)
    nats = -jnp.take_along_axis(at, rows["predict_labels"][..., None], 2)[..., 0]
    masked = nats[np.asarray(rows["predict_weight"]) > 0].mean()
    expected = (2 * jax.nn.sigmoid(s[:, 1] - s[:, 0])).mean() + masked
    np.testing.assert_allclose(found.sums.sum() / found.weights.sum(), expected, rtol=1e-5)
    np.testing.assert_allclose(found.metrics["loss_masked"][0] / found.metrics["loss_masked"][1], masked, rtol=1e-5)
    np.testing.assert_allclose(found.metrics["accuracy"][0], (s[:, 0] > s[:, 1]).sum())
    alone = dataclasses.replace(CFG, share_words=0.0).loss(params(), made, KEY)
    np.testing.assert_allclose(alone.sums.sum() / B, masked, rtol=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": dataclasses.replace(MODEL, pooler=False)}, "mlm_head=True and pooler=True"),
        ({"masking": dataclasses.replace(MASKING, by="tokens")}, 'needs by="units"'),
        ({"form": "hinge"}, "unknown form of the pair loss 'hinge'"),
        ({"share_words": 0.0, "share_masked": 0.0}, "shares that are not negative"),
    ],
)
def test_settings_that_do_not_fit_are_named(change, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(CFG, **change)
