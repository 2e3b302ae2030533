"""What every objective is and returns.

A method's objective is a frozen dataclass beside its loss, part of a run's description:

    Pretrain(model=encoder.Config(mlm_head=True), objective=MaskedLM(masking=Masking(mask_id=4, vocab_size=259)))

Losses are sums of weighted terms per sequence, divided once, later, over the global batch.
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar, NamedTuple

import jax

from jaxpt import models
from jaxpt.core.types import Array, Float, Metrics, Params, PRNGKeyArray
from jaxpt.weights import Cost


class Losses(NamedTuple):
    """Per sequence: the sum of weighted token losses in nats [B], and the sum of the weights [B], both float32.

    `metrics` are further (sum, count) pairs over the batch.
    """

    sums: Float[Array, " B"]
    weights: Float[Array, " B"]
    metrics: Metrics


@dataclasses.dataclass(frozen=True, kw_only=True)
class Objective:
    """Settings of an objective, and what a run needs of it.

    Attributes:
      model: what is trained. None in a description of a run, whose own model it then is (`on`).
      likelihood: the loss is -log p of a text, so that bits per byte can be told from it.
    """

    model: Any = None
    likelihood: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if self.model is not None:
            self.check()

    def check(self) -> None:
        """Raises ValueError where the settings and the model do not go together."""

    def on(self, model: Any) -> Any:
        """The objective with this model, unless it has one of its own."""
        return self if self.model is not None else dataclasses.replace(self, model=model)

    def scored(self) -> Objective:
        """What held-out text is scored by, where something is minimised that says nothing of it: an auxiliary loss."""
        return self

    def spec(self) -> Params:
        """Every array that is trained."""
        return models.of(self.model).spec(self.model)

    def prepare(self, key: PRNGKeyArray, batch: dict[str, jax.Array]) -> dict[str, jax.Array]:
        """What is drawn for a batch, once an update and before it is cut into microbatches."""
        return batch

    def loss(self, params: Params, batch: dict[str, jax.Array], key: PRNGKeyArray) -> Losses:
        """Losses of a prepared batch, or of a microbatch of it."""
        raise TypeError(f"{type(self).__name__} does not say what its loss is")

    def cost(self, params: Params, batch_size: int, sequence_length: int) -> Cost:
        """Operations of an update; `params` may be specs."""
        raise TypeError(f"{type(self).__name__} does not say what it costs")
