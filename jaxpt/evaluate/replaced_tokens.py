"""How well replaced tokens are found: the area under the ROC curve, on held-out text that a given generator has filled.

    found = detection(cfg, cfg.discriminator(params), generator, windows.batches())
    found["auc"], found["auc_chosen"]                # among all real tokens; among those that the generator filled

Accuracy says little where one token in twenty is replaced. The generator is an argument, so that discriminators which were
trained with generators of their own can be compared on one text: the same draws for the same key.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
from scipy import stats

from jaxpt.core.rng import fold
from jaxpt.core.types import Array, Params, PRNGKeyArray
from jaxpt.objectives import replaced_tokens as rtd


def detection(
    cfg: rtd.ReplacedTokens,
    discriminator: Params,
    generator: Params,
    batches: Iterable[Mapping[str, np.ndarray]],
    seed: int = 0,
) -> dict[str, float]:
    """auc and auc_chosen; base_rate, the share of all real tokens that are replaced.

    Args:
      cfg: what is hidden, and the configurations of both models.
      batches: of uncorrupted text, as for `replaced_tokens.loss`.

    Raises:
      ValueError: no token was replaced, or all were.
    """

    judged, key = _judged(cfg), jax.random.key(seed)
    parts = []
    for number, batch in enumerate(batches):
        given = {name: jnp.asarray(x) for name, x in batch.items()}
        parts.append([np.asarray(x).ravel() for x in judged(discriminator, generator, given, fold(key, number))])
    logits, fake, chosen, real = (np.concatenate(x) for x in zip(*parts, strict=True))
    return {
        "auc": auc(logits[fake & real], logits[~fake & real]),
        "auc_chosen": auc(logits[fake & chosen], logits[~fake & chosen]),
        "base_rate": float(fake[real].mean()),
    }


@functools.lru_cache(maxsize=4)
def _judged(cfg: rtd.ReplacedTokens) -> Callable[..., tuple[Array, ...]]:
    """(discriminator, generator, batch, key) -> logits, and where tokens are replaced, filled and real; compiled once."""

    @jax.jit
    def judged(judge: Params, fills: Params, batch: dict[str, Array], key: PRNGKeyArray) -> tuple[Array, ...]:
        drawn = rtd.corrupt(key, batch, cfg)
        states = rtd.fill(fills, drawn["masked_inputs"], drawn["predict_index"], drawn, cfg.generator_model)
        guesses = rtd.sample(fills, states, drawn["sample_key"])
        ids = rtd.put(drawn["inputs"], drawn["predict_index"], drawn["predict_weight"], guesses)
        found = rtd.detect(judge, drawn["inputs"], ids, drawn, cfg.discriminator_model)
        chosen = rtd.spread(drawn["predict_index"], drawn["predict_weight"], ids.shape[1])
        return found.logits, found.fake, chosen, rtd.real_tokens(batch)

    return judged


def auc(positive: np.ndarray, negative: np.ndarray) -> float:
    """The chance that a positive's score is above a negative's; a tie counts half.

    Raises:
      ValueError: none of one kind.
    """
    if not len(positive) or not len(negative):
        raise ValueError(f"need scores of both kinds, got {len(positive)} positive and {len(negative)} negative")
    ranks = stats.rankdata(np.concatenate([positive, negative]))
    below = ranks[: len(positive)].sum() - len(positive) * (len(positive) + 1) / 2
    return float(below / (len(positive) * len(negative)))
