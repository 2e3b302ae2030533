"""What every objective must do. A new one adds a row to ROWS and nothing else."""

from __future__ import annotations

import dataclasses
import functools
import importlib
import pkgutil
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpt import objectives
from jaxpt.core import spec as specs
from jaxpt.layers.disentangled import Disentangled
from jaxpt.layers.moe import Experts
from jaxpt.models import decoder, encoder, encoder_decoder, gpt_bert, vit
from jaxpt.models.generator import Generator
from jaxpt.objectives import (
    causal_lm,
    courses,
    denoising,
    distillation,
    hybrid_lm,
    image_classification,
    masked_lm,
    masked_next_token,
    pairs,
    representative_words,
    routed_lm,
    seq2seq_denoising,
    table_denoising,
)
from jaxpt.objectives import replaced_tokens as rtd
from jaxpt.objectives.base import Objective
from jaxpt.objectives.corruption import Masking
from jaxpt.objectives.corruption.denoisers import Mixture
from jaxpt.objectives.corruption.spans import SpanCorruption
from jaxpt.optim import AdamConfig
from jaxpt.sharding import MeshConfig, make_mesh, shardings
from jaxpt.training import state as states
from jaxpt.training.step import make_step, put_batch

B, S, V = 8, 16, 32
SIZES: dict[str, Any] = {"layers": 1, "width": 16, "heads": 2, "ffn": 24, "initializer_stddev": 0.3, "vocab_size": V}
DECODER = decoder.Config(**SIZES)
ENCODER = encoder.Config(**SIZES, learned_positions=32, mlm_head=True)
GPT_BERT = gpt_bert.Config(layers=1, width=16, heads=2, ffn=24, vocab_size=V)
SEQ2SEQ = encoder_decoder.Config(**SIZES, embedding_stddev=0.3)
MASKING = Masking(mask_id=3, vocab_size=V, rate=0.3, special_ids=(0, 1))
SPANS = dataclasses.replace(MASKING, by="spans")
JUDGE = dataclasses.replace(ENCODER, mlm_head=False, rtd_head="token")
REPLACED = dataclasses.replace(MASKING, mask=0.85, random=0.0)
DEBERTA = dataclasses.replace(
    JUDGE, layers=2, learned_positions=0, token_types=0, rtd_head="token_and_first", decoder_positions=32,
    disentangled=Disentangled(buckets=8, max_position=32),
)  # fmt: skip
GDES = Generator(depth=0.5, sharing="gradient_disentangled")
MIXTURE = Mixture(modes=(("R", 4), ("S", 5), ("X", 6)), sentinel=31, sentinels=8, eos_id=1)


@dataclasses.dataclass(frozen=True)
class Row:
    """An objective's module, its config, and the module of the model that the config or its `model` describes."""

    module: Any
    cfg: Any
    model: Any = decoder

    @property
    def model_cfg(self) -> Any:
        return getattr(self.cfg, "model", self.cfg)

    @property
    def spec(self) -> Any:
        return self.cfg.spec() if isinstance(self.cfg, Objective) else self.model.spec(self.cfg)

    def of_dtype(self, dtype: str) -> Row:
        model = dataclasses.replace(self.model_cfg, compute_dtype=dtype, param_dtype=dtype)
        cfg = dataclasses.replace(self.cfg, model=model) if hasattr(self.cfg, "model") else model
        return dataclasses.replace(self, cfg=cfg)


DISTILLED = distillation.Distillation(model=dataclasses.replace(ENCODER, mlm_head=False, pooler=True), classes=5)
ROWS = {
    "causal lm": Row(causal_lm, DECODER),
    "image classification": Row(
        image_classification,
        vit.Config(layers=1, width=16, heads=2, ffn=24, image_size=8, patch_size=4, classes=5, initializer_stddev=0.3), vit,
    ),
    "masked lm": Row(masked_lm, masked_lm.MaskedLM(model=ENCODER, masking=MASKING), encoder),
    "masked lm on a decoder": Row(masked_lm, masked_lm.MaskedLM(model=DECODER, masking=MASKING)),
    "masked next token": Row(masked_next_token, masked_next_token.MaskedNextToken(model=DECODER, masking=SPANS)),
    "hybrid": Row(hybrid_lm, hybrid_lm.HybridLM(model=DECODER, masking=SPANS, masked=(1, 2), z_loss=1e-2)),
    "routed": Row(
        routed_lm, routed_lm.RoutedLM(model=dataclasses.replace(DECODER, experts=Experts(count=4)), z_loss=0.1, balance=0.1)
    ),
    "distillation": Row(distillation, DISTILLED),
    "hybrid on gpt-bert": Row(hybrid_lm, hybrid_lm.HybridLM(model=GPT_BERT, masking=SPANS), gpt_bert),
    "denoising": Row(denoising, denoising.Denoising(model=DECODER, mixture=MIXTURE)),
    "replaced tokens": Row(rtd, rtd.ReplacedTokens(model=JUDGE, masking=REPLACED, generator=Generator(width=0.5))),
    "courses": Row(courses, courses.Courses(model=JUDGE, masking=REPLACED, courses=("swapped", "inserted"))),
    "replaced tokens, deberta": Row(rtd, rtd.ReplacedTokens(model=DEBERTA, masking=REPLACED, generator=GDES)),
    "seq2seq denoising": Row(
        seq2seq_denoising, seq2seq_denoising.Seq2SeqDenoising(model=SEQ2SEQ, mixture=MIXTURE), encoder_decoder,
    ),
    "pairs": Row(pairs, pairs.Pairs(model=SEQ2SEQ, target_length=S), encoder_decoder),
    "table denoising": Row(
        table_denoising,
        table_denoising.TableDenoising(
            model=SEQ2SEQ, corruption=SpanCorruption(sentinel=31, sentinels=8, eos_id=1), target_length=16, cell_tokens=4
        ),
        encoder_decoder,
    ),
    "representative words": Row(
        representative_words,
        representative_words.RepresentativeWords(
            model=dataclasses.replace(ENCODER, pooler=True), masking=dataclasses.replace(MASKING, by="units"),
        ),
        representative_words,
    ),
}  # fmt: skip
every_row = pytest.mark.parametrize("name", ROWS)
TEXTS = [name for name in ROWS if name not in ("image classification", "representative words")]
SOFT = jax.nn.softmax(jax.random.normal(jax.random.key(9), (B, 5)))


@functools.cache
def batch(name):
    """Rows of different lengths, the last one empty."""
    rng = np.random.default_rng(0)
    if name == "image classification":
        images = rng.normal(size=(B, 8, 8, 3)).astype(np.float32)
        return {"images": jnp.asarray(images), "labels": jnp.asarray(rng.integers(0, 5, B))}
    ids = rng.integers(7, 23, (B, S + 1))
    lengths = np.asarray([16, 16, 9, 3, 16, 12, 1, 0])[:, None]
    real = np.arange(S) < lengths
    soft = {"target_probabilities": SOFT, "example_weight": jnp.asarray(real[:, 0], jnp.float32)}
    if name == "representative words":  # the first five tokens are a word set and its special tokens
        units = np.maximum(np.arange(S) - 3, 0) // 2
        pairs = {"inputs": ids[:, :-1], "token_types": np.arange(S) > 4, "unit_ids": units, "segment_ids": real}
        pairs = {k: np.where(real, x, 0).astype(np.int32) for k, x in pairs.items()}
        pairs["inputs"][:, 0] = 1 * real[:, 0]
        return {k: jnp.asarray(np.stack([x, np.roll(x, 1, 0) * real], 1)) for k, x in pairs.items()} | {
            "row": jnp.arange(B)
        }
    return (
        {
            "inputs": jnp.asarray(np.where(real, ids[:, :-1], 0)),
            "labels": jnp.asarray(np.where(real, ids[:, 1:], 0)),
            "loss_weight": jnp.asarray(real, jnp.float32),
            "segment_ids": jnp.asarray(real, jnp.int32),
            "row": jnp.arange(B),
        }
        | (soft if name == "distillation" else {})
        | (of_tables(real) if name == "table denoising" else {})
        | (
            {
                "targets": jnp.asarray(np.where(real, ids[:, 1:], 0)),
                "target_segments": jnp.asarray(real & (lengths > 1)),
            }
            if name == "pairs"
            else {}
        )
    )


def of_tables(real):
    """Four tokens of context, then cells of two tokens and a separator, two a row; the second one is stated."""
    at = np.maximum(np.arange(S) - 4, 0)
    cell = np.where((np.arange(S) >= 4) & (at % 3 < 2), at // 3 + 1, 0)
    found = {"cell_id": cell, "row_id": (cell + 1) // 2, "col_id": 2 * (cell > 0) - cell % 2, "stated": cell == 3}
    return {name: jnp.asarray(np.where(real, x, 0), jnp.int32) for name, x in found.items()} | {
        "context_length": jnp.asarray(np.minimum(real.sum(1), 4), jnp.int32)
    }


@functools.cache
def params(name, dtype="float32"):
    row = ROWS[name]
    return jax.tree.map(lambda x: x.astype(dtype), specs.init(jax.random.key(0), row.spec))


def split(row):
    """(draw, loss of what was drawn): of an objective that draws nothing, the first does nothing."""
    if not hasattr(row.module, "corrupt"):
        return (lambda key, batch: batch), (lambda params, batch: row.module.loss(params, batch, None, row.cfg))
    return (
        lambda key, batch: row.module.corrupt(key, batch, row.cfg),
        lambda params, batch: row.module.of_corrupted(params, batch, row.cfg),
    )


@functools.cache
def compiled(name, dtype="float32"):
    """(params, batch, key) -> (Losses, gradient of the mean loss)."""
    row = ROWS[name].of_dtype(dtype)

    def run(params, batch, key):
        def mean(params):
            found = row.module.loss(params, batch, key, row.cfg)
            return found.sums.sum() / found.weights.sum(), found

        gradient, found = jax.grad(mean, has_aux=True)(params)
        return found, gradient

    return jax.jit(run)


@functools.cache
def result(name, dtype="float32"):
    return compiled(name, dtype)(params(name, dtype), batch(name), jax.random.key(1))


def assert_close(found, expected, rtol=2e-5, atol=2e-5):
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(one, other, rtol=rtol, atol=atol)


def test_every_objective_has_a_row():
    found = {m.name for m in pkgutil.iter_modules(objectives.__path__) if not m.ispkg}
    with_loss = {n for n in found if hasattr(importlib.import_module(f"jaxpt.objectives.{n}"), "loss")}
    assert with_loss == {row.module.__name__.rpartition(".")[2] for row in ROWS.values()}


@every_row
def test_sums_and_weights_per_sequence_in_float32(name):
    """Weights are not negative, rows without weight cost nothing, and every row with weight has a loss."""
    found, gradient = result(name)
    assert found.sums.shape == found.weights.shape == (B,)
    assert found.sums.dtype == found.weights.dtype == jnp.float32
    assert (found.weights >= 0).all() and found.weights.any()
    np.testing.assert_array_equal(found.sums != 0, found.weights > 0)
    assert all(jnp.isfinite(x).all() for x in jax.tree.leaves((found, gradient)))
    assert all(np.shape(x) == () for pair in found.metrics.values() for x in pair)


@every_row
def test_jit_equals_eager(name):
    row = ROWS[name]
    eager = row.module.loss(params(name), batch(name), jax.random.key(1), row.cfg)
    assert_close(result(name)[0], eager)


@every_row
def test_bfloat16_is_finite_and_near(name):
    found, gradient = result(name, "bfloat16")
    assert all(jnp.isfinite(x.astype(jnp.float32)).all() for x in jax.tree.leaves((found, gradient)))
    assert found.sums.dtype == jnp.float32
    assert any(x.any() for x in jax.tree.leaves(gradient))
    np.testing.assert_allclose(found.sums.sum(), result(name)[0].sums.sum(), rtol=0.05)


@every_row
def test_another_key_draws_anew_and_the_same_key_does_not(name):
    again, other = (compiled(name)(params(name), batch(name), jax.random.key(k))[0] for k in (1, 2))
    np.testing.assert_array_equal(again.sums, result(name)[0].sums)
    draws = hasattr(ROWS[name].module, "corrupt")
    assert bool((other.sums != again.sums).any()) == draws


@pytest.mark.parametrize("name", TEXTS)
def test_padding_changes_nothing(name):
    """Neither longer rows nor what the padding's ids are."""
    real = batch(name)["segment_ids"]
    longer = {k: jnp.pad(x, ((0, 0), (0, 5))) if x.shape[1:] == (S,) else x for k, x in batch(name).items()}
    longer["inputs"] = longer["inputs"] + 9 * (1 - jnp.pad(real, ((0, 0), (0, 5))))
    found, gradient = compiled(name)(params(name), longer, jax.random.key(1))
    assert_close(found, result(name)[0])
    assert_close(gradient, result(name)[1])


@every_row
def test_microbatches_of_a_drawn_batch_add_up(name):
    """Cut as the step cuts, the sums and weights of the rows are those of the whole batch, to the last rounding."""
    draw, loss = (jax.jit(fn) for fn in split(ROWS[name]))
    drawn = draw(jax.random.key(1), batch(name))
    whole = loss(params(name), drawn)
    for i in range(2):
        part = loss(params(name), {k: x[i::2] for k, x in drawn.items()})
        assert_close((part.sums, part.weights), (whole.sums[i::2], whole.weights[i::2]))


@pytest.mark.parametrize("name", ["masked lm on a decoder", "hybrid"])
def test_the_step_prepares_a_batch_once_for_all_microbatches(name):
    row, optimizer = ROWS[name], AdamConfig(rate=1e-2).make(4)
    draw, loss = split(row)

    def updated(accumulate):
        step = make_step(lambda p, b, k: loss(p, b), optimizer, accumulate=accumulate, prepare=draw)
        return step.probe(states.create(params(name), optimizer), batch(name))

    (one, metrics), (two, others) = updated(1), updated(2)
    assert_close(one.trainable, two.trainable)
    assert_close(metrics, others)
    assert float(metrics["gradient_norm"]) > 0


@every_row
def test_a_mesh_gives_what_one_device_gives(name):
    """fsdp 4 x model 2: rows over four devices, matrices over both axes."""
    row, mesh = ROWS[name], make_mesh(MeshConfig(data=1, fsdp=4, model=2))
    where = shardings(row.spec, mesh)
    with jax.set_mesh(mesh):
        placed = put_batch({k: np.asarray(x) for k, x in batch(name).items()}, mesh)
        found, gradient = compiled(name)(jax.device_put(params(name), where), placed, jax.random.key(1))
    assert_close(found, result(name)[0])
    assert_close(gradient, result(name)[1], atol=5e-5)
    assert specs.count(gradient) == specs.count(params(name))
