"""What a model has kept of its training data: overlaps of generated text, extraction, exposure, membership.

overlap(generated, training)                      # longest common run, shares of 8- and 13-grams
extraction(continue_, sequences, prefix=25)       # share of training texts continued word for word (arXiv 2012.07805)
exposure(canary_loss, losses_of_alternatives)     # log2 of the canary's rank (arXiv 1802.08232)
membership(member_scores, other_scores)           # AUC, and true positives at 1% false positives (arXiv 2112.03570)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from scipy import stats

from jaxpt.evaluate.generation_metrics import Texts, ngrams

Continue = Callable[[Sequence[Sequence[int]], int], Sequence[Sequence[int]]]  # prefixes, steps -> greedy tokens


def overlap(texts: Texts, training: Texts, sizes: Sequence[int] = (8, 13)) -> dict[str, float]:
    """longest_run (tokens, mean over texts), and ngram_N: share of a text's n-grams that occur in the training texts."""
    runs = longest_runs(texts, training)
    values = {"longest_run": float(np.mean(runs))}
    for n in sizes:
        known = {g for text in training for g in ngrams(text, n)}
        shares = [np.mean([g in known for g in grams]) for grams in (ngrams(t, n) for t in texts) if grams]
        values[f"ngram_{n}"] = float(np.mean(shares)) if shares else 0.0
    return values


def longest_runs(texts: Texts, training: Texts) -> list[int]:
    """Per text, the longest run of tokens that occurs in one training text (a suffix automaton of the training texts)."""
    automaton = _Automaton()
    for text in training:
        automaton.add([int(t) for t in text])
    return [automaton.longest([int(t) for t in text]) for text in texts]


def extraction(continue_: Continue, sequences: Texts, prefix: int = 25, length: int = 25) -> float:
    """Share of sequences of which the greedy continuation of the first `prefix` tokens is the next `length`, exactly.

    Raises:
      ValueError: a sequence shorter than prefix + length.
    """
    if prefix < 1 or length < 1 or any(len(s) < prefix + length for s in sequences):
        shortest = min((len(s) for s in sequences), default=0)
        raise ValueError(f"need sequences of {prefix} + {length} tokens or more, the shortest has {shortest}")
    found = continue_([list(s[:prefix]) for s in sequences], length)
    right = [list(f[:length]) == list(s[prefix : prefix + length]) for f, s in zip(found, sequences, strict=True)]
    return float(np.mean(right))


def extraction_sweep(
    continue_: Continue, sequences: Texts, prefixes: Sequence[int], length: int = 25
) -> dict[int, float]:
    """`extraction` by length of the prefix, each time of the same last `length` tokens of the longest prefix's target."""
    longest = max(prefixes)
    return {k: extraction(continue_, [s[longest - k :] for s in sequences], k, length) for k in prefixes}


def exposure(canary: float, alternatives: Sequence[float] | np.ndarray) -> float:
    """log2 |R| - log2 rank of the canary's loss among all candidates R (itself included); ties share the worst rank."""
    losses = np.asarray(alternatives, np.float64)
    rank = 1 + int((losses <= canary).sum())
    return math.log2(len(losses) + 1) - math.log2(rank)


def rouge_l_recall(text: Sequence[int], reference: Sequence[int]) -> float:
    """Longest common subsequence over the length of the reference: above 0.9, a prompt counts as leaked."""
    if not len(reference):
        raise ValueError("the reference is empty")
    a, b = np.asarray(text), np.asarray(reference)
    row = np.zeros(len(b) + 1, int)
    for x in a:
        take = np.where(b == x, row[:-1] + 1, 0)
        row[1:] = np.maximum.accumulate(np.maximum(row[1:], take))
    return float(row[-1] / len(b))


def min_k(nats: Sequence[float] | np.ndarray, share: float = 0.2) -> float:
    """Mean log-probability of the least likely `share` of tokens (Min-K%, arXiv 2310.16789); higher for members."""
    if not 0 < share <= 1 or not len(nats):
        raise ValueError(f"need tokens and a share in (0, 1], got {len(nats)} tokens and {share}")
    worst = np.sort(np.asarray(nats, np.float64))[::-1][: max(1, math.floor(share * len(nats)))]
    return float(-worst.mean())


def membership(
    members: Sequence[float] | np.ndarray, others: Sequence[float] | np.ndarray, draws: int = 1000, seed: int = 0
) -> dict[str, float]:
    """auc and tpr_at_1_fpr of scores that should be higher for members, each with _low and _high of a 95% bootstrap."""
    a, b = np.asarray(members, np.float64), np.asarray(others, np.float64)
    if not len(a) or not len(b) or not np.isfinite([*a, *b]).all():
        raise ValueError(f"need finite scores of both kinds, got {len(a)} members and {len(b)} others")
    rng = np.random.default_rng(seed)
    drawn = [_membership(rng.choice(a, len(a)), rng.choice(b, len(b))) for _ in range(draws)]
    found: dict[str, float] = {}
    for i, name in enumerate(("auc", "tpr_at_1_fpr")):
        low, high = np.quantile([d[i] for d in drawn], [0.025, 0.975])
        found |= {name: _membership(a, b)[i], f"{name}_low": float(low), f"{name}_high": float(high)}
    return found


def _membership(members: np.ndarray, others: np.ndarray) -> tuple[float, float]:
    ranks = stats.rankdata(np.concatenate([members, others]))
    auc = (ranks[: len(members)].sum() - len(members) * (len(members) + 1) / 2) / (len(members) * len(others))
    allowed = math.floor(0.01 * len(others))
    bound = np.sort(others)[::-1][allowed]  # at most 1% of the others lie strictly above
    return float(auc), float((members > bound).mean())


class _Automaton:
    """A suffix automaton of several sequences (Blumer et al. 1985): which runs of tokens occur in any of them."""

    def __init__(self) -> None:
        self.next: list[dict[int, int]] = [{}]
        self.link, self.length = [-1], [0]

    def add(self, sequence: Sequence[int]) -> None:
        last = 0
        for token in sequence:
            last = self._extend(last, token)

    def longest(self, sequence: Sequence[int]) -> int:
        state = size = best = 0
        for token in sequence:
            while state and token not in self.next[state]:
                state = self.link[state]
                size = self.length[state]
            if token in self.next[state]:
                state, size = self.next[state][token], size + 1
            best = max(best, size)
        return best

    def _extend(self, last: int, token: int) -> int:
        if token in self.next[last]:
            known = self.next[last][token]
            return known if self.length[known] == self.length[last] + 1 else self._clone(last, token, known)
        new = self._state({}, 0, self.length[last] + 1)
        at = last
        while at >= 0 and token not in self.next[at]:
            self.next[at][token] = new
            at = self.link[at]
        if at >= 0:
            known = self.next[at][token]
            self.link[new] = known if self.length[known] == self.length[at] + 1 else self._clone(at, token, known)
        return new

    def _clone(self, at: int, token: int, known: int) -> int:
        copy = self._state(dict(self.next[known]), self.link[known], self.length[at] + 1)
        self.link[known] = copy
        while at >= 0 and self.next[at].get(token) == known:
            self.next[at][token] = copy
            at = self.link[at]
        return copy

    def _state(self, following: dict[int, int], link: int, length: int) -> int:
        self.next.append(following)
        self.link.append(link)
        self.length.append(length)
        return len(self.next) - 1
