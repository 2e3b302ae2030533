"""Windows of a classifier: parts that share no document with what is tested, gold and soft targets, stages on them."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
import pytest

from jaxpt import pretrain
from jaxpt.data.arrays import ArrayLoader
from jaxpt.data.records import TokenRecords
from jaxpt.data.shards import Item, write_folder
from jaxpt.data.vocabularies import ByteVocabulary
from jaxpt.labelled import WindowConfig, one_hot
from jaxpt.models import encoder
from jaxpt.objectives.distillation import Distillation
from jaxpt.optim import AdamConfig
from jaxpt.pretrain import Pretrain
from jaxpt.training.run import RunConfig

DATA = WindowConfig(vocabulary="bytes", sequence_length=9, labelled=12, per_document=4, documents=4, batch_size=4)


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    """Documents of three packages, each with letters of its own, and modules outside any."""
    rng = np.random.default_rng(0)
    names = [f"python-code:{p}.m{i}" for p in ("alpha", "beta", "gamma") for i in range(12)]
    names += [f"python-code:single{i}" for i in range(6)]
    firsts = [97 + 8 * min(i // 12, 2) for i in range(len(names))]
    texts = ["".join(map(chr, rng.integers(first, first + 8, 60))) for first in firsts]
    items = [Item(name, "code", 60, text) for name, text in zip(names, texts, strict=True)]
    folder = write_folder(
        tmp_path_factory.mktemp("prepared"), {"train": items, "validation": items[:2]}, ByteVocabulary()
    )
    return TokenRecords(folder, "train")


def rows(data):
    return set(map(bytes, data.inputs))


def test_parts_are_disjoint_and_nothing_tested_is_in_them(records):
    general, labelled, transfer = (
        dataclasses.replace(DATA, part=part).cut(records) for part in ("general", "labelled", "transfer")
    )
    assert labelled.known.names == ("alpha", "beta", "gamma")
    assert len(labelled.inputs) == 12 and labelled.inputs.shape[1] == 9
    assert not rows(labelled) & rows(transfer)
    assert rows(labelled) | rows(transfer) < rows(general)
    tested = set(map(bytes, labelled.tested()[0]))
    assert tested and not tested & rows(general)
    halves = [set(map(bytes, labelled.tested(part)[0])) for part in ("tuning", "report")]
    assert not halves[0] & halves[1] and halves[0] | halves[1] == tested
    assert (labelled.inputs[:, 0] == records.bos_id).all()
    assert general.targets is None and set(general.loader().batch(0)) == {"inputs", "sequence_ids"}
    assert (transfer.targets.sum(1) == 1).all()


def test_a_teacher_takes_the_place_of_labels_and_a_wrong_one_is_named(records, tmp_path):
    path = tmp_path / "teacher.npy"
    cfg = dataclasses.replace(DATA, part="transfer", teacher=str(path))
    with pytest.raises(ValueError, match="there is no file .*teacher.npy"):
        cfg.cut(records)
    count = len(dataclasses.replace(cfg, teacher=None).cut(records).inputs)
    soft = np.random.default_rng(0).dirichlet(np.ones(3), count)
    np.save(path, soft)
    np.testing.assert_allclose(cfg.cut(records).loader().arrays["target_probabilities"], soft, rtol=1e-6)
    for wrong, message in ((soft[1:], "the windows and classes are"), (soft * 2, "are no probabilities")):
        np.save(path, wrong)
        with pytest.raises(ValueError, match=message):
            cfg.cut(records)
    path.write_bytes(path.read_bytes()[:90])
    with pytest.raises(ValueError, match="holds no array"):
        cfg.cut(records)


def test_impossible_parts_are_named(records):
    for change, message in (
        ({"part": "labeled"}, "did you mean 'labelled'"),
        ({"classes": "packages"}, "did you mean 'package'"),
        ({"labelled": 10**6}, "labelled must be 1 to"),
    ):
        with pytest.raises(ValueError, match=message):
            dataclasses.replace(DATA, **change).cut(records)
    with pytest.raises(ValueError, match="classes of part 'labelled' is known with its text"):
        DATA.batch_shapes(4, 9)
    assert dataclasses.replace(DATA, part="general").batch_shapes(4, 9)["inputs"].shape == (4, 9)


def test_fine_tuning_is_distillation_from_a_teacher_that_knows_bit_for_bit(records, tmp_path, monkeypatch):
    """And the run learns the windows it is given."""
    gold = DATA.cut(records)
    path = tmp_path / "gold.npy"
    np.save(path, gold.targets)
    monkeypatch.setattr(pretrain.DataConfig, "open", lambda self, size: pretrain.Data(self, records, records))
    model = encoder.Config(layers=1, width=16, heads=2, ffn=24, vocab_size=259, learned_positions=16, pooler=True)
    states = []
    for teacher in (None, str(path)):
        cfg = Pretrain(
            model=model, objective=Distillation(classes=3), data=dataclasses.replace(DATA, teacher=teacher),
            optimizer=AdamConfig(rate=1e-2), run=RunConfig(steps=40, quiet=True, log_every=1),
        )  # fmt: skip
        result = pretrain.run(cfg)
        states.append(jax.device_get(result.state.params))
        losses = [loss for _, loss in result.curve]
        assert np.mean(losses[-5:]) < np.mean(losses[:5]) - 0.3
        assert set(result.evaluation) == {"loss"}
    for a, b in zip(*map(jax.tree.leaves, states), strict=True):
        np.testing.assert_array_equal(a, b)


def test_the_loader_shows_every_example_once_an_epoch():
    loader = ArrayLoader({"x": np.arange(12), "y": np.arange(12) * 2}, 4, 0, tokens=5)
    seen = [loader.batch(t) for t in range(6)]
    assert all((b["y"] == 2 * b["x"]).all() for b in seen)
    first, second = (np.concatenate([b["x"] for b in seen[i : i + 3]]) for i in (0, 3))
    assert sorted(first.tolist()) == sorted(second.tolist()) == list(range(12)) and first.tolist() != second.tolist()
    stream = loader.batches(2)
    np.testing.assert_array_equal(next(stream)["x"], seen[2]["x"])
    assert loader.ledger(6) == {"tokens": 120.0, "unique_tokens": 60.0}
    other = ArrayLoader({"x": np.arange(12), "y": np.arange(12)}, 4, 0, tokens=5)
    assert other.fingerprint != loader.fingerprint
    with pytest.raises(ValueError, match="one length, got"):
        ArrayLoader({"x": np.arange(3), "y": np.arange(4)}, 2, 0, tokens=1)
    assert one_hot(np.array([1, 0]), 2).tolist() == [[0, 1], [1, 0]]
