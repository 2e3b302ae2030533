"""The subspace in which GaLore and Fira keep the moments of a matrix (arXiv 2403.03507, section 4).

For a gradient G [m, n] of a weight stored [out, in], with r orthonormal vectors P on the side of the smaller dimension:

    m >= n   right   P [r, n], right singular vectors   R = project(G) = G P^T   [m, r]   back(R) = R P
    m <  n   left    P [m, r], left singular vectors    R = project(G) = P^T G   [r, n]   back(R) = P R

Square matrices take the right side, as in the authors' code. The side follows from the weight's shape alone, never from the
shape of R, so any rank is served. Leading axes (the layers of a scan) are matrices of their own.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxpt.core import linalg, trees
from jaxpt.core.names import nearest_error
from jaxpt.core.types import Array, Float, Int, PyTree

ROUNDS, OVERSAMPLE = 3, 8


@dataclasses.dataclass(frozen=True, kw_only=True)
class Subspace:
    """Which arrays are projected, how, and when.

    Attributes:
      rank: r.
      gap: updates between two searches for P; None for only at step 0.
      projector: a key of `METHODS`.
      where: path patterns of the arrays to project. The others, and those with a dimension of r or less, are not. By
        default the dense matrices of the blocks.
      inside: P is found inside the update; else by `jaxpt.optim.galore.refresh_event` alone, and until it has run a
        projected matrix stands still.
    """

    rank: int = 128
    gap: int | None = 200
    projector: str = "svd"
    where: tuple[str, ...] = ("blocks/*/kernel/w",)
    inside: bool = True

    def __post_init__(self) -> None:
        if self.rank < 1 or (self.gap is not None and self.gap < 1):
            raise ValueError(f"rank and gap must be at least 1, got rank={self.rank} and gap={self.gap}")
        if self.projector not in METHODS:
            raise nearest_error("projector", self.projector, METHODS)

    def projects(self, path: str, shape: tuple[int, ...]) -> bool:
        """Whether the array of this path and shape is projected."""
        return len(shape) >= 2 and min(shape[-2:]) > self.rank and trees.matches_any(path, self.where)

    def zeros(self, params: PyTree) -> tuple[PyTree, PyTree]:
        """(projectors, projected gradients) as zeros; None and the full shape where an array is not projected."""

        def of(index: int) -> PyTree:
            def one(path: str, x: Array) -> Array | None:
                if self.projects(path, x.shape):
                    return jnp.zeros(shapes(x.shape, self.rank)[index], x.dtype)
                return None if index == 0 else jnp.zeros_like(x)

            return trees.map_with_path(one, params)

        return of(0), of(1)

    def found(self, gradients: PyTree) -> PyTree:
        """The projectors of these gradients."""

        def one(path: str, g: Array) -> Array | None:
            return find(g, self.rank, self.projector) if self.projects(path, g.shape) else None

        return trees.map_with_path(one, gradients)

    def refreshed(self, gradients: PyTree, projector: PyTree, step: Int[Array, ""]) -> PyTree:
        """The projectors to use at `step`, counted from 0."""
        if not self.inside or not jax.tree.leaves(projector):
            return projector
        due = step == 0 if self.gap is None else step % self.gap == 0

        def again() -> PyTree:
            return jax.tree.map(lambda new, old: new.astype(old.dtype), self.found(gradients), projector)

        return jax.lax.cond(due, again, lambda: projector)


def is_right(shape: tuple[int, ...]) -> bool:
    """Whether a weight of this shape [..., out, in] is projected from the right."""
    return shape[-2] >= shape[-1]


def shapes(shape: tuple[int, ...], rank: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """(of the projector, of the projected gradient) for a weight of this shape."""
    *stack, m, n = shape
    right, left = (*stack, m, rank), (*stack, rank, n)
    return ((*stack, rank, n), right) if is_right(shape) else ((*stack, m, rank), left)


def project(g: Float[Array, "*L m n"], p: Float[Array, "*L _ _"]) -> Float[Array, "*L _ _"]:
    """R, the coordinates of G in the subspace."""
    if is_right(g.shape):
        return jnp.einsum("...mn,...rn->...mr", g, p)
    return jnp.einsum("...mr,...mn->...rn", p, g)


def back(r: Float[Array, "*L _ _"], p: Float[Array, "*L _ _"], shape: tuple[int, ...]) -> Float[Array, "*L m n"]:
    """The matrix of this shape that has the coordinates R."""
    return jnp.einsum("...mr,...rn->...mn", *((r, p) if is_right(shape) else (p, r)))


def find(g: Float[Array, "*L m n"], rank: int, method: str = "svd") -> Float[Array, "*L _ _"]:
    """The projector onto the `rank` largest singular directions of G, computed in float32.

    Args:
      method: a key of `METHODS`.
    """

    def one(g: Array) -> Array:
        wide = (g.T if is_right(g.shape) else g).astype(jnp.float32)
        vectors = positive(METHODS[method](wide, rank)).astype(g.dtype)
        return vectors.T if is_right(g.shape) else vectors

    return linalg.one_by_one(one, g)


def svd(g: Float[Array, "k n"], rank: int) -> Float[Array, "k r"]:
    """Left singular vectors, exact."""
    return jnp.linalg.svd(g, full_matrices=False)[0][:, :rank]


def iterate(g: Float[Array, "k n"], rank: int) -> Float[Array, "k r"]:
    """Left singular vectors by subspace iteration (arXiv 0909.4061, algorithms 4.4 and 5.3): products, and QR of thin
    matrices, which accelerators are good at. Near what `svd` gives where the singular values fall."""
    size = min(rank + OVERSAMPLE, *g.shape)
    with jax.default_matmul_precision("highest"):
        q = jnp.linalg.qr(g @ jax.random.normal(jax.random.key(0), (g.shape[1], size)))[0]
        for _ in range(ROUNDS):
            q = jnp.linalg.qr(g @ jnp.linalg.qr(g.T @ q)[0])[0]
        inside = q.T @ g
        rotation = jnp.linalg.eigh(inside @ inside.T)[1][:, ::-1]  # the largest come last
        return (q @ rotation)[:, :rank]


def positive(vectors: Float[Array, "k r"]) -> Float[Array, "k r"]:
    """The same vectors with their largest entry positive: moments outlive their projector, so a sign that the linear
    algebra library chooses would be visible in the weights."""
    largest = jnp.take_along_axis(vectors, jnp.argmax(jnp.abs(vectors), 0)[None], 0)
    return jnp.where(largest < 0, -vectors, vectors)


METHODS: dict[str, Callable[[Float[Array, "k n"], int], Float[Array, "k r"]]] = {"svd": svd, "iterate": iterate}
