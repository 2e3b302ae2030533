"""Well-read students: every baseline is a list of stages, and the stages can be run."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import jax
import numpy as np
import pytest

from jaxpt import pretrain
from jaxpt.core import spec as specs
from jaxpt.data.corpora import cache_dir
from jaxpt.data.records import TokenRecords
from jaxpt.data.shards import Item, write_folder
from jaxpt.data.vocabularies import ByteVocabulary
from jaxpt.objectives.distillation import Distillation
from jaxpt.objectives.masked_lm import MaskedLM
from jaxpt.training.checkpoint import restore_params_only
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


@pytest.fixture(scope="module")
def setting(tmp_path_factory):
    """Two updates on forty texts; the student has one layer of width 16, the teacher two of width 24."""
    texts = [" ".join(f"{p}{i * j % 7}" for j in range(20)) for p in ("ab", "cd") for i in range(10)]
    items = [Item(f"python-code:{t[:2]}.m{i}", "code", len(t), t) for i, t in enumerate(texts)]
    tiny = recipe.PRESETS["tiny"]
    small = {"layers": 1, "width": 16, "heads": 2, "ffn": 24, "vocab_size": 260, "learned_positions": 16}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAXPT_CACHE", str(tmp_path_factory.mktemp("cache")))
        folder = write_folder(cache_dir() / "own", {"train": items, "validation": items[:2]}, ByteVocabulary())
        records = TokenRecords(folder, "train")
        patch.setattr(pretrain.DataConfig, "open", lambda self, size: pretrain.Data(self, records, records))
        yield dataclasses.replace(
            tiny, model=dataclasses.replace(tiny.model, **small),
            teacher=dataclasses.replace(tiny.teacher, **small | {"layers": 2, "width": 24}),
            data=dataclasses.replace(
                tiny.data, vocabulary="bytes", sequence_length=9, labelled=8, per_document=4, batch_size=4, documents=3
            ),
            run=dataclasses.replace(tiny.run, steps=2), mlm_steps=2, teacher_mlm_steps=2,
        )  # fmt: skip


def test_an_arm_of_all_stages_is_trained_and_judged(setting):
    found = recipe.trial(arm="pre-training, distillation", point={"rate": 1e-3}, seed=1, setting=setting)
    assert found.ledger["steps"] == 2 and 0 <= found.value <= 1
    assert found.extra["classes"] == 2 and found.extra["pre-training tokens"] == 2 * 4 * 9
    folder = recipe.teach(dataclasses.replace(setting, classes=2))  # there already
    assert np.load(folder / "transfer.npy").shape[1] == 2
    assert 0 <= found.extra["agreement"] <= 1


def test_a_truncated_student_begins_with_the_bottom_layers_of_what_was_pretrained(setting, monkeypatch, tmp_path):
    """Bit for bit: of a deeper model of its own width, or of the teacher if that is as wide; nothing of it is trained."""
    first = recipe.ARMS[recipe.TRUNCATED](setting)
    assert first.model.layers == 2 and first.model.width == 16 and first.run.steps == setting.teacher_mlm_steps
    plan = recipe.pretrained_distillation(recipe.PLANS[recipe.TRUNCATED], setting)
    assert [(s.name, s.start) for s in plan] == [("distil", "truncated")]

    folder = Path(recipe.taught(setting).targets).parent
    whole = restore_params_only(folder / "deep" / "mlm", specs.abstract(first.objective.on(first.model).spec()))
    found = recipe.truncated(setting, folder)
    assert same(found["embedding"], whole["embedding"])
    assert same(found["blocks"], jax.tree.map(lambda x: x[:1], whole["blocks"]))
    assert not same(found["blocks"], jax.tree.map(lambda x: x[1:], whole["blocks"]))

    as_wide = dataclasses.replace(setting, teacher=recipe.deep(setting).model)
    (tmp_path / "runs").symlink_to(folder / "deep")
    assert same(recipe.truncated(as_wide, tmp_path), found)

    class Begins(Exception):
        """In the place of the stages, of which tests/test_stages.py has those that start from given parameters."""

    def begins(stages, out, given):
        raise Begins([(s.name, s.start) for s in stages], given)

    monkeypatch.setattr(recipe, "run_stages", begins)
    with pytest.raises(Begins) as caught:
        recipe.trial(arm=recipe.TRUNCATED, point={"rate": 1e-3}, seed=1, setting=setting)
    ran, given = caught.value.args
    assert ran == [("distil", "truncated")] and same(given["truncated"], found)


def same(a, b):
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return all(np.array_equal(np.asarray(x), np.asarray(y)) for x, y in pairs)
