"""Requests -> completions in batches of one shape each, and log-probabilities of given continuations."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxpt.core.types import Params
from jaxpt.generate import steps
from jaxpt.generate.transcript import Transcript, check_stop
from jaxpt.interop.chat import Messages
from jaxpt.interop.text_model import TextModel
from jaxpt.models.generate import Sampling

SMALLEST_BUCKET = 16  # tokens
GREEDY = Sampling(temperature=0.0)


@dataclasses.dataclass(frozen=True)
class Request:
    """What is asked for.

    Attributes:
      prompt: token ids, at least one.
      max_new: tokens after which the text is cut.
      seed: of the text's random numbers, 0 to 2^32 - 1.
      stop: strings that end the text and are not part of it.
    """

    prompt: tuple[int, ...]
    max_new: int = 128
    sampling: Sampling = GREEDY
    seed: int = 0
    stop: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_stop(self.stop)
        if not self.prompt or self.max_new < 1 or not 0 <= self.seed < 2**32:
            raise ValueError(
                f"a request needs a prompt, max_new >= 1 and a seed of 32 bits; got {len(self.prompt)} tokens, "
                f"max_new={self.max_new}, seed={self.seed}"
            )


@dataclasses.dataclass(frozen=True)
class Completion:
    """What came back.

    Attributes:
      text: up to the first stop string or end token.
      ids, logprobs: all tokens drawn, those of the stop included, and their log-probabilities under the model.
      finish: "stop" at an end token or stop string, "length" after max_new tokens.
    """

    text: str
    ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    finish: str


@dataclasses.dataclass(frozen=True)
class Engine:
    """A model laid out for decoding: see `Engine.of`."""

    model: TextModel
    layers: list[Params]
    around: Params

    @classmethod
    def of(cls, model: TextModel) -> Engine:
        """Copies the parameters into the layout of `jaxpt.generate.steps`."""
        return cls(model, *steps.split_layers(model.params, model.cfg.layers))

    def chat(self, messages: Messages, **options: Any) -> Request:
        """A request for the assistant's next turn; options as for `Request`.

        Raises:
          ValueError: the model has no chat format.
        """
        if self.model.chat is None:
            raise ValueError(f"{self.model.id} has no chat format; give a prompt for it to continue")
        return Request(tuple(self.model.chat.encode(messages, self.model.vocabulary)), **options)

    def prompt(self, text: str, **options: Any) -> Request:
        """A request for a continuation of a text; an empty one begins at BOS."""
        ids = self.model.vocabulary.encode(text) or [self.model.vocabulary.bos_id]
        return Request(tuple(ids), **options)

    def complete(self, requests: Iterable[Request], batch_size: int = 8) -> list[Completion]:
        """Completions in the order of the requests.

        Args:
          batch_size: rows decoded together; requests of one sampling and similar length share a batch.

        Raises:
          ValueError: a prompt token that the model does not have, or more tokens than its position table.
        """
        asked = list(requests)
        done: dict[int, Completion] = {}
        for indices in self._batches(asked, batch_size):
            (last,) = collections.deque(self.decode([asked[i] for i in indices]), maxlen=1)
            for i, transcript in zip(indices, last, strict=True):
                finish = "stop" if transcript.stopped else "length"
                done[i] = Completion(transcript.text, tuple(transcript.ids), tuple(transcript.logprobs), finish)
        return [done[i] for i in range(len(asked))]

    def stream(self, request: Request) -> Iterator[str]:
        """Pieces of the text as they settle; together they are the completion's text."""
        shown, transcript = 0, None
        for (transcript,) in self.decode([request]):
            settled = transcript.settled
            if len(settled) > shown:
                yield settled[shown:]
                shown = len(settled)
        if transcript is not None and len(transcript.text) > shown:
            yield transcript.text[shown:]

    def score(self, pairs: Sequence[tuple[Sequence[int], Sequence[int]]], batch_size: int = 8) -> list[np.ndarray]:
        """For (prompt ids, continuation ids): log p of each token of the continuation, float32 [N].

        Raises:
          ValueError: an empty prompt or continuation, or as `complete`.
        """
        asked = [Request((*prompt, *continuation)) for prompt, continuation in pairs]
        if not all(len(prompt) and len(continuation) for prompt, continuation in pairs):
            raise ValueError("scoring needs at least one token of prompt and one of continuation")
        found: dict[int, np.ndarray] = {}
        for indices in self._batches(asked, batch_size):
            ids, valid = self._left_padded([asked[i].prompt for i in indices])
            state = steps.empty_state(self.model.cfg, *ids.shape)
            x, _ = steps.extend(self.layers, self.around, jnp.asarray(ids), jnp.asarray(valid), self.model.cfg, state)
            labels = np.concatenate([ids[:, 1:], ids[:, :1]], 1)
            logprobs = np.asarray(steps.label_logprobs(self.around, x, jnp.asarray(labels), self.model.cfg))
            for i, row in zip(indices, logprobs, strict=False):  # rows beyond are padding
                found[i] = row[-1 - len(pairs[i][1]) : -1]
        return [found[i] for i in range(len(asked))]

    def _batches(self, asked: Sequence[Request], batch_size: int) -> Iterator[list[int]]:
        """Indices of requests that share a sampling and a prompt bucket, in groups of at most `batch_size`."""
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        groups: dict[Any, list[int]] = {}
        for i, request in enumerate(asked):
            groups.setdefault((request.sampling, bucket(len(request.prompt))), []).append(i)
        for members in groups.values():
            for start in range(0, len(members), batch_size):
                yield members[start : start + batch_size]

    def decode(self, requests: Sequence[Request]) -> Iterator[list[Transcript]]:
        """The transcripts of one batch after every step, until all are done; the requests share a sampling."""
        if len({r.sampling for r in requests}) != 1:
            raise ValueError("a batch is decoded with one sampling; `complete` sorts requests into such batches")
        cfg, vocabulary = self.model.cfg, self.model.vocabulary
        ids, valid = self._left_padded([r.prompt for r in requests])
        longest = max(r.max_new for r in requests)
        self._check_length(max(len(r.prompt) + r.max_new for r in requests))
        state = steps.empty_state(cfg, ids.shape[0], bucket(ids.shape[1] + longest))
        seeds = jnp.asarray(_padded([r.seed for r in requests], ids.shape[0]), jnp.uint32)
        transcripts = [Transcript(vocabulary, r.stop, self.model.stop_ids) for r in requests]
        x, state = steps.extend(self.layers, self.around, jnp.asarray(ids), jnp.asarray(valid), cfg, state)
        every = jnp.ones((ids.shape[0], 1), bool)
        for t in range(longest):
            token, logprob = steps.draw(
                self.around, x, seeds, jnp.asarray(t), cfg, requests[0].sampling, vocabulary.size
            )
            drawn = zip(transcripts, requests, np.asarray(token), np.asarray(logprob), strict=False)  # not the padding
            for transcript, request, own_token, own_logprob in drawn:
                if t < request.max_new:
                    transcript.add(int(own_token), float(own_logprob))
            yield transcripts
            if all(t + 1 >= r.max_new or x.stopped for x, r in zip(transcripts, requests, strict=True)):
                return
            x, state = steps.extend(self.layers, self.around, token[:, None], every, cfg, state)

    def _left_padded(self, prompts: Sequence[Sequence[int]]) -> tuple[np.ndarray, np.ndarray]:
        """ids and valid [B, S]: S the bucket of the longest prompt, B a power of two, further rows as the first."""
        self._check_length(max(map(len, prompts)))
        rows, size = 1 << (len(prompts) - 1).bit_length(), bucket(max(map(len, prompts)))
        ids, valid = np.zeros((rows, size), np.int32), np.zeros((rows, size), bool)
        for row, prompt in enumerate(_padded(prompts, rows)):
            given = np.asarray(prompt, np.int64)
            if given.min() < 0 or given.max() >= self.model.cfg.vocab_size:
                raise ValueError(f"prompt token {given.max()} is not one of {self.model.cfg.vocab_size}")
            ids[row, size - len(given) :] = given
            valid[row, size - len(given) :] = True
        return ids, valid

    def _check_length(self, length: int) -> None:
        if self.model.context is not None and length > self.model.context:
            raise ValueError(
                f"{length} tokens (prompt and new) asked for, but {self.model.id} has {self.model.context}"
            )


def bucket(length: int) -> int:
    """The smallest of 16, 24, 32, 48, 64, 96, ... that holds `length` tokens: few shapes, so few compilations."""
    whole = max(SMALLEST_BUCKET, 1 << (length - 1).bit_length())
    return 3 * whole // 4 if whole > SMALLEST_BUCKET and length <= 3 * whole // 4 else whole


def _padded(items: Sequence[Any], count: int) -> list[Any]:
    return [*items, *[items[0]] * (count - len(items))]
