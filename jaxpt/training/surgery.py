"""Events that change what the weights are: another form, a merge, a mask. What they leave behind resumes like any state.

    ramps = Ramps(at=(0.9,), recovery_steps=100)             # the rate recovers: `optim.RampedAdam(ramps=ramps)`
    Pretrain(..., events=(Switch(ramps),))                    # reverse sparsification, or SPDF's dense switch
    Pretrain(..., events=(Merges(Ramps(every=500)),))         # ReLoRA
    Pretrain(..., events=(Prunes(PruneSchedule(0.8)),))       # The Journey Matters

`Switch`, `Merges` and `Prunes` describe events in a run's configuration; `switch`, `merges` and `prunes` make them. There
`optimizer` is the one that the step was built with: `Job.optimizer`, or `proxy.rate_in_state(cfg)` for a proxy run.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxpt import weights
from jaxpt.core import trees
from jaxpt.core.rng import fold
from jaxpt.core.types import Array, Params, PyTree
from jaxpt.optim.moments import has_moments, reset_moments
from jaxpt.optim.restarts import Ramps
from jaxpt.training.events import EventConfig, Scheduled, in_place
from jaxpt.training.state import TrainState
from jaxpt.weights import pruning, relora
from jaxpt.weights.pruning import PrunePlan, PruneSchedule


@dataclasses.dataclass(frozen=True)
class Switch(EventConfig):
    """`switch`, as part of a run's description."""

    ramps: Ramps
    where: str = "*"
    to: weights.Form | None = None

    def for_run(self, steps: int, optimizer: optax.GradientTransformation) -> Sequence[Scheduled]:
        return [switch(self.ramps, optimizer, where=self.where, to=self.to)]


@dataclasses.dataclass(frozen=True)
class Merges(EventConfig):
    """`merges`, as part of a run's description."""

    ramps: Ramps
    prune: float = 0.999

    def for_run(self, steps: int, optimizer: optax.GradientTransformation) -> Sequence[Scheduled]:
        return [merges(self.ramps, self.prune)]


@dataclasses.dataclass(frozen=True)
class Prunes(EventConfig):
    """`prunes`, planned over the updates of the run, as part of its description."""

    schedule: PruneSchedule
    where: str = "*"
    scope: str = "matrix"

    def for_run(self, steps: int, optimizer: optax.GradientTransformation) -> Sequence[Scheduled]:
        plan = pruning.plan(self.schedule, n0=1, tokens_per_update=1, updates=steps)
        return [prunes(plan, where=self.where, scope=self.scope)]


def switch(
    ramps: Ramps,
    optimizer: optax.GradientTransformation,
    *,
    where: str | Sequence[str],
    to: weights.Form | None = None,
    shardings: TrainState | None = None,
) -> Scheduled:
    """The matrices at `where` in another form (dense by default) from some update on; all moments start afresh, the schedule
    goes on.

    Dense is exact: reverse sparsification of Monarch matrices (arXiv 2204.00595, section 3.2), or the dense phase after
    sparse training (SPDF, arXiv 2303.10464), whose revived entries start at zero. ReLoRA after a full-rank start is
    another use.

    Args:
      shardings: of the new state (`state_shardings` of the new spec), on a mesh.
    """
    form = weights.Dense() if to is None else to

    def change(state: TrainState) -> TrainState:
        key = fold(jax.random.wrap_key_data(state.seed), "switch", state.step)
        params = weights.convert(key, state.params, where=where, to=form)
        trainable, fixed = trees.split(params)
        restarted = restarted_for(optimizer, state.opt_state, trainable)
        return dataclasses.replace(state, trainable=trainable, fixed=fixed, opt_state=restarted)

    changed = jax.jit(change, out_shardings=shardings)
    return ramps.scheduled(lambda step, state: changed(state), changes_tree=True)


def restarted_for(optimizer: optax.GradientTransformation, old: PyTree, trainable: Params) -> PyTree:
    """A state of the optimizer for these parameters: all moments at zero, the schedule's place and rates as in `old`."""
    before = dict(trees.leaves_with_path(old))

    def kept(path: str, leaf: Array) -> Array:
        known = before.get(path)
        return leaf if known is None or (known.shape, known.dtype) != (leaf.shape, leaf.dtype) else known

    state = trees.map_with_path(kept, optimizer.init(trainable))
    return reset_moments(state) if has_moments(state) else state


def merges(ramps: Ramps, prune: float = 0.999) -> Scheduled:
    """ReLoRA's merges (arXiv 2307.05695), each with this share of the factors' moments set to zero.

    Raises (when due):
      ValueError: there is no ReLoRA matrix.
    """
    return ramps.scheduled(lambda step, state: in_place(_merged, state, prune, static=(0,)))


def _merged(state: TrainState, prune: float) -> TrainState:
    key = fold(jax.random.wrap_key_data(state.seed), "relora", state.step)
    trainable, fixed = trees.split(relora.merge(key, state.params))
    pruned = relora.prune_moments(state.opt_state, prune)
    return dataclasses.replace(state, trainable=trainable, fixed=fixed, opt_state=pruned)


def prunes(plan: PrunePlan, *, where: str | Sequence[str] = "*", scope: str = "matrix") -> Scheduled:
    """The prune events of a plan: weights and moments that a mask no longer holds become zero. No array changes its shape.

    Raises (when the run starts):
      ValueError: the run has not as many updates as the plan.
    """
    densities, patterns = dict(plan.events), (where,) if isinstance(where, str) else tuple(where)

    def due(step: int, total: int) -> bool:
        if total != plan.updates:
            raise ValueError(f"the pruning plan is of {plan.updates} updates, the run of {total}")
        return step in densities

    def event(step: int, state: TrainState) -> TrainState:
        number = pruning.counts(state.params, densities[step], patterns, scope)
        return in_place(_pruned, state, number, patterns, static=(1,))

    return Scheduled(event, due)


def _pruned(state: TrainState, number: pruning.Counts, where: tuple[str, ...]) -> TrainState:
    params = pruning.keep(state.params, number, where)
    trainable, fixed = trees.split(params)
    opt_state = mask_moments(state.opt_state, params)
    return dataclasses.replace(state, trainable=trainable, fixed=fixed, opt_state=opt_state)


def mask_moments(opt_state: PyTree, params: Params) -> PyTree:
    """Every moment of a masked matrix zero where its mask is off, for optimizers that keep trees like the parameters'."""
    masked = {p: w for p, w in weights.matrices(params).items() if isinstance(w, weights.MaskedMatrix)}

    def one(path: str, leaf: Any) -> Any:
        like = next((w for p, w in masked.items() if path == p or path.endswith("/" + p)), None)
        if like is None or not isinstance(leaf, weights.MaskedMatrix):
            return leaf
        return jax.tree.map(lambda moment: jnp.where(like.active(), moment, 0), leaf)

    return trees.map_with_path(one, opt_state, is_leaf=weights.is_matrix)
