"""Through a whole decoder, what a mask hides has a gradient of exactly zero."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpt.layers import masks
from jaxpt.models import decoder
from jaxpt.objectives.cross_entropy import cross_entropy

S = 12
CFG = decoder.Config(vocab_size=19, layers=2, width=16, heads=4, kv_heads=2, ffn=24, initializer_stddev=0.3)
SEGMENTS = np.asarray([[1, 1, 1, 1, 2, 2, 2, 3, 3, 3, 0, 0]])
POSITIONS = jnp.asarray([[0, 1, 2, 3, 0, 1, 2, 0, 1, 2, 0, 0]])
SAME = (SEGMENTS[0][:, None] == SEGMENTS[0][None, :]) & (SEGMENTS[0][:, None] != 0)
ORDER = np.tril(np.ones((S, S), bool))
PREFIX = ORDER | (np.arange(S) < 5)[None, :]
BLIND = ORDER & (np.arange(S) != 6)[:, None]

# name -> (mask, who sees whom [query, key]); over L layers a position reaches what it sees in L steps
MASKS = {
    "packed": (masks.causal(jnp.asarray(SEGMENTS)), SAME & ORDER),
    "packed encoder": (masks.full(jnp.asarray(SEGMENTS)), SAME),
    "packed prefix": (masks.prefix_lm(jnp.asarray([5]), jnp.asarray(SEGMENTS)), SAME & PREFIX),
    "causal": (masks.causal(), ORDER),
    "prefix": (masks.prefix_lm(jnp.asarray([5])), PREFIX),
    "full": (masks.full(), np.ones((S, S), bool)),
    "allowed blocks": (masks.Mask(allowed=jnp.asarray(SAME & ORDER)[None]), SAME & ORDER),
    "a row that sees nothing": (masks.Mask(causal=True, allowed=jnp.asarray(BLIND)[None]), BLIND),
}


@functools.cache
def params():
    return decoder.init(jax.random.key(0), CFG)


def sensitivity(cfg, mask, tree=None):
    """[i, j]: the largest derivative of the loss at position i by the embedded input at position j."""
    x = jax.random.normal(jax.random.key(1), (1, S, cfg.width))
    labels = jnp.arange(S)[None] % cfg.vocab_size
    tree = params() if tree is None else tree

    def loss_at(x, i):
        hidden = decoder.hidden_states(tree, x, cfg, mask=mask, positions=POSITIONS).final
        weight = (jnp.arange(S) == i).astype(jnp.float32)[None]
        return cross_entropy(hidden, decoder.head(tree), labels, weight)[0].sum()

    gradients = jax.jit(jax.vmap(jax.grad(loss_at), in_axes=(None, 0)))(x, jnp.arange(S))
    assert jnp.isfinite(gradients).all()
    return np.abs(np.asarray(gradients[:, 0])).max(-1)


@pytest.mark.parametrize(
    ("name", "attention"),
    [(name, "blocks") for name in MASKS] + [("packed", "xla"), ("a row that sees nothing", "xla")],
)
def test_hidden_positions_have_exactly_no_influence(name, attention):
    mask, direct = MASKS[name]
    found = sensitivity(dataclasses.replace(CFG, attention=attention), mask)
    direct = direct | np.eye(S, dtype=bool)  # the residual stream
    reached = np.linalg.matrix_power(direct.astype(int), CFG.layers) > 0
    assert not found[~reached].any()
    assert (found[direct] > 0).all()  # and what is visible does have some


def test_documents_packed_together_are_as_alone():
    """Loss and gradient of the second document do not change by one bit when the others do."""
    ids = np.random.default_rng(0).integers(0, 19, (1, S))
    other = np.where(SEGMENTS == 2, ids, np.random.default_rng(1).integers(0, 19, (1, S)))
    weight = jnp.asarray(SEGMENTS == 2, jnp.float32)

    @jax.jit
    def run(tree, ids):
        def loss(tree):
            extra = {"segments": jnp.asarray(SEGMENTS), "positions": POSITIONS}
            hidden = decoder.hidden_states(tree, ids, CFG, **extra).final
            return cross_entropy(hidden, decoder.head(tree), ids, weight)[0].sum()

        return jax.value_and_grad(loss)(tree)

    for one, two in zip(jax.tree.leaves(run(params(), ids)), jax.tree.leaves(run(params(), other)), strict=True):
        np.testing.assert_array_equal(one, two)


def test_a_document_scores_the_same_packed_and_alone():
    ids = jnp.asarray(np.random.default_rng(0).integers(0, 19, (1, S)))
    packed = decoder.apply(params(), ids, CFG, segments=jnp.asarray(SEGMENTS), positions=POSITIONS)
    alone = decoder.apply(params(), ids[:, 4:7], CFG)
    np.testing.assert_allclose(packed[:, 4:7], alone, atol=1e-5)
