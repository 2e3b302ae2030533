"""Well-read students: every baseline is a list of stages, and the stages can be run."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from jaxpt import pretrain
from jaxpt.data.corpora import cache_dir
from jaxpt.data.records import TokenRecords
from jaxpt.data.shards import Item, write_folder
from jaxpt.data.vocabularies import ByteVocabulary
from jaxpt.objectives.distillation import Distillation
from jaxpt.objectives.masked_lm import MaskedLM
from recipes import well_read as recipe


def test_plans_are_stages_from_one_to_the_next():
    setting = recipe.PRESETS["tiny"]
    stages = recipe.pretrained_distillation(recipe.PLANS["all three"], setting)
    assert [(s.name, s.start) for s in stages] == [("mlm", None), ("distil", "mlm"), ("finetune", "distil")]
    assert [type(s.run.objective) for s in stages] == [MaskedLM, Distillation, Distillation]
    assert [s.run.data.part for s in stages] == ["general", "transfer", "labelled"]
    assert all(s.optimizer == "reset" for s in stages)
    assert stages[1].run.run.steps == stages[2].run.run.steps  # as many updates of the task in every arm
    assert sorted(arm for group in recipe.GROUPS for arm in group) == sorted(recipe.ARMS)
    with pytest.raises(ValueError, match="did you mean 'distil'"):
        recipe.stage(setting, "distill")


def test_an_arm_of_all_stages_is_trained_and_judged(monkeypatch, tmp_path):
    monkeypatch.setenv("JAXPT_CACHE", str(tmp_path))
    texts = [" ".join(f"{p}{i * j % 7}" for j in range(20)) for p in ("ab", "cd") for i in range(10)]
    items = [Item(f"python-code:{t[:2]}.m{i}", "code", len(t), t) for i, t in enumerate(texts)]
    folder = write_folder(cache_dir() / "own", {"train": items, "validation": items[:2]}, ByteVocabulary())
    records = TokenRecords(folder, "train")
    monkeypatch.setattr(pretrain.DataConfig, "open", lambda self, size: pretrain.Data(self, records, records))
    tiny = recipe.PRESETS["tiny"]
    small = {"layers": 1, "width": 16, "heads": 2, "ffn": 24, "vocab_size": 260, "learned_positions": 16}
    setting = dataclasses.replace(
        tiny, model=dataclasses.replace(tiny.model, **small), teacher=dataclasses.replace(tiny.teacher, **small),
        data=dataclasses.replace(
            tiny.data, vocabulary="bytes", sequence_length=9, labelled=8, per_document=4, batch_size=4, documents=3
        ),
        run=dataclasses.replace(tiny.run, steps=2), mlm_steps=2, teacher_mlm_steps=2,
    )  # fmt: skip
    found = recipe.trial(arm="pre-training, distillation", point={"rate": 1e-3}, seed=1, setting=setting)
    assert found.ledger["steps"] == 2 and 0 <= found.value <= 1
    assert found.extra["classes"] == 2 and found.extra["pre-training tokens"] == 2 * 4 * 9
    folder = recipe.teach(dataclasses.replace(setting, classes=2))  # there already
    assert np.load(folder / "transfer.npy").shape[1] == 2
    assert 0 <= found.extra["agreement"] <= 1
