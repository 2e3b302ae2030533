"""Pseudo-log-likelihood of encoders (arXiv 1910.14659): sum over tokens of log p(token | all others), each masked in turn.

    score = pseudo_scorer(masked_logits, params, vocabulary, mask_id=..., max_length=128)
    pair_accuracy(score, pairs)                                   # in a column of its own: not a likelihood
    region_accuracy(masked_logits, params, vocabulary, pairs, mask_id=..., max_length=128)

The encoder is any `masked_logits(params, ids [B, S], segment_ids [B, S]) -> [B, S, V]`; segment_ids are 0 at padding.

token   the token alone is masked
word    and what follows it in its word, so that the rest of a long word does not give it away (arXiv 2305.10588)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np

from jaxpt.core.names import nearest_error
from jaxpt.core.types import Array, Float, Int, Params
from jaxpt.data.vocabularies import Vocabulary
from jaxpt.evaluate.minimal_pairs import Pair, by_phenomenon, preferred
from jaxpt.evaluate.report import Report, fingerprint
from jaxpt.evaluate.scoring import Row, Scorer, Scores, ScoreTexts, from_logits

VERSION = 1  # of the definition
MaskedLogits = Callable[[Params, Int[Array, "B S"], Int[Array, "B S"]], Float[Array, "B S V"]]
Frame = tuple[Sequence[int], Sequence[int]]  # ids before and after a text, e.g. ([CLS], [SEP])


def pseudo_scorer(
    masked_logits: MaskedLogits,
    params: Params,
    vocabulary: Vocabulary,
    *,
    mask_id: int,
    max_length: int,
    frame: Frame | None = None,
    mask: Literal["token", "word"] = "word",
) -> ScoreTexts:
    """A scorer of (context, continuation) pairs: only the tokens of the continuation are masked and summed.

    Args:
      frame: ids put before and after a text; BOS and EOS of the vocabulary by default.
    """
    if mask not in ("token", "word"):
        raise nearest_error("mask", mask, ("token", "word"))
    scorer = _scorer(masked_logits, max_length)
    before, after = _frame(vocabulary, frame)

    def score(pairs: Sequence[tuple[str, str]]) -> Scores:
        rows: list[Row] = []
        owner: list[int] = []
        for index, (context, continuation) in enumerate(pairs):
            given = _words(vocabulary, context)
            words = [*given, *_words(vocabulary, continuation)]
            made = _one_by_one(words, sum(map(len, given)), before, after, mask_id, mask)
            rows, owner = rows + made, owner + [index] * len(made)
        found = scorer.rows(params, rows)
        sums = np.bincount(owner, found.log_likelihood, len(pairs))
        greedy = np.bincount(owner, ~found.greedy, len(pairs)) == 0
        return Scores(sums, greedy, np.bincount(owner, minlength=len(pairs)))

    return score


def region_accuracy(
    masked_logits: MaskedLogits,
    params: Params,
    vocabulary: Vocabulary,
    pairs: Sequence[Pair],
    *,
    mask_id: int,
    max_length: int,
    frame: Frame | None = None,
) -> Report:
    """Minimal pairs by the words that differ: all of them masked at once, their log-probabilities summed.

    Raises:
      ValueError: a pair of equal sentences, or with contexts.
    """
    scorer = _scorer(masked_logits, max_length)
    before, after = _frame(vocabulary, frame)
    rows = []
    for pair in pairs:
        if pair.good_context or pair.bad_context or pair.good == pair.bad:
            raise ValueError(f"need two different sentences without contexts, got {pair}")
        halves = [_words(vocabulary, text) for text in (pair.good, pair.bad)]
        start, end = _region(*halves)
        rows += [_all_at_once(words, start, len(words) - end, before, after, mask_id) for words in halves]
    found = scorer.rows(params, rows).log_likelihood.reshape(-1, 2)
    correct = preferred(found[:, 0], found[:, 1])
    each = by_phenomenon(correct, [p.phenomenon for p in pairs])
    values = {"accuracy": float(np.mean(list(each.values())))} | {f"accuracy/{k}": v for k, v in each.items()}
    per_item = {"correct": correct, "margin": found[:, 0] - found[:, 1]}
    return Report("minimal_pairs (masked region)", VERSION, len(pairs), fingerprint(pairs), values, per_item)


def _scorer(masked_logits: MaskedLogits, max_length: int) -> Scorer:
    return Scorer(from_logits(lambda p, b: masked_logits(p, b["inputs"], b["segment_ids"])), max_length)


def _frame(vocabulary: Vocabulary, frame: Frame | None) -> tuple[list[int], list[int]]:
    before, after = ([vocabulary.bos_id], [vocabulary.eos_id]) if frame is None else frame
    return list(before), list(after)


def _words(vocabulary: Vocabulary, text: str) -> list[list[int]]:
    """Token ids word by word, a space belonging to the word after it; no token reaches across the border of two words."""
    parts = text.split(" ")
    pieces = [parts[0], *(f" {word}" for word in parts[1:])]
    return [ids for ids in map(vocabulary.encode, pieces) if ids]


def _one_by_one(
    words: list[list[int]], first: int, before: list[int], after: list[int], mask_id: int, mask: str
) -> list[Row]:
    """A row for each token from number `first` on."""
    ids = np.array([*before, *(t for w in words for t in w), *after], np.int32)
    rows, at = [], len(before)
    for word in words:
        for k in range(len(word)):
            if at + k - len(before) >= first:
                hidden = slice(at + k, at + (len(word) if mask == "word" else k + 1))
                rows.append(_row(ids, hidden, slice(at + k, at + k + 1), mask_id))
        at += len(word)
    return rows


def _all_at_once(
    words: list[list[int]], start: int, end: int, before: list[int], after: list[int], mask_id: int
) -> Row:
    sizes = [len(before), *(len(w) for w in words)]
    ids = np.array([*before, *(t for w in words for t in w), *after], np.int32)
    region = slice(sum(sizes[: start + 1]), sum(sizes[: end + 1]))
    return _row(ids, region, region, mask_id)


def _row(ids: np.ndarray, hidden: slice, scored: slice, mask_id: int) -> Row:
    inputs, weight = ids.copy(), np.zeros(len(ids), np.float32)
    inputs[hidden], weight[scored] = mask_id, 1
    return Row(inputs, ids, weight)


def _region(good: list[list[int]], bad: list[list[int]]) -> tuple[int, int]:
    """(words equal at the start, words equal at the end)"""
    shortest = min(len(good), len(bad))
    start = next((i for i in range(shortest) if good[i] != bad[i]), shortest)
    end = next((i for i in range(shortest - start) if good[-1 - i] != bad[-1 - i]), shortest - start)
    return start, end
