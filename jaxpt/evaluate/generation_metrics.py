"""Numbers of generated text: how varied it is, how it repeats itself, how sure the model was.

    found = generation_metrics(tokens)       # [K, W] ids: K texts of W tokens each, contexts not included

All texts have the same length W, or rates of repetition are not comparable: sample with the stop token disabled, or give a
`mask` and read the numbers with care. Distinct-n (arXiv 1510.03055), Self-BLEU (arXiv 1802.01886), repetition (arXiv
1908.04319); the area under the divergence curve follows MAUVE (arXiv 2102.01454).
"""

from __future__ import annotations

import collections
import math
from collections.abc import Sequence

import numpy as np
from scipy.cluster.vq import kmeans2

from jaxpt.evaluate.report import Report, fingerprint
from jaxpt.evaluate.scoring import ScoreTexts

VERSION = 1  # of the definitions
LOOP_WINDOW, LOOP_PERIOD = 32, 8
SELF_BLEU_TEXTS = 100
MAUVE_TEXTS, MAUVE_SCALE = 500, 5.0
Tokens = np.ndarray  # [K, W] int
Texts = Sequence[Sequence[int]]


def generation_metrics(tokens: Tokens, mask: np.ndarray | None = None) -> Report:
    """distinct_1 to distinct_4, type_token_ratio, repetition_2 to _4, self_bleu, loop_rate of texts [K, W].

    Args:
      mask: [K, W], False where a token does not belong to its text.

    Raises:
      ValueError: no texts, or a text without tokens.
    """
    texts = _texts(tokens, mask)
    values = {f"distinct_{n}": distinct(texts, n) for n in (1, 2, 3, 4)}
    values["type_token_ratio"] = type_token_ratio(texts)
    values |= {f"repetition_{n}": repetition(texts, n) for n in (2, 3, 4)}
    values |= {"self_bleu": self_bleu(texts), "loop_rate": loop_rate(texts)}
    return Report("generation", VERSION, len(texts), fingerprint([np.asarray(t) for t in texts]), values)


def distinct(texts: Texts, n: int) -> float:
    """Different n-grams over all n-grams, pooled over the texts; 0 if there are none."""
    grams = [g for text in texts for g in ngrams(text, n)]
    return len(set(grams)) / len(grams) if grams else 0.0


def type_token_ratio(texts: Texts) -> float:
    """Different tokens over tokens of each text, averaged."""
    return float(np.mean([len(set(t)) / len(t) for t in texts]))


def repetition(texts: Texts, n: int) -> float:
    """Share of n-grams of a text that it has had before, averaged over texts that have n-grams."""
    rates = [1 - len(set(g)) / len(g) for g in (ngrams(t, n) for t in texts) if g]
    return float(np.mean(rates)) if rates else 0.0


def loop_rate(texts: Texts) -> float:
    """Share of texts whose last 32 tokens repeat with a period of at most 8; shorter texts do not count as loops."""

    def loops(text: Sequence[int]) -> bool:
        end = list(text[-LOOP_WINDOW:])
        return len(end) == LOOP_WINDOW and any(end[p:] == end[:-p] for p in range(1, LOOP_PERIOD + 1))

    return float(np.mean([loops(t) for t in texts]))


def self_bleu(texts: Texts, most: int = SELF_BLEU_TEXTS, seed: int = 0) -> float:
    """Mean BLEU-4 of each text against all others, of at most `most` texts drawn once; 0 for a single text."""
    if len(texts) > most:
        chosen = np.random.default_rng(seed).permutation(len(texts))[:most]
        texts = [texts[i] for i in sorted(chosen.tolist())]
    if len(texts) < 2:
        return 0.0
    return float(np.mean([bleu(t, [*texts[:i], *texts[i + 1 :]]) for i, t in enumerate(texts)]))


def bleu(text: Sequence[int], references: Texts, order: int = 4) -> float:
    """BLEU (Papineni et al. 2002): geometric mean of clipped n-gram precisions, brevity penalty by the closest reference
    (the shorter of two), no smoothing."""
    logs = []
    for n in range(1, order + 1):
        counts = collections.Counter(ngrams(text, n))
        most: collections.Counter[tuple[int, ...]] = collections.Counter()
        for reference in references:
            most |= collections.Counter(ngrams(reference, n))
        matched = sum((counts & most).values())
        if not matched:
            return 0.0
        logs.append(math.log(matched / sum(counts.values())))
    closest = min((abs(len(r) - len(text)), len(r)) for r in references)[1]
    return min(1.0, math.exp(1 - closest / len(text))) * math.exp(sum(logs) / order)


def predictive(logits: np.ndarray, mask: np.ndarray | None = None) -> dict[str, float]:
    """entropy (nats) and top_mass (probability of the most likely token), means over positions, of logits [K, W, V]."""
    x = np.asarray(logits, np.float64)
    log_p = x - x.max(-1, keepdims=True)
    log_p = log_p - np.log(np.exp(log_p).sum(-1, keepdims=True))
    p = np.exp(log_p)
    entropy = -np.where(p > 0, p * np.where(p > 0, log_p, 0), 0).sum(-1)
    weight = np.ones(x.shape[:-1]) if mask is None else np.asarray(mask, np.float64)
    return {
        "entropy": float((entropy * weight).sum() / weight.sum()),
        "top_mass": float((p.max(-1) * weight).sum() / weight.sum()),
    }


def reference_score(score: ScoreTexts, texts: Sequence[str]) -> float:
    """Mean log-likelihood per token of texts under a separately trained model."""
    found = score([("", text) for text in texts])
    return float(found.log_likelihood.sum() / found.tokens.sum())


def divergence_area(model: np.ndarray, human: np.ndarray, seed: int = 0, least: int = MAUVE_TEXTS) -> float:
    """Area under the divergence curve of two sets of embeddings [N, D] and [M, D]; 1 for equal sets, towards 0 otherwise.

    Both are counted in N/10 k-means clusters; the curve is (exp(-c KL(q|r)), exp(-c KL(p|r))) with c = 5 and r between p
    and q.

    Raises:
      ValueError: fewer than `least` texts on a side: the estimate would be noise.
    """
    if min(len(model), len(human)) < least:
        raise ValueError(f"need at least {least} texts on each side, got {len(model)} and {len(human)}")
    points = np.concatenate([model, human]).astype(np.float64)
    clusters = max(2, min(len(model), len(human)) // 10)
    labels = kmeans2(points, clusters, minit="++", rng=np.random.default_rng(seed))[1]
    p, q = (np.bincount(x, minlength=clusters) / len(x) for x in np.split(labels, [len(model)]))
    curve = [(0.0, 1.0)]
    for share in np.linspace(1e-6, 1 - 1e-6, 100):
        mixed = share * p + (1 - share) * q
        curve.append(tuple(float(np.exp(-MAUVE_SCALE * _divergence(x, mixed))) for x in (q, p)))  # type: ignore[arg-type]
    curve.append((1.0, 0.0))
    x, y = np.array(sorted(curve, key=lambda c: (c[0], -c[1]))).T
    return float(np.trapezoid(y, x))


def ngrams(text: Sequence[int], n: int) -> list[tuple[int, ...]]:
    """The n-grams of a text in order."""
    items = [int(t) for t in text]
    return list(zip(*(items[i:] for i in range(n)), strict=False))


def _texts(tokens: Tokens, mask: np.ndarray | None) -> list[list[int]]:
    ids = np.asarray(tokens)
    if ids.ndim != 2 or not ids.size:
        raise ValueError(f"tokens must be [K, W] with K and W above 0, got shape {ids.shape}")
    keep = np.ones(ids.shape, bool) if mask is None else np.asarray(mask, bool)
    if keep.shape != ids.shape or not keep.any(-1).all():
        raise ValueError(f"the mask {keep.shape} must fit tokens {ids.shape} and leave something of every text")
    return [row[k].tolist() for row, k in zip(ids, keep, strict=True)]


def _divergence(p: np.ndarray, q: np.ndarray) -> float:
    inside = p > 0
    return float((p[inside] * np.log(p[inside] / q[inside])).sum())
