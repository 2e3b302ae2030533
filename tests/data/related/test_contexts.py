"""Contexts along an order hold the same tokens as any other order, and related documents side by side."""

from __future__ import annotations

import collections
import dataclasses

import numpy as np
import pytest

from jaxpt.data.packing import example
from jaxpt.data.records import TokenRecords
from jaxpt.data.related import nearest_first, pack_in_order, pieces, whole_documents
from jaxpt.data.shards import Item, write_folder
from jaxpt.data.vocabularies import ByteVocabulary
from jaxpt.in_context import Graph, RelatedConfig
from jaxpt.pretrain import Data

WORDS = ("apple", "brick", "cloud", "delta")
CFG = RelatedConfig(sequence_length=64, batch_size=4, graph=Graph(neighbours=4, dimensions=8))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """40 texts of four kinds, in no order; one of them is longer than a record."""
    rng = np.random.default_rng(0)
    texts = [
        f"{n:02d} " + " ".join(f"{WORDS[n % 4]}{m}" for m in rng.integers(0, 4, 900 if n == 7 else 6))
        for n in range(40)
    ]
    items = [Item(f"d{n}", "a", len(t), t) for n, t in enumerate(texts)]
    folder = write_folder(
        tmp_path_factory.mktemp("prepared"), {"train": items, "validation": items[:4]}, ByteVocabulary()
    )
    records = TokenRecords(folder, "train")
    assert len(records) > 40
    return Data(CFG, records, TokenRecords(folder, "validation"))


def stream(records, packing):
    return np.concatenate([example(records, packing, i)["inputs"] for i in range(len(packing))])


def test_contexts_before_shuffling_are_the_documents_along_the_order(data):
    units = whole_documents(data.train)
    assert len(units) == 40 and units.lengths.sum() == data.train.lengths.sum()
    order = np.random.default_rng(1).permutation(40)
    packing = pack_in_order(units, order, 64)
    expected = []
    for document in order:
        for i in np.flatnonzero(data.train.document == document):
            expected += data.train[i][:-1].tolist()
    found = stream(data.train, packing)
    assert found.tolist() == expected[: len(found)]
    assert len(found) > len(expected) - 64
    labels = np.concatenate([units.tokens(data.train, int(u)) for u in order])
    np.testing.assert_array_equal(
        np.concatenate([example(data.train, packing, i)["labels"] for i in range(len(packing))]), labels[: len(found)]
    )


def test_all_of_a_context_sees_all_before_it(data):
    packing = CFG.ordered(data).contexts
    row = example(data.train, packing, 0)
    assert set(row["segment_ids"].tolist()) == {1}
    assert row["positions"].tolist() == list(range(64))
    assert row["loss_weight"].all()


def test_the_plan_shows_every_context_once_an_epoch_in_another_order(data):
    found = CFG.ordered(data)
    loader, count = found.loader(), len(found.contexts)
    ids = np.concatenate([loader.batch(t)["sequence_ids"] for t in range(count // 4 + 1)])[:count]
    assert sorted(ids.tolist()) == list(range(count))
    assert ids.tolist() != list(range(count))


def test_all_orders_hold_the_same_documents(data):
    standard, related = (dataclasses.replace(CFG, order=order).ordered(data) for order in ("standard", "related"))
    spans = [collections.Counter(map(tuple, d.contexts.spans.tolist())) for d in (standard, related)]
    tokens = [collections.Counter(stream(data.train, d.contexts).tolist()) for d in (standard, related)]
    assert abs(tokens[0].total() - tokens[1].total()) == 0
    assert (tokens[0] - tokens[1]).total() < 64 and spans[0] != spans[1]  # but for the end that fills no context
    same = []
    for contexts in (standard.contexts, related.contexts):
        document = data.train.document[contexts.spans[:, 0]]
        kinds = document[np.flatnonzero(np.diff(document, prepend=-1))] % 4
        same.append((kinds[1:] == kinds[:-1]).mean())
    assert same[1] > 0.85 > 0.6 > same[0]


def test_pieces_are_of_one_length_and_evenly_taken(data):
    units = pieces(data.train, 32, 3)
    assert (units.lengths == 32).all()
    counts = np.bincount(data.train.document[units.spans[:, 0]])
    assert counts.max() == 3 and counts.min() >= 1
    whole = pieces(data.train, 32, 10**6)
    assert len(whole) > len(units) and set(map(tuple, units.spans.tolist())) <= set(map(tuple, whole.spans.tolist()))
    with pytest.raises(ValueError, match="no document of .* has 100000 tokens"):
        pieces(data.train, 100_000, 3)


def test_the_baseline_with_repetition_has_as_many_tokens():
    idx = np.array([[1, 2], [0, 2], [0, 1], [0, 1]])
    lengths = np.full(4, 10)
    found = nearest_first(idx, lengths, 30, np.array([3, 2, 1, 0]))
    assert found.tolist() == [3, 0, 1, 2]
    assert nearest_first(idx, lengths, 20, np.array([3, 2, 1, 0])).tolist() == [3, 0, 2, 0]  # again, and 1 never


def test_the_order_is_kept_beside_the_records_and_a_broken_file_is_named(data):
    cfg = dataclasses.replace(CFG, graph=dataclasses.replace(CFG.graph, walk=5))
    first = cfg.ordered(data).contexts
    found = sorted((data.train.folder / "train").glob("order-*.npy"))
    assert cfg.ordered(data).contexts.fingerprint == first.fingerprint
    assert sorted((data.train.folder / "train").glob("order-*.npy")) == found
    for path in found:
        path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(ValueError, match=r"order-.*\.npy is not an order of documents"):
        cfg.ordered(data)
    for path in found:
        path.unlink()


def test_impossible_descriptions_are_named(data):
    with pytest.raises(ValueError, match="did you mean 'related'"):
        dataclasses.replace(CFG, order="relatd").ordered(data)
    with pytest.raises(ValueError, match="must see each other"):
        dataclasses.replace(CFG, packing="isolate").ordered(data)
    with pytest.raises(ValueError, match="names units 0 to 40, there are 40"):
        pack_in_order(whole_documents(data.train), np.array([0, 40]), 64)
