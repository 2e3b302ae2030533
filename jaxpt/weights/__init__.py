"""Forms of a matrix, one file each, and the two functions that use them: `linear` and `convert`.

params = weights.convert(key, params, where="blocks/mlp/*", to=weights.LowRank(rank=16))
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from jaxpt.core import trees
from jaxpt.core.rng import fold
from jaxpt.core.types import Array, Float, Params, PRNGKeyArray
from jaxpt.weights.base import Cost, Form, Matrix
from jaxpt.weights.block_sparse import BlockSparse, BlockSparseMatrix
from jaxpt.weights.dense import Dense, DenseMatrix
from jaxpt.weights.low_rank import LowRank, LowRankMatrix
from jaxpt.weights.masked import Masked, MaskedMatrix
from jaxpt.weights.monarch import BlockDiagonal, BlockDiagonalMatrix, Monarch, MonarchMatrix
from jaxpt.weights.relora import ReLoRA, ReLoRAMatrix
from jaxpt.weights.sparse_low_rank import SparseLowRank, SparseLowRankMatrix

FORMS: dict[str, type[Form]] = {
    "block_diagonal": BlockDiagonal,
    "block_sparse": BlockSparse,
    "dense": Dense,
    "low_rank": LowRank,
    "masked": Masked,
    "monarch": Monarch,
    "relora": ReLoRA,
    "sparse_low_rank": SparseLowRank,
}

Rules = tuple[tuple[str, Form], ...]  # (path pattern, form); the first pattern that matches decides

__all__ = [
    "FORMS",
    "BlockDiagonal",
    "BlockDiagonalMatrix",
    "BlockSparse",
    "BlockSparseMatrix",
    "Cost",
    "Dense",
    "DenseMatrix",
    "Form",
    "LowRank",
    "LowRankMatrix",
    "Masked",
    "MaskedMatrix",
    "Matrix",
    "Monarch",
    "MonarchMatrix",
    "ReLoRA",
    "ReLoRAMatrix",
    "Rules",
    "SparseLowRank",
    "SparseLowRankMatrix",
    "choose",
    "convert",
    "is_matrix",
    "linear",
    "matrices",
]


def linear(x: Float[Array, "*B I"], p: dict[str, Any]) -> Float[Array, "*B O"]:
    """x W^T + bias for p = {"kernel": a Matrix, "bias": [out], optional}."""
    y = p["kernel"].apply(x)
    return y + p["bias"].astype(y.dtype) if "bias" in p else y


def is_matrix(x: Any) -> bool:
    """Whether x is a weight form holding arrays, specs or shapes."""
    return isinstance(x, Matrix)


def matrices(params: Params) -> dict[str, Matrix]:
    """path -> matrix, for every matrix of a tree of parameters or of specs."""
    return {p: w for p, w in trees.leaves_with_path(params, is_leaf=is_matrix) if is_matrix(w)}


def choose(path: str, rules: Rules, default: Form) -> Form:
    """The form of the matrix at `path`: that of the first rule whose pattern matches, else the default."""
    return next((form for pattern, form in rules if trees.matches(path, pattern)), default)


def convert(key: PRNGKeyArray, params: Params, *, where: str | Sequence[str], to: Form) -> Params:
    """The same tree with the matrices whose path matches `where` re-expressed in the form `to`.

    Goes through the dense matrix, so any form converts to any other; what is lost is what `to.from_dense` projects away, and
    each form's docstring says it.

    Raises:
      ValueError: no matrix matches `where`, or one has a shape that the form cannot have.
    """
    chosen = [p for p in matrices(params) if trees.matches_any(p, where)]
    if not chosen:
        raise ValueError(f"no matrix matches {where!r}; there are {sorted(matrices(params))}")

    def one(path: str, leaf: Any) -> Any:
        return to.from_dense(fold(key, path), leaf.dense()) if path in chosen else leaf

    return trees.map_with_path(one, params, is_leaf=is_matrix)
