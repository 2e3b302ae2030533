"""Representative words prediction (PROP, arXiv 2010.10137): of two word sets, which one the document is more likely to say.

    s = w . tanh-pooled [CLS] + b                                       of [CLS] words [SEP] document [SEP]
    (p+, p-) = softmax(s+, s-);   L_ROP = max(0, 1 - p+ + p-) = 2 sigmoid(s- - s+)
    L = mean over pairs of L_ROP + mean over hidden document tokens of -log p(token)

The hinge is never inactive, so the loss is a sigmoid: 1 at chance, without a gradient for pairs that are badly wrong. That
is the released form; form="logistic" is -log p+. Hidden are whole words of the document, 15 % of them, never of the word
set, and each row of a pair by itself, independently of which one is the likelier. The hidden tokens are bounded by 15 % of
the row's (60 in the release).

    cfg = RepresentativeWords(model=encoder.Config(pooler=True, mlm_head=True), masking=Masking(..., by="units"))

The release's dropout before the head is left out, as everywhere here. `jaxpt.data.word_pairs` makes the batches, of pairs;
`recipes.prop` is the claim.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from jaxpt import weights
from jaxpt.core import spec as specs
from jaxpt.core.names import nearest_error
from jaxpt.core.types import Array, Float, Params, PRNGKeyArray
from jaxpt.layers import block as blocks
from jaxpt.models import encoder, flops
from jaxpt.objectives.base import Losses, Objective
from jaxpt.objectives.corruption.masking import Masking, mask_batch
from jaxpt.objectives.cross_entropy import cross_entropy
from jaxpt.objectives.masked_lm import at
from jaxpt.weights import Cost

FORMS = ("hinge_softmax", "logistic")


@dataclasses.dataclass(frozen=True, kw_only=True)
class RepresentativeWords(Objective):
    """An encoder with mlm_head=True and pooler=True, and what is hidden from it.

    Attributes:
      form: of the loss of a pair, "hinge_softmax" or "logistic".
      share_words, share_masked: weights of the two means; 0 for a part that is not trained.
    """

    masking: Masking
    form: str = "hinge_softmax"
    share_words: float = 1.0
    share_masked: float = 1.0

    def check(self) -> None:
        if not (isinstance(self.model, encoder.Config) and self.model.mlm_head and self.model.pooler):
            raise ValueError("representative words need an encoder with mlm_head=True and pooler=True")
        if self.masking.by != "units":
            raise ValueError(f'whole words are hidden: masking needs by="units", got by={self.masking.by!r}')
        self.masking.check_vocabulary(self.model.vocab_size)
        if self.form not in FORMS:
            raise nearest_error("form of the pair loss", self.form, FORMS)
        if min(self.share_words, self.share_masked) < 0 or self.share_words + self.share_masked <= 0:
            raise ValueError(f"need shares that are not negative, got {self.share_words} and {self.share_masked}")

    def spec(self) -> Params:
        return spec(self.model)

    def prepare(self, key: PRNGKeyArray, batch: dict[str, jax.Array]) -> dict[str, jax.Array]:
        return corrupt(key, batch, self)

    def loss(self, params: Params, batch: dict[str, jax.Array], key: PRNGKeyArray) -> Losses:
        return of_corrupted(params, batch, self)

    def cost(self, params: Params, batch_size: int, sequence_length: int) -> Cost:
        predicted = 2 * batch_size * self.masking.size(sequence_length)
        return flops.encoder_flops(params, self.model, 2 * batch_size, sequence_length, predicted)


def spec(model: encoder.Config) -> Params:
    """The encoder's arrays and the head's: one linear unit over the pooled first token."""
    unit = blocks.linear_spec(model, "word_score", ("features", 1), ("embed", model.width))
    return encoder.spec(model) | {"word_score": unit}


def init(key: PRNGKeyArray, model: encoder.Config) -> Params:
    """Initial parameters."""
    return specs.init(key, spec(model))


def loss(params: Params, batch: dict[str, jax.Array], key: PRNGKeyArray, cfg: RepresentativeWords) -> Losses:
    """Losses of a batch of pairs.

    Args:
      batch: inputs, token_types (1 for the document), segment_ids (0 for padding), unit_ids (words of the document), all
        [B, 2, S], the likelier word set first; row [B], optional, see `over_rows`. Pairs without a token are padding.
    """
    return of_corrupted(params, corrupt(key, batch, cfg), cfg)


def corrupt(key: PRNGKeyArray, batch: dict[str, jax.Array], cfg: RepresentativeWords) -> dict[str, jax.Array]:
    """The batch with corrupted inputs; predict_index, predict_labels, predict_weight [B, 2, N] and pair_weight [B].

    The prediction weights sum to share_masked times the number of pairs: the objective is one mean over pairs.
    """
    pairs = len(batch["inputs"])
    flat = {name: _rows(batch[name]) for name in ("inputs", "segment_ids", "unit_ids")}
    numbers = batch.get("row", jnp.arange(pairs))
    flat["row"] = (2 * numbers[:, None] + jnp.arange(2)).reshape(-1)
    masked = mask_batch(key, flat, cfg.masking, _rows(batch["token_types"]) == 1)
    there = (batch["segment_ids"] != 0).any((1, 2)).astype(jnp.float32)
    scale = cfg.share_masked * there.sum() / jnp.maximum(masked.weight.sum(), 1.0)
    predicted = {"inputs": masked.inputs, "predict_index": masked.position, "predict_labels": masked.labels}
    predicted["predict_weight"] = masked.weight * scale
    return batch | {name: x.reshape(pairs, 2, -1) for name, x in predicted.items()} | {"pair_weight": there}


def of_corrupted(params: Params, batch: dict[str, jax.Array], cfg: RepresentativeWords) -> Losses:
    """The same of what `corrupt` returns. loss_words and loss_masked are the two means; accuracy is of pairs."""
    extra = {"token_types": _rows(batch["token_types"]), "segments": _rows(batch["segment_ids"])}
    hidden = encoder.apply(params, _rows(batch["inputs"]), cfg.model, **extra)
    s = scores(params, hidden).reshape(-1, 2)
    there, weight = batch["pair_weight"], _rows(batch["predict_weight"])
    words = pair_loss(s[:, 0], s[:, 1], cfg.form) * there
    states = encoder.mlm_hidden(params, at(hidden, _rows(batch["predict_index"])), cfg.model)
    head, bias = weights.DenseMatrix(params["embedding"]), params["mlm"]["bias"]
    nats, _ = cross_entropy(states, head, _rows(batch["predict_labels"]), weight, bias=bias)
    masked = nats.reshape(-1, 2).sum(-1)
    metrics = {
        "loss_words": (words.sum(), there.sum()),
        "loss_masked": (masked.sum(), weight.sum()),
        "accuracy": ((there * (s[:, 0] > s[:, 1])).sum(), there.sum()),
    }
    return Losses(cfg.share_words * words + masked, there, metrics)


def scores(params: Params, hidden: Float[Array, "B S D"]) -> Float[Array, " B"]:
    """s of each row, in float32, from the encoder's states; what documents are ranked by."""
    return weights.linear(encoder.pooled(params, hidden), params["word_score"])[:, 0].astype(jnp.float32)


def pair_loss(more: Float[Array, " B"], less: Float[Array, " B"], form: str = "hinge_softmax") -> Float[Array, " B"]:
    """Of the scores of the likelier and the less likely sets: between 0 and 2, or -log p+ with form="logistic"."""
    if form not in FORMS:
        raise nearest_error("form of the pair loss", form, FORMS)
    return 2 * jax.nn.sigmoid(less - more) if form == "hinge_softmax" else jax.nn.softplus(less - more)


def _rows(x: Array) -> Array:
    """[B, 2, ...] -> [2 B, ...]."""
    return x.reshape(-1, *x.shape[2:])
