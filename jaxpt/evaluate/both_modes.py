"""One network read in two modes, and by their sum (GPT or BERT: why not both?, arXiv 2410.24159, section 3).

    scorers = both_modes(params, cfg, vocabulary, mask_id=..., max_length=64)
    {mode: pair_accuracy(score, pairs)["accuracy"] for mode, score in scorers.items()}

causal   log p of the tokens from left to right
pseudo   the sum of log p of each token, hidden alone and seen from both sides; read one position before, where a network
         trained on masked next tokens says it
fused    the sum of the two
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp

from jaxpt import models
from jaxpt.core.types import Array, Float, Int, Params
from jaxpt.data.vocabularies import Vocabulary
from jaxpt.evaluate.pseudo_log_likelihood import MaskedLogits, pseudo_scorer
from jaxpt.evaluate.scoring import Scorer, Scores, ScoreTexts, decoder_tokens, on_texts
from jaxpt.layers import masks


def both_modes(
    params: Params, cfg: Any, vocabulary: Vocabulary, *, mask_id: int, max_length: int
) -> dict[str, ScoreTexts]:
    """mode -> a scorer of (context, continuation) pairs, for a model of any kind that takes a mask.

    The sum does not score again what one of the two has just scored.
    """
    causal = _remembered(on_texts(functools.partial(Scorer(decoder_tokens(cfg), max_length), params), vocabulary))
    pseudo = _remembered(
        pseudo_scorer(masked_next_logits(cfg), params, vocabulary, mask_id=mask_id, max_length=max_length, mask="token")
    )

    def fused(pairs: Sequence[tuple[str, str]]) -> Scores:
        one, other = causal(pairs), pseudo(pairs)
        return Scores(one.log_likelihood + other.log_likelihood, one.greedy & other.greedy, one.tokens)

    return {"causal": causal, "pseudo": pseudo, "fused": fused}


def masked_next_logits(cfg: Any) -> MaskedLogits:
    """Logits under a full mask, moved on by one, so that those of a hidden token are at its own position. The first
    position has none: 0."""

    def logits(params: Params, ids: Int[Array, "B S"], segment_ids: Int[Array, "B S"]) -> Float[Array, "B S V"]:
        states = models.of(cfg).hidden_states(params, ids, cfg, mask=masks.full(segment_ids)).final
        found = models.of(cfg).readout(params, states, cfg).logits()
        return jnp.pad(found[:, :-1], ((0, 0), (1, 0), (0, 0)))

    return logits


def _remembered(score: ScoreTexts) -> ScoreTexts:
    last = functools.lru_cache(maxsize=1)(lambda pairs: score(list(pairs)))
    return lambda pairs: last(tuple(pairs))
