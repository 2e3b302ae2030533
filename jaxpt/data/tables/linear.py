r"""Tables as one line of text for a sequence model, and back; every token knows its cell.

    a table of ships . col : name | city row 1 : alpha | oslo row 2 : beta | bergen

    found = linearize(table, "a table of ships .", 160, vocabulary)
    found.tokens, found.cell_id, found.row_id, found.col_id        # int32 [L]
    parse(vocabulary.decode(found.tokens)) == ("a table of ships .", table)

The form is that of TaPEx and UnifiedSKG. Inside cells and context a backslash is written as \\, a bar as \p, and a colon
that begins a word as \:, so that no text can be taken for a separator. Text is used as it is; `table.lower` makes it lower
case. Tables that do not fit lose rows at the end; the context and the header are always whole. Every cell is encoded by
itself, so that no token belongs to two; numbers are cut as the vocabulary cuts them.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

from jaxpt.core.types import Int
from jaxpt.data.documents import DataError
from jaxpt.data.tables.table import Table
from jaxpt.data.vocabularies import Vocabulary

HEADER = re.compile(r"(?:^| )col : ")
ROW = re.compile(r" row (\d+) : ")
WORD_COLON = re.compile(r"(?<![^ ]):")
ESCAPED = re.compile(r"\\(.?)", re.S)
PLAIN = {"\\": "\\", "p": "|", ":": ":"}
HEADER_ROW, FIRST_ROW = 1, 2  # row ids: 0 is what belongs to no row

Encode = Callable[[str], tuple[int, ...]]


class Linear(NamedTuple):
    """Tokens [L] and, for each, its cell, row and column, from 1; 0 outside cells. The header is row 1, data begin in row 2.

    `context` is the number of tokens of the context, `rows` that of the table's rows that are there; `truncated`: not all.
    """

    tokens: Int[np.ndarray, " L"]
    cell_id: Int[np.ndarray, " L"]
    row_id: Int[np.ndarray, " L"]
    col_id: Int[np.ndarray, " L"]
    context: int
    rows: int
    truncated: bool


def linearize(table: Table, context: str, max_tokens: int, vocabulary: Vocabulary) -> Linear:
    """The table behind its context, in at most so many tokens.

    Raises:
      DataError: the context and the header alone do not fit.
    """
    encode = _encoder(vocabulary)  # type: ignore[arg-type]
    pieces: list[tuple[tuple[int, ...], int, int, int]] = []  # tokens, cell, row, column
    before = encode(escape(context)) if context else ()
    pieces.append((before, 0, 0, 0))
    used, kept = len(before), 0
    for number, row in enumerate((table.header, *table.rows)):
        head = f" row {number} :" if number else " col :" if context else "col :"
        own = list(_row(encode, head, row, number, len(table.header)))
        length = sum(len(piece[0]) for piece in own)
        if used + length > max_tokens:
            if not number:
                raise DataError(
                    f"context and header take {used + length} of {max_tokens} tokens: {context[:60]!r} {table.header}"
                )
            break
        pieces += own
        used, kept = used + length, number
    ids = np.repeat(np.asarray([p[1:] for p in pieces], np.int32), [len(p[0]) for p in pieces], axis=0)
    tokens = np.asarray([token for piece in pieces for token in piece[0]], np.int32)
    return Linear(tokens, ids[:, 0], ids[:, 1], ids[:, 2], len(before), kept, kept < len(table.rows))


def _row(
    encode: Encode, head: str, cells: tuple[str, ...], number: int, columns: int
) -> Iterator[tuple[tuple[int, ...], int, int, int]]:
    yield encode(head), 0, 0, 0
    for column, cell in enumerate(cells):
        if column:
            yield encode(" |"), 0, 0, 0
        yield encode(" " + escape(cell)), number * columns + column + 1, number + 1, column + 1


@functools.lru_cache(maxsize=4)
def _encoder(vocabulary: Vocabulary) -> Encode:
    """Text -> token ids, remembered: cells repeat."""

    @functools.lru_cache(maxsize=100_000)
    def encode(text: str) -> tuple[int, ...]:
        return tuple(vocabulary.encode(text))

    return encode


def text_of(table: Table, context: str = "") -> str:
    """The whole linearised text, which a vocabulary can be trained on."""
    rows = [("col :", table.header), *((f"row {i} :", row) for i, row in enumerate(table.rows, 1))]
    parts = [f"{head} {' | '.join(map(escape, cells))}" for head, cells in rows]
    return " ".join([escape(context), *parts] if context else parts)


def parse(text: str) -> tuple[str, Table]:
    """(context, table) of a linearised text.

    Raises:
      DataError: it is none: no header, rows that are not numbered 1, 2, ..., another number of cells, a broken escape.
    """
    found = HEADER.search(text)
    if found is None:
        raise DataError(f"no header 'col : ...' in {text[:80]!r}")
    marks, body = list(ROW.finditer(text, found.end())), text[found.end() :]
    numbers = [int(mark.group(1)) for mark in marks]
    if numbers != list(range(1, len(marks) + 1)):
        raise DataError(f"rows are not numbered from 1 up: {numbers[:10]}")
    starts = [0, *(mark.end() - found.end() for mark in marks)]
    ends = [*(mark.start() - found.end() for mark in marks), len(body)]
    header, *rows = (
        tuple(unescape(cell) for cell in body[a:b].split(" | ")) for a, b in zip(starts, ends, strict=True)
    )
    try:
        return unescape(text[: found.start()]), Table(header, tuple(rows))
    except ValueError as error:
        raise DataError(f"not a table: {error}") from None


def escape(text: str) -> str:
    """Without bars, and without colons at the beginning of words."""
    return WORD_COLON.sub(r"\\:", text.replace("\\", "\\\\").replace("|", r"\p"))


def unescape(text: str) -> str:
    """What `escape` was given.

    Raises:
      DataError: a backslash before something that is never escaped.
    """

    def one(found: re.Match[str]) -> str:
        if found.group(1) not in PLAIN:
            raise DataError(f"backslash before {found.group(1)!r} in {text[:80]!r}; known: {', '.join(PLAIN)}")
        return PLAIN[found.group(1)]

    return ESCAPED.sub(one, text)
