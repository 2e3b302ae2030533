"""Tables as the batches of a run: linearised rows for pretraining, questions and answers for fine-tuning.

    data = TableData(sources=("entities", "bundled")).open(vocab_size=1664)
    data.loader().batch(0)["cell_id"]               # [B, S]; see `objectives.table_denoising`
    tasks = TableTasks(tables=TableData(...)).open(vocab_size=1664)
    tasks.loader().batch(0)["targets"]              # [B, T]; see `objectives.pairs`

Tested tables have headers that no other table has. All arrays of a split are in memory.
"""

from __future__ import annotations

import dataclasses
import functools
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from jaxpt.core.names import nearest_error
from jaxpt.core.types import Params
from jaxpt.data import vocabularies
from jaxpt.data.arrays import ArrayLoader, OneSize, stacked
from jaxpt.data.documents import DataError
from jaxpt.data.held_out import Part
from jaxpt.data.packing import example, pack
from jaxpt.data.prepare import TextTask, make_vocabulary, prepared
from jaxpt.data.records import TokenRecords
from jaxpt.data.split import split_of
from jaxpt.data.tables.linear import linearize, text_of
from jaxpt.data.tables.sources import BUNDLED, SCHEMAS, bundled_tables, entity_tables, stated
from jaxpt.data.tables.table import Table, TableText, distinct, lower, read_tables
from jaxpt.data.tables.tasks import TASKS, Example, examples
from jaxpt.evaluate.bits_per_byte import loss_over
from jaxpt.sharding import local_rows

Rows = dict[str, np.ndarray]
TESTED_SETS = BUNDLED[-2:]  # of scikit-learn's; the others are trained on
FIELDS = ("inputs", "segment_ids", "cell_id", "row_id", "col_id", "stated", "context_length")


@dataclasses.dataclass(frozen=True, kw_only=True)
class TableData(OneSize):
    """Which tables, and how they become rows.

    Attributes:
      sources: "entities" and "bundled" (`data.tables.sources`), or paths of files of `write_tables`.
      schemas: so many of the 200 schemas are trained on, the others are tested.
      per_schema: tables of each, and five times as many of each bundled set.
      seed_of_tables: other seeds give other tables of the same schemas.
      shuffled: the control: the cells of a table are in random order, everything else is as it was.
      corpora, plain: plain text, and its share of the rows. The vocabulary is then trained on this text, not on the tables.
      vocabulary: "bpe:SIZE", "sentencepiece:SIZE", or a path.
      reserved: last ids of the model, for sentinels, that are none of the vocabulary's.
      sequence_length, batch_size: tokens per row S, rows per update B.
      evaluation_rows: at most so many held-out rows are scored.
      seed: of the order of the batches.
    """

    sources: tuple[str, ...] = ("entities", "bundled")
    schemas: int = 160
    per_schema: int = 20
    seed_of_tables: int = 0
    shuffled: bool = False
    corpora: tuple[str, ...] = ()
    plain: float = 0.0
    vocabulary: str = "bpe:1536"
    reserved: int = 0
    sequence_length: int = 95
    batch_size: int = 16
    evaluation_rows: int = 512
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.schemas < len(SCHEMAS) or self.per_schema < 1:
            raise ValueError(
                f"need 1 to {len(SCHEMAS) - 1} schemas and a table of each, got {self.schemas}, {self.per_schema}"
            )
        if not 0 <= self.plain < 1 or bool(self.plain) != bool(self.corpora):
            raise ValueError(
                f"plain text is a share below 1 and its corpora, got plain={self.plain}, corpora={self.corpora}"
            )

    @property
    def task(self) -> TextTask | None:
        """The plain text that has to be prepared, if any."""
        return TextTask.of(self.corpora, self.vocabulary, 0.05) if self.corpora else None

    def batch_shapes(self, rows: int, length: int) -> dict[str, jax.ShapeDtypeStruct]:
        """Names, shapes and dtypes of the arrays of a batch, before there are tables."""
        of_token = {name: jax.ShapeDtypeStruct((rows, length), np.int32) for name in FIELDS[:-1]}
        return of_token | {FIELDS[-1]: jax.ShapeDtypeStruct((rows,), np.int32)}

    def open(self, vocab_size: int) -> Tables:
        """The tables, and the vocabulary.

        Raises:
          ValueError: the vocabulary has more ids than the model.
        """
        vocabulary = vocabulary_of(dataclasses.replace(self, shuffled=False, seed=0, batch_size=1))
        if vocabulary.size + self.reserved > vocab_size:
            raise ValueError(
                f"the vocabulary has {vocabulary.size} ids beside {self.reserved} reserved ones, "
                f"but model.vocab_size={vocab_size}"
            )
        return Tables(self, vocabulary)

    def units(self, part: Part | str) -> list[TableText]:
        """The tables of a part, each once: "train", or those that are tested: "tuning", "report", or "all" of these.

        No table that is tested is trained on, by its header and first row.
        """
        if part not in ("train", "tuning", "report", "all"):
            raise nearest_error("part", part, ("train", "tuning", "report", "all"))
        tested = list(distinct(map(lower, self._collected(True))))
        if part == "train":
            found = list(distinct(map(lower, self._collected(False)), {unit.table.key for unit in tested}))
            return [shuffle(unit, i) for i, unit in enumerate(found)] if self.shuffled else found
        halves = {"tuning": (0,), "report": (1,), "all": (0, 1)}[part]
        return [unit for unit in tested if zlib.crc32(unit.table.schema.encode()) // 7 % 2 in halves]

    def _collected(self, tested: bool) -> list[TableText]:
        found: list[TableText] = []
        for source in self.sources:
            if source == "entities":
                chosen = SCHEMAS[self.schemas :] if tested else SCHEMAS[: self.schemas]
                found += entity_tables(chosen, self.per_schema, self.seed_of_tables)
            elif source == "bundled":
                names = [name for name in BUNDLED if (name in TESTED_SETS) == tested]
                for name in names:
                    found += bundled_tables(name, 5 * self.per_schema, self.seed_of_tables)
            elif Path(source).is_file():
                side = "validation" if tested else "train"
                found += [unit for unit in read_tables(Path(source)) if split_of(unit.table.schema, 0.05) == side]
            else:
                raise nearest_error("source of tables", source, ("entities", "bundled", "a file of tables"))
        return found


@functools.lru_cache(maxsize=8)
def vocabulary_of(cfg: TableData) -> vocabularies.Vocabulary:
    """Of the plain text where there is some, otherwise of the training tables and of a question of each task about each."""
    if cfg.task is not None:
        return vocabularies.load(prepared(cfg.task) / "vocabulary")
    units = cfg.units("train")
    asked = examples(units, tuple(TASKS), len(TASKS) * len(units), cfg.seed_of_tables)
    texts = [text_of(unit.table, unit.context) for unit in units] + [f"{one.question} {one.answer}" for one in asked]
    return make_vocabulary(cfg.vocabulary, texts)


def shuffle(unit: TableText, seed: int) -> TableText:
    """The table with the cells below its header in random order, the text around it unchanged."""
    cells = [cell for row in unit.table.rows for cell in row]
    order, columns = np.random.default_rng(seed).permutation(len(cells)), len(unit.table.header)
    moved = [cells[i] for i in order.tolist()]
    rows = tuple(tuple(moved[i : i + columns]) for i in range(0, len(moved), columns))
    return TableText(Table(unit.table.header, rows), unit.context)


class InMemory:
    """Rows of training and of testing as the batches of a run."""

    cfg: Any
    _train: Rows

    def scored(self, part: Part) -> Rows:
        """The rows of a part that an evaluation scores."""
        raise TypeError(f"{type(self).__name__} does not say what is scored")

    def loader(self, mesh: Mesh | None = None, seed: int | None = None) -> ArrayLoader:
        """The batches of all training rows."""
        size, seed = self.cfg.batch_size, self.cfg.seed if seed is None else seed
        return ArrayLoader(self._train, size, seed, self.cfg.sequence_length, local_rows(mesh, size))

    def evaluation(
        self, score: Any, part: Part = "all", *, likelihood: bool = False
    ) -> Callable[[Params], dict[str, float]]:
        """Parameters -> "loss", the mean over the target tokens of tested tables, in batches filled up with empty rows."""
        rows, size = self.scored(part), self.cfg.batch_size
        starts = range(0, len(rows["inputs"]), size)
        return loss_over(score, lambda: (batch_of(rows, start, size) for start in starts))


@dataclasses.dataclass(frozen=True, eq=False)
class Tables(InMemory):
    """Tables and their vocabulary; training rows are of tables and plain text."""

    cfg: TableData
    vocabulary: vocabularies.Vocabulary

    @functools.cached_property
    def _train(self) -> Rows:  # type: ignore[override]
        rows = [row for unit in self.cfg.units("train") if (row := self.row(unit)) is not None]
        if not rows:
            raise DataError(f"no training table of {self.cfg.sources} fits {self.cfg.sequence_length} tokens")
        plain = round(len(rows) * self.cfg.plain / (1 - self.cfg.plain))
        return stacked(rows + (self._plain(plain) if plain else []))

    def row(self, unit: TableText) -> Rows | None:
        """The fields of `FIELDS` of a table; None where not even its header fits."""
        try:
            found = linearize(unit.table, unit.context, self.cfg.sequence_length, self.vocabulary)
        except DataError:
            return None
        columns = len(unit.table.header)
        cells = {(i + 1) * columns + j + 1 for i, j in stated(unit)}
        of_token = {
            "inputs": found.tokens,
            "segment_ids": np.ones(len(found.tokens)),
            "cell_id": found.cell_id,
            "row_id": found.row_id,
            "col_id": found.col_id,
            "stated": np.isin(found.cell_id, sorted(cells)),
        }
        return {name: padded(x, self.cfg.sequence_length) for name, x in of_token.items()} | {
            "context_length": np.asarray(found.context, np.int32)
        }

    def _plain(self, count: int) -> list[Rows]:
        """Windows of plain text, the first again where there are too few."""
        assert self.cfg.task is not None
        records, length = TokenRecords(prepared(self.cfg.task), "train"), self.cfg.sequence_length
        packing = pack(records, length, "concatenate")
        empty = {name: np.zeros(length, np.int32) for name in FIELDS[:-1]} | {"context_length": np.asarray(0, np.int32)}
        windows = [example(records, packing, i % len(packing)) for i in range(count)]
        return [
            empty | {"inputs": w["inputs"].astype(np.int32), "segment_ids": (w["segment_ids"] != 0).astype(np.int32)}
            for w in windows
        ]  # fmt: skip

    def held_out(self, part: Part = "all") -> Rows:
        """Rows of tested tables, in an order that does not depend on how many there are."""
        units = sorted(self.cfg.units(part), key=lambda unit: zlib.crc32(unit.table.key.encode()))
        rows = [row for unit in units[: self.cfg.evaluation_rows] if (row := self.row(unit)) is not None]
        if not rows:
            raise DataError(f"no table of part {part!r} of {self.cfg.sources} fits {self.cfg.sequence_length} tokens")
        return stacked(rows)

    def scored(self, part: Part) -> Rows:
        return self.held_out(part)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TableTasks(OneSize):
    """Questions about tables, for one model or one a task.

    Attributes:
      tables: where the tables come from; those of training have another seed than those of pretraining.
      tasks: of `data.tables.tasks.TASKS`.
      examples, tested: how many are trained on, and tested for each of tuning and report.
      target_length: T; longer answers are not trained on.
    """

    tables: TableData = dataclasses.field(default_factory=TableData)
    tasks: tuple[str, ...] = ("lookup", "entailment", "sql")
    examples: int = 1000
    tested: int = 300
    target_length: int = 28
    batch_size: int = 16
    seed: int = 0

    @property
    def sequence_length(self) -> int:  # type: ignore[override]
        """Tokens of inputs, EOS counted: those of pretraining with its EOS."""
        return self.tables.sequence_length + 1

    @property
    def task(self) -> TextTask | None:
        """As for `TableData`."""
        return self.tables.task

    def batch_shapes(self, rows: int, length: int) -> dict[str, jax.ShapeDtypeStruct]:
        """Names, shapes and dtypes of the arrays of a batch, before there are questions."""
        sizes = dict.fromkeys(("inputs", "segment_ids"), length)
        sizes |= dict.fromkeys(("targets", "target_segments"), self.target_length)
        return {name: jax.ShapeDtypeStruct((rows, size), np.int32) for name, size in sizes.items()}

    def open(self, vocab_size: int) -> Questions:
        """The examples, in the vocabulary of pretraining."""
        return Questions(self, self.tables.open(vocab_size).vocabulary)


@dataclasses.dataclass(frozen=True, eq=False)
class Questions(InMemory):
    """Examples and their vocabulary; training rows are those whose answer is neither cut off nor too long."""

    cfg: TableTasks
    vocabulary: vocabularies.Vocabulary

    @functools.cached_property
    def _train(self) -> Rows:  # type: ignore[override]
        other = dataclasses.replace(self.cfg.tables, seed_of_tables=self.cfg.tables.seed_of_tables + 1, shuffled=False)
        asked = examples(other.units("train"), self.cfg.tasks, self.cfg.examples, self.cfg.tables.seed_of_tables)
        rows = [row for one in asked if (row := self.row(one, training=True)) is not None]
        if not rows:
            raise DataError(f"no answer fits target_length={self.cfg.target_length} of tasks {self.cfg.tasks}")
        return stacked(rows)

    def asked(self, part: Part) -> list[Example]:
        """The examples of a part of the tested tables: all that were drawn, whether their answers can be found or not."""
        return examples(self.cfg.tables.units(part), self.cfg.tasks, self.cfg.tested, 7)

    def row(self, one: Example, training: bool = False) -> Rows | None:
        """inputs, segment_ids [S], targets, target_segments [T] of an example; None where question and header do not fit.

        Args:
          training: also None where the table was cut before the row that answers, or where the answer is too long.
        """
        length, room, eos = self.cfg.sequence_length, self.cfg.target_length, self.vocabulary.eos_id
        try:
            found = linearize(one.table, one.question, length - 1, self.vocabulary)
        except DataError:
            return None
        answer = self.vocabulary.encode(one.answer)
        lost = one.row is not None and one.row >= found.rows
        if training and (lost or len(answer) >= room):
            return None
        inputs, targets = np.append(found.tokens, eos), np.append(answer[: room - 1], eos)
        return {
            "inputs": padded(inputs, length),
            "segment_ids": padded(np.ones(len(inputs)), length),
            "targets": padded(targets, room),
            "target_segments": padded(np.ones(len(targets)), room),
        }

    def rows(self, part: Part) -> tuple[list[Example], Rows]:
        """The examples of a part and their rows; those whose question and header do not fit have empty rows."""
        asked = self.asked(part)
        found = [self.row(one) for one in asked]
        there = next((row for row in found if row is not None), None)
        if there is None:
            raise DataError(f"no question of part {part!r} fits {self.cfg.sequence_length} tokens")
        empty = {name: np.zeros_like(x) for name, x in there.items()}
        return asked, stacked([empty if row is None else row for row in found])

    def scored(self, part: Part) -> Rows:
        return self.rows(part)[1]


def batch_of(rows: Rows, start: int, size: int) -> Rows:
    """Rows start .. start + size - 1, empty rows after the last."""
    cut = {name: x[start : start + size] for name, x in rows.items()}
    return {name: np.pad(x, [(0, size - len(x)), *[(0, 0)] * (x.ndim - 1)]) for name, x in cut.items()}


def padded(x: np.ndarray | Sequence[int], length: int) -> np.ndarray:
    """[n] -> [length] int32, zeros at the end."""
    x = np.asarray(x, np.int32)
    return np.pad(x, (0, length - len(x)))
