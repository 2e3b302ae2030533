"""An n-gram language model: the control that says which answers a few neighbouring words give away.

    score = train(sequences, size=vocabulary.size, order=3, bos_id=vocabulary.bos_id)      # a ScoreTokens

Interpolated Witten-Bell smoothing (Witten and Bell 1991; Chen and Goodman 1998, section 2.6):

    p_n(w | h) = (c(h w) + t(h) p_(n-1)(w | h')) / (c(h) + t(h))

t(h) counts the different words seen after h, h' is h without its first word, and p_0 is uniform.
"""

from __future__ import annotations

import collections
import math
from collections.abc import Iterable, Sequence

import numpy as np

from jaxpt.evaluate.scoring import Request, Scores, ScoreTokens


def train(sequences: Iterable[Sequence[int]], size: int, order: int, bos_id: int) -> ScoreTokens:
    """A scorer of requests from token sequences, BOS not included.

    Args:
      size: of the vocabulary.
      order: 1 for single tokens, 2 for pairs, 3 for a trigram model.
    """
    if order < 1 or size < 1:
        raise ValueError(f"order and size must be positive, got {order} and {size}")
    counts: dict[tuple[int, ...], int] = collections.Counter()
    for sequence in sequences:
        padded = [bos_id] * (order - 1) + list(sequence)
        for end in range(order - 1, len(padded)):
            for n in range(order):
                counts[tuple(padded[end - n : end + 1])] += 1
    after: dict[tuple[int, ...], int] = collections.Counter()
    kinds: dict[tuple[int, ...], int] = collections.Counter()
    for gram, count in counts.items():
        after[gram[:-1]] += count
        kinds[gram[:-1]] += 1

    def probability(token: int, history: tuple[int, ...]) -> float:
        p = 1 / size
        for start in range(len(history), -1, -1):
            h = history[start:]
            if h in after:
                p = (counts.get((*h, token), 0) + kinds[h] * p) / (after[h] + kinds[h])
        return p

    def score(requests: Sequence[Request]) -> Scores:
        found = []
        for context, continuation in requests:
            padded = [bos_id] * order + list(context) + list(continuation)
            first = len(padded) - len(continuation)
            terms = (
                math.log(probability(padded[i], tuple(padded[i - order + 1 : i]))) for i in range(first, len(padded))
            )
            found.append(math.fsum(terms))
        lengths = np.array([len(r.continuation) for r in requests])
        return Scores(np.array(found), np.zeros(len(requests), bool), lengths)

    return score
