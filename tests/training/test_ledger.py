"""The ledger against counts made by hand and by XLA."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpt import optim, weights
from jaxpt.core import spec as specs
from jaxpt.models import decoder
from jaxpt.models.flops import decoder_flops
from jaxpt.training import state as states
from jaxpt.training.ledger import Ledger, cost_of, lm_flops, memory_model, persistent_bytes
from jaxpt.weights import Cost, pruning

CFG = decoder.Config(vocab_size=50, layers=3, width=16, heads=2, ffn=40)
B, S = 4, 32
LINEAR = 4 * 16 * 16 + 3 * 16 * 40


def test_dense_decoder_by_hand():
    found = decoder_flops(decoder.spec(CFG), CFG, B, S)
    by_hand = 6 * B * S * (3 * LINEAR + 50 * 16) + 6 * 3 * B * S * S * 2 * 8
    assert found == Cost(by_hand, by_hand)


def test_specs_shapes_and_arrays_count_alike_and_a_tied_head_counts_too():
    spec = decoder.spec(CFG)
    costs = [decoder_flops(t, CFG, B, S) for t in (spec, specs.abstract(spec), specs.init(jax.random.key(0), spec))]
    tied = dataclasses.replace(CFG, tied_head=True)
    assert costs[0] == costs[1] == costs[2] == decoder_flops(decoder.spec(tied), tied, B, S)


def test_a_full_second_forward_pass_costs_a_third_more_in_the_blocks():
    cfg = dataclasses.replace(CFG, remat="full")
    found, head = decoder_flops(decoder.spec(cfg), cfg, B, S), 6 * B * S * 50 * 16
    assert found.executed - head == pytest.approx((found.nominal - head) * 4 / 3)


def test_grouped_heads_and_long_heads():
    cfg = dataclasses.replace(CFG, heads=4, kv_heads=2, head_dim=8)
    matrices = 2 * 16 * 32 + 2 * 16 * 16 + 3 * 16 * 40
    by_hand = 6 * B * S * (3 * matrices + 50 * 16) + 6 * 3 * B * S * S * 4 * 8
    assert decoder_flops(decoder.spec(cfg), cfg, B, S).nominal == by_hand


def test_sparse_low_rank_is_cheaper_in_name_only():
    cfg = dataclasses.replace(CFG, weights=(("blocks/*", weights.SparseLowRank(rank=2, density=0.1)),))
    found, dense = decoder_flops(decoder.spec(cfg), cfg, B, S), decoder_flops(decoder.spec(CFG), CFG, B, S)
    entries = 3 * (4 * (2 * 32 + 25) + 3 * (2 * 56 + 64))
    assert found.nominal == 6 * B * S * (entries + 50 * 16) + 6 * 3 * B * S * S * 16
    assert found.nominal < dense.nominal < found.executed


def test_xla_counts_about_the_same_for_a_wide_model():
    cfg = decoder.Config(vocab_size=512, layers=1, width=128, heads=2, ffn=352, attention="xla")

    def loss(params, ids):
        hidden = decoder.hidden_states(params, ids, cfg).final
        return jnp.square(decoder.logits(params, hidden, cfg)).sum()

    params = specs.abstract(decoder.spec(cfg))
    compiled = jax.jit(jax.grad(loss)).lower(params, jax.ShapeDtypeStruct((2, 64), jnp.int32)).compile()
    ours = decoder_flops(params, cfg, 2, 64).nominal
    assert compiled.cost_analysis()["flops"] == pytest.approx(ours, rel=0.1)


def test_memory_as_the_paper_counts_it_and_as_it_is():
    cfg = dataclasses.replace(CFG, weights=(("blocks/*", weights.SparseLowRank(rank=2, density=0.1)),))
    spec = decoder.spec(cfg)
    count, nnz = specs.count(spec), 3 * (4 * 25 + 3 * 64)
    assert memory_model(spec) == {
        "weights": 2 * count,
        "optimizer": 4 * count,
        "indices": 8 * nnz,
        "total": 6 * count + 8 * nnz,
    }
    assert memory_model(spec, weight_bytes=4, adam_bytes=8, index_bytes=4)["total"] == 12 * count + 4 * nnz
    state = states.create(specs.init(jax.random.key(0), spec), optim.adam(1e-3))
    assert persistent_bytes(state) == 12 * count + 4 * nnz + 4  # Adam counts updates
    assert Ledger().of(state).parameters == count


@pytest.mark.parametrize(
    ("width", "ffn", "layers", "rank", "heads", "gigabytes"),
    [
        (512, 1376, 8, 128, 8, 0.27),
        (768, 2048, 12, 256, 12, 0.60),
        (1024, 2736, 24, 256, 16, 1.24),
        (2048, 5461, 24, 512, 32, 4.16),
    ],
    ids=["60m", "130m", "350m", "1b"],
)
def test_sltrain_memory_of_the_papers_table(width, ffn, layers, rank, heads, gigabytes):
    form = weights.SparseLowRank(rank=rank, density=0.03)
    cfg = decoder.Config(
        vocab_size=32000, width=width, ffn=ffn, layers=layers, heads=heads, weights=(("blocks/*", form),)
    )
    assert memory_model(decoder.spec(cfg))["total"] / 1e9 == pytest.approx(gigabytes, abs=0.01)


def test_memory_counts_frozen_weights_without_moments_and_masks_by_their_bits():
    count = lambda form: memory_model({"w": form.spec(24, 16, ("mlp", "embed"))})  # noqa: E731
    assert count(weights.Masked(0.5)) == {"weights": 768, "optimizer": 1536, "indices": 48, "total": 2352}
    assert count(weights.ReLoRA(rank=2)) == {"weights": 928, "optimizer": 320, "indices": 0, "total": 1248}


@pytest.mark.parametrize(
    ("sizes", "tokens", "expected"),
    [
        ({"layers": 12, "width": 768}, 2.5e9, {0: 2.42e18, 0.5: 1.78e18, 0.75: 1.46e18}),
        ({"layers": 24, "width": 2048}, 26e9, {0: 2.36e20, 0.5: 1.42e20, 0.75: 9.46e19}),
    ],
    ids=["gpt2-small", "gpt3-xl"],
)
def test_training_operations_of_spdf_table(sizes, tokens, expected):
    """Its six numbers to half a per cent, and the saving of the blocks alone, which is not that of the model."""
    run = lambda s: lm_flops(**sizes, length=2048, vocab=50_257, sparsity=s, tokens=tokens)  # noqa: E731
    for sparsity, flops in expected.items():
        assert run(sparsity) == pytest.approx(flops, rel=5e-3)
    assert run(0) / run(0.75) < 2.6 and (run(0) - run(1)) / (run(0.75) - run(1)) == pytest.approx(4)
    with pytest.raises(ValueError, match=r"sparsity 1\.5 is not between 0 and 1"):
        run(1.5)


def test_a_masked_decoder_costs_its_active_entries_in_name_and_everything_in_fact():
    """For specs, shapes and arrays alike; after pruning, arrays are counted as they are."""
    cfg = dataclasses.replace(CFG, weights=(("blocks/*", weights.Masked(0.75)),))
    spec, dense = decoder.spec(cfg), decoder_flops(decoder.spec(CFG), CFG, B, S)
    params = specs.init(jax.random.key(0), spec)
    costs = [decoder_flops(t, cfg, B, S) for t in (spec, specs.abstract(spec), params)]
    saved = 6 * B * S * 3 * LINEAR * 0.75
    assert costs[0] == costs[1] == costs[2] == Cost(dense.nominal - saved, dense.executed)
    pruned = decoder_flops(pruning.prune(params, 0.125), cfg, B, S)
    assert pruned.nominal == dense.nominal - 6 * B * S * 3 * LINEAR * 0.875


def test_sums_of_operations_are_never_rounded():
    big, ledger = Cost(float(2**53), 3.0), Ledger()
    for step in range(1, 6):
        ledger = ledger.after(step, big)
    assert ledger.flops_nominal == 5 * 2**53 and ledger.flops_executed == 15 and ledger.steps == 5
    assert Ledger(**ledger.with_tokens({"tokens": 7.5, "unique_tokens": 2.0}).to_dict()).tokens == 7.5


def test_the_cost_may_be_a_function_of_the_parameters():
    assert cost_of(None, {}) == Cost(0, 0)
    assert cost_of(Cost(1, 2), {}) == Cost(1, 2)
    assert cost_of(lambda p, t: Cost(float(np.size(p)), t), np.zeros(5), 3) == Cost(5, 3)
