"""UL2's mixture of denoisers (arXiv 2205.05131, section 3.1, table 1), as pairs of inputs and targets, and for a decoder as
rows of a prefix language model:

    mode token, inputs | targets, EOS          everything before | is seen by all; the loss is on what follows

R   span corruption as T5's, spans of 3 or 8 tokens, 15 % noise
S   sequential: the rest of a text after its beginning
X   extreme: 50 % noise, or spans of 64 tokens

The seven denoisers are drawn equally often by default, as in the paper's main setting. Reconstructed, since no preprocessor
was released: the suffix of S has a length drawn uniformly from 1 to half of the text, a quarter in the mean, and no
sentinel; inputs have no EOS, so that S is the plain continuation of a text. Rows are cut from raw texts of one length for
all denoisers. The mode token is the first token also in fine-tuning and evaluation.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxpt.core.names import nearest_error
from jaxpt.core.rng import fold
from jaxpt.core.types import Array, Int, PRNGKeyArray
from jaxpt.objectives.corruption import spans
from jaxpt.objectives.corruption.spans import Sizes, SpanCorruption


@dataclasses.dataclass(frozen=True)
class Denoiser:
    """Attributes:
    mode: name of the mode token.
    density: share of noise; of S, in the mean.
    mean_length: tokens per span; None for a suffix without sentinel.
    """

    mode: str
    density: float
    mean_length: float | None


UL2 = (
    Denoiser("R", 0.15, 3.0),
    Denoiser("R", 0.15, 8.0),
    Denoiser("S", 0.25, None),
    Denoiser("X", 0.5, 3.0),
    Denoiser("X", 0.5, 8.0),
    Denoiser("X", 0.15, 64.0),
    Denoiser("X", 0.5, 64.0),
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Mixture:
    """Attributes:
    modes: (name, token id) of each mode.
    rates: how often each denoiser is drawn, up to a factor; equally often by default.
    sentinel, sentinels: see `SpanCorruption`.
    """

    denoisers: tuple[Denoiser, ...] = UL2
    modes: tuple[tuple[str, int], ...]
    sentinel: int
    sentinels: int = 100
    eos_id: int
    pad_id: int = 0
    rates: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        for denoiser in self.denoisers:
            if denoiser.mode not in dict(self.modes):
                raise nearest_error("mode", denoiser.mode, dict(self.modes))
            self.spans(denoiser)
        rates = self.rates
        if not self.denoisers or (
            rates is not None and (len(rates) != len(self.denoisers) or min(rates) < 0 or sum(rates) <= 0)
        ):
            raise ValueError(
                f"need one rate, not negative, for each of {len(self.denoisers)} denoisers, not all 0; got {rates}"
            )

    def spans(self, denoiser: Denoiser) -> SpanCorruption:
        """The denoiser as span corruption without EOS."""
        mean = 1.0 if denoiser.mean_length is None else denoiser.mean_length
        return SpanCorruption(
            density=denoiser.density, mean_length=mean, sentinel=self.sentinel, sentinels=self.sentinels,
            pad_id=self.pad_id,
        )  # fmt: skip

    def sizes(self, length: int) -> Sizes:
        """Static sizes of inputs and targets of `length` tokens, mode token and EOS not counted: the longest there are."""
        noise, count = np.moveaxis(_table(self, length), 2, 0)
        least = np.where([[d.mean_length is None] for d in self.denoisers], np.minimum(noise, 1), noise)
        return int((np.arange(length + 1) - least + count).max()), int((noise + count).max())

    def size(self, length: int) -> int:
        """Static size of the rows that `example` makes of `length` tokens: the longest any denoiser can make."""
        table = _table(self, length)
        return int((np.arange(length + 1) + 2 * table[:, :, 1]).max()) + 2


class Corrupted(NamedTuple):
    """A mode token, inputs and targets that do not hold it and have no EOS, and the denoiser that made them."""

    mode: Int[Array, "*B"]
    pair: spans.Pair
    denoiser: Int[Array, "*B"]


class Example(NamedTuple):
    """A row [Z]: mode, inputs, targets, EOS, padding. `prefix` tokens are mode and inputs; `length` are not padding."""

    ids: Int[Array, "*B Z"]
    prefix: Int[Array, "*B"]
    length: Int[Array, "*B"]
    denoiser: Int[Array, "*B"]


def example(key: PRNGKeyArray, ids: Int[Array, " S"], length: int | Int[Array, ""], cfg: Mixture) -> Example:
    """A row made of the first `length` of these tokens by a denoiser drawn for it. Z is `cfg.size(S)`."""
    return of_denoiser(key, ids, length, drawn(key, cfg), cfg)


def of_denoiser(
    key: PRNGKeyArray,
    ids: Int[Array, " S"],
    length: int | Int[Array, ""],
    which: int | Int[Array, ""],
    cfg: Mixture,
) -> Example:
    """The same by a given denoiser, for evaluation: its index in `cfg.denoisers`."""
    return _joined(corrupted(key, ids, length, which, cfg), cfg, cfg.size(len(ids)))


def drawn(key: PRNGKeyArray, cfg: Mixture) -> Int[Array, ""]:
    """The index of a denoiser, drawn at the mixture's rates."""
    rates = np.cumsum(np.ones(len(cfg.denoisers)) if cfg.rates is None else cfg.rates)
    which = jnp.searchsorted(jnp.asarray(rates / rates[-1]), jax.random.uniform(fold(key, "denoiser")), side="right")
    return jnp.minimum(which, len(rates) - 1)


def corrupted(
    key: PRNGKeyArray,
    ids: Int[Array, " S"],
    length: int | Int[Array, ""],
    which: int | Int[Array, ""],
    cfg: Mixture,
) -> Corrupted:
    """The first `length` of these tokens as inputs and targets, both of a size that holds what any denoiser makes."""
    size = len(ids)
    counts = jnp.asarray(_table(cfg, size))[which, length]
    suffix = jnp.asarray([d.mean_length is None for d in cfg.denoisers])[which]
    at = jnp.arange(size)
    longest = jnp.maximum(counts[0], 1)
    rest = 1 + jnp.floor(jax.random.uniform(fold(key, "suffix")) * longest).astype(jnp.int32)
    rest = jnp.where(length < 2, 0, jnp.minimum(rest, longest))
    spanned = spans.noise_mask(spans.uniforms(key, size), length, counts[0], counts[1])
    noise = jnp.where(suffix, at >= length - rest, spanned) & (at < length)
    starts = noise & ~jnp.pad(noise[:-1], (1, 0)) & ~suffix
    longer = size + int(_table(cfg, size)[:, :, 1].max())
    pair = spans.apply_sentinels(ids, noise, starts, length, cfg.spans(cfg.denoisers[0]), (longer, longer))
    modes = jnp.asarray([dict(cfg.modes)[d.mode] for d in cfg.denoisers])
    return Corrupted(modes[which], pair, jnp.asarray(which))


def _joined(made: Corrupted, cfg: Mixture, size: int) -> Example:
    mode, pair, which = made
    at, prefix = jnp.arange(size), 1 + pair.input_length
    end = prefix + pair.target_length
    inputs = pair.inputs[jnp.clip(at - 1, 0, len(pair.inputs) - 1)]
    targets = pair.targets[jnp.clip(at - prefix, 0, len(pair.targets) - 1)]
    row = jnp.where(at < prefix, inputs, jnp.where(at < end, targets, cfg.pad_id))
    row = jnp.where(at == 0, mode, jnp.where(at == end, cfg.eos_id, row))
    return Example(row, prefix, end + 1, which)


@functools.lru_cache
def _table(cfg: Mixture, size: int) -> np.ndarray:
    """[denoisers, size + 1, 2]: noise tokens and spans; of a suffix, its largest length and 0.

    Raises:
      ValueError: more spans than sentinels.
    """
    tables = []
    for denoiser in cfg.denoisers:
        if denoiser.mean_length is None:
            longest = np.minimum((2 * denoiser.density * np.arange(size + 1)).astype(np.int32), np.arange(size + 1) - 1)
            tables.append(np.stack([np.maximum(longest, 0), np.zeros(size + 1, np.int32)], 1))
        else:
            spans.sizes(cfg.spans(denoiser), size)
            tables.append(spans.count_table(size, denoiser.density, denoiser.mean_length))
    return np.stack(tables)
