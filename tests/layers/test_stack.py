"""A part of a stack: its lowest layers, bit for bit, run as the whole does up to there."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpt.layers import stack
from jaxpt.models import decoder, encoder
from jaxpt.weights import SparseLowRank

ENCODER = encoder.Config(layers=3, width=16, heads=2, ffn=24, vocab_size=32, learned_positions=8)
DECODER = decoder.Config(
    layers=3, width=16, heads=2, ffn=24, vocab_size=32, weights=(("blocks/mlp", SparseLowRank(rank=2, density=0.1)),)
)


@pytest.mark.parametrize(("model", "cfg"), [(encoder, ENCODER), (decoder, DECODER)])
def test_the_lowest_layers_are_bit_equal_and_compute_what_the_whole_does_up_to_there(model, cfg):
    """Of every form of a matrix; a fixed array, such as a sparse support, is cut with the trained ones."""
    params = model.init(jax.random.key(0), cfg)
    found = stack.bottom(params, 2)
    assert jax.tree.structure(found) == jax.tree.structure(params)
    for name in params:
        for cut, whole in zip(jax.tree.leaves(found[name]), jax.tree.leaves(params[name]), strict=True):
            np.testing.assert_array_equal(cut, whole[:2] if name == "blocks" else whole)
    small, ids = dataclasses.replace(cfg, layers=2), jnp.arange(10).reshape(2, 5)
    short = model.hidden_states(found, ids, small, capture=True).layers
    np.testing.assert_allclose(short, model.hidden_states(params, ids, cfg, capture=True).layers[:3], atol=1e-6)
    assert jax.tree.map(jnp.shape, found) == jax.tree.map(jnp.shape, model.init(jax.random.key(1), small))


def test_layers_that_are_not_there_are_named():
    params = encoder.init(jax.random.key(0), ENCODER)
    for layers in (0, 4):
        with pytest.raises(ValueError, match=f"the lowest {layers} layers of blocks cannot be taken, there are 3"):
            stack.bottom(params, layers)
    with pytest.raises(ValueError, match="did you mean 'blocks'"):
        stack.bottom(params, 1, where="block")
    with pytest.raises(ValueError, match=r"layers on their leading axis, its sizes are \[2, 3\]"):
        stack.bottom({"blocks": {"a": jnp.zeros((3, 4)), "b": jnp.zeros(2)}}, 1)
