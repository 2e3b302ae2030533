"""Corpora made from packages: download, unpack, extract, keep.

    CACHE/corpora/NAME/  archives.json, the packages, documents.json, documents.jsonl.zst

The first opening does the work and later ones read documents.jsonl.zst. Every file is checked against its
SHA-256 before it is used, and appears under its name only when it is whole: whatever was interrupted is done
again.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jaxpt.core.files import sha256, write_json
from jaxpt.data.corpora import archives as wheels
from jaxpt.data.corpora import debian, download
from jaxpt.data.corpora.files import read_rows
from jaxpt.data.corpora.recipe import Recipe
from jaxpt.data.documents import DataError, Document

FORMAT = 1  # of the extracted text; a change extracts again
PACKAGED: dict[str, Recipe] = {r.name: r for r in (*debian.RECIPES, *wheels.RECIPES)}
DEFAULT_ENGLISH = (
    "gcide", "anarchism", "postgresql", "python-doc", "linux-doc", "man", "foldoc", "jargon",
    "fortunes", "kjv",
)  # fmt: skip
SHORTEST_DOCUMENT, SHORTEST_PARAGRAPH = 200, 5  # characters; words


def cached_documents(recipe: Recipe, cache: Path) -> Iterator[Document]:
    """The documents of a recipe, extracted now if the cache does not hold them.

    Raises:
      DataError: a download or an extraction fails, or a cached file has changed.
    """
    folder = Path(cache) / "corpora" / recipe.name
    path, manifest = folder / "documents.jsonl.zst", folder / "documents.json"
    made = download.read_json(manifest) if manifest.is_file() else {}
    if made.get("format") == FORMAT and path.is_file():
        download.check(path, made["sha256"])
    else:
        _extract(recipe, folder, path, manifest)
    for row in read_rows(path):
        yield Document(**row)


def default_english(cache: Path) -> Iterator[Document]:
    """The union of ten English sets: paragraphs of five words, each once, in documents of 200 characters."""
    seen: set[bytes] = set()
    for name in DEFAULT_ENGLISH:
        for document in cached_documents(PACKAGED[name], cache):
            kept = []
            for paragraph in document.text.split("\n\n"):
                digest = hashlib.blake2b(" ".join(paragraph.split()).encode(), digest_size=8).digest()
                long_enough = len(paragraph.split()) >= SHORTEST_PARAGRAPH or name == "kjv"
                if long_enough and digest not in seen:
                    seen.add(digest)
                    kept.append(paragraph)
            text = "\n\n".join(kept)
            if len(text) >= SHORTEST_DOCUMENT:
                yield dataclasses.replace(document, text=text)


def _extract(recipe: Recipe, folder: Path, path: Path, manifest: Path) -> None:
    """Writes the documents beside their archives, then the manifest that says they are whole."""
    import zstandard

    entries = download.archives(recipe.archives, folder)
    version = ", ".join(f"{e['package']} {e['version']}" for e in entries)
    digests = [e["sha256"] for e in entries]
    digest = digests[0] if len(digests) == 1 else hashlib.sha256(" ".join(digests).encode()).hexdigest()
    source = {"domain": recipe.domain, "licence": recipe.licence, "version": version, "sha256": digest}
    counts = {"documents": 0, "bytes": 0, "words": 0}
    with tempfile.TemporaryDirectory(dir=folder, prefix=".extract-") as scratch:
        root, written = Path(scratch) / "root", Path(scratch) / path.name
        root.mkdir()
        for entry in entries:
            part = root / entry["package"]
            part.mkdir()
            download.unpack(folder / entry["file"], part)
        with zstandard.open(written, "wb", cctx=zstandard.ZstdCompressor(level=6, write_checksum=True)) as out:
            for document in _documents(recipe, root, source):
                out.write(json.dumps(dataclasses.asdict(document), ensure_ascii=False).encode() + b"\n")
                counts["documents"] += 1
                counts["bytes"] += len(document.text.encode())
                counts["words"] += len(document.text.split())
        if not counts["documents"]:
            raise DataError(f"no text found in {version} for corpus {recipe.name!r}; its layout may have changed")
        made = {"format": FORMAT, "sha256": sha256(written), "source": source, **counts}
        manifest.unlink(missing_ok=True)  # so that it never describes other documents than those beside it
        os.replace(written, path)
    write_json(manifest, made)


def _documents(recipe: Recipe, root: Path, source: dict[str, Any]) -> Iterator[Document]:
    """Documents with text, a number after the id of a repeated key."""
    seen: dict[str, int] = {}
    for key, title, text in recipe.extract(root):
        if not text.strip():
            continue
        seen[key] = seen.get(key, 0) + 1
        item = key if seen[key] == 1 else f"{key}#{seen[key]}"
        yield Document(f"{recipe.name}:{item}", title=title, text=text, **source)
