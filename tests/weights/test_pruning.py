"""Pruning plans and magnitude masks (arXiv 2501.12486): the table of averages, exact counts, masks that only shrink."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxpt import weights
from jaxpt.core import spec as specs
from jaxpt.weights import pruning
from jaxpt.weights.pruning import PruneSchedule, magnitude_masks, plan

N0, BATCH = 1_000_000, 1000
GEOMETRIC = {  # sparsity: Nbar / N0, Nbar / N_final, shares of the tokens in the three phases
    0.2: (0.8926, 1.116, (0.223, 0.498, 0.279)),
    0.4: (0.7662, 1.277, (0.192, 0.489, 0.319)),
    0.6: (0.6103, 1.526, (0.153, 0.466, 0.381)),
    0.8: (0.3991, 1.995, (0.100, 0.401, 0.499)),
}


@pytest.mark.parametrize("sparsity", GEOMETRIC)
@pytest.mark.parametrize("events", [1000, 50])
def test_the_table_of_the_paper(sparsity, events):
    average, ratio, phases = GEOMETRIC[sparsity]
    found = plan(PruneSchedule(sparsity, events=events), N0, BATCH, updates=100_000)
    assert found.average / N0 == pytest.approx(average, abs=1e-3)
    assert found.average / (N0 * (1 - sparsity)) == pytest.approx(ratio, abs=2e-3)
    assert found.phases == pytest.approx(phases, abs=1e-3)
    assert found.averages["tokens"] == pytest.approx(found.average, rel=1e-3)


@pytest.mark.parametrize(
    ("schedule", "average"),
    [
        ({"s_final": 0.2, "unit": "step"}, 0.8981),
        ({"s_final": 0.4, "unit": "step"}, 0.7915),
        ({"s_final": 0.6, "unit": "step"}, 0.6774),
        ({"s_final": 0.8, "unit": "step"}, 0.5485),
        ({"s_final": 0.2, "spacing": "compute"}, 0.8907),
        ({"s_final": 0.4, "spacing": "compute"}, 0.7580),
        ({"s_final": 0.6, "spacing": "compute"}, 0.5905),
        ({"s_final": 0.8, "spacing": "compute"}, 0.3646),
        ({"s_final": 0.8, "curve": "cubic"}, 1.82 * 0.2),
        ({"s_final": 0.8, "curve": "linear"}, 2.14 * 0.2),
    ],
    ids=str,
)
def test_other_units_spacings_and_curves(schedule, average):
    schedule = PruneSchedule(**schedule, events=1000)
    found = plan(schedule, N0, BATCH, updates=100_000)
    tolerance = 1e-3 if schedule.curve == "geometric" else 2e-3  # the card gives two decimals of the ratio
    assert found.average / N0 == pytest.approx(average, abs=tolerance)
    assert found.averages[schedule.spacing] == pytest.approx(found.average, rel=1e-3)


@settings(max_examples=60, deadline=None)
@given(
    st.floats(0, 0.95), st.sampled_from(sorted(pruning.CURVES)), st.sampled_from(pruning.SPACINGS),
    st.sampled_from(pruning.UNITS), st.integers(1, 80), st.integers(20, 3000),
)  # fmt: skip
def test_the_compute_is_met_to_one_batch_and_densities_only_fall(sparsity, curve, spacing, unit, events, updates):
    schedule = PruneSchedule(sparsity, curve=curve, spacing=spacing, unit=unit, events=events)
    compute = 6.0 * N0 * BATCH * updates
    found = plan(schedule, N0, BATCH, compute=compute)
    by_hand = sum(6.0 * N0 * d * BATCH for d in found.densities())
    assert found.compute == pytest.approx(by_hand) and abs(by_hand - compute) <= 6.0 * N0 * BATCH
    steps, densities = [t for t, _ in found.events], [d for _, d in found.events]
    assert steps == sorted(set(steps)) and all(1 <= t < found.updates for t in steps)
    assert densities == sorted(densities, reverse=True)
    if found.events:
        assert densities[-1] == pytest.approx(1 - sparsity)
    assert sum(found.phases) == pytest.approx(1)


def test_without_sparsity_a_plan_is_a_dense_run():
    found = plan(PruneSchedule(0.0), N0, BATCH, compute=6e12)
    assert found.events == () and found.average == N0 and found.tokens == 6e12 / (6 * N0)


def test_where_the_phases_begin():
    found = plan(PruneSchedule(0.8, events=50), N0, BATCH, updates=10_000)
    first, last = found.events[0][0], found.events[-1][0]
    assert first == pytest.approx(
        0.100 * 10_000 + 0.401 * 10_000 / 100, abs=15
    )  # half an interval after the dense phase
    assert last == pytest.approx(0.501 * 10_000 - 0.401 * 10_000 / 100, abs=15)
    dense_phase = 6 * N0 * BATCH * 0.1 * 10_000
    assert dense_phase == pytest.approx(0.25 * found.compute, rel=3e-3)
    ratios = np.diff(np.log([1.0, *(d for _, d in found.events)]))
    np.testing.assert_allclose(ratios, np.log(0.2) / 50)  # the same share of what is left


def test_average_parameters_weighs_by_tokens():
    assert pruning.average_parameters([1.0, 0.5], 8, 100) == 75.0
    assert pruning.average_parameters([1.0, 0.5], np.array([1.0, 3.0]), 100) == pytest.approx(62.5)


def tree(seed=0, dtype="float32"):
    spec = {
        "up": weights.Masked(0.0).spec(12, 10, ("mlp", "embed"), (3,), dtype),
        "down": weights.Masked(0.0).spec(10, 12, ("embed", "mlp"), (3,), dtype),
        "head": weights.Dense().spec(7, 10, ("vocab", "embed")),
    }
    return specs.init(jax.random.key(seed), spec)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_masks_are_the_top_k_with_exact_counts_and_only_shrink(dtype):
    """Against a brute-force argsort, through training that moves the weights between events; ties in bfloat16."""
    params, rng = tree(dtype=dtype), np.random.default_rng(0)
    before = {p: np.ones(params[p].w.shape, bool) for p in ("up", "down")}
    for density in (0.9, 0.55, 0.55, 0.2, 0.0):
        for p in before:
            noise = jnp.asarray(rng.normal(size=params[p].w.shape), params[p].w.dtype) * 0.1
            params[p] = params[p].replace(
                w=params[p].w + noise
            )  # entries that are off get one too, as by a faulty optimizer
        values = {p: np.abs(np.asarray(params[p].w, np.float32)) for p in before}
        params = pruning.prune(params, density)
        for p, mask in before.items():
            active, count = np.asarray(params[p].active()), round(density * 120)
            assert active.sum((1, 2)).tolist() == [count] * 3 and not (active & ~mask).any()
            score = np.where(mask, values[p], -1).reshape(3, -1)
            for layer in range(3):
                chosen = np.argsort(-score[layer], kind="stable")[:count]
                assert sorted(chosen) == np.flatnonzero(active[layer]).tolist()
            assert (np.asarray(params[p].w)[~active] == 0).all()
            before[p] = active
        assert pruning.active(params) == 6 * round(density * 120)
    assert pruning.size(params) == 720
    np.testing.assert_array_equal(params["head"].w, tree()["head"].w)


def test_global_ranking_compares_matrices_and_may_empty_one():
    params = tree()
    params["down"] = params["down"].replace(w=params["down"].w * 1e-3)
    found = pruning.prune(params, 0.5, scope="global")
    assert pruning.active(found) == 360 and pruning.active(found, "down") == 0
    assert pruning.prune(params, 0.5, where="up")["down"].entries() == 120
    scores = {"a": jnp.arange(4.0).reshape(2, 2), "b": -jnp.arange(4.0).reshape(1, 2, 2) - 0.5}
    masks = {p: jnp.ones(s.shape, bool) for p, s in scores.items()}
    kept = magnitude_masks(scores, masks, 3)
    assert kept["a"].tolist() == [[False, False], [False, True]] and kept["b"].tolist() == [
        [[False, False], [True, True]]
    ]


def test_more_than_is_active_cannot_come_back():
    params = pruning.prune(tree(), 0.25)
    again = pruning.prune(params, 0.75)
    np.testing.assert_array_equal(again["up"].mask, params["up"].mask)


def test_specs_and_shapes_count_too():
    spec = {"up": weights.Masked(0.75).spec(12, 10, ("mlp", "embed"), (3,))}
    assert pruning.size(spec) == pruning.size(specs.abstract(spec)) == 360
    assert pruning.active(spec) == pruning.active(specs.abstract(spec)) == 90


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"s_final": 1.0}, "need 0 <= s_final < 1"),
        ({"start": 0.8}, "0 <= start <= end <= 1"),
        ({"events": 0}, "events >= 1"),
        ({"unit": "steps"}, "unknown unit 'steps'; did you mean 'step'"),
        ({"curve": "geometrical"}, "unknown curve 'geometrical'; did you mean 'geometric'"),
        ({"spacing": "token"}, "unknown spacing 'token'; did you mean 'tokens'"),
    ],
    ids=str,
)
def test_a_schedule_that_makes_no_sense_is_an_error(wrong, message):
    with pytest.raises(ValueError, match=message):
        PruneSchedule(**wrong)


def test_errors_say_what_was_given():
    for length in ({}, {"compute": 1e9, "updates": 5}):
        with pytest.raises(ValueError, match="a plan needs either compute or updates"):
            plan(PruneSchedule(), N0, BATCH, **length)
    with pytest.raises(ValueError, match="is less than one update"):
        plan(PruneSchedule(), N0, BATCH, compute=1e3)
    with pytest.raises(ValueError, match="need n0 >= 1"):
        plan(PruneSchedule(), 0, BATCH, updates=5)
    with pytest.raises(ValueError, match="no masked matrix matches 'mid'"):
        pruning.prune(tree(), 0.5, where="mid")
    with pytest.raises(ValueError, match="unknown scope 'matrices'; did you mean 'matrix'"):
        pruning.prune(tree(), 0.5, scope="matrices")
    with pytest.raises(ValueError, match=r"density 1\.2 is not between 0 and 1"):
        pruning.prune(tree(), 1.2)
