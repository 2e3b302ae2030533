"""The path visits every document once, follows the strongest edges, and is as heavy as a greedy path must be."""

from __future__ import annotations

import itertools

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis.extra import numpy as arrays

from jaxpt.data.related import knn_graph, max_tsp_greedy, merge_short, path_weight, walks


@st.composite
def graphs(draw):
    """Any lists: one-sided, with repeats, with oneself, with holes, isolated documents, equal and negative weights."""
    count, k = draw(st.integers(1, 25)), draw(st.integers(0, 4))
    idx = draw(arrays.arrays(np.int32, (count, k), elements=st.integers(-1, count - 1)))
    sim = draw(arrays.arrays(np.float32, (count, k), elements=st.integers(-2, 3)))
    return idx, np.where(idx < 0, -np.inf, sim).astype(np.float32)


@settings(max_examples=150, deadline=None)
@given(graphs(), st.sampled_from(["min_degree", "arbitrary"]), st.sampled_from([None, 1, 3]))
def test_every_document_is_visited_once(graph, start, max_len):
    idx, sim = graph
    order = max_tsp_greedy(idx, sim, start, max_len)
    assert sorted(order.tolist()) == list(range(len(idx)))
    found = walks(idx, sim, start, max_len)
    assert all(0 < len(walk) <= (max_len or len(idx)) for walk in found)
    edges = {frozenset((i, int(j))) for i in range(len(idx)) for j in idx[i] if j >= 0}
    assert all({int(a), int(b)} in edges for walk in found for a, b in itertools.pairwise(walk))


@settings(max_examples=150, deadline=None)
@given(graphs(), st.integers(1, 6))
def test_dissolving_short_walks_loses_nothing(graph, min_len):
    idx, sim = graph
    merged = merge_short(walks(idx, sim, "arbitrary", 3), idx, min_len)
    assert sorted(np.concatenate(merged).tolist()) == list(range(len(idx)))


def test_a_short_walk_goes_before_its_neighbours():
    idx = np.array([[1], [0], [3], [2], [1], [4]])
    merged = merge_short([np.array([0, 1]), np.array([2, 3]), np.array([4])], idx, 2)
    assert [m.tolist() for m in merged] == [[0, 4, 1], [2, 3]]
    alone = merge_short([np.array([0, 1])], idx, 3)  # nowhere to go
    assert [m.tolist() for m in alone] == [[0, 1]]


def test_a_chain_is_found_from_its_end():
    names = np.random.default_rng(0).permutation(12)
    idx, sim = np.full((12, 1), -1, np.int32), np.ones((12, 1), np.float32)
    for a, b in itertools.pairwise(names):
        idx[a, 0] = b
    order = max_tsp_greedy(idx, sim).tolist()
    assert order in (names.tolist(), names[::-1].tolist())


def test_no_neighbours_is_a_plain_permutation():
    none = np.zeros((5, 0))
    assert max_tsp_greedy(none.astype(np.int32), none).tolist() == [0, 1, 2, 3, 4]
    assert max_tsp_greedy(np.zeros((0, 3), np.int32), np.zeros((0, 3))).tolist() == []


def clusters(seed, count=20, size=15, noise=0.1):
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(count, 16))
    centres /= np.linalg.norm(centres, axis=1, keepdims=True)
    x = np.repeat(centres, size, 0) + noise * rng.normal(size=(count * size, 16))
    return x / np.linalg.norm(x, axis=1, keepdims=True), np.repeat(np.arange(count), size)


def test_planted_clusters_are_walked_one_after_the_other():
    """On average 90 % of adjacent pairs are of one cluster; starting at the smallest degree is worth weight on average."""
    same, weights = [], {"min_degree": [], "arbitrary": []}
    for seed in range(20):
        x, label = clusters(seed)
        mixed = np.random.default_rng(seed + 99).permutation(len(x))
        x, label = x[mixed], label[mixed]
        idx, sim = knn_graph(x, 10, block=512)
        order = max_tsp_greedy(idx, sim)
        same.append((label[order[1:]] == label[order[:-1]]).mean())
        for start, found in weights.items():
            found.append(path_weight(max_tsp_greedy(idx, sim, start), idx, sim))
    assert np.mean(same) >= 0.9
    assert np.mean(weights["min_degree"]) >= np.mean(weights["arbitrary"])


@pytest.mark.parametrize("seed", range(20))
def test_at_least_half_of_the_heaviest_path(seed):
    """On complete graphs of up to seven documents, against all paths."""
    rng = np.random.default_rng(seed)
    count = 3 + seed % 5
    weight = np.triu(rng.random((count, count)), 1)
    weight = weight + weight.T
    idx = np.array([[j for j in range(count) if j != i] for i in range(count)])
    sim = np.take_along_axis(weight, idx, 1)
    best = max(sum(weight[a, b] for a, b in itertools.pairwise(p)) for p in itertools.permutations(range(count)))
    found = path_weight(max_tsp_greedy(idx, sim), idx, sim)
    assert 0.5 * best <= found <= best + 1e-9


def test_what_is_no_graph_is_named():
    one = np.zeros((2, 1), np.int32)
    with pytest.raises(ValueError, match="did you mean 'min_degree'"):
        walks(one, np.zeros((2, 1)), "min_degre")
    with pytest.raises(ValueError, match="max_len must be at least 1, got 0"):
        walks(one, np.zeros((2, 1)), max_len=0)
    with pytest.raises(ValueError, match="must be -1 to 1, got 5 to 5"):
        walks(one + 5, np.zeros((2, 1)))
    with pytest.raises(ValueError, match=r"one shape \[N, k\]"):
        walks(one, np.zeros((2, 2)))
