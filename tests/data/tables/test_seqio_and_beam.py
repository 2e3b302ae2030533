"""The SeqIO mixture gives the objective's own pairs at its rates, and the Beam stage the tables of the plain one."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from jaxpt.data.documents import DataError
from jaxpt.data.tables.batches import TableData
from jaxpt.data.tables.extract import extract, extract_beam, tables_of_file
from jaxpt.data.tables.sources import SCHEMAS, entity_tables
from jaxpt.data.tables.table import write_tables
from jaxpt.objectives.corruption import spans
from jaxpt.objectives.corruption.spans import SpanCorruption
from jaxpt.objectives.table_denoising import TableDenoising

PARTS = ("cells", "context")
SPANS = SpanCorruption(sentinel=319, sentinels=40, eos_id=1)


@pytest.fixture
def seqio() -> Iterator[Any]:
    seqio = pytest.importorskip("seqio", reason="SeqIO comes with the data extra")
    yield seqio
    seqio.TaskRegistry.reset()
    seqio.MixtureRegistry.reset()


def test_a_mixture_of_tasks_restores_the_rows(seqio: Any) -> None:
    from jaxpt.data.tables.seqio_mixture import table_mixture

    data = TableData(sources=("entities",), schemas=6, per_schema=1, vocabulary="bytes", sequence_length=255)
    objective = TableDenoising(corruption=SPANS, target_length=140)
    mixture = table_mixture((0.0, 0.4, 0.6), data, objective)
    assert [mixture.get_rate(seqio.TaskRegistry.get(f"tables_{part}")) for part in PARTS] == [0.4, 0.6]
    tables = data.open(320)
    wanted = {
        row["inputs"][: row["segment_ids"].sum()].tobytes() for u in data.units("train") if (row := tables.row(u))
    }
    seen = {}
    for part in PARTS:
        task = seqio.TaskRegistry.get(f"tables_{part}")
        runs = [list(task.get_dataset(None, "train", shuffle=False, seed=s).as_numpy_iterator()) for s in (1, 1, 2)]
        for example in runs[0]:
            inputs, targets = example["inputs"], example["targets"]
            text = spans.restore(spans.Pair(inputs, targets, len(inputs), len(targets)), SPANS)
            assert text.astype(np.int32).tobytes() in wanted and inputs[-1] == targets[-1] == 1
        ids = [[e["inputs"].tobytes() for e in run] for run in runs]
        assert ids[0] == ids[1] != ids[2]
        seen[part] = ids[0]
    assert seen[PARTS[0]] != seen[PARTS[1]] and len(seqio.TaskRegistry.names()) == 2  # a rate of 0 has no task
    whole = mixture.get_dataset({"inputs": 256, "targets": 140}, "train", shuffle=False, seed=1)
    assert next(whole.as_numpy_iterator())["inputs"].ndim == 1
    with pytest.raises(ValueError, match="three rates"):
        table_mixture((1.0, -1.0, 1.0), data, objective, "other")


def test_the_beam_stage_gives_the_tables_of_the_plain_one(tmp_path: Any) -> None:
    pytest.importorskip("apache_beam", reason="Beam comes with the data extra")
    units = entity_tables(SCHEMAS[:4], 3, 0)
    write_tables(tmp_path / "pages" / "a.jsonl", units)
    write_tables(tmp_path / "pages" / "b.jsonl", units[:5])
    excluded = {units[1].table.key}
    out = extract_beam(f"{tmp_path}/pages/*.jsonl", tmp_path / "out", excluded, shards=2)
    found = [unit for path in out for unit in tables_of_file(path)]
    plain = list(extract(sorted((tmp_path / "pages").iterdir()), excluded))
    assert sorted(map(repr, found)) == sorted(map(repr, plain)) and len(found) == 11
    with pytest.raises(DataError, match="no file matches"):
        extract_beam(f"{tmp_path}/none/*.html", tmp_path / "out")
