"""Smoothed unigram models of documents, and word sets drawn from them (PROP, arXiv 2010.10137, sections 3.1 and 3.2):

    P(w | D) = (tf(w, D) + mu P(w | C)) / (|D| + mu)                mu = mean length of a document
    P(w | C) = df(w) / sum of df                                    document frequencies, as in the released code
    score(S) = sum over w in S of log P(w | D)

    collection = Collection.of(texts)
    rng = np.random.default_rng((seed, step))
    more, less, gap = collection.pair(rng, i)                       # word sets of one length, the likelier one first
    collection.said(rng, more)                                      # as words

Sets are drawn from P(w | D) truncated to `candidates`: all of the document's words, and others by df. With stem=True a word
is its Porter stem (the extra `stems`), as an option of the release has it: a drawn stem is said as one of the words that the
collection has for it, in proportion to log(1 + count); scores are of stems.

Reconstructed or chosen here: words are runs of letters, lowercased, of three letters or more, without a short list of
function words (the release has the lists of NLTK and INQUERY). A drawn word is kept with probability sqrt(t/f) + t/f,
t = 1e-4, f its share of the collection, and 1 where the collection has it fewer than 100 times, for which the release
raises. Scores are of the whole smoothed model. The documents themselves are never changed.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Float, Int

from jaxpt.data.corpora.python_install import FUNCTION_WORDS
from jaxpt.data.documents import DataError

WORD = re.compile(r"[a-z]{3,}")
THRESHOLD, RARE = 1e-4, 100
CANDIDATES, BEYOND = 500, 100  # words that sets are drawn from; others of longer documents, beyond their own number


def words(text: str) -> list[str]:
    """The words of a text that count."""
    return [w for w in WORD.findall(text.lower()) if w not in FUNCTION_WORDS]


@functools.cache
def stemmer() -> Callable[[str], str]:
    """A word's Porter stem, by NLTK, whose additions to the algorithm the release has, too.

    Raises:
      ImportError: NLTK is not installed.
    """
    try:
        from nltk.stem.porter import PorterStemmer
    except ImportError as error:
        raise ImportError("stems of words need nltk: pip install 'jaxpt[stems]'") from error
    return functools.cache(PorterStemmer().stem)


@dataclasses.dataclass(frozen=True, eq=False)
class Forms:
    """The words of a stem, and how often each is said for it, which sums to 1."""

    words: tuple[str, ...]
    share: Float[np.ndarray, " N"]

    @classmethod
    def of(cls, counts: Counter[str]) -> Forms:
        """In proportion to log(1 + count)."""
        found = sorted(counts)
        weight = np.log1p([counts[word] for word in found])
        return cls(tuple(found), weight / weight.sum())


@dataclasses.dataclass(frozen=True, eq=False)
class Collection:
    """Term statistics of a set of documents. V words in alphabetical order; row d of tf is word[start[d] : start[d + 1]].

    Attributes:
      vocabulary: [V] the words, or their stems.
      start, word, count: tf as a sparse matrix: how often document d has which word.
      background: [V] P(w | C).
      keep: [V] probability that a drawn word is kept.
      length: [D] words of each document.
      forms: [V] the words of each stem; empty where words are themselves.
    """

    vocabulary: tuple[str, ...]
    start: Int[np.ndarray, " D+1"]
    word: Int[np.ndarray, " N"]
    count: Int[np.ndarray, " N"]
    background: Float[np.ndarray, " V"]
    keep: Float[np.ndarray, " V"]
    length: Int[np.ndarray, " D"]
    forms: tuple[Forms, ...] = ()

    @classmethod
    def of(cls, texts: Sequence[str], minimum: int = 2, stem: bool = False) -> Collection:
        """Of these texts and the words, or stems, that they have at least `minimum` times (10 in the release).

        Raises:
          DataError: no word is so frequent.
          ImportError: stems are wanted and NLTK is not installed.
        """
        term = stemmer() if stem else str
        forms: dict[str, Counter[str]] = {}
        found = []
        for text in texts:
            said = words(text)
            found.append(Counter(map(term, said)))
            for word in said if stem else ():
                forms.setdefault(term(word), Counter())[word] += 1
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
        surfaces = tuple(Forms.of(forms[term]) for term in kept) if stem else ()
        return cls(tuple(kept), start, flat[:, 0], flat[:, 1], background, keep, length, surfaces)

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

    def candidates(
        self, rng: np.random.Generator, document: int, number: int = CANDIDATES
    ) -> tuple[Int[np.ndarray, " K"], Float[np.ndarray, " K"]]:
        """(words that sets of the document are drawn from, in order; how often each is, which sums to 1).

        All words of the document are there. Others, drawn by df with replacement, fill up to `number` at most; of a document
        with as many or more words of its own, so many others are drawn and 100 more.

        Raises:
          ValueError: no candidate is wanted.
        """
        if number < 1:
            raise ValueError(f"need at least 1 candidate word, got {number}")
        own = self.word[self.start[document] : self.start[document + 1]]
        more = number - len(own) if number > len(own) else len(own) + BEYOND
        chosen = np.union1d(own, rng.choice(len(self.background), more, p=self.background))
        share = self.model(document)[chosen] * self.keep[chosen]
        return chosen, share / share.sum()

    def pair(
        self, rng: np.random.Generator, document: int, mean: float = 3.0, candidates: int = CANDIDATES
    ) -> tuple[Int[np.ndarray, " N"], Int[np.ndarray, " N"], float]:
        """Two sets of equally many words, with replacement and in the order of drawing, and by how much the first scores
        higher than the second; of a tie, the second drawn is the first.

        Args:
          mean: of the Poisson distribution of the sets' length, which is drawn again while it is 0.
          candidates: number of `candidates`.
        """
        p = self.model(document)
        chosen, share = self.candidates(rng, document, candidates)
        number = positive_poisson(rng, mean)
        one, two = chosen[rng.choice(len(chosen), (2, number), p=share)]
        gap = float(np.log(p[one]).sum() - np.log(p[two]).sum())
        return (one, two, gap) if gap > 0 else (two, one, -gap)

    def said(self, rng: np.random.Generator, chosen: Int[np.ndarray, " N"]) -> list[str]:
        """Words as they are said: themselves, or one of their stem's, drawn."""
        if not self.forms:
            return [self.vocabulary[i] for i in chosen]
        return [forms.words[rng.choice(len(forms.words), p=forms.share)] for forms in (self.forms[i] for i in chosen)]

    def ids(self, found: Sequence[str]) -> Int[np.ndarray, " N"]:
        """Of those of some words that the collection knows, or whose stems it does."""
        term = stemmer() if self.forms else str
        known = (self._known.get(term(word)) for word in found)
        return np.asarray([i for i in known if i is not None], np.int64)

    @functools.cached_property
    def _known(self) -> dict[str, int]:
        return {term: i for i, term in enumerate(self.vocabulary)}

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
