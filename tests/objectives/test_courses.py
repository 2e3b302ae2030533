"""MCL: corruptions that can be undone, labels and verdicts by hand, and a second half that counts mistakes alone."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpt.core import spec as specs
from jaxpt.core import trees
from jaxpt.models import encoder
from jaxpt.models.generator import Generator
from jaxpt.objectives import courses, replaced_tokens
from jaxpt.objectives.corruption import Masking

B, S, V = 4, 20, 16
MODEL = encoder.Config(
    vocab_size=V, layers=1, width=16, heads=2, ffn=24, initializer_stddev=0.3, learned_positions=S, rtd_head="token"
)
MASKING = Masking(mask_id=3, vocab_size=V, rate=0.2, special_ids=(0, 1), mask=0.85, random=0.0)
CFG = courses.Courses(model=MODEL, masking=MASKING, generator=Generator(width=0.5, sharing="none"))
LENGTHS = np.asarray([20, 15, 10, 4])


def batch():
    real = np.arange(S) < LENGTHS[:, None]
    ids = np.random.default_rng(0).integers(5, V, (B, S)) * real
    ids[:, 0] = 1
    return {"inputs": jnp.asarray(ids), "segment_ids": jnp.asarray(real, jnp.int32)}


@functools.cache
def drawn(cfg=CFG):
    return jax.jit(lambda key: courses.corrupt(key, batch(), cfg))(jax.random.key(1))


@functools.cache
def params(cfg=CFG):
    return specs.init(jax.random.key(0), cfg.spec())


@functools.cache
def compiled(cfg):
    return jax.jit(lambda tree, given: courses.of_corrupted(tree, given, cfg))


@functools.cache
def losses(cfg, judge=0.0):
    """With `judge` added to all of the discriminator's logits."""
    moved = trees.map_with_path(lambda path, x: x + judge * path.endswith("rtd/out/bias"), params(cfg))
    return compiled(cfg)(moved, drawn(cfg))


def mean(found):
    return float(found.sums.sum() / found.weights.sum())


def number(found, name):
    total, count = found.metrics[name]
    return float(total) / max(float(count), 1e-9)


def test_one_course_without_correction_is_electra_bit_for_bit():
    cfg = dataclasses.replace(CFG, courses=("replaced",), correct=False)
    electra = replaced_tokens.ReplacedTokens(model=MODEL, masking=MASKING, generator=CFG.generator)
    given = replaced_tokens.corrupt(jax.random.key(1), batch(), electra)
    expected = jax.jit(lambda tree, given: replaced_tokens.of_corrupted(tree, given, electra))(params(cfg), given)
    np.testing.assert_array_equal(losses(cfg).sums, expected.sums)
    np.testing.assert_array_equal(losses(cfg).weights, expected.weights)
    for name, pair in expected.metrics.items():
        np.testing.assert_array_equal(losses(cfg).metrics[name], pair)


def test_swapped_tokens_all_move_and_nothing_else_does():
    """The multiset of a row stays; every chosen position gets the token of another one; special tokens stay."""
    lesson, _ = courses.lessons(drawn(), CFG)["swapped"]
    ids = np.asarray(batch()["inputs"])
    np.testing.assert_array_equal(np.sort(lesson.shown, -1), np.sort(ids, -1))
    np.testing.assert_array_equal(lesson.weight.sum(-1), [4, 3, 2, 1])
    for row in range(B):
        where = np.asarray(lesson.position[row])[np.asarray(lesson.weight[row]) > 0]
        assert (ids[row, where] != 1).all()
        rest = np.setdiff1d(np.arange(S), where)
        np.testing.assert_array_equal(np.asarray(lesson.shown)[row, rest], ids[row, rest])
        np.testing.assert_array_equal(np.asarray(lesson.labels)[row, : len(where)], ids[row, where])
        if len(where) > 1:
            moved = ids[row, np.roll(where, -1)]
            np.testing.assert_array_equal(np.asarray(lesson.shown)[row, where], moved)


def test_without_the_inserted_tokens_a_row_is_what_it_was():
    """But for the last ones, which made room; positions, and packed texts' segments, move along."""
    given = batch() | {"positions": jnp.tile(jnp.concatenate([jnp.arange(9), jnp.arange(11)]), (B, 1))}
    given["segment_ids"] = given["segment_ids"] * jnp.where(jnp.arange(S) < 9, 1, 2)
    found = courses.corrupt(jax.random.key(1), given, CFG)
    lesson, around = courses.lessons(found, CFG)["inserted"]
    new = np.asarray(replaced_tokens.spread(lesson.position, lesson.weight, S))
    np.testing.assert_array_equal(new.sum(-1), [4, 3, 2, 1])
    for row, length in enumerate(LENGTHS):
        kept, count = np.flatnonzero(~new[row] & (np.arange(S) < length)), new[row].sum()
        np.testing.assert_array_equal(np.asarray(lesson.shown)[row, kept], given["inputs"][row, : length - count])
        assert (np.asarray(lesson.shown)[row, new[row]] == MASKING.mask_id).all()
        segments = np.asarray(around["segment_ids"])[row]
        np.testing.assert_array_equal(segments[kept], given["segment_ids"][row, : length - count])
        assert (segments > 0).sum() == length and (np.diff(segments[:length]) >= 0).all()
        for segment in set(segments[:length].tolist()):
            own = np.asarray(around["positions"])[row, segments == segment]
            np.testing.assert_array_equal(own, np.arange(len(own)))


def test_the_share_of_replaced_tokens_with_a_generator_that_knows_and_one_that_does_not(monkeypatch):
    """One that knows leaves nothing to find but what was inserted; a uniform one replaces 1 - 1/V of what it fills."""
    inserted = 10 / LENGTHS.sum()
    answers = iter([lesson.labels for lesson, _ in courses.lessons(drawn(), CFG).values()])
    monkeypatch.setattr(replaced_tokens, "sample", lambda *_: next(answers))
    found = courses.of_corrupted(params(), drawn(), dataclasses.replace(CFG, correct=False))
    assert number(found, "base_rate") == number(found, "swapped_base_rate") == 0
    assert number(found, "inserted_base_rate") == pytest.approx(inserted)
    assert number(found, "fakes") == pytest.approx(inserted / 3)
    monkeypatch.undo()

    tree = params()
    silent = {"embedding": 0 * tree["generator"]["embedding"]}
    uniform = tree | {"generator": tree["generator"] | silent}
    many = {"inputs": jnp.full((256, S), 7).at[:, 0].set(1)}
    cfg = dataclasses.replace(CFG, correct=False)
    run = jax.jit(lambda tree, key: courses.loss(tree, many, key, cfg))
    rates = run(uniform, jax.random.key(2))
    for name in ("base_rate", "swapped_base_rate"):
        assert number(rates, name) == pytest.approx(4 / S * (1 - 1 / V), rel=0.06)
    assert number(rates, "inserted_base_rate") == pytest.approx(4 / S)


def test_verdicts_part_the_real_tokens():
    rng = np.random.default_rng(0)
    found = replaced_tokens.Detection(jnp.asarray(rng.normal(size=(B, S))), jnp.asarray(rng.random((B, S)) < 0.3))
    real = batch()["segment_ids"] > 0
    parts = courses.verdicts(found, real)
    np.testing.assert_array_equal(sum(np.asarray(p, int) for p in parts), real)
    assert (parts.caught <= found.fake).all() and (parts.suspected <= ~found.fake).all()
    assert all(p.any() for p in parts)


def test_the_second_half_counts_mistakes_alone():
    """A discriminator that suspects nothing has missed what was replaced; one that suspects all has caught it all."""
    cfg = dataclasses.replace(CFG, courses=("swapped",))
    plain = dataclasses.replace(cfg, correct=False)
    blind = dataclasses.replace(cfg, discriminator_weight=0.0), dataclasses.replace(plain, discriminator_weight=0.0)
    # nothing is caught, so that the generator has nothing to do again
    np.testing.assert_allclose(losses(blind[0], -50.0).sums, losses(blind[1], -50.0).sums, rtol=1e-6)
    assert mean(losses(blind[0], 50.0)) > mean(losses(blind[1], 50.0)) + 0.1
    assert mean(losses(cfg, -50.0)) > mean(losses(plain, -50.0)) + 50
    found = replaced_tokens.Detection(jnp.zeros((1, 3)), jnp.zeros((1, 3), bool))
    assert float(courses.mean(found.logits + 2.0, found.fake)[0]) == 0


def test_each_model_learns_from_its_own_losses_alone():
    """With mistakes looked at again: no gradient crosses over, and none is lost to a row without mistakes."""

    def summed(tree, only):
        cfg = dataclasses.replace(CFG, courses=("swapped",), **only)
        return courses.of_corrupted(tree, drawn(), cfg).sums.sum()

    drawn()  # outside of the transformation
    for weight, other in (("generator_weight", "generator"), ("discriminator_weight", "discriminator")):
        gradient = jax.jit(jax.grad(functools.partial(summed, only={weight: 0.0})))(params())
        assert not any(x.any() for x in jax.tree.leaves(gradient.pop(other)))
        assert all(jnp.isfinite(x).all() for x in jax.tree.leaves(gradient))
        assert all(x.any() for path, x in trees.leaves_with_path(gradient) if path.endswith("embedding"))


def test_operations_are_those_of_the_passes():
    """Two models of ELECTRA's step: 4 1/3 passes of the one and 5 of the other with everything on."""
    cfg = replaced_tokens.ReplacedTokens(model=MODEL, masking=MASKING, generator=CFG.generator)
    filling, judging = (c.nominal for c in cfg.costs(cfg.spec(), B, S))
    assert CFG.cost(CFG.spec(), B, S).nominal == pytest.approx((4 + 1 / 3) * filling + 5 * judging)
    plain = dataclasses.replace(CFG, courses=("replaced",), correct=False)
    assert plain.cost(CFG.spec(), B, S).nominal == pytest.approx(filling + judging)


def test_what_does_not_go_together_is_named():
    with pytest.raises(ValueError, match="swapped"):
        dataclasses.replace(CFG, courses=("swaped",))
    with pytest.raises(ValueError, match="each once"):
        dataclasses.replace(CFG, courses=("swapped", "swapped"))
    with pytest.raises(ValueError, match="judge all tokens"):
        dataclasses.replace(CFG, only_chosen=True)
