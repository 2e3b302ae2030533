"""The budget ledger: what a run has used and what it holds.

Everything in it is an exact function of the updates done, so a resumed run ends with the numbers of an
uninterrupted one.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from jaxpt.core import spec as specs
from jaxpt.core import trees
from jaxpt.core.types import Params, PyTree
from jaxpt.training.state import TrainState
from jaxpt.weights import Cost

# Of one update; a function of (parameters, update from 0) where events change their form, or phases the objective
Flops = Cost | Callable[[Params, int], Cost] | None


@dataclasses.dataclass(frozen=True)
class Ledger:
    """Attributes:
    steps: updates done.
    tokens, unique_tokens: real tokens trained on, and how many of them were new.
    flops_nominal, flops_executed: operations of all updates, forward and backward (`weights.Cost`).
    parameters: trainable numbers, now.
    bytes_persistent: parameters, fixed arrays and optimizer state, over all devices, now.
    """

    steps: int = 0
    tokens: float = 0.0
    unique_tokens: float = 0.0
    flops_nominal: int = 0
    flops_executed: int = 0
    parameters: int = 0
    bytes_persistent: int = 0

    def of(self, state: TrainState) -> Ledger:
        """The same with the sizes of this state."""
        return dataclasses.replace(
            self, parameters=specs.count(state.trainable), bytes_persistent=persistent_bytes(state)
        )

    def after(self, step: int, cost: Cost) -> Ledger:
        """After update `step`, of this cost. Operations are integers: no sum of them is ever rounded."""
        return dataclasses.replace(
            self,
            steps=step,
            flops_nominal=self.flops_nominal + int(cost.nominal),
            flops_executed=self.flops_executed + int(cost.executed),
        )

    def with_tokens(self, counts: Mapping[str, float]) -> Ledger:
        """With the loader's counts "tokens" and "unique_tokens" at this step."""
        return dataclasses.replace(self, tokens=counts["tokens"], unique_tokens=counts["unique_tokens"])

    def to_dict(self) -> dict[str, Any]:
        """For JSON; `Ledger(**found)` reads it back."""
        return dataclasses.asdict(self)


def cost_of(flops: Flops, params: Params, update: int = 0) -> Cost:
    """The cost of one update of these parameters; zero where it is not known."""
    if flops is None:
        return Cost(0.0, 0.0)
    return flops if isinstance(flops, Cost) else flops(params, update)


def persistent_bytes(state: TrainState) -> int:
    """Bytes of everything that lives between two updates. Gradients and activations do not."""
    return specs.nbytes((state.trainable, state.fixed, state.opt_state))


def memory_model(params: PyTree, *, weight_bytes: int = 2, adam_bytes: int = 4, index_bytes: int = 8) -> dict[str, int]:
    """Bytes of weights and Adam's moments as SLTrain's paper counts them (arXiv 2406.02214, its main table).

    6 bytes a parameter (bf16 weight, two bf16 moments) and 8 bytes an index (int64) by default; our own
    arrays, whatever their formats, are what `persistent_bytes` counts.

    Args:
      params: parameters, their specs or their shapes. Of the fixed arrays, signed integers are indices, floating ones frozen
        weights without moments, and masks, eight entries to a byte, as large as they are; all but weights under "indices".
    """
    count = specs.count(params)
    fixed = jax.tree.leaves(trees.split(params)[1])

    def entries(kind: Any) -> int:
        return sum(math.prod(x.shape) for x in fixed if jnp.issubdtype(jnp.dtype(x.dtype), kind))

    found = {
        "weights": weight_bytes * (count + entries(jnp.floating)),
        "optimizer": adam_bytes * count,
        "indices": index_bytes * entries(jnp.signedinteger) + entries(jnp.uint8),
    }
    return found | {"total": sum(found.values())}


def lm_flops(*, layers: int, width: int, length: int, vocab: int, sparsity: float, tokens: float) -> float:
    """Training operations of a GPT-2-like decoder as SPDF counts them (arXiv 2303.10464, its table of FLOPs).

    3 (2 (1 - sparsity) 12 L d^2 + 4 S d L + 2 V d) per token: the matrices of the blocks, attention without a causal
    discount, a dense vocabulary projection. With `sparsity` on the blocks alone the saving of a whole model is smaller than
    that of its blocks: 2.5 times for GPT-3 XL at 75 %, whose blocks alone save 4 times.

    Raises:
      ValueError: a sparsity outside [0, 1].
    """
    if not 0 <= sparsity <= 1:
        raise ValueError(f"sparsity {sparsity} is not between 0 and 1")
    blocks, attention = 24 * (1 - sparsity) * layers * width**2, 4 * length * width * layers
    return 3.0 * (blocks + attention + 2 * vocab * width) * tokens
