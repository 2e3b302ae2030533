"""Tokens hidden from the model that predicts them: which positions, and what stands there instead.

    Masking(mask_id=4, vocab_size=8192)             BERT: 15 %, of which 80 % become [MASK], 10 % random, 10 % are kept
    Masking(..., mask=0.85, random=0)               ELECTRA's generator
    Masking(..., by="units")                        whole words, or cells: "unit_ids" of the batch
    Masking(..., rate=0.3, by="spans")              GPT-BERT: "mask_counts" and "mask_rate" of the batch

BERT: arXiv 1810.04805, appendix A.1. ELECTRA: arXiv 2003.10555, section 2; its release draws positions with replacement and
puts the mean of two token ids where one is drawn twice, which is not repeated here.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxpt.core.names import nearest_error
from jaxpt.core.rng import fold
from jaxpt.core.types import Array, Bool, Float, Int, PRNGKeyArray
from jaxpt.objectives.corruption import positions, span_priority
from jaxpt.objectives.corruption.rows import over_rows, real_tokens

KINDS = ("tokens", "units", "spans")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Masking:
    """Attributes:
    rate: share of a row's tokens, special ones counted as BERT does (of its units with by="units"). Where the batch has
      "mask_rate" [B], that is the rate of each row, and this one its upper bound.
    special_ids: tokens that are never chosen and never put in by chance.
    mask, random: shares of the chosen tokens that become [MASK] and a random token; the rest is kept, and predicted too.
    by: "tokens", each by itself; "units", all tokens of a unit together; "spans", GPT-BERT's.
    """

    mask_id: int
    vocab_size: int
    rate: float = 0.15
    special_ids: tuple[int, ...] = ()
    mask: float = 0.8
    random: float = 0.1
    by: str = "tokens"

    def __post_init__(self) -> None:
        if self.by not in KINDS:
            raise nearest_error("kind of masking", self.by, KINDS)
        if not 0 < self.rate <= 1 or min(self.mask, self.random) < 0 or self.mask + self.random > 1 + 1e-9:
            raise ValueError(
                f"need 0 < rate <= 1 and shares that are not negative and sum to at most 1, "
                f"got rate={self.rate}, mask={self.mask}, random={self.random}"
            )
        outside = [i for i in (self.mask_id, *self.special_ids) if not 0 <= i < self.vocab_size]
        if outside:
            raise ValueError(f"ids {outside} are not in a vocabulary of {self.vocab_size}")
        if not self.ordinary:
            raise ValueError(f"all {self.vocab_size} ids of the vocabulary are special")

    @property
    def ordinary(self) -> int:
        """Number of ids that may be put in by chance."""
        return self.vocab_size - len({self.mask_id, *self.special_ids})

    def check_vocabulary(self, vocab_size: int) -> None:
        """Raises ValueError where a model of so many tokens lacks some that are drawn."""
        if self.vocab_size > vocab_size:
            raise ValueError(f"masking draws from {self.vocab_size} tokens, the model has vocab_size={vocab_size}")

    def size(self, length: int) -> int:
        """Static number of entries of `Masked` for a row of this length: the most there can be, up to a multiple of 8, so
        that the predictions can be cut into chunks."""
        most = positions.capacity(self.rate, length) + (span_priority.SURPLUS if self.by == "spans" else 0)
        return min(length, -(-most // 8) * 8)


class Masked(NamedTuple):
    """A row whose tokens `labels` [N] at `position` [N] are hidden; `weight` [N] is 1 where an entry counts, else 0."""

    inputs: Int[Array, "*B S"]
    position: Int[Array, "*B N"]
    labels: Int[Array, "*B N"]
    weight: Float[Array, "*B N"]


def mask(
    key: PRNGKeyArray,
    ids: Int[Array, " S"],
    real: Bool[Array, " S"],
    allowed: Bool[Array, " S"],
    cfg: Masking,
    *,
    rate: float | Float[Array, ""] | None = None,
    units: Int[Array, " S"] | None = None,
    counts: Int[Array, " S"] | None = None,
) -> Masked:
    """Hides tokens of a row.

    Args:
      real: not padding; what the rate is a share of.
      allowed: positions that may be chosen; special tokens never are.
      rate: in place of `cfg.rate`, and not above it.
      units: for by="units", see `choose_units`.
      counts: for by="spans", see `span_priority.draw`; zeros by default.

    Raises:
      ValueError: by="units" without units.
    """
    rate = cfg.rate if rate is None else jnp.minimum(rate, cfg.rate)
    size, allowed = cfg.size(len(ids)), allowed & real & ~special_tokens(ids, cfg)
    choose, shown = fold(key, "choose"), fold(key, "replace")
    if cfg.by == "spans":
        chosen, kinds = span_priority.draw(choose, real, allowed, rate, size, counts)
    elif cfg.by == "units":
        if units is None:
            raise ValueError('masking by="units" needs the units of the tokens ("unit_ids" of the batch)')
        budget = positions.capacity(cfg.rate, len(ids))
        whole = choose_units(choose, jnp.where(allowed, units, 0), rate, budget)
        chosen, kinds = positions.of_mask(whole, size), None
    else:
        chosen, kinds = positions.draw(choose, allowed, positions.count(rate, real.sum()), size), None
    labels = ids[chosen.position]
    inputs = positions.put(ids, chosen, replace(shown, labels, cfg, kinds))
    return Masked(inputs, chosen.position, labels, chosen.valid.astype(jnp.float32))


def mask_batch(
    key: PRNGKeyArray, batch: dict[str, Array], cfg: Masking, allowed: Bool[Array, "B S"] | None = None
) -> Masked:
    """`mask` of the "inputs" of a batch, with those of its "segment_ids", "mask_rate", "unit_ids", "mask_counts" it has."""
    names = {"rate": "mask_rate", "units": "unit_ids", "counts": "mask_counts"}
    given = {name: batch[field] for name, field in names.items() if field in batch}
    real = real_tokens(batch)

    def row(key: PRNGKeyArray, ids: Array, real: Array, allowed: Array, *more: Array) -> Masked:
        return mask(key, ids, real, allowed, cfg, **dict(zip(given, more, strict=True)))

    return over_rows(row, key, batch, batch["inputs"], real, real if allowed is None else allowed, *given.values())


def replace(
    key: PRNGKeyArray, ids: Int[Array, " N"], cfg: Masking, kinds: Float[Array, " N"] | None = None
) -> Int[Array, " N"]:
    """What stands in the place of chosen tokens: [MASK], a random ordinary token, or the token itself.

    Args:
      kinds: numbers in [0, 1) that decide which: below `random`, from 1 - `mask` on, or between. Drawn by default.
    """
    if kinds is None:
        kinds = jax.random.uniform(fold(key, "kind"), ids.shape)
    chance = jax.random.randint(fold(key, "token"), ids.shape, 0, cfg.ordinary)
    for special in sorted({cfg.mask_id, *cfg.special_ids}):  # the chance-th of the ids that are not special
        chance = chance + (chance >= special)
    shown = jnp.where(kinds < cfg.random, chance.astype(ids.dtype), ids)
    return jnp.where(kinds >= 1 - cfg.mask, jnp.asarray(cfg.mask_id, ids.dtype), shown)


def choose_units(
    key: PRNGKeyArray, units: Int[Array, " S"], rate: float | Float[Array, ""], budget: int | Int[Array, ""]
) -> Bool[Array, " S"]:
    """All tokens of max(1, round(rate * units)) random units: words, cells, columns.

    Units are taken in random order up to the first that does not fit the budget; BERT's whole-word masking would go on
    and look for shorter ones, which favours these.

    Args:
      units: the unit of each token, a number in 1 .. S; 0 for tokens that belong to none.
      budget: most tokens that are chosen. No unit is ever chosen in part.
    """
    number = positions.count(rate, (unit_sizes(units) > 0).sum())
    return first_units(units, jax.random.uniform(key, (units.shape[0] + 1,)), number, budget)


def first_units(
    units: Int[Array, " S"], priority: Float[Array, " U"], number: int | Int[Array, ""], budget: int | Int[Array, ""]
) -> Bool[Array, " S"]:
    """All tokens of the `number` units whose priority is smallest, up to the first that does not fit the budget.

    Args:
      priority: of each unit by its number, [S + 1].
    """
    sizes = unit_sizes(units)
    order = jnp.argsort(jnp.where(sizes > 0, priority, jnp.inf))
    taken = (jnp.arange(len(sizes)) < number) & (jnp.cumsum(sizes[order]) <= budget)
    return jnp.zeros(len(sizes), bool).at[order].set(taken)[units] & (units > 0)


def unit_sizes(units: Int[Array, " S"]) -> Int[Array, " U"]:
    """Tokens of each unit by its number, [S + 1]; 0 of unit 0, which is none."""
    return jnp.zeros(units.shape[0] + 1, jnp.int32).at[units].add(1).at[0].set(0)


def unit_ids(starts: Bool[Array, " S"], member: Bool[Array, " S"]) -> Int[Array, " S"]:
    """Numbers 1, 2, ... of units that begin where `starts` is set; 0 where a token is no member of one."""
    return jnp.cumsum(starts & member) * member


def special_tokens(ids: Int[Array, "*B S"], cfg: Masking) -> Bool[Array, "*B S"]:
    """Where ids are [MASK] or special."""
    found = ids == cfg.mask_id
    for special in cfg.special_ids:
        found = found | (ids == special)
    return found
