"""Monarch matrices (arXiv 2204.00595): two block-diagonal factors and a permutation; and block-diagonal ones."""

from pallas_kernels.monarch.layout import from_authors, to_authors, to_block, to_canonical
from pallas_kernels.monarch.operation import block_diagonal, block_diagonal_choice, choice, monarch

__all__ = [
    "block_diagonal",
    "block_diagonal_choice",
    "choice",
    "from_authors",
    "monarch",
    "to_authors",
    "to_block",
    "to_canonical",
]
