"""The scoring core under every metric: log-likelihoods of tokens under a mask, in float32, in few compiled shapes.

    score = functools.partial(Scorer(decoder_tokens(cfg), max_length=256), params)   # token ids
    of_texts = on_texts(score, vocabulary)                                          # texts
    found = of_texts([("The cat", " sat"), ("", "The cat sat")])                    # Scores, one entry each

A model is a `TokenFn`: a pure function to what it says of each label. Metrics take `ScoreTexts` or `ScoreTokens`,
so that an oracle, an n-gram model or another library's model is scored by the same code.

Rows are sorted by length and padded to a few lengths; every batch of one length has one shape. The log-softmax is
`jaxpt.objectives.cross_entropy`'s, in chunks of positions: [B, S, V] is never held. Sums over a row are float64.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxpt import models
from jaxpt.core.types import Array, Bool, Float, Int, Params
from jaxpt.data.vocabularies import Vocabulary
from jaxpt.objectives.cross_entropy import chunk_length, cross_entropy
from jaxpt.sharding import local_rows
from jaxpt.training.step import Batch, put_batch
from jaxpt.weights import Matrix

FOR_HOST = ("sequence_ids", "document", "domain_index")
LENGTHS = (16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048, 3072, 4096, 6144, 8192)
LOGITS_AT_ONCE = 2**25  # entries of the [B, chunk, V] logits of a batch


class TokenScores(NamedTuple):
    """Of every label: -ln p(label), and whether no token is more likely."""

    nats: Float[Array, "B S"]
    greedy: Bool[Array, "B S"]


class HostScores(NamedTuple):
    """The same of one row [n] in NumPy, nats in float64."""

    nats: np.ndarray
    greedy: np.ndarray


class Row(NamedTuple):
    """One sequence to score: inputs, labels [n] and weight [n], 1 where the label counts and 0 elsewhere."""

    inputs: np.ndarray
    labels: np.ndarray
    weight: np.ndarray


class Request(NamedTuple):
    """Token ids to score, and what they are given. The context is not empty: it starts with BOS."""

    context: Sequence[int]
    continuation: Sequence[int]


class Scores(NamedTuple):
    """Of each row [N]: sum of log p in nats (float64), whether every label is greedy, how many labels count."""

    log_likelihood: np.ndarray
    greedy: np.ndarray
    tokens: np.ndarray


TokenFn = Callable[[Params, Batch], TokenScores]
ScoreTokens = Callable[[Sequence[Request]], Scores]
ScoreTexts = Callable[[Sequence[tuple[str, str]]], Scores]  # (context, continuation) pairs


def decoder_tokens(cfg: Any) -> TokenFn:
    """The `TokenFn` of a decoder, or of any model whose mask is causal by default."""

    def tokens(params: Params, batch: Batch) -> TokenScores:
        extra: dict[str, Any] = {"segments": batch.get("segment_ids"), "positions": batch.get("positions")}
        hidden = models.of(cfg).hidden_states(params, batch["inputs"], cfg, **extra).final
        read = models.of(cfg).readout(params, hidden, cfg)
        return from_hidden(read.states, read.head, batch["labels"], read.bias)

    return tokens


def from_hidden(
    hidden: Float[Array, "B S D"], head: Matrix, labels: Int[Array, "B S"], bias: Float[Array, " V"] | None = None
) -> TokenScores:
    """Scores from final states and the [V, D] output matrix, in chunks of positions."""
    b, s, d = hidden.shape
    chunk = chunk_length(s, max(1, b * head.shape[0] * 2**21 // LOGITS_AT_ONCE))

    def one(part: tuple[Array, Array]) -> tuple[Array, Array]:
        h, of = part[0].reshape(b * chunk, 1, d), part[1].reshape(b * chunk, 1)
        nats, correct = cross_entropy(h, head, of, jnp.ones(of.shape, jnp.float32), bias=bias)
        return nats.reshape(b, chunk), correct.reshape(b, chunk) > 0

    def cut(x: Array) -> Array:
        return jnp.moveaxis(x.reshape(b, s // chunk, chunk, *x.shape[2:]), 1, 0)

    nats, greedy = jax.lax.map(one, (cut(hidden), cut(labels)))
    return TokenScores(*(jnp.moveaxis(x, 0, 1).reshape(b, s) for x in (nats, greedy)))


def from_logits(logits: Callable[[Params, Batch], Float[Array, "B S V"]]) -> TokenFn:
    """The `TokenFn` of any function to logits, for models small enough to hold them."""

    def tokens(params: Params, batch: Batch) -> TokenScores:
        log_p = jax.nn.log_softmax(logits(params, batch).astype(jnp.float32))
        chosen = jnp.take_along_axis(log_p, batch["labels"][..., None], -1)[..., 0]
        return TokenScores(-chosen, chosen >= log_p.max(-1))

    return tokens


def on_host(fn: Callable[[Params, Batch], Any], mesh: Mesh | None = None) -> Callable[[Params, dict[str, Any]], Any]:
    """fn(params, batch) with NumPy arrays in and out, compiled once per shape.

    On a mesh every process gives the whole batch, computes its rows, and gets the result of all.
    """
    kwargs: dict[str, Any] = {} if mesh is None else {"out_shardings": NamedSharding(mesh, PartitionSpec())}
    compiled = jax.jit(fn, **kwargs)

    def run(params: Params, batch: dict[str, Any]) -> Any:
        of_device = {k: x for k, x in batch.items() if k not in FOR_HOST}
        mine = local_rows(mesh, len(next(iter(of_device.values()))))
        arrays = put_batch({k: x[mine] for k, x in of_device.items()}, mesh)
        if mesh is None:
            return jax.device_get(compiled(params, arrays))
        with jax.set_mesh(mesh):
            return jax.device_get(compiled(params, arrays))

    return run


class Scorer:
    """Scores rows and requests with one model; parameters are an argument, so one instance serves a whole run.

    Args:
      tokens: the model.
      max_length: inputs that the model can read at once.
      batch_tokens: inputs in a batch, padding included.
      mesh: where the parameters live; one device by default.
    """

    def __init__(self, tokens: TokenFn, max_length: int, *, batch_tokens: int = 8192, mesh: Mesh | None = None) -> None:
        if max_length < 1 or batch_tokens < 1:
            raise ValueError(f"max_length and batch_tokens must be positive, got {max_length} and {batch_tokens}")
        self.max_length, self.batch_tokens = max_length, batch_tokens
        self.lengths = [*(n for n in LENGTHS if n < max_length), max_length]
        self._least = 1 if mesh is None else max(8, mesh.size, jax.process_count())
        self._run = on_host(tokens, mesh)

    def __call__(self, params: Params, requests: Sequence[Request]) -> Scores:
        """The log-likelihood of each continuation given its context.

        A context too long loses its left end; the continuation stays whole.

        Raises:
          ValueError: a context or continuation without tokens, or a continuation longer than max_length.
        """
        return self.rows(params, [request_row(request, self.max_length) for request in requests])

    def rows(self, params: Params, rows: Sequence[Row]) -> Scores:
        """The weighted sum of each row."""
        found = self.tokens(params, rows)
        counted = [row.weight > 0 for row in rows]
        sums = [float(-(f.nats * r.weight).sum()) for f, r in zip(found, rows, strict=True)]
        greedy = [bool(f.greedy[c].all()) for f, c in zip(found, counted, strict=True)]
        return Scores(np.array(sums, np.float64), np.array(greedy, bool), np.array([c.sum() for c in counted], int))

    def tokens(self, params: Params, rows: Sequence[Row]) -> list[HostScores]:
        """Per row: nats [n] float64 and greedy [n] of every label, counted or not."""
        found: list[Any] = [None] * len(rows)
        for chosen, length, size in self._batches([len(row.inputs) for row in rows]):
            batch = pad_rows([rows[i] for i in chosen], length, size)
            scores = self._run(params, batch)
            for k, i in enumerate(chosen):
                n = len(rows[i].inputs)
                found[i] = HostScores(np.asarray(scores.nats[k, :n], np.float64), np.asarray(scores.greedy[k, :n]))
        return found

    def _batches(self, sizes: list[int]) -> Iterator[tuple[list[int], int, int]]:
        """(rows, padded length, padded number of rows): longest first, each padded length with one number of rows."""
        if sizes and max(sizes) > self.max_length:
            raise ValueError(f"a row of {max(sizes)} inputs is longer than max_length={self.max_length}")
        order = iter(sorted(range(len(sizes)), key=lambda i: -sizes[i]))
        most = _power_of_two(max(len(sizes), 1), up=True)
        for first in order:
            length = next(n for n in self.lengths if n >= sizes[first])
            size = max(self._least, min(most, _power_of_two(max(1, self.batch_tokens // length), up=False)))
            yield [first, *itertools.islice(order, size - 1)], length, size


def request_row(request: Request, max_length: int) -> Row:
    """The row of a request: inputs end before its last token, and only the continuation counts."""
    context, continuation = list(request.context), list(request.continuation)
    if not context or not continuation:
        raise ValueError(f"a request needs a context (BOS at least) and a continuation, got {request}")
    if len(continuation) > max_length:
        raise ValueError(
            f"a continuation of {len(continuation)} tokens does not fit in max_length={max_length}; "
            "score long texts in windows (jaxpt.evaluate.documents)"
        )
    ids = np.array((context + continuation)[-(max_length + 1) :], np.int32)
    weight = np.zeros(len(ids) - 1, np.float32)
    weight[len(weight) - len(continuation) :] = 1
    return Row(ids[:-1], ids[1:], weight)


def pad_rows(rows: Sequence[Row], length: int, size: int) -> dict[str, np.ndarray]:
    """Arrays [size, length] as in training; rows are padded on the right, segment_ids 0 marks padding."""
    batch = {name: np.zeros((size, length), np.int32) for name in ("inputs", "labels", "segment_ids", "positions")}
    batch["loss_weight"] = np.zeros((size, length), np.float32)
    for k, row in enumerate(rows):
        n = len(row.inputs)
        batch["inputs"][k, :n], batch["labels"][k, :n], batch["loss_weight"][k, :n] = row
        batch["segment_ids"][k, :n], batch["positions"][k, :n] = 1, np.arange(n)
    return batch


def on_texts(score: ScoreTokens, vocabulary: Vocabulary) -> ScoreTexts:
    """Scores of texts: each context is preceded by BOS; see `encode_pair`."""

    def of_texts(pairs: Sequence[tuple[str, str]]) -> Scores:
        return score([encode_pair(vocabulary, context, continuation) for context, continuation in pairs])

    return of_texts


def encode_pair(vocabulary: Vocabulary, context: str, continuation: str) -> Request:
    """The request of a pair of texts, as lm-evaluation-harness cuts it.

    Spaces at the end of the context belong to the continuation. The continuation is what the encoding of both together has
    beyond as many tokens as the context alone has, so that a token across the border counts for it; the context is as it
    is encoded alone. Where nothing would be left (the harness stops there), the last token of both together is scored.

    Raises:
      ValueError: a continuation without tokens.
    """
    left = context.rstrip()
    alone = vocabulary.encode(left) if left else []
    together = vocabulary.encode(context + continuation)
    if len(context + continuation) == len(left) or not together:
        raise ValueError(f"there is nothing to score in {continuation!r} after {context[-40:]!r}")
    if len(alone) >= len(together):
        alone = together[:-1]
    return Request([vocabulary.bos_id, *alone], together[len(alone) :])


def _power_of_two(n: int, up: bool) -> int:
    return 1 << ((n - 1).bit_length() if up else n.bit_length() - 1)
