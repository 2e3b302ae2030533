"""Path-addressed trees: patterns, and the split into trainable and fixed arrays, on generated trees."""

from __future__ import annotations

import fnmatch

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxpt.core import trees
from jaxpt.core.types import Array


@struct.dataclass
class Inner:
    """Values and a fixed support."""

    v: Array
    support: Array = trees.fixed()
    scale: float = trees.static(default=1.0)


@struct.dataclass
class Frozen:
    """A dataclass whose fixed field is a whole tree, trainable dataclasses included."""

    base: object = trees.fixed()
    delta: object = None


def array() -> st.SearchStrategy:
    return st.integers(0, 99).map(lambda n: np.full(n % 3 + 1, n))


def containers(child: st.SearchStrategy) -> st.SearchStrategy:
    names = st.sampled_from(["a", "b", "kernel", "mlp"])
    return st.one_of(
        st.dictionaries(names, child, max_size=3),
        st.lists(child, max_size=3),
        st.tuples(child, child),
        st.builds(Inner, v=child, support=child, scale=st.sampled_from([1.0, 2.0])),
        st.builds(Frozen, base=child, delta=child),
    )


generated = st.recursive(st.one_of(array(), st.none()), containers, max_leaves=12)


def expected_fixed(tree, inside=False):
    """Which leaves are fixed, in tree order, by walking it."""
    if tree is None:
        return []
    if isinstance(tree, np.ndarray):
        return [inside]
    if isinstance(tree, Inner):
        return expected_fixed(tree.v, inside) + expected_fixed(tree.support, True)
    if isinstance(tree, Frozen):
        return expected_fixed(tree.base, True) + expected_fixed(tree.delta, inside)
    children = [tree[k] for k in sorted(tree)] if isinstance(tree, dict) else tree
    return [found for child in children for found in expected_fixed(child, inside)]


@settings(max_examples=150, deadline=None)
@given(generated)
def test_split_takes_out_what_is_declared_fixed_and_merge_puts_it_back(tree):
    leaves, fixed = jax.tree.leaves(tree), expected_fixed(tree)
    assert jax.tree.leaves(trees.trainable_mask(tree)) == [not f for f in fixed]
    trainable_part, fixed_part = trees.split(tree)
    assert [id(x) for x in jax.tree.leaves(trainable_part)] == [
        id(x) for x, f in zip(leaves, fixed, strict=True) if not f
    ]
    assert [id(x) for x in jax.tree.leaves(fixed_part)] == [id(x) for x, f in zip(leaves, fixed, strict=True) if f]
    merged = trees.merge(trainable_part, fixed_part)
    assert jax.tree.structure(merged) == jax.tree.structure(tree)
    assert [id(x) for x in jax.tree.leaves(merged)] == [id(x) for x in leaves]


@settings(max_examples=100, deadline=None)
@given(generated)
def test_paths_are_unique_and_in_tree_order(tree):
    found = trees.leaves_with_path(tree)
    assert [id(x) for _, x in found] == [id(x) for x in jax.tree.leaves(tree)]
    assert len({path for path, _ in found}) == len(found)
    seen = []
    trees.map_with_path(lambda path, _: seen.append(path), tree)
    assert seen == [path for path, _ in found]


words = st.lists(st.sampled_from(["blocks", "mlp", "up", "kernel", "v", "b"]), min_size=1, max_size=5)


@given(words, st.integers(1, 5))
def test_a_pattern_names_a_path_and_everything_below_it(parts, depth):
    path, above = "/".join(parts), "/".join(parts[:depth])
    assert trees.matches(path, above) and trees.matches(path, above + "/*") and trees.matches(path, "*")
    assert not trees.matches(path, above + "x")
    assert trees.matches(above, path) == (above == path)


@given(words, words)
def test_matching_is_by_whole_names(path, pattern):
    expected = path[: len(pattern)] == pattern
    assert trees.matches("/".join(path), "/".join(pattern)) == expected
    assert trees.matches_any("/".join(path), ["zzz", "/".join(pattern)]) == expected


def test_a_star_crosses_slashes():
    assert trees.matches("blocks/mlp/up/kernel/b", "*/up")
    assert trees.matches("blocks/mlp/up/kernel/b", "blocks/*/kernel")
    assert not trees.matches("blocks/mlp/upper/kernel", "*/up")
    assert not trees.matches("head/kernel", "blocks/*")
    assert fnmatch.fnmatchcase("a/b", "*")


def test_split_works_under_jit_and_on_specs_and_gradients_skip_the_fixed_part():
    tree = {"w": Inner(jnp.arange(3.0), jnp.arange(3)), "x": jnp.ones(2)}
    trainable, fixed = trees.split(tree)

    @jax.jit
    def loss(t):
        merged = trees.merge(t, fixed)
        return (merged["w"].v * merged["w"].support).sum() + merged["x"].sum()

    gradient = jax.grad(loss)(trainable)
    assert gradient["w"].support is None
    np.testing.assert_array_equal(gradient["w"].v, [0, 1, 2])


def test_the_owner_of_an_array_is_the_longest_name_in_its_path():
    names = ["kernel/w", "blocks/head/kernel/w", "norm"]
    assert trees.owner("opt_state/0/mu/blocks/head/kernel/w", names) == "blocks/head/kernel/w"
    assert trees.owner("0/mu/kernel/w/codes", names) == "kernel/w"
    assert trees.owner("0/count", names) is None and trees.owner("norms/0", names) is None
