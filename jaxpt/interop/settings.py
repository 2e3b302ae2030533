"""A model's configuration file, read with distrust: every value is checked, nothing in it is executed."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxpt.data.documents import DataError

REQUIRED: Any = object()


@dataclasses.dataclass(frozen=True)
class Settings:
    """Keys and values from `source`, such as a config.json."""

    values: Mapping[str, Any]
    source: str

    def size(self, key: str, default: Any = REQUIRED) -> int:
        """An integer from 1 to 2^31.

        Raises:
          DataError: it is absent without a default, or something else.
        """
        value = self._get(key, default)
        if type(value) is not int or not 0 < value < 2**31:
            raise self._error(key, value, "a positive integer")
        return value

    def number(self, key: str, default: Any = REQUIRED) -> float:
        """A finite number > 0; raises as `size`."""
        value = self._get(key, default)
        if type(value) not in (int, float) or not 0 < value < float("inf"):
            raise self._error(key, value, "a positive number")
        return float(value)

    def choice(self, key: str, known: Mapping[Any, Any], default: Any = REQUIRED) -> Any:
        """`known[value]`; raises as `size`, naming what is known."""
        value = self._get(key, default)
        if isinstance(value, (dict, list)) or value not in known:
            raise self._error(key, value, f"one of {', '.join(map(repr, known))}, which this library implements")
        return known[value]

    def demand(self, only: Mapping[str, Sequence[Any]]) -> None:
        """Raises a DataError where a key is present with a value that changes the architecture to one we do not have."""
        for key, allowed in only.items():
            if key in self.values and self.values[key] not in allowed:
                names = " or ".join(map(repr, allowed))
                raise self._error(key, self.values[key], f"{names}, which this library implements")

    def rope(self, base: float, fraction: float) -> tuple[float, float]:
        """(base, rotated share of a head) under any of the names these have had; scaled variants are refused."""
        inner = self.values.get("rope_parameters") or self.values.get("rope_scaling") or {}
        if not isinstance(inner, dict):
            raise self._error("rope_parameters", inner, "a table")
        kind = inner.get("rope_type", inner.get("type", "default"))
        if kind != "default":
            raise self._error("rope_type", kind, "'default', the only one this library implements")
        both = Settings({**self.values, **inner}, self.source)
        base = both.number("rope_theta", self.values.get("rotary_emb_base", base))
        fraction = both.number("partial_rotary_factor", self.values.get("rotary_pct", fraction))
        if fraction > 1:
            raise self._error("partial_rotary_factor", fraction, "a share of at most 1")
        return base, fraction

    def _get(self, key: str, default: Any) -> Any:
        value = self.values.get(key, default)
        if value is None and default is not REQUIRED:
            value = default
        if value is REQUIRED:
            raise DataError(f"{self.source} has no {key!r}")
        return value

    def _error(self, key: str, value: Any, expected: str) -> DataError:
        shown = repr(value)
        return DataError(f"{self.source}: {key} is {shown[:80]}, expected {expected}")


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file.

    Raises:
      DataError: it is missing, not JSON, or not an object.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(f"{path} is missing") from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is not JSON: {error}") from None
    if not isinstance(found, dict):
        raise DataError(f"{path} should hold a JSON object, got a {type(found).__name__}")
    return found
