"""GPT-BERT's hybrid (arXiv 2410.24159): some rows predict masked next tokens, the others next tokens, with the same weights.

    L = share * mean over hidden tokens + (1 - share) * mean over the tokens of causal rows

The first share * B rows of a batch are the masked ones, an exact number, and see each other's tokens both ways; the rest is
causal. The two means are not weighted by their numbers of tokens, as in the release, where each device has one kind of row
and gradients are averaged over devices: with 15 % hidden tokens a token's weight would otherwise make 15/16 a good half.

The means are over the batch that `corrupt` is given. With microbatches, give it to `make_step(prepare=...)`: it then sees
the whole batch. If `loss` draws in each of them, each has means of its own, like the release's devices.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from jaxpt import models
from jaxpt.core.types import Params, PRNGKeyArray
from jaxpt.layers.masks import Mask
from jaxpt.models import flops
from jaxpt.objectives import causal_lm, masked_next_token
from jaxpt.objectives.base import Losses
from jaxpt.weights import Cost


@dataclasses.dataclass(frozen=True, kw_only=True)
class HybridLM(masked_next_token.MaskedNextToken):
    """Attributes:
    masked: share of the rows that are masked, (numerator, denominator); the submission to BabyLM 2024 has 15/16.
    """

    masked: tuple[int, int] = (1, 2)

    def check(self) -> None:
        super().check()
        if not 0 <= self.masked[0] <= self.masked[1] or self.masked[1] < 1:
            raise ValueError(f"the masked share must be a fraction between 0 and 1, got {self.masked}")

    def masked_rows(self, rows: int) -> int:
        """How many of the rows of a batch are masked.

        Raises:
          ValueError: the share of so many rows is no whole number.
        """
        number, rest = divmod(rows * self.masked[0], self.masked[1])
        if rest:
            raise ValueError(f"{self.masked[0]}/{self.masked[1]} of {rows} rows is no whole number of masked rows")
        return number

    def prepare(self, key: PRNGKeyArray, batch: dict[str, jax.Array]) -> dict[str, jax.Array]:
        return corrupt(key, batch, self)

    def loss(self, params: Params, batch: dict[str, jax.Array], key: PRNGKeyArray) -> Losses:
        return of_corrupted(params, batch, self)

    def cost(self, params: Params, batch_size: int, sequence_length: int) -> Cost:
        hidden = self.masked_rows(batch_size)
        predicted = hidden * self.masking.size(sequence_length) + (batch_size - hidden) * sequence_length
        return flops.of(params, self.model, batch_size, sequence_length, predicted)


def loss(params: Params, batch: dict[str, jax.Array], key: PRNGKeyArray, cfg: HybridLM) -> Losses:
    """Losses of a batch of packed or plain sequences.

    Args:
      batch: what `causal_lm.loss` and `masked_next_token.loss` need.
    """
    return of_corrupted(params, corrupt(key, batch, cfg), cfg)


def corrupt(key: PRNGKeyArray, batch: dict[str, jax.Array], cfg: HybridLM) -> dict[str, jax.Array]:
    """`masked_next_token.corrupt` for the masked rows; the weights of both kinds sum to their shares of all predictions."""
    rows = len(batch["inputs"])
    number = cfg.masked_rows(rows)
    is_masked = (jnp.arange(rows) < number)[:, None]
    out = masked_next_token.corrupt(key, batch, cfg)
    for name in ("inputs", "mask_counts"):
        if name in batch:
            out[name] = jnp.where(is_masked, out[name], batch[name])
    weights = {
        "predict_weight": (number / rows, out["predict_weight"] * is_masked),
        "loss_weight": (1 - number / rows, batch["loss_weight"] * ~is_masked),
    }
    total = sum(weight.sum() for _, weight in weights.values())
    scaled = {name: w * (share * total / jnp.maximum(w.sum(), 1e-9)) for name, (share, w) in weights.items()}
    return out | scaled


def of_corrupted(params: Params, batch: dict[str, jax.Array], cfg: HybridLM) -> Losses:
    """The same of what `corrupt` returns, or of every n-th row of it. loss_masked and loss_causal are the two means."""
    rows, length = batch["inputs"].shape[:2]
    number = cfg.masked_rows(rows)
    everything = jnp.where(jnp.arange(rows) < number, length, 0)  # a prefix as long as the row is a full mask
    mask = Mask(causal=True, prefix=everything, segments=batch.get("segment_ids"))
    positions = batch.get("positions")
    run = models.of(cfg.model).hidden_states
    hidden = run(params, batch["inputs"], cfg.model, mask=mask, positions=positions).final
    parts: dict[str, Losses] = {}
    if number:
        first = {name: x[:number] for name, x in batch.items()}
        parts["masked"] = masked_next_token.of_hidden(params, hidden[:number], first, cfg.model, cfg.z_loss)
    if number < rows:
        rest = {name: x[number:] for name, x in batch.items()}
        parts["causal"] = causal_lm.of_hidden(params, hidden[number:], rest, cfg.model, cfg.z_loss)
    metrics = {f"accuracy_{name}": part.metrics["accuracy"] for name, part in parts.items()}
    metrics |= {f"loss_{name}": (part.sums.sum(), part.weights.sum()) for name, part in parts.items()}
    sums, weights = [part.sums for part in parts.values()], [part.weights for part in parts.values()]
    return Losses(jnp.concatenate(sums), jnp.concatenate(weights), metrics)
