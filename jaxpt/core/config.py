"""Configuration: frozen dataclasses, changed by dotted keys, written down whole.

`override(cfg, {"model.layers": "4"})` gives a copy; values may be strings from a command line and are parsed as Python
literals against the type already there. Unknown keys are errors that name the nearest one.
"""

from __future__ import annotations

import ast
import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

from jaxpt.core.names import nearest_error


def parse_overrides(arguments: Iterable[str]) -> dict[str, str]:
    """["a.b=1", "--c", "2"] -> {"a.b": "1", "c": "2"}.

    Raises:
      ValueError: an argument that is neither `key=value` nor `--key value`.
    """
    found: dict[str, str] = {}
    words = list(arguments)
    while words:
        word = words.pop(0)
        key, equals, value = word.removeprefix("--").partition("=")
        if not equals:
            if not word.startswith("--") or not words:
                raise ValueError(f"cannot read override {word!r}: write key=value or --key value")
            value = words.pop(0)
        found[key] = value
    return found


def override(cfg: Any, changes: Mapping[str, Any]) -> Any:
    """A copy of the dataclass `cfg` with dotted keys replaced.

    Raises:
      ValueError: unknown key (the nearest one is named), or a value that does not fit the field.
    """
    for key, value in changes.items():
        cfg = _replace(cfg, key.split("."), value, key)
    return cfg


def to_dict(cfg: Any) -> Any:
    """Plain dicts, lists and scalars, with the class name of every dataclass under "class"."""
    if dataclasses.is_dataclass(cfg) and not isinstance(cfg, type):
        fields = {f.name: to_dict(getattr(cfg, f.name)) for f in dataclasses.fields(cfg)}
        return {"class": type(cfg).__name__, **fields}
    if isinstance(cfg, Mapping):
        return {str(k): to_dict(v) for k, v in cfg.items()}
    if isinstance(cfg, (list, tuple)):
        return [to_dict(v) for v in cfg]
    if cfg is None or isinstance(cfg, (str, int, float, bool)):
        return cfg
    return getattr(cfg, "__name__", str(cfg))


def differences(old: Any, new: Any, prefix: str = "") -> list[str]:
    """Lines "key: old -> new" for two results of `to_dict`."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        keys = sorted(set(old) | set(new))
        return [line for k in keys for line in differences(old.get(k), new.get(k), f"{prefix}{k}.")]
    return [] if old == new else [f"{prefix.rstrip('.')}: {old!r} -> {new!r}"]


def _replace(cfg: Any, keys: list[str], value: Any, whole: str) -> Any:
    names = [f.name for f in dataclasses.fields(cfg)] if dataclasses.is_dataclass(cfg) else []
    if keys[0] not in names:
        raise nearest_error("config key", whole, _dotted(cfg, whole[: len(whole) - len(".".join(keys))]))
    current = getattr(cfg, keys[0])
    new = _replace(current, keys[1:], value, whole) if len(keys) > 1 else _convert(current, value, whole)
    return dataclasses.replace(cfg, **{keys[0]: new})


def _dotted(cfg: Any, prefix: str = "") -> list[str]:
    found = []
    for f in dataclasses.fields(cfg) if dataclasses.is_dataclass(cfg) else []:
        child = getattr(cfg, f.name)
        nested = dataclasses.is_dataclass(child) and not isinstance(child, type)
        found += _dotted(child, f"{prefix}{f.name}.") if nested else [prefix + f.name]
    return found


def _convert(current: Any, value: Any, key: str) -> Any:
    """The value as the type of the current one: bool, int, float, str, tuple; anything goes where the current is None."""
    if isinstance(value, str) and not isinstance(current, str):
        try:
            value = ast.literal_eval({"true": "True", "false": "False", "none": "None"}.get(value.lower(), value))
        except (ValueError, SyntaxError):
            if current is not None:
                raise ValueError(f"{key}={value!r} is not a {type(current).__name__}") from None
    if isinstance(current, tuple) and isinstance(value, (list, tuple)):
        return tuple(value)
    if isinstance(current, float) and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if isinstance(current, int) and not isinstance(current, bool) and isinstance(value, float) and value.is_integer():
        return int(value)
    if current is not None and value is not None and type(value) is not type(current):
        raise ValueError(f"{key}={value!r} should be a {type(current).__name__}, got a {type(value).__name__}")
    return value
