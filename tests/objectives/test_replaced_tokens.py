"""Replaced-token detection: labels, rates and means by hand, and gradients go where the sharing says and nowhere else."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxpt.core import spec as specs
from jaxpt.core import trees
from jaxpt.layers.disentangled import Disentangled
from jaxpt.models import encoder
from jaxpt.models.generator import SHARING, Generator, generator_config, shared
from jaxpt.objectives import replaced_tokens as rtd
from jaxpt.objectives.corruption import Masking
from jaxpt.optim import AdamConfig, GroupedConfig
from jaxpt.training import state as states
from jaxpt.training.step import make_step

B, S, V = 4, 16, 32
MODEL = encoder.Config(
    vocab_size=V, layers=1, width=16, heads=2, ffn=24, initializer_stddev=0.3, learned_positions=S, rtd_head="token"
)
MASKING = Masking(mask_id=3, vocab_size=V, rate=0.3, special_ids=(0, 1), mask=0.85, random=0.0)
HALF = {"none": 0.5, "embeddings": 0.5, "gradient_disentangled": 1.0, "all": 1.0}
LENGTHS = np.asarray([16, 11, 6, 3])


def objective(sharing="embeddings", **changes):
    kind = Generator(width=HALF[sharing], sharing=sharing)
    return dataclasses.replace(rtd.ReplacedTokens(model=MODEL, masking=MASKING, generator=kind), **changes)


def batch():
    real = np.arange(S) < LENGTHS[:, None]
    ids = np.random.default_rng(0).integers(5, 9, (B, S)) * real
    return {"inputs": jnp.asarray(ids), "segment_ids": jnp.asarray(real, jnp.int32)}


@functools.cache
def params(cfg):
    """Initial ones, no array constant; the generator favours the four tokens that there are: some guesses are right."""

    def one(path, x):
        x = x + 0.1 * jnp.cos(jnp.arange(x.size)).reshape(x.shape)
        return x.at[5:9].add(6) if path == "generator/mlm/bias" else x

    return trees.map_with_path(one, specs.init(jax.random.key(0), cfg.spec()))


@functools.cache
def drawn(cfg):
    return jax.jit(lambda key: rtd.corrupt(key, batch(), cfg))(jax.random.key(1))


@functools.cache
def gradients(cfg):
    """Of each of the two losses alone, by path."""

    given = drawn(cfg)

    def mean(tree, part):
        only = {"generator_weight": float(part == 0), "discriminator_weight": float(part == 1)}
        found = rtd.of_corrupted(tree, given, dataclasses.replace(cfg, **only))
        return found.sums.sum() / found.weights.sum()

    both = jax.jit(lambda tree: [jax.grad(functools.partial(mean, part=part))(tree) for part in (0, 1)])(params(cfg))
    return [dict(trees.leaves_with_path(g)) for g in both]


def test_the_loss_is_the_two_means_of_the_paper():
    """Everything again in numpy, from the models' logits; the replaced text is the original one but for chosen tokens."""
    cfg = objective()
    of, judge = cfg.parts(params(cfg))
    given = {name: np.asarray(x) for name, x in drawn(cfg).items()}
    masked, index = (drawn(cfg)[name] for name in ("masked_inputs", "predict_index"))
    hidden = encoder.apply(of, masked, cfg.generator_model, segments=batch()["segment_ids"])
    filled = rtd.fill(of, masked, index, drawn(cfg), cfg.generator_model)
    log_p = np.asarray(jax.nn.log_softmax(encoder.mlm_logits(of, hidden, cfg.generator_model)), np.float64)
    rows, entries = np.nonzero(given["predict_weight"])
    where, labels = given["predict_index"][rows, entries], given["predict_labels"][rows, entries]
    assert (labels == given["inputs"][rows, where]).all()
    guesses = np.asarray(rtd.sample(of, filled, drawn(cfg)["sample_key"]))
    replaced = given["inputs"].copy()
    replaced[rows, where] = guesses[rows, entries]
    fake, real = replaced != given["inputs"], np.asarray(batch()["segment_ids"]) > 0
    assert 0 < fake.sum() < len(rows)
    states = encoder.apply(judge, jnp.asarray(replaced), cfg.discriminator_model, segments=batch()["segment_ids"])
    logits = np.asarray(encoder.rtd_logits(judge, states, cfg.discriminator_model), np.float64)
    entropy = np.log1p(np.exp(np.where(fake, -logits, logits)))
    found = rtd.of_corrupted(params(cfg), drawn(cfg), cfg)
    expected = -log_p[rows, where, labels].mean() + 50 * entropy[real].mean()
    assert float(found.sums.sum() / found.weights.sum()) == pytest.approx(expected, rel=1e-5)
    metrics = {name: float(s / n) for name, (s, n) in found.metrics.items()}
    called = (logits > 0) & real
    assert metrics["base_rate"] == pytest.approx(fake[real].mean())
    assert metrics["precision"] == pytest.approx((fake & called).sum() / called.sum())
    assert metrics["recall"] == pytest.approx((fake & called).sum() / fake.sum())
    only = dataclasses.replace(cfg, only_chosen=True, generator_weight=0.0, discriminator_weight=1.0)
    fewer = rtd.of_corrupted(params(cfg), rtd.corrupt(jax.random.key(1), batch(), only), only)
    assert float(fewer.sums.sum() / fewer.weights.sum()) == pytest.approx(entropy[rows, where].mean(), rel=1e-5)


def test_the_number_of_judged_tokens():
    """Tokens that teach the discriminator: all real ones, or the chosen ones alone; the generator learns from these."""
    for only, expected in ((False, LENGTHS), (True, np.maximum(1, np.round(0.3 * LENGTHS)))):
        given = rtd.corrupt(jax.random.key(1), batch(), objective(only_chosen=only))
        np.testing.assert_array_equal((given["judge_weight"] > 0).sum(-1), expected)
        np.testing.assert_array_equal(given["predict_weight"].sum(-1), np.maximum(1, np.round(0.3 * LENGTHS)))
        assert float(given["judge_weight"].sum()) == pytest.approx(LENGTHS.sum())


def test_chosen_positions_are_counted_spread_evenly_and_mostly_masked():
    """40 real tokens give 6, 3 give 1; none is padding or special; 85 % become [MASK]; every candidate is as likely."""
    cfg = dataclasses.replace(MASKING, rate=0.15)
    real = jnp.arange(48) < jnp.asarray([40, 3])[:, None]
    ids = jnp.where(real, 7 + jnp.arange(48) % 20, 0).at[:, 0].set(1)
    given = {"inputs": ids, "segment_ids": real.astype(jnp.int32)}
    draw = lambda key: rtd.mask_batch(key, given, cfg)  # noqa: E731
    found = jax.jit(jax.vmap(draw))(jax.random.split(jax.random.key(0), 20_000))
    np.testing.assert_array_equal(found.weight.sum(-1), [[6, 1]] * 20_000)
    chosen = np.asarray(found.position[:, 0])[np.asarray(found.weight[:, 0]) > 0]
    assert chosen.min() >= 1 and chosen.max() < 40
    frequency, expected = np.bincount(chosen, minlength=40)[1:] / 20_000, 6 / 39
    assert np.abs(frequency - expected).max() < 4 * np.sqrt(expected * (1 - expected) / 20_000)
    inputs = np.take_along_axis(np.asarray(found.inputs[:, 0]), np.asarray(found.position[:, 0]), -1)
    masked = (inputs == cfg.mask_id)[np.asarray(found.weight[:, 0]) > 0]
    assert masked.mean() == pytest.approx(0.85, abs=0.004)


def test_an_oracle_generator_replaces_nothing_and_a_uniform_one_almost_everything():
    """With right guesses and logits of 0 the detection loss is ln 2; of 16 tokens 15 in 16 uniform guesses are others."""
    cfg = objective(generator_weight=0.0, discriminator_weight=1.0)
    given = drawn(cfg)
    same = rtd.put(given["inputs"], given["predict_index"], given["predict_weight"], given["predict_labels"])
    found = rtd.Detection(jnp.zeros((B, S)), same != given["inputs"])
    assert not found.fake.any()
    judged = (given["judge_weight"] * rtd.binary(found)).sum() / given["judge_weight"].sum()
    assert float(judged) == pytest.approx(np.log(2), rel=1e-6)

    rows, size = 100, 1000
    uniform = {"embedding": jnp.zeros((16, 4)), "mlm": {"bias": jnp.zeros(16)}}
    keys = rtd.row_keys(jax.random.key(5), {"inputs": jnp.zeros((rows, size), int)})
    guesses = jax.jit(rtd.sample)(uniform, jnp.zeros((rows, size, 4)), keys)
    labels = jax.random.randint(jax.random.key(6), (rows, size), 0, 16)
    assert float((guesses != labels).mean()) == pytest.approx(15 / 16, abs=0.003)


def test_samples_follow_the_softmax_and_do_not_depend_on_chunks(monkeypatch):
    """At temperature 1; a row draws the same in a part of its batch, and where logits are made in pieces."""
    logits = jnp.asarray([0.0, 1.0, 2.0, -1.0])
    table = {"embedding": jnp.eye(4), "mlm": {"bias": jnp.zeros(4)}}
    hidden = jnp.broadcast_to(logits, (50, 800, 4))
    keys = rtd.row_keys(jax.random.key(0), {"inputs": jnp.zeros((50, 800), int)})
    found = jax.jit(rtd.sample)(table, hidden, keys)
    frequency = np.bincount(np.asarray(found).ravel(), minlength=4) / found.size
    np.testing.assert_allclose(frequency, jax.nn.softmax(logits), atol=0.008)
    np.testing.assert_array_equal(rtd.sample(table, hidden[7:9], keys[7:9]), found[7:9])
    monkeypatch.setattr("jaxpt.objectives.cross_entropy.CHUNK_ENTRIES", 4 * 200)
    np.testing.assert_array_equal(rtd.sample(table, hidden[:2], keys[:2]), found[:2])


@pytest.mark.parametrize("sharing", SHARING)
def test_gradients_go_where_the_sharing_says(sharing):
    """The detection loss moves of the generator only what is shared and not disentangled; the other one no discriminator."""
    cfg = objective(sharing)
    of_filling, of_judging = gradients(cfg)
    common = shared(cfg.generator, MODEL)
    assert ("embedding" in common) == (sharing in ("embeddings", "all"))
    for path, gradient in of_judging.items():
        model, name = path.split("/")[:2]
        if model == "generator":
            moved = bool(jnp.any(gradient != 0))
            assert moved == (name in common) or (moved is False and "key/bias" in path), path
    assert (
        of_judging["discriminator/rtd/out/kernel/w"].any() if "discriminator/rtd/out/kernel/w" in of_judging else True
    )
    for path, gradient in of_filling.items():
        assert not (path.startswith("discriminator") and gradient.any()), path
    if sharing == "gradient_disentangled":
        assert of_judging["discriminator/delta/embedding"].any() and of_judging["discriminator/delta/positions"].any()
    assert of_filling["generator/embedding"].any()


def test_disentangled_tables_start_as_shared_ones():
    """With deltas of 0 both have the same loss, to the bit."""
    one = dataclasses.replace(objective(), generator=Generator(sharing="embeddings"))
    other = dataclasses.replace(objective(), generator=Generator(sharing="gradient_disentangled"))
    found = []
    for cfg in (one, other):
        tree = specs.init(jax.random.key(0), cfg.spec())
        loss = jax.jit(lambda tree, given, cfg=cfg: rtd.of_corrupted(tree, given, cfg).sums)
        found.append(loss(tree, drawn(cfg)))
        assert all(not x.any() for x in jax.tree.leaves(tree["discriminator"].get("delta", {})))
    np.testing.assert_array_equal(*found)


def test_updates_of_shared_and_disentangled_tables():
    """SGD: one table moves by both gradients; disentangled, E_G by its own alone and E_D = E_G + delta by the sum."""
    rate, moved = 0.1, {}
    for sharing in ("embeddings", "gradient_disentangled"):
        cfg = dataclasses.replace(objective(), generator=Generator(sharing=sharing))
        step = make_step(cfg.loss, optax.sgd(rate), prepare=cfg.prepare)
        tree = specs.init(jax.random.key(0), cfg.spec())
        new, _ = step.probe(states.create(tree, optax.sgd(rate)), batch())
        before, after = ([x["embedding"] for x in cfg.parts(t)] for t in (tree, new.params))
        moved[sharing] = [b - a for a, b in zip(before, after, strict=True)]
    (both, same), (of_filling, of_all) = moved.values()
    np.testing.assert_array_equal(both, same)
    np.testing.assert_allclose(of_all, both, atol=1e-6)  # delta = 0 and the gradients are the same in the first update
    assert float(jnp.abs(of_filling - both).max()) > 1e-2

    cfg = dataclasses.replace(objective(), generator=Generator(sharing="embeddings"), discriminator_weight=0.0)
    step = make_step(cfg.loss, optax.sgd(rate), prepare=cfg.prepare)
    tree = specs.init(jax.random.key(0), cfg.spec())
    new, _ = step.probe(states.create(tree, optax.sgd(rate)), batch())
    alone = new.params["generator"]["embedding"] - tree["generator"]["embedding"]
    np.testing.assert_allclose(of_filling, alone, atol=1e-6)


def test_a_disentangled_generator_trains_as_an_unshared_one_does():
    """Bit for bit over four updates, each model with an optimizer and clipping of its own; a shared one does not."""
    adam = AdamConfig(clip=1.0)
    optimizer = GroupedConfig(rate=1e-2, groups=(("generator", 1.0, adam), ("discriminator", 0.5, adam))).make(10)
    found = {}
    for sharing in ("none", "gradient_disentangled", "embeddings"):
        cfg = dataclasses.replace(objective(), generator=Generator(sharing=sharing))
        step = make_step(cfg.loss, optimizer, prepare=cfg.prepare)
        state = states.create(specs.init(jax.random.key(0), cfg.spec()), optimizer)
        losses = []
        for _ in range(4):
            state, metrics = step.run(state, batch())
            losses.append(float(metrics["generator_loss"]))
        found[sharing] = losses, state.params["generator"]
    assert found["none"][0] == found["gradient_disentangled"][0] != found["embeddings"][0]
    jax.tree.map(np.testing.assert_array_equal, found["none"][1], found["gradient_disentangled"][1])


def test_the_generator_has_the_sizes_of_the_papers():
    """ELECTRA-Base: a third of the width, four heads, tables of the whole width; DeBERTaV3-Base: half of the layers."""
    base = dataclasses.replace(MODEL, width=768, heads=12, ffn=3072, layers=12)
    electra = generator_config(Generator(width=1 / 3), base)
    assert (electra.width, electra.heads, electra.ffn, electra.layers) == (256, 4, 1024, 12)
    assert (
        electra.embedding_size == 768
        and generator_config(Generator(width=1 / 3, sharing="none"), base).embedding_size is None
    )
    assert shared(Generator(width=1 / 3), base) == ("embedding", "positions", "token_types", "embedding_norm")
    deberta = generator_config(Generator(depth=0.5, sharing="gradient_disentangled"), base)
    assert (deberta.width, deberta.layers) == (768, 6)


def test_the_enhanced_decoder_reads_positions_out_of_the_generator_alone():
    model = dataclasses.replace(
        MODEL, layers=2, learned_positions=0, token_types=0, decoder_positions=S, disentangled=Disentangled(8, 64)
    )
    cfg = dataclasses.replace(objective("gradient_disentangled"), model=model)
    assert "decoder_positions" in cfg.spec()["generator"] and "decoder_positions" not in cfg.spec()["discriminator"]
    given = drawn(cfg)
    fill = jax.jit(lambda p: rtd.fill(p, given["masked_inputs"], given["predict_index"], given, cfg.generator_model))
    tree = params(cfg)["generator"]
    elsewhere = tree | {"decoder_positions": tree["decoder_positions"][::-1]}
    assert float(jnp.abs(fill(tree) - fill(elsewhere)).max()) > 1e-2
    plain = dataclasses.replace(model, decoder_positions=0)
    more, less = (dataclasses.replace(cfg, model=m).cost(cfg.spec(), B, S).nominal for m in (model, plain))
    assert more > less


def test_what_does_not_go_together_is_named():
    with pytest.raises(ValueError, match="rtd_head"):
        objective(model=dataclasses.replace(MODEL, rtd_head="none"))
    with pytest.raises(ValueError, match="nearest is 'embeddings'|embeddings"):
        Generator(sharing="embedings")
    with pytest.raises(ValueError, match="one size"):
        Generator(width=0.5, sharing="all")
    with pytest.raises(ValueError, match="shares in"):
        Generator(width=1.5)
    with pytest.raises(ValueError, match="40 tokens, the model has vocab_size=32"):
        objective(masking=dataclasses.replace(MASKING, vocab_size=40))
    with pytest.raises(ValueError, match="cannot have 3 heads"):
        objective(model=dataclasses.replace(MODEL, width=24, heads=4), generator=Generator(width=20 / 24))
    with pytest.raises(ValueError, match="not be negative"):
        objective(discriminator_weight=-1.0)
