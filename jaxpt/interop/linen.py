"""Any model of ours as a Flax Linen module.

    module = linen.wrap(decoder, cfg)
    variables = module.init(key, ids)          # {"params": ...}, and "fixed" where the model has fixed arrays
    logits = module.apply(variables, ids)

Trainable arrays are in the collection "params", supports and masks in "fixed", so that gradients and optimizers of
"params" never meet them. `to_tree` and `from_tree` go between Linen's variables and our trees without copying.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import jax
from flax import linen as nn

from jaxpt.core import trees
from jaxpt.core.types import Params, PRNGKeyArray

ROOT = "tree"  # the name of the one variable of each collection


class Model(Protocol):
    """What `wrap` takes: a module such as `jaxpt.models.decoder`, or any object with these functions."""

    init: Callable[[PRNGKeyArray, Any], Params]
    apply: Callable[..., Any]


class Wrapped(nn.Module):
    """`model.apply(params, *arguments, cfg)` with parameters kept by Linen."""

    model: Any
    cfg: Any

    @nn.compact
    def __call__(self, inputs: Any, **kwargs: Any) -> Any:
        """The model's output; keyword arguments as for the model's `apply`."""
        # one key for both collections; outside init Linen only looks at the shapes that the initialiser would give
        key = self.make_rng("params") if self.is_initializing() else jax.random.key(0)

        def parts() -> tuple[Params, Params]:
            return trees.split(self.model.init(key, self.cfg))

        has_fixed = bool(jax.tree.leaves(jax.eval_shape(parts)[1]))
        trainable = self.param(ROOT, lambda _: parts()[0])
        fixed = self.variable("fixed", ROOT, lambda: parts()[1]).value if has_fixed else None
        tree = trainable if fixed is None else trees.merge(trainable, fixed)
        return self.model.apply(tree, inputs, self.cfg, **kwargs)


def wrap(model: Any, cfg: Any) -> Wrapped:
    """A Linen module that computes `model.apply` with `cfg`.

    Raises:
      TypeError: `model` has no `init` and `apply`.
    """
    if not callable(getattr(model, "init", None)) or not callable(getattr(model, "apply", None)):
        raise TypeError(f"a model needs functions init(key, cfg) and apply(params, inputs, cfg); got {model!r}")
    return Wrapped(model, cfg)


def to_tree(variables: Any) -> Params:
    """Linen's variables -> our tree of parameters."""
    trainable = variables["params"][ROOT]
    return trees.merge(trainable, variables["fixed"][ROOT]) if "fixed" in variables else trainable


def from_tree(params: Params) -> dict[str, Any]:
    """Our tree of parameters -> variables for `module.apply`."""
    trainable, fixed = trees.split(params)
    variables: dict[str, Any] = {"params": {ROOT: trainable}}
    return variables | {"fixed": {ROOT: fixed}} if jax.tree.leaves(fixed) else variables
