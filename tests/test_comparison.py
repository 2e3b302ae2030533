"""The referee: every arm gets the same grid, finished trials are kept, and unequal budgets are refused."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest

from jaxpt import comparison
from jaxpt.comparison import FAILS, HOLDS, INVISIBLE, Table, Trial, TrialStore, compare, summary

SPENT = {"steps": 10.0, "tokens": 100.0, "unique_tokens": 90.0}


@dataclasses.dataclass(frozen=True)
class Setting:
    optimum: float = 2.0


class Runner:
    """A trial whose value is known: (log rate / optimum)^2 + something of the arm and the seed."""

    def __init__(self, spent: dict[str, dict[str, float]] | None = None) -> None:
        self.calls: list[tuple[str, float, int]] = []
        self.spent = spent or {}

    def __call__(self, *, arm: str, point: dict[str, float], seed: int, setting: Setting) -> Trial:
        rate = point["rate"]
        self.calls.append((arm, rate, seed))
        best = setting.optimum if arm == "a" else 2 * setting.optimum
        tuning = math.inf if rate > 50 else math.log(rate / best) ** 2
        value = tuning + {"a": 1.0, "b": 2.0}[arm] + 0.1 * seed
        return Trial(value, tuning, SPENT | self.spent.get(arm, {}), [(1, 3.0), (2, 2.0)], seconds=0.5)


def run(runner: Any, folder: Path, **kwargs: Any) -> Table:
    arguments = {"tune": {"rate": (1.0, 2.0, 4.0)}, "seeds": (0, 1, 2), "setting": Setting()} | kwargs
    return compare(runner, ("a", "b"), metric="loss", folder=folder, workers=0, **arguments)


def test_each_arm_is_tuned_on_the_whole_grid_with_the_first_seed_and_reported_at_its_best(tmp_path):
    runner = Runner()
    table = run(runner, tmp_path)
    assert table.points == {"a": (("rate", 2.0),), "b": (("rate", 4.0),)}
    assert sorted(runner.calls) == sorted(
        [(arm, rate, 0) for arm in "ab" for rate in (1.0, 2.0, 4.0)]
        + [("a", 2.0, 1), ("a", 2.0, 2), ("b", 4.0, 1), ("b", 4.0, 2)]
    )
    assert table.values("a") == pytest.approx([1.0, 1.1, 1.2])
    assert table.differences("a", "b") == pytest.approx([1.0, 1.0, 1.0])


def test_what_else_a_trial_tells_is_by_seed_and_that_of_a_diverged_run_passes_no_bound(tmp_path):
    table = run(Runner(), tmp_path)
    table.trials["a"] = {
        seed: dataclasses.replace(trial, extra={} if seed == 2 else {"probe": seed})
        for seed, trial in table.trials["a"].items()
    }
    assert table.extras("a", "probe")[:2] == [0, 1] and not table.mean_extra("a", "probe") <= math.inf


def test_finished_trials_are_not_run_again_unless_the_setting_or_the_code_changes(tmp_path, monkeypatch):
    first = run(Runner(), tmp_path)
    again = Runner()
    table = run(again, tmp_path)
    assert not again.calls
    assert table.trials == first.trials
    other = Runner()
    run(other, tmp_path, setting=Setting(optimum=1.0))
    assert len(other.calls) == 10
    monkeypatch.setattr(comparison, "source_hash", lambda: "another")
    run(again, tmp_path)
    assert len(again.calls) == 10


def test_a_trial_file_that_was_cut_off_is_run_again(tmp_path):
    run(Runner(), tmp_path)
    path = TrialStore(tmp_path, Setting()).path("a", (("rate", 2.0),), 1)
    path.write_text(path.read_text()[:30])
    again = Runner()
    run(again, tmp_path)
    assert again.calls == [("a", 2.0, 1)]


def test_unequal_budgets_are_refused_and_named(tmp_path):
    with pytest.raises(ValueError, match=r"did not use equal tokens: \{'a': \{100.0\}, 'b': \{110.0\}\}"):
        run(Runner({"b": {"tokens": 110.0}}), tmp_path)


def test_a_rate_that_diverges_is_never_chosen_and_is_null_in_the_summary(tmp_path):
    table = run(Runner(), tmp_path, tune={"rate": (2.0, 4.0, 100.0)})
    assert table.points == {"a": (("rate", 2.0),), "b": (("rate", 4.0),)}
    found = summary(table, name="x", paper=0, setting=Setting(), seconds=1.0)
    assert found["arms"]["a"]["tuning"]["rate 100"] is None


def test_better_means_by_more_than_the_runs_differ():
    def table(a: list[float], b: list[float]) -> Table:
        trials = {n: {i: Trial(v, v, SPENT, []) for i, v in enumerate(x)} for n, x in (("a", a), ("b", b))}
        return Table("loss", {}, trials, {})

    for a, b, verdict in (
        ([1.0, 1.0, 1.0], [1.1, 1.1, 1.1], HOLDS),
        ([1.0, 1.0, 1.0], [1.1, 1.2, 1.1], HOLDS),
        ([1.0, 1.0, 1.0], [1.1, 1.4, 1.1], INVISIBLE),  # the baseline's own seeds differ as much
        ([1.0, 1.0, 1.2], [1.1, 1.2, 1.1], INVISIBLE),  # a seed that disagrees
        ([1.0, 1.0, 1.0, 1.0, 1.1], [1.3, 1.4, 1.3, 1.2, 1.1], HOLDS),  # five seeds: the interval decides
        ([1.0, 1.0, 1.0, 1.0, 1.3], [1.3, 1.4, 1.3, 1.2, 1.1], INVISIBLE),
        ([1.2, 1.21, 1.2], [1.1, 1.1, 1.1], FAILS),
        ([math.inf, 1.0, 1.0], [1.1, 1.1, 1.1], FAILS),
    ):
        found = table(a, b)
        found.check_better("a beats b", "a", "b")
        assert found.verdict == verdict, (a, b)
        assert found.holds is (verdict == HOLDS)
    check = found.checks[0]
    assert check.interval is None  # of a run that diverged there is none
    found = table([1.0, 1.1, 1.2], [1.2, 1.2, 1.5])
    found.check_better("a beats b", "a", "b")
    low, high = found.checks[0].interval
    assert (low + high) / 2 == pytest.approx(0.2)
    assert high - low == pytest.approx(2 * 4.302653 * 0.1 / math.sqrt(3), rel=1e-6)  # t of 2 degrees, sd 0.1
    assert found.checks[0].detectable == pytest.approx(2.8 * 0.1 / math.sqrt(3))


def test_tuning_is_paid_for_in_the_summary(tmp_path):
    found = summary(run(Runner(), tmp_path), name="x", paper=0, setting=Setting(), seconds=1.0)
    assert found["arms"]["a"]["tuning_cost"] == {"runs": 3, "tokens": 300.0, "flops_executed": 0}


def test_the_code_of_the_project_has_a_hash():
    assert len(comparison.source_hash()) == 16
    assert comparison.environment()["source"] == comparison.source_hash()


def test_a_grid_is_every_combination():
    points = comparison.grid({"rate": (1.0, 2.0), "stddev": (0.02, 0.3)})
    assert [comparison.label(p) for p in points[:2]] == ["rate 1, stddev 0.02", "rate 1, stddev 0.3"]
    assert len(set(points)) == 4


def test_arms_of_another_budget_are_added_but_not_mixed_up():
    def table(arm: str, values: list[float], metric: str = "loss") -> Table:
        point = (("rate", 1.0),)
        trials = {arm: {i: Trial(v, v, SPENT, []) for i, v in enumerate(values)}}
        return Table(metric, {arm: point}, trials, {arm: {point: 1.0}})

    found, early = table("a", [1.0, 1.1]), table("stopped early", [1.2, 1.3])
    early.note("half of the updates")
    found.add(early)
    found.check_better("a beats early stopping", "a", "stopped early")
    assert found.holds
    assert found.notes == ["half of the updates"]
    assert list(summary(found, name="x", paper=0, setting=Setting(), seconds=1.0)["arms"]) == ["a", "stopped early"]
    for other, message in (
        (table("b", [1.0, 1.0], "error"), "measured in error cannot be added to a table of loss"),
        (table("a", [1.0, 1.0]), r"has these arms already: \['a'\]"),
        (table("b", [1.0]), "did not run with the same seeds"),
    ):
        with pytest.raises(ValueError, match=message):
            found.add(other)
    assert set(found.trials) == {"a", "stopped early"}
