"""Every recipe: all arms of all presets can be described, counted and scheduled, and the table of methods has a row each."""

from __future__ import annotations

import jax
import pytest

import recipes
from jaxpt import pretrain
from jaxpt.core import config, trees
from jaxpt.core import spec as specs

PRESETS = [(name, preset) for name in recipes.names() for preset in recipes.load(name).presets]


@pytest.mark.parametrize(("name", "preset"), PRESETS, ids=" ".join)
def test_every_arm_has_a_model_an_optimizer_and_events(name, preset):
    recipe = recipes.load(name)
    setting = recipe.preset(preset)
    assert recipe.method in recipe.arms and recipe.committed_preset in recipe.presets
    for arm, make in recipe.arms.items():
        cfg = make(setting)
        spec, optimizer = cfg.objective.on(cfg.model).spec(), cfg.optimizer.make(cfg.run.steps)
        state = jax.eval_shape(optimizer.init, specs.abstract(trees.split(spec)[0]))
        assert specs.count(spec) > 0 and jax.tree.leaves(state), arm
        assert pretrain.flops_per_step(cfg)(spec).nominal > 0
        for event in pretrain.scheduled(cfg, optimizer):
            assert any(event.due(step, cfg.run.steps) for step in range(1, cfg.run.steps + 1)), arm
        described = config.to_dict(cfg)
        assert described == config.to_dict(make(setting))


def test_papers_are_listed_once_a_recipe():
    found = [recipes.load(name) for name in recipes.names()]
    assert [r.name for r in found] == recipes.names()
    assert all(r.paper > 0 and r.says.endswith(".") for r in found)
