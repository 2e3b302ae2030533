"""Tasks made of corpora that are on hand everywhere: passages of a Bible, pages of the manual.

    task = same_book_task(open_corpus("kjv"))         # are two passages from one book: a pair task, like paraphrase
    task = verse_order_task(open_corpus("kjv"))       # which of two passages that follow each other comes first
    task = manual_section_task(open_corpus("man"))    # commands, system calls, files, ...: the section of a paragraph

A chapter or a page is on one side of the split, by the hash of its name: the same for every seed and release of the text.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import TypeVar

import numpy as np

from jaxpt.data.documents import DataError, Document
from jaxpt.evaluate.classification import Example, Task, held_out, label_task

CHAPTER = re.compile(r"[^:]+:(\d+)-(\d+)")
PAGE = re.compile(r"[^:]+:(\d)[^/]*/.+")
T = TypeVar("T")
Chapter = tuple[str, list[str]]  # book and passages in order


def same_book_task(documents: Iterable[Document], share: float = 0.2, verses: int = 3, seed: int = 0) -> Task:
    """Are these two passages, of different chapters, from one book (1) or from two (0)? F1 and accuracy.

    Each chapter gives one pair of each kind where its side of the split has another chapter of the book.

    Args:
      documents: chapters, ids ending in BB-CCC, a verse a line.
      verses: of a passage.

    Raises:
      DataError: a document that is not a chapter, or fewer than two books.
    """
    rng = np.random.default_rng([seed, 12])
    found: dict[bool, tuple[Example, ...]] = {}
    for side, chapters in _chapters(documents, share, verses).items():
        pairs: list[Example] = []
        for index, (book, passages) in enumerate(chapters):
            same = [p for i, (b, p) in enumerate(chapters) if b == book and i != index]
            other = [p for b, p in chapters if b != book]
            if same and other:
                one = _any(passages, rng)
                pairs.append(Example(one, 1, _any(_any(same, rng), rng)))
                pairs.append(Example(one, 0, _any(_any(other, rng), rng)))
        found[side] = tuple(pairs)
    return Task("same book", found[False], found[True], 2, "f1")


def verse_order_task(documents: Iterable[Document], share: float = 0.2, verses: int = 3, seed: int = 0) -> Task:
    """Are these two neighbouring passages in the order of the chapter (1) or swapped (0)? One pair a chapter.

    Raises:
      DataError: a document that is not a chapter, or fewer than two books.
    """
    rng = np.random.default_rng([seed, 13])
    found: dict[bool, tuple[Example, ...]] = {}
    for side, chapters in _chapters(documents, share, verses).items():
        pairs: list[Example] = []
        for _, passages in chapters:
            if len(passages) > 1:
                at, label = int(rng.integers(len(passages) - 1)), len(pairs) % 2
                first, second = passages[at : at + 2] if label else passages[at : at + 2][::-1]
                pairs.append(Example(first, label, second))
        found[side] = tuple(pairs)
    return Task("verse order", found[False], found[True], 2)


def manual_section_task(documents: Iterable[Document], share: float = 0.2, length: int = 100) -> Task:
    """From which section of the manual is this paragraph? One of at least `length` characters a page.

    Raises:
      DataError: a document that is not a page; ids are man:SECTION/PAGE.
    """

    def section(document: Document) -> str:
        found = PAGE.fullmatch(document.id)
        if not found:
            raise DataError(f"{document.id!r} is not a manual page; its id would be man:SECTION/PAGE")
        return found[1]

    return label_task("manual section", list(documents), section, share, length)


def _chapters(documents: Iterable[Document], share: float, verses: int) -> dict[bool, list[Chapter]]:
    """held out or not -> chapters, by passages of `verses` verses; what is left over at the end is left out."""
    if verses < 1:
        raise ValueError(f"a passage has at least one verse, got {verses}")
    sides: dict[bool, list[Chapter]] = {False: [], True: []}
    books = set()
    for document in documents:
        match = CHAPTER.fullmatch(document.id)
        if not match:
            raise DataError(f"{document.id!r} is not a chapter; its id would be VERSION:BB-CCC")
        lines = [line.strip() for line in document.text.splitlines() if line.strip()]
        passages = [" ".join(lines[i : i + verses]) for i in range(0, len(lines) - verses + 1, verses)]
        books.add(match[1])
        if passages:
            sides[held_out(f"{match[1]}-{match[2]}", share)].append((match[1], passages))
    if len(books) < 2:
        raise DataError(f"need chapters of at least two books, got {len(books)}")
    return sides


def _any(items: list[T], rng: np.random.Generator) -> T:
    return items[int(rng.integers(len(items)))]
