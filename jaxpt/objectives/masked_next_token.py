"""Masked next-token prediction (GPT-BERT, arXiv 2410.24159): the state BEFORE a hidden token predicts it, under a full mask.

    cfg = MaskedNextToken(model=decoder.Config(), masking=Masking(mask_id=4, vocab_size=8192, rate=0.3, by="spans"))

So an output position means the same as in a causal language model, token t + 1 at position t, and one set of weights can do
both (`jaxpt.objectives.hybrid_lm`). A token that begins a segment has no state before it and is never hidden. The release
also predicts, from the last state, the token after the row; here it would need no corruption, and is left out.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from jaxpt import models
from jaxpt.core.types import Array, Float, Params, PRNGKeyArray
from jaxpt.layers import masks
from jaxpt.models import flops
from jaxpt.objectives.base import Losses, Objective
from jaxpt.objectives.corruption.masking import Masking, mask_batch
from jaxpt.objectives.corruption.rows import real_tokens
from jaxpt.objectives.corruption.span_priority import counted
from jaxpt.objectives.cross_entropy import cross_entropy
from jaxpt.objectives.masked_lm import at
from jaxpt.weights import Cost


@dataclasses.dataclass(frozen=True, kw_only=True)
class MaskedNextToken(Objective):
    """Attributes:
    z_loss: see `cross_entropy`; GPT-BERT has 1e-4.
    """

    masking: Masking
    z_loss: float = 0.0

    def check(self) -> None:
        self.masking.check_vocabulary(self.model.vocab_size)

    def prepare(self, key: PRNGKeyArray, batch: dict[str, jax.Array]) -> dict[str, jax.Array]:
        return corrupt(key, batch, self)

    def loss(self, params: Params, batch: dict[str, jax.Array], key: PRNGKeyArray) -> Losses:
        return of_corrupted(params, batch, self)

    def cost(self, params: Params, batch_size: int, sequence_length: int) -> Cost:
        predicted = batch_size * self.masking.size(sequence_length)
        return flops.of(params, self.model, batch_size, sequence_length, predicted)


def loss(params: Params, batch: dict[str, jax.Array], key: PRNGKeyArray, cfg: MaskedNextToken) -> Losses:
    """Losses of a batch of packed or plain sequences.

    Args:
      batch: inputs [B, S] int, uncorrupted; optional [B, S]: segment_ids (0 is padding), positions, and what `Masking`
        names; optional [B]: row, see `over_rows`.
    """
    return of_corrupted(params, corrupt(key, batch, cfg), cfg)


def corrupt(key: PRNGKeyArray, batch: dict[str, jax.Array], cfg: MaskedNextToken) -> dict[str, jax.Array]:
    """The batch with corrupted inputs; predict_index (of the state BEFORE the hidden token), predict_labels,
    predict_weight [B, N]; and its mask_counts, if it has them, brought up to date."""
    segments = real_tokens(batch) if batch.get("segment_ids") is None else batch["segment_ids"]
    follows = jnp.pad(segments[:, 1:] == segments[:, :-1], ((0, 0), (1, 0)))
    masked = mask_batch(key, batch, cfg.masking, follows)
    out = batch | {"inputs": masked.inputs, "predict_index": jnp.maximum(masked.position - 1, 0)}
    if "mask_counts" in batch:
        out["mask_counts"] = counted(batch["mask_counts"], masked.position, masked.weight)
    return out | {"predict_labels": masked.labels, "predict_weight": masked.weight}


def of_corrupted(params: Params, batch: dict[str, jax.Array], cfg: MaskedNextToken) -> Losses:
    """The same of what `corrupt` returns."""
    mask, positions = masks.full(batch.get("segment_ids")), batch.get("positions")
    run = models.of(cfg.model).hidden_states
    hidden = run(params, batch["inputs"], cfg.model, mask=mask, positions=positions).final
    return of_hidden(params, hidden, batch, cfg.model, cfg.z_loss)


def of_hidden(
    params: Params, hidden: Float[Array, "B S D"], batch: dict[str, jax.Array], cfg: Any, z_loss: float = 0.0
) -> Losses:
    """The same from the final normalised states."""
    read, weight = models.of(cfg).readout(params, at(hidden, batch["predict_index"]), cfg), batch["predict_weight"]
    labels = batch["predict_labels"]
    sums, correct = cross_entropy(read.states, read.head, labels, weight, bias=read.bias, z_loss=z_loss)
    weights = weight.sum(-1)
    return Losses(sums, weights, {"accuracy": (correct.sum(), weights.sum())})
