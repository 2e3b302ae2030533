"""Recipes for the corpora that Debian packages hold. Names are those of Debian 12, then of 13."""

from __future__ import annotations

import functools
import gzip
import re
from collections.abc import Callable, Iterator
from pathlib import Path

from jaxpt.data.corpora import extract
from jaxpt.data.corpora.download import Debian
from jaxpt.data.corpora.recipe import Item, Recipe
from jaxpt.data.documents import DataError

PIECE = 1000  # characters
GCIDE_TAGS = re.compile(r"\[(?:1913 Webster|WordNet 1\.5|PJC)[^\]]*\]|[{}]")


def html_pages(pattern: str, root: Path) -> Iterator[Item]:
    """One document per page; key = path under the folder "html"; what links lead to is read once."""
    for path in sorted({p.resolve() for p in root.glob(pattern)}):
        title, text = extract.html(path.read_bytes(), str(path))
        yield _key(path, "html"), title or path.stem, text


def rst_pages(pattern: str, root: Path) -> Iterator[Item]:
    """One document per page, plain or gzipped, translations left out."""
    for path in sorted(root.glob(pattern)):
        if "translations" not in path.parts:
            key = _key(path, "Documentation").removesuffix(".gz")
            yield key, key, extract.restructured_text(extract.published(_plain(path)))


def manual_pages(root: Path) -> Iterator[Item]:
    """One document per page of the sections, key = section/name."""
    mandoc = root / "mandoc/usr/bin/mandoc"
    for path in sorted(root.glob("manpages*/usr/share/man/man*/*.gz")):
        if not path.is_symlink():
            section, name = path.parent.name.removeprefix("man"), path.name.removesuffix(".gz")
            text = extract.manual_page(_plain(path), mandoc, str(path))
            yield f"{section}/{name}", name, text


def dictionary(base: str, clean: Callable[[str], str], root: Path) -> Iterator[Item]:
    """One document per entry of a dictd dictionary."""
    folder = root / f"dict-{base}/usr/share/dictd"
    for word, text in extract.dictd(folder / f"{base}.index", folder / f"{base}.dict.dz"):
        yield word, word, clean(text)


def fortune_items(root: Path) -> Iterator[Item]:
    """One document per item, key = topic/number; a file that links to another is read once."""
    folder = root / "fortunes/usr/share/games/fortunes"
    paths = {p.resolve() for p in sorted(folder.rglob("*")) if p.is_file() and p.suffix not in (".dat", ".u8")}
    for path in sorted(paths):
        for number, item in enumerate(extract.fortunes(extract.published(path.read_bytes()))):
            yield f"{path.name}/{number}", path.name, item


def pieces(pattern: str, root: Path) -> Iterator[Item]:
    """Plain texts, gzipped or not, in documents of about 1,000 characters at paragraph borders; key = package/file/number.
    What links lead to is read once."""
    for path in sorted({p.resolve() for p in root.resolve().glob(pattern)}):
        key = f"{path.relative_to(root.resolve()).parts[0]}/{path.name.removesuffix('.gz')}"
        parts = [""]
        for paragraph in re.split(r"\n[ \t]*\n", extract.published(_plain(path)).strip("\n")):
            if len(parts[-1]) >= PIECE:
                parts.append("")
            parts[-1] += "\n\n" * bool(parts[-1]) + paragraph
        for number, text in enumerate(parts):
            yield f"{key}/{number}", path.name, text


def _key(path: Path, folder: str) -> str:
    """The path below the last folder of that name."""
    parts = path.parts
    last = len(parts) - 1 - parts[::-1].index(folder)
    return "/".join(parts[last + 1 :])


def _plain(path: Path) -> bytes:
    try:
        return gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (EOFError, gzip.BadGzipFile) as error:
        raise DataError(f"{path} is truncated or corrupt: {error}") from None


def clean_gcide(text: str) -> str:
    """An entry a paragraph a line, without the tags of its sources and the braces around cross-references."""
    paragraphs = (" ".join(p.split()) for p in re.split(r"\n\s*\n", GCIDE_TAGS.sub("", text)))
    return "\n\n".join(p for p in paragraphs if p)


def _unchanged(text: str) -> str:
    return text


def _html(name: str, description: str, licence: str, domain: str, packages: tuple[str, ...], pattern: str) -> Recipe:
    return Recipe(name, description, licence, domain, (Debian(packages),), functools.partial(html_pages, pattern))


def _dictd(name: str, description: str, licence: str, clean: Callable[[str], str] = _unchanged) -> Recipe:
    package = Debian((f"dict-{name}",))
    return Recipe(name, description, licence, "dictionary", (package,), functools.partial(dictionary, name, clean))


RECIPES = (
    _html("postgresql", "PostgreSQL manual, 0.9 M words", "PostgreSQL", "manual",
          ("postgresql-doc-15", "postgresql-doc-17"), "*/usr/share/doc/postgresql-doc-*/html/*.html"),
    _html("anarchism", "a political FAQ of long essays, 1.8 M words", "GPL-2.0-only", "essay",
          ("anarchism",), "*/usr/share/doc/anarchism/html/*.html"),
    _html("python-doc", "Python's reference and tutorial, 1.3 M words", "PSF-2.0", "manual",
          ("python3.11-doc", "python3.13-doc"), "*/usr/share/doc/python3.*/html/**/*.html"),
    Recipe("linux-doc", "Linux kernel manual, 2 M words", "GPL-2.0-only", "manual",
           (Debian(("linux-doc-6.1", "linux-doc-6.12")),),
           functools.partial(rst_pages, "*/usr/share/doc/linux-doc-*/Documentation/**/*.rst*")),
    Recipe("man", "Linux manual pages, 0.9 M words", "Linux-man-pages-copyleft", "manual",
           (Debian(("manpages",)), Debian(("manpages-dev",)), Debian(("mandoc",))), manual_pages),
    _dictd("foldoc", "dictionary of computing, 0.8 M words", "GFDL-1.1-or-later"),
    _dictd("jargon", "the Jargon File, 0.2 M words", "public-domain"),
    _dictd("gcide", "dictionary of English with quotations, 4.9 M words", "GPL-2.0-or-later", clean_gcide),
    Recipe("fortunes", "quotations, jokes and verse, 0.4 M words", "mixed", "fortunes",
           (Debian(("fortunes",)),),
           fortune_items),
    Recipe("licences", "the common licences of free software, 37,000 words", "mixed", "licence",
           (Debian(("base-files",)),), functools.partial(pieces, "*/usr/share/common-licenses/*")),
    Recipe("changelogs", "what changed in two packages, 0.2 M words", "mixed", "changelog",
           (Debian(("base-files",)), Debian(("manpages",))),
           functools.partial(pieces, "*/usr/share/doc/*/[cC]hange*.gz")),
)  # fmt: skip
