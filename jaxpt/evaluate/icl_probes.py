"""In-context learning: prompts whose best possible answer is known, so that a curve has an exact upper bound.

    linear_regression(predict, dim=8, pairs=32)     # squared error by number of pairs; least squares is the oracle
    symbol_mapping(logits, Mapping())               # accuracy by number of shots; the oracle remembers what it has seen
    induction(nats, vocabulary=64, period=32)       # a random sequence said twice; the oracle knows the second copy
    order_sensitivity(logits, Mapping())            # sd of accuracy over orders of the same examples

Every probe draws its prompts from a seed, by default 256 of them; run three seeds. A model is a function of prompts alone:

predict(x [B, K, D], y [B, K]) -> [B, K]     its y of each x, from the pairs before it (Garg et al., arXiv 2208.01066)
logits(ids [B, S]) -> [B, V]                 of the token after the prompt
nats(ids [B, S + 1]) -> [B, S]               -ln p of each token after the first
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from jaxpt.core.types import Array, Float, Int, Params
from jaxpt.layers import norms, positions
from jaxpt.models import decoder
from jaxpt.weights import linear

PROMPTS = 256
Predict = Callable[[np.ndarray, np.ndarray], np.ndarray]
Logits = Callable[[np.ndarray], np.ndarray]
Nats = Callable[[np.ndarray], np.ndarray]


@dataclasses.dataclass(frozen=True)
class Curve:
    """A probe's result by `x` (pairs, shots or position), each an array as long as x.

    Attributes:
      value: the model's.
      oracle: of the best possible predictor on the same prompts.
      trivial: of the one that ignores the examples.
      summary: single numbers by name.
    """

    x: np.ndarray
    value: np.ndarray
    oracle: np.ndarray
    trivial: np.ndarray
    summary: dict[str, float]


def linear_regression(predict: Predict, dim: int, pairs: int, *, prompts: int = PROMPTS, seed: int = 0) -> Curve:
    """Squared error / dim of y = w.x (w, x ~ N(0, I)) by the number of pairs seen, 0 to pairs - 1.

    The oracle is the least-squares solution of smallest norm: it is Bayes-optimal here, and exact from `dim` pairs on.
    The trivial predictor says 0 and has error 1.
    """
    rng = np.random.default_rng([seed, 3])
    x, w = rng.normal(size=(prompts, pairs, dim)), rng.normal(size=(prompts, dim))
    y = np.einsum("bkd,bd->bk", x, w)

    def error(found: np.ndarray) -> np.ndarray:
        return ((np.asarray(found, np.float64) - y) ** 2).mean(0) / dim

    value, oracle = error(predict(x.astype(np.float32), y.astype(np.float32))), error(least_squares(x, y))
    trivial = error(np.zeros_like(y))
    summary = {"area": float(value.mean()), "oracle_area": float(oracle.mean())}
    return Curve(np.arange(pairs), value, oracle, trivial, summary)


def least_squares(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """[B, K] predictions of each y from the pairs before it, by the pseudo-inverse."""
    found = np.zeros_like(y)
    for k in range(1, y.shape[1]):
        w = np.einsum("bdk,bk->bd", np.linalg.pinv(x[:, :k]), y[:, :k])
        found[:, k] = np.einsum("bd,bd->b", x[:, k], w)
    return found


@dataclasses.dataclass(frozen=True)
class Mapping:
    """Prompts "symbol label symbol label ... symbol": ids from 0 on are symbols, the labels follow them.

    Attributes:
      offset: added to all ids, past the special tokens of the model.
      start: the first token of a prompt (BOS); None for none.
    """

    symbols: int = 8
    labels: int = 4
    offset: int = 0
    start: int | None = None

    def ids(self, shown: np.ndarray, answers: np.ndarray, query: np.ndarray) -> np.ndarray:
        """[B, 2k + 1] or one more: prompts from symbols [B, k], their labels [B, k] and the symbol asked for [B]."""
        both = np.stack([shown, answers + self.symbols], -1).reshape(len(shown), -1)
        prompt = np.concatenate([both, query[:, None]], 1) + self.offset
        if self.start is None:
            return prompt.astype(np.int32)
        return np.concatenate([np.full((len(prompt), 1), self.start), prompt], 1).astype(np.int32)

    def choose(self, logits: np.ndarray) -> np.ndarray:
        """The label with the highest logit, [B]."""
        first = self.offset + self.symbols
        return np.asarray(logits)[:, first : first + self.labels].argmax(-1)


def symbol_mapping(
    logits: Logits,
    mapping: Mapping,
    shots: tuple[int, ...] = (0, 1, 2, 4, 8, 16),
    *,
    prompts: int = PROMPTS,
    seed: int = 0,
) -> Curve:
    """Accuracy of a random map from symbols to labels, drawn anew for each prompt, by the number of examples.

    The oracle's accuracy is exact: 1/labels + (1 - 1/labels) (1 - (1 - 1/symbols)^k). summary has the area under the
    curve, `gain` (most shots minus none), and `shuffled`: accuracy with most shots when the labels of the examples are
    permuted, which has to fall towards chance.
    """
    rng = np.random.default_rng([seed, 4])
    table = rng.integers(mapping.labels, size=(prompts, mapping.symbols))
    query = rng.integers(mapping.symbols, size=prompts)
    shown = rng.integers(mapping.symbols, size=(prompts, max(shots)))
    answers = np.take_along_axis(table, shown, 1)
    right = np.take_along_axis(table, query[:, None], 1)[:, 0]

    def accuracy(k: int, labels: np.ndarray) -> float:
        found = mapping.choose(logits(mapping.ids(shown[:, :k], labels[:, :k], query)))
        return float((found == right).mean())

    value = np.array([accuracy(k, answers) for k in shots])
    drawn = rng.integers(mapping.labels, size=answers.shape)  # a fresh label for each example: nothing to learn from
    x = np.array(shots)
    summary = {
        "area": float(value.mean()),
        "gain": float(value[-1] - value[0]),
        "shuffled": accuracy(max(shots), drawn),
    }
    chance = 1 / mapping.labels
    oracle = chance + (1 - chance) * (1 - (1 - 1 / mapping.symbols) ** x)
    return Curve(x, value, oracle, np.full(len(x), chance), summary)


def mapping_oracle(mapping: Mapping) -> Logits:
    """The Bayes predictor of `symbol_mapping`: the label last seen with the symbol, else all labels alike."""

    def logits(ids: np.ndarray) -> np.ndarray:
        body = np.asarray(ids)[:, (mapping.start is not None) :] - mapping.offset
        found = np.zeros((len(body), mapping.offset + mapping.symbols + mapping.labels))
        for k in range(0, body.shape[1] - 1, 2):
            rows = np.flatnonzero(body[:, k] == body[:, -1])
            found[rows, mapping.offset + body[rows, k + 1]] = k + 1
        return found

    return logits


def order_sensitivity(
    logits: Logits, mapping: Mapping, shots: int = 8, orders: int = 20, *, prompts: int = PROMPTS, seed: int = 0
) -> dict[str, float]:
    """accuracy, sd (of the accuracy over `orders` orders of the same examples), and flips: the share of prompts whose
    answer is not the same in every order. The oracle's sd and flips on seen symbols are 0.
    """
    rng = np.random.default_rng([seed, 5])
    table = rng.integers(mapping.labels, size=(prompts, mapping.symbols))
    shown = rng.integers(mapping.symbols, size=(prompts, shots))
    query = shown[np.arange(prompts), rng.integers(shots, size=prompts)]  # always a symbol that is in the prompt
    answers = np.take_along_axis(table, shown, 1)
    right = np.take_along_axis(table, query[:, None], 1)[:, 0]
    found = []
    for _ in range(orders):
        order = rng.permutation(shots)
        found.append(mapping.choose(logits(mapping.ids(shown[:, order], answers[:, order], query))))
    chosen = np.stack(found)
    accuracies = (chosen == right).mean(1)
    return {
        "accuracy": float(accuracies.mean()),
        "sd": float(accuracies.std(ddof=1)) if orders > 1 else 0.0,
        "flips": float((chosen != chosen[0]).any(0).mean()),
    }


def induction(
    nats: Nats, vocabulary: int, period: int, *, offset: int = 0, start: int = 0, prompts: int = PROMPTS, seed: int = 0
) -> Curve:
    """Loss by position of `period` uniformly random tokens said twice, after a start token.

    Args:
      vocabulary: how many tokens are drawn from, with ids from `offset` on.

    The oracle has ln(vocabulary) on the first copy and 0 on the second; the trivial predictor is uniform throughout.
    summary: `gain` = mean loss of the first copy - mean loss of the second, and `oracle_gain`.
    """
    rng = np.random.default_rng([seed, 6])
    once = rng.integers(vocabulary, size=(prompts, period)) + offset
    ids = np.concatenate([np.full((prompts, 1), start), once, once], 1).astype(np.int32)
    value = np.asarray(nats(ids), np.float64).mean(0)
    uniform = np.log(vocabulary)
    oracle = np.concatenate([np.full(period, uniform), np.zeros(period)])
    summary = {"gain": float(value[:period].mean() - value[period:].mean()), "oracle_gain": float(uniform)}
    return Curve(np.arange(2 * period), value, oracle, np.full(2 * period, uniform), summary)


def context_score(nats_by_position: np.ndarray, early: int = 50, late: int = 500) -> float:
    """The loss of token `late` minus that of token `early` (arXiv 2209.11895), means over documents [N, S] longer than that.

    In a shorter context, scale both: late = S - 1, early = S // 10.
    """
    losses = np.asarray(nats_by_position, np.float64)
    if not 0 <= early < late < losses.shape[1]:
        raise ValueError(f"need 0 <= early < late < {losses.shape[1]} positions, got {early} and {late}")
    return float(losses[:, late].mean() - losses[:, early].mean())


def prefix_matching(attention: np.ndarray, period: int, start: int = 1) -> np.ndarray:
    """[L, H] mean attention from a token of the second copy to the one after its first occurrence (arXiv 2209.11895).

    Args:
      attention: [L, B, H, S, S] on the prompts of `induction`; `start` tokens come before the first copy.
    """
    queries = np.arange(start + period, min(start + 2 * period, attention.shape[-1]))
    return np.asarray(attention)[..., queries, queries - period + 1].mean((-1, 1))


def decoder_attention(params: Params, ids: Int[Array, "B S"], cfg: decoder.Config) -> Float[Array, "L B H S S"]:
    """The attention weights of every head of a decoder, computed again from the residual stream before each layer."""
    streams = decoder.hidden_states(params, ids, cfg, capture=True).layers
    b, s = ids.shape
    where = jnp.broadcast_to(jnp.arange(s), (b, s))

    def of_layer(_: None, part: tuple[Array, Params]) -> tuple[None, Array]:
        stream, block = part
        x, p = norms.norm(stream, block["attention_norm"], cfg.norm_eps), block["attention"]
        q = linear(x, p["query"]).reshape(b, s, cfg.heads, cfg.per_head)
        k = linear(x, p["key"]).reshape(b, s, cfg.groups, cfg.per_head)
        if cfg.rotary_fraction:
            q = positions.rotary(q, where, cfg.rotary_base, cfg.rotary_fraction)
            k = positions.rotary(k, where, cfg.rotary_base, cfg.rotary_fraction)
        k = jnp.repeat(k, cfg.heads // cfg.groups, 2)
        scores = jnp.einsum("bshk,bthk->bhst", q, k).astype(jnp.float32) / cfg.per_head**0.5
        return None, jax.nn.softmax(jnp.where(jnp.tri(s, dtype=bool), scores, -jnp.inf))

    return jax.lax.scan(of_layer, None, (streams[:-1], params["blocks"]))[1]  # type: ignore[index]
