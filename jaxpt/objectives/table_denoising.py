"""Self-supervised pretraining on tables and the text around them (arXiv 2310.00789), on an encoder-decoder.

    inputs     context col : h1 | h2 row 1 : v11 | v12 ...       with every hidden piece replaced by a sentinel, then EOS
    targets    sentinel 0, piece 0, sentinel 1, piece 1, ..., EOS
    L = mean of -log p(target | inputs, targets before) over all target tokens of the batch

    spans     T5's span corruption of the whole text (A, rate .25)
    cells     max(1, round(.15 cells)) whole cells, or one header cell, or the cells of one column of a small table (B, .4)
    context   the rest of the context from some word on, or all of it: a title from a table (C(i), half of .35)
    stated    cells as in B, each with probability .5 one that the context states, otherwise one that it does not (C(ii))

    cfg = TableDenoising(model=..., corruption=SpanCorruption(sentinel=2175, sentinels=16, eos_id=1), target_length=48)

A cell is hidden whole or not at all, behind a sentinel of its own; cells of more than `cell_tokens` tokens, which would fill
the targets, are never hidden and not counted. What a row has not, cells or a context, makes way for spans, so that plain
text may be mixed in. Everything is drawn again at every update.

Reconstructed: the paper's text could not be read, only its abstract. The linearised form is TaPEx's and UnifiedSKG's; the
three kinds, their rates, the cap and the shares of headers and columns are chosen here, in the manner of TabT5 and TAPAS.
`recipes.table_pretraining` is the claim.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from jaxpt.core.rng import fold
from jaxpt.core.types import Array, Bool, Float, Int, Params, PRNGKeyArray
from jaxpt.models import flops
from jaxpt.objectives import denoising
from jaxpt.objectives.base import Losses, Objective
from jaxpt.objectives.corruption import positions, spans
from jaxpt.objectives.corruption.masking import first_units, unit_sizes
from jaxpt.objectives.corruption.rows import over_rows, real_tokens
from jaxpt.objectives.corruption.spans import SpanCorruption
from jaxpt.objectives.seq2seq_denoising import check_model, of_pairs, pair_batch
from jaxpt.weights import Cost

KINDS = ("spans", "cells", "context", "stated")
HEADER = 1  # row id of the header; data are in rows 2, 3, ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class TableDenoising(Objective):
    """An encoder-decoder and the mixture.

    Attributes:
      corruption: of A, and the sentinels of all.
      rates: of A, B and C, up to a factor; the two parts of C are equally likely.
      target_length: T, tokens of the targets.
      cell_rate: share of the cells that is hidden.
      cell_tokens: of the longest cell that is ever hidden.
      header, column: how often B hides a header cell, and a column, in place of cells.
      column_rows: rows of the largest table whose columns are hidden.
      stated: how often a cell of C(ii) is one that the context states.
    """

    corruption: SpanCorruption
    rates: tuple[float, float, float] = (0.25, 0.4, 0.35)
    target_length: int = 64
    cell_rate: float = 0.15
    cell_tokens: int = 12
    header: float = 0.15
    column: float = 0.15
    column_rows: int = 8
    stated: float = 0.5

    def __post_init__(self) -> None:
        if len(self.rates) != 3 or min(self.rates) < 0 or sum(self.rates) <= 0:
            raise ValueError(f"need three rates, not negative and not all 0, got {self.rates}")
        if min(self.header, self.column) < 0 or self.header + self.column > 1 or not 0 <= self.stated <= 1:
            raise ValueError(
                f"need shares in [0, 1], got header={self.header}, column={self.column}, stated={self.stated}"
            )
        if not 0 < self.cell_rate <= 1 or self.cell_tokens < 1:
            raise ValueError(
                f"need a rate in (0, 1] of cells of a token or more, got {self.cell_rate}, {self.cell_tokens}"
            )
        if self.column_rows > self.corruption.sentinels:
            raise ValueError(
                f"a column of {self.column_rows} cells needs as many sentinels, not {self.corruption.sentinels}"
            )
        if self.room < self.cell_tokens:
            raise ValueError(
                f"target_length={self.target_length} leaves {self.room} tokens beside {self.corruption.sentinels} sentinels "
                f"and EOS, too few for a cell of {self.cell_tokens}"
            )
        super().__post_init__()

    @property
    def room(self) -> int:
        """Most tokens of cells that are hidden at a time."""
        return self.target_length - 1 - self.corruption.sentinels

    def check(self) -> None:
        check_model(self.model)
        denoising.check_token(max(self.corruption.sentinel, self.corruption.eos_id or 0), self.model.vocab_size)

    def sizes(self, length: int) -> spans.Sizes:
        """Static sizes of inputs and targets made of rows of `length` tokens.

        Raises:
          ValueError: the targets of span corruption are longer than `target_length`.
        """
        needed = spans.sizes(self.corruption, length)[1]
        if needed > self.target_length:
            raise ValueError(f"targets of {length} tokens need target_length={needed}, got {self.target_length}")
        return length + (self.corruption.eos_id is not None), self.target_length

    def prepare(self, key: PRNGKeyArray, batch: dict[str, jax.Array]) -> dict[str, jax.Array]:
        return corrupt(key, batch, self)

    def loss(self, params: Params, batch: dict[str, jax.Array], key: PRNGKeyArray) -> Losses:
        return of_corrupted(params, batch, self)

    def cost(self, params: Params, batch_size: int, sequence_length: int) -> Cost:
        return flops.encoder_decoder_flops(params, self.model, batch_size, *self.sizes(sequence_length))


def loss(params: Params, batch: dict[str, jax.Array], key: PRNGKeyArray, cfg: TableDenoising) -> Losses:
    """Losses of a batch of linearised tables.

    Args:
      batch: inputs; of each token cell_id, row_id, col_id (`data.tables.linear`) and `stated`, 1 in cells that the context
        states, all [B, S]; context_length [B], tokens of the context. What is missing is 0: plain text. segment_ids [B, S],
        0 for padding, and row [B] are optional, see `over_rows`.
    """
    return of_corrupted(params, corrupt(key, batch, cfg), cfg)


def corrupt(key: PRNGKeyArray, batch: dict[str, jax.Array], cfg: TableDenoising) -> dict[str, jax.Array]:
    """What `seq2seq_denoising.pair_batch` returns, [B, I] and [B, T] with (I, T) = cfg.sizes(S); and kind [B], of KINDS."""
    ids, length = batch["inputs"], real_tokens(batch).sum(-1)
    none = jnp.zeros_like(ids)
    marks = [batch.get(name, none) for name in ("cell_id", "row_id", "col_id", "stated")]
    context = batch.get("context_length", none[:, 0])

    def row(key: PRNGKeyArray, *of_row: Array) -> tuple[Array, Array]:
        length, context, cell, row, col, stated = of_row
        return noise_of(key, length, context, cell, row, col, stated, cfg)

    noise, kind = over_rows(row, key, batch, length, context, *marks)
    return hidden(batch, noise, cfg) | {"kind": kind}


def hidden(batch: dict[str, jax.Array], noise: Bool[Array, "B S"], cfg: TableDenoising) -> dict[str, jax.Array]:
    """The pairs that hide these tokens."""
    room = cfg.sizes(noise.shape[1])

    def row(ids: Array, noise: Array, length: Array) -> spans.Pair:
        return spans.apply_sentinels(ids, noise, None, length, cfg.corruption, room)

    pair = jax.vmap(row)(batch["inputs"], noise, real_tokens(batch).sum(-1))
    return pair_batch(pair.inputs, pair.input_length, pair.targets, pair.target_length, start=cfg.corruption.pad_id)


def noise_of(
    key: PRNGKeyArray,
    length: Int[Array, ""],
    context: Int[Array, ""],
    cell: Int[Array, " S"],
    row: Int[Array, " S"],
    col: Int[Array, " S"],
    stated: Int[Array, " S"],
    cfg: TableDenoising,
) -> tuple[Bool[Array, " S"], Int[Array, ""]]:
    """The tokens that are hidden, and the kind that was drawn, as an index of KINDS."""
    size = len(cell)
    rates = np.cumsum([cfg.rates[0], cfg.rates[1], cfg.rates[2] / 2, cfg.rates[2] / 2])
    u = jax.random.uniform(fold(key, "kind"))
    kind = jnp.minimum(jnp.searchsorted(jnp.asarray(rates / rates[-1]), u, side="right"), 3)
    real = jnp.arange(size) < length
    short = real & (cell > 0) & (unit_sizes(jnp.where(real, cell, 0))[cell] <= cfg.cell_tokens)
    data = jnp.where(short & (row > HEADER), cell, 0)

    counts = jnp.asarray(spans.count_table(size, cfg.corruption.density, cfg.corruption.mean_length))[length]
    of_spans = spans.noise_mask(spans.uniforms(key, size), length, counts[0], counts[1])
    of_cells = mask_units(fold(key, "cells"), data, cfg.cell_rate, cfg.room, cfg.corruption.sentinels)
    of_header = first_units(
        jnp.where(short & (row == HEADER), cell, 0), jax.random.uniform(fold(key, "header"), (size + 1,)), 1, cfg.room
    )
    of_column = column(fold(key, "column"), short, jnp.where(real, row, 0), col, cfg)
    which = jax.random.uniform(fold(key, "unit"))
    units = jnp.where(which < cfg.header, of_header, jnp.where(which < cfg.header + cfg.column, of_column, of_cells))
    units = _or(units, of_cells)
    aligned = mask_units(
        fold(key, "stated"), data, cfg.cell_rate, cfg.room, cfg.corruption.sentinels, stated > 0, cfg.stated
    )  # fmt: skip
    title = suffix(fold(key, "context"), context, size, cfg.target_length - 2)
    found = [of_spans, units, _or(title, aligned), aligned]
    return _or(jnp.stack(found)[kind], of_spans), kind


def mask_units(
    key: PRNGKeyArray,
    units: Int[Array, " S"],
    rate: float,
    budget: int,
    most: int,
    preferred: Bool[Array, " S"] | None = None,
    share: float | Float[Array, ""] = 0.5,
) -> Bool[Array, " S"]:
    """All tokens of max(1, round(rate * units)) random units, at most `most`, within a budget of tokens.

    Args:
      units: the unit of each token, see `masking.choose_units`.
      preferred: the tokens of units of which each chosen one is with probability `share`, as long as there are some; the
        others are of the rest, as long as there is one. Without them every unit is equally likely.
    """
    there = unit_sizes(units) > 0
    number = jnp.minimum(positions.count(rate, there.sum()), most)
    priority = jax.random.uniform(fold(key, "priority"), there.shape)
    if preferred is not None:
        liked = jnp.zeros(len(there), bool).at[units].max(preferred) & there
        coins = jax.random.uniform(fold(key, "share"), there.shape) < share
        of_liked = (coins & (jnp.arange(len(there)) < number)).sum()
        of_liked = jnp.clip(of_liked, number - (there & ~liked).sum(), liked.sum())
        first = _best(priority, liked, of_liked) | _best(priority, there & ~liked, number - of_liked)
        priority = jnp.where(first, priority, 1 + priority)
    return first_units(units, priority, number, budget)


def _best(priority: Array, among: Bool[Array, " U"], number: Int[Array, ""]) -> Bool[Array, " U"]:
    """The `number` smallest of some."""
    rank = jnp.argsort(jnp.argsort(jnp.where(among, priority, jnp.inf)))
    return among & (rank < number)


def column(
    key: PRNGKeyArray, short: Bool[Array, " S"], row: Int[Array, " S"], col: Int[Array, " S"], cfg: TableDenoising
) -> Bool[Array, " S"]:
    """The cells of a random column below its header; none where the table has too many rows or the column a long cell."""
    size, data = len(row), row > HEADER
    long = jnp.zeros(size + 1, bool).at[jnp.where(data, col, 0)].max(data & ~short)
    whole = jnp.where(data & ~long[col] & (row.max() - HEADER <= cfg.column_rows), col, 0)
    return first_units(whole, jax.random.uniform(key, (size + 1,)), 1, cfg.room)


def suffix(key: PRNGKeyArray, context: Int[Array, ""], size: int, most: int) -> Bool[Array, " S"]:
    """The last 1 to `context` tokens of the context, `most` at most, each number equally likely."""
    longest = jnp.minimum(context, most)
    number = jnp.minimum(1 + jnp.floor(jax.random.uniform(key) * longest).astype(jnp.int32), longest)
    at = jnp.arange(size)
    return (at < context) & (at >= context - number)


def _or(noise: Bool[Array, " S"], other: Bool[Array, " S"]) -> Bool[Array, " S"]:
    """The first, or the other where it hides nothing."""
    return jnp.where(noise.any(), noise, other)


def of_corrupted(params: Params, batch: dict[str, jax.Array], cfg: TableDenoising) -> Losses:
    """The same of what `corrupt` returns. The metrics loss_spans, loss_cells, ... are the means over each kind's targets."""
    losses = of_pairs(params, batch, cfg.model)
    found = denoising.by_group(losses, {name: batch["kind"] == i for i, name in enumerate(KINDS)})
    return losses._replace(metrics=losses.metrics | found)
