"""Nearest neighbours are exact, on one device and on eight; approximate ones agree with them where faiss is there."""

from __future__ import annotations

import builtins

import numpy as np
import pytest

from jaxpt.data.related import approximate_graph, knn_graph, near_dup, tfidf_embeddings, without_near_duplicates
from jaxpt.data.related.neighbours import _without_self
from jaxpt.sharding import MeshConfig, make_mesh


@pytest.fixture(scope="module")
def points():
    return np.random.default_rng(0).normal(size=(101, 7)).astype(np.float32)


def brute_force(x, k):
    similarity = x.astype(np.float64) @ x.T.astype(np.float64)
    np.fill_diagonal(similarity, -np.inf)
    idx = np.argsort(-similarity, axis=1, kind="stable")[:, :k]
    return idx, np.take_along_axis(similarity, idx, 1)


@pytest.mark.parametrize("block", [16, 101, 4096])
def test_neighbours_are_those_of_all_pairs(points, block):
    idx, sim = knn_graph(points, 5, block=block)
    expected = brute_force(points, 5)
    np.testing.assert_array_equal(idx, expected[0])
    np.testing.assert_allclose(sim, expected[1], rtol=1e-5)
    assert idx.dtype == np.int32 and sim.dtype == np.float32


def test_devices_divide_the_rows_and_find_the_same(points):
    one, eight = knn_graph(points, 5, block=16), knn_graph(points, 5, block=16, mesh=make_mesh(MeshConfig()))
    np.testing.assert_array_equal(one[0], eight[0])
    np.testing.assert_allclose(one[1], eight[1], rtol=1e-6)


def test_equal_documents_come_in_order_and_a_document_is_not_its_own_neighbour():
    idx, sim = knn_graph(np.ones((6, 3), np.float32), 5, block=2)
    assert idx.tolist() == [[j for j in range(6) if j != i] for i in range(6)]
    assert (sim == 3).all()
    assert knn_graph(np.ones((6, 3), np.float32), 0)[0].shape == (6, 0)


@pytest.mark.parametrize(
    ("x", "k", "message"),
    [
        (np.zeros((0, 3)), 1, "N > 0, got shape"),
        (np.array([[np.nan]]), 0, "finite matrix"),
        (np.zeros((3, 2)), 3, "k must be 0 to 2, got 3"),
        (np.zeros(3), 1, r"got shape \(3,\)"),
    ],
)
def test_what_cannot_be_searched_is_named(x, k, message):
    with pytest.raises(ValueError, match=message):
        knn_graph(x, k)


def test_oneself_is_left_out_wherever_it_was_found():
    idx, sim = _without_self(
        np.array([[0, 1, 2], [2, 0, -1], [0, 2, 1]]), np.array([[9.0, 2, 1], [3, 2, 1], [5, 4, 3]]), 2
    )
    assert idx.tolist() == [[1, 2], [2, 0], [0, 1]]
    assert sim.tolist() == [[2, 1], [3, 2], [5, 3]]
    idx, sim = _without_self(np.array([[0, -1, -1]]), np.array([[9.0, -1, -1]]), 2)
    assert idx.tolist() == [[-1, -1]] and np.isinf(sim).all()


def test_approximate_neighbours(points):
    pytest.importorskip("faiss")
    exact = knn_graph(points, 5)[0]
    np.testing.assert_array_equal(approximate_graph(points, 5, index="Flat")[0], exact)
    np.testing.assert_array_equal(approximate_graph(points, 5, index="IVF4,Flat", probes=4)[0], exact)


@pytest.mark.parametrize(
    ("missing", "call"),
    [("faiss", lambda: approximate_graph(np.ones((3, 2)), 1)), ("sklearn", lambda: tfidf_embeddings(["a b", "a b"]))],
)
def test_a_missing_library_names_its_extra(monkeypatch, missing, call):
    load = builtins.__import__

    def without(name, *args, **kwargs):
        if name.split(".")[0] == missing:
            raise ImportError(f"No module named {name!r}")
        return load(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ImportError, match=r"pip install 'jaxpt\[related\]'"):
        call()


def test_texts_of_one_kind_are_near():
    texts = [f"{kind} {kind}er {n} of the {kind}" for n in ("one", "two", "three") for kind in ("cat", "dog", "bird")]
    found = tfidf_embeddings(texts, 4)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, rtol=1e-5)
    idx, _ = knn_graph(found, 2)
    assert [{int(j) % 3 for j in row} for row in idx] == [{i % 3} for i in range(9)]
    with pytest.raises(ValueError, match="0 texts and dimensions=4"):
        tfidf_embeddings([], 4)
    with pytest.raises(ValueError, match="no word is in 2 of the 2 texts"):
        tfidf_embeddings(["cat", "dog"], 4)


def test_near_duplicates_are_what_begins_alike():
    one = "the quick brown fox jumps over the lazy dog and runs away into the wood " * 3
    assert near_dup(one, one[:-20] + "something else entirely")  # the heads are equal
    assert not near_dup(one, "an entirely different sentence about other things " * 3)
    assert near_dup("", "") and near_dup("ab", "ab") and not near_dup("", "ab")
    texts = [one, "other", one + "!", one, "other"]
    assert without_near_duplicates(np.array([0, 2, 1, 3, 4]), texts).tolist() == [0, 1, 3, 4]
