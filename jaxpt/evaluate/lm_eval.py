"""Any of our models inside lm-evaluation-harness; needs the extra `lm-eval`.

    from jaxpt.evaluate.lm_eval import JaxptLM
    results = lm_eval.simple_evaluate(JaxptLM.of_decoder(params, cfg, vocabulary, max_length=256), tasks=[...])
    # or: simple_evaluate(model="jaxpt", model_args={"score": score, "vocabulary": vocabulary, "max_length": 256})

Requests are scored by our own core; the harness brings its prompts, its metrics and its tables. Contexts begin with BOS.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from jaxpt.core.types import Params
from jaxpt.data.vocabularies import Vocabulary
from jaxpt.evaluate.documents import text_windows
from jaxpt.evaluate.scoring import LENGTHS, Request, Scorer, ScoreTokens, decoder_tokens
from jaxpt.models import decoder
from jaxpt.models.generate import Sampling, generate

try:
    from lm_eval.api.model import TemplateLM
    from lm_eval.api.registry import register_model
except ImportError as error:
    raise ImportError("lm-evaluation-harness is not installed; install jaxpt with the extra lm-eval") from error

Generate = Callable[[Sequence[Sequence[int]], int, Sampling], list[list[int]]]  # prompts, steps -> new tokens
GENERATED = 128  # new tokens where a task does not say
ROWS = 16  # prompts that are continued at once


@register_model("jaxpt")
class JaxptLM(TemplateLM):
    """A scorer of token requests, and optionally a sampler, as the harness wants a model.

    Args:
      score: e.g. `functools.partial(Scorer(decoder_tokens(cfg), max_length), params)`.
      max_length: inputs the model reads at once.
      generate: (prompts, steps, sampling) -> new tokens; without it tasks that generate are refused.
      batch_size, device, others: the harness passes them; the scorer has its own batches.
    """

    def __init__(
        self,
        score: ScoreTokens,
        vocabulary: Vocabulary,
        max_length: int,
        generate: Generate | None = None,
        batch_size: int | str | None = None,
        device: str | None = None,
        **others: Any,
    ) -> None:
        super().__init__()
        self._score, self._vocabulary, self._max_length, self._generate = score, vocabulary, max_length, generate

    @classmethod
    def of_decoder(
        cls, params: Params, cfg: decoder.Config, vocabulary: Vocabulary, max_length: int, seed: int = 0
    ) -> JaxptLM:
        """The model of a decoder, which can generate too."""
        score = functools.partial(Scorer(decoder_tokens(cfg), max_length), params)
        return cls(score, vocabulary, max_length, decoder_generate(params, cfg, vocabulary.eos_id, seed))

    @property
    def eot_token_id(self) -> int:
        return self._vocabulary.eos_id

    @property
    def prefix_token_id(self) -> int:
        return self._vocabulary.bos_id

    @property
    def max_length(self) -> int:
        """Inputs the model reads at once."""
        return self._max_length

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
        ids = self._vocabulary.encode(string)
        return ids if add_special_tokens is False else [self._vocabulary.bos_id, *ids]

    def _loglikelihood_tokens(self, requests: Sequence[Any], **kwargs: Any) -> list[tuple[float, bool]]:
        found = self._score([Request(context, continuation) for _, context, continuation in requests])
        return list(zip(found.log_likelihood.tolist(), found.greedy.tolist(), strict=True))

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        windows = [list(text_windows(self._vocabulary, r.args[0], self._max_length)) for r in requests]
        found = self._score([w for of_text in windows for w in of_text]).log_likelihood
        owner = np.repeat(np.arange(len(windows)), [len(of_text) for of_text in windows])
        return np.bincount(owner, found, len(windows)).tolist()

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        if self._generate is None:
            raise ValueError("this JaxptLM was made without a `generate` function; use JaxptLM.of_decoder")
        texts: list[str] = [""] * len(requests)
        groups: dict[tuple[int, Sampling], list[int]] = {}
        for index, request in enumerate(requests):
            groups.setdefault(_asked(request.args[1]), []).append(index)
        for (steps, sampling), members in groups.items():
            room = self._max_length - steps
            if room < 1:
                raise ValueError(f"{steps} new tokens leave no room for a prompt in max_length={self._max_length}")
            prompts = [self.tok_encode(requests[i].args[0])[-room:] for i in members]
            for index, ids in zip(members, self._generate(prompts, steps, sampling), strict=True):
                texts[index] = _until(self._vocabulary.decode(ids), requests[index].args[1].get("until") or [])
        return texts


def decoder_generate(params: Params, cfg: decoder.Config, eos_id: int, seed: int = 0) -> Generate:
    """Continues prompts, left-padded to a few lengths; a text ends before EOS."""

    def run(prompts: Sequence[Sequence[int]], steps: int, sampling: Sampling) -> list[list[int]]:
        found: list[list[int]] = [[]] * len(prompts)
        order = sorted(range(len(prompts)), key=lambda i: -len(prompts[i]))
        for start in range(0, len(order), ROWS):
            chosen = order[start : start + ROWS]
            longest = len(prompts[chosen[0]])
            length = next((n for n in LENGTHS if n >= longest), longest)
            ids, valid = np.zeros((ROWS, length), np.int32), np.zeros((ROWS, length), bool)
            valid[:, -1] = True  # rows that fill the batch
            for row, index in enumerate(chosen):
                prompt = list(prompts[index])
                ids[row, length - len(prompt) :], valid[row, length - len(prompt) :] = prompt, True
            key = jax.random.key(seed)
            new = generate(
                params, ids, cfg, key=key, steps=steps, sampling=sampling, valid=valid, stop_id=eos_id
            )  # fmt: skip
            for row, index in enumerate(chosen):
                tokens = np.asarray(new[row]).tolist()
                found[index] = tokens[: tokens.index(eos_id)] if eos_id in tokens else tokens
        return found

    return run


def _asked(arguments: dict[str, Any]) -> tuple[int, Sampling]:
    """(new tokens, sampling) of a request; the harness is greedy unless told to sample."""
    steps = int(arguments.get("max_gen_toks") or arguments.get("max_new_tokens") or GENERATED)
    temperature = float(arguments.get("temperature") or 0.0)
    if not arguments.get("do_sample", temperature > 0):
        return steps, Sampling(temperature=0.0)
    return steps, Sampling(temperature or 1.0, int(arguments.get("top_k") or 0), float(arguments.get("top_p") or 1.0))


def _until(text: str, stops: str | Sequence[str]) -> str:
    """The text before the first of the stop strings."""
    for stop in [stops] if isinstance(stops, str) else stops:
        text = text.split(stop)[0] if stop else text
    return text
