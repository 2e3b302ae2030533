"""A user's own files: txt, md, py, jsonl (plain, gz, zst) and parquet, by folder or glob."""

from __future__ import annotations

import dataclasses
import glob
import gzip
import json
import zlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from jaxpt.data.documents import DataError, Document

TEXT = (".txt", ".md", ".rst", ".py")
ROWS = (".jsonl", ".jsonl.gz", ".jsonl.zst", ".parquet")


@dataclasses.dataclass(frozen=True)
class Fields:
    """Names of the fields of a row, and what stands in where one is absent."""

    text: str = "text"
    id: str = "id"
    domain: str = "domain"
    title: str = "title"
    licence: str = "licence"
    default_domain: str = "files"
    default_licence: str = "unknown"


def files(pattern: str, fields: Fields | None = None) -> Iterator[Document]:
    """Documents of every matching file, in order of path: a text file is one, a row of the others is one.

    Args:
      pattern: a file, a folder (searched whole), or a glob with `**`.

    Raises:
      DataError: nothing matches, or a file is empty of documents, truncated, corrupt or not UTF-8.
    """
    fields = fields or Fields()
    root = Path(pattern)
    paths = sorted(root.rglob("*")) if root.is_dir() else [Path(p) for p in sorted(glob.glob(pattern, recursive=True))]
    known = [p for p in paths if p.is_file() and p.name.lower().endswith(TEXT + ROWS)]
    if not known:
        kinds = " ".join((*TEXT, *ROWS))
        raise DataError(f"no data file matches {pattern!r} (of {len(paths)} paths found); known kinds: {kinds}")
    for path in known:
        yield from _text(path, fields) if path.name.lower().endswith(TEXT) else _rows(path, fields)


def _text(path: Path, fields: Fields) -> Iterator[Document]:
    text = decode(path.read_bytes(), str(path))
    if not text.strip():
        raise DataError(f"{path} is empty")
    yield Document(f"files:{path}", fields.default_domain, path.stem, text, fields.default_licence)


def decode(raw: bytes, where: str) -> str:
    """Strict UTF-8, with the place of the first bad byte in the error."""
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        bad = raw[error.start : error.start + 4].hex(" ")
        raise DataError(
            f"{where} is not UTF-8: byte {error.start} ({bad}); convert it first, e.g. with iconv"
        ) from None


def _rows(path: Path, fields: Fields) -> Iterator[Document]:
    count = 0
    for number, row in enumerate(read_rows(path)):
        document = row_document(row, number, f"files:{path}", fields)
        if document is not None:
            count += 1
            yield document
    if not count:
        raise DataError(f"{path} holds no documents")


def row_document(row: Mapping[str, Any], number: int, source: str, fields: Fields) -> Document | None:
    """The document of a row of a data set; None where its text is empty.

    Args:
      number: of the row, from 0; the document's id where the row has none.
      source: what the id starts with, and what errors name.

    Raises:
      DataError: no such field, or not a string.
    """
    text = row.get(fields.text)
    if not isinstance(text, str):
        kind = f"is {type(text).__name__}, not a string" if fields.text in row else "is not there"
        raise DataError(f"{source} row {number + 1}: the text field {fields.text!r} {kind}; fields: {sorted(row)}")
    if not text.strip():
        return None
    return Document(
        id=f"{source}:{row.get(fields.id, number)}",
        domain=str(row.get(fields.domain, fields.default_domain)),
        title=str(row.get(fields.title, "")),
        text=text,
        licence=str(row.get(fields.licence, fields.default_licence)),
    )


def read_rows(path: Path) -> Iterator[dict[str, Any]]:
    """The rows of a jsonl (plain, gz, zst) or parquet file.

    Raises:
      DataError: the file is truncated, corrupt, not UTF-8 or not JSON; names the file and the line.
    """
    import zstandard

    if path.suffix == ".parquet":
        yield from _parquet(path)
        return
    try:
        with path.open("rb") as raw:
            lines: Iterable[bytes] = raw
            if path.suffix == ".gz":
                lines = gzip.GzipFile(fileobj=raw)
            elif path.suffix == ".zst":
                lines = _zst_lines(raw, path)
            for number, line in enumerate(lines, 1):
                if line.strip():
                    yield _json_line(line, f"{path} line {number}")
    except (EOFError, gzip.BadGzipFile, zlib.error, zstandard.ZstdError) as error:
        raise DataError(f"{path} is truncated or corrupt: {error}") from error


def _zst_lines(raw: BinaryIO, path: Path) -> Iterator[bytes]:
    """Lines of one or more zstd frames; the library's own reader ends silently where a frame is cut off."""
    import zstandard

    frame, rest = None, b""
    while chunk := raw.read(1 << 20):
        while chunk:
            frame = frame or zstandard.ZstdDecompressor().decompressobj()
            *lines, rest = (rest + frame.decompress(chunk)).split(b"\n")
            yield from lines
            chunk = frame.unused_data if frame.eof else b""
            frame = None if frame.eof else frame
    if frame is not None:
        raise DataError(f"{path} is truncated: its last zstd frame does not end")
    yield rest


def _json_line(line: bytes, where: str) -> dict[str, Any]:
    try:
        row = json.loads(decode(line, where))
    except json.JSONDecodeError as error:
        raise DataError(f"{where} is not JSON: {error}") from None
    if not isinstance(row, dict):
        raise DataError(f"{where} is a {type(row).__name__}, not an object")
    return row


def _parquet(path: Path) -> Iterator[dict[str, Any]]:
    import pyarrow
    import pyarrow.parquet

    try:
        for batch in pyarrow.parquet.ParquetFile(path).iter_batches():
            yield from batch.to_pylist()
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"{path} is truncated or corrupt: {error}") from error
