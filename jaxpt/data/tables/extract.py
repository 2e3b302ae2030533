"""Tables out of pages and JSON lines, with the text around them, each once; in one process or as an Apache Beam pipeline.

    write_tables(out, extract(paths, excluded={unit.table.key for unit in tested}))
    extract_beam("pages/*.html", out_folder, excluded)          # the same tables; needs the `data` extra

The context of a table is its caption and the last paragraph before it. Tables in tables, tables with cells over several rows
or columns, and tables of fewer than two columns or one row are left out: they are layout, or cannot be told apart from it.
"""

from __future__ import annotations

import glob
from collections.abc import Container, Iterable, Iterator
from pathlib import Path
from typing import Any

from jaxpt.data.corpora.extract import parsed
from jaxpt.data.documents import DataError
from jaxpt.data.tables.table import Table, TableText, distinct, read_tables, to_json

LEAST_COLUMNS, LEAST_ROWS, MOST_CELLS = 2, 1, 10_000
PARAGRAPHS = frozenset(("p", "h1", "h2", "h3", "h4", "h5", "h6"))


def tables_of_html(raw: bytes, where: str = "page") -> list[TableText]:
    """The tables of a page, in order.

    Raises:
      DataError: the page is empty or cannot be parsed.
    """
    import lxml.etree

    found, before = [], ""
    for element in parsed(raw, where).iter(lxml.etree.Element):
        inside = any(True for _ in element.iterancestors("table"))
        if element.tag in PARAGRAPHS and not inside:
            before = _text(element) or before
        elif element.tag == "table" and not inside and (table := _table(element)) is not None:
            captions = [text for caption in element.iterchildren("caption") if (text := _text(caption))]
            found.append(TableText(table, " ".join([*captions, *([before] if before else [])])))
    return found


def _table(element: Any) -> Table | None:
    """The table of an element, its first row as header; None where it is no plain table."""
    lines = [line for line in element.iter("tr") if next(line.iterancestors("table")) is element]
    cells = [list(line.iterchildren("th", "td")) for line in lines]
    spans = any(cell.get(name, "1") != "1" for row in cells for cell in row for name in ("rowspan", "colspan"))
    if spans or next(element.iterdescendants("table"), None) is not None:
        return None
    texts = [tuple(map(_text, row)) for row in cells if row]
    if len(texts) <= LEAST_ROWS or len(texts[0]) < LEAST_COLUMNS or len(texts) * len(texts[0]) > MOST_CELLS:
        return None
    if any(len(row) != len(texts[0]) for row in texts) or not any(texts[0]):
        return None
    return Table(texts[0], tuple(texts[1:]))


def _text(element: Any) -> str:
    return " ".join("".join(element.itertext()).split())


def tables_of_file(path: str | Path) -> list[TableText]:
    """The tables of a page (.html, .htm) or of a file of `write_tables` (.jsonl).

    Raises:
      DataError: another kind of file, or one that cannot be read.
    """
    path = Path(path)
    if path.suffix == ".jsonl":
        return list(read_tables(path))
    if path.suffix not in (".html", ".htm"):
        raise DataError(f"tables are read from .html, .htm and .jsonl files, got {path}")
    try:
        return tables_of_html(path.read_bytes(), str(path))
    except OSError as error:
        raise DataError(f"cannot read tables from {path}: {error}") from None


def extract(paths: Iterable[str | Path], excluded: Container[str] = ()) -> Iterator[TableText]:
    """The tables of files, each once.

    Args:
      excluded: keys of tables that are left out (`Table.key`): those of all test sets.
    """
    return distinct((unit for path in paths for unit in tables_of_file(path)), excluded)


def extract_beam(
    pattern: str, out: Path, excluded: Iterable[str] = (), pipeline_options: Any = None, shards: int = 0
) -> list[Path]:
    """The same as files OUT/tables-00000-of-....jsonl: of equal tables the one with the smallest JSON is kept.

    Args:
      pattern: of the files, such as "pages/*.html".
      pipeline_options: a `PipelineOptions`, a list of its command-line flags, or None for the direct runner.
      shards: number of files; the runner's choice where 0.

    Raises:
      DataError: no file has such a name.
      ImportError: Apache Beam is not installed.
    """
    from jaxpt.data import beam_prepare

    beam = beam_prepare.imported()
    paths = sorted(glob.glob(pattern, recursive=True))
    if not paths:
        raise DataError(f"no file matches {pattern!r}")
    Path(out).mkdir(parents=True, exist_ok=True)
    known = frozenset(excluded)
    with beam.Pipeline(options=beam_prepare.options_of(pipeline_options)) as pipeline:
        _ = (
            pipeline
            | "files" >> beam.Create(paths, reshuffle=True)
            | "extract" >> beam.FlatMap(_keyed)
            | "exclude" >> beam.Filter(_is_new, known)
            | "deduplicate" >> beam.CombinePerKey(min)
            | "drop keys" >> beam.Values()
            | "write" >> beam.io.WriteToText(str(Path(out) / "tables"), file_name_suffix=".jsonl", num_shards=shards)
        )
    return sorted(Path(out).glob("tables-*.jsonl"))


def _keyed(path: str) -> list[tuple[str, str]]:
    return [(unit.table.key, to_json(unit)) for unit in tables_of_file(path)]


def _is_new(keyed: tuple[str, str], known: frozenset[str]) -> bool:
    return keyed[0] not in known
