"""Smoothed unigram models of documents, and word sets drawn from them (PROP, arXiv 2010.10137, sections 3.1 and 3.2):

    P(w | D) = (tf(w, D) + mu P(w | C)) / (|D| + mu)                mu = mean length of a document
    P(w | C) = df(w) / sum of df                                    document frequencies, as in the released code
    score(S) = sum over w in S of log P(w | D)

    collection = Collection.of(texts)
    rng = np.random.default_rng((seed, step))
    more, less = collection.pair(rng, i)                            # word sets of one length, the likelier one first

Reconstructed or chosen here: words are runs of letters, lowercased, of three letters or more, without a short list of
function words (the release has the lists of NLTK and INQUERY); no stems. A drawn word is kept with probability
sqrt(t/f) + t/f, t = 1e-4, f its share of the collection, and 1 where the collection has it fewer than 100 times, for which
the release raises. A set is drawn from P(w | D) over the document's words and up to `candidates` in all, the others drawn
anew by df; scores are of the whole smoothed model. The documents themselves are never changed.
"""

from __future__ import annotations

import dataclasses
import re
from collections import Counter
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int

from jaxpt.data.corpora.python_install import FUNCTION_WORDS
from jaxpt.data.documents import DataError

WORD = re.compile(r"[a-z]{3,}")
THRESHOLD, RARE = 1e-4, 100


def words(text: str) -> list[str]:
    """The words of a text that count."""
    return [w for w in WORD.findall(text.lower()) if w not in FUNCTION_WORDS]


@dataclasses.dataclass(frozen=True, eq=False)
class Collection:
    """Term statistics of a set of documents. V words in alphabetical order; row d of tf is word[start[d] : start[d + 1]].

    Attributes:
      vocabulary: [V] the words.
      start, word, count: tf as a sparse matrix: how often document d has which word.
      background: [V] P(w | C).
      keep: [V] probability that a drawn word is kept.
      length: [D] words of each document.
    """

    vocabulary: tuple[str, ...]
    start: Int[np.ndarray, " D+1"]
    word: Int[np.ndarray, " N"]
    count: Int[np.ndarray, " N"]
    background: Float[np.ndarray, " V"]
    keep: Float[np.ndarray, " V"]
    length: Int[np.ndarray, " D"]

    @classmethod
    def of(cls, texts: Sequence[str], minimum: int = 2) -> Collection:
        """Of these texts and the words that they have at least `minimum` times (10 in the release).

        Raises:
          DataError: no word is so frequent.
        """
        found = [Counter(words(text)) for text in texts]
        total: Counter[str] = Counter()
        for one in found:
            total.update(one)
        kept = sorted(w for w, n in total.items() if n >= minimum)
        if not kept:
            raise DataError(f"none of the words of {len(found)} documents comes {minimum} times")
        ids = {w: i for i, w in enumerate(kept)}
        rows = [sorted((ids[w], n) for w, n in one.items() if w in ids) for one in found]
        start = np.concatenate([[0], np.cumsum([len(row) for row in rows])])
        flat = np.asarray([pair for row in rows for pair in row], np.int64).reshape(-1, 2)
        document_frequency = np.bincount(flat[:, 0], minlength=len(kept)).astype(np.float64)
        frequency = np.asarray([total[w] for w in kept], np.float64)
        share = THRESHOLD / (frequency / frequency.sum())
        keep = np.where(frequency < RARE, 1.0, np.minimum(1.0, np.sqrt(share) + share))
        length = np.asarray([sum(n for _, n in row) for row in rows])
        background = document_frequency / document_frequency.sum()
        return cls(tuple(kept), start, flat[:, 0], flat[:, 1], background, keep, length)

    @property
    def mu(self) -> float:
        """The mean length of a document in words."""
        return float(self.length.mean())

    def model(self, document: int, mu: float | None = None) -> Float[np.ndarray, " V"]:
        """P(w | D) of every word."""
        mu = self.mu if mu is None else mu
        own = slice(self.start[document], self.start[document + 1])
        tf = np.zeros(len(self.vocabulary))
        tf[self.word[own]] = self.count[own]
        return smoothed(tf, self.background, mu)

    def pair(
        self, rng: np.random.Generator, document: int, mean: float = 3.0, candidates: int = 500
    ) -> tuple[Int[np.ndarray, " N"], Int[np.ndarray, " N"], float]:
        """Two sets of equally many words, with replacement and in the order of drawing, and by how much the first scores
        higher than the second; of a tie, the second drawn is the first.

        Args:
          mean: of the Poisson distribution of the sets' length, which is drawn again while it is 0.
        """
        p = self.model(document)
        own = self.word[self.start[document] : self.start[document + 1]]
        more = rng.choice(len(p), max(candidates - len(own), 0), p=self.background)
        chosen = np.union1d(own, more)
        share = p[chosen] * self.keep[chosen]
        number = positive_poisson(rng, mean)
        one, two = chosen[rng.choice(len(chosen), (2, number), p=share / share.sum())]
        gap = float(np.log(p[one]).sum() - np.log(p[two]).sum())
        return (one, two, gap) if gap > 0 else (two, one, -gap)

    def likelihood_of(self, query: Int[np.ndarray, " N"], tf: Int[np.ndarray, " V"]) -> float:
        """log P(query | D) of a document with these counts, what pairs are labelled by."""
        return float(np.log(smoothed(tf.astype(np.float64), self.background, self.mu)[query]).sum())


def smoothed(tf: Float[np.ndarray, " V"], background: Float[np.ndarray, " V"], mu: float) -> Float[np.ndarray, " V"]:
    """(tf + mu P(w | C)) / (|D| + mu).

    Raises:
      ValueError: mu below 0, or 0 of a document without words.
    """
    if mu < 0 or tf.sum() + mu <= 0:
        raise ValueError(f"need mu >= 0, and above 0 for a document without words; got {mu} and {tf.sum():g} words")
    return (tf + mu * background) / (tf.sum() + mu)


def positive_poisson(rng: np.random.Generator, mean: float) -> int:
    """A draw from a Poisson distribution, again while it is 0."""
    if not mean > 0:
        raise ValueError(f"need a mean above 0, got {mean}")
    while not (number := int(rng.poisson(mean))):
        pass
    return number
