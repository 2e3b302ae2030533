"""Mixture of experts: what a loop over experts gives, gradients too, on one device and over the axis "expert"."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpt.core import spec as specs
from jaxpt.core import trees
from jaxpt.layers import moe
from jaxpt.layers.mlp import mlp
from jaxpt.layers.moe import Experts
from jaxpt.models import decoder, flops
from jaxpt.objectives.causal_lm import CausalLM
from jaxpt.objectives.routed_lm import RoutedLM
from jaxpt.sharding import MeshConfig, make_mesh, shardings
from jaxpt.weights import LowRank

EXPERTS = Experts(count=4, per_token=2)
CFG = decoder.Config(
    layers=2, width=8, heads=2, ffn=12, vocab_size=32, initializer_stddev=0.5, experts=EXPERTS, embedding_stddev=0.5
)


def parameters(cfg=CFG):
    return decoder.init(jax.random.key(0), cfg)


def layer(params):
    return jax.tree.map(lambda t: t[0], params["blocks"]["mlp"])


def states():
    return jax.random.normal(jax.random.key(1), (8, 6, 8))


def loop(x, p, cfg, activation="swiglu"):
    """Every expert on every token, and the gates as a dense array."""
    gates, chosen = moe.choose(x @ p["router"]["kernel"].w.T, cfg)
    dense = (jax.nn.one_hot(chosen, cfg.count) * gates[..., None]).sum(-2)
    one = lambda e: mlp(x, jax.tree.map(lambda t: t[e], p["experts"]), activation)  # noqa: E731
    return sum(dense[..., e, None] * one(e) for e in range(cfg.count))


@pytest.mark.parametrize("per_token", [1, 2, 4])
@pytest.mark.parametrize("renormalize", [True, False])
def test_experts_equal_a_loop_over_all_of_them(per_token, renormalize):
    cfg, p, x = Experts(count=4, per_token=per_token, renormalize=renormalize), layer(parameters()), states()

    @jax.jit
    def both(p, x):
        weigh = lambda y: (jnp.sin(y) * y).sum()  # noqa: E731
        found = jax.value_and_grad(lambda p, x: weigh(moe.feed_forward(x, p, cfg, "swiglu")[0]), (0, 1))(p, x)
        return found, jax.value_and_grad(lambda p, x: weigh(loop(x, p, cfg)), (0, 1))(p, x)

    found, expected = both(p, x)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5 * np.abs(b).max())


def test_all_tokens_to_one_expert_are_all_served():
    """No capacity: the others get none, and no token is dropped."""
    p, x = layer(parameters()), jnp.abs(states())
    router = jnp.zeros((4, 8)).at[2].set(5.0)
    p = {**p, "router": {"kernel": dataclasses.replace(p["router"]["kernel"], w=router)}}
    cfg = Experts(count=4, per_token=1)
    y, logits = moe.feed_forward(x, p, cfg, "swiglu")
    assert (logits.argmax(-1) == 2).all()
    alone = mlp(x, jax.tree.map(lambda t: t[2], p["experts"]), "swiglu")
    np.testing.assert_allclose(y, alone, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("activation", ["swiglu", "relu"])
def test_one_expert_is_the_plain_feed_forward(activation):
    cfg = dataclasses.replace(CFG, experts=Experts(count=1, per_token=1), activation=activation)
    params = parameters(cfg)
    only = jax.tree.map(lambda t: t[:, 0], params["blocks"]["mlp"]["experts"])
    plain = {**params, "blocks": {**params["blocks"], "mlp": only}}
    ids = jnp.arange(32).reshape(2, 16)
    expected = decoder.apply(plain, ids, dataclasses.replace(cfg, experts=None))
    np.testing.assert_allclose(decoder.apply(params, ids, cfg), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "mesh", [MeshConfig(data=2, expert=4), MeshConfig(data=1, fsdp=2, model=2, expert=2), MeshConfig(data=1, model=8)]
)
def test_a_mesh_gives_what_one_device_gives(mesh):
    objective = RoutedLM(model=CFG, balance=0.1, z_loss=0.1)
    ids = jax.random.randint(jax.random.key(2), (8, 6), 0, 32)
    batch = {"inputs": ids, "labels": jnp.roll(ids, -1, 1), "loss_weight": jnp.ones((8, 6))}
    run = jax.jit(jax.value_and_grad(lambda p, b: objective.loss(p, b, None).sums.sum()))
    params, built = parameters(), make_mesh(mesh)
    expected = run(params, batch)
    where = shardings(decoder.spec(CFG), built)
    experts = where["blocks"]["mlp"]["experts"]["up"]["kernel"].w.spec
    assert experts[1] == ("expert" if mesh.expert > 1 else None)
    with jax.set_mesh(built):
        found = run(jax.device_put(params, where), batch)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-5)


def test_experts_of_another_form_have_its_arrays_and_names():
    cfg = dataclasses.replace(CFG, weights=(("blocks/mlp/experts", LowRank(3)),))
    spec = decoder.spec(cfg)["blocks"]["mlp"]
    up = spec["experts"]["up"]["kernel"]
    assert up.b.shape == (2, 4, 12, 3) and up.b.axes[:2] == ("layers", "experts")
    assert spec["router"]["kernel"].w.shape == (2, 4, 8)
    logits = decoder.apply(parameters(cfg), jnp.arange(16).reshape(2, 8), cfg)
    assert jnp.isfinite(logits).all()


def test_balance_is_1_for_even_use_and_grows_to_e_over_k():
    weight = jnp.ones((2, 8))
    first, second = (jax.nn.one_hot((jnp.arange(8) + i) % 4, 4) for i in (0, 1))
    even = jnp.tile(20 * first + 10 * second, (2, 1, 1))
    np.testing.assert_allclose(moe.balance(even, weight, EXPERTS), 1, rtol=1e-4)
    one = jnp.tile(jnp.array([30.0, 29.9, 0, 0]), (2, 8, 1))
    np.testing.assert_allclose(moe.balance(one, weight, EXPERTS), 2, rtol=1e-4)
    np.testing.assert_allclose(
        moe.balance(one, weight, Experts(count=4, per_token=1)), 4 / (1 + np.exp(-0.1)), rtol=1e-4
    )
    np.testing.assert_allclose(moe.z_loss(jnp.zeros((2, 8, 4)), weight), np.log(4) ** 2, rtol=1e-5)
    half = weight.at[:, 4:].set(0)  # padding does not count
    np.testing.assert_allclose(moe.balance(one.at[:, 4:].set(7.0), half, EXPERTS), 2, rtol=1e-4)
    assert (moe.balance(one, jnp.zeros((2, 8)), EXPERTS) == 0).all()


def test_auxiliary_losses_even_out_the_use_of_experts_and_are_not_scored():
    objective = RoutedLM(model=CFG, balance=1.0, z_loss=0.0)
    ids = jax.random.randint(jax.random.key(2), (8, 6), 0, 32)
    batch = {"inputs": ids, "labels": ids, "loss_weight": jnp.ones((8, 6))}
    params = parameters()
    router = params["blocks"]["mlp"]["router"]["kernel"]
    uneven = dataclasses.replace(router, w=router.w.at[:, 0].mul(4))
    params["blocks"]["mlp"]["router"] = {"kernel": uneven}

    def imbalance(params):
        found = objective.loss(params, batch, None)
        return found.metrics["balance"][0] / found.metrics["balance"][1]

    step = jax.jit(lambda p: jax.tree.map(lambda w, g: w - 0.1 * g, p, jax.grad(imbalance)(p)))
    before = imbalance(params)
    moved = params
    for _ in range(20):
        moved = step(moved)
    assert imbalance(moved) < before - 0.05
    plain = objective.scored()
    assert type(plain) is CausalLM and plain.likelihood
    both, alone = (of.loss(params, batch, None) for of in (objective, plain))
    np.testing.assert_allclose(both.sums - alone.sums > 0, True)
    with pytest.raises(ValueError, match="this one has none"):
        RoutedLM(model=dataclasses.replace(CFG, experts=None))


def test_operations_are_those_of_the_chosen_experts():
    """Twice the feed-forward of one expert and token, whatever the number of experts, and the router."""
    plain = dataclasses.replace(CFG, experts=None)
    dense = flops.decoder_flops(decoder.spec(plain), plain, 3, 5)
    routed = flops.decoder_flops(decoder.spec(CFG), CFG, 3, 5)
    one = 2 * 3 * 6 * 15 * 8 * 12  # layers, matrices
    assert routed.nominal - dense.nominal == one + 2 * 6 * 15 * 4 * 8
    assert routed == flops.decoder_flops(decoder.spec(CFG), CFG, 3, 5)
    many = dataclasses.replace(CFG, experts=Experts(count=16, per_token=2))
    more = flops.decoder_flops(decoder.spec(many), many, 3, 5)
    assert more.nominal - routed.nominal == 2 * 6 * 15 * 12 * 8
    assert specs.count(decoder.spec(many)) - specs.count(decoder.spec(CFG)) == 2 * 12 * (3 * 8 * 12 + 8)


def test_narrow_experts_and_what_cannot_be():
    narrow = decoder.spec(dataclasses.replace(CFG, experts=Experts(count=4, ffn=5)))
    assert narrow["blocks"]["mlp"]["experts"]["down"]["kernel"].w.shape == (2, 4, 8, 5)
    plain = decoder.spec(dataclasses.replace(CFG, experts=None))
    assert not any("expert" in path for path, _ in trees.leaves_with_path(plain))
    with pytest.raises(ValueError, match="1 to 4 of 4 experts, got per_token=5"):
        Experts(count=4, per_token=5)
    with pytest.raises(ValueError, match="experts have no biases"):
        decoder.spec(dataclasses.replace(CFG, bias=True))
