"""Tables without downloads, each with a context of two sentences: entity tables of 200 schemas, and scikit-learn's sets.

    units = entity_tables(SCHEMAS[:160], per_schema=20, seed=0)
    units[0].context        "a list of ships in port . for verrel the city is oslo and the year is 1987 ."

A schema is a kind of entity and three further columns. Names, words and numbers are drawn, so that nothing outside the table
tells what a cell holds; the second sentence says two cells of one row.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from jaxpt.core.names import nearest_error
from jaxpt.data.tables.table import Table, TableText, normalised

KINDS = (
    "ship", "player", "film", "bridge", "song", "school", "museum", "horse", "novel", "station",
    "painter", "factory", "garden", "castle", "rocket", "singer", "hotel", "doctor", "chess master", "railway",
)  # fmt: skip
WORDS = {
    "city": "oslo bergen turin lyon porto ghent bonn graz riga cork minsk sofia split delft leeds varna izmir basel".split(),
    "country": "norway italy france chile japan kenya india peru spain egypt cuba ghana nepal canada greece".split(),
    "colour": "red green blue black white grey brown yellow orange purple pink silver".split(),
    "owner": "meyer rossi dubois novak silva jensen kumar tanaka lopez walsh peters horvat bauer moreau".split(),
    "material": "wood steel stone glass paper cotton brass clay marble leather copper".split(),
    "league": "north south east west first second third open junior senior".split(),
}  # fmt: skip
NUMBERS = {
    "year": (1980, 2019),
    "amount": (1, 60),
    "score": (1, 60),
    "weight": (100, 159),
    "age": (18, 80),
    "rank": (1, 40),
}
ONSETS, VOWELS, CODAS = "b d f g k l m n p r s t v z".split(), "a e i o u".split(), "l n r s k m".split()
NAMES = tuple(
    a + b + c + d + e
    for a, b, c, d, e in itertools.islice(
        itertools.product(ONSETS, VOWELS, ("l", "rr", "n"), VOWELS, CODAS), None, None, 41
    )
)
TITLES = ("a list of {}s .", "{}s of the year .", "the following table shows {}s .", "{}s by {} .")


class Schema(NamedTuple):
    """What a table is about, and its columns; the first one holds the names."""

    kind: str
    columns: tuple[str, ...]


def _schemas(count: int = 200) -> tuple[Schema, ...]:
    """Different headers: of every kind, as many sets of three columns."""
    sets = list(itertools.permutations((*WORDS, *NUMBERS), 3))
    chosen = np.random.default_rng(0).permutation(len(sets))[:count]
    return tuple(Schema(KINDS[i % len(KINDS)], (KINDS[i % len(KINDS)], *sets[at])) for i, at in enumerate(chosen))


SCHEMAS = _schemas()


def entity_tables(
    schemas: Sequence[Schema], per_schema: int, seed: int, rows: tuple[int, int] = (3, 5)
) -> list[TableText]:
    """Tables of these schemas, schema by schema.

    Args:
      rows: the fewest and the most of a table.
    """
    found = []
    for schema in schemas:
        rng = np.random.default_rng((seed, SCHEMAS.index(schema)))
        found += [_entities(rng, schema, int(rng.integers(rows[0], rows[1] + 1))) for _ in range(per_schema)]
    return found


def _entities(rng: np.random.Generator, schema: Schema, rows: int) -> TableText:
    names = [NAMES[i] for i in rng.choice(len(NAMES), rows, replace=False)]
    columns = [names, *(_column(rng, name, rows) for name in schema.columns[1:])]
    table = Table(schema.columns, tuple(zip(*columns, strict=True)))
    title = TITLES[int(rng.integers(len(TITLES)))].format(schema.kind, schema.columns[int(rng.integers(1, 4))])
    return TableText(table, f"{title} {sentence(rng, table)}")


def _column(rng: np.random.Generator, name: str, rows: int) -> list[str]:
    if name in WORDS:
        return [WORDS[name][i] for i in rng.integers(len(WORDS[name]), size=rows)]
    low, high = NUMBERS[name]
    return [str(i) for i in rng.integers(low, high + 1, size=rows)]


def sentence(rng: np.random.Generator, table: Table) -> str:
    """A sentence that says a row's first cell and two others (one, of a table of two columns)."""
    row = table.rows[int(rng.integers(len(table.rows)))]
    others = 1 + rng.permutation(len(row) - 1)[:2]
    said = " and ".join(f"the {table.header[i]} is {row[i]}" for i in others)
    return f"for {row[0]} {said} ." if said else f"one of them is {row[0]} ."


BUNDLED = ("wine", "iris", "breast_cancer", "diabetes", "linnerud")


def bundled_tables(name: str, per_set: int, seed: int, rows: tuple[int, int] = (3, 5)) -> list[TableText]:
    """Tables cut from a set that scikit-learn ships: some of its rows, three of its columns, and a number for every row.

    Raises:
      ValueError: no such set.
      ImportError: scikit-learn is not installed.
    """
    if name not in BUNDLED:
        raise nearest_error("bundled set", name, BUNDLED)
    try:
        from sklearn import datasets
    except ImportError as error:
        raise ImportError("wine, iris and the like are in scikit-learn: pip install 'jaxpt[tables]'") from error
    loaded = getattr(datasets, f"load_{name}")(**({"scaled": False} if name == "diabetes" else {}))
    columns = [normalised(str(column)) for column in loaded.feature_names]
    values, title = np.asarray(loaded.data, np.float64), name.replace("_", " ")
    rng, found = np.random.default_rng((seed, BUNDLED.index(name))), []
    for _ in range(per_set):
        count = int(rng.integers(rows[0], rows[1] + 1))
        chosen, at = rng.permutation(len(columns))[:3], rng.choice(len(values), count, replace=False)
        cells = tuple((str(i), *(f"{values[i, column]:.3g}" for column in chosen)) for i in at.tolist())
        table = Table(("sample", *(columns[column] for column in chosen)), cells)
        found.append(TableText(table, f"measurements of {title} . {sentence(rng, table)}"))
    return found


def stated(unit: TableText) -> Iterator[tuple[int, int]]:
    """(row, column) of the cells that the context says, from 0: their words stand there one after the other."""
    context = f" {_words(unit.context)} "
    for i, row in enumerate(unit.table.rows):
        for j, cell in enumerate(row):
            if (own := _words(cell)) and f" {own} " in context:
                yield i, j


def _words(text: str) -> str:
    return " ".join(re.findall(r"\w+(?:[.,]\d+)*", text.lower()))
