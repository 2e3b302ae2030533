"""Bits per byte: closed forms, a count by hand, and sums that do not depend on how text is cut or batched."""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpt.data.held_out import held_out
from jaxpt.data.records import TokenRecords
from jaxpt.data.shards import Item, write_folder
from jaxpt.data.vocabularies import ByteVocabulary
from jaxpt.evaluate import bits_per_byte, make_scorer, rolling, sum_nats, summarize
from jaxpt.models import decoder
from jaxpt.objectives import causal_lm
from jaxpt.objectives.base import Losses
from jaxpt.sharding import MeshConfig, make_mesh

S = 16
CFG = decoder.Config(width=8, heads=2, ffn=16, layers=1, initializer_stddev=0.3)


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    """Nine documents in three domains, one of two records, one with letters of two bytes."""
    rng = np.random.default_rng(0)
    lengths = [3, 15, 16, 17, 40, 61, 5000, 30]
    texts = ["".join(map(chr, rng.integers(97, 123, n))) for n in lengths] + ["äöü" * 9]
    items = [Item(f"d{i}", "abc"[i % 3], len(t.encode()), t) for i, t in enumerate(texts)]
    folder = write_folder(tmp_path_factory.mktemp("prepared"), {"validation": items}, ByteVocabulary())
    return TokenRecords(folder, "validation")


def decoder_loss(params, batch, key):
    return causal_lm.loss(params, batch, key, CFG)


def bigram_loss(params, batch, key):
    """A model that sees one token: its [V, V] table of logits."""
    log_p = jax.nn.log_softmax(params)[batch["inputs"], batch["labels"]]
    return Losses(-(log_p * batch["loss_weight"]).sum(-1), batch["loss_weight"].sum(-1), {})


SCORE, BIGRAM = make_scorer(decoder_loss), make_scorer(bigram_loss)


@functools.cache
def params():
    return decoder.init(jax.random.key(0), CFG)


@functools.cache
def table():
    return jax.random.normal(jax.random.key(1), (259, 259))


def test_a_uniform_model_over_v_symbols_needs_log2_v_bits_a_byte(records):
    uniform = params() | {"head": jax.tree.map(jnp.zeros_like, params()["head"])}
    found = bits_per_byte(SCORE, held_out(records, S, 4))(uniform)
    assert found.pop("nats_per_token") == pytest.approx(math.log(259), rel=1e-6)
    assert found.keys() == {"bits_per_byte", "bits_per_byte_macro", *(f"bits_per_byte/{d}" for d in "abc")}
    for value in found.values():
        assert value == pytest.approx(8 * math.log2(259) / 8, rel=1e-6)


def test_a_byte_uniform_model_needs_exactly_8_bits(records):
    only_bytes = jnp.where(jnp.arange(259) < 3, -1e9, 0.0) * jnp.ones((259, 1))
    found = bits_per_byte(BIGRAM, held_out(records, S, 4))(only_bytes)
    assert [found["bits_per_byte"], found["bits_per_byte_macro"]] == pytest.approx([8.0, 8.0], rel=1e-6)


def test_by_hand(records):
    log_p = np.asarray(jax.nn.log_softmax(table()), np.float64)
    nats, sizes, tokens = dict.fromkeys("abc", 0.0), dict.fromkeys("abc", 0), 0
    for document in range(9):
        parts = np.flatnonzero(records.document == document)
        stream = np.concatenate([records[parts[0]][:1], *(records[i][1:] for i in parts)])
        assert stream[0] == 2 and stream[-1] == 1  # BOS is seen, EOS is not scored
        domain = records.documents.domain[document]
        nats[domain] -= log_p[stream[:-2], stream[1:-1]].sum()
        sizes[domain] += int(records.documents.bytes[document])
        tokens += len(stream) - 2
    assert sizes == {"a": 3 + 17 + 5000, "b": 15 + 40 + 30, "c": 16 + 61 + 54}
    found = bits_per_byte(BIGRAM, held_out(records, S, 4))(table())
    each = {d: nats[d] / math.log(2) / sizes[d] for d in "abc"}
    expected = {f"bits_per_byte/{d}": x for d, x in each.items()}
    expected["bits_per_byte"] = sum(nats.values()) / math.log(2) / sum(sizes.values())
    expected["bits_per_byte_macro"] = sum(each.values()) / 3
    expected["nats_per_token"] = sum(nats.values()) / tokens
    assert found == pytest.approx(expected, rel=1e-6)
    assert abs(found["bits_per_byte"] - found["bits_per_byte_macro"]) > 1e-4


def test_batches_and_padding_do_not_matter(records):
    values = [bits_per_byte(SCORE, held_out(records, S, size))(params()) for size in (1, 7, 64)]
    assert values[1] == pytest.approx(values[0], rel=1e-5)
    assert values[2] == pytest.approx(values[0], rel=1e-5)


def test_parts_add_up_to_the_whole(records):
    batches = list(held_out(records, S, 8).batches())
    whole = sum_nats(BIGRAM, table(), batches, 3)
    parts = [sum_nats(BIGRAM, table(), part, 3) for part in (batches[:5], batches[5:])]
    for i in range(2):
        np.testing.assert_allclose(parts[0][i] + parts[1][i], whole[i], rtol=1e-12)


@pytest.mark.parametrize("stride", [1, 5, S])
def test_rolling_windows_score_every_token_once_with_the_promised_context(records, stride):
    small = held_out(records, S, 8, part="tuning") if stride == 1 else held_out(records, S, 8)
    windows, scored = rolling(small, stride), 0
    for batch in windows.batches():
        scored += int(batch["loss_weight"].sum())
        starts = batch["inputs"][:, 0] == 2
        seen = np.where(batch["loss_weight"] > 0, batch["positions"] + 1, S + 1).min(-1)
        assert (seen[~starts] >= min(S, S - stride + 1)).all()
    found, plain = bits_per_byte(BIGRAM, windows)(table()), bits_per_byte(BIGRAM, small)(table())
    assert scored == sum(int(b["loss_weight"].sum()) for b in small.batches())
    assert found == pytest.approx(plain, rel=1e-6)  # a bigram model has no use for more context


def test_more_context_changes_what_a_decoder_says(records):
    windows = held_out(records, S, 64)
    plain, more = (bits_per_byte(SCORE, w)(params())["bits_per_byte"] for w in (windows, rolling(windows, 4)))
    assert plain != pytest.approx(more, rel=1e-5)
    with pytest.raises(ValueError, match="stride must be from 1 to the sequence length 16, got 17"):
        rolling(windows, 17)


def test_a_mesh_scores_the_same(records):
    mesh = make_mesh(MeshConfig(data=4, model=2))
    windows = held_out(records, S, 8)
    found = bits_per_byte(make_scorer(decoder_loss, mesh), windows)(params())
    assert found == pytest.approx(bits_per_byte(SCORE, windows)(params()), rel=1e-5)


def test_one_compilation_for_all_batches(records):
    traced = []

    def loss(p, batch, key):
        traced.append(1)
        return bigram_loss(p, batch, key)

    evaluate = bits_per_byte(make_scorer(loss), held_out(records, S, 8))
    evaluate(table()), evaluate(table())
    assert len(traced) == 1


def test_what_cannot_be_divided_is_refused(records):
    with pytest.raises(ValueError, match="nothing to score"):
        summarize(np.ones(2), np.ones(2), ("a", "b"), {"a": 5})
    with pytest.raises(ValueError, match="nothing to score"):
        summarize(np.zeros(1), np.zeros(1), ("a",), {"a": 5})
    with pytest.raises(ValueError, match="domain_index 0 to 2 given, but there are 1 domains"):
        sum_nats(BIGRAM, table(), held_out(records, S, 512).batches(), 1)
