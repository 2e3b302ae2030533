"""Cells are hidden whole, as many as the rate says, half of the aligned ones are stated, and nothing of a row is lost."""

from __future__ import annotations

import dataclasses
import functools
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpt.data.tables.batches import TableData, Tables
from jaxpt.data.tables.sources import SCHEMAS, entity_tables
from jaxpt.data.tables.table import Table, TableText
from jaxpt.data.vocabularies import ByteVocabulary
from jaxpt.interop.families import FAMILIES
from jaxpt.interop.names import Arrays, from_state
from jaxpt.interop.settings import Settings
from jaxpt.models import decoder, encoder_decoder
from jaxpt.objectives import pairs, table_denoising
from jaxpt.objectives.corruption import over_rows, spans
from jaxpt.objectives.corruption.spans import SpanCorruption
from jaxpt.objectives.pairs import Pairs
from jaxpt.objectives.table_denoising import KINDS, TableDenoising, corrupt

V, S = 300, 240
SPANS = SpanCorruption(sentinel=V - 1, sentinels=20, eos_id=1)
MODEL = encoder_decoder.Config(vocab_size=V, layers=1, width=16, heads=2, ffn=24, embedding_stddev=0.3)
CFG = TableDenoising(model=MODEL, corruption=SPANS, target_length=100)
DATA = Tables(TableData(sequence_length=S), ByteVocabulary())
KEY = jax.random.key(4)
LONG = TableText(
    Table(("a", "b"), (("x" * 11, "y" * 12), ("z", "w"))), ""
)  # with the space before it, 12 and 13 tokens
MANY = TableText(Table(("h", "i"), tuple((str(i), "v") for i in range(10))), "")
PLAIN = {name: np.zeros_like(x) for name, x in DATA.row(LONG).items()} | {
    "inputs": np.arange(S) % 50 + 10, "segment_ids": np.ones(S, np.int32)
}  # fmt: skip
GOLDEN = Path(__file__).parent.parent / "golden" / "t5_1_1.npz"
draw = jax.jit(corrupt, static_argnums=2)


def only(*rates, **own):
    return dataclasses.replace(CFG, rates=rates, **own)


def unit_rows():
    rows = [DATA.row(unit) for unit in entity_tables(SCHEMAS[:16], 2, 0)]
    return [row for row in rows if row is not None and row["segment_ids"].sum() < S]


def stack(rows):
    return {name: jnp.asarray(np.stack([row[name] for row in rows])) for name in rows[0]}


@functools.cache
def batch():
    return stack([*unit_rows(), DATA.row(LONG), DATA.row(MANY), PLAIN])


def noise(key, batch, cfg):
    """[B, S] and the kinds."""
    marks = [batch[name] for name in ("context_length", "cell_id", "row_id", "col_id", "stated")]
    row = lambda key, *x: table_denoising.noise_of(key, *x, cfg)  # noqa: E731
    return over_rows(row, key, batch, batch["segment_ids"].sum(-1), *marks)


drawn = jax.jit(noise, static_argnums=2)


@pytest.mark.parametrize("seed", range(3))
def test_inputs_and_targets_hold_the_row_exactly(seed):
    found = {name: np.asarray(x) for name, x in draw(jax.random.key(seed), batch(), CFG).items()}
    assert (found["inputs"].shape[1], found["labels"].shape[1]) == CFG.sizes(S) == (S + 1, 100)
    assert set(found["kind"].tolist()) == {0, 1, 2, 3}
    for i, row in enumerate(np.asarray(batch()["inputs"])):
        pair = spans.Pair(
            found["inputs"][i], found["labels"][i], found["segment_ids"][i].sum(), found["target_segments"][i].sum()
        )
        text = row[: int(batch()["segment_ids"][i].sum())]
        np.testing.assert_array_equal(spans.restore(pair, SPANS), text)
        assert pair.target_length > 2 and found["loss_weight"][i].sum() == pair.target_length
        assert found["decoder_inputs"][i].tolist() == [0, *found["labels"][i][:-1].tolist()]


def test_no_cell_is_split_and_as_many_are_hidden_as_the_rate_says():
    rows, cell, line = batch(), np.asarray(batch()["cell_id"]), np.asarray(batch()["row_id"])
    cfg = only(0, 1, 0, header=0.0, column=0.0)
    everywhere = np.zeros(cell.shape)
    for seed in range(20):
        hidden = np.asarray(drawn(jax.random.key(seed), rows, cfg)[0])
        everywhere += hidden
        for i in range(len(cell) - 1):
            data = np.unique(cell[i][line[i] > 1])
            sizes = {int(c): int((cell[i] == c).sum()) for c in data}
            allowed = [c for c, size in sizes.items() if size <= 12]
            chosen = [c for c in allowed if hidden[i][cell[i] == c].any()]
            assert all(hidden[i][cell[i] == c].all() for c in chosen)
            assert len(chosen) == max(1, round(0.15 * len(allowed)))
            assert hidden[i].sum() == sum(sizes[c] for c in chosen)
    long = cell[-3] == 4  # y * 12, which with its space is 13 tokens
    assert long.sum() == 13 and not everywhere[-3][long].any() and everywhere[-3][cell[-3] == 3].all()
    assert everywhere[-2][line[-2] > 1].sum() and everywhere[-1].any()  # plain text is hidden in spans


@pytest.mark.parametrize(("own", "kind"), [({"header": 1.0, "column": 0.0}, 1), ({"header": 0.0, "column": 1.0}, 2)])
def test_a_header_cell_or_a_column_is_hidden_whole(own, kind):
    hidden = np.asarray(drawn(KEY, batch(), only(0, 1, 0, **own))[0])
    for i, (cell, line, col) in enumerate(
        zip(*(np.asarray(batch()[n]) for n in ("cell_id", "row_id", "col_id")), strict=True)
    ):
        units = set(cell[hidden[i]].tolist())
        if not cell.any():
            continue
        if kind == 1:
            assert len(units) == 1 and set(line[hidden[i]].tolist()) == {1}
        elif i == len(hidden) - 2:  # ten rows are too many: cells in their place
            assert len(units) == 3
        else:
            columns = set(col[hidden[i]].tolist())
            assert len(columns) == 1 and set(line[hidden[i]].tolist()) == set(range(2, line.max() + 1))
            if i == len(hidden) - 3:
                assert columns == {1} or len(units) == 1  # the other column has a long cell
        assert all(hidden[i][cell == c].all() for c in units)


def test_half_of_the_aligned_cells_are_stated():
    """4,096 draws of six of 40 cells, of which 20 are stated."""
    cells = jnp.asarray(np.where(np.arange(120) % 3 < 2, np.repeat(np.arange(1, 41), 3), 0))

    @jax.jit
    @jax.vmap
    def hidden(key, likes, share):
        return table_denoising.mask_units(key, cells, 0.15, 90, 20, (cells > 0) & (cells <= likes), share)

    keys = jax.random.split(KEY, 4096)
    found = np.asarray(hidden(keys, jnp.full(4096, 20), jnp.full(4096, 0.5)))
    units = np.stack([found[:, np.asarray(cells) == c].all(1) for c in range(1, 41)], 1)
    assert (units.sum(1) == 6).all() and (found.sum(1) == 12).all()
    assert abs(units[:, :20].sum() / units.sum() - 0.5) <= 0.03
    assert abs(units[:, :20].sum(1).var() - 6 / 4) < 0.15  # each cell by itself, not half of them always
    assert (np.abs(units.mean(0) - 0.15) < 0.03).all()
    few = np.asarray(hidden(keys, jnp.full(4096, 1), jnp.full(4096, 1.0)))
    assert few[:, 0].all() and (few.sum(1) == 12).all()  # the rest where there is one alone


def test_aligned_cells_of_real_rows_are_stated_half_the_time():
    """Rows of three stated cells and others, of which two or three are hidden: each by the same coin."""
    found = [row for row in unit_rows() if len(np.unique(row["cell_id"][row["stated"] > 0])) == 3]
    rows = {name: jnp.tile(x, (600 // len(found), *[1] * (x.ndim - 1))) for name, x in stack(found).items()}
    noise, kind = (np.asarray(x) for x in drawn(KEY, rows, only(0, 0, 1)))
    chosen, stated = noise & (kind == 3)[:, None], np.asarray(rows["stated"]) > 0
    cell = np.asarray(rows["cell_id"])
    units = [len(np.unique(c[n])) for c, n in zip(cell, chosen, strict=True)]
    told = [len(np.unique(c[n & t])) for c, n, t in zip(cell, chosen, stated, strict=True)]
    assert sum(units) > 400 and abs(sum(told) / sum(units) - 0.5) < 0.08


def test_the_context_goes_from_some_word_on():
    lengths = {}
    for seed in range(40):
        hidden, kind = (np.asarray(x) for x in drawn(jax.random.key(seed), batch(), only(0, 0, 1)))
        for i in np.flatnonzero(kind == 2):
            context = int(batch()["context_length"][i])
            if context:
                number = hidden[i].sum()
                assert hidden[i][context - number : context].all() and 1 <= number <= context
                lengths.setdefault(i, []).append(number / context)
            elif batch()["cell_id"][i].any():
                assert (np.asarray(batch()["row_id"])[i][hidden[i]] > 1).all()
    assert min(map(min, lengths.values())) < 0.1 and max(map(max, lengths.values())) == 1.0


def test_kinds_are_drawn_at_their_rates_and_counted():
    many = {name: jnp.broadcast_to(x[0], (8192, *x.shape[1:])) for name, x in batch().items()}
    kind = np.asarray(jax.jit(lambda: noise(KEY, many, CFG)[1])())  # what is hidden is not computed
    for share, rate in zip(np.bincount(kind, minlength=4) / 8192, (0.25, 0.4, 0.175, 0.175), strict=True):
        assert abs(share - rate) < 4.5 * np.sqrt(rate * (1 - rate) / 8192)
    params = encoder_decoder.init(jax.random.key(0), MODEL)
    made = draw(KEY, batch(), CFG)
    found = jax.jit(CFG.loss)(params, made, KEY)
    for i, name in enumerate(KINDS):
        own = np.asarray(made["kind"]) == i
        np.testing.assert_allclose(found.metrics[f"loss_{name}"][0], np.asarray(found.sums)[own].sum(), rtol=1e-5)
    again, other = (np.asarray(CFG.prepare(jax.random.key(k), batch())["inputs"]) for k in (4, 5))
    np.testing.assert_array_equal(again, made["inputs"])
    assert (again != other).any()


def test_spans_alone_are_t5():
    """The same law as T5's span corruption of the same text, to the count, and the loss of the same pairs."""
    text = {"inputs": batch()["inputs"], "segment_ids": batch()["segment_ids"]}
    made = draw(KEY, text, only(1, 0, 0))
    t5 = over_rows(
        lambda key, ids, n: spans.corrupt(key, ids, n, SPANS), KEY, text, text["inputs"], text["segment_ids"].sum(-1)
    )
    np.testing.assert_array_equal(made["segment_ids"].sum(1), t5.input_length)
    np.testing.assert_array_equal(made["inputs"][:, : t5.inputs.shape[1]], t5.inputs)
    np.testing.assert_array_equal(made["labels"][:, : t5.targets.shape[1]], t5.targets)


def test_the_loss_of_pairs_is_that_of_the_recorded_t5():
    """transformers' T5 1.1 with the same weights; its logits were recorded."""
    with np.load(GOLDEN) as file:
        arrays = dict(file)
    state = Arrays({k.removeprefix("weight/"): v for k, v in arrays.items() if k.startswith("weight/")})
    family = FAMILIES["t5"]
    cfg = family.read(Settings(json.loads(str(arrays["settings"])), "t5_1_1"), set(state.names))
    params = from_state(state, family.spec(cfg), family.pieces(cfg))
    labels = arrays["targets"][:, 1:]
    logs = np.asarray(jax.nn.log_softmax(arrays["logits"][:, :-1]))
    expected = -np.take_along_axis(logs, np.asarray(labels)[..., None], -1)[..., 0].sum(1)
    for i in range(len(labels)):
        one = {
            "inputs": arrays["ids"][i : i + 1], "segment_ids": arrays["real"][i : i + 1], "targets": labels[i : i + 1],
            "target_segments": jnp.ones((1, labels.shape[1]), jnp.int32),
        }  # fmt: skip
        objective = Pairs(model=cfg, target_length=labels.shape[1], start_id=int(arrays["targets"][i, 0]))
        found = pairs.loss(params, {name: jnp.asarray(x) for name, x in one.items()}, None, objective)
        assert float(found.weights[0]) == labels.shape[1]
        np.testing.assert_allclose(found.sums[0] / found.weights[0], expected[i] / labels.shape[1], atol=1e-4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rates": (0.0, 0.0, 0.0)}, "three rates, not negative and not all 0"),
        ({"rates": (1.0, -1.0, 1.0)}, "three rates"),
        ({"header": 0.7, "column": 0.7}, "need shares in"),
        ({"stated": 2.0}, "stated=2.0"),
        ({"cell_rate": 0.0}, "need a rate in"),
        ({"column_rows": 21}, "a column of 21 cells needs as many sentinels, not 20"),
        ({"target_length": 32}, "target_length=32 leaves 11 tokens beside 20 sentinels"),
        ({"model": decoder.Config()}, "needs an encoder_decoder.Config"),
        ({"model": dataclasses.replace(MODEL, vocab_size=200)}, "token 299, the model has vocab_size=200"),
    ],
)
def test_settings_that_do_not_fit_are_named(change, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(CFG, **change)
    with pytest.raises(ValueError, match="targets of 700 tokens need target_length="):
        dataclasses.replace(CFG, corruption=dataclasses.replace(SPANS, sentinels=50, density=0.2)).sizes(700)
    with pytest.raises(ValueError, match="needs an encoder_decoder.Config"):
        Pairs(model=decoder.Config(), target_length=8)


def test_operations_are_those_of_the_same_shapes():
    spec = CFG.spec()
    mixture = CFG.cost(spec, 4, S)
    assert mixture == Pairs(model=MODEL, target_length=100).cost(spec, 4, S + 1)
