"""y = x W^T with W made of blocks, most of which are not there (a variant of SPDF, arXiv 2303.10464)."""

from pallas_kernels.block_sparse.layout import densify
from pallas_kernels.block_sparse.operation import block_sparse, choice

__all__ = ["block_sparse", "choice", "densify"]
