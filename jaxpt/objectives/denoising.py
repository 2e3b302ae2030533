"""UL2's mixture of denoisers (arXiv 2205.05131) on a decoder: a prefix language model of corrupted texts.

    modes = (("R", 259), ("S", 260), ("X", 261))
    cfg = Denoising(model=decoder.Config(vocab_size=512), mixture=Mixture(modes=modes, sentinel=511, eos_id=1))

The mode token and the inputs see each other; the targets see them and what came before; the loss is the mean over target
tokens of the batch, so that a row of X counts more than a row of R. `corruption.denoisers` says what is reconstructed.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp

from jaxpt.core.types import Array, Bool, Int, Metrics, Params, PRNGKeyArray
from jaxpt.layers.masks import prefix_lm
from jaxpt.models import decoder, flops
from jaxpt.objectives import causal_lm
from jaxpt.objectives.base import Losses, Objective
from jaxpt.objectives.corruption import denoisers
from jaxpt.objectives.corruption.denoisers import Mixture
from jaxpt.objectives.corruption.rows import over_rows, real_tokens
from jaxpt.weights import Cost


@dataclasses.dataclass(frozen=True, kw_only=True)
class Denoising(Objective):
    """A model and the mixture. The model's vocabulary must have the sentinels and the mode tokens."""

    mixture: Mixture

    def check(self) -> None:
        check_vocabulary(self.mixture, self.model.vocab_size)

    def prepare(self, key: PRNGKeyArray, batch: dict[str, jax.Array]) -> dict[str, jax.Array]:
        return corrupt(key, batch, self)

    def loss(self, params: Params, batch: dict[str, jax.Array], key: PRNGKeyArray) -> Losses:
        return of_corrupted(params, batch, self)

    def cost(self, params: Params, batch_size: int, sequence_length: int) -> Cost:
        return flops.decoder_flops(params, self.model, batch_size, self.mixture.size(sequence_length) - 1)


def loss(params: Params, batch: dict[str, jax.Array], key: PRNGKeyArray, cfg: Denoising) -> Losses:
    """Losses of a batch of texts.

    Args:
      batch: inputs [B, S] int; segment_ids [B, S], optional, of which only 0 at the end of a row, padding, has a meaning: a
        row is one text; row [B], optional, see `over_rows`.
    """
    return of_corrupted(params, corrupt(key, batch, cfg), cfg)


def corrupt(key: PRNGKeyArray, batch: dict[str, jax.Array], cfg: Denoising) -> dict[str, jax.Array]:
    """inputs, labels, loss_weight, segment_ids [B, Z - 1] of a prefix language model; prefix and denoiser [B]."""

    def row(key: PRNGKeyArray, ids: jax.Array, length: jax.Array) -> denoisers.Example:
        return denoisers.example(key, ids, length, cfg.mixture)

    made: denoisers.Example = over_rows(row, key, batch, batch["inputs"], real_tokens(batch).sum(-1))
    at = jnp.arange(1, made.ids.shape[1])
    predicted = (at >= made.prefix[:, None]) & (at < made.length[:, None])
    has_targets = made.length > made.prefix + 1  # a row that is too short for noise holds an EOS alone
    return {
        "inputs": made.ids[:, :-1],
        "labels": made.ids[:, 1:],
        "loss_weight": (predicted & has_targets[:, None]).astype(jnp.float32),
        "segment_ids": (at <= made.length[:, None]).astype(jnp.int32),
        "prefix": made.prefix,
        "denoiser": made.denoiser,
    }


def of_corrupted(params: Params, batch: dict[str, jax.Array], cfg: Denoising) -> Losses:
    """The same of what `corrupt` returns. The metrics loss_R, loss_S, ... are the means over the targets of each mode."""
    mask = prefix_lm(batch["prefix"], batch["segment_ids"])
    hidden = decoder.hidden_states(params, batch["inputs"], cfg.model, mask=mask).final
    losses = causal_lm.of_hidden(params, hidden, batch, cfg.model)
    return losses._replace(metrics=losses.metrics | by_mode(losses, batch["denoiser"], cfg.mixture))


def by_mode(losses: Losses, denoiser: Int[Array, " B"], mixture: Mixture) -> Metrics:
    """loss_R, loss_S, ...: the sums and weights of the rows that the denoisers of each mode made."""
    modes = sorted({d.mode for d in mixture.denoisers})
    return by_group(losses, {m: jnp.asarray([d.mode == m for d in mixture.denoisers])[denoiser] for m in modes})


def by_group(losses: Losses, rows: Mapping[str, Bool[Array, " B"]]) -> Metrics:
    """loss_NAME: the sums and weights of these rows."""
    return {f"loss_{name}": (jnp.sum(losses.sums * own), jnp.sum(losses.weights * own)) for name, own in rows.items()}


def check_vocabulary(mixture: Mixture, vocab_size: int) -> None:
    """Raises ValueError where a model with so many tokens lacks one of the mixture's."""
    check_token(max(mixture.sentinel, mixture.eos_id, *(i for _, i in mixture.modes)), vocab_size)


def check_token(highest: int, vocab_size: int) -> None:
    """Raises ValueError where a model with so many tokens lacks this one."""
    if highest >= vocab_size:
        raise ValueError(f"the mixture uses token {highest}, the model has vocab_size={vocab_size}")
