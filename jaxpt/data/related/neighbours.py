"""Nearest neighbours by inner product: exact and in blocks, on one device or the devices of a mesh; approximate with faiss.

A document is not its own neighbour. Where an approximate search finds fewer than k, the rest is -1 with similarity -inf.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Float, Int

from jaxpt.core.types import Array

Graph = tuple[Int[np.ndarray, "N k"], Float[np.ndarray, "N k"]]


def knn_graph(embeddings: Float[np.ndarray, "N d"], k: int, *, block: int = 2048, mesh: Mesh | None = None) -> Graph:
    """(neighbours [N, k] int32, inner products [N, k] float32), best first; of equal ones the smaller index first.

    Never more than block^2 inner products exist at once on a device.

    Args:
      block: rows that are compared with each other at a time.
      mesh: over whose devices the rows are divided, each of which searches its own.

    Raises:
      ValueError: embeddings that are not a finite matrix, k outside 0 to N - 1, block < 1.
    """
    x = _checked(embeddings, k)
    if block < 1:
        raise ValueError(f"block must be at least 1, got {block}")
    count, size = len(x), min(block, len(x))
    if k == 0:
        return np.zeros((count, 0), np.int32), np.zeros((count, 0), np.float32)
    parts = 1 if mesh is None else mesh.size
    each = -(-count // (size * parts))  # blocks of every device
    padded = np.zeros((parts * each * size, x.shape[1]), np.float32)
    padded[:count] = x
    starts = np.arange(0, len(padded), size, dtype=np.int32)
    blocks = padded.reshape(-1, size, x.shape[1])
    search: Callable[..., Any] = functools.partial(_search, count=count, k=k)
    where = None
    if mesh is not None:
        split, whole = PartitionSpec(mesh.axis_names), PartitionSpec()
        where = NamedSharding(mesh, split)
        search = jax.shard_map(
            search, mesh=mesh, in_specs=(whole, whole, split, split), out_specs=split, check_vma=False
        )

    @jax.jit
    def run(*args: Array) -> tuple[Array, Array]:
        ids, scores = search(*args)
        return _best(ids, scores, k)

    placed = jax.device_put((blocks, starts), where)
    found = [run(blocks[i], starts[i], *placed) for i in range(-(-count // size))]
    idx, sim = (np.concatenate([np.asarray(f[part]) for f in found])[:count] for part in (0, 1))
    return idx, sim


def _search(queries: Array, first: Array, blocks: Array, starts: Array, *, count: int, k: int) -> tuple[Array, Array]:
    """([1, Q, k] ids, [1, Q, k] similarities) of the best of these blocks, for queries with ids first, first + 1, ..."""
    size = queries.shape[0]
    own = first + jnp.arange(size)

    def one(best: tuple[Array, Array], part: tuple[Array, Array]) -> tuple[tuple[Array, Array], None]:
        rows, start = part
        ids = start + jnp.arange(rows.shape[0])
        scores = jnp.matmul(queries, rows.T, precision=jax.lax.Precision.HIGHEST)
        scores = jnp.where((own[:, None] == ids) | (ids >= count), -jnp.inf, scores)
        together = jnp.concatenate([best[0], jnp.broadcast_to(ids, scores.shape)], 1)
        top, place = jax.lax.top_k(jnp.concatenate([best[1], scores], 1), k)
        return (jnp.take_along_axis(together, place, 1), top), None

    none = (jnp.full((size, k), -1, jnp.int32), jnp.full((size, k), -jnp.inf, jnp.float32))
    ids, scores = jax.lax.scan(one, none, (blocks, starts))[0]
    return ids[None], scores[None]


def _best(ids: Array, scores: Array, k: int) -> tuple[Array, Array]:
    """The best of what every device found: [P, Q, k] -> [Q, k]."""
    ids, scores = (jnp.moveaxis(x, 0, 1).reshape(x.shape[1], -1) for x in (ids, scores))
    top, place = jax.lax.top_k(scores, k)
    return jnp.take_along_axis(ids, place, 1), top


def approximate_graph(
    embeddings: Float[np.ndarray, "N d"], k: int, *, index: str = "IVF256,Flat", probes: int = 64
) -> Graph:
    """The same by faiss, for more documents than an exact search can compare.

    Args:
      index: what faiss' index_factory builds; the paper's is "IVF32768,PQ256".
      probes: cells that are searched.

    Raises:
      ImportError: faiss is not installed.
      ValueError: as `knn_graph`.
    """
    try:
        import faiss
    except ImportError as error:
        raise ImportError("approximate neighbours need faiss: pip install 'jaxpt[related]'") from error
    x = _checked(embeddings, k)
    built = faiss.index_factory(x.shape[1], index, faiss.METRIC_INNER_PRODUCT)
    built.train(x)
    built.add(x)
    if "IVF" in index:
        faiss.ParameterSpace().set_index_parameter(built, "nprobe", probes)
    sim, idx = built.search(x, k + 1)
    return _without_self(idx, sim, k)


def _without_self(idx: np.ndarray, sim: np.ndarray, k: int) -> Graph:
    """[N, k + 1] -> [N, k]: oneself left out where one was found, else the last; what was not found is -1."""
    unwanted = idx == np.arange(len(idx))[:, None]
    unwanted[~unwanted.any(1), -1] = True
    keep = np.argsort(unwanted, axis=1, kind="stable")[:, :k]
    idx, sim = np.take_along_axis(idx, keep, 1), np.take_along_axis(sim, keep, 1)
    return idx.astype(np.int32), np.where(idx < 0, -np.inf, sim).astype(np.float32)


def _checked(embeddings: np.ndarray, k: int) -> np.ndarray:
    x = np.ascontiguousarray(embeddings, np.float32)
    if x.ndim != 2 or not len(x) or not np.isfinite(x).all():
        raise ValueError(f"embeddings must be a finite matrix [N, d] with N > 0, got shape {x.shape}")
    if not 0 <= k < len(x):
        raise ValueError(f"k neighbours of {len(x)} documents: k must be 0 to {len(x) - 1}, got {k}")
    return x
