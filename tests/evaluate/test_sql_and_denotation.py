"""Queries give what Python gives over the same rows, hostile ones are refused in time, and answers are compared by value."""

from __future__ import annotations

import re
import time

import numpy as np
import pytest

from jaxpt.data.tables import sources, tasks
from jaxpt.data.tables.table import Table, is_number
from jaxpt.evaluate.denotation import answers, denotation_match, exact_match, normalised_answer
from jaxpt.evaluate.sql import SqlError, answer_text, same_denotation, sql_denotation

TABLE = Table(
    ("name", "city", "year"), (("alpha", "oslo", "1987"), ("o'neil", "Oslo", "2001"), ("beta", "bergen", "1,990"))
)
QUERY = re.compile(r"select (.+?) from t(?: where (.+?))?(?: order by (.+?) desc limit 1)?")


def value(text):
    plain = text.strip("'").replace("''", "'")
    return float(plain) if is_number(plain) else plain


def by_hand(query, table):
    """Every denotation that the template's query may have: of equal highest rows any."""
    what, where, order = QUERY.fullmatch(query).groups()
    columns = {f'"{name}"': [value(row[i]) for row in table.rows] for i, name in enumerate(table.header)}
    kept = range(len(table.rows))
    for condition in (where or "").split(" and ") if where else ():
        name, operation, right = re.fullmatch(r'(".+?") ([=>]) (.+)', condition).groups()
        right = value(right)
        kept = [i for i in kept if (columns[name][i] == right if operation == "=" else columns[name][i] > right)]
    if what == "count ( * )":
        return [[(str(len(kept)),)]]
    if found := re.fullmatch(r'max \( (".+?") \)', what):
        return [[(f"{max(columns[found[1]][i] for i in kept):g}",)]]
    as_text = lambda i: (f"{x:g}" if isinstance(x := columns[what][i], float) else x,)  # noqa: E731
    if order:
        top = max(columns[order])
        return [[as_text(i)] for i in kept if columns[order][i] == top]
    return [[as_text(i) for i in kept]]


def test_500_queries_give_what_python_gives():
    units = sources.entity_tables(sources.SCHEMAS, 2, 0) + sources.bundled_tables("wine", 30, 0)
    asked = tasks.examples(units, ("sql",), 500, 0)
    kinds = set()
    for one in asked:
        assert sql_denotation(one.answer, one.table) in by_hand(one.answer, one.table), one.answer
        kinds.add(re.sub(r'"[^"]*"|\'[^\']*\'|[\d.]+', "", one.answer))
        assert same_denotation(one.answer, one.answer, one.table)
    assert len(kinds) == len(tasks.QUERIES)


def test_values_keep_their_kind():
    assert sql_denotation("select name from t where year > 1988", TABLE) == [("o'neil",), ("beta",)]
    assert sql_denotation("select avg(year), null, 0.5 from t where name = 'o''neil'", TABLE) == [("2001", "", "0.5")]
    assert answer_text(sql_denotation('select "name" from t where "city" like \'oslo\'', TABLE)) == "alpha, o'neil"
    twice = Table(("a", "A", 'q"'), (("1", "2", "3"),))
    assert sql_denotation('select "a", "A 2", "q""" from t', twice) == [("1", "2", "3")]
    assert same_denotation("select name from t order by name desc", "select name from t", TABLE)
    assert not same_denotation("select nme from t", "select name from t", TABLE)
    assert not same_denotation("select city from t", "select name from t", TABLE)
    with pytest.raises(SqlError, match="no such column: nme"):
        same_denotation("select name from t", "select nme from t", TABLE)


@pytest.mark.parametrize(
    "query",
    [
        "",
        "drop table t",
        "insert into t values (1, 2, 3)",
        "update t set name = 'x'",
        "delete from t",
        "create table u (a)",
        "select * from t; drop table t",
        "attach database 'OWN' as own",
        "vacuum into 'OWN'",
        "pragma journal_mode = off",
        "select * from pragma_table_info('t')",
        "select sql from sqlite_master",
        "select load_extension('OWN')",
        "select readfile('/etc/hostname')",
        "select hex(zeroblob(1000000000))",
        "select printf('%1000000000d', 1)",
        "with recursive r(x) as (select 1 union all select x + 1 from r) select count(*) from r",
        "select count(*) from t a, t b, t c, t d, t e, t f, t g, t h, t i, t j, t k, t l, t m, t n, t o",
        "select a.name from t a, t b, t c, t d, t e, t f, t g",
        "select name || " + " || ".join(["name"] * 500) + " from t",
        "select " + "(" * 5000 + "1" + ")" * 5000,
        "select '" + "x" * 30_000 + "'",
        "begin",
        "explain select 1 from u",
        "select \0",
    ],
)
def test_hostile_queries_are_refused_in_time(query, tmp_path):
    start = time.monotonic()
    with pytest.raises(SqlError):
        sql_denotation(query.replace("OWN", str(tmp_path / "own")), TABLE)
    assert time.monotonic() - start < 2 and not list(tmp_path.iterdir())
    assert sql_denotation("select count(*) from t", TABLE) == [("3",)]


@pytest.mark.parametrize(
    ("predicted", "reference", "same"),
    [
        ("Bergen,  oslo", "oslo, bergen", True),
        ("oslo", "oslo, oslo", False),
        ("1,200", "1200.0", True),
        ("1.2e3", "1200", True),
        ("-0", "0", True),
        ("1200", "120", False),
        ("5 March 2019", "2019-03-05", True),
        ("Mar 5, 2019, oslo", "oslo, 2019-3-5", True),
        ("31 february 2019", "2019-02-31", False),
        ("'Oslo.'", "oslo", True),
        ("", "oslo", False),
        ("", "", True),
        ("１２", "12", True),
    ],
)
def test_answers_are_compared_by_value_in_any_order(predicted, reference, same):
    assert denotation_match(predicted, reference) is same
    assert denotation_match(reference, predicted) is same


def test_exact_match_sees_words_alone():
    assert exact_match(" Entailed\n", "entailed") and not exact_match("entailed .", "entailed")
    assert not exact_match("1200.0", "1200")
    assert answers("a, 1,200 ,b") == ["a", "1,200 ,b"] and normalised_answer("...") == "..."
    assert not any(map(is_number, ("", ".", "-", "e5", "1e999", "1,20", "nan", "1_0", "--1")))
    assert all(map(is_number, ("1", "-1.5", "1,200", ".5", "2e3", " 7 ")))


def test_random_tables_never_break_the_reader():
    """Whatever the cells hold, the rows that come out are the rows that went in."""
    rng = np.random.default_rng(0)
    letters = list("ab'\"|;:- \n\\é%_1,.")
    for _ in range(50):
        rows = tuple(tuple("".join(rng.choice(letters, 4)) for _ in range(2)) for _ in range(3))
        table = Table(("x", "".join(rng.choice(letters, 4)) or "y"), rows)
        found = sql_denotation("select * from t", table)
        assert [tuple(map(normalised_answer, row)) for row in found] == [tuple(map(normalised_answer, r)) for r in rows]
