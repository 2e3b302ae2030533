"""Several optimizers in one: each array goes to the first group whose pattern matches its path."""

from __future__ import annotations

from collections.abc import Sequence

import optax

from jaxpt.core import trees
from jaxpt.core.types import PyTree


def groups(rules: Sequence[tuple[str, optax.GradientTransformation]]) -> optax.GradientTransformation:
    """[(path pattern, optimizer), ...] as one optimizer, for example

        groups([("embedding", adam(1e-3)), ("*", adam(3e-3, weight_decay=0.1))])

    Raises:
      ValueError: (at init) an array that no pattern matches.
    """

    def label(path: str, _: object) -> str:
        for index, (pattern, _optimizer) in enumerate(rules):
            if trees.matches(path, pattern):
                return str(index)
        raise ValueError(f"no optimizer group matches {path!r}; the patterns are {[p for p, _ in rules]}")

    def labels(params: PyTree) -> PyTree:
        return trees.map_with_path(label, params)

    return optax.multi_transform({str(i): optimizer for i, (_, optimizer) in enumerate(rules)}, labels)
