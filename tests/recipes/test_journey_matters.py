"""The Journey Matters' recipe: dense models as large as a pruned one is on average, and at the end."""

from __future__ import annotations

import pytest

from jaxpt import weights
from jaxpt.models import decoder
from recipes import journey_matters as recipe


@pytest.mark.parametrize("preset", ["tiny", "small", "paper_162m"])
def test_matched_dense_models_are_as_large_as_they_should_be(preset):
    setting = recipe.PRESETS[preset]
    whole = recipe.prunable(setting)
    assert whole == _entries(recipe.dense(setting))
    for share in (0.2, 0.4, 0.6, 0.766):
        found = recipe.dense_of(setting, share * whole)
        assert _entries(found) == pytest.approx(share * whole, rel=0.02)
        assert found.model.width % (2 * setting.model.heads) == 0
    assert recipe.plan(setting, 0.8).average / whole == pytest.approx(0.399, abs=0.01)


def test_the_final_model_has_a_fifth_of_the_entries():
    arm = recipe.ARMS["80 %"](recipe.TINY)
    masked = weights.matrices(decoder.spec(arm.model)["blocks"])
    assert all(isinstance(w, weights.MaskedMatrix) for w in masked.values())
    assert recipe._counts(recipe.TINY, "80 %")[2] == pytest.approx(0.2 * recipe.prunable(recipe.TINY))


def _entries(cfg):
    return cfg.model.layers * sum(
        w.shape[0] * w.shape[1] for w in weights.matrices(decoder.spec(cfg.model)["blocks"]).values()
    )
