"""Next-token prediction: -sum_i loss_weight_i log p(label_i | inputs up to i)."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import jax

from jaxpt import models
from jaxpt.core.types import Array, Float, Params, PRNGKeyArray
from jaxpt.models import flops
from jaxpt.objectives.base import Losses, Objective
from jaxpt.objectives.cross_entropy import cross_entropy
from jaxpt.weights import Cost


@dataclasses.dataclass(frozen=True, kw_only=True)
class CausalLM(Objective):
    """Next-token prediction, the objective of a run that names none."""

    likelihood: ClassVar[bool] = True

    def loss(self, params: Params, batch: dict[str, jax.Array], key: PRNGKeyArray | None) -> Losses:
        return loss(params, batch, key, self.model)

    def cost(self, params: Params, batch_size: int, sequence_length: int) -> Cost:
        return flops.of(params, self.model, batch_size, sequence_length)


def loss(params: Params, batch: dict[str, jax.Array], key: PRNGKeyArray | None, cfg: Any) -> Losses:
    """Losses of a batch of packed or plain sequences.

    Args:
      batch: inputs, labels [B, S] int; loss_weight [B, S]; segment_ids and positions [B, S], optional.
      key: unused, the objective draws nothing.
    """
    extra: dict[str, Any] = {"segments": batch.get("segment_ids"), "positions": batch.get("positions")}
    hidden = models.of(cfg).hidden_states(params, batch["inputs"], cfg, **extra).final
    return of_hidden(params, hidden, batch, cfg)


def of_hidden(
    params: Params, hidden: Float[Array, "B S D"], batch: dict[str, jax.Array], cfg: Any, z_loss: float = 0.0
) -> Losses:
    """The same from the final normalised states. With `z_loss`, see `cross_entropy`."""
    read, labels, weight = models.of(cfg).readout(params, hidden, cfg), batch["labels"], batch["loss_weight"]
    sums, correct = cross_entropy(read.states, read.head, labels, weight, bias=read.bias, z_loss=z_loss)
    weights = weight.sum(-1)
    return Losses(sums, weights, {"accuracy": (correct.sum(), weights.sum())})
