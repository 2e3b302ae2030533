"""SeqIO tasks and the Beam pipeline give the records of the plain preparation. Needs the `data` extra."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jaxpt.data import vocabularies
from jaxpt.data.prepare import TextTask, prepare, split_documents
from jaxpt.data.records import RecordError, TokenRecords, read_info

TEXTS = [f"Number {i}: " + "naïve tales of a small town. " * (1 + i % 7) + f"end {i * i}" for i in range(60)]


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JAXPT_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def corpus(tmp_path: Path) -> str:
    path = tmp_path / "corpus.jsonl"
    rows = [{"id": str(i), "domain": "ab"[i % 2], "text": text} for i, text in enumerate(TEXTS)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return f"files:{path}"


@pytest.fixture
def seqio_tasks() -> Iterator[Any]:
    pytest.importorskip("seqio", reason="SeqIO comes with the data extra")
    from jaxpt.data import seqio_tasks

    yield seqio_tasks
    seqio_tasks.seqio.TaskRegistry.reset()
    seqio_tasks.seqio.MixtureRegistry.reset()


def streams(folder: Path, split: str) -> list[list[int]]:
    """Token ids of every document."""
    records = TokenRecords(folder, split)
    each = [np.flatnonzero(records.document == d) for d in range(len(records.documents.id))]
    return [np.concatenate([records[int(i)][1:] for i in mine]).tolist() for mine in each]


@pytest.mark.parametrize("vocabulary", ["bytes", "bpe:350", "sentencepiece:320"])
def test_a_task_through_seqio_gives_the_same_tokens(
    seqio_tasks: Any, corpus: str, tmp_path: Path, vocabulary: str
) -> None:
    task = TextTask("tales", (corpus,), vocabulary, validation=0.2)
    plain = prepare(task, processes=1)
    registered = seqio_tasks.register(task)
    assert registered is seqio_tasks.register(task)
    example = next(registered.get_dataset(None, "train", shuffle=False).as_numpy_iterator())
    document = split_documents(task)["train"][0]
    assert example["id"].decode() == document.id and example["targets_pretokenized"].decode() == document.text
    assert example["inputs"].size == 0
    decoded = registered.output_features["targets"].vocabulary.decode(example["targets"][:-1].tolist())
    assert decoded == document.text
    through = seqio_tasks.prepare_seqio("tales", tmp_path / "through", processes=1)
    for split in ("train", "validation"):
        assert streams(through, split) == streams(plain, split)
        counts = [read_info(f)["splits"][split] for f in (plain, through)]
        assert all(counts[0][k] == counts[1][k] for k in ("documents", "bytes", "tokens", "records"))
    assert read_info(through)["fingerprint"] == read_info(plain)["fingerprint"]


def test_any_registered_task_becomes_records(seqio_tasks: Any, tmp_path: Path) -> None:
    seqio, tf = seqio_tasks.seqio, seqio_tasks.tf
    feature = seqio.Feature(seqio.ByteVocabulary(), add_eos=True)

    def dataset(split: str, shuffle_files: bool, seed: int | None = None) -> object:
        return tf.data.Dataset.from_tensor_slices({"targets": [f"{split} {t}" for t in TEXTS[:5]]})

    seqio.TaskRegistry.add(
        "someone_elses",
        source=seqio.FunctionDataSource(dataset, splits=("train", "test")),
        preprocessors=[seqio.preprocessors.tokenize, seqio.preprocessors.append_eos],
        output_features={"targets": feature},
    )
    folder = seqio_tasks.prepare_seqio("someone_elses", tmp_path / "out", splits=("train", "test"), processes=1)
    words = vocabularies.ByteVocabulary()
    assert streams(folder, "test") == [[*words.encode(f"test {t}"), words.eos_id] for t in TEXTS[:5]]
    records = TokenRecords(folder, "train")
    assert records.documents.id[0] == "someone_elses:train:0" and set(records.documents.domain) == {"someone_elses"}
    assert records.documents.bytes[0] == len(f"train {TEXTS[0]}".encode())
    with pytest.raises(ValueError, match="did you mean 'someone_elses'"):
        list(seqio_tasks.documents_of("someone_else", "train"))
    with pytest.raises(ValueError, match="split of SeqIO task"):
        list(seqio_tasks.documents_of("someone_elses", "validation"))


def test_a_mixture_draws_at_its_rates(seqio_tasks: Any, corpus: str) -> None:
    rates = {
        TextTask("one", (corpus,), validation=0.2): 3.0,
        TextTask("two", (corpus,), validation=0.2, seed=1): 1.0,
    }
    mixture = seqio_tasks.register_mixture("both", rates)
    lengths = {"inputs": 64, "targets": 64}
    dataset = mixture.get_dataset(lengths, "train", shuffle=False, num_epochs=None, seed=0)
    drawn = sum(1 for _ in dataset.take(20).as_numpy_iterator())
    assert drawn == 20 and mixture.get_rate(mixture.tasks[0]) == 3.0 * mixture.get_rate(mixture.tasks[1])


def test_a_vocabulary_without_counterpart_is_refused(seqio_tasks: Any) -> None:
    with pytest.raises(ValueError, match="ByteVocabulary with 100 extra ids has no counterpart"):
        seqio_tasks.from_seqio(seqio_tasks.seqio.ByteVocabulary(extra_ids=100))


@pytest.mark.parametrize("vocabulary", ["bytes", "bpe:350"])
def test_beam_gives_the_folder_of_the_plain_preparation(corpus: str, tmp_path: Path, vocabulary: str) -> None:
    pytest.importorskip("apache_beam", reason="Apache Beam comes with the data extra")
    from jaxpt.data.beam_prepare import prepare_beam

    task = TextTask("tales", (corpus,), vocabulary, validation=0.2)
    plain = prepare(task, tmp_path / "plain", processes=1)
    beamed = prepare_beam(task, tmp_path / "beamed")
    files = sorted(p.relative_to(plain) for p in plain.rglob("*") if p.is_file())
    assert files == sorted(p.relative_to(beamed) for p in beamed.rglob("*") if p.is_file())
    assert all((plain / f).read_bytes() == (beamed / f).read_bytes() for f in files)
    assert read_info(plain)["fingerprint"] == read_info(beamed)["fingerprint"]


def test_beam_reports_a_failing_shard(tmp_path: Path) -> None:
    pytest.importorskip("apache_beam", reason="Apache Beam comes with the data extra")
    from jaxpt.data.beam_prepare import write_shards
    from jaxpt.data.shards import Item, plan_shards

    (tmp_path / "vocabulary").mkdir()
    vocabularies.ByteVocabulary().save(tmp_path / "vocabulary")
    with pytest.raises((RecordError, RuntimeError), match="token id 300 in document 'bad'"):
        write_shards(plan_shards(tmp_path, "train", [Item("bad", "d", 1, (300,))]))
