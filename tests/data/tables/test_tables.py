"""Tables come back from their line of text whatever is in them, and none that is tested is trained on."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from jaxpt.data.documents import DataError
from jaxpt.data.tables import batches, extract, sources, tasks
from jaxpt.data.tables.batches import TableData, TableTasks
from jaxpt.data.tables.linear import escape, linearize, parse, text_of, unescape
from jaxpt.data.tables.table import Table, TableText, distinct, lower, read_tables, write_tables
from jaxpt.data.vocabularies import ByteVocabulary, train_bpe

BYTES = ByteVocabulary()
TABLE = Table(("name", "city"), (("alpha", "oslo"), ("beta", "bergen"), ("gamma", "oslo")))
PIECES = (
    "|",
    " | ",
    "row 1 :",
    " row 2 : ",
    "col :",
    " col : ",
    ":",
    "\\",
    "\\p",
    "\\:",
    " ",
    "",
    "x",
    "12:30",
    "\n",
    "é",
)


def test_1000_tables_come_back_whatever_is_in_them():
    rng = np.random.default_rng(0)
    text = lambda: "".join(rng.choice(PIECES, rng.integers(0, 4)))  # noqa: E731
    for _ in range(1000):
        columns, rows = rng.integers(1, 5), rng.integers(0, 5)
        header, *cells = (tuple(text() for _ in range(columns)) for _ in range(rows + 1))
        table, context = Table(header, tuple(cells)), text()
        assert parse(text_of(table, context)) == (context, table)
        tokens = linearize(table, context, 1000, BYTES).tokens
        assert parse(BYTES.decode(tokens.tolist())) == (context, table)


def test_tokens_say_the_text_and_know_their_cells():
    bpe = train_bpe([text_of(TABLE, "two towns | and row 1 : of them")] * 3, 300)
    for vocabulary in (BYTES, bpe):
        found = linearize(TABLE, "two towns | and row 1 : of them", 200, vocabulary)
        assert parse(vocabulary.decode(found.tokens.tolist())) == ("two towns | and row 1 : of them", TABLE)
        assert (found.rows, found.truncated) == (3, False)
        for number, row in enumerate((TABLE.header, *TABLE.rows)):
            for column, cell in enumerate(row):
                own = (found.row_id == number + 1) & (found.col_id == column + 1)
                assert vocabulary.decode(found.tokens[own].tolist()).strip() == cell
                assert set(found.cell_id[own].tolist()) == {number * 2 + column + 1}
        assert not found.cell_id[: found.context].any() and len(set(found.cell_id.tolist())) == 9
        assert vocabulary.decode(found.tokens[: found.context].tolist()) == escape("two towns | and row 1 : of them")


def test_rows_that_do_not_fit_go_from_the_end_and_the_header_stays():
    whole = linearize(TABLE, "", 200, BYTES)
    assert len(whole.tokens) == len(text_of(TABLE)) and linearize(TABLE, "", len(whole.tokens), BYTES).rows == 3
    cut = linearize(TABLE, "", len(whole.tokens) - 1, BYTES)
    assert (cut.rows, cut.truncated) == (2, True)
    assert parse(BYTES.decode(cut.tokens.tolist())) == ("", dataclasses.replace(TABLE, rows=TABLE.rows[:2]))
    header = len("towns col : name | city")
    assert linearize(TABLE, "towns", header, BYTES).rows == 0
    with pytest.raises(DataError, match=f"context and header take {header} of {header - 1} tokens"):
        linearize(TABLE, "towns", header - 1, BYTES)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("no table", "no header"),
        ("col : a | b row 2 : x | y", "not numbered from 1"),
        ("col : a | b row 1 : x", "row 1 has 1 cells, the header 2"),
        (r"col : a\q", "backslash before 'q'"),
        ("col : a\\", "backslash before ''"),
    ],
)
def test_text_that_is_no_table_is_an_error(text, message):
    with pytest.raises(DataError, match=message):
        parse(text)
    with pytest.raises(ValueError, match="at least one column"):
        Table((), ())
    assert unescape(escape("a | b : \\")) == "a | b : \\"


def test_equal_tables_are_told_by_header_and_first_row():
    again = Table((" Name", "CITY"), (("Alpha ", "Oslo"), ("other", "rows")))
    other = Table(TABLE.header, TABLE.rows[1:])
    units = [TableText(t, str(i)) for i, t in enumerate((TABLE, again, other))]
    assert TABLE.key == again.key != other.key and TABLE.schema == other.schema
    assert [u.context for u in distinct(units)] == ["0", "2"]
    assert [u.context for u in distinct(units, {TABLE.key})] == ["2"]
    assert lower(TableText(again, " A  B")) == TableText(
        Table(("name", "city"), (("alpha", "oslo"), ("other", "rows"))), "a b"
    )


def test_tested_tables_have_headers_that_no_other_has(tmp_path):
    data = TableData(schemas=150, per_schema=2, seed_of_tables=3)
    parts = {part: data.units(part) for part in ("train", "tuning", "report", "all")}
    schemas = {part: {u.table.schema for u in units} for part, units in parts.items()}
    assert not schemas["train"] & schemas["all"] and not schemas["tuning"] & schemas["report"]
    assert schemas["tuning"] | schemas["report"] == schemas["all"] and min(map(len, schemas.values())) > 15
    assert len(sources.SCHEMAS) == 200 == len({s.columns for s in sources.SCHEMAS})
    known = {u.table.header[0] for u in parts["train"]}
    assert "sample" in known and len(known) > 15
    path = tmp_path / "tables.jsonl"
    write_tables(path, [*parts["all"], *parts["train"]])
    own = TableData(sources=(str(path),))
    train, tested = own.units("train"), own.units("all")
    assert train and tested and not {u.table.schema for u in train} & {u.table.schema for u in tested}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sources": ("entitys",)}, "did you mean 'entities'"),
        ({"schemas": 200}, "need 1 to 199 schemas"),
        ({"plain": 0.5}, "plain text is a share below 1 and its corpora"),
    ],
)
def test_settings_that_cannot_be_are_named(change, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(TableData(), **change).units("train")
    with pytest.raises(ValueError, match="unknown part 'test'"):
        TableData().units("test")
    with pytest.raises(ValueError, match="did you mean 'wine'"):
        sources.bundled_tables("wines", 1, 0)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 2 is no table"),
        ('{"header": ["a"]}', "KeyError\\('rows'\\)"),
        ('{"header": ["a"], "rows": [["1", "2"]]}', "row 1 has 2 cells"),
        ('{"header": "ab", "rows": []}', "expected"),
        ('{"header": ["a"], "rows": [[1]], "context": 3}', "the context a text"),
        ('{"header": [], "rows": []}', "at least one column"),
    ],
)
def test_a_broken_file_of_tables_names_the_line(tmp_path, line, message):
    path = tmp_path / "tables.jsonl"
    write_tables(path, [TableText(TABLE, "towns")])
    assert list(read_tables(path)) == [TableText(TABLE, "towns")]
    path.write_text(path.read_text() + line + "\n")
    with pytest.raises(DataError, match=message):
        list(read_tables(path))
    with pytest.raises(DataError, match="cannot read tables from"):
        list(read_tables(tmp_path / "none.jsonl"))


def test_rows_know_what_the_context_states_and_the_control_has_the_same_cells():
    data = batches.Tables(TableData(sequence_length=120), BYTES)
    unit = TableText(TABLE, "for alpha the city is oslo .")
    row = data.row(unit)
    assert row is not None and row["context_length"] == len(unit.context)
    said = {int(c) for c in row["cell_id"][row["stated"] > 0]}
    assert said == {3, 4, 8} and list(sources.stated(unit)) == [(0, 0), (0, 1), (2, 1)]
    assert row["segment_ids"].sum() == len(text_of(TABLE, unit.context))
    assert data.row(TableText(TABLE, "x" * 200)) is None
    mixed = batches.shuffle(unit, 1)
    assert mixed.table.header == TABLE.header and mixed.context == unit.context and mixed.table != TABLE
    assert sorted(c for r in mixed.table.rows for c in r) == sorted(c for r in TABLE.rows for c in r)


def test_answers_are_those_of_their_tables():
    units = sources.entity_tables(sources.SCHEMAS[:20], 3, 0)
    for one in tasks.examples(units, ("lookup", "entailment"), 120, 1):
        words = one.question.split()
        if one.task == "lookup":
            name, column = words[-2], one.question.split("the ")[1].split(" of ")[0]
            cells = [row[one.table.column(column)] for row in one.table.rows if row[0] == name]
            assert one.answer == ", ".join(cells)
        else:
            column, rest = one.question.split("the ", 1)[1].split(" of ", 1)
            name, value = rest.removesuffix(" .").split(" is ")
            holds = any(row[0] == name and row[one.table.column(column)] == value for row in one.table.rows)
            assert one.answer == ("entailed" if holds else "refuted")
    assert 20 < sum(x.answer == "refuted" for x in tasks.examples(units, ("entailment",), 100, 1)) < 80
    with pytest.raises(ValueError, match="did you mean 'lookup'"):
        tasks.examples(units, ("look-up",), 1, 0)
    with pytest.raises(ValueError, match="got 0 such tables"):
        tasks.examples([], ("lookup",), 1, 0)


def test_questions_whose_row_was_cut_are_tested_but_not_trained_on():
    questions = batches.Questions(TableTasks(tables=TableData(sequence_length=63), target_length=8), BYTES)
    last = tasks.Example("lookup", TABLE, "question : what is the city of gamma ?", "oslo", 2)
    assert questions.row(last, training=True) is None
    row = questions.row(last)
    assert (
        row is not None and row["inputs"].shape == (64,) and row["inputs"][row["segment_ids"].sum() - 1] == BYTES.eos_id
    )
    assert BYTES.decode(row["targets"].tolist()) == "oslo"
    first = tasks.Example("lookup", TABLE, "q ?", "a long answer", 0)
    assert questions.row(first, training=True) is None and questions.row(first)["targets"][-1] == BYTES.eos_id


PAGE = b"""<html><body><p>Towns of the north.</p><table><caption>Towns</caption><tr><th>Name</th><th>City</th></tr>
<tr><td>Alpha</td><td>Oslo <b>old</b></td></tr></table>
<table><tr><td colspan=2>layout</td></tr><tr><td>a</td><td>b</td></tr></table>
<table><tr><td><table><tr><td>x</td><td>y</td></tr><tr><td>1</td><td>2</td></tr></table></td><td>z</td></tr></table>
<table><tr><td>ragged</td></tr><tr><td>a</td><td>b</td></tr></table></body></html>"""


def test_tables_are_taken_out_of_pages(tmp_path):
    wanted = TableText(Table(("Name", "City"), (("Alpha", "Oslo old"),)), "Towns Towns of the north.")
    assert extract.tables_of_html(PAGE) == [wanted]
    (tmp_path / "a.html").write_bytes(PAGE)
    write_tables(tmp_path / "b.jsonl", [TableText(wanted.table, "again"), TableText(TABLE, "other")])
    paths = [tmp_path / "a.html", tmp_path / "b.jsonl"]
    assert list(extract.extract(paths)) == [wanted, TableText(TABLE, "other")]
    assert list(extract.extract(paths, {TABLE.key})) == [wanted]
    with pytest.raises(DataError, match="is not an HTML page"):
        extract.tables_of_html(b"")
    with pytest.raises(DataError, match=r"read from .html, .htm and .jsonl files, got table.csv"):
        extract.tables_of_file("table.csv")
    with pytest.raises(DataError, match="cannot read tables from"):
        extract.tables_of_file(tmp_path / "none.html")


def test_plain_text_is_a_share_of_the_rows(tmp_path, monkeypatch):
    monkeypatch.setenv("JAXPT_CACHE", str(tmp_path / "cache"))
    for k in range(30):  # the split goes by where they are
        (tmp_path / f"{k}.txt").write_text("\n\n".join(f"Line {i} of tale {k} of {i * k} towns." for i in range(40)))
    data = TableData(
        sources=("entities",), schemas=10, per_schema=2, corpora=(f"files:{tmp_path}/*.txt",), plain=0.2, vocabulary="bytes",
        sequence_length=200,
    )  # fmt: skip
    from jaxpt.data.prepare import prepare

    assert data.task is not None
    prepare(dataclasses.replace(data.task, validation=0.5), processes=1)
    monkeypatch.setattr(TableData, "task", property(lambda self: dataclasses.replace(_task(self), validation=0.5)))
    rows = data.open(300)._train
    plain = ~rows["cell_id"].any(1)
    assert plain.sum() == round(0.25 * (~plain).sum()) and rows["segment_ids"][plain].all(1).all()
    with pytest.raises(DataError, match="no training table of .'entities',. fits 20 tokens"):
        _ = dataclasses.replace(data, sequence_length=20).open(300)._train
    with pytest.raises(ValueError, match="259 ids beside 0 reserved ones, but model.vocab_size=100"):
        data.open(100)


def _task(data):
    from jaxpt.data.prepare import TextTask

    return TextTask.of(data.corpora, data.vocabulary, 0.05)


def test_batches_are_a_function_of_seed_and_step():
    data = batches.Tables(
        TableData(sources=("entities",), schemas=10, per_schema=4, batch_size=4, sequence_length=200), BYTES
    )
    one, again, other = (data.loader(seed=s).batch(3) for s in (0, 0, 1))
    assert all(np.array_equal(one[name], again[name]) for name in one) and not np.array_equal(
        one["inputs"], other["inputs"]
    )
    assert one["inputs"].shape == (4, 200) and one["context_length"].shape == (4,) and data.cfg.size_at(3) == (4, 200)
    said = data.cfg.batch_shapes(4, 200)
    assert {name: x.shape for name, x in said.items()} == {name: one[name].shape for name in said}
