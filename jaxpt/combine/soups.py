"""Model soups: the average of the weights of models that were trained from the same ones (arXiv 2203.05482, recipe 1).

    theta = sum_i w_i theta_i,   sum_i w_i = 1                                 as dear to run as one model

    params = soup([a, b, c])                                                  # uniform
    params = soup([a, b], (0.7, 0.3))
    found = greedy_soup([a, b, c], scores, score)                             # of held-out data that is not reported on

Ingredients share their initial values, heads among them; averages of models that began apart are worth nothing. Arrays are
added up in float32 and have their own dtype again after it; arrays that are no floating-point numbers, such as the support
of a sparse matrix, must be the same in all. Averages are of values alone: moments and moving averages have none, and batch
norms want new statistics. Arrays stay sharded as they are.

MCL's soup of courses (arXiv 2305.03981) is one: recipes/mcl.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxpt.core import trees
from jaxpt.core.names import nearest_error
from jaxpt.core.types import Array, Float, Params

ACCEPT: dict[str, Callable[[float, float], bool]] = {">=": lambda a, b: a >= b, ">": lambda a, b: a > b}


class Taste(NamedTuple):
    """What a greedy soup scored with this ingredient in it, and whether it stayed."""

    ingredient: int
    score: float
    kept: bool


class GreedySoup(NamedTuple):
    """The average of the members, which are numbers of ingredients, and how they were found."""

    params: Params
    members: tuple[int, ...]
    history: tuple[Taste, ...]


def soup(params_list: Sequence[Params], weights: Sequence[float] | Float[np.ndarray, " K"] | None = None) -> Params:
    """The weighted average of trees, uniform by default. Outside of jit: values are looked at.

    Args:
      weights: one for each, which may be negative.

    Raises:
      ValueError: no tree; trees of other structures, shapes, dtypes or integers; values that are not finite; another number
        of weights, or weights that are not finite or do not sum to 1.
    """
    check(params_list)
    count = len(params_list)
    shares = np.full(count, 1 / count) if weights is None else np.asarray(weights, np.float64)
    if shares.shape != (count,):
        raise ValueError(f"{count} ingredients need as many weights, got {shares.tolist()}")
    if not (np.isfinite(shares).all() and abs(shares.sum() - 1) <= 1e-6):
        raise ValueError(f"weights of a soup must be finite and sum to 1, got {shares.tolist()}")
    return _average(params_list, shares)


def greedy_soup(
    params_list: Sequence[Params],
    scores: Sequence[float] | Float[np.ndarray, " K"],
    score: Callable[[Params], float],
    accept: str = ">=",
) -> GreedySoup:
    """The best ingredient, and each of the others, from the best on, that does not make the uniform average worse.

    Args:
      scores: of each ingredient, higher is better, on what `score` scores soups on; equal ones keep their order.
      accept: ">=" as in the paper, or ">" as in its code.

    Raises:
      ValueError: what `soup` raises of trees; another number of scores, or one that is not a number; an unknown `accept`.
    """
    check(params_list)
    if accept not in ACCEPT:
        raise nearest_error("accept", accept, ACCEPT)
    known = [float(x) for x in scores]
    if len(known) != len(params_list) or any(map(math.isnan, known)):
        raise ValueError(f"{len(params_list)} ingredients need as many scores, all of them numbers, got {known}")
    first, *others = sorted(range(len(known)), key=lambda i: -known[i])
    members, best, params = [first], known[first], params_list[first]
    history = [Taste(first, best, True)]
    for i in others:
        candidate = _average([params_list[j] for j in (*members, i)], np.full(len(members) + 1, 1 / (len(members) + 1)))
        found = float(score(candidate))
        better = ACCEPT[accept](found, best)
        history.append(Taste(i, found, better))
        if better:
            members, best, params = [*members, i], found, candidate
    return GreedySoup(params, tuple(members), tuple(history))


def check(params_list: Sequence[Params]) -> None:
    """Raises ValueError where trees have no average."""
    if not params_list:
        raise ValueError("a soup needs at least one ingredient")
    first, form = dict(trees.leaves_with_path(params_list[0])), str(jax.tree.structure(params_list[0]))
    for i, other in enumerate(params_list):
        found = dict(trees.leaves_with_path(other))
        if differing := sorted(first.keys() ^ found.keys()):
            raise ValueError(f"ingredients 0 and {i} have other arrays: {differing[0]} is in one of them alone")
        if str(jax.tree.structure(other)) != form:
            raise ValueError(f"ingredients 0 and {i} have the same arrays in matrices of other forms")
        for path, x in found.items():
            _check_leaf(path, first[path], x, i)


def _check_leaf(path: str, first: Array, x: Array, i: int) -> None:
    if (x.shape, x.dtype) != (first.shape, first.dtype):
        raise ValueError(
            f"{path} is {first.dtype}{list(first.shape)} in ingredient 0, {x.dtype}{list(x.shape)} in ingredient {i}"
        )
    if not jnp.issubdtype(x.dtype, jnp.inexact):
        if i and not bool((x == first).all()):
            raise ValueError(f"{path} has no average: its {x.dtype} values are others in ingredients 0 and {i}")
    elif not bool(jnp.isfinite(x).all()):
        raise ValueError(f"ingredient {i} has values that are not finite, in {path}")


def _average(params_list: Sequence[Params], shares: Float[np.ndarray, " K"]) -> Params:
    def one(*leaves: Array) -> Array:
        dtype = leaves[0].dtype
        if not jnp.issubdtype(dtype, jnp.inexact):
            return leaves[0]
        wide = jnp.promote_types(dtype, jnp.float32)
        total = jnp.zeros_like(leaves[0], wide)
        for share, x in zip(shares, leaves, strict=True):
            total = total + jnp.asarray(share, wide) * x.astype(wide)
        return total.astype(dtype)

    return jax.tree.map(one, *params_list)
