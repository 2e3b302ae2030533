"""Tasks for fine-tuning: examples with labels, their metrics, and the scores that need no encoder.

    task = acceptability_task(lexicon)                       # good or bad sentence, CoLA's question, generated
    task = domain_task(documents)                            # which kind of text is this paragraph from
    task = same_document_task(documents)                     # are two paragraphs from one document
    task = load_glue("glue/MRPC", "mrpc")                    # GLUE's own files, where they are there

GLUE: arXiv 1804.07461. Its average is the mean over tasks, without WNLI.
"""

from __future__ import annotations

import csv
import dataclasses
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from scipy import optimize, special, stats

from jaxpt.core.names import nearest_error
from jaxpt.data.documents import DataError, Document
from jaxpt.evaluate.lexicon import Lexicon
from jaxpt.evaluate.phenomena import acceptability, minimal_pairs
from jaxpt.evaluate.report import fingerprint

Metric = Literal["accuracy", "f1", "matthews", "correlation"]


@dataclasses.dataclass(frozen=True)
class Example:
    """A text or a pair of texts, and a class (int) or a number."""

    first: str
    label: int | float
    second: str | None = None


@dataclasses.dataclass(frozen=True)
class Task:
    """Attributes:
    classes: 1 for a number to regress.
    metric: "accuracy"; "f1": mean of F1 of class 1 and accuracy; "matthews"; "correlation": Pearson's and Spearman's mean.
    """

    name: str
    train: tuple[Example, ...]
    validation: tuple[Example, ...]
    classes: int
    metric: Metric = "accuracy"

    def __post_init__(self) -> None:
        if self.metric not in METRICS:
            raise nearest_error("metric", self.metric, METRICS)
        if not self.train or not self.validation:
            raise ValueError(f"task {self.name!r} has {len(self.train)} and {len(self.validation)} examples")
        bad = [
            e.label for e in (*self.train, *self.validation) if self.classes > 1 and e.label not in range(self.classes)
        ]
        if bad:
            raise ValueError(f"task {self.name!r} has {self.classes} classes, but a label is {bad[0]!r}")

    @property
    def fingerprint(self) -> str:
        """Hash of all examples."""
        return fingerprint([*self.train, *self.validation])


def labels(examples: Sequence[Example]) -> np.ndarray:
    """Their labels, float64."""
    return np.array([e.label for e in examples], np.float64)


def accuracy(found: np.ndarray, right: np.ndarray) -> float:
    """Share of equal ones."""
    return float((found == right).mean())


def f1_and_accuracy(found: np.ndarray, right: np.ndarray) -> float:
    """Mean of the F1 of class 1 and the accuracy."""
    both = float(((found == 1) & (right == 1)).sum())
    total = float((found == 1).sum() + (right == 1).sum())
    return (2 * both / total if total else 0.0) / 2 + accuracy(found, right) / 2


def matthews(found: np.ndarray, right: np.ndarray) -> float:
    """Matthews correlation of two lists of 0 and 1; 0 where one of them is constant."""
    if len(set(found.tolist())) < 2 or len(set(right.tolist())) < 2:
        return 0.0
    return float(np.corrcoef(found, right)[0, 1])


def correlation(found: np.ndarray, right: np.ndarray) -> float:
    """Mean of Pearson's and Spearman's correlation; 0 where one of the lists is constant."""
    if np.ptp(found) == 0 or np.ptp(right) == 0:
        return 0.0
    return float((stats.pearsonr(found, right)[0] + stats.spearmanr(found, right)[0]) / 2)


METRICS = {"accuracy": accuracy, "f1": f1_and_accuracy, "matthews": matthews, "correlation": correlation}


def majority(task: Task) -> np.ndarray:
    """The most frequent training label (the mean of a regression) for every validation example."""
    of = labels(task.train)
    value = float(of.mean()) if task.classes == 1 else float(np.bincount(of.astype(int)).argmax())
    return np.full(len(task.validation), value)


def bag_of_words(task: Task, features: int = 2**14, penalty: float = 1.0) -> np.ndarray:
    """Predictions of a linear model on hashed words: logistic (or ridge) regression with an L2 penalty.

    Words of the two texts of a pair are different features, and a word in both is a third.
    """
    x, y = _hashed(task.train, features), labels(task.train)
    used = np.flatnonzero(x.sum(0))
    x, test = x[:, used], _hashed(task.validation, features)[:, used]
    if task.classes > 1:
        return logistic(x, y, test, task.classes, penalty)
    x, test = (np.concatenate([a, np.ones((len(a), 1))], 1) for a in (x, test))
    return test @ np.linalg.solve(x.T @ x + penalty * np.eye(x.shape[1]), x.T @ y)


def logistic(x: np.ndarray, y: np.ndarray, test: np.ndarray, classes: int, penalty: float = 1.0) -> np.ndarray:
    """Classes of `test` [M, F] by a logistic regression with an L2 penalty, trained on x [N, F] and y [N]."""
    x, test = (np.concatenate([a, np.ones((len(a), 1))], 1) for a in (x, test))
    target = np.eye(classes)[y.astype(int)]

    def loss(flat: np.ndarray) -> tuple[float, np.ndarray]:
        w = flat.reshape(x.shape[1], classes)
        log_p = special.log_softmax(x @ w, 1)
        gradient = x.T @ (np.exp(log_p) - target) + penalty * w
        return float(-(target * log_p).sum() + penalty / 2 * (w**2).sum()), gradient.ravel()

    found = optimize.minimize(
        loss, np.zeros(x.shape[1] * classes), jac=True, method="L-BFGS-B", options={"maxiter": 200}
    )
    return (test @ found.x.reshape(x.shape[1], classes)).argmax(1).astype(np.float64)


def baselines(task: Task) -> dict[str, float]:
    """The task's metric of `majority` and `bag_of_words`."""
    right, score = labels(task.validation), METRICS[task.metric]
    return {"majority": score(majority(task), right), "bag_of_words": score(bag_of_words(task), right)}


def acceptability_task(lexicon: Lexicon, train: int = 2400, validation: int = 1200, seed: int = 0) -> Task:
    """Is this sentence grammatical? Both halves of generated minimal pairs of all phenomena; Matthews correlation.

    A pair is on one side of the split.
    """
    each = -(-(train + validation) // 24)
    pairs = [p for of_one in minimal_pairs(seed, lexicon, each).values() for p in of_one]
    order = np.random.default_rng([seed, 7]).permutation(len(pairs))
    found = [Example(text, label) for text, label in acceptability([pairs[i] for i in order])]
    return Task("acceptability", tuple(found[:train]), tuple(found[train : train + validation]), 2, "matthews")


def domain_task(documents: Sequence[Document], share: float = 0.2, length: int = 200) -> Task:
    """Of which domain is this paragraph? One paragraph of at least `length` characters a document; split by document."""
    return label_task("domain", documents, lambda document: document.domain, share, length)


def label_task(
    name: str, documents: Sequence[Document], label: Callable[[Document], str], share: float, length: int
) -> Task:
    """The label of a document from one of its paragraphs of at least `length` characters; split by document.

    Args:
      label: document -> name of its class; classes are numbered in alphabetical order.
    """
    names = [label(d) for d in documents]
    classes = sorted(set(names))
    found: dict[bool, list[Example]] = {True: [], False: []}
    for document, of in zip(documents, names, strict=True):
        paragraphs = _paragraphs(document, length)
        if paragraphs:
            text = paragraphs[_hash(document.id) % len(paragraphs)]
            found[held_out(document.id, share)].append(Example(text, classes.index(of)))
    return Task(name, tuple(found[False]), tuple(found[True]), len(classes))


def same_document_task(documents: Sequence[Document], share: float = 0.2, length: int = 100, seed: int = 0) -> Task:
    """Are two paragraphs from one document? As many pairs that are as pairs that are not; documents are on one side."""
    rng = np.random.default_rng([seed, 8])
    found: dict[bool, tuple[Example, ...]] = {}
    for side in (True, False):
        texts = [p for d in documents if held_out(d.id, share) == side and len(p := _paragraphs(d, length)) > 1]
        pairs: list[Example] = []
        for index, paragraphs in enumerate(texts if len(texts) > 1 else []):
            one, two = (paragraphs[i] for i in rng.permutation(len(paragraphs))[:2])
            other = texts[(index + 1 + int(rng.integers(len(texts) - 1))) % len(texts)]
            pairs += [Example(one, 1, two), Example(one, 0, other[int(rng.integers(len(other)))])]
        found[side] = tuple(pairs)
    return Task("same document", found[False], found[True], 2, "f1")


GLUE: dict[str, tuple[tuple[str, ...], str, tuple[str, ...], Metric]] = {
    # name: columns of the texts, column of the label, classes in order (empty: a number), metric
    "sst2": (("sentence",), "label", ("0", "1"), "accuracy"),
    "mrpc": (("#1 String", "#2 String"), "Quality", ("0", "1"), "f1"),
    "qqp": (("question1", "question2"), "is_duplicate", ("0", "1"), "f1"),
    "stsb": (("sentence1", "sentence2"), "score", (), "correlation"),
    "mnli": (("sentence1", "sentence2"), "gold_label", ("entailment", "neutral", "contradiction"), "accuracy"),
    "qnli": (("question", "sentence"), "label", ("entailment", "not_entailment"), "accuracy"),
    "rte": (("sentence1", "sentence2"), "label", ("entailment", "not_entailment"), "accuracy"),
    "wnli": (("sentence1", "sentence2"), "label", ("0", "1"), "accuracy"),
    "cola": (("3",), "1", ("0", "1"), "matthews"),  # CoLA's files have no header: columns by number
}


def load_glue(folder: str | Path, name: str, validation: str = "dev") -> Task:
    """A GLUE task from its train.tsv and dev.tsv; MNLI's second set is validation="dev_mismatched".

    Raises:
      ValueError: an unknown task.
      DataError: a missing file or column, or an unknown label; file and line are named.
    """
    if name not in GLUE:
        raise nearest_error("GLUE task", name, GLUE)
    if name == "mnli" and validation == "dev":
        validation = "dev_matched"
    *_, classes, metric = GLUE[name]
    train, held = (_tsv(Path(folder) / f"{part}.tsv", name) for part in ("train", validation))
    return Task(
        name if validation.startswith("dev") and name != "mnli" else f"{name} {validation}",
        train,
        held,
        len(classes) or 1,
        metric,
    )


def _tsv(path: Path, name: str) -> tuple[Example, ...]:
    columns, target, classes, _ = GLUE[name]
    try:
        lines = list(csv.reader(path.read_text(encoding="utf-8").splitlines(), delimiter="\t", quoting=csv.QUOTE_NONE))
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot read {path}: {error}") from None
    header = [str(i) for i in range(4)] if name == "cola" else [h.lstrip("\ufeff") for h in lines[0]] if lines else []
    missing = [c for c in (*columns, target) if c not in header]
    if missing:
        raise DataError(f"{path} has no column {', '.join(missing)}; its columns are {', '.join(header) or 'none'}")
    found = []
    for number, cells in enumerate(lines[name != "cola" :], 1 + (name != "cola")):
        row = dict(zip(header, cells, strict=False))
        texts, label = [row.get(c) for c in columns], row.get(target)
        if None in texts or label is None or (classes and label not in classes):
            raise DataError(f"{path}, line {number}: cannot use label {label!r} and texts {texts}")
        value = classes.index(label) if classes else float(label)
        found.append(Example(str(texts[0]), value, str(texts[1]) if len(texts) > 1 else None))
    return tuple(found)


def _hashed(examples: Sequence[Example], features: int) -> np.ndarray:
    found = np.zeros((len(examples), features))
    for row, example in zip(found, examples, strict=True):
        first, second = set(example.first.lower().split()), set((example.second or "").lower().split())
        names = [f"1 {w}" for w in first] + [f"2 {w}" for w in second] + [f"both {w}" for w in first & second]
        for name in names:
            row[_hash(name) % features] = 1
    return found


def _paragraphs(document: Document, length: int) -> list[str]:
    return [p.strip() for p in document.text.split("\n\n") if len(p.strip()) >= length]


def held_out(name: str, share: float) -> bool:
    """Whether the item of this name is for validation, by its hash."""
    return _hash("split " + name) % 1000 < share * 1000


def _hash(text: str) -> int:
    return zlib.crc32(text.encode("utf-8"))
