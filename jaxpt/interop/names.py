"""Their tensors <-> our trees, by one table a family that is read in both directions.

A `Piece` says which of our arrays lie in one of their tensors, and how. A name with "{i}" stands for one tensor a
layer; ours are stacked. Every layout is a bijection on entries, so a tree that goes out and comes back is bit-equal.
"""

from __future__ import annotations

import dataclasses
import fnmatch
import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jaxpt import weights
from jaxpt.core import trees
from jaxpt.core.types import Params
from jaxpt.data.documents import DataError
from jaxpt.sharding import shardings


@dataclasses.dataclass(frozen=True)
class Layout:
    """How several of our arrays (one layer's) lie in one of theirs: `split` inverts `join`.

    `join` also takes traced arrays, so that `jax.eval_shape` can say what shape to expect.
    """

    join: Callable[[Sequence[Any]], Any]
    split: Callable[[Any], Sequence[Any]]


@dataclasses.dataclass(frozen=True)
class Piece:
    """One of their names and the paths of ours, such as ("blocks/attention/query/kernel",)."""

    theirs: str
    ours: tuple[str, ...]
    layout: Layout = Layout(lambda parts: parts[0], lambda w: [w])

    @property
    def layered(self) -> bool:
        """One tensor a layer."""
        return "{i}" in self.theirs


TRANSPOSED = Layout(lambda parts: parts[0].T, lambda w: [w.T])  # [in, out], as GPT-2's Conv1D


def side_by_side(count: int) -> Layout:
    """`count` matrices [out, in] as one [in, count * out], and their biases end to end (GPT-2's query, key, value)."""

    def split(w: Any) -> Sequence[Any]:
        return np.split(w.T, count)

    return Layout(lambda parts: _library(parts).concat(parts).T, split)


def head_by_head(heads: int) -> Layout:
    """Rows of head 0 of the first matrix, head 0 of the second, ..., head 1 of the first, ... (GPT-NeoX)."""

    def join(parts: Sequence[Any]) -> Any:
        rest = parts[0].shape[1:]
        by_head = [p.reshape(heads, -1, *rest) for p in parts]
        return _library(parts).stack(by_head, 1).reshape(-1, *rest)

    def split(w: Any) -> Sequence[Any]:
        rest = w.shape[1:]
        by_head = w.reshape(heads, 3, -1, *rest)
        return [by_head[:, j].reshape(-1, *rest) for j in range(3)]

    return Layout(join, split)


def adjacent_pairs(heads: int) -> Layout:
    """Rows of a head whose rotary pairs are (2i, 2i+1), as GGUF stores LLaMA's; ours are (i, i + K/2)."""

    def join(parts: Sequence[Any]) -> Any:
        w = parts[0]
        return w.reshape(heads, 2, -1, *w.shape[1:]).swapaxes(1, 2).reshape(w.shape)

    def split(w: Any) -> Sequence[Any]:
        return [w.reshape(heads, -1, 2, *w.shape[1:]).swapaxes(1, 2).reshape(w.shape)]

    return Layout(join, split)


class State(Protocol):
    """Named tensors, read one at a time."""

    @property
    def names(self) -> Iterable[str]:
        """All names."""
        ...

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor, without reading it."""
        ...

    def read(self, name: str) -> np.ndarray:
        """A tensor.

        Raises:
          DataError: it cannot be read.
        """
        ...


@dataclasses.dataclass(frozen=True)
class Arrays:
    """A `State` of arrays in memory."""

    arrays: Mapping[str, np.ndarray]

    @property
    def names(self) -> Iterable[str]:
        return self.arrays

    def shape(self, name: str) -> tuple[int, ...]:
        return self.arrays[name].shape

    def read(self, name: str) -> np.ndarray:
        return self.arrays[name]


@dataclasses.dataclass(frozen=True)
class Renamed:
    """A `State` some of whose names begin in another way; one that would collide keeps its own name."""

    state: State
    beginnings: Mapping[str, str]

    @functools.cached_property
    def _inner(self) -> dict[str, str]:
        own, found = set(self.state.names), {}
        for name in own:
            old = next((old for old in self.beginnings if name.startswith(old)), None)
            other = name if old is None else self.beginnings[old] + name.removeprefix(old)
            found[name if other in own else other] = name
        return found

    @property
    def names(self) -> Iterable[str]:
        return self._inner

    def shape(self, name: str) -> tuple[int, ...]:
        return self.state.shape(self._inner[name])

    def read(self, name: str) -> np.ndarray:
        return self.state.read(self._inner[name])


def from_state(
    state: State,
    spec: Params,
    pieces: Sequence[Piece],
    *,
    prefix: str = "",
    ignored: Sequence[str] = (),
    source: str = "the state",
    mesh: Mesh | None = None,
) -> Params:
    """The tree described by `spec`, every matrix dense, in the spec's number formats.

    Args:
      prefix: what all names may lack (models saved without their head leave it out).
      ignored: patterns of tensors that say nothing (causal masks, frequencies).
      source: for messages.
      mesh: where the arrays go, each by its logical axes; the default device if None.

    Raises:
      DataError: a tensor is missing, of another shape, or left over.
    """
    names = set(state.names)
    bare = prefix if not any(name.startswith(prefix) for name in names) else ""
    wanted = {path.removesuffix("/w"): leaf for path, leaf in trees.leaves_with_path(spec)}
    found: dict[str, np.ndarray] = {}
    for piece in pieces:
        _check_shapes(state, names, piece, wanted, bare, source)
        for path in piece.ours:
            found[path] = np.empty(wanted[path].shape, jnp.dtype(wanted[path].dtype))
        for name, index in _tensors(piece, wanted, bare):
            names.discard(name)
            for path, part in zip(piece.ours, piece.layout.split(state.read(name)), strict=True):
                found[path][index] = part
    left = sorted(n for n in names if not any(fnmatch.fnmatchcase(n, "*" + pattern) for pattern in ignored))
    if left:
        raise DataError(f"{source} holds {len(left)} tensors that this architecture has no place for: {_some(left)}")
    arrays = trees.map_with_path(lambda path, _: found[path.removesuffix("/w")], spec)
    return jax.tree.map(jnp.asarray, arrays) if mesh is None else jax.device_put(arrays, shardings(spec, mesh))


def to_state(params: Params, pieces: Sequence[Piece], bare: str = "") -> Iterator[tuple[str, np.ndarray]]:
    """(name, tensor) pairs of a tree, matrices of any form as dense ones.

    Args:
      bare: a prefix to leave out of the names.

    Raises:
      ValueError: the tree holds arrays that the family has no name for.
    """
    leaves = dict(trees.leaves_with_path(params, is_leaf=weights.is_matrix))
    unknown = sorted(set(leaves) - {path for piece in pieces for path in piece.ours})
    if unknown:
        raise ValueError(f"this family has no name for {_some(unknown)}; merge or remove them before exporting")
    for piece in pieces:
        dense = [_dense(leaves[path]) for path in piece.ours]
        for i in range(len(dense[0])) if piece.layered else [...]:
            tensor = piece.layout.join([np.asarray(jax.device_get(x[i])) for x in dense])
            yield piece.theirs.removeprefix(bare).replace("{i}", str(i)), np.ascontiguousarray(tensor)


def _dense(leaf: Any) -> Any:
    return leaf.dense() if weights.is_matrix(leaf) else leaf


def _tensors(piece: Piece, wanted: Mapping[str, Any], bare: str) -> Iterator[tuple[str, Any]]:
    """(name, index into the stack) of the tensors of a piece."""
    theirs = piece.theirs.removeprefix(bare)
    if not piece.layered:
        yield theirs, ...
        return
    for i in range(wanted[piece.ours[0]].shape[0]):
        yield theirs.replace("{i}", str(i)), i


def _check_shapes(
    state: State, names: set[str], piece: Piece, wanted: Mapping[str, Any], bare: str, source: str
) -> None:
    """Raises unless all tensors of a piece are there in the shape that ours give."""
    drop = 1 if piece.layered else 0
    own = [jax.ShapeDtypeStruct(wanted[path].shape[drop:], jnp.float32) for path in piece.ours]
    expected = jax.eval_shape(lambda *parts: piece.layout.join(parts), *own).shape
    for name, _ in _tensors(piece, wanted, bare):
        if name not in names:
            raise DataError(f"{source} has no tensor {name!r}; it has {_some(sorted(names)) or 'none'}")
        if state.shape(name) != expected:
            raise DataError(f"{source}: tensor {name!r} has shape {state.shape(name)}, its config asks for {expected}")


def _library(parts: Sequence[Any]) -> Any:
    return jnp if isinstance(parts[0], jax.core.Tracer) else np


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:4]) + (f", ... ({len(names)})" if len(names) > 4 else "")
