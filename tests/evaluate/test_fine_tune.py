"""Fine-tuning: it learns what can be learned, not what cannot; grids, seeds, degenerate runs, baselines, task files."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from jaxpt.data.documents import DataError, Document
from jaxpt.data.vocabularies import ByteVocabulary
from jaxpt.evaluate import classification as c
from jaxpt.evaluate import lexicon
from jaxpt.evaluate.fine_tune import Grid, decoder_features, encoder_features, fine_tune, sequence_encoder
from jaxpt.models import decoder, encoder
from jaxpt.optim.layer_decay import layer_decay

CFG = decoder.Config(vocab_size=259, width=16, heads=2, ffn=16, layers=1)
ENCODE = sequence_encoder(ByteVocabulary(), 16)
GRID = Grid(rates=(1e-5, 1e-2), epochs=(12,), batch_sizes=(16,), dropout=0.0)


@functools.cache
def params():
    return decoder.init(jax.random.key(0), CFG)


def task(rule, n=160, **kwargs):
    """Words of three letters labelled by a rule."""
    rng = np.random.default_rng(0)
    words = ["".join(rng.choice(list("abcdef"), 3)) for _ in range(2 * n)]
    examples = [c.Example(w, rule(w)) for w in words]
    return c.Task("letters", tuple(examples[:n]), tuple(examples[n:]), kwargs.pop("classes", 2), **kwargs)


@functools.cache
def learned():
    return fine_tune(
        decoder_features(CFG), params(), 16, task(lambda w: int(w[-1] in "abc")), ENCODE, grid=GRID, seeds=(0, 1, 2)
    )


def test_the_grid_runs_with_the_first_seed_and_the_best_with_all():
    result = learned()
    assert [(r.rate, r.seed) for r in result.runs] == [(1e-5, 0), (1e-2, 0), (1e-2, 1), (1e-2, 2)]
    values = [r.value for r in result.runs[1:]]
    report = result.report
    assert report["accuracy"] == np.median(values) > 0.9 and report["rate"] == 1e-2 and report["degenerate"] == 0
    assert report["sd"] == pytest.approx(np.std(values, ddof=1)) and report.items == 160
    assert result.runs[0].degenerate and result.runs[0].value <= report["majority"] + 0.01  # a rate too small
    assert report.per_item["values"].tolist() == values


def test_what_is_noise_is_not_learned_and_does_not_beat_anything():
    noise = fine_tune(
        decoder_features(CFG), params(), 16, task(lambda w: hash_of(w) % 2), ENCODE,
        grid=dataclasses.replace(GRID, rates=(1e-2,)), seeds=(0, 1),
    )  # fmt: skip
    assert noise.report["mean"] < 0.75  # some words come twice
    assert learned().beats(noise) and not noise.beats(learned()) and not noise.beats(noise)


def hash_of(word):
    return int(np.random.default_rng(list(word.encode())).integers(1000))


def test_the_same_seed_gives_the_same_run():
    one = fine_tune(
        decoder_features(CFG), params(), 16, task(lambda w: int(w[-1] in "abc")), ENCODE, grid=GRID, seeds=(0,)
    )
    assert one.runs[1] == learned().runs[1]


def test_a_number_is_regressed_and_the_tanh_head_works():
    grid = Grid(rates=(1e-2,), epochs=(12,), batch_sizes=(16,), head="tanh", dropout=0.05, layer_decay=0.8)
    numbers = task(lambda w: (ord(w[-1]) - 99.5) / 2, classes=1, metric="correlation")
    result = fine_tune(decoder_features(CFG), params(), 16, numbers, ENCODE, grid=grid, seeds=(0,))
    assert result.report["correlation"] > 0.8 and result.report["majority"] == 0


def test_layer_decay_scales_by_depth():
    tree = {
        "model": {
            "embedding": jnp.ones(2),
            "relative": {"table": jnp.ones(1)},
            "blocks": {"x": jnp.ones((3, 2))},
            "final_norm": jnp.ones(1),
        },
        "head": jnp.ones(1),
    }
    found = layer_decay(0.5, "model/").update(tree, None)[0]
    assert found["model"]["blocks"]["x"][:, 0].tolist() == [0.125, 0.25, 0.5]
    assert found["model"]["embedding"].tolist() == [0.0625] * 2 and found["model"]["relative"]["table"] == 0.0625
    assert found["head"].tolist() == found["model"]["final_norm"].tolist() == [1]
    with pytest.raises(ValueError, match='layers stacked under "model/blocks"'):
        layer_decay(0.5, "model/").update({"head": jnp.ones(1)}, None)


def test_features_are_those_of_the_last_token_and_padding_does_not_matter():
    ids = jnp.array([[2, 5, 6, 1, 0, 0], [2, 5, 6, 7, 8, 1]])
    batch = {"inputs": ids, "segment_ids": (ids > 0).astype(jnp.int32)}
    found = decoder_features(CFG)(params(), batch)
    alone = decoder.hidden_states(params(), ids[:1, :4], CFG).final[0, -1]
    np.testing.assert_allclose(found[0], alone, rtol=1e-5)


def test_features_of_an_encoder_are_those_of_the_first_token_and_padding_does_not_matter():
    cfg = encoder.Config(vocab_size=9, width=16, heads=2, ffn=16, layers=1, learned_positions=8)
    params = encoder.init(jax.random.key(0), cfg)
    ids, types = jnp.array([[2, 5, 6, 1, 0, 0], [2, 5, 6, 7, 8, 1]]), jnp.array([[0, 0, 1, 1, 0, 0]] * 2)
    batch = {"inputs": ids, "segment_ids": (ids > 0).astype(jnp.int32), "token_types": types}
    found = encoder_features(cfg)(params, batch)
    alone = encoder.apply(params, ids[:1, :4], cfg, token_types=types[:1, :4])[0, 0]
    np.testing.assert_allclose(found[0], alone, rtol=1e-5)
    without = dataclasses.replace(cfg, token_types=0)  # the batch's types mean nothing to it
    assert encoder_features(without)(encoder.init(jax.random.key(0), without), batch).shape == (2, 16)


def test_pairs_are_framed_and_the_longer_text_is_cut():
    assert ENCODE(c.Example("ab", 0)) == ([2, 100, 101, 1], [0, 0, 0, 0])
    ids, types = ENCODE(c.Example("a" * 30, 0, "bcd"))
    assert ids == [2, *[100] * 10, 1, 101, 102, 103, 1] and types == [0] * 12 + [1] * 4
    assert [len(ENCODE(c.Example(a, 0, b))[0]) for a, b in (("a" * 9, "b" * 9), ("a", "b" * 99))] == [16, 16]
    with pytest.raises(ValueError, match="leaves no room"):
        sequence_encoder(ByteVocabulary(), 3)


def test_metrics_by_hand_and_by_scipy():
    found, right = np.array([1, 1, 0, 0, 1.0]), np.array([1, 0, 0, 1, 1.0])
    tp, fp, fn, tn = 2, 1, 1, 1
    assert c.accuracy(found, right) == 0.6
    assert c.f1_and_accuracy(found, right) == pytest.approx((2 * tp / (2 * tp + fp + fn) + 0.6) / 2)
    expected = (tp * tn - fp * fn) / np.sqrt((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn))
    assert c.matthews(found, right) == pytest.approx(expected) and c.matthews(np.ones(5), right) == 0
    x, y = np.arange(5.0), np.array([1, 3, 2, 5, 9.0])
    assert c.correlation(x, y) == pytest.approx((stats.pearsonr(x, y)[0] + stats.spearmanr(x, y)[0]) / 2)


def test_baselines():
    words = task(lambda w: int(w[-1] in "abc"))
    assert c.baselines(words)["majority"] == pytest.approx(0.5, abs=0.1)
    bag = [c.Example(f"{'good' if i % 3 else 'bad'} word{i % 7}", int(i % 3 > 0)) for i in range(60)]
    found = c.baselines(c.Task("bag", tuple(bag[:40]), tuple(bag[40:]), 2))
    assert found["bag_of_words"] == 1 and found["majority"] < 0.75
    assert c.bag_of_words(task(lambda w: 1.5, classes=1, metric="correlation")) == pytest.approx(1.5, abs=0.1)


def test_generated_acceptability_is_balanced_and_beyond_a_bag_of_words():
    found = c.acceptability_task(lexicon.small(), 480, 240)
    assert (len(found.train), len(found.validation), found.metric) == (480, 240, "matthews")
    assert sum(e.label for e in found.validation) == 120
    assert not {e.first for e in found.train} & {e.first for e in found.validation}
    assert c.baselines(found)["majority"] == 0 and c.baselines(found)["bag_of_words"] < 0.4
    assert found.fingerprint == c.acceptability_task(lexicon.small(), 480, 240).fingerprint


def documents():
    return [
        Document(f"d{i}", "ab"[i % 2], "", "\n\n".join(f"{'ab'[i % 2]} text {i} {j} " * 20 for j in range(3)), "")
        for i in range(60)
    ]


def test_tasks_from_documents_are_split_by_document():
    found = c.domain_task(documents())
    assert found.classes == 2 and len(found.train) + len(found.validation) == 60 and len(found.validation) > 4
    assert c.baselines(found)["bag_of_words"] == 1
    pairs = c.same_document_task(documents())
    owners = [
        {" ".join(t.split()[:3]) for e in side for t in (e.first, e.second)} for side in (pairs.train, pairs.validation)
    ]
    assert not owners[0] & owners[1]
    for e in (*pairs.train, *pairs.validation):
        assert e.label == int(e.first.split()[2] == e.second.split()[2]) and e.first != e.second
    assert np.mean(c.labels(pairs.train)) == 0.5


def test_glue_files(tmp_path):
    (tmp_path / "train.tsv").write_text('Quality\t#1 ID\t#2 ID\t#1 String\t#2 String\n1\t1\t2\tA "b.\tC d.\n')
    (tmp_path / "dev.tsv").write_text("Quality\t#1 ID\t#2 ID\t#1 String\t#2 String\n0\t1\t2\tE.\tF.\n")
    found = c.load_glue(tmp_path, "mrpc")
    assert found.train == (c.Example('A "b.', 1, "C d."),) and found.validation[0].label == 0 and found.metric == "f1"
    (tmp_path / "train.tsv").write_text("gj04\t1\t\tGood one.\ngj04\t0\t*\tBad one.\n")
    (tmp_path / "dev.tsv").write_text("gj04\t1\t\tGood two.\n")
    assert c.load_glue(tmp_path, "cola").train == (c.Example("Good one.", 1), c.Example("Bad one.", 0))
    with pytest.raises(DataError, match="no column sentence1, sentence2, gold_label"):
        (tmp_path / "dev_matched.tsv").write_text("a\tb\n")
        c.load_glue(tmp_path, "mnli")
    (tmp_path / "train.tsv").write_text("sentence\tlabel\nfine\t2\n")
    with pytest.raises(DataError, match="line 2: cannot use label '2'"):
        c.load_glue(tmp_path, "sst2")
    with pytest.raises(DataError, match="cannot read"):
        c.load_glue(tmp_path / "none", "sst2")
    with pytest.raises(ValueError, match="did you mean 'mrpc'"):
        c.load_glue(tmp_path, "mrcp")


def test_bad_tasks_are_refused():
    with pytest.raises(ValueError, match="has 2 classes, but a label is 5"):
        task(lambda w: 5)
    with pytest.raises(ValueError, match="did you mean 'accuracy'"):
        task(lambda w: 1, metric="acuracy")
    with pytest.raises(ValueError, match="cannot fine-tune with 2 settings, 0 seeds"):
        fine_tune(decoder_features(CFG), params(), 16, task(lambda w: 1), ENCODE, grid=GRID, seeds=())
