"""The pretraining mixture on tables as SeqIO tasks, one for each of spans, cells and context. Needs the `data` extra.

    mixture = table_mixture((0.25, 0.4, 0.35), TableData(...), TableDenoising(...))
    mixture.get_dataset({"inputs": 512, "targets": 128}, "train", shuffle=True, num_epochs=1)

A task's tokens are those of `TableData`, corrupted by the objective's own function, as a Python function of the seeds that
SeqIO gives every example. Sentinels are ids from the objective's first one down, above the ids of the vocabulary.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from jaxpt.core.rng import fold
from jaxpt.data.tables.batches import FIELDS, TableData, Tables
from jaxpt.objectives.table_denoising import TableDenoising, corrupt

if TYPE_CHECKING:
    import seqio

PARTS = ("spans", "cells", "context")
SPLITS = {"train": "train", "validation": "all"}


def table_mixture(
    rates: tuple[float, float, float], data: TableData, objective: TableDenoising, name: str = "tables"
) -> seqio.Mixture:
    """Registers the tasks NAME_spans, NAME_cells and NAME_context, and the mixture NAME of them at these rates.

    Args:
      rates: of A, B and C; a task of rate 0 is left out.

    Raises:
      ValueError: other than three rates, a negative one, or none above 0.
      ImportError: SeqIO is not installed.
    """
    try:
        import seqio
    except ImportError as error:
        raise ImportError(f"the SeqIO mixture needs the data extra ({error}): pip install 'jaxpt[data]'") from None
    dataclasses.replace(objective, rates=rates)  # checks them
    reserved = dataclasses.replace(data, reserved=objective.corruption.sentinels)
    tables = reserved.open(objective.corruption.sentinel + 1)
    tasks = []
    for i, (part, rate) in enumerate(zip(PARTS, rates, strict=True)):
        if rate > 0:
            alone = (float(i == 0), float(i == 1), float(i == 2))
            _register(f"{name}_{part}", tables, dataclasses.replace(objective, rates=alone))
            tasks.append((f"{name}_{part}", float(rate)))
    return seqio.MixtureRegistry.add(name, tasks)


def _register(name: str, tables: Tables, objective: TableDenoising) -> None:
    import seqio

    from jaxpt.data.seqio_tasks import to_seqio

    vocabulary = to_seqio(tables.vocabulary)
    feature = seqio.Feature(vocabulary, add_eos=objective.corruption.eos_id is not None)
    seqio.TaskRegistry.add(
        name,
        source=seqio.FunctionDataSource(functools.partial(_dataset, tables), splits=tuple(SPLITS)),
        preprocessors=[functools.partial(_corrupted, objective=objective)],
        output_features={"inputs": feature, "targets": feature},
    )


def _dataset(tables: Tables, split: str, shuffle_files: bool, seed: int | None = None) -> Any:
    """The fields of a table's row."""
    import tensorflow as tf

    def rows() -> Iterator[dict[str, np.ndarray]]:
        for unit in tables.cfg.units(SPLITS[split]):
            if (row := tables.row(unit)) is not None:
                yield row

    batch = tables.cfg.batch_shapes(1, tables.cfg.sequence_length)
    return tf.data.Dataset.from_generator(
        rows, output_signature={name: tf.TensorSpec(x.shape[1:], tf.int32) for name, x in batch.items()}
    )


def _corrupted(dataset: Any, objective: TableDenoising) -> Any:
    """inputs and targets without padding."""
    import seqio
    import tensorflow as tf

    @seqio.map_over_dataset(num_seeds=1)
    def one(row: dict[str, Any], seed: Any) -> dict[str, Any]:
        fields = [row[name] for name in FIELDS]
        found = tf.numpy_function(functools.partial(_pair, objective), [seed, *fields], (tf.int32, tf.int32))
        for ids in found:
            ids.set_shape([None])
        return {"inputs": found[0], "targets": found[1]}

    return one(dataset)


def _pair(objective: TableDenoising, seed: np.ndarray, *fields: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    batch = {name: x[None] for name, x in zip(FIELDS, fields, strict=True)}
    key = fold(jax.random.key(0), *(int(s) % 2**32 for s in np.ravel(seed)))
    made = _compiled(key, batch, objective)
    inputs, targets = (np.asarray(made[name])[0] for name in ("inputs", "labels"))
    shown, wanted = (int(np.asarray(made[name]).sum()) for name in ("segment_ids", "target_segments"))
    return inputs[:shown].astype(np.int32), targets[:wanted].astype(np.int32)


_compiled = jax.jit(corrupt, static_argnums=2)
