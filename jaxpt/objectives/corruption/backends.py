"""The few array operations that span corruption needs, of JAX, NumPy and TensorFlow: one arithmetic for all three."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np


class Backend(NamedTuple):
    """Operations on one-dimensional arrays. `argsort` is stable; `first_after(a, v)` is the number of entries of the
    sorted `a` that are <= v, `first_from` that are < v; `cumsum` of booleans counts."""

    arange: Callable[[Any], Any]
    where: Callable[[Any, Any, Any], Any]
    minimum: Callable[[Any, Any], Any]
    take: Callable[[Any, Any], Any]
    argsort: Callable[[Any], Any]
    cumsum: Callable[[Any], Any]
    first_after: Callable[[Any, Any], Any]
    first_from: Callable[[Any, Any], Any]
    size: Callable[[Any], Any]


def _of_module(xp: Any) -> Backend:
    return Backend(
        functools.partial(xp.arange, dtype=xp.int32), xp.where, xp.minimum, xp.take,
        functools.partial(xp.argsort, kind="stable") if xp is np else xp.argsort,
        functools.partial(xp.cumsum, dtype=xp.int32),
        functools.partial(xp.searchsorted, side="right"), functools.partial(xp.searchsorted, side="left"),
        lambda x: x.shape[0],
    )  # fmt: skip


JAX = _of_module(jnp)
NUMPY = _of_module(np)


def tensorflow() -> Backend:
    """The operations on TensorFlow tensors, also inside `tf.data`, where the size of a row may be unknown.

    Raises:
      ModuleNotFoundError: TensorFlow is not installed.
    """
    try:
        import tensorflow as tf
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("span corruption in tf.data needs TensorFlow: pip install 'jaxpt[data]'") from error

    def search(side: str) -> Callable[[Any, Any], Any]:
        return lambda a, v: tf.searchsorted(a, v, side=side, out_type=tf.int32)

    return Backend(
        tf.range, tf.where, tf.minimum, tf.gather,
        functools.partial(tf.argsort, stable=True), lambda x: tf.cumsum(tf.cast(x, tf.int32)),
        search("right"), search("left"), lambda x: tf.shape(x)[0],
    )  # fmt: skip
