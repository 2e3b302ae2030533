"""UL2's mixture of denoisers (arXiv 2205.05131) on an encoder-decoder, with T5's span corruption as a special case.

    inputs     mode token, text with spans replaced by sentinels, EOS          (S: the beginning of the text)
    targets    sentinel 0, span 0, sentinel 1, span 1, ..., EOS                (S: the rest of the text)
    L = mean of -log p(target | inputs, targets before) over all target tokens of the batch

    modes = (("R", 2048), ("S", 2049), ("X", 2050))
    cfg = Seq2SeqDenoising(model=encoder_decoder.Config(vocab_size=2176),
                           mixture=Mixture(modes=modes, sentinel=2175, eos_id=1))
    t5 = Seq2SeqDenoising(model=..., mixture=dataclasses.replace(mixture, denoisers=UL2[:1]), mode_tokens=False)

The mean is over tokens, as in T5's and UL2's runs: a row of X counts more than a row of R. The decoder starts from the
padding token. `corruption.denoisers` says what of the mixture is reconstructed; `recipes.ul2` is the claim.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from jaxpt.core.types import Array, Float, Int, Params, PRNGKeyArray
from jaxpt.models import encoder_decoder, flops
from jaxpt.objectives import denoising
from jaxpt.objectives.base import Losses, Objective
from jaxpt.objectives.corruption import denoisers, spans
from jaxpt.objectives.corruption.denoisers import Mixture
from jaxpt.objectives.corruption.rows import over_rows, real_tokens
from jaxpt.objectives.cross_entropy import cross_entropy
from jaxpt.weights import Cost


@dataclasses.dataclass(frozen=True, kw_only=True)
class Seq2SeqDenoising(Objective):
    """An encoder-decoder and the mixture. The model's vocabulary must have the sentinels and the mode tokens.

    Attributes:
      mode_tokens: the inputs begin with the mode's token; False for T5's span corruption.
    """

    mixture: Mixture
    mode_tokens: bool = True

    def check(self) -> None:
        check_model(self.model, "; see `denoising`")
        denoising.check_vocabulary(self.mixture, self.model.vocab_size)

    def sizes(self, length: int) -> spans.Sizes:
        """Static sizes of inputs and targets made of rows of `length` tokens."""
        inputs, targets = self.mixture.sizes(length)
        return inputs + 1 + self.mode_tokens, targets + 1

    def prepare(self, key: PRNGKeyArray, batch: dict[str, jax.Array]) -> dict[str, jax.Array]:
        return corrupt(key, batch, self)

    def loss(self, params: Params, batch: dict[str, jax.Array], key: PRNGKeyArray) -> Losses:
        return of_corrupted(params, batch, self)

    def cost(self, params: Params, batch_size: int, sequence_length: int) -> Cost:
        return flops.encoder_decoder_flops(params, self.model, batch_size, *self.sizes(sequence_length))


def check_model(model: Any, more: str = "") -> None:
    """Raises ValueError where a model is no encoder-decoder; `more` ends the message."""
    if not isinstance(model, encoder_decoder.Config):
        raise ValueError(f"needs an encoder_decoder.Config, got {type(model).__module__}{more}")


def loss(params: Params, batch: dict[str, jax.Array], key: PRNGKeyArray, cfg: Seq2SeqDenoising) -> Losses:
    """Losses of a batch of texts.

    Args:
      batch: as for `denoising.loss`.
    """
    return of_corrupted(params, corrupt(key, batch, cfg), cfg)


def corrupt(key: PRNGKeyArray, batch: dict[str, jax.Array], cfg: Seq2SeqDenoising) -> dict[str, jax.Array]:
    """What `pair_batch` returns, [B, I] and [B, T] with (I, T) = cfg.sizes(S); denoiser [B]."""
    mixture, (inputs, targets) = cfg.mixture, cfg.sizes(batch["inputs"].shape[1])

    def row(key: PRNGKeyArray, ids: jax.Array, length: jax.Array) -> tuple[jax.Array, ...]:
        made = denoisers.corrupted(key, ids, length, denoisers.drawn(key, mixture), mixture)
        first = made.mode[None] if cfg.mode_tokens else made.pair.inputs[:0]
        given, shown = framed(first, made.pair.inputs, made.pair.input_length, inputs, mixture)
        wanted, number = framed(first[:0], made.pair.targets, made.pair.target_length, targets, mixture)
        return given, shown, wanted, number, made.denoiser

    *pairs, denoiser = over_rows(row, key, batch, batch["inputs"], real_tokens(batch).sum(-1))
    return pair_batch(*pairs, start=mixture.pad_id) | {"denoiser": denoiser}


def framed(
    first: Int[Array, " N"], row: Int[Array, " S"], length: Int[Array, ""], size: int, cfg: Mixture
) -> tuple[Int[Array, " I"], Int[Array, ""]]:
    """(`first`, `length` tokens of the row, EOS, padding up to `size`; the number of these that are not padding)."""
    at, before = jnp.arange(size), len(first)
    end = before + length
    shifted = jnp.concatenate([first, row, jnp.full(size, cfg.pad_id, row.dtype)])[:size]
    return jnp.where(at < end, shifted, jnp.where(at == end, cfg.eos_id, cfg.pad_id)), end + 1


def pair_batch(
    inputs: Int[Array, "B I"],
    shown: Int[Array, " B"],
    targets: Int[Array, "B T"],
    number: Int[Array, " B"],
    *,
    start: int,
) -> dict[str, jax.Array]:
    """inputs, segment_ids [B, I]; decoder_inputs (the targets behind `start`), labels, loss_weight, target_segments [B, T].

    Args:
      shown, number: tokens of inputs and targets that are not padding. Targets of one token, an EOS alone, have no weight:
        their row was too short to hide anything.
    """
    real = jnp.arange(targets.shape[1]) < number[:, None]
    return {
        "inputs": inputs,
        "segment_ids": (jnp.arange(inputs.shape[1]) < shown[:, None]).astype(jnp.int32),
        "decoder_inputs": jnp.pad(targets[:, :-1], ((0, 0), (1, 0)), constant_values=start),
        "labels": targets,
        "loss_weight": (real & (number > 1)[:, None]).astype(jnp.float32),
        "target_segments": real.astype(jnp.int32),
    }


def of_corrupted(params: Params, batch: dict[str, jax.Array], cfg: Seq2SeqDenoising) -> Losses:
    """The same of what `corrupt` returns. The metrics loss_R, loss_S, ... are the means over the targets of each mode."""
    losses = of_pairs(params, batch, cfg.model)
    return losses._replace(metrics=losses.metrics | denoising.by_mode(losses, batch["denoiser"], cfg.mixture))


def of_pairs(params: Params, batch: dict[str, jax.Array], model: encoder_decoder.Config) -> Losses:
    """Losses of any batch that `pair_batch` returns, by teacher forcing; the metric `accuracy` is that of target tokens."""
    segments, target_segments = batch["segment_ids"], batch["target_segments"]
    states = encoder_decoder.encode(params, batch["inputs"], model, segments=segments).final
    hidden: Float[Array, "B T D"] = encoder_decoder.decode(
        params, batch["decoder_inputs"], states, model, segments=segments, target_segments=target_segments
    ).final
    sums, correct = cross_entropy(hidden, encoder_decoder.head(params), batch["labels"], batch["loss_weight"])
    weights = batch["loss_weight"].sum(-1)
    return Losses(sums, weights, {"accuracy": (correct.sum(), weights.sum())})
