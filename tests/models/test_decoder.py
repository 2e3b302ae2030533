"""The decoder as a function: paths, captured states, embedded inputs, hooks, scores, remat, sharding."""

from __future__ import annotations

import dataclasses
import functools
import operator

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxpt import weights
from jaxpt.core import spec as specs
from jaxpt.core import trees
from jaxpt.layers import block, masks, norms
from jaxpt.models import decoder, generate
from jaxpt.objectives import causal_lm
from jaxpt.sharding import MeshConfig, make_mesh, shardings
from jaxpt.training.state import create
from jaxpt.training.step import make_step, put_batch

CFG = decoder.Config(
    vocab_size=31, layers=3, width=16, heads=4, kv_heads=2, ffn=24, initializer_stddev=0.3, attention="xla"
)
B, S = 2, 8
IDS = jnp.asarray(np.random.default_rng(0).integers(0, 31, (B, S)))


@functools.cache
def params(cfg=CFG):
    return decoder.init(jax.random.key(0), cfg)


def logits(cfg=CFG, inputs=IDS, **kwargs):
    return jax.jit(lambda p, x: decoder.apply(p, x, cfg, **kwargs))(params(), inputs)


def layer(i):
    return jax.tree.map(lambda t: t[i], params()["blocks"])


def context(mask=None, **kwargs):
    positions = jnp.broadcast_to(jnp.arange(S), (B, S))
    return block.Context(masks.causal() if mask is None else mask, positions, **kwargs)


@functools.cache
def one_block():
    return jax.jit(lambda x, p: block.block(x, p, CFG, context())[0])


def composed(path):
    """The layers of `path`, called one after the other by hand."""
    states = [params()["embedding"][IDS]]
    for i in path:
        states.append(one_block()(states[-1], layer(i)))
    final = norms.norm(states[-1], params()["final_norm"], CFG.norm_eps)
    return jnp.einsum("bsd,vd->bsv", final, params()["head"]["kernel"].w), jnp.stack(states)


@pytest.mark.parametrize("path", [(0, 1, 2), (2, 0), (1, 1, 0, 2, 2), (), jnp.asarray([0, 2])], ids=str)
def test_a_path_is_the_composition_of_its_layers(path):
    found = jax.jit(lambda p: decoder.hidden_states(p, IDS, CFG, path=path, capture=True))(params())
    expected, states = composed(path)
    np.testing.assert_allclose(found.layers, states, atol=2e-5)
    np.testing.assert_allclose(decoder.logits(params(), found.final, CFG), expected, atol=5e-5)


def test_the_whole_range_is_the_default_and_the_same_under_a_traced_path():
    expected = logits()
    np.testing.assert_allclose(logits(path=range(3)), expected, atol=1e-6)
    traced = jax.jit(lambda p, path: decoder.apply(p, IDS, CFG, path=path))(params(), jnp.arange(3))
    np.testing.assert_allclose(traced, expected, atol=1e-6)


def test_gradients_along_a_path_are_those_of_the_composition():
    path, target = (2, 0, 2), jnp.cos(jnp.arange(B * S * 31.0)).reshape(B, S, 31)

    def by_hand(p):
        x = p["embedding"][IDS]
        for i in path:
            x = one_block()(x, jax.tree.map(operator.itemgetter(i), p["blocks"]))
        final = norms.norm(x, p["final_norm"], CFG.norm_eps)
        return jnp.sum(target * decoder.logits(p, final, CFG))

    found = jax.jit(jax.grad(lambda p: jnp.sum(target * decoder.apply(p, IDS, CFG, path=path))))(params())
    for (name, one), other in zip(
        trees.leaves_with_path(found), jax.tree.leaves(jax.jit(jax.grad(by_hand))(params())), strict=True
    ):
        np.testing.assert_allclose(one, other, atol=1e-3, rtol=1e-4, err_msg=name)
    assert not found["blocks"]["mlp"]["up"]["kernel"].w[1].any()  # the layer that was skipped


def test_capture_is_off_by_default():
    assert jax.eval_shape(lambda p: decoder.hidden_states(p, IDS, CFG), params()).layers is None


def test_embedded_inputs_take_the_place_of_ids():
    np.testing.assert_array_equal(logits(inputs=params()["embedding"][IDS]), logits())


def test_a_score_is_added_in_every_layer():
    """ALiBi (arXiv 2108.12409) as a score equals its dense formula in a hand-written attention."""
    slopes = 2.0 ** -jnp.arange(1, CFG.heads + 1)

    def alibi(q, k, p):
        distance = jnp.arange(q.shape[1])[:, None] - jnp.arange(k.shape[1])[None, :]
        return -(slopes[:, None, None] * distance)[None]

    cfg = dataclasses.replace(CFG, rotary_fraction=0.0)
    p, x = layer(1)["attention"], jax.random.normal(jax.random.key(1), (B, S, CFG.width))
    found, _ = jax.jit(lambda x: block.self_attention(x, p, cfg, context(score=alibi)))(x)

    def heads(name, count):
        return jnp.einsum("bsd,od->bso", x, p[name]["kernel"].w).reshape(B, S, count, CFG.per_head)

    q, k, v = (
        heads("query", 4), jnp.repeat(heads("key", 2), 2, axis=2), jnp.repeat(heads("value", 2), 2, axis=2),
    )  # fmt: skip
    scores = jnp.einsum("bshk,bthk->bhst", q, k) / np.sqrt(CFG.per_head) + alibi(q, k, p)
    scores = jnp.where(jnp.tril(jnp.ones((S, S), bool)), scores, -jnp.inf)
    out = jnp.einsum("bhst,bthk->bshk", jax.nn.softmax(scores), v).reshape(B, S, -1)
    np.testing.assert_allclose(found, jnp.einsum("bso,do->bsd", out, p["out"]["kernel"].w), atol=1e-5)
    assert not np.allclose(logits(cfg, score=alibi), logits(cfg), atol=1e-2)
    no_score = logits(score=lambda q, k, p: jnp.zeros((1, 1, q.shape[1], k.shape[1])))
    np.testing.assert_allclose(no_score, logits(), atol=1e-5)


def test_a_hook_can_add_an_adapter():
    """A bottleneck beside every sublayer, its weights in the tree: nothing at zero, something after."""
    params()  # made here, not while tracing, where the cache would keep tracers
    keys = iter(jax.random.split(jax.random.key(2), 4))
    adapters = {
        site: {"down": jax.random.normal(next(keys), (3, 2, 16)), "up": jnp.zeros((3, 16, 2))}
        for site in ("attention", "mlp")
    }

    def hook(site, inner, y, p):
        a = p["adapters"][site]
        return y + jnp.einsum("bsr,dr->bsd", jax.nn.relu(jnp.einsum("bsd,rd->bsr", inner, a["down"])), a["up"])

    def run(adapters, hook):
        tree = params() | {"blocks": params()["blocks"] | {"adapters": adapters}}
        return decoder.apply(tree, IDS, CFG, hook=hook)

    np.testing.assert_allclose(jax.jit(lambda a: run(a, hook))(adapters), logits(), atol=1e-6)
    gradient = jax.jit(jax.grad(lambda a: jnp.square(run(a, hook)).mean()))(adapters)
    assert all((jnp.abs(gradient[site]["up"]).max(axis=(1, 2)) > 0).all() for site in adapters)


@pytest.mark.parametrize(("remat", "unroll"), [("full", 1), ("dots", 1), ("full", 3)])
def test_remat_and_unrolling_change_neither_values_nor_gradients(remat, unroll):
    cfg = dataclasses.replace(CFG, remat=remat, unroll=unroll)
    value, gradients = value_and_gradients(cfg)
    expected, expected_gradients = value_and_gradients(CFG)
    np.testing.assert_allclose(value, expected, rtol=1e-6)
    for one, other in zip(jax.tree.leaves(gradients), jax.tree.leaves(expected_gradients), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5 * float(jnp.abs(other).max()))


@functools.cache
def value_and_gradients(cfg):
    run = jax.value_and_grad(lambda p: jnp.square(decoder.apply(p, IDS, cfg)).mean())
    return jax.jit(run)(params())


def lowered(remat, unroll=1):
    cfg = dataclasses.replace(CFG, remat=remat, layers=8, unroll=unroll)
    run = jax.grad(lambda p, x: jnp.square(decoder.apply(p, x, cfg)).mean())
    return jax.jit(run).lower(specs.abstract(decoder.spec(cfg)), jax.ShapeDtypeStruct((8, 64), jnp.int32))


def test_full_remat_keeps_less_than_none():
    """Bytes between forward and backward, from the compiler's own count."""
    full, none = (lowered(r).compile().memory_analysis().temp_size_in_bytes for r in ("full", "none"))
    assert full < 0.6 * none


def test_remat_is_guarded_where_no_loop_keeps_the_two_passes_apart():
    """Wholly unrolled, the compiler would merge the recomputation with the first pass and keep everything."""
    assert "optimization_barrier" in lowered("full", unroll=8).as_text()
    assert "optimization_barrier" not in lowered("full").as_text()


@pytest.mark.parametrize(
    ("run", "message"),
    [
        (
            lambda: logits(dataclasses.replace(CFG, remat="dot")),
            "unknown remat policy 'dot'; did you mean 'dots'",
        ),
        (lambda: logits(dataclasses.replace(CFG, attention="xlaa")), "did you mean 'xla'"),
        (lambda: logits(path=[0, 3]), r"outside layers 0 to 2: \[3\]"),
        (lambda: logits(path=[-1]), r"outside layers 0 to 2: \[-1\]"),
        (lambda: decoder.spec(dataclasses.replace(CFG, kv_heads=3)), "kv_heads=3"),
        (lambda: decoder.spec(dataclasses.replace(CFG, layers=-1)), "negative"),
    ],
)
def test_bad_input_says_what_was_wrong(run, message):
    with pytest.raises(ValueError, match=message):
        run()


def test_more_tokens_than_learned_positions_is_an_error():
    cfg = dataclasses.replace(CFG, learned_positions=4, rotary_fraction=0.0)
    with pytest.raises(ValueError, match="8 positions given, but learned_positions=4"):
        jax.eval_shape(lambda p: decoder.apply(p, IDS, cfg), specs.abstract(decoder.spec(cfg)))


def test_a_cache_alone_is_an_error():
    with pytest.raises(ValueError, match="generate.extend"):
        decoder.hidden_states(params(), IDS, CFG, cache=generate.empty_cache(CFG, B, S))


def test_bfloat16_compute_keeps_float32_parameters_and_is_close():
    cfg = dataclasses.replace(CFG, compute_dtype="bfloat16")
    found = logits(cfg)
    assert found.dtype == jnp.float32
    assert float(jnp.abs(found - logits()).max()) < 0.1 * float(jnp.abs(logits()).max())
    _, gradients = value_and_gradients(cfg)
    assert all(g.dtype == jnp.float32 and jnp.isfinite(g).all() for g in jax.tree.leaves(gradients))


def test_a_tied_head_is_the_embedding():
    cfg = dataclasses.replace(CFG, tied_head=True)
    tree = {k: v for k, v in params().items() if k != "head"}
    assert jax.tree.structure(specs.abstract(decoder.spec(cfg))) == jax.tree.structure(tree)
    final = decoder.hidden_states(tree, IDS, cfg).final
    np.testing.assert_allclose(decoder.apply(tree, IDS, cfg), final @ tree["embedding"].T, atol=1e-5)


RULES = (
    ("blocks/attention", weights.SparseLowRank(rank=4, density=0.125, alpha=8.0)),
    ("blocks/mlp", weights.LowRank(rank=4)),
)


def test_a_mesh_of_eight_gives_the_loss_and_gradients_of_one_device():
    """Every form of weights in one model; parameters and batch laid out by the rules table."""
    cfg = dataclasses.replace(CFG, weights=RULES, vocab_size=32, ffn=32)
    tree = decoder.init(jax.random.key(0), cfg)
    rng = np.random.default_rng(3)
    batch = {
        "inputs": rng.integers(0, 32, (8, S)), "labels": rng.integers(0, 32, (8, S)),
        "loss_weight": (rng.random((8, S)) < 0.9).astype(np.float32),
    }  # fmt: skip

    def run(tree, batch):
        trainable, fixed = trees.split(tree)

        def loss(t):
            found = causal_lm.loss(trees.merge(t, fixed), batch, None, cfg)
            return found.sums.sum() / found.weights.sum()

        return jax.value_and_grad(loss)(trainable)

    expected, expected_gradients = jax.jit(run)(tree, batch)
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, model=2))
    with jax.set_mesh(mesh):
        placed = jax.device_put(tree, shardings(decoder.spec(cfg), mesh))
        value, gradients = jax.jit(run)(placed, put_batch(batch, mesh))
    assert not placed["blocks"]["mlp"]["up"]["kernel"].b.sharding.is_fully_replicated
    np.testing.assert_allclose(value, expected, atol=1e-5)
    for one, other in zip(jax.tree.leaves(gradients), jax.tree.leaves(expected_gradients), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)


def test_no_dense_matrix_in_a_sltrain_model_its_optimizer_or_its_state():
    """Shapes of all that lives between two steps: none as large as the smallest matrix."""
    cfg = dataclasses.replace(CFG, width=64, ffn=96, weights=(("blocks", RULES[0][1]),))
    optimizer = optax.adam(1e-3)
    state = jax.eval_shape(lambda: create(decoder.init(jax.random.key(0), cfg), optimizer))
    m, n = 32, 64  # the smallest matrix: keys, 2 groups of 16
    blocks = [x for path, x in trees.leaves_with_path(state) if "/blocks/" in f"/{path}"]
    assert len(blocks) > 4 * 7
    assert all(x.size < CFG.layers * m * n for x in blocks)
    batch = {k: jnp.zeros((2, S), jnp.int32) for k in ("inputs", "labels")} | {"loss_weight": jnp.ones((2, S))}
    step = make_step(functools.partial(causal_lm.loss, cfg=cfg), optimizer)
    after, _ = jax.eval_shape(step.run, state, batch)
    assert jax.tree.map(lambda x: x.shape, after) == jax.tree.map(lambda x: x.shape, state)
