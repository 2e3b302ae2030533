"""Held-out batches: every token of every chosen document is scored once, whatever the batch size."""

from __future__ import annotations

import numpy as np
import pytest

from jaxpt.data.held_out import held_out
from jaxpt.data.records import TokenRecords
from jaxpt.data.shards import Item, write_folder
from jaxpt.data.vocabularies import ByteVocabulary

SIZE = 32


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> TokenRecords:
    """60 documents of 5 to 200 bytes in two domains, in one split."""
    rng = np.random.default_rng(0)
    texts = ["".join(map(chr, rng.integers(97, 123, n))) for n in rng.integers(5, 200, 60)]
    items = [Item(f"d{i}", "ab"[i % 2], len(t), t) for i, t in enumerate(texts)]
    folder = write_folder(
        tmp_path_factory.mktemp("prepared"), {"validation": items}, ByteVocabulary(), shard_bytes=2000
    )
    return TokenRecords(folder, "validation")


@pytest.mark.parametrize("batch_size", [1, 7])
def test_every_token_but_eos_is_scored_once(records: TokenRecords, batch_size: int) -> None:
    held, scored = held_out(records, SIZE, batch_size), np.zeros(2, np.int64)
    for batch in held.batches():
        assert batch["inputs"].shape == (batch_size, SIZE)
        real = batch["segment_ids"].max(1) > 0
        assert (batch["loss_weight"][~real] == 0).all()
        assert batch["segment_ids"].max() == 1
        assert ((batch["positions"] == np.arange(SIZE)) | (batch["segment_ids"] == 0)).all()
        assert not batch["loss_weight"][batch["labels"] == records.eos_id].any()
        np.add.at(scored, batch["domain_index"], batch["loss_weight"].sum(1).astype(int))
    table = records.documents
    assert held.domains == ("a", "b")
    assert scored.tolist() == [(table.tokens - 1)[table.domain == d].sum() for d in "ab"]
    assert held.bytes == {d: table.bytes[table.domain == d].sum() for d in "ab"}  # a byte is a token here


def test_the_parts_are_disjoint_and_together_everything(records: TokenRecords) -> None:
    parts = [held_out(records, SIZE, 4, part=p) for p in ("tuning", "report")]
    seen = [set(records.document[p.packing.spans[:, 0]].tolist()) for p in parts]
    assert not seen[0] & seen[1]
    assert seen[0] | seen[1] == set(range(60))
    assert min(len(s) for s in seen) > 15


def test_a_limit_takes_whole_documents_in_an_order_that_does_not_depend_on_it(records: TokenRecords) -> None:
    few, more = (held_out(records, SIZE, 4, max_tokens=n) for n in (500, 2000))
    chosen = [set(records.document[p.packing.spans[:, 0]].tolist()) for p in (few, more)]
    assert chosen[0] < chosen[1]
    assert sum(records.documents.tokens[list(chosen[0])]) >= 500


def test_nothing_left_is_an_error(records: TokenRecords) -> None:
    with pytest.raises(ValueError, match="no held-out document left in part 'all'"):
        held_out(records, SIZE, 4, max_tokens=0)
