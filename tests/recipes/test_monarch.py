"""The recipe of Monarch matrices: the paper's counts, and arms of the sizes and budgets that they are said to have."""

from __future__ import annotations

import dataclasses

import pytest

from jaxpt import pretrain
from jaxpt.core import spec as specs
from jaxpt.models import decoder, vit
from jaxpt.training import surgery
from recipes import monarch
from recipes.common import parameters


@pytest.mark.parametrize(("arm", "millions"), [("dense", 354.82), ("monarch", 166.08)])
def test_parameters_of_gpt2_medium(arm, millions):
    setting = monarch.PRESETS["paper_gpt2_medium"]
    setting = dataclasses.replace(setting, model=dataclasses.replace(setting.model, vocab_size=50_257))
    assert parameters(monarch.ARMS[arm](setting)) / 1e6 == pytest.approx(millions, abs=0.005)


@pytest.mark.parametrize(("kind", "share"), [("low rank", 0.0), ("block-diagonal", 0.02)])
def test_arms_of_monarchs_size_have_it(kind, share):
    def text(kind: str) -> int:
        return specs.count(decoder.spec(monarch.of_kind(monarch.SMALL, kind).model)["blocks"])

    def vision(kind: str) -> int:
        return specs.count(vit.spec(monarch.vision(monarch.SMALL, kind)[0])["blocks"])

    for count in (text, vision):
        assert abs(count(kind) / count("monarch") - 1) <= share
        assert count("monarch") < 0.55 * count("dense")


def test_reverse_sparsification_switches_once_and_dense_stops_at_its_operations():
    setting = monarch.SMALL
    cfg = monarch.reverse(setting)
    (event,) = cfg.events
    assert isinstance(event, surgery.Switch)
    assert event.ramps.updates(cfg.run.steps) == (450,)
    assert cfg.optimizer.ramps == event.ramps

    def cost(kind: str) -> float:
        of = monarch.of_kind(setting, kind)
        return pretrain.flops_per_step(of)(decoder.spec(of.model)).nominal

    early = monarch.dense_early(setting)
    spent = 450 * cost("monarch") + 50 * cost("dense")
    assert early.run.steps * cost("dense") == pytest.approx(spent, abs=cost("dense"))
    assert 250 < early.run.steps < 450


def test_the_planted_matrix_is_a_monarch_matrix_and_its_samples_have_unit_variance():
    setting = dataclasses.replace(monarch.SMALL, planted=64)
    batch, other = (monarch.planted(setting, 0, 512, part) for part in ("training", "report"))
    assert float(batch["y"].std()) == pytest.approx(1, abs=0.02)
    assert abs(batch["x"] - other["x"]).max() > 1


def test_a_regression_is_scored_against_the_noise():
    setting = dataclasses.replace(monarch.SMALL, planted=32, planted_steps=600, planted_rows=2048)
    values = {
        kind: monarch.regression_trial(arm=f"planted, {kind}", point={"rate": 6e-3}, seed=0, setting=setting).value
        for kind in ("monarch", "low rank")
    }
    assert 0.9 < values["monarch"] < 1.5
    assert values["low rank"] > 20 * values["monarch"]
