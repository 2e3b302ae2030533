"""Soups are averages: of linear models, of what float32 adds up; greedy ones are never worse than their best ingredient."""

from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from jaxpt.combine.soups import greedy_soup, soup
from jaxpt.core import spec as specs
from jaxpt.core import trees
from jaxpt.core.rng import fold
from jaxpt.models import decoder
from jaxpt.weights import SparseLowRank

RNG = np.random.default_rng(0)
MATRICES = [{"w": jnp.asarray(RNG.normal(size=(4, 3)), jnp.float32), "b": jnp.asarray(x)} for x in (1.0, 2.0, 6.0, 3.0)]
X = jnp.asarray(RNG.normal(size=(50, 3)), jnp.float32)
WANTED = jnp.asarray(RNG.normal(size=(50, 4)), jnp.float32)


def score(params):
    return -float(((X @ params["w"].T - WANTED) ** 2).mean())


def test_a_soup_of_linear_models_is_their_ensemble():
    for shares in (None, (0.25, 0.25, 0.25, 0.25), (0.7, 0.1, 0.2, 0.0), (1.5, -0.5, 0.0, 0.0)):
        found = soup(MATRICES, shares)
        weights = shares or (0.25,) * 4
        outputs = sum(w * (X @ m["w"].T) for w, m in zip(weights, MATRICES, strict=True))
        np.testing.assert_allclose(X @ found["w"].T, outputs, atol=1e-5)
        np.testing.assert_allclose(found["b"], np.dot(weights, [1, 2, 6, 3]), rtol=1e-6)


def test_one_ingredient_or_equal_ones_are_themselves_and_the_order_does_not_matter():
    np.testing.assert_array_equal(soup(MATRICES[:1])["w"], MATRICES[0]["w"])
    np.testing.assert_allclose(soup([MATRICES[1]] * 7)["w"], MATRICES[1]["w"], rtol=1e-6)
    for order in itertools.permutations(MATRICES):
        np.testing.assert_allclose(soup(order)["w"], soup(MATRICES)["w"], atol=1e-6)


def test_bfloat16_is_added_up_in_float32_and_integers_are_taken_as_they_are():
    """In bfloat16 256 + 1 + ... + 1 stays 256; integers that differ, such as the supports of two seeds, have no average."""
    values = [256.0] + [1.0] * 15
    found = soup([{"w": jnp.full(2, x, jnp.bfloat16), "n": jnp.arange(3)} for x in values])
    assert found["w"].dtype == jnp.bfloat16 and found["n"].tolist() == [0, 1, 2]
    np.testing.assert_array_equal(found["w"], jnp.full(2, 271 / 16, jnp.bfloat16))
    forms = (("blocks/mlp", SparseLowRank(2, 0.1)),)
    whole = decoder.spec(decoder.Config(layers=1, width=16, heads=2, ffn=24, vocab_size=32, weights=forms))
    spec = {"up": whole["blocks"]["mlp"]["up"]}
    one, two = (specs.init(jax.random.key(seed), spec) for seed in (0, 1))
    with pytest.raises(ValueError, match="support has no average: its int.* values are others in ingredients 0 and 1"):
        soup([one, two])
    moved = jax.tree.map(lambda x: x + 2 if jnp.issubdtype(x.dtype, jnp.floating) else x, one)
    mixed = soup([one, moved], (0.25, 0.75))
    assert jax.tree.structure(mixed) == jax.tree.structure(one)
    for path, x in trees.leaves_with_path(mixed):
        shift = 0 if path.endswith("support") else 1.5
        np.testing.assert_allclose(x, dict(trees.leaves_with_path(one))[path] + shift, atol=1e-6)


def by_hand(scores, accept):
    """The recipe again, over explicit subsets and numpy's mean."""
    order = sorted(range(len(scores)), key=lambda i: -scores[i])
    members, best = [order[0]], scores[order[0]]
    for i in order[1:]:
        mean = {"w": np.mean([MATRICES[j]["w"] for j in [*members, i]], 0)}
        found = score(mean)
        if found > best or (accept == ">=" and found == best):
            members, best = [*members, i], found
    return tuple(members), mean_of(members)


def mean_of(members):
    return np.mean([MATRICES[i]["w"] for i in members], 0)


@pytest.mark.parametrize("accept", [">=", ">"])
def test_a_greedy_soup_is_that_of_the_recipe_and_never_worse_than_the_best(accept):
    scores = [score(m) for m in MATRICES]
    found = greedy_soup(MATRICES, scores, score, accept)
    members, mean = by_hand(scores, accept)
    assert found.members == members and len(members) > 1
    np.testing.assert_allclose(found.params["w"], mean, atol=1e-6)
    assert score(found.params) >= max(scores)
    assert [taste.ingredient for taste in found.history] == sorted(range(4), key=lambda i: -scores[i])
    assert tuple(taste.ingredient for taste in found.history if taste.kept) == members
    for order in itertools.permutations(range(4)):
        other = greedy_soup([MATRICES[i] for i in order], [scores[i] for i in order], score, accept)
        assert tuple(order[i] for i in other.members) == members


def test_ties_are_taken_or_not_as_asked_and_what_has_no_score_is_not():
    scores = [1.0, 1.0, 0.0]
    assert greedy_soup(MATRICES[:3], scores, lambda params: 1.0).members == (0, 1, 2)
    assert greedy_soup(MATRICES[:3], scores, lambda params: 1.0, accept=">").members == (0,)
    assert greedy_soup(MATRICES[:3], scores, lambda params: float("nan")).members == (0,)


def test_models_whose_hidden_units_are_permuted_compute_the_same_and_have_no_good_soup():
    def mlp(p):
        return jnp.tanh(X @ p["in"].T) @ p["out"].T

    one = {"in": jnp.asarray(RNG.normal(size=(8, 3))), "out": jnp.asarray(RNG.normal(size=(2, 8)))}
    order = np.roll(np.arange(8), 1)
    two = {"in": one["in"][order], "out": one["out"][:, order]}
    np.testing.assert_allclose(mlp(one), mlp(two), atol=1e-5)
    assert float(jnp.abs(mlp(soup([one, two])) - mlp(one)).mean()) > 0.1


def test_arrays_stay_where_they_are():
    mesh = jax.make_mesh((8,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))
    where = NamedSharding(mesh, PartitionSpec("x"))
    given = [{"w": jax.device_put(jax.random.normal(fold(jax.random.key(0), i), (16, 2)), where)} for i in range(2)]
    found = soup(given)["w"]
    assert found.sharding.is_equivalent_to(where, 2)
    np.testing.assert_allclose(found, (given[0]["w"] + given[1]["w"]) / 2, atol=1e-6)


def test_what_has_no_average_is_named():
    one = {"a": jnp.ones(2), "b": {"c": jnp.ones((2, 3))}}
    cases = [
        ([], None, "at least one ingredient"),
        ([one, {"a": jnp.ones(2)}], None, "ingredients 0 and 1 have other arrays: b/c is in one of them alone"),
        ([one, one | {"a": jnp.ones(3)}], None, r"a is float32\[2\] in ingredient 0, float32\[3\] in ingredient 1"),
        ([one, one | {"a": jnp.ones(2, jnp.bfloat16)}], None, r"float32\[2\] in ingredient 0, bfloat16\[2\]"),
        ([one, one | {"a": jnp.asarray([1, jnp.nan])}], None, "ingredient 1 has values that are not finite, in a"),
        ([one, one], (1.0,), r"2 ingredients need as many weights, got \[1.0\]"),
        ([one, one], (0.5, 0.6), r"sum to 1, got \[0.5, 0.6\]"),
        ([one, one], (0.5, float("nan")), "finite and sum to 1"),
    ]
    for given, weights, message in cases:
        with pytest.raises(ValueError, match=message):
            soup(given, weights)
    with pytest.raises(ValueError, match="as many scores, all of them numbers"):
        greedy_soup([one, one], [1.0, float("nan")], score)
    with pytest.raises(ValueError, match="unknown accept '=>'; did you mean '>'"):
        greedy_soup([one, one], [1.0, 2.0], score, accept="=>")
