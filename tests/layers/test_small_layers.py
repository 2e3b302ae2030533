"""Norms, rotary positions, feed-forward layers and the checks of a block's configuration."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpt import weights
from jaxpt.core import spec as specs
from jaxpt.layers import block, mlp, norms, positions

X = 3.0 * np.random.default_rng(0).normal(size=(2, 5, 16)).astype(np.float32) + 1.0


def test_rms_norm_by_definition():
    scale = np.linspace(0.5, 2, 16, dtype=np.float32)
    expected = X / np.sqrt((X.astype(np.float64) ** 2).mean(-1, keepdims=True) + 1e-6) * scale
    np.testing.assert_allclose(norms.norm(jnp.asarray(X), {"scale": scale}, 1e-6), expected, rtol=1e-5)


def test_layer_norm_by_definition():
    p = {"scale": np.linspace(0.5, 2, 16, dtype=np.float32), "bias": np.linspace(-1, 1, 16, dtype=np.float32)}
    x = X.astype(np.float64)
    expected = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5) * p["scale"] + p["bias"]
    np.testing.assert_allclose(norms.norm(jnp.asarray(X), p, 1e-5), expected, atol=1e-5)


@pytest.mark.parametrize("kind", ["rms", "layer"])
def test_a_norm_in_bfloat16_is_computed_in_float32(kind):
    p = specs.init(jax.random.key(0), norms.spec(kind, 16))
    x = jnp.asarray(X * 1e3, jnp.bfloat16)
    found = norms.norm(x, p, 1e-6)
    assert found.dtype == jnp.bfloat16
    expected = norms.norm(x.astype(jnp.float32), p, 1e-6)
    np.testing.assert_array_equal(found, expected.astype(jnp.bfloat16))


def test_an_unknown_norm_and_activation_name_the_nearest():
    with pytest.raises(ValueError, match="did you mean 'layer'"):
        norms.spec("layr", 16)
    with pytest.raises(ValueError, match="did you mean 'swiglu'"):
        mlp.gated("swigloo")


@pytest.mark.parametrize("fraction", [1.0, 0.5])
def test_rotary_is_a_rotation_that_knows_only_distances(fraction):
    q, k = jax.random.normal(jax.random.key(0), (2, 1, 6, 2, 8))
    at = jnp.asarray([[0, 1, 2, 5, 9, 40]])

    def scores(shift):
        turned = (positions.rotary(x, at + shift, 100.0, fraction) for x in (q, k))
        return jnp.einsum("bshk,bthk->bhst", *turned)

    np.testing.assert_allclose(scores(0), scores(17), atol=2e-5)
    turned = positions.rotary(q, at, 100.0, fraction)
    np.testing.assert_allclose(jnp.linalg.norm(turned, axis=-1), jnp.linalg.norm(q, axis=-1), rtol=1e-5)
    np.testing.assert_array_equal(turned[:, 0], q[:, 0])
    np.testing.assert_array_equal(turned[..., int(8 * fraction) :], q[..., int(8 * fraction) :])
    assert not np.allclose(turned[:, 1:, :, : int(8 * fraction)], q[:, 1:, :, : int(8 * fraction)])


def test_rotary_wants_an_even_number_of_dimensions():
    with pytest.raises(ValueError, match="even number of dimensions, got 3"):
        positions.rotary(jnp.zeros((1, 2, 1, 6)), jnp.zeros((1, 2), jnp.int32), fraction=0.5)


@pytest.mark.parametrize("activation", mlp.ACTIVATIONS)
def test_mlp_by_definition(activation):
    cfg = block.BlockConfig(width=16, heads=2, ffn=24, activation=activation, initializer_stddev=0.3)
    p = specs.init(jax.random.key(1), block.spec(cfg))["mlp"]
    up, down = (np.asarray(p[name]["kernel"].w) for name in ("up", "down"))
    act = {
        "swiglu": jax.nn.silu,
        "geglu": lambda x: jax.nn.gelu(x, approximate=False),
        "geglu_tanh": lambda x: 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))),
        "gelu": lambda x: jax.nn.gelu(x, approximate=False),
        "gelu_tanh": lambda x: 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))),
        "relu": lambda x: np.maximum(x, 0),
    }[activation]
    gate = np.asarray(p["gate"]["kernel"].w) if "gate" in p else None
    hidden = act(X @ up.T) if gate is None else act(X @ gate.T) * (X @ up.T)
    assert (gate is not None) == ("glu" in activation)
    np.testing.assert_allclose(mlp.mlp(jnp.asarray(X), p, activation), hidden @ down.T, atol=2e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kv_heads": 3}, "heads=4 .*kv_heads=3"),
        ({"kv_heads": 0}, "kv_heads=0"),
        ({"heads": 0}, "heads=0"),
        ({"heads": 5}, "width=16 .*heads=5"),
        ({"kv_heads": 8}, "heads=4 .*kv_heads=8"),
        ({"activation": "swish"}, "unknown activation 'swish'"),
        ({"norm": "rmsnorm"}, "unknown norm 'rmsnorm'"),
    ],
    ids=str,
)
def test_an_impossible_block_says_which_numbers_do_not_fit(change, message):
    with pytest.raises(ValueError, match=message):
        block.spec(block.BlockConfig(**{"width": 16, "heads": 4, "ffn": 24} | change))


def test_head_dim_frees_the_width_from_the_heads():
    cfg = block.BlockConfig(width=18, heads=4, kv_heads=2, head_dim=8, ffn=24)
    p = specs.init(jax.random.key(0), block.spec(cfg))
    shapes = {name: part["kernel"].shape for name, part in p["attention"].items()}
    assert shapes == {"query": (32, 18), "key": (16, 18), "value": (16, 18), "out": (18, 32)}


def test_weight_rules_choose_forms_by_path_and_the_first_match_decides():
    rules = (
        ("blocks/mlp/down", weights.Dense()),
        ("blocks/mlp", weights.LowRank(rank=2)),
        ("*/query", weights.SparseLowRank(rank=2, density=0.1)),
    )
    cfg = block.BlockConfig(width=16, heads=4, ffn=24, weights=rules)
    found = {path: type(w).__name__ for path, w in weights.matrices({"blocks": block.spec(cfg, (3,))}).items()}
    assert found == {
        "blocks/attention/query/kernel": "SparseLowRankMatrix",
        "blocks/attention/key/kernel": "DenseMatrix",
        "blocks/attention/value/kernel": "DenseMatrix",
        "blocks/attention/out/kernel": "DenseMatrix",
        "blocks/mlp/up/kernel": "LowRankMatrix",
        "blocks/mlp/gate/kernel": "LowRankMatrix",
        "blocks/mlp/down/kernel": "DenseMatrix",
    }
