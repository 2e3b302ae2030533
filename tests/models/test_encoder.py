"""The encoder against BERT's recorded outputs, and what its configuration promises."""

from __future__ import annotations

import dataclasses
import functools
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpt.core import spec as specs
from jaxpt.core import trees
from jaxpt.interop.families import FAMILIES
from jaxpt.interop.names import Arrays, from_state
from jaxpt.models import encoder

GOLDEN = Path(__file__).parent.parent / "golden" / "encoder_bert.npz"
TOLERANCE = 1e-4
SMALL = encoder.Config(vocab_size=31, layers=2, width=16, heads=4, ffn=24, learned_positions=12, initializer_stddev=0.3)
IDS = jnp.asarray(np.random.default_rng(0).integers(0, 31, (2, 8)))


@functools.cache
def init(cfg):
    return jax.jit(lambda key: encoder.init(key, cfg))(jax.random.key(0))


@functools.cache
def golden():
    with np.load(GOLDEN) as file:
        arrays = dict(file)
    cfg = encoder.Config(**json.loads(str(arrays["config"])))
    state = {k.removeprefix("weight/"): v for k, v in arrays.items() if k.startswith("weight/")}
    family = FAMILIES["bert"]
    return cfg, from_state(Arrays(state), encoder.spec(cfg), family.pieces(cfg), ignored=family.ignored), arrays


@functools.cache
def golden_run(attention):
    cfg, params, arrays = golden()
    cfg = dataclasses.replace(cfg, attention=attention)

    def run(params):
        given = {"token_types": jnp.asarray(arrays["token_types"]), "segments": jnp.asarray(arrays["real"])}
        hidden = encoder.hidden_states(params, jnp.asarray(arrays["ids"]), cfg, **given, capture=True)
        return hidden, encoder.pooled(params, hidden.final), encoder.mlm_logits(params, hidden.final, cfg)

    return jax.jit(run)(params)


@pytest.mark.parametrize("attention", ["xla", "blocks"])
def test_hidden_states_pooled_vector_and_logits_are_berts(attention):
    """At real positions; a padding position attends to nothing here and to the text there."""
    arrays = golden()[2]
    real = arrays["real"].astype(bool)
    hidden, pooled, logits = golden_run(attention)
    for found, expected in (
        (hidden.layers[0], arrays["hidden"][0]), (hidden.layers[1], arrays["hidden"][1]),
        (hidden.final, arrays["states"]), (logits, arrays["logits"]),
    ):  # fmt: skip
        assert np.abs(np.asarray(found) - expected)[real].max() <= TOLERANCE
        assert np.std(expected[real]) > 0.5  # the tolerance means something
    assert np.abs(np.asarray(pooled) - arrays["pooled"]).max() <= TOLERANCE


def test_padding_has_no_influence():
    params = init(SMALL)
    real = jnp.asarray([[1] * 5 + [0] * 3, [1] * 8])
    run = jax.jit(lambda ids: encoder.apply(params, ids, SMALL, segments=real))
    other = jnp.where(real == 1, IDS, 7)
    np.testing.assert_array_equal(run(IDS)[0, :5], run(other)[0, :5])
    alone = encoder.apply(params, IDS[:1, :5], SMALL)
    np.testing.assert_allclose(run(IDS)[0, :5], alone[0], atol=1e-5)


def test_a_pre_norm_rotary_encoder_has_a_final_norm_and_no_tables():
    cfg = dataclasses.replace(
        SMALL, post_norm=False, norm="rms", activation="swiglu", bias=False, rotary_fraction=1.0,
        learned_positions=0, token_types=0,
    )  # fmt: skip
    paths = {path.split("/")[0] for path, _ in trees.leaves_with_path(encoder.spec(cfg))}
    assert paths == {"embedding", "embedding_norm", "blocks", "final_norm"}
    states = encoder.apply(init(cfg), IDS, cfg)
    np.testing.assert_allclose(jnp.square(states).mean(-1), 1.0, rtol=1e-3)  # an RMS norm of scale 1 came last
    with pytest.raises(ValueError, match="token_types=0"):
        encoder.apply(init(cfg), IDS, cfg, token_types=IDS)


def test_post_norm_blocks_end_in_a_norm_and_gradients_reach_everything():
    cfg = dataclasses.replace(SMALL, pooler=True, mlm_head=True)
    params = init(cfg)

    def loss(p):
        hidden = encoder.hidden_states(p, IDS, cfg, capture=True)
        both = jnp.square(encoder.mlm_logits(p, hidden.final, cfg)).mean() + encoder.pooled(p, hidden.final).sum()
        return both, hidden.layers

    gradients, layers = jax.jit(jax.grad(loss, has_aux=True))(params)
    np.testing.assert_allclose(layers.mean(-1), 0.0, atol=1e-5)
    np.testing.assert_allclose(layers.var(-1), 1.0, rtol=1e-3)
    for path, g in trees.leaves_with_path(gradients):
        expected = not path.endswith("attention/key/bias")  # the softmax does not see a shift of all keys' scores
        assert bool((jnp.abs(g).max() > 1e-6) == expected), path


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"parallel_residual": True}, "excludes parallel_residual"),
        ({"learned_positions": 7}, "8 positions given, but learned_positions=7"),
    ],
)
def test_bad_configurations_say_what_was_wrong(changes, message):
    cfg = dataclasses.replace(SMALL, **changes)
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(lambda p: encoder.apply(p, IDS, cfg), specs.abstract(encoder.spec(cfg)))


def test_a_gated_token_head_is_an_error():
    with pytest.raises(ValueError, match="no gate"):
        encoder.spec(dataclasses.replace(SMALL, mlm_head=True, activation="geglu"))
