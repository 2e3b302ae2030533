"""A table, and how two tables are told to be the same one."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import re
from collections.abc import Container, Iterable, Iterator
from pathlib import Path
from typing import Any

from jaxpt.core.files import write_text
from jaxpt.data.documents import DataError

NUMBER = re.compile(r"[+-]?(?:\d{1,3}(?:,\d{3})+|\d+)?(?:\.\d+)?(?:e[+-]?\d+)?")


@dataclasses.dataclass(frozen=True)
class Table:
    """Strings in rows under a header.

    Raises:
      ValueError: no column, or a row with more or fewer cells than the header.
    """

    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    def __post_init__(self) -> None:
        if not self.header:
            raise ValueError("a table needs at least one column, got an empty header")
        for number, row in enumerate(self.rows, 1):
            if len(row) != len(self.header):
                raise ValueError(
                    f"row {number} has {len(row)} cells, the header {len(self.header)}: {row} {self.header}"
                )

    def column(self, name: str) -> int:
        """The number of the first column of this name, from 0.

        Raises:
          ValueError: there is none.
        """
        if name not in self.header:
            raise ValueError(f"no column {name!r}; the columns are {', '.join(self.header)}")
        return self.header.index(name)

    @property
    def key(self) -> str:
        """Hash of the normalised header and first row: equal keys are taken for one table."""
        first = self.rows[0] if self.rows else ()
        parts = [[normalised(cell) for cell in cells] for cells in (self.header, first)]
        return hashlib.sha256(json.dumps(parts, ensure_ascii=False).encode()).hexdigest()[:16]

    @property
    def schema(self) -> str:
        """Hash of the normalised header."""
        return hashlib.sha256(json.dumps([normalised(cell) for cell in self.header]).encode()).hexdigest()[:16]


@dataclasses.dataclass(frozen=True)
class TableText:
    """A table and the text around it, such as a caption and the paragraph before."""

    table: Table
    context: str = ""


def normalised(text: str) -> str:
    """Lower case, runs of white space as one space, none at the ends."""
    return " ".join(text.lower().split())


def is_number(text: str) -> bool:
    """A finite decimal number, perhaps with commas between thousands."""
    plain = text.strip().lower()
    if not plain or not NUMBER.fullmatch(plain) or not any(c.isdigit() for c in plain.split("e")[0]):
        return False
    return math.isfinite(float(plain.replace(",", "")))


def number(text: str) -> int | float:
    """The value of what `is_number` accepts; an integer where it is written as one that SQLite can hold."""
    plain = text.strip().replace(",", "")
    if plain.lstrip("+-").isdigit() and len(plain) < 18:
        return int(plain)
    return float(plain)


def lower(unit: TableText) -> TableText:
    """A table and its text with every string normalised, as they are linearised for a model."""
    rows = tuple(tuple(map(normalised, row)) for row in unit.table.rows)
    return TableText(Table(tuple(map(normalised, unit.table.header)), rows), normalised(unit.context))


def distinct(units: Iterable[TableText], excluded: Container[str] = ()) -> Iterator[TableText]:
    """The first unit of every table.

    Args:
      excluded: keys of tables that must not occur, such as those of test sets.
    """
    seen: set[str] = set()
    for unit in units:
        if (key := unit.table.key) not in seen and key not in excluded:
            seen.add(key)
            yield unit


def write_tables(path: Path, units: Iterable[TableText]) -> None:
    """A JSON object with "context", "header" and "rows" a line."""
    write_text(Path(path), "".join(to_json(unit) + "\n" for unit in units))


def to_json(unit: TableText) -> str:
    """One line of `write_tables`."""
    row = {"context": unit.context, "header": unit.table.header, "rows": unit.table.rows}
    return json.dumps(row, ensure_ascii=False)


def read_tables(path: Path) -> Iterator[TableText]:
    """What `write_tables` wrote.

    Raises:
      DataError: no such file, or a line that is no table; its number is named.
    """
    try:
        with Path(path).open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, 1):
                try:
                    yield from_json(json.loads(line))
                except (ValueError, KeyError, TypeError) as error:
                    raise DataError(f"{path}, line {number} is no table: {error!r}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot read tables from {path}: {error}") from None


def from_json(row: Any) -> TableText:
    """A table from {"context", "header", "rows"}; cells that are no strings become some."""
    if not isinstance(row, dict) or not isinstance(row["header"], list) or not isinstance(row["rows"], list):
        raise TypeError('expected {"context": text, "header": [...], "rows": [[...], ...]}')
    if not all(isinstance(cells, list) for cells in row["rows"]) or not isinstance(row.get("context", ""), str):
        raise TypeError("rows must be lists of cells, and the context a text")
    header, *rows = (tuple("" if c is None else str(c) for c in cells) for cells in (row["header"], *row["rows"]))
    return TableText(Table(header, tuple(rows)), row.get("context", ""))
