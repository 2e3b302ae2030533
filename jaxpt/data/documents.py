"""A document: the unit that corpora yield, splits are made by, and licences belong to."""

from __future__ import annotations

import dataclasses


class DataError(ValueError):
    """Input data that cannot be used; the message names the file or document and what to do."""


@dataclasses.dataclass(frozen=True)
class Document:
    """Attributes:
    id: unique in its corpus, "corpus:item".
    domain: what kind of text it is; mixtures and reports are by domain.
    licence: SPDX name where there is one.
    year: of the text, where known.
    version, sha256: of the source it was taken from.
    """

    id: str
    domain: str
    title: str
    text: str
    licence: str
    language: str = "en"
    year: int | None = None
    version: str = ""
    sha256: str = ""
