"""Replaced-token detection: ELECTRA (arXiv 2003.10555, section 2) and, with its own sharing, DeBERTaV3 (arXiv 2111.09543).

A small generator fills hidden positions; the discriminator, which is kept, says of every token whether it is another one
than was there. With x the text, C the chosen positions and y ~ softmax(generator(masked x)) at them,

    L = w_G mean_C(-log p_G(x)) + w_D mean_real(BCE(D(x with y at C), y != x)),     w_G = 1, w_D = 50

    model = encoder.Config(rtd_head="token", ...)
    cfg = ReplacedTokens(model=model, masking=Masking(mask_id=103, vocab_size=30522, mask=0.85, random=0.0),
                         generator=Generator(width=0.25))
    params = specs.init(key, cfg.spec())                  # {"generator": ..., "discriminator": ...}
    encoder.apply(cfg.discriminator(params), ids, cfg.discriminator_model)      # afterwards

Sampling is at temperature 1 and has no gradient; a guess that is right counts as real; all real tokens are judged, special
ones too. The means are over the whole batch that `corrupt` is given: it draws, and puts the scales into the batch. What is
sampled depends on a row's own key, which goes with it, and not on how the batch is cut.

DeBERTaV3's authors update the discriminator with the generator's new table, one after the other; here both are updated at
once, so that the discriminator sees the table of one update before. Its generator reads out with the enhanced mask decoder
if the model has decoder_positions. Proven by recipes/electra.py and recipes/debertav3.py.
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxpt.core.rng import fold
from jaxpt.core.types import Array, Bool, Float, Int, Metrics, Params, PRNGKeyArray
from jaxpt.layers import masks
from jaxpt.models import encoder, enhanced_mask_decoder, flops
from jaxpt.models.generator import Generator, discriminator_config, generator_config, parts, spec
from jaxpt.objectives.base import Losses, Objective
from jaxpt.objectives.corruption import positions
from jaxpt.objectives.corruption.masking import Masking, mask_batch
from jaxpt.objectives.corruption.rows import over_rows, real_tokens
from jaxpt.objectives.cross_entropy import chunk_length, cross_entropy
from jaxpt.objectives.masked_lm import at
from jaxpt.sharding import constrain
from jaxpt.weights import Cost, DenseMatrix


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReplacedTokens(Objective):
    """The model is the discriminator, an `encoder.Config` with an rtd_head.

    Attributes:
      masking: what the generator fills. ELECTRA: mask=0.85, random=0; DeBERTaV3: mask=1, random=0.
      generator: its size, and what it shares.
      generator_weight, discriminator_weight: w_G and w_D.
      only_chosen: only chosen positions are judged (the paper's ablation "ELECTRA 15%", section 3.4).
    """

    masking: Masking
    generator: Generator = dataclasses.field(default_factory=Generator)
    generator_weight: float = 1.0
    discriminator_weight: float = 50.0
    only_chosen: bool = False

    def check(self) -> None:
        if not isinstance(self.model, encoder.Config) or self.model.rtd_head == "none":
            raise ValueError('replaced-token detection needs an encoder with rtd_head="token" or "token_and_first"')
        self.masking.check_vocabulary(self.model.vocab_size)
        if min(self.generator_weight, self.discriminator_weight) < 0:
            given = f"{self.generator_weight} and {self.discriminator_weight}"
            raise ValueError(f"the losses' weights must not be negative, got {given}")
        self.spec()

    @property
    def generator_model(self) -> encoder.Config:
        """The generator's configuration."""
        return generator_config(self.generator, self.model)

    @property
    def discriminator_model(self) -> encoder.Config:
        """The discriminator's configuration."""
        return discriminator_config(self.model)

    def spec(self) -> Params:
        return spec(self.generator, self.model)

    def parts(self, params: Params) -> tuple[Params, Params]:
        """(generator, discriminator), whole."""
        return parts(params, self.generator, self.model)

    def discriminator(self, params: Params) -> Params:
        """What is kept: parameters of `discriminator_model`."""
        return self.parts(params)[1]

    def prepare(self, key: PRNGKeyArray, batch: dict[str, jax.Array]) -> dict[str, jax.Array]:
        return corrupt(key, batch, self)

    def loss(self, params: Params, batch: dict[str, jax.Array], key: PRNGKeyArray) -> Losses:
        return of_corrupted(params, batch, self)

    def cost(self, params: Params, batch_size: int, sequence_length: int) -> Cost:
        return flops.total(*self.costs(params, batch_size, sequence_length))

    def costs(self, params: Params, batch_size: int, sequence_length: int) -> tuple[Cost, Cost]:
        """(generator, discriminator), forward and backward. The enhanced mask decoder runs the last layer once more."""
        of, cfg = params["generator"], self.generator_model
        judge = (of if self.generator.sharing == "all" else {}) | params["discriminator"]
        tokens, attended = batch_size * sequence_length, batch_size * sequence_length**2
        found = [
            flops.encoder_flops(of, cfg, batch_size, sequence_length, batch_size * self.masking.size(sequence_length))
        ]
        if cfg.decoder_positions:
            stack = flops.stack_flops(of, cfg, tokens, attended)
            more = (enhanced_mask_decoder.ROUNDS - 1) / cfg.layers
            found.append(Cost(more * stack.nominal, more * stack.executed))
        return flops.total(*found), flops.encoder_flops(judge, self.discriminator_model, batch_size, sequence_length)


class Detection(NamedTuple):
    """What the discriminator says of a text with replacements, all [B, S]: its logits, and which tokens are replaced."""

    logits: Float[Array, "B S"]
    fake: Bool[Array, "B S"]


def loss(params: Params, batch: dict[str, jax.Array], key: PRNGKeyArray, cfg: ReplacedTokens) -> Losses:
    """Losses of a batch of packed or plain sequences.

    Args:
      batch: inputs [B, S] int, uncorrupted; optional [B, S]: segment_ids (0 is padding), positions, token_types, and what
        `Masking` names; optional [B]: row, see `over_rows`.
    """
    return of_corrupted(params, corrupt(key, batch, cfg), cfg)


def corrupt(key: PRNGKeyArray, batch: dict[str, jax.Array], cfg: ReplacedTokens) -> dict[str, jax.Array]:
    """The batch with masked_inputs [B, S]; predict_index, predict_labels, predict_weight [B, N]; judge_weight [B, S];
    generator_scale [B]; and sample_key [B, ...], each row's for its replacements."""
    masked = mask_batch(key, batch, cfg.masking)
    real = real_tokens(batch)
    judged = spread(masked.position, masked.weight, real.shape[1]) if cfg.only_chosen else real
    number = real.sum()
    return batch | {
        "masked_inputs": masked.inputs,
        "predict_index": masked.position,
        "predict_labels": masked.labels,
        "predict_weight": masked.weight,
        "judge_weight": judged * share(number, judged.sum()),
        "generator_scale": jnp.full(len(real), share(number, masked.weight.sum())),
        "sample_key": row_keys(fold(key, "sample"), batch),
    }


def of_corrupted(params: Params, batch: dict[str, jax.Array], cfg: ReplacedTokens) -> Losses:
    """The same of what `corrupt` returns."""
    generator, discriminator = cfg.parts(params)
    inputs, index, weight = batch["inputs"], batch["predict_index"], batch["predict_weight"]
    states = fill(generator, batch["masked_inputs"], index, batch, cfg.generator_model)
    missed, _ = generator_loss(generator, states, batch["predict_labels"], weight)
    guesses = sample(generator, states, batch["sample_key"])
    found = detect(discriminator, inputs, put(inputs, index, weight, guesses), batch, cfg.discriminator_model)
    judged = (batch["judge_weight"] * binary(found)).sum(-1)
    sums = cfg.generator_weight * batch["generator_scale"] * missed + cfg.discriminator_weight * judged
    metrics: Metrics = {"generator_loss": (missed.sum(), weight.sum())}
    metrics["discriminator_loss"] = (judged.sum(), batch["judge_weight"].sum())
    return Losses(sums, batch["judge_weight"].sum(-1), metrics | detection_metrics(found, batch["judge_weight"] > 0))


def fill(
    generator: Params, masked: Int[Array, "B S"], index: Int[Array, "B N"], batch: dict[str, Array], cfg: encoder.Config
) -> Float[Array, "B N E"]:
    """What the generator's output table is multiplied with at these positions."""
    run = enhanced_mask_decoder.apply if cfg.decoder_positions else encoder.apply
    return encoder.mlm_hidden(generator, at(run(generator, masked, cfg, **_around(batch)), index), cfg)


def generator_loss(
    generator: Params, states: Float[Array, "B N E"], labels: Int[Array, "B N"], weight: Float[Array, "B N"]
) -> tuple[Float[Array, " B"], Float[Array, " B"]]:
    """Per row: sum of weight * -log p(label), and the weighted number of right answers."""
    return cross_entropy(states, DenseMatrix(generator["embedding"]), labels, weight, bias=generator["mlm"]["bias"])


def sample(generator: Params, states: Float[Array, "B N E"], keys: Array) -> Int[Array, "B N"]:
    """Tokens drawn from the generator's whole softmax, without a gradient. Each row with its own key.

    Logits of a large vocabulary are made in chunks of positions, as `cross_entropy` makes them.
    """
    states, table, bias = jax.lax.stop_gradient((states, generator["embedding"], generator["mlm"]["bias"]))
    head, chunk = DenseMatrix(table), chunk_length(states.shape[1], table.shape[0])

    def some(first: Int[Array, ""]) -> Int[Array, "B n"]:
        part = jax.lax.dynamic_slice_in_dim(states, first, chunk, 1)
        logits = constrain(head.apply(part).astype(jnp.float32) + bias, "batch", "sequence", "vocab")
        numbers = first + jnp.arange(chunk)  # a position's draw does not depend on the chunks either

        def row(key: Array) -> Float[Array, "n V"]:
            each = jax.vmap(lambda n: fold(jax.random.wrap_key_data(key), n))(numbers)
            return jax.vmap(lambda k: jax.random.gumbel(k, (table.shape[0],)))(each)

        return jnp.argmax(logits + jax.vmap(row)(keys), -1)

    starts = jnp.arange(0, states.shape[1], chunk)
    if len(starts) == 1:
        return some(starts[0])
    return jnp.moveaxis(jax.lax.map(some, starts), 0, 1).reshape(states.shape[:2])


def detect(
    discriminator: Params,
    original: Int[Array, "B S"],
    ids: Int[Array, "B S"],
    batch: dict[str, Array],
    cfg: encoder.Config,
) -> Detection:
    """The discriminator's logits for these ids, which are replaced where they differ from the original ones."""
    hidden = encoder.apply(discriminator, ids, cfg, **_around(batch))
    return Detection(encoder.rtd_logits(discriminator, hidden, cfg), ids != original)


def binary(found: Detection) -> Float[Array, "B S"]:
    """-log p(replaced or not) of each token."""
    return jax.nn.softplus(jnp.where(found.fake, -found.logits, found.logits))


def detection_metrics(found: Detection, judged: Bool[Array, "B S"], name: str = "") -> Metrics:
    """base_rate of replaced tokens among the judged; precision and recall of those called replaced at p > 1/2."""
    called, fake = (found.logits > 0) & judged, found.fake & judged
    right = (called & fake).sum()
    return {
        f"{name}base_rate": (fake.sum(), judged.sum()),
        f"{name}precision": (right, called.sum()),
        f"{name}recall": (right, fake.sum()),
    }


def put(
    ids: Int[Array, "B S"], index: Int[Array, "B N"], weight: Float[Array, "B N"], tokens: Int[Array, "B N"]
) -> Int[Array, "B S"]:
    """The ids with these tokens at the positions whose weight is not 0."""
    return jax.vmap(positions.put)(ids, positions.Chosen(index, weight > 0), tokens.astype(ids.dtype))


def spread(index: Int[Array, "B N"], weight: Float[Array, "B N"], length: int) -> Bool[Array, "B S"]:
    """Where the positions with weight are."""
    return jax.vmap(lambda i, w: positions.spread(positions.Chosen(i, w > 0), length))(index, weight)


def share(number: Array, count: Array) -> Float[Array, ""]:
    """number / count, of which a mean over `count` becomes a sum in a loss that is divided by `number`."""
    return (number / jnp.maximum(count, 1)).astype(jnp.float32)


def row_keys(key: PRNGKeyArray, batch: dict[str, Array]) -> Array:
    """The data of a key for every row, which goes with it into any microbatch."""
    return over_rows(lambda key, ids: jax.random.key_data(key), key, batch, batch["inputs"])


def _around(batch: dict[str, Array]) -> dict[str, Any]:
    """What both models see beside the ids."""
    types = {"token_types": batch["token_types"]} if "token_types" in batch else {}
    return {"mask": masks.full(batch.get("segment_ids")), "positions": batch.get("positions")} | types
