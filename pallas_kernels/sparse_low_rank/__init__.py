"""y = x (B A + S)^T with S sparse on a fixed support: the linear layer of SLTrain (arXiv 2406.02214, section 3)."""

from pallas_kernels.sparse_low_rank.reference import sparse_low_rank_reference
from pallas_kernels.sparse_low_rank.xla import densify, sparse_low_rank

__all__ = ["densify", "sparse_low_rank", "sparse_low_rank_reference"]
