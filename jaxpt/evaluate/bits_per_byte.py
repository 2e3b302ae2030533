"""Bits per byte of held-out text, by domain.

    bits per byte of a domain = sum over its documents of -ln p(tokens | BOS) / (ln 2 * bytes of their UTF-8
    text)

A ratio of sums, never a mean of ratios, so that tokenizers can be compared. BOS is context and is not
scored; EOS is not scored, since it has no bytes. Documents never see each other. Sums per sequence are
float32 on the device, everything above them float64 on the host. `macro` is the mean over domains, `micro`
the ratio of the sums over all of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import jax
import numpy as np
from jax.sharding import Mesh

from jaxpt.core.types import Array, Float, Params, PRNGKeyArray
from jaxpt.evaluate.report import fingerprint
from jaxpt.evaluate.scoring import TokenFn, on_host
from jaxpt.objectives.base import Losses
from jaxpt.training.step import Batch, Loss

Scorer = Callable[[Params, dict[str, np.ndarray]], tuple[np.ndarray, np.ndarray]]
VERSION = 1  # of the definition


class Windows(Protocol):
    """Held-out text cut into windows, such as `jaxpt.data.held_out.HeldOut`.

    Attributes:
      domains: names, in the order of domain_index.
      bytes: UTF-8 bytes of the documents of each domain.
    """

    @property
    def domains(self) -> Sequence[str]: ...

    @property
    def bytes(self) -> Mapping[str, int]: ...

    def batches(self) -> Iterator[dict[str, np.ndarray]]:
        """Arrays [B, S] as in training, domain_index [B]; loss_weight 1 where a token is scored."""


def make_scorer(loss: Loss, mesh: Mesh | None = None) -> Scorer:
    """(parameters, batch) -> (nats [B], scored tokens [B]), float64; compiled once per batch shape.

    Args:
      loss: the training objective; its sums per sequence are what is scored.
    """

    def sums(params: Params, batch: Batch) -> tuple[Float[Array, " B"], Float[Array, " B"]]:
        found = loss(params, batch, jax.random.key(0))
        return found.sums, found.weights

    run = on_host(sums, mesh)

    def score(params: Params, batch: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        nats, tokens = (np.asarray(x, np.float64) for x in run(params, batch))
        return nats, tokens

    return score


def token_scorer(tokens: TokenFn, mesh: Mesh | None = None) -> Scorer:
    """The same of a `scoring.TokenFn`, for models whose training objective is not their likelihood."""

    def loss(params: Params, batch: Batch, key: PRNGKeyArray) -> Losses:
        nats = tokens(params, batch).nats
        return Losses((nats * batch["loss_weight"]).sum(-1), batch["loss_weight"].sum(-1), {})

    return make_scorer(loss, mesh)


def data_of(windows: Windows) -> dict[str, Any]:
    """What a report says of its data: metric, version, scored tokens, and a hash of labels, weights and domains."""
    batches = list(windows.batches())
    arrays = [b[name] for b in batches for name in ("labels", "loss_weight", "domain_index")]
    tokens = int(sum(b["loss_weight"].sum() for b in batches))
    return {"metric": "bits_per_byte", "version": VERSION, "items": tokens, "data": fingerprint(arrays)}


def bits_per_byte(score: Scorer, windows: Windows, eos_id: int | None = None) -> Callable[[Params], dict[str, float]]:
    """An evaluation for the training loop: parameters -> the numbers of `summarize`.

    Args:
      eos_id: labels of this id are not scored. None where the windows have seen to that, as `held_out`'s
        have.
    """

    def evaluate(params: Params) -> dict[str, float]:
        nats, tokens = sum_nats(score, params, windows.batches(), len(windows.domains), eos_id)
        return summarize(nats, tokens, windows.domains, windows.bytes)

    return evaluate


def mean_loss(score: Scorer, windows: Windows) -> Callable[[Params], dict[str, float]]:
    """An evaluation for objectives that are no likelihood: parameters -> loss, the weighted mean in nats."""

    def evaluate(params: Params) -> dict[str, float]:
        nats, weights = sum_nats(score, params, windows.batches(), len(windows.domains))
        if not weights.sum() > 0:
            raise ValueError(f"nothing to score: weights {weights.tolist()} of {list(windows.domains)}")
        return {"loss": float(nats.sum() / weights.sum())}

    return evaluate


def loss_over(
    score: Scorer, batches: Callable[[], Iterable[dict[str, np.ndarray]]]
) -> Callable[[Params], dict[str, float]]:
    """An evaluation on batches of any kind, made anew each time: parameters -> "loss", the weighted mean in nats."""

    def evaluate(params: Params) -> dict[str, float]:
        found = np.asarray([[x.sum() for x in score(params, batch)] for batch in batches()])
        nats, weights = found.sum(0)
        return {"loss": float(nats / weights)}

    return evaluate


def sum_nats(
    score: Scorer,
    params: Params,
    batches: Iterable[dict[str, np.ndarray]],
    domains: int,
    eos_id: int | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """(nats, scored tokens) of each domain, float64 [domains]; those of parts of a set add up to the set's.

    Raises:
      ValueError: a domain_index outside range(domains).
    """
    nats, tokens = np.zeros(domains), np.zeros(domains)
    for batch in batches:
        index = batch["domain_index"]
        if index.min() < 0 or index.max() >= domains:
            raise ValueError(f"domain_index {index.min()} to {index.max()} given, but there are {domains} domains")
        if eos_id is not None:
            batch = batch | {"loss_weight": batch["loss_weight"] * (batch["labels"] != eos_id)}
        of_row, count = score(params, batch)
        np.add.at(nats, index, of_row)
        np.add.at(tokens, index, count)
    return nats, tokens


def summarize(
    nats: np.ndarray, tokens: np.ndarray, domains: Sequence[str], bytes_of: Mapping[str, int]
) -> dict[str, float]:
    """bits_per_byte (micro), bits_per_byte_macro, bits_per_byte/DOMAIN, nats_per_token.

    Raises:
      ValueError: a domain without bytes, or nothing scored.
    """
    sizes = np.array([bytes_of.get(domain, 0) for domain in domains], np.float64)
    if not len(sizes) or not (sizes > 0).all() or not tokens.sum() > 0:
        raise ValueError(
            f"nothing to score: bytes {dict(bytes_of)} and scored tokens {tokens.tolist()} of {list(domains)}"
        )
    each = nats / (math.log(2) * sizes)
    found: dict[str, Any] = {
        "bits_per_byte": nats.sum() / (math.log(2) * sizes.sum()),
        "bits_per_byte_macro": each.mean(),
        "nats_per_token": nats.sum() / tokens.sum(),
    }
    found |= {f"bits_per_byte/{domain}": x for domain, x in zip(domains, each, strict=True)}
    return {name: float(x) for name, x in found.items()}
