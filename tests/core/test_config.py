"""Overriding frozen configurations by dotted keys, and the errors a mistyped command line gets."""

from __future__ import annotations

import dataclasses
import json

import pytest

from jaxpt.core.config import differences, override, parse_overrides, to_dict
from jaxpt.models import decoder
from jaxpt.weights import LowRank


@dataclasses.dataclass(frozen=True)
class Schedule:
    rate: float = 1e-3
    warmup: int = 10
    kind: str = "cosine"


@dataclasses.dataclass(frozen=True)
class Run:
    steps: int = 100
    resume: bool = True
    clip: float | None = None
    name: str | None = None
    limit: int | None = 5
    sizes: tuple[int, ...] = (1, 2)
    schedule: Schedule = Schedule()


@pytest.mark.parametrize(
    ("key", "given", "expected"),
    [
        ("steps", "7", 7),
        ("steps", 7, 7),
        ("steps", "1e3", 1000),
        ("resume", "false", False),
        ("resume", "True", True),
        ("clip", "1", 1.0),
        ("clip", "none", None),
        ("name", "none", None),
        ("name", "7", "7"),
        ("limit", "None", None),
        ("limit", "9", 9),
        ("sizes", "(3,)", (3,)),
        ("sizes", "[3, 4]", (3, 4)),
        ("schedule.rate", "3e-4", 3e-4),
        ("schedule.rate", "1", 1.0),
        ("schedule.kind", "constant", "constant"),
        ("schedule.kind", "none", "none"),
        ("schedule.kind", "3", "3"),
        ("schedule", Schedule(warmup=3), Schedule(warmup=3)),
    ],
)
def test_override_parses_by_the_type_of_the_field(key, given, expected):
    before = Run()
    found = override(before, {key: given})
    for part in key.split("."):
        found = getattr(found, part)
    assert found == expected and type(found) is type(expected)
    assert before == Run()


@pytest.mark.parametrize(
    ("key", "given", "message"),
    [
        ("steps", "many", "steps='many' is not a int"),
        ("steps", "1.5", "steps=1.5 should be a int, got a float"),
        ("steps", "none", "steps=None should be a int"),
        ("steps", "true", "steps=True should be a int, got a bool"),
        ("resume", "1", "resume=1 should be a bool, got a int"),
        ("clip", "high", "clip='high' is not a float"),
        ("limit", "2.5", "limit=2.5 should be a int"),
        ("sizes", "3", "sizes=3 should be a tuple"),
        ("schedule", "3", "schedule=3 should be a Schedule"),
        ("schedule.kind", 3, "schedule.kind=3 should be a str"),
        ("stepz", "3", "unknown config key 'stepz'; did you mean 'steps'"),
        ("schedule.rat", "3", "unknown config key 'schedule.rat'; did you mean 'schedule.rate'"),
        ("shedule.rate", "3", "did you mean 'schedule.rate'"),
        ("steps.more", "3", "unknown config key 'steps.more'"),
        ("zzzz", "3", "Known: clip, limit, name"),
    ],
)
def test_a_wrong_key_or_value_is_an_error_that_says_what_fits(key, given, message):
    with pytest.raises(ValueError, match=message):
        override(Run(), {key: given})


def test_real_configurations_take_overrides():
    cfg = override(decoder.Config(), {"kv_heads": "2", "initializer_stddev": "none", "width": "128"})
    assert (cfg.kv_heads, cfg.initializer_stddev, cfg.width) == (2, None, 128)
    with pytest.raises(ValueError, match="kv_heads='two' is not a int"):
        override(decoder.Config(), {"kv_heads": "two"})
    with pytest.raises(ValueError, match="did you mean 'kv_heads'"):
        override(decoder.Config(), {"kv_head": "2"})


def test_parse_overrides():
    assert parse_overrides(["a.b=1", "--c", "2", "--d=x=y"]) == {"a.b": "1", "c": "2", "d": "x=y"}
    for wrong in (["loose"], ["--alone"]):
        with pytest.raises(ValueError, match="write key=value or --key value"):
            parse_overrides(wrong)


def test_a_written_configuration_is_json_and_its_differences_are_lines():
    cfg = decoder.Config(weights=(("blocks", LowRank(rank=4)),))
    written = json.loads(json.dumps(to_dict(cfg)))
    assert written["class"] == "Config" and written["weights"] == [
        ["blocks", {"class": "LowRank", "rank": 4, "alpha": None}]
    ]
    assert differences(to_dict(cfg), written) == []
    changed = override(Run(), {"schedule.rate": 1.0, "steps": 3})
    assert differences(to_dict(Run()), to_dict(changed)) == ["schedule.rate: 0.001 -> 1.0", "steps: 100 -> 3"]
