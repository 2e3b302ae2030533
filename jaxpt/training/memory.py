"""Bytes per chip of a decoder's training step, from its spec alone, in milliseconds and without a compiler.

What is passed into a step (parameters, optimizer, fixed arrays, batch) is exact: shapes, formats and the sharding rules
decide it. What lives inside the step is a model of it, calibrated on programs of the TPU compiler: at its peak a chip holds

    gradients     one in the parameters' format; with microbatches a second one and a float32 sum
    saved         what the forward pass keeps for the backward pass, by the remat policy
    workspace     the larger of one block's backward pass and the chunked head's, with the weights gathered for them,
                  less what the compiler keeps in the core's own fast memory

`tests/training/test_memory.py` holds it to compiled numbers. SLTrain's own count, weights and Adam's moments alone, is
`jaxpt.training.ledger.memory_model`; `side_by_side` gives both.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxpt import weights
from jaxpt.core import spec as specs
from jaxpt.core import trees
from jaxpt.core.names import nearest_error
from jaxpt.core.types import Params, PyTree
from jaxpt.layers import stack
from jaxpt.layers.mlp import gated
from jaxpt.models import decoder
from jaxpt.objectives.cross_entropy import chunk_length
from jaxpt.sharding.rules import partition_spec
from jaxpt.training.ledger import memory_model
from jaxpt.training.state import like_parameters

# Values of each kind that a block's backward pass holds at once, per token: of the model width, of the feed-forward width,
# of the heads (each head's dimension padded to a vector register's 128 lanes). Fitted to compiled programs.
WIDTHS, FFNS, HEADS = 8.0, 10.0, 14.0
FAST_MEMORY = 128 * 2**20
LANES = 128


@dataclasses.dataclass(frozen=True)
class Estimate:
    """Bytes of one chip. The first four are exact, the last three a model."""

    parameters: float
    optimizer: float
    fixed: float
    batch: float
    gradients: float
    saved: float
    workspace: float

    @property
    def passed_in(self) -> float:
        """What lives between two steps."""
        return self.parameters + self.optimizer + self.fixed + self.batch

    @property
    def temporaries(self) -> float:
        """What lives inside a step."""
        return self.gradients + self.saved + self.workspace

    @property
    def total(self) -> float:
        """All of it."""
        return self.passed_in + self.temporaries


def estimate(
    spec: Params,
    optimizer: optax.GradientTransformation,
    cfg: decoder.Config,
    batch: int,
    length: int,
    *,
    sizes: Mapping[str, int] | None = None,
    accumulate: int = 1,
) -> Estimate:
    """Bytes per chip of a step of `batch` sequences over all chips.

    Args:
      sizes: of the mesh axes; one chip by default.
      accumulate: microbatches.

    Raises:
      ValueError: a remat policy that is not known, a batch that the chips do not share evenly, a model with experts.
    """
    if cfg.experts is not None:
        raise ValueError(f"the memory of experts is not modelled, got {cfg.experts}; compile the step to count it")
    sizes = {"data": 1, "fsdp": 1, "model": 1, "expert": 1} | dict(sizes or {})
    split = sizes["data"] * sizes["fsdp"] * accumulate
    if batch % split:
        raise ValueError(f"a batch of {batch} sequences cannot be shared evenly by {split} microbatches and chips")
    rows = batch // split
    trainable, fixed = trees.split(spec)
    share = _shares(spec, sizes)
    state = jax.eval_shape(optimizer.init, specs.abstract(trainable))
    gradient = _bytes(trainable, share)
    count = sum(leaf.size / share[path] for path, leaf in trees.leaves_with_path(trainable))
    return Estimate(
        parameters=gradient,
        optimizer=_state_bytes(state, spec, sizes),
        fixed=_bytes(fixed, share),
        batch=3 * 4.0 * rows * accumulate * length,
        gradients=gradient + (gradient + 4 * count if accumulate > 1 else 0),
        saved=_saved(cfg, rows * length, sizes["model"]),
        workspace=max(0.0, _workspace(spec, cfg, rows, length, sizes) - FAST_MEMORY),
    )


def side_by_side(spec: Params, found: Estimate) -> dict[str, float]:
    """Bytes of weights and moments: this estimate's on one chip, and as SLTrain's paper counts them over all chips."""
    return {"estimate": found.parameters + found.optimizer + found.fixed, "paper": memory_model(spec)["total"]}


def _shares(spec: Params, sizes: Mapping[str, int]) -> dict[str, int]:
    """path -> over how many chips the array is split."""
    return {path: _split(leaf.axes, leaf.shape, sizes) for path, leaf in trees.leaves_with_path(spec)}


def _split(axes: Sequence[str | None], shape: Sequence[int], sizes: Mapping[str, int]) -> int:
    entries = partition_spec(axes, shape, sizes)
    names = [n for e in entries if e is not None for n in ((e,) if isinstance(e, str) else e)]
    return math.prod(sizes[n] for n in names)


def _bytes(tree: PyTree, share: Mapping[str, int]) -> float:
    return sum(leaf.nbytes / share[path] for path, leaf in trees.leaves_with_path(tree))


def _state_bytes(state: PyTree, spec: Params, sizes: Mapping[str, int]) -> float:
    """What the optimizer keeps, split as `training.state.state_shardings` does."""
    axes = like_parameters(state, spec)
    leaves = trees.leaves_with_path(state)
    return sum(math.prod(x.shape) * x.dtype.itemsize / _split(axes[path], x.shape, sizes) for path, x in leaves)


def _saved(cfg: decoder.Config, tokens: int, model: int) -> float:
    """Bytes that the forward pass keeps of every layer."""
    if cfg.remat not in stack.REMAT:
        raise nearest_error("remat policy", cfg.remat, stack.REMAT)
    n, width = jnp.dtype(cfg.compute_dtype).itemsize, cfg.width
    heads, groups = cfg.heads * cfg.per_head / model, cfg.groups * cfg.per_head / model
    ffn = (2 if gated(cfg.activation) else 1) * cfg.ffn / model
    per_token: float = n * width  # the block's input
    if cfg.remat == "dots":  # and every product with a matrix
        per_token += n * (heads + 2 * groups + 2 * width + ffn)
    elif cfg.remat == "none":  # and the norms' float32 values, attention's inputs and output, the activation's parts
        padded = LANES * math.ceil(cfg.per_head / LANES) / cfg.per_head
        per_token += 2 * n * width + 6 * 4 * width + n * padded * (2 * heads + 2 * groups) + 3 * n * ffn
    return float(cfg.layers * tokens * per_token)


def _workspace(spec: Params, cfg: decoder.Config, rows: int, length: int, sizes: Mapping[str, int]) -> float:
    n, tokens, model = jnp.dtype(cfg.compute_dtype).itemsize, rows * length, sizes["model"]
    padded = cfg.heads * LANES * math.ceil(cfg.per_head / LANES) / model
    values = tokens * (WIDTHS * cfg.width + FFNS * cfg.ffn / model + HEADS * padded)
    matrices: dict[str, Any] = weights.matrices(spec)
    one_layer = sum(math.prod(w.shape) for path, w in matrices.items() if path.startswith("blocks/"))
    # Gathered, or rebuilt from their form: this layer's and, while it is at work, the next one's.
    gathered = 2 * one_layer / model * n
    chunk = rows * chunk_length(length, cfg.vocab_size) * cfg.vocab_size / model
    head = 2 * n * cfg.vocab_size * cfg.width / model + 3 * n * chunk
    return max(gathered + n * values, head)
