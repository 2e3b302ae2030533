"""The data of a classifier: windows of prepared records, each with the class of its document.

    cfg = Pretrain(data=WindowConfig(part="labelled"), objective=Distillation(classes=20), ...)

    general    windows of all documents, without labels
    labelled   a few windows of documents that have a class, one-hot targets
    transfer   the other windows of such documents; their targets are a teacher's probabilities

No document of any of them is tested: the documents on either side are told by the hash of their ids. Every row begins with
BOS, whose state a pooler reads.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
from jax.sharding import Mesh

from jaxpt.core.names import nearest_error
from jaxpt.core.types import Params
from jaxpt.data.arrays import ArrayLoader
from jaxpt.data.held_out import Part
from jaxpt.data.records import TokenRecords
from jaxpt.evaluate.bits_per_byte import Scorer, loss_over
from jaxpt.evaluate.classification import held_out
from jaxpt.evaluate.probe import Windows, labelled_windows
from jaxpt.pretrain import DataConfig
from jaxpt.sharding import local_rows


def package(document: str) -> str | None:
    """python-code:asyncio.events is of asyncio; a module outside any package has no class."""
    corpus, _, module = document.partition(":")
    return module.split(".")[0] if corpus == "python-code" and "." in module else None


CLASSES: dict[str, Callable[[str], str | None]] = {"package": package}
PARTS = ("general", "labelled", "transfer")


@dataclasses.dataclass(frozen=True, kw_only=True)
class WindowConfig(DataConfig):
    """Which windows, and what they are told.

    Attributes:
      classes: a key of CLASSES: id of a document -> its class.
      part: "general", "labelled" or "transfer".
      labelled: number of windows with gold labels.
      per_document: at most so many windows of a document.
      documents: classes of fewer documents are left out.
      share: of the documents that are tested.
      teacher: file with the teacher's probabilities of the windows of this part, in place of gold labels.
    """

    corpora: tuple[str, ...] | str = ("python-code",)
    vocabulary: str = "bpe:2048"
    sequence_length: int = 49
    classes: str = "package"
    part: str = "labelled"
    labelled: int = 400
    per_document: int = 40
    documents: int = 10
    share: float = 0.4
    teacher: str | None = None

    def open(self, vocab_size: int) -> WindowData:  # type: ignore[override]
        """The windows of `task`, prepared on first use.

        Raises:
          ValueError: an unknown part or kind of class, a vocabulary larger than the model's, a teacher of other windows.
        """
        records = super().open(vocab_size).train
        return self.cut(records)

    def batch_shapes(self, rows: int, length: int) -> dict[str, jax.ShapeDtypeStruct]:
        """The inputs of `part` "general"; how wide the targets of the others are, their text says.

        Raises:
          ValueError: another part.
        """
        if self.part != "general":
            raise ValueError(
                f"the number of classes of part {self.part!r} is known with its text; compile the general part"
            )
        return {"inputs": jax.ShapeDtypeStruct((rows, length), np.int32)}

    def cut(self, records: TokenRecords) -> WindowData:
        """The windows of these records."""
        if self.part not in PARTS:
            raise nearest_error("part", self.part, PARTS)
        if self.classes not in CLASSES:
            raise nearest_error("kind of class", self.classes, CLASSES)
        of = CLASSES[self.classes]
        size = {"length": self.sequence_length - 1, "per_document": self.per_document}
        known = labelled_windows(records, of, **size, documents=self.documents, share=self.share)
        order = np.random.default_rng(0).permutation(np.flatnonzero(~known.test))
        if not 0 < self.labelled < len(order):
            raise ValueError(f"labelled must be 1 to {len(order) - 1} of {len(order)} windows, got {self.labelled}")
        if self.part == "general":
            everything = labelled_windows(
                records, lambda name: of(name) or "none", **size, documents=1, share=self.share
            )
            inputs, targets = everything.inputs[~everything.test], None
        else:
            chosen = order[: self.labelled] if self.part == "labelled" else order[self.labelled :]
            inputs, targets = known.inputs[chosen], one_hot(known.labels[chosen], len(known.names))
        if self.teacher is not None:
            targets = _read(self.teacher, (len(inputs), len(known.names)))
        return WindowData(self, with_bos(inputs, records.bos_id), targets, known, records)


def with_bos(inputs: np.ndarray, bos_id: int) -> np.ndarray:
    """[N, S] -> [N, S + 1] int32."""
    return np.concatenate([np.full((len(inputs), 1), bos_id), inputs], 1).astype(np.int32)


def one_hot(labels: np.ndarray, classes: int) -> np.ndarray:
    """[N] -> [N, C] float32."""
    return np.eye(classes, dtype=np.float32)[labels]


@dataclasses.dataclass(frozen=True)
class WindowData:
    """Attributes:
    inputs: [N, S] of the part, each with BOS in front.
    targets: [N, C]; None where the part has none.
    known: all windows that have a class, those that are tested among them.
    """

    cfg: WindowConfig
    inputs: np.ndarray
    targets: np.ndarray | None
    known: Windows
    records: TokenRecords

    def loader(self, mesh: Mesh | None = None, seed: int | None = None) -> ArrayLoader:
        """The batches: inputs, and target_probabilities where there are targets."""
        size, seed = self.cfg.batch_size, self.cfg.seed if seed is None else seed
        arrays = {"inputs": self.inputs} | ({} if self.targets is None else {"target_probabilities": self.targets})
        return ArrayLoader(arrays, size, seed, self.inputs.shape[1], local_rows(mesh, size))

    def tested(self, part: Part = "all") -> tuple[np.ndarray, np.ndarray]:
        """(inputs [M, S], labels [M]) of tested windows; the halves are told by the hash of the windows themselves."""
        mine = np.flatnonzero(self.known.test)
        inputs = with_bos(self.known.inputs[mine], self.records.bos_id)
        if part != "all":
            reported = np.array([held_out(row.tobytes().hex(), 0.5) for row in inputs])
            keep = reported if part == "report" else ~reported
            inputs, mine = inputs[keep], mine[keep]
        return inputs, self.known.labels[mine]

    def evaluation(
        self, score: Scorer, part: Part = "all", *, likelihood: bool = False
    ) -> Callable[[Params], dict[str, float]]:
        """Parameters -> "loss", the objective's mean on tested windows against their gold labels."""
        inputs, labels = self.tested(part)
        size = self.cfg.batch_size
        batch = {"inputs": inputs, "target_probabilities": one_hot(labels, len(self.known.names))}
        whole = range(0, len(inputs) - size + 1, size)
        if not len(whole):
            raise ValueError(f"there are {len(inputs)} tested windows, fewer than a batch of {size}")
        return loss_over(score, lambda: ({name: x[i : i + size] for name, x in batch.items()} for i in whole))


def _read(path: str, shape: tuple[int, int]) -> np.ndarray:
    """The teacher's probabilities.

    Raises:
      ValueError: no such file, another shape, or rows that are no probabilities.
    """
    if not Path(path).is_file():
        raise ValueError(
            f"there is no file {path} with a teacher's probabilities; make it with objectives.distillation"
        )
    try:
        found = np.load(path, allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise ValueError(f"{path} holds no array: {error}") from error
    if found.shape != shape:
        raise ValueError(f"{path} holds {found.shape} probabilities, the windows and classes are {shape}")
    if not (np.isfinite(found).all() and (found >= 0).all() and np.allclose(found.sum(1), 1, atol=1e-3)):
        raise ValueError(f"the rows of {path} are no probabilities")
    return found.astype(np.float32)
