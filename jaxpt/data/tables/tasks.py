"""Three tasks over tables with answers that are known: look-up questions, entailment, and text to SQL.

    question : what is the city of alpha ?          ->  oslo
    statement : the city of alpha is turin .        ->  refuted
    sql : how many ships have year above 1980 ?     ->  select count ( * ) from t where "year" > 1980

Every task is a question in the place of the context, before the linearised table, and an answer in words, so that one
sequence-to-sequence model does them all. Answers of several cells are joined by ", ".
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from jaxpt.core.names import nearest_error
from jaxpt.data.tables.table import Table, TableText, is_number, number

ENTAILED, REFUTED = "entailed", "refuted"


@dataclasses.dataclass(frozen=True)
class Example:
    """Attributes:
    question: what stands before the table.
    row: the last row that the answer needs, from 0; None where no row is needed. A table cut before it lost the answer.
    """

    task: str
    table: Table
    question: str
    answer: str
    row: int | None


def lookup(rng: np.random.Generator, table: Table) -> Example:
    """A cell of the row of a name; several where several rows have the name."""
    column = int(rng.integers(1, len(table.header)))
    name = table.rows[int(rng.integers(len(table.rows)))][0]
    rows = [i for i, row in enumerate(table.rows) if row[0] == name]
    answer = ", ".join(table.rows[i][column] for i in rows)
    return Example("lookup", table, f"question : what is the {table.header[column]} of {name} ?", answer, rows[-1])


def entailment(rng: np.random.Generator, table: Table) -> Example:
    """A statement about a cell, true or with the cell of another row; never false by another row of the same name."""
    column, at = int(rng.integers(1, len(table.header))), int(rng.integers(len(table.rows)))
    name, value = table.rows[at][0], table.rows[at][column]
    true = {row[column] for row in table.rows if row[0] == name}
    others = sorted({row[column] for row in table.rows} - true)
    holds = not others or bool(rng.integers(2))
    said = value if holds else others[int(rng.integers(len(others)))]
    statement = f"statement : the {table.header[column]} of {name} is {said} ."
    return Example("entailment", table, statement, ENTAILED if holds else REFUTED, at)


def text_to_sql(rng: np.random.Generator, table: Table) -> Example:
    """A question of one of `QUERIES` and the query that answers it."""
    names = sorted(name for name in QUERIES if name in ("count equal", "select") or len(numeric(table)))
    question, query = QUERIES[names[int(rng.integers(len(names)))]](rng, table)
    return Example("sql", table, f"sql : {question}", query, None)


def numeric(table: Table) -> list[int]:
    """Columns of numbers alone, but for the first."""
    return [j for j in range(1, len(table.header)) if table.rows and all(is_number(row[j]) for row in table.rows)]


Query = tuple[str, str]


def _pick(rng: np.random.Generator, items: Sequence[Any]) -> Any:
    return items[int(rng.integers(len(items)))]


def _select(rng: np.random.Generator, table: Table) -> Query:
    column, name = int(rng.integers(1, len(table.header))), _pick(rng, table.rows)[0]
    return f"what is the {table.header[column]} of {name} ?", (
        f"select {column_name(table, column)} from t where {column_name(table, 0)} = {string(name)}"
    )


def _count_equal(rng: np.random.Generator, table: Table) -> Query:
    column = int(rng.integers(1, len(table.header)))
    value = _pick(rng, table.rows)[column]
    return f"how many have {table.header[column]} {value} ?", (
        f"select count ( * ) from t where {column_name(table, column)} = {literal(table, column, value)}"
    )


def _count_above(rng: np.random.Generator, table: Table) -> Query:
    column = _pick(rng, numeric(table))
    value = _pick(rng, table.rows)[column]
    return f"how many have {table.header[column]} above {value} ?", (
        f"select count ( * ) from t where {column_name(table, column)} > {literal(table, column, value)}"
    )


def _max(rng: np.random.Generator, table: Table) -> Query:
    column = _pick(rng, numeric(table))
    return f"what is the highest {table.header[column]} ?", f"select max ( {column_name(table, column)} ) from t"


def _and(rng: np.random.Generator, table: Table) -> Query:
    column, other = _pick(rng, numeric(table)), int(rng.integers(1, len(table.header)))
    value, row = _pick(rng, table.rows)[column], _pick(rng, table.rows)
    conditions = (
        f"{column_name(table, column)} > {literal(table, column, value)} "
        f"and {column_name(table, other)} = {literal(table, other, row[other])}"
    )
    question = f"which have {table.header[column]} above {value} and {table.header[other]} {row[other]} ?"
    return question, f"select {column_name(table, 0)} from t where {conditions}"


def _highest(rng: np.random.Generator, table: Table) -> Query:
    column = _pick(rng, numeric(table))
    return f"which has the highest {table.header[column]} ?", (
        f"select {column_name(table, 0)} from t order by {column_name(table, column)} desc limit 1"
    )


QUERIES: dict[str, Callable[[np.random.Generator, Table], Query]] = {
    "select": _select,
    "count equal": _count_equal,
    "count above": _count_above,
    "max": _max,
    "and": _and,
    "highest": _highest,
}


def column_name(table: Table, column: int) -> str:
    """A column as SQL writes it."""
    return '"' + table.header[column].replace('"', '""') + '"'


def string(text: str) -> str:
    """A string as SQL writes it."""
    return "'" + text.replace("'", "''") + "'"


def literal(table: Table, column: int, value: str) -> str:
    """A value of a column as SQL writes it: a number where the column holds nothing else."""
    return str(number(value)) if column in numeric(table) else string(value)


TASKS: dict[str, Callable[[np.random.Generator, Table], Example]] = {
    "lookup": lookup,
    "entailment": entailment,
    "sql": text_to_sql,
}


def examples(units: Sequence[TableText], tasks: Sequence[str], count: int, seed: int) -> list[Example]:
    """`count` examples: tasks in turn, tables in random order, each about as often.

    Raises:
      ValueError: an unknown task, or no table with a row and two columns.
    """
    for task in tasks:
        if task not in TASKS:
            raise nearest_error("table task", task, TASKS)
    usable = [unit.table for unit in units if unit.table.rows and len(unit.table.header) > 1]
    if not usable or not tasks:
        raise ValueError(
            f"need a task and a table of two columns and a row; got {len(usable)} such tables, tasks {tasks}"
        )
    rng = np.random.default_rng(seed)
    rounds = -(-count // len(usable))
    order = np.concatenate([rng.permutation(len(usable)) for _ in range(rounds)])[:count]
    return [TASKS[tasks[i % len(tasks)]](rng, usable[at]) for i, at in enumerate(order.tolist())]
