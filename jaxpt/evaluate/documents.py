"""Bits per byte of texts, with any vocabulary: what `bits_per_byte` computes on prepared records, from documents.

    found = documents_bits_per_byte(score, documents, vocabulary, max_length=256)
    found["bits_per_byte"], found["bits_per_byte_macro"], found["bits_per_byte/bible"]

Bytes are those of the text as given. BOS is context and is not scored; EOS is not scored. Every token is scored once:

disjoint  windows one after the other, each sees one token before it: cheap, for curves during training
max       a window every `stride` tokens, full of context; with stride = max_length (the default) these are the rolling
          windows of lm-evaluation-harness, where only the last window of a text is moved left
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal

import numpy as np

from jaxpt.core.names import nearest_error
from jaxpt.data.documents import Document
from jaxpt.data.vocabularies import Vocabulary
from jaxpt.evaluate.bits_per_byte import VERSION, summarize
from jaxpt.evaluate.report import Report, fingerprint
from jaxpt.evaluate.rolling import windows
from jaxpt.evaluate.scoring import Request, ScoreTokens

Context = Literal["disjoint", "max"]


def documents_bits_per_byte(
    score: ScoreTokens,
    documents: Sequence[Document],
    vocabulary: Vocabulary,
    max_length: int,
    *,
    context: Context = "disjoint",
    stride: int | None = None,
) -> Report:
    """bits_per_byte (micro), bits_per_byte_macro, bits_per_byte/DOMAIN, nats_per_token of the documents.

    `per_item` holds nats and bytes of each document, for `significance.bootstrap_ratio`.

    Raises:
      ValueError: no documents, or no bytes in a domain.
    """
    requests: list[Request] = []
    owner: list[int] = []
    for index, document in enumerate(documents):
        for request in text_windows(vocabulary, document.text, max_length, context=context, stride=stride):
            requests.append(request)
            owner.append(index)
    if not requests:
        raise ValueError(f"nothing to score in {len(documents)} documents")
    found = score(requests)
    nats, tokens = np.zeros(len(documents)), np.zeros(len(documents))
    np.add.at(nats, owner, -found.log_likelihood)
    np.add.at(tokens, owner, found.tokens)
    sizes = np.array([len(d.text.encode("utf-8")) for d in documents], np.float64)
    values = _by_domain([d.domain for d in documents], nats, tokens, sizes)
    per_item = {"nats": nats, "bytes": sizes, "tokens": tokens}
    data = fingerprint([[d.domain, d.text] for d in documents])
    return Report(f"bits_per_byte ({context})", VERSION, len(documents), data, values, per_item)


def text_windows(
    vocabulary: Vocabulary, text: str, max_length: int, *, context: Context = "max", stride: int | None = None
) -> Iterator[Request]:
    """The requests whose continuations are together the tokens of a text, each once.

    Raises:
      ValueError: an unknown context, or a stride outside 1 to max_length or given for disjoint windows.
    """
    if context not in ("disjoint", "max"):
        raise nearest_error("context", context, ("disjoint", "max"))
    if stride is not None and (context == "disjoint" or not 1 <= stride <= max_length):
        raise ValueError(f'a stride is for context="max", from 1 to {max_length}; got {stride} for {context!r}')
    stream = [vocabulary.bos_id, *vocabulary.encode(text)]
    if context == "disjoint":
        for start in range(1, len(stream), max_length):
            yield Request(stream[start - 1 : start], stream[start : start + max_length])
    elif len(stream) > 1:
        for first, last, scored in windows(len(stream) - 1, max_length, stride or max_length):
            yield Request(stream[first : scored + 1], stream[scored + 1 : last + 1])


def _by_domain(domains: Sequence[str], nats: np.ndarray, tokens: np.ndarray, sizes: np.ndarray) -> dict[str, float]:
    names = sorted(set(domains))
    index = np.array([names.index(d) for d in domains])
    sums = [np.bincount(index, x, len(names)) for x in (nats, tokens, sizes)]
    return summarize(sums[0], sums[1], names, dict(zip(names, sums[2].tolist(), strict=True)))
