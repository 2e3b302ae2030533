"""What an SQL query answers over one table, whoever wrote the query: SQLite in memory, reading alone, within bounds.

    sql_denotation('select max ( "year" ) from t', table)        [("1987",)]
    same_denotation(predicted, reference, table)                 execution accuracy of one query

A model's output is hostile input. Only SELECT is allowed, over the table t and with the functions of FUNCTIONS: nothing can
be written, attached, loaded or read from a file. Recursion is refused, values are bounded in size, and a query is ended
after a number of SQLite's operations or of rows.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Sequence

from jaxpt.data.tables.table import Table, is_number, number
from jaxpt.evaluate.denotation import normalised_answer

Rows = list[tuple[str, ...]]

FUNCTIONS = frozenset("count max min sum total avg abs round length lower upper like coalesce ifnull substr".split())
OPERATIONS = 500_000  # of SQLite's virtual machine: some hundredths of a second
SECONDS = 5.0  # after which a query is ended whatever it has done
ROWS, BYTES = 1000, 20_000  # of a result, and of a query or any one value
ALLOWED = {sqlite3.SQLITE_SELECT, sqlite3.SQLITE_READ, sqlite3.SQLITE_FUNCTION}
LIMITS = {
    sqlite3.SQLITE_LIMIT_LENGTH: BYTES,
    sqlite3.SQLITE_LIMIT_SQL_LENGTH: BYTES,
    sqlite3.SQLITE_LIMIT_EXPR_DEPTH: 100,
    sqlite3.SQLITE_LIMIT_LIKE_PATTERN_LENGTH: 50,
    sqlite3.SQLITE_LIMIT_COMPOUND_SELECT: 10,
    sqlite3.SQLITE_LIMIT_ATTACHED: 0,
    sqlite3.SQLITE_LIMIT_VDBE_OP: 25_000,
}


class SqlError(ValueError):
    """A query that is no query over the table, is not allowed, or takes too much; the message holds the query."""


def sql_denotation(sql: str, table: Table, *, operations: int = OPERATIONS) -> Rows:
    """The rows that a query gives over the table `t`, values as text; columns of numbers alone are numbers to it.

    Raises:
      SqlError: see there.
    """
    if len(sql) > BYTES:
        raise SqlError(f"the query has {len(sql)} characters, at most {BYTES} are read: {sql[:80]!r} ...")
    connection = sqlite3.connect(":memory:")
    try:
        _fill(connection, table)
        for limit, most in LIMITS.items():
            connection.setlimit(limit, most)
        connection.set_authorizer(_allowed)
        spent, end = 0, time.monotonic() + SECONDS

        def tick() -> int:
            nonlocal spent
            spent += 1000
            return int(spent > operations or time.monotonic() > end)

        connection.set_progress_handler(tick, 1000)
        cursor = connection.execute(sql)
        if cursor.description is None:
            raise SqlError(f"no query: {sql[:200]!r}")
        found = cursor.fetchmany(ROWS + 1)
        if len(found) > ROWS:
            raise SqlError(f"more than {ROWS} rows: {sql[:200]!r}")
        return [tuple(_text(value) for value in row) for row in found]
    except (sqlite3.Error, sqlite3.Warning, UnicodeError, OverflowError, ValueError, MemoryError) as error:
        if isinstance(error, SqlError):
            raise
        reason = f"more than {operations} operations or {SECONDS} s" if str(error) == "interrupted" else error
        raise SqlError(f"{reason}: {sql[:200]!r}") from None
    finally:
        connection.close()


def _fill(connection: sqlite3.Connection, table: Table) -> None:
    """Creates t. Columns of one name are told apart by numbers behind the later ones."""
    names: list[str] = []
    for name in table.header:
        names.append(name if _new(name, names) else next(n for i in range(2, 10**6) if _new(n := f"{name} {i}", names)))
    numbers = [bool(table.rows) and all(is_number(row[j]) for row in table.rows) for j in range(len(names))]
    quoted = ['"' + name.replace('"', '""').replace("\0", "") + '"' for name in names]
    columns = ", ".join(f"{name} {'NUMERIC' if n else 'TEXT'}" for name, n in zip(quoted, numbers, strict=True))
    connection.execute(f"CREATE TABLE t ({columns})")
    marks = ", ".join("?" * len(names))
    typed = [tuple(number(c) if n else c for c, n in zip(row, numbers, strict=True)) for row in table.rows]
    connection.executemany(f"INSERT INTO t VALUES ({marks})", typed)
    connection.commit()


def _new(name: str, names: Sequence[str]) -> bool:
    return name.lower() not in {known.lower() for known in names}


def _allowed(action: int, first: str | None, second: str | None, *_: object) -> int:
    if action == sqlite3.SQLITE_FUNCTION and (second or "").lower() not in FUNCTIONS:
        return sqlite3.SQLITE_DENY
    if action == sqlite3.SQLITE_READ and first not in ("t", ""):
        return sqlite3.SQLITE_DENY
    return sqlite3.SQLITE_OK if action in ALLOWED else sqlite3.SQLITE_DENY


def _text(value: object) -> str:
    if isinstance(value, float) and value.is_integer() and abs(value) < 1e15:
        return str(int(value))
    if isinstance(value, bytes):
        return value.hex()
    return "" if value is None else str(value)


def answer_text(rows: Rows) -> str:
    """A result as an answer in words: its values joined by ", "."""
    return ", ".join(value for row in rows for value in row)


def same_denotation(predicted: str, reference: str, table: Table) -> bool:
    """Whether a predicted query gives the reference's rows, in any order; a query that cannot be run does not.

    Raises:
      SqlError: the reference cannot be run.
    """
    wanted = sql_denotation(reference, table)
    try:
        found = sql_denotation(predicted, table)
    except SqlError:
        return False
    one, other = (sorted(tuple(map(normalised_answer, row)) for row in rows) for rows in (found, wanted))
    return one == other
