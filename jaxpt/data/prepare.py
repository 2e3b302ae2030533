"""Preparation: named corpora -> near-duplicate groups -> train and validation -> token records in a folder.

    from jaxpt.data.prepare import TASKS, prepared
    folder = prepared(TASKS["python"])                  # made on first use, then found again
    records = TokenRecords(folder, "train")

The work is cut in shards (jaxpt/data/shards.py). A killed preparation, started again, does the missing shards
only and ends with the same bytes. The documents of one preparation are held in memory.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import functools
import hashlib
import json
import multiprocessing
import os
import random
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from jaxpt.core.config import differences
from jaxpt.core.files import write_json
from jaxpt.core.names import nearest_error
from jaxpt.core.processes import die_with_parent
from jaxpt.data import vocabularies
from jaxpt.data.corpora import cache_dir, open_corpus
from jaxpt.data.documents import Document
from jaxpt.data.records import RECORD_TOKENS
from jaxpt.data.shards import (
    SHARD_BYTES,
    SPLITS,
    Item,
    Shard,
    assemble,
    finished,
    plan_shards,
    write_shard,
)
from jaxpt.data.split import near_duplicate_groups, split_of

FORMAT = 1  # of the prepared folder; a change makes new default folders
WORTH_PROCESSES = 1 << 26  # bytes of text: less is tokenised before other processes have started
VOCABULARY_SAMPLE = 20_000_000  # characters of training text that a vocabulary is trained on


@dataclasses.dataclass(frozen=True)
class TextTask:
    """What to prepare.

    Attributes:
      corpora: names for `open_corpus`: "python-code", "files:GLOB", "tfds:NAME", "hf:NAME", ...
      vocabulary: "bytes", "bpe:SIZE", "sentencepiece:SIZE" (trained on training documents), or a path.
      validation: share of the documents held out, by hash of their near-duplicate group.
      seed: of the split and of the sample a vocabulary is trained on.
      deduplicate: keep one of several equal texts, and near-duplicates on one side of the split.
    """

    name: str
    corpora: tuple[str, ...]
    vocabulary: str = "bytes"
    validation: float = 0.05
    seed: int = 0
    deduplicate: bool = True

    @classmethod
    def of(cls, corpora: tuple[str, ...], vocabulary: str, validation: float) -> TextTask:
        """A task named after its corpora."""
        label = "".join(c if c.isalnum() or c in "-+." else "_" for c in "+".join(corpora))[:60]
        return cls(label, corpora, vocabulary, validation)

    def __post_init__(self) -> None:
        if not self.corpora or isinstance(self.corpora, str):
            raise ValueError(f"task {self.name!r} needs a tuple of corpora, got {self.corpora!r}")
        if not 0 < self.validation < 1:
            raise ValueError(f"validation is a share between 0 and 1, got {self.validation}; try 0.05")
        if not self.name or os.sep in self.name:
            raise ValueError(
                f"a task's name becomes a folder's: it is not empty and has no {os.sep!r}, got {self.name!r}"
            )


TASKS = {
    "python": TextTask("python", ("python-code", "python-prose")),
    "python-bpe4k": TextTask("python-bpe4k", ("python-code", "python-prose"), "bpe:4096"),
}


def named_task(name: str) -> TextTask:
    """A task of TASKS, or the error that names the nearest."""
    if name not in TASKS:
        raise nearest_error("task", name, TASKS)
    return TASKS[name]


def prepared(task: TextTask | str, processes: int | None = None) -> Path:
    """The task's default folder, prepared now if it is not there yet."""
    return prepare(named_task(task) if isinstance(task, str) else task, processes=processes)


def default_folder(task: TextTask) -> Path:
    """cache_dir()/prepared/NAME-HASH, where the hash is of the whole request."""
    digest = hashlib.sha256(json.dumps(request(task), sort_keys=True).encode()).hexdigest()
    return cache_dir() / "prepared" / f"{task.name}-{digest[:12]}"


def prepare(
    task: TextTask,
    out: Path | None = None,
    *,
    processes: int | None = None,
    shard_bytes: int = SHARD_BYTES,
    run_shards: Callable[[list[Shard]], None] | None = None,
) -> Path:
    """Prepares a task, or continues where a killed preparation stopped; returns the folder.

    Args:
      out: the folder; the default one if None.
      processes: how many tokenise; if None, as many as there are cores where the text is worth it. The result does
        not depend on it.
      run_shards: what writes the missing shards, in place of this machine's processes.

    Raises:
      ValueError: an unknown or empty corpus, an empty split, a folder that holds another preparation, or a
        bad vocabulary.
    """
    out = Path(out) if out is not None else default_folder(task)
    claim_folder(out, request(task, shard_bytes))
    if (out / "dataset.json").is_file():
        return out
    documents = split_documents(task)
    vocabulary = task_vocabulary(task, out, lambda: documents["train"])
    items = {s: [Item(d.id, d.domain, len(d.text.encode()), d.text) for d in documents[s]] for s in SPLITS}
    shards = [shard for s in SPLITS for shard in plan_shards(out, s, items[s], shard_bytes)]
    (run_shards or functools.partial(run_processes, processes=processes))(shards)
    everything = documents["train"] + documents["validation"]
    rule = f"hash of the near-duplicate group < {task.validation}, seed {task.seed}"
    assemble(
        out,
        shards,
        vocabulary,
        {"name": task.name, "split_rule": rule, "corpora": _sources(task, everything)},
    )
    return out


def request(task: TextTask, shard_bytes: int = SHARD_BYTES) -> dict[str, Any]:
    """Everything a prepared folder depends on, as plain values."""
    asked = dataclasses.asdict(task) | {"corpora": list(task.corpora)}
    asked["files"] = {name: _state(name.removeprefix("files:")) for name in task.corpora if name.startswith("files:")}
    asked["vocabulary_files"] = _state(task.vocabulary) if Path(task.vocabulary).exists() else ""
    return asked | {"format": FORMAT, "record_tokens": RECORD_TOKENS, "shard_bytes": shard_bytes}


def claim_folder(out: Path, asked: dict[str, Any]) -> None:
    """Writes request.json, or checks that the one there asks for the same.

    Raises:
      ValueError: the folder holds another preparation, or other files.
    """
    path = out / "request.json"
    if not path.is_file():
        if out.exists() and (not out.is_dir() or any(not p.name.startswith(".") for p in out.iterdir())):
            raise ValueError(f"{out} is not a prepared folder and not empty; choose another folder")
        out.mkdir(parents=True, exist_ok=True)
        write_json(path, asked)
        return
    changed = differences(json.loads(path.read_text()), asked)
    if changed:
        raise ValueError(f"{out} holds another preparation ({'; '.join(changed)}); choose another folder or delete it")


def split_documents(task: TextTask) -> dict[str, list[Document]]:
    """The documents of each split, in the order the corpora yield them.

    Raises:
      ValueError: two documents with one id, an empty corpus, or an empty split.
    """
    documents = list(_read(task.corpora))
    if task.deduplicate:
        documents = list({d.text: d for d in reversed(documents)}.values())[::-1]  # the first of equal texts stays
        groups = near_duplicate_groups(documents)
    else:
        groups = {d.id: d.id for d in documents}
    splits: dict[str, list[Document]] = {split: [] for split in SPLITS}
    for document in documents:
        splits[split_of(groups[document.id], task.validation, task.seed)].append(document)
    for split, chosen in splits.items():
        if not chosen:
            raise ValueError(
                f"no document of {len(documents)} falls in split {split!r} at validation={task.validation}, "
                f"seed={task.seed}; give more documents, another share or another seed"
            )
    return splits


def ensure_vocabulary(out: Path, make: Callable[[], vocabularies.Vocabulary]) -> vocabularies.Vocabulary:
    """The vocabulary of a folder, made and saved once: a resumed preparation uses the same one."""
    folder = out / "vocabulary"
    if not folder.is_dir():
        with tempfile.TemporaryDirectory(dir=out, prefix=".vocabulary-") as scratch:
            made = Path(scratch) / "vocabulary"
            made.mkdir()
            make().save(made)
            os.replace(made, folder)
    return vocabularies.load(folder)


def task_vocabulary(task: TextTask, out: Path, train: Callable[[], list[Document]]) -> vocabularies.Vocabulary:
    """The vocabulary of a task, in its folder; `train` gives the documents to train one on."""

    def texts() -> Iterator[str]:
        yield from _vocabulary_sample(train(), task.seed)

    return ensure_vocabulary(out, lambda: make_vocabulary(task.vocabulary, texts()))


def make_vocabulary(spec: str, texts: Iterable[str]) -> vocabularies.Vocabulary:
    """Loads or trains the vocabulary that a task asks for.

    Raises:
      ValueError: a spec that is none of the known ones.
    """
    kind, colon, size = spec.partition(":")
    trainers: dict[str, Callable[[Iterable[str], int], vocabularies.Vocabulary]]
    trainers = {"bpe": vocabularies.train_bpe, "sentencepiece": vocabularies.train_sentencepiece}
    if colon and kind in trainers:
        if not size.isdigit() or int(size) < 1:
            raise ValueError(f"vocabulary {spec!r} should be {kind}:SIZE, for example {kind}:4096")
        return trainers[kind](texts, int(size))
    if spec != "bytes" and not Path(spec).exists():
        raise nearest_error("vocabulary", spec, ("bytes", "bpe:SIZE", "sentencepiece:SIZE", "a path that exists"))
    return vocabularies.load(spec)


def _read(corpora: tuple[str, ...]) -> Iterator[Document]:
    seen: set[str] = set()
    for name in corpora:
        count = 0
        for document in open_corpus(name):
            if document.id in seen:
                raise ValueError(f"two documents have the id {document.id!r} (the second in corpus {name!r})")
            seen.add(document.id)
            count += 1
            yield document
        if not count:
            raise ValueError(f"corpus {name!r} is empty: it yielded no document")


def _vocabulary_sample(documents: list[Document], seed: int) -> Iterator[str]:
    """Training texts in a seeded order until there are enough characters."""
    order = sorted(documents, key=lambda d: d.id)
    random.Random(seed).shuffle(order)
    room = VOCABULARY_SAMPLE
    for document in order:
        if room <= 0:
            return
        room -= len(document.text)
        yield document.text


def run_processes(shards: list[Shard], processes: int | None) -> None:
    """Writes the missing shards with several processes, telling how far it is."""
    missing = [s for s in shards if finished(s) is None]
    done = len(shards) - len(missing)
    size = sum(item.bytes for shard in missing for item in shard.items)
    wanted = processes or (1 if size < WORTH_PROCESSES else os.cpu_count() or 1)
    workers = min(wanted, len(missing))
    if done:
        print(f"{done} of {len(shards)} shards are there already", file=sys.stderr)
    if workers <= 1:
        results: Iterator[Any] = (write_shard(s) for s in missing)
        _report(results, missing, done, len(shards))
        return
    context = multiprocessing.get_context("spawn")  # a fork of a process that runs threads (JAX) can hang
    with concurrent.futures.ProcessPoolExecutor(workers, context, initializer=die_with_parent) as pool:
        try:
            _report(pool.map(write_shard, missing), missing, done, len(shards))
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _report(results: Iterator[Any], shards: list[Shard], done: int, total: int) -> None:
    """A progress bar on a terminal, a line per shard elsewhere."""
    if not sys.stderr.isatty():
        for number, (shard, made) in enumerate(zip(shards, results, strict=True), done + 1):
            print(f"shard {number}/{total} {shard.split}: {sum(made['tokens']):,} tokens", file=sys.stderr)
        return
    from rich.console import Console
    from rich.progress import MofNCompleteColumn, Progress

    with Progress(*Progress.get_default_columns(), MofNCompleteColumn(), console=Console(stderr=True)) as progress:
        bar = progress.add_task("tokenising", total=total, completed=done)
        for _ in results:
            progress.advance(bar)


def _state(pattern: str) -> str:
    """Hash of names, sizes and times of the files of a path or glob: changed files are another request."""
    import glob

    root = Path(pattern)
    paths = sorted(root.rglob("*")) if root.is_dir() else [Path(p) for p in sorted(glob.glob(pattern, recursive=True))]
    states = [f"{p}:{p.stat().st_size}:{p.stat().st_mtime_ns}" for p in paths if p.is_file()]
    return hashlib.sha256("\n".join(states).encode()).hexdigest()[:16]


def _sources(task: TextTask, documents: list[Document]) -> dict[str, Any]:
    """Of each corpus: how many documents, their versions and licences."""
    licences = sorted({d.licence for d in documents})
    versions = sorted({d.version for d in documents if d.version})
    return {
        "names": list(task.corpora),
        "documents": len(documents),
        "licences": licences,
        "versions": versions,
    }
