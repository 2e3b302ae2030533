"""What every metric returns: numbers, and what they are numbers of."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from jaxpt.core import config


@dataclasses.dataclass(frozen=True)
class Report:
    """Attributes:
    metric: its name.
    version: of its definition; numbers of different versions are not comparable.
    items: how many were scored.
    data: hash of the evaluation data.
    values: the numbers by name.
    per_item: arrays [items] by name, what paired tests need; they are left out of `to_dict`.
    """

    metric: str
    version: int
    items: int
    data: str
    values: Mapping[str, float]
    per_item: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict, repr=False, compare=False)

    def __getitem__(self, name: str) -> float:
        return self.values[name]

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        head = {"metric": self.metric, "version": self.version, "items": self.items, "data": self.data}
        return head | {"values": {name: float(x) for name, x in self.values.items()}}


def fingerprint(items: Iterable[Any]) -> str:
    """Hash of evaluation data: dataclasses, arrays, or anything that JSON can hold. Order counts."""
    digest = hashlib.sha256()
    for item in items:
        if isinstance(item, np.ndarray):
            text = f"{item.dtype.str}{item.shape}".encode() + np.ascontiguousarray(item).tobytes()
        else:
            text = json.dumps(config.to_dict(item), sort_keys=True, ensure_ascii=True).encode()
        digest.update(len(text).to_bytes(8, "little") + text)
    return digest.hexdigest()[:16]
