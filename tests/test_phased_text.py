"""Batches change shape at their shares of the run with equal tokens, are a function of (seed, step), and resume."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from jaxpt import pretrain
from jaxpt.models import decoder
from jaxpt.phased_text import PhasedData
from jaxpt.training.run import RunConfig


class Part:
    """A loader that says which of its updates a batch is."""

    def __init__(self, number, length, rows):
        self.number, self.shape = number, (rows, length)
        self.fingerprint = f"{number}{self.shape}"

    def batch(self, step):
        return {"inputs": np.full(self.shape, 100 * self.number + step)}

    def batches(self, start_step=0):
        return (self.batch(step) for step in itertools.count(start_step))

    def ledger(self, step):
        return {"tokens": float(step * np.prod(self.shape)), "unique_tokens": float(step)}


def loader(**settings):
    from jaxpt.phased_text import PhasedLoader

    cfg = PhasedData(sequence_length=8, batch_size=8, steps=20, **settings)
    return PhasedLoader(cfg, tuple(Part(i, length, rows) for i, (_, length, rows) in enumerate(cfg.phases)))


def test_lengths_change_at_their_shares_with_equal_tokens():
    cfg = PhasedData(sequence_length=128, batch_size=64, steps=1000)
    assert cfg.phases == ((0, 128, 64), (700, 256, 32), (900, 512, 16))
    assert len({length * rows for _, length, rows in cfg.phases}) == 1


def test_rows_grow_from_their_share_until_the_second_length():
    cfg = PhasedData(sequence_length=8, batch_size=16, steps=100, grow=0.25, stages=4)
    assert cfg.phases == ((0, 8, 4), (17, 8, 8), (35, 8, 12), (52, 8, 16), (70, 16, 8), (90, 32, 4))


@pytest.mark.parametrize("start", [0, 5, 14, 19])
def test_a_resumed_run_reads_what_the_whole_run_reads(start):
    whole = loader(grow=0.5, stages=2)
    for step, batch in zip(range(start, 24), whole.batches(start), strict=False):
        again = whole.batch(step)
        assert all(np.array_equal(batch[name], again[name]) for name in batch | again), step


def test_the_mask_rate_falls_on_a_line():
    batches = loader()
    rates = [batches.batch(step)["mask_rate"] for step in (0, 10, 20, 30)]
    np.testing.assert_allclose([r[0] for r in rates], [0.3, 0.225, 0.15, 0.15], rtol=1e-6)
    assert [len(r) for r in rates] == [8, 8, 2, 2]
    assert "mask_rate" not in loader(mask_rate=None).batch(0)


def test_tokens_are_counted_over_phases():
    assert loader().ledger(16)["tokens"] == 16 * 64
    assert loader().fingerprint != loader(mask_rate=None).fingerprint


def test_every_update_has_the_size_of_its_batch_and_is_counted_with_it(monkeypatch, tmp_path):
    """A run's operations are the sum over its updates, each of its own size; a batch is what `batch_shapes` says."""
    data = PhasedData(
        corpora=(f"files:{tmp_path}/*.txt",), vocabulary="bytes", sequence_length=8, batch_size=8, steps=10, grow=0.5,
        stages=2, validation=0.3, evaluation_tokens=64,
    )  # fmt: skip
    monkeypatch.setenv("JAXPT_CACHE", str(tmp_path / "cache"))
    for i in range(20):
        (tmp_path / f"{i}.txt").write_text(f"{i} " + "words that are read " * 9)
    assert [data.size_at(t) for t in (0, 3, 6, 7, 9)] == [(4, 8), (8, 8), (8, 8), (4, 16), (2, 32)]
    loader = data.open(260).loader()
    for step in (0, 8):
        batch, said = loader.batch(step), data.batch_shapes(*data.size_at(step))
        assert {name: (batch[name].shape, batch[name].dtype) for name in said} == {
            name: (x.shape, x.dtype) for name, x in said.items()
        }
    model = decoder.Config(vocab_size=260, layers=1, width=8, heads=2, ffn=8)
    cfg = pretrain.Pretrain(model=model, data=data, run=RunConfig(steps=10, quiet=True))
    found = pretrain.run(cfg)
    each = [pretrain.flops_per_step(cfg)(found.state.params, t).nominal for t in range(10)]
    assert len(set(each)) > 2 and found.ledger.flops_nominal == sum(map(int, each))


def test_schedules_that_cannot_be_are_refused():
    with pytest.raises(ValueError, match="rising shares"):
        PhasedData(lengths=((0.1, 1),))
    with pytest.raises(ValueError, match="3 times longer"):
        PhasedData(batch_size=16, lengths=((0.0, 1), (0.5, 3)))
    with pytest.raises(ValueError, match="0 < grow <= 1"):
        PhasedData(grow=0.0)
