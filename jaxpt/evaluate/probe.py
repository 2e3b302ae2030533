"""Linear probes: how much of what a model never was told can be read off its states by one linear map.

    windows = labelled_windows(records, package, length=64, per_document=8)     # from which package is this text
    accuracy = linear_probe(mean_states(params, windows, states), windows)

Windows come from prepared records, so the tokens are the model's own. The documents of a label are divided by the hash of
their ids: no document is on both sides, for any seed.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from jaxpt.core.types import Array, Float, Int, Params
from jaxpt.data.records import TokenRecords
from jaxpt.evaluate.classification import held_out, logistic

States = Callable[[Params, Int[Array, "B S"]], Float[Array, "B S D"]]


@dataclasses.dataclass(frozen=True)
class Windows:
    """Attributes:
    inputs: [N, S] token ids, every window whole.
    labels: [N] numbers of `names`.
    test: [N] whether a window's document is on the side that is tested.
    """

    inputs: np.ndarray
    labels: np.ndarray
    test: np.ndarray
    names: tuple[str, ...]

    @property
    def majority(self) -> float:
        """Accuracy of the most frequent label of the training side."""
        right = np.bincount(self.labels[~self.test]).argmax()
        return float((self.labels[self.test] == right).mean())


def labelled_windows(
    records: TokenRecords,
    label: Callable[[str], str | None],
    *,
    length: int,
    per_document: int,
    documents: int = 2,
    share: float = 0.4,
) -> Windows:
    """The first windows of every document that has a label.

    Args:
      label: id of a document -> name of its class, or None.
      length: S, tokens of a window.
      per_document: at most so many of each.
      documents: labels of fewer documents are left out.
      share: of the documents that are tested.

    Raises:
      ValueError: fewer than two labels, or a side without any window.
    """
    ids = records.documents.id.tolist()
    named = [label(i) for i in ids]
    names = tuple(sorted({n for n in named if n is not None and named.count(n) >= documents}))
    inputs, labels, test = [], [], []
    first = np.searchsorted(records.document, np.arange(len(ids)))
    for document, name in enumerate(named):
        if name not in names or records.documents.tokens[document] < length:
            continue
        tokens = records[int(first[document])][1:]
        for start in range(0, min(len(tokens) - length + 1, per_document * length), length):
            inputs.append(tokens[start : start + length])
            labels.append(names.index(name))
            test.append(held_out(ids[document], share))
    sides = np.array(test, bool)
    if len(names) < 2 or not sides.any() or sides.all():
        raise ValueError(f"need windows of two labels on both sides, got {len(names)} labels and {len(sides)} windows")
    return Windows(np.stack(inputs), np.array(labels), sides, names)


def mean_states(params: Params, windows: Windows, states: States, batch_size: int = 64) -> np.ndarray:
    """[N, D]: the mean over each window of the model's states."""
    run = jax.jit(lambda params, inputs: states(params, inputs).astype(jnp.float32).mean(1))
    count, found = len(windows.inputs), []
    for start in range(0, count, batch_size):
        rows = np.minimum(np.arange(start, start + batch_size), count - 1)  # the last batch is filled up
        found.append(np.asarray(run(params, jnp.asarray(windows.inputs[rows]))))
    return np.concatenate(found)[:count]


def linear_probe(features: np.ndarray, windows: Windows, penalty: float = 1.0) -> float:
    """Accuracy on the tested side of a logistic regression on standardised features of the other."""
    train, test = features[~windows.test], features[windows.test]
    mean, spread = train.mean(0), train.std(0) + 1e-6
    found = logistic(
        (train - mean) / spread, windows.labels[~windows.test], (test - mean) / spread, len(windows.names), penalty
    )
    return float((found == windows.labels[windows.test]).mean())
