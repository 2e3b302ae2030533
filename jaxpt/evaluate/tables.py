"""How well an encoder-decoder answers questions about tables, and fills in cells that were hidden; by greedy decoding.

    accuracy(params, model, TableTasks(...).open(1664), "report")         {"lookup": 0.61, "entailment": 0.74, "sql": 0.58}
    stated_cells(params, objective, TableData(...).open(1664), "report")  share of hidden cells that are told

Look-up answers are compared as denotations, statements exactly, queries by what they give when both are run. Tables that
were cut before the row of the answer are counted like all others.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from jaxpt.core.types import Params
from jaxpt.data.held_out import Part
from jaxpt.data.tables.batches import Questions, Rows, Tables, batch_of
from jaxpt.data.tables.tasks import Example
from jaxpt.data.vocabularies import Vocabulary
from jaxpt.evaluate.denotation import denotation_match, exact_match
from jaxpt.evaluate.sql import same_denotation
from jaxpt.models import encoder_decoder
from jaxpt.models.generate import Sampling
from jaxpt.models.generate_seq2seq import generate
from jaxpt.objectives.table_denoising import TableDenoising, hidden

BATCH = 100  # rows that are decoded at a time


def accuracy(params: Params, model: encoder_decoder.Config, questions: Questions, part: Part) -> dict[str, float]:
    """The share of right answers by task."""
    asked, rows = questions.rows(part)
    tokens = greedy(params, model, rows, questions.cfg.target_length, questions.vocabulary.eos_id)
    right = [
        rows["segment_ids"][i].any() and is_right(one, text_of(tokens[i], questions.vocabulary))
        for i, one in enumerate(asked)
    ]
    by_task = {
        task: [r for r, one in zip(right, asked, strict=True) if one.task == task] for task in questions.cfg.tasks
    }
    return {task: float(np.mean(found)) for task, found in by_task.items()}


def is_right(one: Example, predicted: str) -> bool:
    """Whether a text answers a question."""
    if one.task == "sql":
        return same_denotation(predicted, one.answer, one.table)
    return exact_match(predicted, one.answer) if one.task == "entailment" else denotation_match(predicted, one.answer)


def greedy(params: Params, model: encoder_decoder.Config, rows: Rows, steps: int, eos_id: int) -> np.ndarray:
    """The likeliest tokens [N, steps], one after the other; EOS for ever after the first."""
    found = []
    for start in range(0, len(rows["inputs"]), BATCH):
        batch = batch_of(rows, start, BATCH)
        found.append(
            generate(
                params, jnp.asarray(batch["inputs"]), model, key=jax.random.key(0), steps=steps,
                sampling=Sampling(temperature=0), segments=jnp.asarray(batch["segment_ids"]), stop_id=eos_id,
            )
        )  # fmt: skip
    return np.concatenate([np.asarray(x) for x in found])[: len(rows["inputs"])]


def text_of(tokens: np.ndarray, vocabulary: Vocabulary) -> str:
    """The text before the first EOS. A sentinel, of which no vocabulary knows, makes it empty."""
    ids = tokens.tolist()
    ids = ids[: ids.index(vocabulary.eos_id)] if vocabulary.eos_id in ids else ids
    return "" if any(i >= vocabulary.size for i in ids) else vocabulary.decode(ids).strip()


def stated_cells(params: Params, objective: TableDenoising, tables: Tables, part: Part) -> float:
    """The share of cells that are told, where one cell of each tested table is hidden that its context states."""
    rows, rng = tables.held_out(part), np.random.default_rng(5)
    noise = np.zeros(rows["inputs"].shape, bool)
    for i, (cell, stated) in enumerate(zip(rows["cell_id"], rows["stated"], strict=True)):
        known = np.unique(cell[stated > 0])
        sizes = {int(c): int((cell == c).sum()) for c in known}
        short = [c for c, size in sizes.items() if size <= objective.cell_tokens]
        if short:
            noise[i] = cell == short[int(rng.integers(len(short)))]
    chosen = noise.any(1)
    if not chosen.any():
        raise ValueError(f"no table of part {part!r} has a cell that its context states")
    made = hidden({name: jnp.asarray(x[chosen]) for name, x in rows.items()}, jnp.asarray(noise[chosen]), objective)
    pairs = {name: np.asarray(made[name]) for name in ("inputs", "segment_ids", "labels", "target_segments")}
    eos = objective.corruption.eos_id
    tokens = greedy(params, objective.model, pairs, objective.cell_tokens + 2, -1 if eos is None else eos)
    wanted, real = (pairs[name][:, : tokens.shape[1]] for name in ("labels", "target_segments"))
    return float(((tokens == wanted) | (real == 0)).all(1).mean())
