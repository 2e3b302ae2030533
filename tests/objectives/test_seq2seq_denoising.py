"""UL2 on the encoder-decoder: pairs hold the text, one denoiser is T5, S without a prefix is causal, modes are counted."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpt.models import decoder, encoder_decoder
from jaxpt.objectives import causal_lm, denoising, seq2seq_denoising
from jaxpt.objectives.corruption import over_rows, spans
from jaxpt.objectives.corruption.denoisers import UL2, Mixture
from jaxpt.objectives.corruption.spans import SpanCorruption
from jaxpt.objectives.seq2seq_denoising import Seq2SeqDenoising

B, S, V = 8, 48, 160
MODES = {"R": 110, "S": 111, "X": 112}
MIXTURE = Mixture(modes=tuple(MODES.items()), sentinel=V - 1, sentinels=24, eos_id=1)
MODEL = encoder_decoder.Config(vocab_size=V, layers=1, width=16, heads=2, ffn=24, embedding_stddev=0.3)
CFG = Seq2SeqDenoising(model=MODEL, mixture=MIXTURE)
LENGTHS = np.asarray([48, 48, 31, 20, 7, 2, 1, 0])
KEY = jax.random.key(3)


@functools.cache
def batch():
    real = np.arange(S) < LENGTHS[:, None]
    ids = np.random.default_rng(0).integers(10, 100, (B, S))
    return {"inputs": jnp.asarray(np.where(real, ids, 0)), "segment_ids": jnp.asarray(real, jnp.int32)}


@functools.cache
def params():
    return encoder_decoder.init(jax.random.key(0), MODEL)


def only(which):
    return dataclasses.replace(MIXTURE, rates=tuple(float(i == which) for i in range(len(UL2))))


@pytest.mark.parametrize("which", range(len(UL2)))
def test_pairs_hold_the_text_and_fit_their_sizes(which):
    cfg = dataclasses.replace(CFG, mixture=only(which))
    found = {
        name: np.asarray(x)
        for name, x in jax.jit(seq2seq_denoising.corrupt, static_argnums=2)(KEY, batch(), cfg).items()
    }
    assert (found["inputs"].shape[1], found["labels"].shape[1]) == cfg.sizes(S)
    corruption = MIXTURE.spans(UL2[which])
    for i, length in enumerate(LENGTHS):
        inputs = found["inputs"][i][: found["segment_ids"][i].sum()]
        targets = found["labels"][i][: found["target_segments"][i].sum()]
        assert inputs[0] == MODES[UL2[which].mode] and inputs[-1] == targets[-1] == 1
        assert found["loss_weight"][i].sum() == (len(targets) if length > 1 else 0)
        assert found["decoder_inputs"][i].tolist() == [0, *found["labels"][i][:-1].tolist()]
        inputs, targets = inputs[1:-1], targets[:-1]
        if UL2[which].mean_length is None:
            text = np.concatenate([inputs, targets])
        else:
            text = spans.restore(spans.Pair(inputs, targets, len(inputs), len(targets)), corruption)
        np.testing.assert_array_equal(text, np.asarray(batch()["inputs"])[i, :length])


def test_one_denoiser_without_mode_tokens_is_t5():
    """The loss of T5's own span corruption, fed to the model by hand."""
    cfg = dataclasses.replace(CFG, mixture=only(0), mode_tokens=False)
    found = cfg.loss(params(), cfg.prepare(KEY, batch()), KEY)
    t5 = SpanCorruption(sentinel=V - 1, sentinels=24, eos_id=1)
    pair = over_rows(
        lambda key, ids, n: spans.corrupt(key, ids, n, t5), KEY, batch(), batch()["inputs"], jnp.asarray(LENGTHS)
    )
    shown = jnp.arange(pair.inputs.shape[1]) < pair.input_length[:, None]
    targets = jnp.pad(pair.targets[:, :-1], ((0, 0), (1, 0)))
    logits = encoder_decoder.apply(params(), pair.inputs, targets, MODEL, segments=shown.astype(jnp.int32))
    nats = -jnp.take_along_axis(jax.nn.log_softmax(logits), pair.targets[..., None], -1)[..., 0]
    real = (jnp.arange(targets.shape[1]) < pair.target_length[:, None]) & (jnp.asarray(LENGTHS) > 1)[:, None]
    np.testing.assert_allclose(found.sums, (nats * real).sum(-1), rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(found.weights, real.sum(-1))


def test_the_suffix_denoiser_without_a_prefix_is_a_causal_language_model():
    model = decoder.Config(vocab_size=V, layers=2, width=16, heads=2, ffn=24)  # what one layer tells the next
    cfg = denoising.Denoising(model=model, mixture=only(2))
    made = cfg.prepare(KEY, batch())
    weights = decoder.init(jax.random.key(0), model)
    none = cfg.loss(weights, made | {"prefix": jnp.zeros(B, jnp.int32)}, KEY)
    np.testing.assert_allclose(none.sums, causal_lm.loss(weights, made, None, model).sums, rtol=1e-5, atol=1e-5)
    assert float(jnp.abs(cfg.loss(weights, made, KEY).sums - none.sums).max()) > 1e-4  # a prefix does change it


def test_modes_are_counted_by_their_rows():
    """Frequencies over many draws within 4.5 standard deviations; the metric of a mode is that of its own rows."""
    many = {"inputs": jnp.ones((8192, 4), jnp.int32)}
    made = jax.jit(lambda key: seq2seq_denoising.corrupt(key, many, CFG)["denoiser"])(KEY)
    share = np.bincount(np.asarray(made), minlength=7) / 8192
    assert (np.abs(share - 1 / 7) < 4.5 * np.sqrt(1 / 7 * 6 / 7 / 8192)).all()
    drawn = CFG.prepare(KEY, batch())
    found = CFG.loss(params(), drawn, KEY)
    modes = np.asarray([d.mode for d in UL2])[np.asarray(drawn["denoiser"])]
    for mode in MODES:
        sums, weights = found.metrics[f"loss_{mode}"]
        np.testing.assert_allclose(sums, np.asarray(found.sums)[modes == mode].sum(), rtol=1e-5)
        assert float(weights) == np.asarray(found.weights)[modes == mode].sum()


def test_a_model_that_does_not_fit_is_named():
    with pytest.raises(ValueError, match="needs an encoder_decoder.Config"):
        Seq2SeqDenoising(model=decoder.Config(vocab_size=V), mixture=MIXTURE)
    with pytest.raises(ValueError, match="token 159, the model has vocab_size=128"):
        Seq2SeqDenoising(model=dataclasses.replace(MODEL, vocab_size=128), mixture=MIXTURE)
