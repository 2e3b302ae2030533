"""Sentence vectors: unit length, in order, whatever the batch or mesh; and all-MiniLM-L6-v2's as recorded."""

from __future__ import annotations

import os
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpt import interop
from jaxpt.data.documents import DataError
from jaxpt.data.vocabularies import train_bpe
from jaxpt.interop import hugging_face, minilm
from jaxpt.models import decoder, encoder
from jaxpt.sharding import MeshConfig, make_mesh

GOLDEN = Path(__file__).parent.parent / "golden" / "minilm.npz"
network = pytest.mark.skipif(
    os.environ.get("JAXPT_NETWORK_TESTS") != "1", reason="set JAXPT_NETWORK_TESTS=1 to download"
)
TEXTS = ["one", "", "a text of several words", "another " * 40, "one"]
CFG = encoder.Config(vocab_size=280, layers=2, width=16, heads=4, ffn=24, learned_positions=64, initializer_stddev=0.3)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("encoder")
    params = jax.jit(lambda key: encoder.init(key, CFG))(jax.random.key(0))
    hugging_face.save(path, params, CFG, vocabulary=train_bpe(TEXTS * 5, 280))
    return path


def by_hand(model, text):
    """One text alone, unpadded, in float64 after the model."""
    ids = [model.vocabulary.bos_id, *model.vocabulary.encode(text)[: model.max_tokens - 2], model.vocabulary.eos_id]
    states = np.asarray(encoder.apply(model.params, jnp.asarray([ids], jnp.int32), model.cfg), np.float64)[0]
    return states.mean(0) / np.linalg.norm(states.mean(0))


def test_vectors_are_mean_states_of_each_text(folder):
    model = minilm.load(folder, batch_size=2)
    assert model.max_tokens == 64  # the model has no more positions
    found = model(TEXTS)
    assert found.shape == (5, model.width) and found.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, rtol=1e-5)
    np.testing.assert_allclose(found, [by_hand(model, text) for text in TEXTS], atol=1e-5)
    np.testing.assert_allclose(found[0], found[4], atol=1e-6)
    assert model([]).shape == (0, 16)


def test_a_mesh_changes_nothing(folder):
    mesh = make_mesh(MeshConfig(data=4, model=2))
    sharded = minilm.load(folder, mesh=mesh, batch_size=8)
    np.testing.assert_allclose(sharded(TEXTS), minilm.load(folder, batch_size=8)(TEXTS), atol=1e-5)


def test_mistakes(folder, tmp_path):
    with pytest.raises(ValueError, match="not one string"):
        minilm.load(folder)("a text")
    cfg = decoder.Config(vocab_size=280, layers=1, width=8, heads=2, ffn=8)
    params = jax.jit(lambda key: decoder.init(key, cfg))(jax.random.key(0))
    hugging_face.save(tmp_path, params, cfg, vocabulary=train_bpe(TEXTS, 280))
    with pytest.raises(DataError, match="holds a decoder"):
        minilm.load(tmp_path)


@network
@pytest.mark.network
def test_minilm_gives_the_recorded_vectors():
    """Of each text alone in Transformers; here in one batch, and over a mesh."""
    with np.load(GOLDEN) as file:
        texts, expected = [str(t) for t in file["texts"]], file["vectors"]
    found = interop.embedder(batch_size=8)(texts)
    assert np.abs(found - expected).max() <= 1e-4
    similarity = found @ found.T
    assert similarity[0, 1] > 0.6 > 0.2 > similarity[0, 2]  # a meal is like a meal, and not like the stock market
    sharded = interop.embedder(make_mesh(MeshConfig(data=8)), batch_size=8)(texts)
    assert np.abs(sharded - expected).max() <= 1e-4
