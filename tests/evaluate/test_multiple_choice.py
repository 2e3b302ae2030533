"""Multiple choice: the four rules by hand, few-shot prompts, letters; the harness is held against in test_lm_eval."""

from __future__ import annotations

import math

import numpy as np
import pytest

from jaxpt.evaluate.multiple_choice import Item, few_shot, letters, multiple_choice
from jaxpt.evaluate.scoring import Scores


def scorer(values):
    """Log-likelihoods from a table (context, continuation) -> value."""

    def score(pairs):
        found = np.array([values[pair] for pair in pairs], np.float64)
        return Scores(found, found < -1e9, np.ones(len(pairs), int))

    return score


def test_the_four_rules_by_hand():
    item = Item("q", ("aaaa", "ö"), 1)
    values = {("q", " aaaa"): -4.0, ("q", " ö"): -1.5, ("", " aaaa"): -8.0, ("", " ö"): -2.0}
    found = multiple_choice(scorer(values), [item])
    # -4 < -1.5; per character -1 > -1.5; per byte -1 < -0.75; information 4 > 0.5
    assert dict(found.values) == {
        "accuracy": 1, "accuracy_characters": 0, "accuracy_bytes": 1, "accuracy_information": 0, "chance": 0.5,
    }  # fmt: skip
    assert (found.items, found.version, len(found.data)) == (1, 1, 16)


def test_items_with_different_numbers_of_choices_and_chance():
    items = [Item("a", ("x", "y"), 0), Item("b", ("x", "y", "z", "w"), 3, delimiter="")]
    values = {(c, d + x): float(ord(x)) for c, d in (("a", " "), ("b", ""), ("", " "), ("", "")) for x in "xyzw"}
    found = multiple_choice(scorer(values), items)
    assert found["chance"] == pytest.approx((1 / 2 + 1 / 4) / 2)
    assert found.per_item["accuracy"].tolist() == [0, 0]  # w is the lowest letter, z the highest
    assert found["accuracy_information"] == 0.5  # all 0: the first wins


def test_few_shot_examples_are_answered_seeded_and_not_the_item_itself():
    items = [Item(f"q{i}", (f"right{i}", "wrong"), 0) for i in range(6)]
    found = few_shot(items, items, 3, seed=1)
    for shot, item in zip(found, items, strict=True):
        *examples, question = shot.context.split("\n\n")
        assert question == item.context and len(set(examples)) == 3
        assert all(e in {f"q{i} right{i}" for i in range(6) if f"q{i}" != item.context} for e in examples)
    assert few_shot(items, items, 3, seed=1) == found != few_shot(items, items, 3, seed=2)
    assert few_shot(items, items, 0) == items
    with pytest.raises(ValueError, match="6 examples asked for, but there are only 5"):
        few_shot(items, items, 6)


def test_the_letter_form():
    assert letters(Item("Why {x}?", ("so", "no"), 1)) == Item("Why {x}?\nA. so\nB. no\nAnswer:", ("A", "B"), 1)


def test_bad_items_are_refused():
    for choices, answer in ((("a",), 0), (("a", ""), 0), (("a", "b"), 2)):
        with pytest.raises(ValueError, match="two or more choices, none empty"):
            Item("q", choices, answer)
    with pytest.raises(ValueError, match="no items"):
        multiple_choice(scorer({}), [])
    nan = {(c, f" {x}"): math.nan for c in ("q", "") for x in "ab"}
    with pytest.raises(ValueError, match="NaN"):
        multiple_choice(scorer(nan), [Item("q", ("a", "b"), 0)])
