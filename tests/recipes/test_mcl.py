"""MCL: a soup of courses is the average of what its trials kept, judged as they are, with the operations of all of them."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
import pytest

from jaxpt import pretrain, proxy
from jaxpt.combine.soups import soup
from jaxpt.comparison import Trial, TrialStore
from jaxpt.core import spec as specs
from jaxpt.data.records import TokenRecords
from jaxpt.data.shards import Item, write_folder
from jaxpt.data.vocabularies import ByteVocabulary
from recipes import common
from recipes import mcl as recipe

POINT, SEED = (("rate", 1e-3),), 4


@pytest.fixture(scope="module")
def setting(tmp_path_factory):
    """One layer of width 16 on a few lines of bytes."""
    items = [Item(f"d{i}", "code", 40, f"line {i} of {i * i} and {i % 3}, " * 3) for i in range(24)]
    folder = write_folder(
        tmp_path_factory.mktemp("text") / "own", {"train": items, "validation": items}, ByteVocabulary()
    )
    records = TokenRecords(folder, "validation")
    tiny = recipe.PRESETS["tiny"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pretrain.DataConfig, "open", lambda self, size: pretrain.Data(self, records, records))
        yield dataclasses.replace(
            tiny, data=dataclasses.replace(tiny.data, vocabulary="bytes", sequence_length=16, batch_size=4),
            model=dataclasses.replace(tiny.model, layers=1, width=16, heads=2, ffn=24, vocab_size=264),
        )  # fmt: skip


def test_soups_are_made_of_what_trials_kept(setting, monkeypatch, tmp_path):
    """Without training anything again, but for what is gone; a run that diverged has no soup."""
    drawn = {}

    def trained(cfg, *, rate, init_seed, order_seed, look=None):
        """In the place of a run: initial values that only the arm tells apart, and the costs 1, 10 and 100."""
        number = [make(setting).objective for make in recipe.ARMS.values()].index(cfg.objective)
        params = drawn[number] = specs.init(jax.random.key(number), cfg.objective.on(cfg.model).spec())
        ledger = {"steps": 2, "tokens": 6.0, "unique_tokens": 5.0, "flops_nominal": 10**number, "flops_executed": 1}
        return Trial(0.0, 0.0, ledger, [], extra=look(params))

    monkeypatch.setattr(proxy, "score", trained)
    trials = {
        arm: {SEED: recipe.trial(arm=arm, point=dict(POINT), seed=SEED, setting=setting, folder=tmp_path)}
        for arm in recipe.ARMS
    }
    kept = [TrialStore(tmp_path, setting).path(arm, POINT, SEED).with_suffix(".npy") for arm in recipe.ARMS]
    cfg = recipe.ARMS["MCL"](setting)
    for number, path in enumerate(kept):
        found = common.kept(path, cfg)
        assert jax.tree.structure(found) == jax.tree.structure(drawn[number])
        assert all(np.array_equal(a, b) for a, b in zip(*map(jax.tree.leaves, (found, drawn[number])), strict=True))

    given = {"setting": setting, "folder": tmp_path, "seed": SEED, "point": {}}
    pool = {arm: (POINT, found) for arm, found in trials.items()}
    uniform = recipe.soup_trial(arm=recipe.UNIFORM, pool=pool, **given)
    assert uniform.ledger | {"flops_nominal": 111, "steps": 6, "tokens": 18.0, "unique_tokens": 5.0} == uniform.ledger
    assert uniform.extra["members"] == list(recipe.ARMS)
    by_hand = recipe.looked_at(soup(list(drawn.values())), cfg, setting)
    assert uniform.extra["end"] == by_hand["end"] and uniform.value == by_hand["end"]["replaced: wrong"]
    assert uniform.tuning_value == by_hand["tuning"]["replaced: wrong"]

    greedy = recipe.soup_trial(arm=recipe.GREEDY, pool=pool, **given)
    best = min(trials, key=lambda arm: trials[arm][SEED].tuning_value)
    assert greedy.extra["members"][0] == best and greedy.ledger == uniform.ledger
    assert greedy.tuning_value <= trials[best][SEED].tuning_value + 1e-9

    again = []
    monkeypatch.setattr(proxy, "train", lambda cfg, **how: again.append(how) or _Trained(drawn[0]))
    kept[0].unlink()
    assert recipe.soup_trial(arm=recipe.UNIFORM, pool=pool, **given).value == uniform.value
    assert again == [{"rate": 1e-3, "init_seed": SEED, "order_seed": SEED}] and kept[0].is_file()

    broken = pool | {"MCL": (POINT, {SEED: Trial(np.inf, np.inf, {}, [])})}
    found = recipe.soup_trial(arm=recipe.GREEDY, pool=broken, **given)
    assert found.value == np.inf and found.extra == {"diverged": "no soup without ['MCL']"}


@dataclasses.dataclass
class _Trained:
    params: object
