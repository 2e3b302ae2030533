"""SeqIO and the records, in both directions. Needs the `data` extra; nothing else imports SeqIO.

    register(task)                     a TextTask as a SeqIO task: inputs (empty) and targets (the text)
    register_mixture(name, rates)      a SeqIO mixture of such tasks
    prepare_seqio(name, out)           the targets of ANY registered SeqIO task as token records

The vocabulary of a task is that of its prepared folder, so SeqIO and the records give the same ids.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import seqio
import tensorflow as tf

from jaxpt.core.names import nearest_error
from jaxpt.data import vocabularies
from jaxpt.data.prepare import (
    TextTask,
    claim_folder,
    default_folder,
    ensure_vocabulary,
    request,
    run_processes,
    split_documents,
    task_vocabulary,
)
from jaxpt.data.shards import SPLITS, Item, assemble, plan_shards


class WrappedVocabulary(seqio.Vocabulary):
    """One of our vocabularies as a SeqIO vocabulary; in a TensorFlow graph it is a Python function."""

    def __init__(self, inner: vocabularies.Vocabulary) -> None:
        super().__init__()
        self.inner = inner

    @property
    def bos_id(self) -> int:
        return self.inner.bos_id

    @property
    def eos_id(self) -> int:
        return self.inner.eos_id

    @property
    def pad_id(self) -> int:
        return self.inner.pad_id

    @property
    def unk_id(self) -> None:
        return None

    @property
    def _base_vocab_size(self) -> int:
        return self.inner.size

    def _encode(self, s: str) -> list[int]:
        return self.inner.encode(s)

    def _decode(self, ids: Sequence[int]) -> str:
        return self.inner.decode([int(i) for i in ids])

    def _encode_tf(self, s: tf.Tensor) -> tf.Tensor:
        ids = tf.numpy_function(lambda raw: _int32(self._encode(raw.decode())), [s], tf.int32)
        ids.set_shape([None])
        return ids

    def _decode_tf(self, ids: tf.Tensor) -> tf.Tensor:
        return tf.numpy_function(lambda each: self._decode(each).encode(), [ids], tf.string)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, WrappedVocabulary) and self.inner is other.inner

    __hash__ = None  # type: ignore[assignment]


def to_seqio(vocabulary: vocabularies.Vocabulary) -> seqio.Vocabulary:
    """Bytes are SeqIO's own byte vocabulary; any other is wrapped."""
    if isinstance(vocabulary, vocabularies.ByteVocabulary):
        return seqio.ByteVocabulary()
    return WrappedVocabulary(vocabulary)


def from_seqio(vocabulary: seqio.Vocabulary) -> vocabularies.Vocabulary:
    """The same ids without TensorFlow.

    Raises:
      ValueError: a vocabulary of another kind, or with extra ids.
    """
    if isinstance(vocabulary, WrappedVocabulary):
        return vocabulary.inner
    if vocabulary.extra_ids == 0 and isinstance(vocabulary, seqio.ByteVocabulary):
        return vocabularies.ByteVocabulary()
    if vocabulary.extra_ids == 0 and isinstance(vocabulary, seqio.SentencePieceVocabulary):
        return vocabularies.load(vocabulary.sentencepiece_model_file)
    raise ValueError(
        f"a {type(vocabulary).__name__} with {vocabulary.extra_ids} extra ids has no counterpart here; "
        "known: ByteVocabulary and SentencePieceVocabulary without extra ids, and WrappedVocabulary"
    )


def register(task: TextTask, folder: Path | None = None) -> seqio.Task:
    """Registers a TextTask with SeqIO under its name; a task registered before is returned.

    Args:
      folder: where the task's vocabulary is, or is put; its default folder if None.
    """
    if task.name in seqio.TaskRegistry.names():
        return seqio.TaskRegistry.get(task.name)
    folder = folder or default_folder(task)
    claim_folder(folder, request(task))
    documents = functools.cache(lambda: split_documents(task))
    vocabulary = to_seqio(task_vocabulary(task, folder, lambda: documents()["train"]))
    return seqio.TaskRegistry.add(
        task.name,
        source=seqio.FunctionDataSource(functools.partial(_dataset, documents), splits=SPLITS),
        preprocessors=[seqio.preprocessors.tokenize, seqio.preprocessors.append_eos],
        output_features={
            "inputs": seqio.Feature(vocabulary, add_eos=False),
            "targets": seqio.Feature(vocabulary, add_eos=True),
        },
    )


def register_mixture(name: str, rates: Mapping[TextTask, float]) -> seqio.Mixture:
    """Registers the tasks and a SeqIO mixture that draws from them at these rates."""
    tasks = [(register(task).name, float(rate)) for task, rate in rates.items()]
    return seqio.MixtureRegistry.add(name, tasks)


def documents_of(name: str, split: str) -> Iterator[tuple[str, tuple[int, ...]]]:
    """(document id, token ids without the final EOS) of a registered SeqIO task's targets, in its order.

    Raises:
      ValueError: an unknown task or split.
    """
    task = _task(name)
    if split not in task.splits:
        raise nearest_error(f"split of SeqIO task {name!r}:", split, task.splits)
    eos_id = task.output_features["targets"].vocabulary.eos_id
    examples = task.get_dataset(None, split, shuffle=False)
    for number, example in enumerate(examples.as_numpy_iterator()):
        ids = example["targets"].tolist()
        yield f"{name}:{split}:{number}", tuple(ids[:-1] if ids and ids[-1] == eos_id else ids)


def prepare_seqio(name: str, out: Path, splits: Sequence[str] = SPLITS, processes: int | None = None) -> Path:
    """Token records of the targets of a registered SeqIO task: one document per example, its name as domain.

    Raises:
      ValueError: an unknown task or split, a split without examples, a vocabulary with no counterpart.
    """
    vocabulary = from_seqio(_task(name).output_features["targets"].vocabulary)
    out = Path(out)
    claim_folder(out, {"seqio_task": name, "splits": list(splits), "vocabulary_size": vocabulary.size})
    if (out / "dataset.json").is_file():
        return out
    vocabulary = ensure_vocabulary(out, lambda: vocabulary)
    shards = []
    for split in splits:
        items = [
            Item(document, name, len(vocabulary.decode(ids).encode()), ids)
            for document, ids in documents_of(name, split)
        ]
        if not items:
            raise ValueError(f"split {split!r} of SeqIO task {name!r} has no examples")
        shards += plan_shards(out, split, items)
    run_processes(shards, processes)
    facts = {
        "name": name,
        "split_rule": "the splits of the SeqIO task",
        "corpora": {"names": [f"seqio:{name}"]},
    }
    assemble(out, shards, vocabulary, facts)
    return out


def _task(name: str) -> seqio.Task:
    if name not in seqio.TaskRegistry.names():
        raise nearest_error("SeqIO task", name, seqio.TaskRegistry.names())
    return seqio.TaskRegistry.get(name)


def _dataset(documents: Any, split: str, shuffle_files: bool, seed: int | None = None) -> tf.data.Dataset:
    """The source's examples: {"inputs": "", "targets": text} and the document's id and domain."""

    def examples() -> Iterator[dict[str, str]]:
        for d in documents()[split]:
            yield {"inputs": "", "targets": d.text, "id": d.id, "domain": d.domain}

    names = ("inputs", "targets", "id", "domain")
    return tf.data.Dataset.from_generator(examples, output_signature={n: tf.TensorSpec([], tf.string) for n in names})


def _int32(ids: Sequence[int]) -> Any:
    import numpy as np

    return np.asarray(ids, np.int32)
