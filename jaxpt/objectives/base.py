"""What every objective returns: sums of weighted terms per sequence, divided once, later, over the global batch."""

from __future__ import annotations

from typing import NamedTuple

from jaxpt.core.types import Array, Float, Metrics


class Losses(NamedTuple):
    """Per sequence: the sum of weighted token losses in nats [B], and the sum of the weights [B], both float32.

    `metrics` are further (sum, count) pairs over the batch.
    """

    sums: Float[Array, " B"]
    weights: Float[Array, " B"]
    metrics: Metrics
