"""Minimal pairs: of a good and a bad sentence, which does the model find more likely?

    report = pair_accuracy(score_texts, pairs)       # report["accuracy"] is the mean over phenomena; chance is 0.5

A pair is right if the log-likelihood of the good sentence is higher; equal ones count one half, so that a model that knows
nothing has exactly 0.5. Pairs come from `grammar.minimal_pairs`, from BLiMP (arXiv 1912.00582) or EWoK (arXiv 2405.09605)
files.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from jaxpt.core.names import nearest_error
from jaxpt.data.documents import DataError
from jaxpt.evaluate.report import Report, fingerprint
from jaxpt.evaluate.scoring import ScoreTexts

VERSION = 1  # of the definition


@dataclasses.dataclass(frozen=True)
class Pair:
    """Attributes:
    good, bad: what is scored.
    phenomenon: accuracies are by phenomenon.
    good_context, bad_context: what each is given; empty for whole sentences.
    """

    good: str
    bad: str
    phenomenon: str
    good_context: str = ""
    bad_context: str = ""

    def swapped(self) -> Pair:
        """The same pair with good and bad exchanged."""
        return Pair(self.bad, self.good, self.phenomenon, self.bad_context, self.good_context)


def pair_accuracy(score: ScoreTexts, pairs: Sequence[Pair]) -> Report:
    """accuracy (mean over phenomena), accuracy/PHENOMENON, and accuracy_per_token (mean log-likelihoods; a diagnostic).

    `per_item` holds correct [N] (0, 0.5 or 1) and margin [N] in nats.

    Raises:
      ValueError: no pairs, or a log-likelihood that is NaN.
    """
    if not pairs:
        raise ValueError("there are no pairs to score")
    found = score([(p.good_context, p.good) for p in pairs] + [(p.bad_context, p.bad) for p in pairs])
    lengths = np.maximum(found.tokens, 1)
    good, bad = np.split(found.log_likelihood, 2)
    correct = preferred(good, bad)
    per_token = preferred(*np.split(found.log_likelihood / lengths, 2))
    phenomena = [p.phenomenon for p in pairs]
    each = by_phenomenon(correct, phenomena)
    values = {
        "accuracy": float(np.mean(list(each.values()))),
        **{f"accuracy/{name}": x for name, x in each.items()},
        "accuracy_per_token": float(np.mean(list(by_phenomenon(per_token, phenomena).values()))),
    }
    with np.errstate(invalid="ignore"):  # -inf - -inf: both impossible
        margin = np.where(good == bad, 0.0, good - bad)
    return Report(
        "minimal_pairs", VERSION, len(pairs), fingerprint(pairs), values, {"correct": correct, "margin": margin}
    )


def preferred(good: np.ndarray, bad: np.ndarray) -> np.ndarray:
    """1 where good is more likely, 0.5 where equal, 0 elsewhere."""
    if np.isnan(good).any() or np.isnan(bad).any():
        raise ValueError(f"the log-likelihood of pair {int(np.argmax(np.isnan(good) | np.isnan(bad)))} is NaN")
    return (good > bad) + 0.5 * (good == bad)


def by_phenomenon(correct: np.ndarray, phenomena: Sequence[str]) -> dict[str, float]:
    """Mean by phenomenon, in the order in which they first appear."""
    names = np.asarray(phenomena)
    return {name: float(correct[names == name].mean()) for name in dict.fromkeys(phenomena)}


def load_blimp(path: str | Path) -> list[Pair]:
    """The pairs of a BLiMP *.jsonl file, or of all in a folder. The phenomenon is the paradigm, "UID".

    Raises:
      DataError: a missing or empty file, a line that is not JSON or lacks a field; file and line are named.
    """
    fields = ("sentence_good", "sentence_bad", "UID")
    return [Pair(row["sentence_good"], row["sentence_bad"], row["UID"]) for row in _rows(path, fields)]


def load_ewok(path: str | Path, compare: Literal["contexts", "targets"] = "contexts") -> list[Pair]:
    """The pairs of an EWoK *.jsonl file, or of all in a folder; each row makes two. The phenomenon is the "Domain".

    Args:
      compare: "contexts" as in the paper: the same target after its own and the other context. "targets": both
        targets after the same context, as BabyLM's pipeline does.

    Raises:
      DataError: as for `load_blimp`.
    """
    if compare not in ("contexts", "targets"):
        raise nearest_error("comparison", compare, ("contexts", "targets"))
    pairs = []
    for row in _rows(path, ("Context1", "Context2", "Target1", "Target2", "Domain")):
        contexts, targets = (row["Context1"], row["Context2"]), (f" {row['Target1']}", f" {row['Target2']}")
        for i in (0, 1):
            own, other = (contexts[i], targets[i]), (contexts[1 - i], targets[1 - i])
            bad = (other[0], own[1]) if compare == "contexts" else (own[0], other[1])
            pairs.append(Pair(own[1], bad[1], row["Domain"], own[0], bad[0]))
    return pairs


def _rows(path: str | Path, fields: Sequence[str]) -> Iterator[Mapping[str, str]]:
    root = Path(path)
    files = sorted(root.glob("*.jsonl")) if root.is_dir() else [root]
    if not files:
        raise DataError(f"no *.jsonl file in {root}")
    for file in files:
        try:
            lines = file.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"cannot read {file}: {error}") from None
        if not any(line.strip() for line in lines):
            raise DataError(f"{file} is empty")
        yield from (_row(file, number, line, fields) for number, line in enumerate(lines, 1) if line.strip())


def _row(file: Path, number: int, line: str, fields: Sequence[str]) -> Mapping[str, str]:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise DataError(f"{file}, line {number} is not JSON: {error}") from None
    missing = [f for f in fields if not isinstance(row, dict) or not isinstance(row.get(f), str) or not row[f]]
    if missing:
        raise DataError(f"{file}, line {number} has no text in {', '.join(missing)}")
    return row
