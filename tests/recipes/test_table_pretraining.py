"""Pretraining on tables: every arm is a list of stages with equal fine-tuning, and the stages can be run and judged."""

from __future__ import annotations

import dataclasses

import pytest

from jaxpt.evaluate import tables
from jaxpt.objectives.pairs import Pairs
from jaxpt.objectives.table_denoising import TableDenoising
from recipes import table_pretraining as recipe


def small():
    tiny = recipe.PRESETS["tiny"]
    data = dataclasses.replace(
        tiny.data, examples=24, tested=12, batch_size=4, target_length=64,
        tables=dataclasses.replace(
            tiny.data.tables, sources=("entities",), schemas=196, per_schema=1, vocabulary="bpe:300", batch_size=4,
            sequence_length=159, evaluation_rows=6,
        ),
    )  # fmt: skip
    model = dataclasses.replace(tiny.model, layers=1, width=16, heads=2, ffn=24, vocab_size=320, unroll=1)
    return dataclasses.replace(
        tiny, model=model, data=data, pretraining_steps=2, run=dataclasses.replace(tiny.run, steps=2), hidden_length=60
    )


def test_arms_differ_in_their_pretraining_alone():
    setting = recipe.PRESETS["small"]
    found = {arm: recipe.stages(setting, arm) for arm in recipe.PLANS}
    assert [[(s.name, s.start) for s in found[arm]] for arm in (recipe.NONE, recipe.METHOD)] == [
        [("tune", None)], [("mixture", None), ("tune", "mixture")],
    ]  # fmt: skip
    assert len({s[-1].run for s in found.values()}) == 1 and isinstance(found[recipe.NONE][0].run.objective, Pairs)
    before = [found[arm][0].run for arm in (recipe.CONTROL, recipe.SPANS, recipe.METHOD)]
    assert all(isinstance(run.objective, TableDenoising) and run.run.steps == 400 for run in before)
    assert [run.objective.rates[0] for run in before] == [1.0, 1.0, 0.25]
    assert [run.data.shuffled for run in before] == [True, False, False]
    with pytest.raises(ValueError, match="did you mean 'mixture'"):
        recipe.stage(setting, "mixtures")


def test_an_arm_is_trained_and_judged():
    setting = small()
    found = recipe.trial(arm=recipe.METHOD, point={"rate": 1e-3}, seed=1, setting=setting)
    assert found.ledger["steps"] == 2 and 0 <= found.value <= 1 and 0 <= found.tuning_value <= 1
    assert found.extra["pretraining tokens"] == 2 * 4 * 159 and 0 <= found.extra["stated cells"] <= 1
    assert set(setting.data.tasks) < set(found.extra)


def test_a_model_that_knows_the_answers_is_told_so(monkeypatch):
    """Decoding replaced by the wanted tokens: every score is 1."""
    setting = small()
    questions = setting.data.open(320)
    known = {
        row.tobytes(): target
        for row, target in zip(*[questions.rows("report")[1][n] for n in ("inputs", "targets")], strict=True)
    }
    monkeypatch.setattr(
        tables, "greedy", lambda params, model, rows, steps, eos: [known[row.tobytes()] for row in rows["inputs"]]
    )
    assert tables.accuracy(None, setting.model, questions, "report") == {"lookup": 1.0, "entailment": 1.0, "sql": 1.0}
    objective = setting.denoising(setting.mixture).on(setting.model)
    data, seen = setting.data.tables.open(320), {}

    def wanted(params, model, rows, steps, eos):
        seen.update(rows)
        return rows["labels"][:, :steps]

    monkeypatch.setattr(tables, "greedy", wanted)
    assert tables.stated_cells(None, objective, data, "report") == 1.0
    sentinels = (seen["inputs"] >= 320 - setting.sentinels).sum(1)
    assert (sentinels == 1).all()  # one cell of each table, behind a sentinel
    monkeypatch.setattr(tables, "greedy", lambda params, model, rows, steps, eos: 0 * rows["labels"][:, :steps])
    assert tables.stated_cells(None, objective, data, "report") == 0.0
    with pytest.raises(ValueError, match="has a cell that its context states"):
        none = dataclasses.replace(data.cfg)
        object.__setattr__(data, "cfg", none)
        monkeypatch.setattr(type(data), "held_out", lambda self, part: {k: 0 * x for k, x in recipe_rows(data).items()})
        tables.stated_cells(None, objective, data, "report")


def recipe_rows(data):
    from jaxpt.data.tables.batches import stacked

    return stacked([data.row(unit) for unit in data.cfg.units("report")[:2]])
