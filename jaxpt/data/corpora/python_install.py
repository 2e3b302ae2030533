"""The corpus every user already has: the Python installation that runs this.

`python_code`: the source of the standard library without its tests. `python_prose`: its docstrings, as
paragraphs of English prose, and the language reference shipped as `pydoc_data.topics`. About 10 MB and 2 MB;
licence PSF-2.0.
"""

from __future__ import annotations

import ast
import inspect
import os
import platform
import re
import sysconfig
import warnings
from collections.abc import Iterator
from pathlib import Path

from jaxpt.data.documents import Document

LICENCE = "PSF-2.0"
SKIPPED = {
    "test",
    "tests",
    "idle_test",
    "site-packages",
    "dist-packages",
    "idlelib",
    "turtledemo",
    "__pycache__",
    "pydoc_data",
}

FUNCTION_WORDS = frozenset(
    "the a an of to and in is it that for on be as are with this by or if not from will can which at when "
    "has its no but was used any all".split()
)
ENDS_A_SENTENCE = re.compile(r"[.!?:…]\W*$")
MARKUP = re.compile(r">>>|\.\.\.|\$|\.\. |::|\||\+|---|===|~~~")


def python_code(_cache: Path) -> Iterator[Document]:
    """One document per module of the standard library, tests excluded, in order of name."""
    for name, path in modules():
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue  # a few modules declare another encoding on purpose
        if text.strip():
            yield Document(f"python-code:{name}", "code", name, text, LICENCE, version=platform.python_version())


def python_prose(_cache: Path) -> Iterator[Document]:
    """One document per module (the prose of its docstrings, in order), one per topic of the reference."""
    seen: set[str] = set()
    for name, path in modules():
        paragraphs = [p for d in docstrings(path) for p in prose_paragraphs(d) if p not in seen]
        seen.update(paragraphs)
        if paragraphs:
            text = "\n\n".join(dict.fromkeys(paragraphs)) + "\n"
            yield Document(f"python-prose:{name}", "prose", name, text, LICENCE, version=platform.python_version())
    from pydoc_data.topics import topics

    for topic in sorted(topics):
        paragraphs = [p for p in dict.fromkeys(re.split(r"\n\s*\n", topics[topic].strip("\n"))) if p not in seen]
        seen.update(paragraphs)
        if paragraphs:
            text = "\n\n".join(paragraphs) + "\n"
            yield Document(
                f"python-prose:topic:{topic}",
                "prose",
                topic,
                text,
                LICENCE,
                version=platform.python_version(),
            )


def python_docstrings(_cache: Path) -> Iterator[Document]:
    """One document per different docstring of 30 to 300 words: short descriptions of one thing each."""
    seen: set[str] = set()
    for name, path in modules():
        for number, text in enumerate(docstrings(path)):
            if 30 <= len(text.split()) <= 300 and text not in seen:
                seen.add(text)
                yield Document(
                    f"python-docstrings:{name}:{number}", "docstrings", name, text + "\n", LICENCE,
                    version=platform.python_version(),
                )  # fmt: skip


def modules() -> list[tuple[str, Path]]:
    """(dotted name, file) of the standard library's modules, sorted by name; not the tables of the build."""
    root = Path(sysconfig.get_path("stdlib"))
    found = []
    for folder, folders, files in os.walk(root):
        folders[:] = [f for f in folders if f not in SKIPPED]
        for file in files:
            path = Path(folder, file)
            parts = path.relative_to(root).with_suffix("").parts
            if path.suffix == ".py" and not parts[-1].startswith(("test_", "_sysconfigdata")):
                found.append((".".join(p for p in parts if p != "__init__") or parts[0], path))
    return sorted(found)


def docstrings(path: Path) -> list[str]:
    """The cleaned docstrings of a source file in its order; none if it does not parse."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # old modules carry invalid escapes
            tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError):
        return []
    owners = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    nodes = sorted((n for n in ast.walk(tree) if isinstance(n, owners)), key=lambda n: getattr(n, "lineno", 0))
    found = (ast.get_docstring(node, clean=False) for node in nodes)
    return [inspect.cleandoc(d) for d in found if d]


def prose_paragraphs(text: str) -> list[str]:
    """Paragraphs of running English, one line each; markup, tables, doctests and short lines are left out."""
    kept = []
    for paragraph in re.split(r"\n\s*\n", text):
        lines = [line.strip() for line in paragraph.splitlines() if line.strip()]
        joined = " ".join(lines)
        plain = lines and not any(MARKUP.match(line) for line in lines)
        if plain and len(joined.split()) >= 4 * len(lines) and is_prose(joined):
            kept.append(joined)
    return kept


def is_prose(paragraph: str) -> bool:
    """At least 8 words, ends like a sentence, 85 % letters and spaces, 15 % function words."""
    words = paragraph.split()
    if len(words) < 8 or not ENDS_A_SENTENCE.search(words[-1]):
        return False
    letters = sum(c.isalpha() or c.isspace() for c in paragraph)
    common = sum(w.strip(".,;:()\"'").lower() in FUNCTION_WORDS for w in words)
    return letters >= 0.85 * len(paragraph) and common >= 0.15 * len(words)
