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


def from_dict(described: Any, classes: Iterable[type]) -> Any:
    """The inverse of `to_dict`: frozen dataclasses by the name under "class", tuples for lists.

    Args:
      classes: the dataclasses that may occur. A field that the description lacks keeps its default.

    Raises:
      ValueError: a class that is not among them, two of the same name, or a field that the class does not have.
    """
    known: dict[str, type] = {}
    for cls in classes:
        if known.setdefault(cls.__name__, cls) is not cls:
            raise ValueError(f"two classes are named {cls.__name__!r}: {known[cls.__name__]} and {cls}; give one")
    return _from_dict(described, known)


def _from_dict(described: Any, known: Mapping[str, type]) -> Any:
    if isinstance(described, (list, tuple)):
        return tuple(_from_dict(x, known) for x in described)
    if not isinstance(described, Mapping):
        return described
    values = {k: _from_dict(v, known) for k, v in described.items() if k != "class"}
    if "class" not in described:
        return values
    if described["class"] not in known:
        raise nearest_error("class", str(described["class"]), known)
    cls: Any = known[described["class"]]
    fields = [f.name for f in dataclasses.fields(cls)]
    for name in values:
        if name not in fields:
            raise nearest_error(f"field of {cls.__name__}", name, fields)
    return cls(**values)


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
    annotation = next(f.type for f in dataclasses.fields(cfg) if f.name == keys[0])
    new = _replace(current, keys[1:], value, whole) if keys[1:] else _convert(current, value, whole, annotation)
    return dataclasses.replace(cfg, **{keys[0]: new})


def _dotted(cfg: Any, prefix: str = "") -> list[str]:
    found = []
    for f in dataclasses.fields(cfg) if dataclasses.is_dataclass(cfg) else []:
        child = getattr(cfg, f.name)
        nested = dataclasses.is_dataclass(child) and not isinstance(child, type)
        found += _dotted(child, f"{prefix}{f.name}.") if nested else [prefix + f.name]
    return found


def _convert(current: Any, value: Any, key: str, annotation: Any) -> Any:
    """`value` as what the field holds now or its annotation allows: bool, int, float, str, tuple, None."""
    words = {w.strip() for w in (annotation if isinstance(annotation, str) else str(annotation)).split("|")}
    kinds = [] if current is None else [type(current)]
    kinds += [kind for kind in (bool, int, float, str) if kind.__name__ in words and kind not in kinds]
    optional = current is None or "None" in words
    named = " or ".join(kind.__name__ for kind in kinds)
    if isinstance(value, str) and (str not in kinds or (optional and value.lower() == "none")):
        try:
            value = ast.literal_eval({"true": "True", "false": "False", "none": "None"}.get(value.lower(), value))
        except (ValueError, SyntaxError):
            if kinds:
                raise ValueError(f"{key}={value!r} is not a {named}") from None
    if not kinds or (optional and value is None):
        return value
    for kind in sorted(kinds, key=lambda kind: kind is not type(value)):
        if type(value) is kind:
            return value
        if kind is tuple and isinstance(value, list):
            return tuple(value)
        if (kind is float and type(value) is int) or (kind is int and type(value) is float and value.is_integer()):
            return kind(value)
    raise ValueError(f"{key}={value!r} should be a {named}, got a {type(value).__name__}")
