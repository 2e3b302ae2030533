"""One objective after another on the same weights, optimizer and schedule: what changes is the loss, nothing else.

    Phases(phases=((0.25, CausalLM()), (0.75, MaskedLM(masking=masking))))     # biphasic pretraining (arXiv 2507.00994)

Moments are kept, data go on, and the rate does not start again. A phase of a whole run is that run, bit for bit.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax

from jaxpt.core.types import Params
from jaxpt.objectives.base import Objective


@dataclasses.dataclass(frozen=True, kw_only=True)
class Phases(Objective):
    """Attributes:
    phases: (share of all updates, objective), in order. A phase ends with the update at the rounded-down share of them.
    """

    phases: tuple[tuple[float, Objective], ...]

    def check(self) -> None:
        shares = [share for share, _ in self.phases]
        if not shares or min(shares) < 0 or abs(sum(shares) - 1) > 1e-6:
            raise ValueError(f"the shares of the phases must not be negative and sum to 1, got {shares}")
        first, *others = (trained(objective) for _, objective in self.phases)
        if any(other != first for other in others):
            raise ValueError("the objectives of a run's phases must train the same arrays")

    def on(self, model: Any) -> Phases:
        bound = tuple((share, objective.on(model)) for share, objective in self.phases)
        return dataclasses.replace(self, model=model, phases=bound)

    def spec(self) -> Params:
        return self.phases[0][1].spec()

    def starts(self, steps: int) -> list[tuple[int, Objective]]:
        """(number of its first update, from 0; objective) of every phase that a run of so many updates has."""
        before, found = 0.0, []
        for share, objective in self.phases:
            found.append((int(before * steps + 1e-6), objective))
            before += share
        ends = [first for first, _ in found[1:]] + [steps]
        return [(first, objective) for (first, objective), end in zip(found, ends, strict=True) if end > first]

    @property
    def last(self) -> Objective:
        """That of the last phase."""
        return [objective for share, objective in self.phases if share > 0][-1]


def trained(objective: Objective) -> Any:
    """Shapes and formats of what an objective trains, for comparison."""
    leaves, tree = jax.tree.flatten(objective.spec())
    return tree, [(x.shape, x.dtype) for x in leaves]


def starts(objective: Objective, steps: int) -> list[tuple[int, Objective]]:
    """The phases of any objective; one that has none is the only phase."""
    return objective.starts(steps) if isinstance(objective, Phases) else [(0, objective)]


def last(objective: Objective) -> Objective:
    """The objective that a run ends with."""
    return objective.last if isinstance(objective, Phases) else objective
