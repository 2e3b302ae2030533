"""Multiple choice by log-likelihood, as lm-evaluation-harness 0.4 counts it.

    report = multiple_choice(score_texts, items)

of LL_j = log p(delimiter + choice_j | context):
accuracy              argmax LL_j
accuracy_characters   argmax LL_j / characters of choice_j, delimiter excluded (its acc_norm)
accuracy_bytes        argmax LL_j / UTF-8 bytes of choice_j                    (its acc_bytes)
accuracy_information  argmax LL_j - log p(delimiter + choice_j)                (its acc_mutual_info)

The first of equal ones wins, as there. A cloze item scores the choice's text, a letter item "A", "B", ... after a list of
the choices: `letters` makes one of the other, and the two are different tasks.
"""

from __future__ import annotations

import dataclasses
import string
from collections.abc import Sequence

import numpy as np

from jaxpt.evaluate.report import Report, fingerprint
from jaxpt.evaluate.scoring import ScoreTexts

VERSION = 1  # of the definition


@dataclasses.dataclass(frozen=True)
class Item:
    """A question. `answer` is the index of the right choice; `delimiter` stands between context and choice."""

    context: str
    choices: tuple[str, ...]
    answer: int
    delimiter: str = " "

    def __post_init__(self) -> None:
        if len(self.choices) < 2 or not all(self.choices) or not 0 <= self.answer < len(self.choices):
            raise ValueError(
                f"an item needs two or more choices, none empty, and an answer among them; got {self.choices} and "
                f"answer {self.answer}"
            )


def multiple_choice(score: ScoreTexts, items: Sequence[Item], *, name: str = "multiple_choice") -> Report:
    """The four accuracies, and chance. `per_item` holds correct [N] of each by the same names.

    Raises:
      ValueError: no items, or a log-likelihood that is NaN.
    """
    if not items:
        raise ValueError("there are no items to score")
    pairs = [(i.context, i.delimiter + c) for i in items for c in i.choices]
    alone = list(dict.fromkeys(("", continuation) for _, continuation in pairs))
    found = score(pairs + alone).log_likelihood
    if np.isnan(found).any():
        raise ValueError("a log-likelihood is NaN")
    unconditional = dict(zip(alone, found[len(pairs) :].tolist(), strict=True))
    correct: dict[str, list[bool]] = {}
    start = 0
    for item in items:
        of_item = found[start : start + len(item.choices)]
        before = np.array([unconditional["", item.delimiter + c] for c in item.choices])
        start += len(item.choices)
        for rule, values in _normalised(of_item, before, item.choices).items():
            correct.setdefault(rule, []).append(int(np.argmax(values)) == item.answer)
    per_item = {rule: np.array(x, np.float64) for rule, x in correct.items()}
    chance = float(np.mean([1 / len(i.choices) for i in items]))
    means = {rule: float(x.mean()) for rule, x in per_item.items()} | {"chance": chance}
    return Report(name, VERSION, len(items), fingerprint(items), means, per_item)


def few_shot(items: Sequence[Item], examples: Sequence[Item], shots: int, seed: int = 0) -> list[Item]:
    """Each item after `shots` answered examples, drawn for it by (seed, index), joined by blank lines.

    Raises:
      ValueError: fewer examples than shots (an item is not its own example).
    """
    found = []
    for index, item in enumerate(items):
        others = [e for e in examples if e != item]
        if len(others) < shots:
            raise ValueError(f"{shots} examples asked for, but there are only {len(others)} besides the item itself")
        chosen = np.random.default_rng([seed, index]).permutation(len(others))[:shots]
        shown = [e.context + e.delimiter + e.choices[e.answer] for e in (others[k] for k in chosen)]
        found.append(dataclasses.replace(item, context="\n\n".join([*shown, item.context])))
    return found


def letters(item: Item, question: str = "{context}\n{options}\nAnswer:") -> Item:
    """The letter form of a cloze item (MMLU's): choices are listed, and "A", "B", ... are scored."""
    names = tuple(string.ascii_uppercase[: len(item.choices)])
    options = "\n".join(f"{name}. {choice}" for name, choice in zip(names, item.choices, strict=True))
    return Item(question.format(context=item.context, options=options), names, item.answer)


def _normalised(found: np.ndarray, unconditional: np.ndarray, choices: Sequence[str]) -> dict[str, np.ndarray]:
    return {
        "accuracy": found,
        "accuracy_characters": found / np.array([len(c) for c in choices]),
        "accuracy_bytes": found / np.array([len(c.encode("utf-8")) for c in choices]),
        "accuracy_information": found - unconditional,
    }
