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
from jaxpt.interop.settings import Settings
from jaxpt.layers import norms
from jaxpt.layers.disentangled import Disentangled
from jaxpt.models import encoder
from jaxpt.sharding import MeshConfig, make_mesh, shardings

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
        ({"rtd_head": "tokens"}, "unknown rtd_head 'tokens'; did you mean 'token'"),
        ({"projection": "before"}, "unknown projection 'before'; did you mean 'before_norm'"),
        ({"mlm_head": True, "activation": "geglu"}, "the masked-token head has no gate"),
        ({"rtd_head": "token", "activation": "swiglu"}, "the rtd head has no gate"),
    ],
)
def test_bad_configurations_say_what_was_wrong(changes, message):
    cfg = dataclasses.replace(SMALL, **changes)
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(lambda p: encoder.apply(p, IDS, cfg), specs.abstract(encoder.spec(cfg)))


DEBERTA = dataclasses.replace(
    SMALL, learned_positions=0, token_types=0, disentangled=Disentangled(4, 16), rtd_head="token_and_first",
)  # fmt: skip
ELECTRA = dataclasses.replace(SMALL, embedding_size=6, rtd_head="token", mlm_head=True)


@pytest.mark.parametrize("name", ["electra_generator", "electra_discriminator", "deberta", "deberta_absolute"])
@pytest.mark.parametrize("attention", ["xla", "blocks"])
def test_states_are_those_of_the_recorded_families(name, attention):
    """Of ELECTRA with narrow tables, DeBERTaV3, and a DeBERTa with absolute positions, at real tokens."""
    with np.load(GOLDEN.parent / f"encoder_{name}.npz") as file:
        arrays = dict(file)
    family = FAMILIES["electra" if "electra" in name else "deberta-v2"]
    state = Arrays({k.removeprefix("weight/"): v for k, v in arrays.items() if k.startswith("weight/")})
    cfg = family.read(Settings(json.loads(str(arrays["settings"])), name), set(state.names))
    params = from_state(state, encoder.spec(cfg), family.pieces(cfg))
    names = {"segments": "real"} | ({"token_types": "token_types"} if cfg.token_types else {})
    ids, given = jnp.asarray(arrays["ids"]), {k: jnp.asarray(arrays[v]) for k, v in names.items()}
    cfg = dataclasses.replace(cfg, attention=attention)
    found = jax.jit(lambda p: encoder.apply(p, ids, cfg, **given))(params)
    real = arrays["real"].astype(bool)
    assert np.abs(np.asarray(found) - arrays["states"])[real].max() <= 1e-4
    assert np.std(arrays["states"][real]) > 0.5


@pytest.mark.parametrize("cfg", [DEBERTA, ELECTRA], ids=["deberta", "electra"])
def test_heads_of_padded_rows_are_those_of_the_text_alone(cfg):
    params, real = init(cfg), jnp.asarray([[1] * 5 + [0] * 3, [1] * 8])
    run = jax.jit(lambda ids, real: encoder.rtd_logits(params, encoder.apply(params, ids, cfg, segments=real), cfg))
    found = run(IDS, real)
    assert found.shape == IDS.shape and found.dtype == jnp.float32
    np.testing.assert_array_equal(found[0, :5], run(jnp.where(real == 1, IDS, 7), real)[0, :5])
    np.testing.assert_allclose(found[0, :5], run(IDS[:1, :5], real[:1, :5])[0], atol=1e-5)


@pytest.mark.parametrize("cfg", [DEBERTA, ELECTRA], ids=["deberta", "electra"])
def test_eight_devices_and_eager_code_give_what_one_compiled_device_gives(cfg):
    params, ids = init(cfg), jnp.tile(IDS, (4, 1))
    real = jnp.asarray(np.arange(8) < np.array([[8], [5]] * 4), jnp.int32)

    def run(p, ids):
        return encoder.rtd_logits(p, encoder.apply(p, ids, cfg, segments=real), cfg)

    alone = jax.jit(run)(params, ids)
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, model=2))
    with jax.set_mesh(mesh):
        found = jax.jit(run)(jax.device_put(params, shardings(encoder.spec(cfg), mesh)), ids)
    np.testing.assert_allclose(found, alone, atol=1e-5)
    np.testing.assert_allclose(run(params, ids), alone, atol=1e-5)


def test_the_replaced_token_head_is_its_formula():
    """Dense, gelu, one logit; DeBERTa's reads the norm of the sum with the first token's state."""
    hidden = jax.random.normal(jax.random.key(1), (2, 8, 16))
    for cfg in (ELECTRA, DEBERTA):
        p = init(cfg)["rtd"]
        x = norms.norm(hidden + hidden[:, :1], p["norm"], cfg.norm_eps) if cfg is DEBERTA else hidden
        y = jax.nn.gelu(x @ p["dense"]["kernel"].w.T + p["dense"]["bias"], approximate=False)
        expected = (y @ p["out"]["kernel"].w.T + p["out"]["bias"])[..., 0]
        np.testing.assert_allclose(encoder.rtd_logits(init(cfg), hidden, cfg), expected, atol=1e-5)


def test_narrow_tables_are_projected_and_multiply_the_token_head():
    shapes = {path: x.shape for path, x in trees.leaves_with_path(encoder.spec(ELECTRA))}
    assert shapes["embedding"] == (31, 6) and shapes["positions"] == (12, 6) and shapes["token_types"] == (2, 6)
    assert shapes["projection/kernel/w"] == (16, 6) and shapes["projection/bias"] == (16,)
    assert shapes["embedding_norm/scale"] == (6,) and shapes["mlm/dense/kernel/w"] == (6, 16)
    states = encoder.apply(init(ELECTRA), IDS, ELECTRA)
    assert encoder.mlm_logits(init(ELECTRA), states, ELECTRA).shape == (2, 8, 31)
    before = encoder.spec(dataclasses.replace(ELECTRA, projection="before_norm"))
    shapes = {path: x.shape for path, x in trees.leaves_with_path(before)}
    assert shapes["embedding_norm/scale"] == (16,) and "projection/bias" not in shapes


def test_a_score_beside_the_models_own_is_an_error():
    with pytest.raises(ValueError, match="has its own"):
        encoder.apply(init(DEBERTA), IDS, DEBERTA, score=lambda q, k, p: 0.0)
