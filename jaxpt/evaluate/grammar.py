"""A probabilistic context-free grammar: draws sentences, and knows the exact probability of any sentence.

    grammar = Grammar(rules, words)
    sentence = grammar.sample(np.random.default_rng(0))          # list of words
    grammar.log_probability(sentence)                            # inside algorithm, -inf outside the language

It is the oracle of `minimal_pairs`: a grammatical sentence has a finite log-probability, an ungrammatical one does not.
The grammar must not be left-recursive (Jelinek and Lafferty 1991 for the inside probability).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence

import numpy as np

from jaxpt.core.names import nearest_error
from jaxpt.evaluate.scoring import Scores, ScoreTexts

Rules = Mapping[str, Sequence[tuple[float, tuple[str, ...]]]]


class Grammar:
    """Rules and words with probabilities.

    Args:
      rules: symbol -> (weight, symbols and words) productions; weights are normalised.
      words: preterminal -> its words, equally likely. A form of a word has the same place in every preterminal that is
        made from the same words, so that `minimal_pairs` can exchange forms.
      start: the symbol of a sentence.

    Raises:
      ValueError: a symbol with no positive weight, without words, left-recursive, or in both tables.
    """

    def __init__(self, rules: Rules, words: Mapping[str, Sequence[str]], start: str = "S") -> None:
        both = set(rules) & set(words)
        if both:
            raise ValueError(f"symbols with rules and words: {sorted(both)}")
        if start not in rules:
            raise nearest_error("start symbol", start, rules)
        self.start, self.words = start, {name: tuple(w) for name, w in words.items()}
        self.rules = {name: _normalised(name, productions) for name, productions in rules.items()}
        self._chance = {name: _counted(name, w) for name, w in self.words.items()}
        self._cumulative = {name: np.cumsum([p for p, _ in r]) for name, r in self.rules.items()}
        self._first: dict[str, frozenset[str]] = {}
        for name in self.rules:
            self._first_words(name, ())

    @functools.cached_property
    def vocabulary(self) -> tuple[str, ...]:
        """Every word, sorted."""
        symbols = {s for productions in self.rules.values() for _, right in productions for s in right}
        literals = {s for s in symbols if s not in self.rules and s not in self.words}
        return tuple(sorted(literals | {w for words in self.words.values() for w in words}))

    def sample(self, rng: np.random.Generator, symbol: str | None = None) -> list[str]:
        """Words drawn from a symbol, by default a sentence. A name that is no symbol is a word."""
        symbol = self.start if symbol is None else symbol
        if symbol in self.words:
            choices = self.words[symbol]
            return [choices[int(rng.integers(len(choices)))]]
        if symbol not in self.rules:
            return [symbol]
        chosen = int(np.searchsorted(self._cumulative[symbol], rng.random(), side="right"))
        right = self.rules[symbol][min(chosen, len(self.rules[symbol]) - 1)][1]
        return [word for part in right for word in self.sample(rng, part)]

    def log_probability(self, sentence: Sequence[str]) -> float:
        """ln of the sum over all derivations; -inf if there is none."""
        total = self._inside(tuple(sentence), self.start, 0, {}).get(len(sentence), 0.0)
        return math.log(total) if total > 0 else -math.inf

    def _inside(
        self, sentence: tuple[str, ...], symbol: str, start: int, memory: dict[tuple[str, int], dict[int, float]]
    ) -> dict[int, float]:
        """end -> probability that `symbol` yields sentence[start:end]"""
        if start >= len(sentence):
            return {}
        if symbol in self._chance:
            chance = self._chance[symbol].get(sentence[start], 0.0)
            return {start + 1: chance} if chance else {}
        if symbol not in self.rules:
            return {start + 1: 1.0} if sentence[start] == symbol else {}
        if sentence[start] not in self._first[symbol]:
            return {}
        known = memory.get((symbol, start))
        if known is not None:
            return known
        found: dict[int, float] = {}
        for chance, right in self.rules[symbol]:
            ends = {start: chance}
            for part in right:
                following: dict[int, float] = {}
                for end, p in ends.items():
                    for after, q in self._inside(sentence, part, end, memory).items():
                        following[after] = following.get(after, 0.0) + p * q
                ends = following
                if not ends:
                    break
            for end, p in ends.items():
                found[end] = found.get(end, 0.0) + p
        memory[symbol, start] = found
        return found

    def _first_words(self, symbol: str, path: tuple[str, ...]) -> frozenset[str]:
        """The words that `symbol` can begin with."""
        if symbol in path:
            raise ValueError(f"the grammar is left-recursive: {' -> '.join([*path, symbol])}")
        if symbol in self.words:
            return frozenset(self.words[symbol])
        if symbol not in self.rules:
            return frozenset((symbol,))
        if symbol not in self._first:
            starts = [self._first_words(right[0], (*path, symbol)) for _, right in self.rules[symbol]]
            self._first[symbol] = frozenset().union(*starts)
        return self._first[symbol]


def oracle(grammar: Grammar) -> ScoreTexts:
    """The grammar itself as a scorer of whole sentences (words between spaces).

    Raises:
      ValueError: (of the scorer) a context that is not empty.
    """

    def score(pairs: Sequence[tuple[str, str]]) -> Scores:
        if any(context for context, _ in pairs):
            raise ValueError("a grammar scores whole sentences, without a context")
        sentences = [text.split() for _, text in pairs]
        found = np.array([grammar.log_probability(s) for s in sentences])
        return Scores(found, np.isfinite(found), np.array([len(s) for s in sentences]))

    return score


def _normalised(
    name: str, productions: Sequence[tuple[float, tuple[str, ...]]]
) -> tuple[tuple[float, tuple[str, ...]], ...]:
    kept = [(float(w), tuple(right)) for w, right in productions if w > 0]
    if not kept or not all(right for _, right in kept):
        raise ValueError(f"symbol {name!r} needs a production with a positive weight, and none that is empty")
    total = sum(w for w, _ in kept)
    return tuple((w / total, right) for w, right in kept)


def _counted(name: str, words: Sequence[str]) -> dict[str, float]:
    if not words:
        raise ValueError(f"preterminal {name!r} has no words")
    return {word: words.count(word) / len(words) for word in words}
