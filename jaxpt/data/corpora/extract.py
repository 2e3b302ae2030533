"""From published formats to text: HTML, manual pages, dictionaries, reStructuredText, fortunes, Bibles.

Every function gives plain text whose paragraphs are separated by blank lines, or items of it.
"""

from __future__ import annotations

import ast
import gzip
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jaxpt.data.corpora.files import decode
from jaxpt.data.documents import DataError

HTML_TAGS = ("script", "style", "nav", "header", "footer", "pre", "form", "svg")
HTML_CLASSES = frozenset(
    "toc nav navheader navfooter docnav menu sidebar sphinxsidebar related headerlink breadcrumb footer".split()
)
HTML_BLOCKS = frozenset(
    "address article aside blockquote body caption center dd details dialog div dl dt fieldset figcaption "
    "figure h1 h2 h3 h4 h5 h6 hr html legend li main ol p section summary table tbody td tfoot th thead tr "
    "ul".split()
)
BASE64 = {c: i for i, c in enumerate("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/")}
OVERSTRIKE = re.compile(".\x08")


def parsed(raw: bytes, where: str) -> Any:
    """The tree of a page in UTF-8.

    Raises:
      DataError: the page is empty or cannot be parsed.
    """
    import lxml.etree
    import lxml.html

    try:
        return lxml.html.document_fromstring(raw, parser=lxml.html.HTMLParser(encoding="utf-8"))
    except (lxml.etree.ParserError, lxml.etree.XMLSyntaxError) as error:
        raise DataError(f"{where} is not an HTML page: {error}") from None


def html(raw: bytes, where: str) -> tuple[str, str]:
    """(title, text) of a page: a paragraph per innermost block, without navigation, code and forms.

    Raises:
      DataError: the page is empty or cannot be parsed.
    """
    import lxml.etree

    tree = parsed(raw, where)
    title = " ".join((tree.findtext(".//title") or "").split())
    body = tree.find("body")
    if body is None:
        return title, ""
    for element in list(body.iter(lxml.etree.Element)):
        classes = HTML_CLASSES.intersection((element.get("class") or "").split())
        if (element.tag in HTML_TAGS or classes) and element.getparent() is not None and element is not body:
            element.drop_tree()
    paragraphs: list[list[str]] = [[]]
    _blocks(body, paragraphs)
    joined = (" ".join("".join(p).split()) for p in paragraphs)
    return title, "\n\n".join(p for p in joined if p)


def _blocks(element: Any, paragraphs: list[list[str]]) -> None:
    """Appends the text under an element; a block begins and ends a paragraph."""
    block = element.tag in HTML_BLOCKS
    if block:
        paragraphs.append([])
    if isinstance(element.tag, str):  # comments have text, but a function for a tag
        paragraphs[-1].append(" " if element.tag == "br" else element.text or "")
        for child in element:
            _blocks(child, paragraphs)
    if block:
        paragraphs.append([])
    paragraphs[-1].append(element.tail or "")


def manual_page(raw: bytes, mandoc: Path, where: str) -> str:
    """The text of a page in man or mdoc source, without running head and foot; "" for one that names another.

    Args:
      mandoc: the program.
    """
    if raw.lstrip().startswith(b".so "):
        return ""
    try:
        run = subprocess.run([str(mandoc), "-T", "utf8", "-K", "utf-8"], input=raw, capture_output=True, check=False)
    except OSError as error:
        raise DataError(f"{mandoc} does not run on this machine: {error}") from None
    lines = OVERSTRIKE.sub("", decode(run.stdout, f"mandoc of {where}")).strip("\n").splitlines()
    return "\n".join(lines[1:-1]).strip("\n")


def published(raw: bytes) -> str:
    """UTF-8 in which single bytes are left from Windows-1252, as in a few old published texts."""
    text = raw.decode("utf-8", errors="surrogateescape")
    return re.sub("[\\udc80-\\udcff]", lambda m: bytes([ord(m[0]) - 0xDC00]).decode("cp1252", errors="replace"), text)


def dictd(index: Path, data: Path) -> Iterator[tuple[str, str]]:
    """(headword, text) of the entries of a dictd dictionary in order of place; the first headword of several.

    Raises:
      DataError: an index line that is malformed or points outside the data.
    """
    try:
        body = gzip.decompress(data.read_bytes())
    except (EOFError, gzip.BadGzipFile) as error:
        raise DataError(f"{data} is truncated or corrupt: {error}") from None
    entries: dict[tuple[int, int], str] = {}
    for number, line in enumerate(decode(index.read_bytes(), str(index)).splitlines(), 1):
        try:
            word, *place = line.split("\t")
            offset, size = (_base64(p) for p in place[:2])
        except (ValueError, KeyError):
            raise DataError(f"{index} line {number} is not headword, offset, size: {line[:80]!r}") from None
        if offset + size > len(body):
            raise DataError(f"{index} line {number} points outside {data}: {offset} + {size} > {len(body)}")
        if not word.startswith(("00-", "00database")):  # what the dictionary says of itself
            entries.setdefault((offset, size), word)
    for (offset, size), word in sorted(entries.items()):
        yield word, published(body[offset : offset + size]).strip("\n")


def _base64(digits: str) -> int:
    value = 0
    for digit in digits:
        value = value * 64 + BASE64[digit]
    return value


def restructured_text(text: str) -> str:
    """Running text: indented blocks, directives, comments and title rules are dropped; lines are joined."""
    blocks = re.split(r"\n[ \t]*\n", text.expandtabs())
    kept = (b.strip("\n") for b in blocks if b.strip())
    return "\n\n".join(" ".join(b.split()) for b in kept if not b.startswith((" ", "..", "=")))


def fortunes(text: str) -> list[str]:
    """The items of a fortune file, which lines of only "%" separate."""
    return [item.strip("\n") for item in re.split(r"(?m)^%[ \t]*$", text) if item.strip()]


def bible(source: str, where: str) -> Iterator[tuple[int, int, str]]:
    """(book, chapter, text) from a pythonbible module, a verse a line; the module is parsed, never run.

    The module holds one call `Bible(version, TEXT, starts, ends, ...)`, whose dictionaries are by verse id
    BBCCCVVV.

    Raises:
      DataError: no such call.
    """
    names: dict[str, ast.expr] = {}
    call = None
    try:
        tree = ast.parse(source)
    except SyntaxError as error:
        raise DataError(f"{where} is not a Python module: {error}") from None
    for node in tree.body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            names[node.targets[0].id] = node.value
        value = getattr(node, "value", None)
        if isinstance(value, ast.Call) and len(value.args) >= 4:
            call = value
    if call is None:
        raise DataError(f"{where} has no call Bible(version, text, starts, ends)")
    text, starts, ends = (ast.literal_eval(names[a.id] if isinstance(a, ast.Name) else a) for a in call.args[1:4])
    chapters: dict[tuple[int, int], list[str]] = {}
    for verse in sorted(starts):
        chapters.setdefault((verse // 1_000_000, verse // 1000 % 1000), []).append(text[starts[verse] : ends[verse]])
    for (book, chapter), verses in chapters.items():
        yield book, chapter, "\n".join(v.strip() for v in verses)
