"""A path through all documents that keeps neighbours together: greedy maximum travelling salesman (2310.10638, alg. 1).

The graph is undirected: (i, j) is an edge if either lists the other, weighted by similarity. A walk starts at an unvisited
document and goes on to the unvisited neighbour of the largest weight until there is none; then the next walk starts. The
paper starts at the smallest degree, since documents with few edges would be stranded later; its released code starts at the
smallest unvisited index, cuts walks at 21 documents, and dissolves shorter ones (`merge_short`). O(N k log k).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from jaxtyping import Float, Int

from jaxpt.core.names import nearest_error

Start = Literal["min_degree", "arbitrary"]


def max_tsp_greedy(
    idx: Int[np.ndarray, "N k"],
    sim: Float[np.ndarray, "N k"],
    start: Start = "min_degree",
    max_len: int | None = None,
) -> Int[np.ndarray, " N"]:
    """Every document once: the walks one after the other. Arguments as for `walks`."""
    found = walks(idx, sim, start, max_len)
    return np.concatenate(found) if found else np.zeros(0, np.int32)


def walks(
    idx: Int[np.ndarray, "N k"],
    sim: Float[np.ndarray, "N k"],
    start: Start = "min_degree",
    max_len: int | None = None,
) -> list[np.ndarray]:
    """The walks, int32 each.

    Args:
      idx: neighbours; -1 for none. Lists may be one-sided, repeat a neighbour, or name the document itself.
      sim: their similarities. Of equal ones the neighbour with the smaller index comes first.
      start: of each walk: the unvisited document of the smallest degree ("arbitrary": of the smallest index).
      max_len: a walk ends at so many documents.

    Raises:
      ValueError: an unknown start, max_len < 1, arrays of different shapes, a neighbour that is no document.
    """
    if start not in ("min_degree", "arbitrary"):
        raise nearest_error("start", start, ("min_degree", "arbitrary"))
    if max_len is not None and max_len < 1:
        raise ValueError(f"max_len must be at least 1, got {max_len}")
    offsets, neighbours = adjacency(idx, sim)[:2]
    count = len(idx)
    begin = np.argsort(np.diff(offsets), kind="stable") if start == "min_degree" else np.arange(count)
    visited = np.zeros(count, bool)
    found: list[np.ndarray] = []
    for first in begin.tolist():
        if visited[first]:
            continue
        walk, here = [first], first
        visited[first] = True
        while max_len is None or len(walk) < max_len:
            near = neighbours[offsets[here] : offsets[here + 1]]
            left = near[~visited[near]]
            if not len(left):
                break
            here = int(left[0])
            visited[here] = True
            walk.append(here)
        found.append(np.array(walk, np.int32))
    return found


def adjacency(idx: Int[np.ndarray, "N k"], sim: Float[np.ndarray, "N k"]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(offsets [N + 1], neighbours [M], weights [M]): both directions of every edge, each document's best neighbour first.

    An edge that was given twice has the larger of the two weights.
    """
    idx, sim = np.asarray(idx, np.int64), np.asarray(sim, np.float64)
    if idx.shape != sim.shape or idx.ndim != 2:
        raise ValueError(f"neighbours and similarities must have one shape [N, k], got {idx.shape} and {sim.shape}")
    count = len(idx)
    if idx.size and not -1 <= idx.min() <= idx.max() < count:
        raise ValueError(f"neighbours must be -1 to {count - 1}, got {idx.min()} to {idx.max()}")
    own = np.repeat(np.arange(count), idx.shape[1])
    other, weight = idx.ravel(), sim.ravel()
    real = (other >= 0) & (other != own)
    own, other, weight = own[real], other[real], weight[real]
    source, target = np.concatenate([own, other]), np.concatenate([other, own])
    weight = np.concatenate([weight, weight])
    order = np.lexsort((target, -weight, source))
    source, target, weight = source[order], target[order], weight[order]
    once = np.unique(source * count + target, return_index=True)[1]  # of equal pairs the first: the larger weight
    once.sort()
    source, target, weight = source[once], target[once], weight[once]
    offsets = np.concatenate([[0], np.cumsum(np.bincount(source, minlength=count))])
    return offsets, target, weight


def path_weight(order: Int[np.ndarray, " N"], idx: Int[np.ndarray, "N k"], sim: Float[np.ndarray, "N k"]) -> float:
    """Sum of the weights of the edges that an order of documents goes along; jumps count nothing."""
    offsets, neighbours, weights = adjacency(idx, sim)
    source = np.repeat(np.arange(len(idx)), np.diff(offsets))
    of = dict(zip(zip(source.tolist(), neighbours.tolist(), strict=True), weights.tolist(), strict=True))
    pairs = zip(order[:-1].tolist(), order[1:].tolist(), strict=True)
    return float(sum(of.get(pair, 0.0) for pair in pairs))


def merge_short(clusters: Sequence[np.ndarray], idx: Int[np.ndarray, "N k"], min_len: int) -> list[np.ndarray]:
    """Dissolves walks of fewer than `min_len` documents, one after the other: each of their documents goes just before the
    first neighbour that it lists in another walk, and stays where all it lists are of its own walk. A short walk that has
    grown to `min_len` by then is kept. No document is lost."""
    members = [cluster.tolist() for cluster in clusters]
    of = {document: number for number, cluster in enumerate(members) for document in cluster}
    for number in range(len(members)):
        if len(members[number]) >= min_len:
            continue
        for document in list(members[number]):
            listed = (int(j) for j in idx[document] if j >= 0)
            near = next((j for j in listed if of[j] != number), None)
            if near is None:
                continue
            members[number].remove(document)
            home = members[of[near]]
            home.insert(home.index(near), document)
            of[document] = of[near]
    return [np.array(cluster, np.int32) for cluster in members if cluster]
