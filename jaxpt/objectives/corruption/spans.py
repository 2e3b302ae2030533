"""Span corruption of T5 (arXiv 1910.10683, section 3.1.4; the counts and the segmentation of its released code).

A row of n tokens has noise = round(n * density) noise tokens in round(noise / mean length) spans; both numbers are functions
of n alone. Noise and text are each cut into that many parts, all ways of cutting being equally likely, and interleaved,
text first. So a row begins with text, ends in noise, and spans never touch; with one span the noise is the row's end.

    inputs    text with span k replaced by sentinel k, then EOS
    targets   sentinel 0, span 0, sentinel 1, span 1, ..., then EOS

    cfg = SpanCorruption(density=0.15, mean_length=3, sentinel=32099, eos_id=1)
    pair = corrupt(key, ids, length, cfg)                        # one row; sizes(cfg, S) are the static sizes
    restore(pair, cfg)                                           # the row again

Everything random is a function of uniform numbers that are arguments, so that NumPy and TensorFlow compute what JAX does:

    backend = backends.tensorflow()                              # in a SeqIO preprocessor
    noise = noise_mask(uniforms, length, *counts, backend)       # uniforms [2, S]: tf.random.stateless_uniform
    pair = apply_sentinels(ids, noise, None, length, cfg, sizes(cfg, S), backend)
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxpt.core.rng import fold
from jaxpt.core.types import Array, Float, Int, PRNGKeyArray
from jaxpt.objectives.corruption.backends import JAX, Backend

Sizes = tuple[int, int]  # of inputs and of targets


@dataclasses.dataclass(frozen=True, kw_only=True)
class SpanCorruption:
    """Attributes:
    density: share of the tokens that are noise, in (0, 1).
    mean_length: tokens per span.
    sentinel, sentinels: the ids sentinel, sentinel - 1, ... of which there are so many (T5: 100, from the last id down).
    eos_id: ends inputs and targets; None for nothing.
    """

    density: float = 0.15
    mean_length: float = 3.0
    sentinel: int
    sentinels: int = 100
    eos_id: int | None = None
    pad_id: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.density < 1 or self.mean_length < 1:
            raise ValueError(
                f"need a density in (0, 1) and a mean length of at least 1, got {self.density} and {self.mean_length}"
            )
        if self.sentinels < 1 or self.sentinel < self.sentinels - 1:
            raise ValueError(f"{self.sentinels} sentinels counted down from {self.sentinel} leave the vocabulary")


class Pair(NamedTuple):
    """Inputs and targets of fixed sizes, padded at the end, and the numbers of their tokens that are not padding."""

    inputs: Any
    targets: Any
    input_length: Any
    target_length: Any


def count_table(size: int, density: float, mean_length: float) -> np.ndarray:
    """[size + 1, 2]: noise tokens and spans of a row of n = 0 .. size tokens; none below 2.

    In float32 as in T5, halves to the even number. A table, so that no compiler rounds otherwise. Fewer text tokens than
    spans, which T5's code leaves open, lower the number of spans.
    """
    n = np.arange(size + 1)
    noise = np.clip(np.round(n.astype(np.float32) * np.float32(density)).astype(np.int32), 1, np.maximum(n - 1, 1))
    spans = np.round(noise.astype(np.float32) / np.float32(mean_length)).astype(np.int32)
    spans = np.clip(spans, 1, np.maximum(np.minimum(noise, n - noise), 1))
    return np.where(n[:, None] < 2, 0, np.stack([noise, spans], 1)).astype(np.int32)


def sizes(cfg: SpanCorruption, size: int) -> Sizes:
    """Sizes that the inputs and the targets of every row of at most `size` tokens fit in.

    Raises:
      ValueError: more spans than sentinels.
    """
    noise, spans = count_table(size, cfg.density, cfg.mean_length).T
    if spans.max() > cfg.sentinels:
        raise ValueError(
            f"{size} tokens at density {cfg.density} and mean length {cfg.mean_length} have {spans.max()} spans, "
            f"but there are {cfg.sentinels} sentinels"
        )
    end = 0 if cfg.eos_id is None else 1
    return int((np.arange(size + 1) - noise + spans).max()) + end, int((noise + spans).max()) + end


def raw_length(inputs: int, cfg: SpanCorruption) -> int:
    """The most tokens whose inputs, EOS counted, are no longer than `inputs`: 568 for T5's 512.

    At density 0.5, where targets can come out longer than inputs, one less, as in T5's code.
    """
    n = np.arange(int(inputs / (1 - cfg.density)) + 3)
    noise, spans = count_table(len(n) - 1, cfg.density, cfg.mean_length).T
    end = 0 if cfg.eos_id is None else 1
    found = int(((n - noise + spans + end > inputs) & (n >= inputs)).argmax()) - 1
    return found - 1 if cfg.density == 0.5 and noise[found] + spans[found] + end > inputs else found


def noise_mask(uniforms: Any, length: Any, noise: Any, spans: Any, backend: Backend = JAX) -> Any:
    """The noise tokens of a row, bool [S].

    Args:
      uniforms: [2, S] in [0, 1), of which position i uses [:, i]: longer rows of the same numbers cut alike.
      length: number of real tokens; the rest of the row is padding and no noise.
      noise, spans: entries of `count_table` for this length.
    """
    at = backend.arange(backend.size(uniforms[0]))
    noise_part = _parts(uniforms[0], noise, spans, backend)
    text_part = _parts(uniforms[1], length - noise, spans, backend)
    # a noise token of part k comes after the noise tokens before it and the text of parts 0 .. k
    place = at + backend.first_after(text_part, noise_part)
    place = backend.where(at < noise, place, backend.size(at) + at)
    nearest = backend.minimum(backend.first_from(place, at), backend.size(at) - 1)
    return backend.take(place, nearest) == at


def _parts(uniform: Any, items: Any, parts: Any, backend: Backend) -> Any:
    """For each of `items` items the number of its part, ascending from 0; S for the rest of the row.

    Part 0 begins with item 0; where the others begin is a random subset of the other items: the smallest uniforms.
    """
    at = backend.arange(backend.size(uniform))
    ranked = backend.where((at > 0) & (at < items), uniform, float("inf"))
    rank = backend.argsort(backend.argsort(ranked))
    return backend.where(at < items, backend.cumsum(rank < parts - 1), backend.size(at))


def apply_sentinels(
    ids: Any, noise: Any, starts: Any, length: Any, cfg: SpanCorruption, room: Sizes, backend: Backend = JAX
) -> Pair:
    """Inputs and targets of a row whose noise is known.

    Args:
      noise: bool [S].
      starts: where each unit of noise begins, bool [S], so that two masked cells side by side have a sentinel each; where
        noise follows text, by default. All False gives prefix and suffix without sentinels.
      length: number of real tokens.
      room: sizes of inputs and targets. What does not fit is cut off.
    """
    at = backend.arange(backend.size(ids))
    real = at < length
    noise = noise & real
    if starts is None:
        starts = noise & ~((at > 0) & backend.take(noise, backend.where(at > 0, at - 1, at)))
    starts = starts & noise
    sentinel = cfg.sentinel + 1 - backend.cumsum(starts)
    zero, one = at * 0, at * 0 + 1
    began, hidden = backend.where(starts, one, zero), backend.where(noise, one, zero)
    shown = backend.where(real & (~noise | starts), one, zero)
    inputs = _written(ids, starts, sentinel, shown, cfg, room[0], backend)
    targets = _written(ids, starts, sentinel, hidden + began, cfg, room[1], backend)
    return Pair(inputs[0], targets[0], inputs[1], targets[1])


def _written(
    ids: Any, starts: Any, sentinel: Any, emitted: Any, cfg: SpanCorruption, size: int, backend: Backend
) -> tuple[Any, Any]:
    """(row [size], its length): each position writes `emitted` tokens, first the sentinel if a unit starts there."""
    ends = backend.cumsum(emitted)
    total = backend.take(ends, backend.size(ids) - 1)
    at = backend.arange(size)
    source = backend.minimum(backend.first_after(ends, at), backend.size(ids) - 1)
    first = at == backend.take(ends - emitted, source)
    row = backend.where(first & backend.take(starts, source), backend.take(sentinel, source), backend.take(ids, source))
    end = 0 if cfg.eos_id is None else 1
    last = cfg.pad_id if cfg.eos_id is None else cfg.eos_id
    row = backend.where(at < total, row, backend.where(at == total, last, cfg.pad_id))
    return row, backend.minimum(total + end, size)


def uniforms(key: PRNGKeyArray, size: int) -> Float[Array, "2 S"]:
    """What `noise_mask` draws from."""
    return jnp.stack([jax.random.uniform(fold(key, name), (size,)) for name in ("noise", "text")])


def corrupt(key: PRNGKeyArray, ids: Int[Array, " S"], length: int | Int[Array, ""], cfg: SpanCorruption) -> Pair:
    """Span corruption of the first `length` tokens of a row, in arrays of the sizes `sizes(cfg, S)`."""
    room = sizes(cfg, len(ids))
    counts = jnp.asarray(count_table(len(ids), cfg.density, cfg.mean_length))[length]
    noise = noise_mask(uniforms(key, len(ids)), length, counts[0], counts[1])
    return apply_sentinels(ids, noise, None, length, cfg, room)


def restore(pair: Pair, cfg: SpanCorruption) -> np.ndarray:
    """The row of text: the spans of the targets put in at their sentinels in the inputs. On the host, for one row.

    Raises:
      ValueError: targets that do not begin with a sentinel, or sentinels that inputs and targets do not share.
    """
    end = 0 if cfg.eos_id is None else 1
    inputs = np.asarray(pair.inputs)[: int(pair.input_length) - end]
    targets = np.asarray(pair.targets)[: int(pair.target_length) - end]
    low = cfg.sentinel - cfg.sentinels
    starts = np.flatnonzero((targets > low) & (targets <= cfg.sentinel))
    if len(targets) and (not len(starts) or starts[0]):
        raise ValueError(f"targets must begin with a sentinel, {cfg.sentinel} or below, got {targets[:5].tolist()} ...")
    pieces = np.split(targets, starts)[1:]
    spans = {int(piece[0]): piece[1:] for piece in pieces}
    wanted = [int(i) for i in inputs if low < i <= cfg.sentinel]
    if sorted(spans) != sorted(wanted) or len(spans) != len(pieces):
        raise ValueError(f"inputs have the sentinels {wanted}, targets {[int(p[0]) for p in pieces]}")
    return np.concatenate([np.zeros(0, inputs.dtype), *(spans.get(int(i), np.asarray([i])) for i in inputs)])
