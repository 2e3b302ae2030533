"""Near duplicates along a path. Left in, a model learns to copy: its loss looks wonderful and everything else suffers."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int


def near_dup(a: str, b: str, n: int = 3, head: int = 100, threshold: float = 0.85) -> bool:
    """Whether the character n-grams of the first `head` characters have a Jaccard index above the threshold (2310.10638's
    release). Texts shorter than n are compared as they are."""
    first, second = (_grams(text[:head], n) for text in (a, b))
    return len(first & second) > threshold * len(first | second)


def _grams(text: str, n: int) -> set[str]:
    return {text[i : i + n] for i in range(max(1, len(text) - n + 1))}


def without_near_duplicates(order: Int[np.ndarray, " N"], texts: Sequence[str]) -> Int[np.ndarray, " M"]:
    """The order without the documents that nearly repeat the one that was kept before them."""
    kept: list[int] = []
    for document in order.tolist():
        if not kept or not near_dup(texts[document], texts[kept[-1]]):
            kept.append(document)
    return np.array(kept, np.int32)
