"""Fine-tuning of an encoder-decoder on given inputs and targets, by teacher forcing.

L = mean of -log p(target | inputs, targets before) over all target tokens of the batch

Pairs(target_length=24).on(model).loss(params, {"inputs": [B, S], "targets": [B, T], ...}, key)
"""

from __future__ import annotations

import dataclasses

import jax

from jaxpt.core.types import Params, PRNGKeyArray
from jaxpt.models import flops
from jaxpt.objectives.base import Losses, Objective
from jaxpt.objectives.corruption.rows import real_tokens
from jaxpt.objectives.seq2seq_denoising import check_model, of_pairs, pair_batch
from jaxpt.weights import Cost


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pairs(Objective):
    """An encoder-decoder.

    Attributes:
      target_length: T, for the count of operations.
      start_id: what the decoder reads first.
    """

    target_length: int
    start_id: int = 0

    def check(self) -> None:
        check_model(self.model)

    def loss(self, params: Params, batch: dict[str, jax.Array], key: PRNGKeyArray) -> Losses:
        return loss(params, batch, key, self)

    def cost(self, params: Params, batch_size: int, sequence_length: int) -> Cost:
        return flops.encoder_decoder_flops(params, self.model, batch_size, sequence_length, self.target_length)


def loss(params: Params, batch: dict[str, jax.Array], key: PRNGKeyArray | None, cfg: Pairs) -> Losses:
    """Losses of a batch of pairs.

    Args:
      batch: inputs [B, S] and targets [B, T], both ending in EOS; segment_ids and target_segments, of their shapes, are 0
        at padding. Targets of an EOS alone have no weight.
    """
    shown, number = real_tokens(batch).sum(-1), (batch["target_segments"] != 0).sum(-1)
    return of_pairs(params, pair_batch(batch["inputs"], shown, batch["targets"], number, start=cfg.start_id), cfg.model)
