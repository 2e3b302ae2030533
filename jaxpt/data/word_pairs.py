"""Pairs of word sets with the document they were drawn from, as batches of token rows (PROP, arXiv 2010.10137, section 3.3).

    [CLS] words [SEP] document [SEP]          token types 0 up to the first [SEP], 1 after; padding 0

    data = WordPairs(corpora=("python-docstrings",)).open(vocab_size=4224)
    data.loader().batch(0)["inputs"]          # [B, 2, S]: the likelier set first; a pair is one element of the batch

A pair is an axis, not two neighbouring rows, so that no shuffling and no cutting of the batch can part it. Rows are a
function of (seed, step, number of the pair). The document is cut to fit; its statistics are of all of it. [CLS], [SEP] and
[MASK] are the last three ids of the model's vocabulary.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from jaxpt.core.types import Params
from jaxpt.data import vocabularies
from jaxpt.data.arrays import OneSize, stacked
from jaxpt.data.documents import DataError
from jaxpt.data.held_out import Part
from jaxpt.data.prepare import TextTask, prepared
from jaxpt.data.records import TokenRecords
from jaxpt.data.word_statistics import CANDIDATES, Collection
from jaxpt.evaluate.bits_per_byte import loss_over
from jaxpt.sharding import local_rows

Rows = dict[str, np.ndarray]
ROWS = ("inputs", "token_types", "segment_ids", "unit_ids")


class Special(NamedTuple):
    """Ids of the special tokens of a model with so many ids."""

    cls: int
    sep: int
    mask: int

    @classmethod
    def of(cls, vocab_size: int) -> Special:
        """The last three."""
        return cls(vocab_size - 3, vocab_size - 2, vocab_size - 1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class WordPairs(OneSize):
    """Which documents, and how pairs of word sets become batches.

    Attributes:
      corpora, vocabulary, validation: as for `jaxpt.pretrain.DataConfig`.
      sequence_length, batch_size: tokens of a row S, pairs per update B.
      words: mean number of words of a set before zeros are drawn again (the release sets it to the task's mean query).
      candidates: so many words, or as many as a document has and more, are what its sets are drawn from.
      stem: statistics are of stems, and sets say one of a stem's words; needs the extra `stems`.
      evaluation_pairs: so many held-out pairs are scored, of one document each.
      seed: of the order of the documents and of the pairs.
    """

    corpora: tuple[str, ...] = ("python-docstrings",)
    vocabulary: str = "bpe:4096"
    validation: float = 0.15
    sequence_length: int = 96
    batch_size: int = 16
    words: float = 3.0
    candidates: int = CANDIDATES
    stem: bool = False
    evaluation_pairs: int = 256
    seed: int = 0

    def batch_shapes(self, pairs: int, length: int) -> dict[str, jax.ShapeDtypeStruct]:
        """Names, shapes and dtypes of the arrays of a batch of so many pairs, before there is text."""
        rows = {name: jax.ShapeDtypeStruct((pairs, 2, length), np.int32) for name in ROWS}
        return rows | {"gap": jax.ShapeDtypeStruct((pairs,), np.float32)}

    @property
    def task(self) -> TextTask:
        """What has to be prepared."""
        return TextTask.of(tuple(self.corpora), self.vocabulary, self.validation)

    def open(self, vocab_size: int) -> Pairs:
        """The documents of `task`, prepared on first use, and their statistics.

        Raises:
          ValueError: the model has no room for the special tokens.
        """
        folder = prepared(self.task)
        vocabulary = vocabularies.load(folder / "vocabulary")
        if vocabulary.size > Special.of(vocab_size).cls:
            raise ValueError(
                f"{vocabulary.size} ids of the vocabulary and 3 special tokens do not fit model.vocab_size={vocab_size}"
            )
        texts = {split: decoded(TokenRecords(folder, split), vocabulary) for split in ("train", "validation")}
        collections = {split: Collection.of(found, stem=self.stem) for split, found in texts.items()}
        rows = RowMaker(vocabulary, Special.of(vocab_size), self.sequence_length)
        return Pairs(self, rows, texts, collections)


@dataclasses.dataclass(frozen=True, eq=False)
class Pairs:
    """Documents and statistics by split, and what makes rows of them."""

    cfg: WordPairs
    rows: RowMaker
    texts: dict[str, list[str]]
    collections: dict[str, Collection]

    def loader(self, mesh: Mesh | None = None, seed: int | None = None) -> PairLoader:
        """The batches, of which this process makes the pairs that its devices of the mesh need."""
        return PairLoader(self, self.cfg.seed if seed is None else seed, local_rows(mesh, self.cfg.batch_size))

    def pair(self, split: str, document: int, rng: np.random.Generator) -> Rows:
        """One element of a batch: inputs, token_types, segment_ids, unit_ids [2, S] and gap []."""
        collection, text = self.collections[split], self.texts[split][document]
        more, less, gap = collection.pair(rng, document, self.cfg.words, self.cfg.candidates)
        both = [self.rows.row(collection.said(rng, chosen), text) for chosen in (more, less)]
        return stacked(both) | {"gap": np.asarray(gap, np.float32)}

    def held_out(self, part: Part = "all") -> Iterator[Rows]:
        """Batches of one pair a document, the same ones every time; documents are parted by their text's hash."""
        collection = self.collections["validation"]
        halves = {"tuning": (0,), "report": (1,), "all": (0, 1)}[part]
        chosen = [
            i for i, text in enumerate(self.texts["validation"])
            if zlib.crc32(text.encode()) // 7 % 2 in halves and collection.length[i]
        ][: self.cfg.evaluation_pairs]  # fmt: skip
        if not chosen:
            raise DataError(f"no held-out document with words is left in part {part!r} of {self.cfg.corpora}")
        size = self.cfg.batch_size
        for start in range(0, len(chosen), size):
            found = [self.pair("validation", i, np.random.default_rng((7, i))) for i in chosen[start : start + size]]
            missing = size - len(found)
            empty = {name: np.zeros_like(x) for name, x in found[0].items()}
            yield stacked(found + [empty] * missing)

    def evaluation(
        self, score: Any, part: Part = "all", *, likelihood: bool = False
    ) -> Callable[[Params], dict[str, float]]:
        """Parameters -> "loss", the weighted mean over the held-out pairs."""
        return loss_over(score, lambda: self.held_out(part))


@dataclasses.dataclass(frozen=True, eq=False)
class PairLoader:
    """Batches by step: every document once a round, in an order of its own, with new pairs each time."""

    pairs: Pairs
    seed: int
    local: np.ndarray

    @property
    def fingerprint(self) -> str:
        """Equal fingerprints give equal batches."""
        told = "".join(hashlib.sha256(text.encode()).hexdigest() for text in self.pairs.texts["train"])
        return hashlib.sha256(f"{told}{self.pairs.cfg}{self.pairs.rows.special}{self.seed}".encode()).hexdigest()[:16]

    def batch(self, step: int) -> Rows:
        """This process's pairs of one step."""
        documents = self._documents
        places = step * self.pairs.cfg.batch_size + np.asarray(self.local)
        found = []
        for place in places.tolist():
            turn, at = divmod(place, len(documents))
            chosen = int(documents[_order(len(documents), self.seed, turn)[at]])
            found.append(self.pairs.pair("train", chosen, np.random.default_rng((self.seed, 1, place))))
        return stacked(found) | {"sequence_ids": places}

    def batches(self, start_step: int = 0) -> Iterator[Rows]:
        """The batches of start_step, start_step + 1, ... for ever."""
        step = start_step
        while True:
            yield self.batch(step)
            step += 1

    def ledger(self, step: int) -> dict[str, float]:
        """Tokens before `step`, padding counted, and those of different documents."""
        cfg = self.pairs.cfg
        drawn = step * cfg.batch_size
        unique = min(drawn, len(self._documents))
        return {"tokens": 2.0 * drawn * cfg.sequence_length, "unique_tokens": 2.0 * unique * cfg.sequence_length}

    @functools.cached_property
    def _documents(self) -> np.ndarray:
        return np.flatnonzero(self.pairs.collections["train"].length)


@functools.lru_cache(maxsize=8)
def _order(size: int, seed: int, turn: int) -> np.ndarray:
    return np.random.default_rng((seed, 0, turn)).permutation(size)


@dataclasses.dataclass(frozen=True, eq=False)
class RowMaker:
    """Word sets and texts -> token rows. Words are encoded one by one, so that their tokens are units."""

    vocabulary: Any
    special: Special
    length: int

    def row(self, words: Sequence[str], text: str) -> Rows:
        """inputs, token_types, segment_ids, unit_ids [S]; units 1, 2, ... are the words of the text.

        Raises:
          ValueError: the word set leaves no room for the document.
        """
        query = [i for word in words for i in self._ids(word)]
        room = self.length - len(query) - 3
        if room < 1:
            raise ValueError(f"a row of {self.length} tokens has no room beside {len(query)} tokens of words {words}")
        pieces = [(i, n) for n, word in enumerate(text.split()[:room], 1) for i in self._ids(word)][:room]
        ids = [self.special.cls, *query, self.special.sep, *(i for i, _ in pieces), self.special.sep]
        before = len(query) + 2
        found = {
            "inputs": ids,
            "token_types": [0] * before + [1] * (len(pieces) + 1),
            "segment_ids": [1] * len(ids),
            "unit_ids": [0] * before + [n for _, n in pieces] + [0],
        }
        return {name: np.pad(np.asarray(x, np.int32), (0, self.length - len(ids))) for name, x in found.items()}

    def _ids(self, word: str) -> tuple[int, ...]:
        if word not in self._known:
            self._known[word] = tuple(self.vocabulary.encode(" " + word))
        return self._known[word]

    @functools.cached_property
    def _known(self) -> dict[str, tuple[int, ...]]:
        return {}


def decoded(records: TokenRecords, vocabulary: vocabularies.Vocabulary) -> list[str]:
    """The texts of the documents of a split."""
    pieces: dict[int, list[int]] = {}
    for i in range(len(records)):
        pieces.setdefault(int(records.document[i]), []).extend(records[i][1:].tolist())
    return [vocabulary.decode([t for t in ids if t != records.eos_id]) for ids in pieces.values()]
