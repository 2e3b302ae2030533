"""Masked language modeling (BERT, arXiv 1810.04805): -sum log p(token | corrupted text) over the chosen tokens alone.

    cfg = MaskedLM(model=encoder.Config(mlm_head=True), masking=Masking(mask_id=103, vocab_size=30522))
    loss(params, batch, key, cfg)
    make_step(lambda p, b, k: of_corrupted(p, b, cfg), optimizer, prepare=lambda k, b: corrupt(k, b, cfg))

The states of the chosen positions are gathered before the output matrix, so that its cost is that of 15 % of the tokens.
The model is an encoder, or any other under a full mask: the state at a token predicts that token either way, as in the
biphasic pretraining of arXiv 2507.00994 (which draws every token by itself, where the number is exact here).
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from jaxpt import models
from jaxpt.core.types import Array, Float, Int, Params, PRNGKeyArray
from jaxpt.layers import masks
from jaxpt.models import encoder, flops
from jaxpt.objectives.base import Losses, Objective
from jaxpt.objectives.corruption.masking import Masking, mask_batch
from jaxpt.objectives.corruption.span_priority import counted
from jaxpt.objectives.cross_entropy import cross_entropy
from jaxpt.weights import Cost


@dataclasses.dataclass(frozen=True, kw_only=True)
class MaskedLM(Objective):
    """A model and what is hidden from it. An encoder needs mlm_head=True."""

    masking: Masking

    def check(self) -> None:
        if isinstance(self.model, encoder.Config) and not self.model.mlm_head:
            raise ValueError("masked language modeling needs an encoder with mlm_head=True")
        self.masking.check_vocabulary(self.model.vocab_size)

    def prepare(self, key: PRNGKeyArray, batch: dict[str, jax.Array]) -> dict[str, jax.Array]:
        return corrupt(key, batch, self)

    def loss(self, params: Params, batch: dict[str, jax.Array], key: PRNGKeyArray) -> Losses:
        return of_corrupted(params, batch, self)

    def cost(self, params: Params, batch_size: int, sequence_length: int) -> Cost:
        predicted = batch_size * self.masking.size(sequence_length)
        return flops.of(params, self.model, batch_size, sequence_length, predicted)


def loss(params: Params, batch: dict[str, jax.Array], key: PRNGKeyArray, cfg: MaskedLM) -> Losses:
    """Losses of a batch of packed or plain sequences.

    Args:
      batch: inputs [B, S] int, uncorrupted; optional [B, S]: segment_ids (0 is padding), positions, token_types, and what
        `Masking` names; optional [B]: row, see `over_rows`.
    """
    return of_corrupted(params, corrupt(key, batch, cfg), cfg)


def corrupt(key: PRNGKeyArray, batch: dict[str, jax.Array], cfg: MaskedLM) -> dict[str, jax.Array]:
    """The batch with corrupted inputs; predict_index, predict_labels, predict_weight [B, N]; and its mask_counts, if it has
    them, brought up to date."""
    masked = mask_batch(key, batch, cfg.masking)
    out = batch | {"inputs": masked.inputs, "predict_index": masked.position, "predict_labels": masked.labels}
    if "mask_counts" in batch:
        out["mask_counts"] = counted(batch["mask_counts"], masked.position, masked.weight)
    return out | {"predict_weight": masked.weight}


def of_corrupted(params: Params, batch: dict[str, jax.Array], cfg: MaskedLM) -> Losses:
    """The same of what `corrupt` returns."""
    extra: dict[str, Any] = {"mask": masks.full(batch.get("segment_ids")), "positions": batch.get("positions")}
    if isinstance(cfg.model, encoder.Config):
        extra["token_types"] = batch.get("token_types")
    model = models.of(cfg.model)
    hidden = model.hidden_states(params, batch["inputs"], cfg.model, **extra).final
    read = model.readout(params, at(hidden, batch["predict_index"]), cfg.model)
    weight = batch["predict_weight"]
    sums, correct = cross_entropy(read.states, read.head, batch["predict_labels"], weight, bias=read.bias)
    weights = weight.sum(-1)
    return Losses(sums, weights, {"accuracy": (correct.sum(), weights.sum())})


def at(hidden: Float[Array, "B S D"], index: Int[Array, "B N"]) -> Float[Array, "B N D"]:
    """The states at these positions of each row."""
    return jnp.take_along_axis(hidden, index[..., None], 1)
