"""Which documents are validation: by hash of the group of near duplicates that a document belongs to.

    groups = near_duplicate_groups(documents)                     # document id -> group id
    split = split_of(groups[document.id], validation=0.05)

Near duplicates are pairs whose sets of word 5-grams have a Jaccard index above 0.8 (Lee et al. 2022,
"Deduplicating Training Data Makes Language Models Better", sec. 4.2); groups are the connected components, so
a group never lies on both sides. MinHash LSH (datasketch) proposes pairs, the sets decide.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Literal

import numpy as np
from jaxtyping import UInt64

from jaxpt.data.documents import Document

WORDS = 5
JACCARD = 0.8
# 32 bands of 4 rows: a pair at Jaccard 0.8 is missed with probability (1 - 0.8^4)^32 = 5e-8.
BANDS, ROWS = 32, 4
CHUNK = 4096  # 5-grams sketched at once, which keeps the block of hashes small


def near_duplicate_groups(docs: Iterable[Document]) -> dict[str, str]:
    """Maps each document id to its group's id, the smallest document id in the group.

    The result does not depend on the order of the documents. A document of fewer than five
    whitespace-separated words is its own group.
    """
    from datasketch import MinHash, MinHashLSH

    index = MinHashLSH(num_perm=BANDS * ROWS, params=(BANDS, ROWS))
    empty = MinHash(num_perm=BANDS * ROWS, hashfunc=int)  # of numbers that are hashes already
    grams: dict[str, UInt64[np.ndarray, " G"]] = {}
    parent: dict[str, str] = {}
    words: dict[str, int] = {}
    for document in docs:
        parent[document.id] = document.id
        own = word_grams(document.text, words)
        if not own.size:
            continue
        grams[document.id] = own
        sketch = empty.copy()
        for start in range(0, own.size, CHUNK):
            sketch.update_batch((own[start : start + CHUNK] >> np.uint64(32)).tolist())
        for other in index.query(sketch):
            a, b = _root(parent, document.id), _root(parent, other)
            if a != b and jaccard(own, grams[other]) > JACCARD:
                parent[max(a, b)] = min(a, b)
        index.insert(document.id, sketch)
    return {name: _root(parent, name) for name in parent}


def split_of(group_id: str, validation: float, seed: int = 0) -> Literal["train", "validation"]:
    """The split of a group: validation for a share `validation` of all ids, for ever the same.

    A larger share keeps every group that a smaller one held out.

    Raises:
      ValueError: a share outside [0, 1].
    """
    if not 0 <= validation <= 1:
        raise ValueError(f"validation is a share between 0 and 1, got {validation}; try 0.05")
    digest = hashlib.blake2b(f"{seed}:{group_id}".encode(), digest_size=8).digest()
    return "validation" if int.from_bytes(digest, "big") < validation * 2**64 else "train"


def word_grams(text: str, words: dict[str, int]) -> UInt64[np.ndarray, " G"]:
    """Sorted distinct 64-bit hashes of the word 5-grams of a text, case ignored; empty below five words.

    Args:
      words: hashes of the words seen so far; grows.
    """
    ids = []
    for word in text.lower().split():
        number = words.get(word)
        if number is None:
            digest = hashlib.blake2b(word.encode("utf-8", "surrogatepass"), digest_size=8).digest()
            number = words[word] = int.from_bytes(digest, "little")
        ids.append(number)
    hashes = np.array(ids, np.uint64)
    if len(hashes) < WORDS:
        return np.empty(0, np.uint64)
    windows = len(hashes) - WORDS + 1
    mixed = np.zeros(windows, np.uint64)
    for offset in range(WORDS):
        mixed = _mix(mixed + hashes[offset : offset + windows])
    return np.unique(mixed)


def jaccard(a: UInt64[np.ndarray, " A"], b: UInt64[np.ndarray, " B"]) -> float:
    """Size of the intersection over size of the union of two sorted sets without repeats."""
    common = np.intersect1d(a, b, assume_unique=True).size
    return common / (a.size + b.size - common)


def _mix(x: UInt64[np.ndarray, " G"]) -> UInt64[np.ndarray, " G"]:
    """A bijection of 64-bit numbers in which each input bit moves all output bits (splitmix64)."""
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def _root(parent: dict[str, str], name: str) -> str:
    while parent[name] != name:
        parent[name] = parent[parent[name]]  # halve the path
        name = parent[name]
    return name
