"""Tasks about the meaning of words, from WordNet's own database files (data.noun, data.verb, data.adj, data.adv).

    task = relation_task("/usr/share/wordnet")       # synonym, antonym or hypernym: three classes, as in NLI
    task = gloss_task("/usr/share/wordnet")          # does this definition belong to this word

Format: wndb(5WN). A word is on one side of the split only.
"""

from __future__ import annotations

import dataclasses
import zlib
from pathlib import Path

import numpy as np

from jaxpt.data.documents import DataError
from jaxpt.evaluate.classification import Example, Task

RELATIONS = ("synonym", "antonym", "hypernym")
PARTS = {"noun": "n", "verb": "v", "adj": "a", "adv": "r"}
HELD_OUT = 5  # one word in so many is for validation


@dataclasses.dataclass(frozen=True)
class Synset:
    """Attributes:
    words: without markers, spaces for underscores.
    pointers: (symbol, part of speech, offset, number of the source word or 0, number of the target word or 0).
    """

    words: tuple[str, ...]
    gloss: str
    pointers: tuple[tuple[str, str, int, int, int], ...]


def read(folder: str | Path) -> dict[tuple[str, int], Synset]:
    """(part of speech, offset) -> synset, of the data files that are there.

    Raises:
      DataError: no data file, or a line that is not WordNet's; file and line are named.
    """
    files = [(part, Path(folder) / f"data.{name}") for name, part in PARTS.items()]
    if not any(path.is_file() for _, path in files):
        raise DataError(f"no WordNet data file (data.noun, data.verb, data.adj, data.adv) in {folder}")
    found = {}
    for part, path in files:
        for number, line in enumerate(path.read_text("utf-8").splitlines() if path.is_file() else [], 1):
            if line.startswith("  "):  # the licence
                continue
            try:
                offset, synset = _parse(line)
            except (ValueError, IndexError) as error:
                raise DataError(f"{path}, line {number} is not a WordNet synset: {error}") from None
            found[part, offset] = synset
    return found


def relation_task(folder: str | Path, per_relation: int = 2000, seed: int = 0) -> Task:
    """Pairs of words that are synonyms (0), antonyms (1), or a word and its hypernym (2), equally many of each.

    Raises:
      DataError: as `read`, or a relation that no pair has.
    """
    synsets = read(folder)
    pairs: dict[str, set[tuple[str, str]]] = {name: set() for name in RELATIONS}
    for synset in synsets.values():
        pairs["synonym"] |= set(zip(synset.words, synset.words[1:], strict=False))
        for symbol, part, offset, source, target in synset.pointers:
            other = synsets.get((part, offset))
            if symbol == "!" and other is not None and source and target:
                pairs["antonym"].add((synset.words[source - 1], other.words[target - 1]))
            if symbol == "@" and other is not None:
                pairs["hypernym"].add((synset.words[0], other.words[0]))
    missing = [name for name, of_one in pairs.items() if not of_one]
    if missing:
        raise DataError(f"no {' and no '.join(missing)} in the WordNet files of {folder}")
    size = min(per_relation, *map(len, pairs.values()))
    examples = [
        Example(first, label, second)
        for label, name in enumerate(RELATIONS)
        for first, second in _drawn(sorted(pairs[name]), size, seed)
    ]
    return _split("word relations", examples, len(RELATIONS), seed)


def gloss_task(folder: str | Path, pairs: int = 2000, seed: int = 0) -> Task:
    """Is this the definition of this word? As many right as wrong; a wrong one is another word's of the same split side."""
    known = sorted({(s.words[0], s.gloss.split(";")[0].strip()) for s in read(folder).values() if s.gloss})
    examples = []
    for side in (True, False):
        own = _drawn([p for p in known if _held_out(p[0]) == side], pairs // 2, seed)
        for index, (word, gloss) in enumerate(own):
            other = own[(index + 1) % len(own)][1]
            examples += [Example(word, 1, gloss), Example(word, 0, other)] if other != gloss else []
    return _split("definitions", examples, 2, seed)


def _parse(line: str) -> tuple[int, Synset]:
    head, _, gloss = line.partition("|")
    fields = head.split()
    count = int(fields[3], 16)
    words = tuple(w.split("(")[0].replace("_", " ") for w in fields[4 : 4 + 2 * count : 2])
    at = 4 + 2 * count
    pointers = []
    for start in range(at + 1, at + 1 + 4 * int(fields[at]), 4):
        symbol, offset, part, both = fields[start : start + 4]
        pointers.append((symbol, part, int(offset), int(both[:2], 16), int(both[2:], 16)))
    if len(words) != count or not count:
        raise ValueError(f"{count} words promised, {len(words)} found")
    return int(fields[0]), Synset(words, gloss.strip(), tuple(pointers))


def _drawn(pairs: list[tuple[str, str]], size: int, seed: int) -> list[tuple[str, str]]:
    order = np.random.default_rng([seed, 10]).permutation(len(pairs))[:size]
    return [pairs[i] for i in order]


def _split(name: str, examples: list[Example], classes: int, seed: int) -> Task:
    order = np.random.default_rng([seed, 11]).permutation(len(examples))
    sides: dict[bool, list[Example]] = {True: [], False: []}
    for i in order:
        sides[_held_out(examples[i].first)].append(examples[i])
    return Task(name, tuple(sides[False]), tuple(sides[True]), classes)


def _held_out(word: str) -> bool:
    return zlib.crc32(word.encode("utf-8")) % HELD_OUT == 0
