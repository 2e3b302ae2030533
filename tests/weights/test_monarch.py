"""Monarch and block-diagonal forms: published parameter counts, initial values, the optimal projection."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpt import weights
from jaxpt.core import spec as specs
from jaxpt.models import decoder


def test_parameter_count_of_gpt2_medium_with_every_matrix_monarch():
    """166.08 M with four blocks, query, key and value apart, against 354.8 M dense: the paper's 165 M and 355 M."""
    sizes = {"layers": 24, "width": 1024, "heads": 16, "ffn": 4096, "vocab_size": 50_257, "learned_positions": 1024}
    shape = {"tied_head": True, "bias": True, "norm": "layer", "activation": "gelu_tanh", "rotary_fraction": 0.0}
    found = [
        specs.count(decoder.spec(decoder.Config(**sizes, **shape, weights=rules))) / 1e6
        for rules in ((), (("blocks", weights.Monarch(blocks=4)),))
    ]
    assert [round(n, 2) for n in found] == [354.82, 166.08]


def test_initial_values_are_uniform_by_the_last_size_of_each_factor():
    matrix = specs.init(jax.random.key(0), weights.Monarch(blocks=4).spec(256, 128, ("mlp", "embed")))
    for w in (matrix.w1, matrix.w2):
        bound = 1 / np.sqrt(w.shape[-1])
        assert 0.97 * bound < float(jnp.abs(w).max()) <= bound
    block = specs.init(jax.random.key(0), weights.BlockDiagonal(blocks=4).spec(256, 128, ("mlp", "embed")))
    assert 0.97 / np.sqrt(32) < float(jnp.abs(block.w).max()) <= 1 / np.sqrt(32)


@pytest.mark.parametrize("order", ["canonical", "block"])
@pytest.mark.parametrize("shape", [(16, 16), (24, 12), (12, 40), (20, 24)])
def test_the_projection_leaves_the_tail_of_every_slice(shape, order):
    """Squared error = sum over slices of the squared singular values beyond C; no Monarch matrix is nearer."""
    form = weights.Monarch(blocks=4, order=order)
    w = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    matrix = form.from_dense(jax.random.key(0), jnp.asarray(w))
    out, inp = shape
    p, s, c = inp // 4, out // 4, matrix.w1.shape[-2]
    grid = (
        w.reshape(4, s, 4, p).transpose(0, 2, 1, 3) if order == "block" else w.reshape(s, 4, 4, p).transpose(1, 2, 0, 3)
    )
    tail = np.square(np.linalg.svd(grid, compute_uv=False)[..., c:]).sum()
    error = np.square(w - np.asarray(matrix.dense())).sum()
    np.testing.assert_allclose(error, tail, rtol=1e-4, atol=1e-6)


def test_from_dense_keeps_the_largest_blocks():
    w = np.random.default_rng(1).normal(size=(24, 16)).astype(np.float32)
    matrix = weights.BlockSparse(density=0.5, block=(8, 8)).from_dense(jax.random.key(0), jnp.asarray(w))
    norms = np.square(w.reshape(3, 8, 2, 8)).sum((1, 3)).reshape(-1)
    assert sorted(np.argsort(-norms)[:3]) == np.asarray(matrix.positions).tolist()


def test_errors_say_what_was_given():
    with pytest.raises(ValueError, match="unknown order 'blocks'; did you mean 'block'"):
        weights.Monarch(order="blocks")
    with pytest.raises(ValueError, match="blocks=0 should be at least 1"):
        weights.Monarch(blocks=0)
    with pytest.raises(ValueError, match="10 outputs must be a multiple of blocks=4"):
        weights.Monarch(order="block").spec(10, 8, ("mlp", "embed"))
    with pytest.raises(ValueError, match="density 0 is not above 0"):
        weights.BlockSparse(density=0).spec(8, 8, ("mlp", "embed"))
    with pytest.raises(ValueError, match="unknown support 'tile_balance'; did you mean 'tile_balanced'"):
        weights.SparseLowRank(support="tile_balance")
