"""How much a document's loss falls when others stand before it: what a model makes of its context.

    after = document_loss(score, records, units, before, targets, batch_size=8)       # before [M, c] units
    gain = document_loss(score, records, units, other, targets, batch_size=8)(params) - after(params)

Attention crosses the documents; only the last one's tokens are scored.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from jaxtyping import Bool, Int

from jaxpt.core.types import Params
from jaxpt.data.arrays import stacked
from jaxpt.data.packing import Packing, example
from jaxpt.data.records import TokenRecords
from jaxpt.data.related import Units
from jaxpt.evaluate.bits_per_byte import Scorer

Scored = Callable[[Int[np.ndarray, "M S"]], Bool[np.ndarray, "M S"]]


def document_loss(
    score: Scorer,
    records: TokenRecords,
    units: Units,
    before: Int[np.ndarray, "M c"],
    targets: Int[np.ndarray, " M"],
    *,
    batch_size: int,
    scored: Scored | None = None,
) -> Callable[[Params], float]:
    """Parameters -> nats per scored token of the targets, each after the documents in its row of `before`.

    Args:
      units: all of one length.
      scored: labels -> which of them count; all but EOS by default.

    Raises:
      ValueError: no targets, or units of several lengths.
    """
    lengths = set(units.lengths[np.concatenate([before.ravel(), targets])].tolist())
    if len(lengths) != 1 or len(before) != len(targets):
        raise ValueError(
            f"need targets and units of one length, got {len(targets)} targets and lengths {sorted(lengths)}"
        )
    rows = np.concatenate([before, targets[:, None]], 1)
    spans = units.of(rows.ravel())
    counts = np.bincount(units.unit)[rows].sum(1)
    size = lengths.pop()
    packing = Packing(spans, np.concatenate([[0], np.cumsum(counts)]), rows.shape[1] * size, "concatenate")
    found = [example(records, packing, i) for i in range(len(rows))]
    batch = stacked(found)
    labels = batch["labels"][:, -size:]
    weight = np.zeros_like(batch["loss_weight"])
    weight[:, -size:] = labels != records.eos_id if scored is None else scored(labels)
    batch["loss_weight"] = weight
    missing = -len(rows) % batch_size
    batch = {name: np.concatenate([x, np.zeros_like(x[:1]).repeat(missing, 0)]) for name, x in batch.items()}

    def evaluate(params: Params) -> float:
        parts = range(0, len(rows), batch_size)
        sums = [score(params, {k: x[i : i + batch_size] for k, x in batch.items()}) for i in parts]
        return float(sum(s[0].sum() for s in sums) / sum(s[1].sum() for s in sums))

    return evaluate
