"""Bytes and speed of steps: what the compiler counts holds what lives between updates, and less is less."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxpt import weights
from jaxpt.measure import measure, peak_bytes, random_batch
from jaxpt.models import decoder
from jaxpt.pretrain import DataConfig, Pretrain
from jaxpt.sharding import MeshConfig


def run(form: weights.Form) -> Pretrain:
    model = decoder.Config(width=64, heads=2, ffn=256, layers=2, weights=(("blocks", form),))
    data = DataConfig(sequence_length=16, batch_size=8)
    return Pretrain(model=model, data=data, mesh=MeshConfig(data=1, fsdp=-1))


def test_low_rank_takes_fewer_bytes_than_dense():
    found = measure({"dense": run(weights.Dense()), "low rank": run(weights.LowRank(4))}, rounds=1, updates=1)
    for each in found.values():
        assert each.peak > 0 and each.tokens_per_second > 0
    assert found["low rank"].persistent < found["dense"].persistent
    assert found["low rank"].peak < found["dense"].peak


def test_the_peak_counts_arguments_results_and_temporaries():
    x = jnp.ones((256, 256))
    compiled = jax.jit(lambda x: x @ x).lower(x).compile()
    assert peak_bytes(compiled) >= 2 * x.nbytes
    donated = jax.jit(lambda x: x + 1, donate_argnums=0).lower(x).compile()
    assert peak_bytes(donated) < 2 * x.nbytes


def test_the_batch_is_next_token_prediction_on_random_ids():
    batch = random_batch(run(weights.Dense()))
    assert (batch["inputs"][:, 1:] == batch["labels"][:, :-1]).all()
    assert {x.shape for x in batch.values()} == {(8, 16)}
