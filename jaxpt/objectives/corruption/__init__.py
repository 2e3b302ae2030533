"""Corruption of token rows with static shapes: what masked, denoising and detecting objectives have in common.

Every function takes one row [S] and a key; `over_rows` applies it to a batch, each row with a key of its own, folded from
the number of the row. So a draw depends on (key, row, position) alone: neither padding at the end of a row nor the way a
batch is cut into parts changes it, and a key that is folded from the step gives new draws at every step.

positions       exact numbers of positions without replacement, as static arrays of indices and a mask of the valid ones
masking         [MASK], random and kept tokens at chosen positions; whole words, cells or other units
span_priority   GPT-BERT's short spans that have been masked least before
spans           T5's span corruption with sentinels, and its inverse; on JAX, NumPy and TensorFlow
denoisers       UL2's mixture of denoisers, as rows of a prefix language model
operations      tokens swapped, inserted and removed (MCL)
"""

from jaxpt.objectives.corruption.masking import Masked, Masking
from jaxpt.objectives.corruption.positions import Chosen
from jaxpt.objectives.corruption.rows import over_rows

__all__ = ["Chosen", "Masked", "Masking", "over_rows"]
