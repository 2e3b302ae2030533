"""A wrapped model is a Linen module that computes what the model computes."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxpt import weights
from jaxpt.interop import linen
from jaxpt.models import decoder, encoder

DENSE = decoder.Config(vocab_size=29, layers=2, width=16, heads=4, ffn=24)
SLTRAIN = dataclasses.replace(DENSE, weights=(("blocks/mlp/*", weights.SparseLowRank(rank=2, density=0.1)),))
BERT = encoder.Config(vocab_size=29, layers=2, width=16, heads=4, ffn=24, learned_positions=12)
IDS = jnp.asarray(np.random.default_rng(0).integers(0, 29, (2, 8)))


@pytest.mark.parametrize(("model", "cfg"), [(decoder, DENSE), (decoder, SLTRAIN), (encoder, BERT)], ids=["d", "s", "e"])
def test_the_module_is_the_model(model, cfg):
    module = linen.wrap(model, cfg)
    variables = jax.jit(module.init)(jax.random.key(0), IDS)
    expected = jax.jit(lambda p: model.apply(p, IDS, cfg))(linen.to_tree(variables))
    np.testing.assert_array_equal(jax.jit(module.apply)(variables, IDS), expected)
    back = linen.from_tree(linen.to_tree(variables))
    assert jax.tree.structure(back) == jax.tree.structure(variables)
    params = jax.jit(lambda k: model.init(k, cfg))(jax.random.key(3))  # and a tree of ours runs in the module
    found = module.apply(linen.from_tree(params), IDS)
    np.testing.assert_allclose(found, model.apply(params, IDS, cfg), atol=1e-6)


def test_fixed_arrays_are_a_collection_that_training_leaves_alone():
    module = linen.wrap(decoder, SLTRAIN)
    variables = jax.jit(module.init)(jax.random.key(0), IDS)
    supports = jax.tree.leaves(variables["fixed"])
    assert supports and all(jnp.issubdtype(x.dtype, jnp.integer) for x in supports)
    assert all(jnp.issubdtype(x.dtype, jnp.floating) for x in jax.tree.leaves(variables["params"]))
    optimizer = optax.adam(1e-2)

    @jax.jit
    def step(params, state):
        def loss(params):
            logits = module.apply(variables | {"params": params}, IDS)
            return optax.softmax_cross_entropy_with_integer_labels(logits[:, :-1], IDS[:, 1:]).mean()

        value, gradients = jax.value_and_grad(loss)(params)
        updates, state = optimizer.update(gradients, state)
        return optax.apply_updates(params, updates), state, value

    params, state, values = variables["params"], optimizer.init(variables["params"]), []
    for _ in range(5):
        params, state, value = step(params, state)
        values.append(float(value))
    assert values[-1] < values[0] - 0.1


def test_keyword_arguments_reach_the_model():
    module, segments = linen.wrap(decoder, DENSE), jnp.asarray([[1] * 4 + [2] * 4, [1] * 8])
    variables = jax.jit(module.init)(jax.random.key(0), IDS)
    found = module.apply(variables, IDS, segments=segments)
    np.testing.assert_allclose(found, decoder.apply(linen.to_tree(variables), IDS, DENSE, segments=segments), atol=1e-6)


def test_what_is_not_a_model_is_an_error():
    with pytest.raises(TypeError, match="needs functions init"):
        linen.wrap(np, DENSE)
