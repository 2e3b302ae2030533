"""The shapes that `aot` compiles and `bench` times: the linears of SLTrain's presets, and square ones.

A case is one product at one shape with its variants, each a function and its arguments. Arguments are shapes; arrays that
must hold something sensible (supports, block positions) also know how to be made.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxpt.core.names import nearest_error
from pallas_kernels.block_sparse import block_sparse
from pallas_kernels.common.dispatch import OPERATIONS
from pallas_kernels.monarch import monarch
from pallas_kernels.monarch.reference import monarch_authors
from pallas_kernels.sparse_low_rank import sparse_low_rank
from pallas_kernels.sparse_low_rank.layout import tile_grid, to_tiles

# width, feed-forward width, rank and density of SLTrain's presets; "square-N" has one N x N matrix, rank N / 4, density .03
PRESETS = {"60m": (512, 1376, 128, 0.03), "1b": (2048, 5461, 512, 0.03), "7b": (4096, 11_008, 1024, 0.05)}
BLOCKS, SPARSITY, TILE = 4, 0.75, 128
KERNELS = ("xla", "pallas_tpu", "pallas_gpu")


@dataclasses.dataclass(frozen=True)
class Argument:
    """An array to come. Floating ones are drawn from a normal distribution unless `make` says otherwise."""

    shape: tuple[int, ...]
    dtype: Any = jnp.bfloat16
    make: Callable[[np.random.Generator], np.ndarray] | None = None

    @property
    def nbytes(self) -> int:
        """Its bytes."""
        return math.prod(self.shape) * jnp.dtype(self.dtype).itemsize

    def array(self, rng: np.random.Generator) -> jax.Array:
        """One draw."""
        values = rng.normal(size=self.shape, scale=0.1) if self.make is None else self.make(rng)
        return jnp.asarray(values, self.dtype)


@dataclasses.dataclass(frozen=True)
class Variant:
    """A way to compute the product. The first `trained` arguments are differentiated; the first is x."""

    fn: Callable[..., jax.Array]
    arguments: tuple[Argument, ...]
    trained: int


@dataclasses.dataclass(frozen=True)
class Case:
    """One product at one shape: its least operations (forward) and bytes (x, y, weights), and its variants by name."""

    operation: str
    name: str
    flops: float
    nbytes: float
    variants: dict[str, Variant]


def cases(operation: str, size: str, tokens: int) -> list[Case]:
    """The cases of an operation for a preset, or for "square-N".

    Raises:
      ValueError: unknown operation or size.
    """
    if operation not in OPERATIONS:
        raise nearest_error("operation", operation, OPERATIONS)
    if size.startswith("square-") and size[7:].isdigit():
        width = int(size[7:])
        shapes, rank, density = {"square": (width, width)}, width // 4, 0.03
    elif size in PRESETS:
        width, ffn, rank, density = PRESETS[size]
        shapes = {"attention": (width, width), "up": (ffn, width), "down": (width, ffn)}
    else:
        raise nearest_error("size", size, [*PRESETS, "square-2048"])
    makers: dict[str, Callable[..., Case]] = {
        "sparse_low_rank": functools.partial(_sparse_low_rank, rank=rank, density=density),
        "monarch": _monarch,
        "block_sparse": _block_sparse,
    }
    make = makers[operation]
    return [make(f"{size} {name} {out} x {inp}", tokens, out, inp) for name, (out, inp) in shapes.items()]


def dense(tokens: int, out: int, inp: int) -> Variant:
    """The product with a dense matrix, which everything is measured against."""
    return Variant(lambda x, w: x @ w.T, (Argument((tokens, inp)), Argument((out, inp))), 2)


def _sparse_low_rank(name: str, tokens: int, out: int, inp: int, rank: int, density: float) -> Case:
    from jaxpt.weights.supports import slots_for_uniform  # a weight form knows the operation, not the reverse

    nnz = int(density * out * inp)
    slots = slots_for_uniform(out, inp, nnz)

    def flat(rng: np.random.Generator) -> np.ndarray:
        chosen = rng.choice(out * inp, int(nnz * 1.05) + 64)  # with replacement; without, it takes minutes at 7B
        return np.sort(rng.permutation(np.unique(chosen))[:nnz])

    def tiled(rng: np.random.Generator) -> np.ndarray:
        support = flat(rng)
        return to_tiles(np.zeros(support.size, np.float32), support, (out, inp), slots)[1]

    x, b, a = Argument((tokens, inp)), Argument((out, rank)), Argument((rank, inp))
    tiles = (*tile_grid(out, inp), slots)
    by_tile = (x, b, a, Argument(tiles), Argument(tiles, jnp.int16, tiled))
    by_entry = (x, b, a, Argument((nnz,)), Argument((nnz,), jnp.int32, flat))
    variants = {k: Variant(functools.partial(sparse_low_rank, implementation=k), by_tile, 4) for k in KERNELS[:2]}
    variants["xla, flat support"] = Variant(functools.partial(sparse_low_rank, implementation="xla"), by_entry, 4)
    least = sum(t.nbytes for t in by_entry[:4]) + 2 * nnz + 2 * tokens * out
    return _case("sparse_low_rank", name, 2.0 * tokens * out * inp, least, variants, tokens, out, inp)


def _monarch(name: str, tokens: int, out: int, inp: int) -> Case:
    p, s = -(-inp // BLOCKS), -(-out // BLOCKS)
    c = -(-min(p, s) // BLOCKS)
    x = Argument((tokens, inp))
    args = (x, Argument((BLOCKS, BLOCKS, c, p)), Argument((BLOCKS, s, BLOCKS * c)))
    authors = (Argument((tokens, BLOCKS * p)), Argument((BLOCKS, BLOCKS * c, p)), Argument((BLOCKS, s, BLOCKS * c)))
    variants = {
        f"{k}, {order} order": Variant(
            functools.partial(monarch, order=order, out_size=None if order == "block" else out, implementation=k),
            args,
            3,
        )
        for k in KERNELS
        for order in ("block", "canonical")
    }
    variants["authors' einsum"] = Variant(monarch_authors, authors, 3)
    weights = sum(math.prod(t.shape) for t in args[1:])
    least = sum(t.nbytes for t in args) + 2 * tokens * BLOCKS * s
    return _case("monarch", name, 2.0 * tokens * weights, least, variants, tokens, out, inp)


def _block_sparse(name: str, tokens: int, out: int, inp: int) -> Case:
    down, across = -(-out // TILE), -(-inp // TILE)
    n = max(1, round((1 - SPARSITY) * down * across))

    def line(rng: np.random.Generator, column: bool) -> np.ndarray:
        chosen = np.sort(np.random.default_rng(n).choice(down * across, n, replace=False))
        return chosen % across if column else chosen // across

    args = (
        Argument((tokens, inp)),
        Argument((n, TILE, TILE)),
        Argument((n,), jnp.int32, functools.partial(line, column=False)),
        Argument((n,), jnp.int32, functools.partial(line, column=True)),
    )
    variants = {k: Variant(functools.partial(block_sparse, out_size=out, implementation=k), args, 2) for k in KERNELS}
    least = sum(t.nbytes for t in args) + 2 * tokens * out
    return _case("block_sparse", name, 2.0 * tokens * n * TILE**2, least, variants, tokens, out, inp)


def _case(
    operation: str,
    name: str,
    flops: float,
    nbytes: float,
    variants: dict[str, Variant],
    tokens: int,
    out: int,
    inp: int,
) -> Case:
    return Case(operation, name, flops, nbytes, {"dense": dense(tokens, out, inp), **variants})


def with_gradients(variant: Variant) -> Callable[..., Any]:
    """(y, gradients) of the variant's arguments and, last, the gradient of y."""

    def run(*args: jax.Array) -> Any:
        *given, dy = args
        trained, rest = given[: variant.trained], given[variant.trained :]
        y, pull = jax.vjp(lambda *t: variant.fn(*t, *rest), *trained)
        return y, *pull(dy)

    return run
