"""Models: each is `Config`, `spec(cfg)`, `init(key, cfg)` and `apply(params, x, cfg)`."""

from __future__ import annotations

import sys
from typing import Any


def of(cfg: Any) -> Any:
    """The module of the model that a configuration describes: of(encoder.Config()) is `jaxpt.models.encoder`."""
    return sys.modules[type(cfg).__module__]
