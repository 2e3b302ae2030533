"""The area under the ROC curve is the chance of the right order, and all discriminators are judged on the same text."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from jaxpt.core import spec as specs
from jaxpt.core import trees
from jaxpt.evaluate.replaced_tokens import auc, detection
from jaxpt.models import encoder
from jaxpt.models.generator import Generator
from jaxpt.objectives.corruption import Masking
from jaxpt.objectives.replaced_tokens import ReplacedTokens

MODEL = encoder.Config(
    vocab_size=16, layers=1, width=16, heads=2, ffn=24, initializer_stddev=0.3, learned_positions=16, rtd_head="token"
)
CFG = ReplacedTokens(model=MODEL, masking=Masking(mask_id=3, vocab_size=16, rate=0.3), generator=Generator(width=0.5))


def batches():
    rng = np.random.default_rng(0)
    real = np.arange(16) < np.asarray([16, 11, 5, 0])[:, None]
    for _ in range(3):
        yield {"inputs": (rng.integers(5, 16, (4, 16)) * real).astype(np.int32), "segment_ids": real.astype(np.int32)}


def test_the_area_is_the_chance_of_the_right_order():
    rng = np.random.default_rng(0)
    positive, negative = rng.integers(2, 9, 40), rng.integers(0, 7, 60)
    pairs = positive[:, None] - negative
    assert auc(positive, negative) == pytest.approx((pairs > 0).mean() + (pairs == 0).mean() / 2)
    assert auc(np.asarray([2.0]), np.asarray([1.0])) == 1
    with pytest.raises(ValueError, match="got 0 positive and 1 negative"):
        auc(np.zeros(0), np.zeros(1))


def test_all_are_judged_on_the_same_replacements():
    """One that says the same of all tokens has an area of one half; what it says changes nothing about the text."""
    tree = specs.init(jax.random.key(0), CFG.spec())
    generator, judge = tree["generator"], CFG.discriminator(tree)
    silent = trees.map_with_path(lambda path, x: x * (not path.startswith("rtd/out")), judge)
    found, blind = (detection(CFG, j, generator, batches()) for j in (judge, silent))
    assert blind["auc"] == blind["auc_chosen"] == 0.5
    assert found["base_rate"] == blind["base_rate"] == pytest.approx(0.3, abs=0.06)
    assert found["auc"] != 0.5 and found == detection(CFG, judge, generator, batches())
