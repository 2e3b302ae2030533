"""Trees addressed by path, and the one place that tells trainable arrays from fixed ones.

A path is the keys from the root joined by "/", e.g. "blocks/mlp/up/kernel/b". A pattern is a shell pattern in which `*`
crosses slashes; it also matches everything below what it names, so "blocks/mlp" and "blocks/mlp/*" are the same choice.

Fixed arrays (the support of a sparse matrix, a mask, a frozen base) are declared on the dataclass that holds them with
`fixed()`. `split` takes them out of the tree: what is left is what gradients and optimizers see.
"""

from __future__ import annotations

import dataclasses
import fnmatch
from collections.abc import Callable, Iterable
from typing import Any

import jax
from flax import struct

from jaxpt.core.types import PyTree


def fixed(**kwargs: Any) -> Any:
    """A dataclass field whose arrays are never trained, and always checkpointed."""
    return struct.field(metadata={"fixed": True}, **kwargs)


def static(**kwargs: Any) -> Any:
    """A dataclass field that is part of the tree's structure: a hashable number or name, not an array."""
    return struct.field(pytree_node=False, **kwargs)


def path_name(path: Iterable[Any]) -> str:
    """The "/"-joined name of a key path of `jax.tree_util`."""
    return "/".join(str(getattr(k, "key", getattr(k, "name", getattr(k, "idx", k)))) for k in path)


def matches(path: str, pattern: str) -> bool:
    """Whether `pattern` names this path or something above it."""
    pattern = pattern.removesuffix("/*")
    return fnmatch.fnmatchcase(path, pattern) or fnmatch.fnmatchcase(path, pattern + "/*")


def matches_any(path: str, patterns: str | Iterable[str]) -> bool:
    """Whether any of the patterns names this path."""
    return any(matches(path, p) for p in ([patterns] if isinstance(patterns, str) else patterns))


def owner(path: str, names: Iterable[str]) -> str | None:
    """The longest of the names that `path` contains as whole keys: the parameter that an optimizer keeps this array of."""
    return max((name for name in names if f"/{name}/" in f"/{path}/"), key=len, default=None)


def map_with_path(fn: Callable[..., Any], tree: PyTree, *rest: PyTree, is_leaf: Any = None) -> PyTree:
    """`fn(path, leaf, ...)` over the leaves, with the path as a "/"-joined string."""
    return jax.tree_util.tree_map_with_path(lambda p, *x: fn(path_name(p), *x), tree, *rest, is_leaf=is_leaf)


def leaves_with_path(tree: PyTree, is_leaf: Any = None) -> list[tuple[str, Any]]:
    """(path, leaf) pairs in tree order."""
    return [(path_name(p), x) for p, x in jax.tree_util.tree_leaves_with_path(tree, is_leaf=is_leaf)]


def trainable_mask(tree: PyTree) -> PyTree:
    """The same tree with True at trainable leaves and False at fixed ones."""
    return _mask(tree, trainable=True)


def split(tree: PyTree) -> tuple[PyTree, PyTree]:
    """(trainable, fixed): two trees of the same dataclasses, each with None where the other holds an array."""
    mask = trainable_mask(tree)
    return (
        jax.tree.map(lambda x, keep: x if keep else None, tree, mask),
        jax.tree.map(lambda x, keep: None if keep else x, tree, mask),
    )


def merge(trainable: PyTree, fixed_arrays: PyTree) -> PyTree:
    """The inverse of `split`."""
    return jax.tree.map(lambda a, b: b if a is None else a, trainable, fixed_arrays, is_leaf=lambda x: x is None)


def _mask(tree: PyTree, trainable: bool) -> PyTree:
    """Descends through dataclasses itself (only they say what is fixed) and lets JAX descend through the rest."""
    if _is_node(tree):
        children = {
            f.name: _mask(getattr(tree, f.name), trainable and not f.metadata.get("fixed", False))
            for f in dataclasses.fields(tree)
            if f.metadata.get("pytree_node", True)
        }
        return dataclasses.replace(tree, **children)
    if jax.tree_util.all_leaves([tree]):
        return trainable
    return jax.tree.map(lambda x: _mask(x, trainable), tree, is_leaf=lambda x: x is not tree)


def _is_node(x: Any) -> bool:
    """A flax dataclass: the kind that can declare fixed fields. Array specs are plain dataclasses and count as leaves."""
    return dataclasses.is_dataclass(x) and not isinstance(x, type) and hasattr(x, "_flax_dataclass")
