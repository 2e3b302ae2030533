"""y = x (B A + S)^T with S sparse on a fixed support: the linear layer of SLTrain (arXiv 2406.02214, section 3)."""

from pallas_kernels.sparse_low_rank.operation import choice, sparse_low_rank
from pallas_kernels.sparse_low_rank.reference import sparse_low_rank_reference
from pallas_kernels.sparse_low_rank.xla import densify

__all__ = ["choice", "densify", "sparse_low_rank", "sparse_low_rank_reference"]
