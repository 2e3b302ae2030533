"""DeBERTa's enhanced mask decoder against Transformers' own layers, recorded by scripts/make_encoder_golden.py."""

from __future__ import annotations

import dataclasses
import functools
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpt.core import trees
from jaxpt.interop.families import FAMILIES
from jaxpt.interop.names import Arrays, from_state
from jaxpt.interop.settings import Settings
from jaxpt.layers.disentangled import Disentangled
from jaxpt.models import encoder, enhanced_mask_decoder
from jaxpt.sharding import MeshConfig, make_mesh, shardings

GOLDEN = Path(__file__).parent.parent / "golden" / "encoder_deberta.npz"
SMALL = encoder.Config(
    vocab_size=31, layers=2, width=16, heads=4, ffn=24, learned_positions=0, token_types=0, norm_eps=1e-7,
    disentangled=Disentangled(4, 16), decoder_positions=12, mlm_head=True, initializer_stddev=0.3,
)  # fmt: skip
IDS = jnp.asarray(np.random.default_rng(0).integers(0, 31, (8, 10)))
REAL = jnp.asarray(np.arange(10) < np.array([[10], [6], [10], [9], [1], [10], [2], [10]]), jnp.int32)


@functools.cache
def golden():
    with np.load(GOLDEN) as file:
        arrays = dict(file)
    state = Arrays({k.removeprefix("weight/"): v for k, v in arrays.items() if k.startswith("weight/")})
    family = FAMILIES["deberta-v2"]
    cfg = family.read(Settings(json.loads(str(arrays["settings"])), "golden"), set(state.names))
    return cfg, from_state(state, family.spec(cfg), family.pieces(cfg)), arrays


@functools.cache
def init(cfg=SMALL):
    return jax.jit(lambda key: encoder.init(key, cfg))(jax.random.key(0))


@pytest.mark.parametrize("attention", ["xla", "blocks"])
def test_states_and_logits_are_those_of_transformers_layers(attention):
    cfg, params, arrays = golden()
    assert cfg.decoder_positions == 40
    cfg = dataclasses.replace(cfg, attention=attention)
    real = arrays["real"].astype(bool)

    def run(params):
        ids, segments = jnp.asarray(arrays["ids"]), jnp.asarray(arrays["real"])
        states = enhanced_mask_decoder.apply(params, ids, cfg, segments=segments)
        return states, encoder.mlm_logits(params, states, cfg)

    for found, name in zip(jax.jit(run)(params), ("decoded", "decoded_logits"), strict=True):
        assert np.abs(np.asarray(found) - arrays[name])[real].max() <= 1e-4
        assert np.std(arrays[name][real]) > 0.5  # the tolerance means something


def test_padding_and_other_documents_have_exactly_no_influence():
    params = init()

    def at(x, i):
        states = enhanced_mask_decoder.apply(params, x, SMALL, segments=jnp.asarray([[1] * 4 + [2] * 4 + [0] * 2]))
        return states[0, i].sum()

    x = params["embedding"][IDS[:1]]
    gradient = jax.jit(jax.vmap(jax.grad(at), in_axes=(None, 0)))(x, jnp.arange(8))[:, 0]
    reached = np.abs(np.asarray(gradient)).max(-1) > 0
    same = np.asarray([1] * 4 + [2] * 4)[:, None] == np.asarray([1] * 4 + [2] * 4 + [3] * 2)
    np.testing.assert_array_equal(reached, same)


def test_absolute_positions_enter_here_only():
    """The plain encoder does not see them; here the same window elsewhere gives other states."""
    params = init()
    moved = jnp.broadcast_to(jnp.arange(10) + 2, IDS.shape)
    places = jnp.stack([moved - 2, moved])
    plain, decoded = (
        jax.jit(jax.vmap(lambda at, m=model: m.apply(params, IDS, SMALL, positions=at)))(places)
        for model in (encoder, enhanced_mask_decoder)
    )
    np.testing.assert_array_equal(plain[0], plain[1])
    assert np.abs(np.asarray(decoded[0] - decoded[1])).max() > 0.1


def test_gradients_reach_the_table_and_every_layer_but_never_through_a_plain_last_output():
    params = init()

    def loss(p):
        states = enhanced_mask_decoder.apply(p, IDS, SMALL, segments=REAL)
        return jnp.square(encoder.mlm_logits(p, states, SMALL)).mean()

    for path, g in trees.leaves_with_path(jax.jit(jax.grad(loss))(params)):
        if path.startswith("blocks/") and not path.endswith("attention/key/bias"):
            assert (np.abs(np.asarray(g)).reshape(SMALL.layers, -1).max(1) > 0).all(), path
        elif path.startswith(("relative/", "decoder_positions")):
            assert np.abs(np.asarray(g)).max() > 0, path


def test_eight_devices_give_what_one_gives():
    params = init()
    run = jax.jit(lambda p, ids: enhanced_mask_decoder.apply(p, ids, SMALL, segments=REAL))
    alone = run(params, IDS)
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, model=2))
    with jax.set_mesh(mesh):
        found = run(jax.device_put(params, shardings(encoder.spec(SMALL), mesh)), IDS)
    np.testing.assert_allclose(found, alone, atol=1e-5)
    eager = enhanced_mask_decoder.apply(params, IDS, SMALL, segments=REAL)
    np.testing.assert_allclose(eager, alone, atol=1e-5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"decoder_positions": 0}, "needs decoder_positions > 0 and post_norm, got 0 and True"),
        ({"post_norm": False}, "got 12 and False"),
        ({"decoder_positions": 9}, "10 positions given, but decoder_positions=9"),
    ],
)
def test_models_that_have_none_say_so(changes, message):
    cfg = dataclasses.replace(SMALL, **changes)
    with pytest.raises(ValueError, match=message):
        enhanced_mask_decoder.apply(init(cfg), IDS, cfg)
