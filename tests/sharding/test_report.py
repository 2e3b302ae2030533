"""The report: what fits and by how much, what bounds the step, the compiler's refusals in numbers, and JSON."""

from __future__ import annotations

import argparse
import dataclasses
import io
import json
import math

import pytest
from rich.console import Console

from jaxpt.models import decoder
from jaxpt.optim import adam
from jaxpt.sharding import aot, suggest, topology
from jaxpt.sharding.aot import Job
from jaxpt.sharding.collectives import Collective
from jaxpt.sharding.mesh import MeshConfig
from jaxpt.sharding.report import Memory, Report, refusal, roofline, size
from jaxpt.sharding.topology import CHIPS, GIB

EARLY = (
    "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO temporaries (18.14G) exceeds "
    "available HBM (15.75G)."
)
LATE = (
    "RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in memory space hbm. Used 20.35G of 15.75G "
    "hbm. Exceeded hbm capacity by 4.60G.\n\nTotal hbm usage >= 20.60G:\n    reserved        258.00M"
)
SENT = Collective("all-gather", "fsdp", 24, 9e9, 32, 0.1)
JOB = Job(decoder.Config(vocab_size=64, layers=2, width=16, heads=2, ffn=32), adam(1e-3), batch=64, length=16)


def report(total: float = 10 * GIB, **changes) -> Report:
    memory = Memory(1 * GIB, 2 * GIB, 0, 0, total - 3 * GIB, 0, CHIPS["v5e"].memory)
    given = {
        "name": "a step",
        "topology": "v5e:4x8",
        "chips": 32,
        "mesh": {"data": 1, "fsdp": 32, "model": 1, "expert": 1},
        "batch": (512, 256),
        "memory": memory,
        "flops_model": 2e13,
        "flops_compiled": 4e13,
        "flops_counted_once": 1e12,
        "bytes_accessed": 1e11,
        "bytes_counted_once": 1e10,
        "collectives": (SENT,),
        "roofline": roofline(CHIPS["v5e"], 4e13, 1e11, (SENT,), 2e13),
        "compile_seconds": 80.0,
    }
    return Report(**given | changes)


def test_the_slowest_part_bounds_the_step_and_the_utilisation():
    found = report().roofline
    assert found.compute == pytest.approx(4e13 / 197e12) and found.memory == pytest.approx(1e11 / 819e9)
    assert found.bound == "compute" and found.step == found.compute
    assert found.utilisation == pytest.approx(0.5)
    assert found.serial == found.compute + found.memory + 0.1
    slow = dataclasses.replace(SENT, seconds=1.0)
    slower = roofline(CHIPS["v5e"], 4e13, 1e11, (slow,), 2e13)
    assert slower.bound == "interconnect" and slower.utilisation == pytest.approx(2e13 / 197e12)


@pytest.mark.parametrize(("message", "asked"), [(EARLY, 18.14), (LATE, 20.35)])
def test_a_refusal_says_how_much_was_asked_for(message, asked):
    assert refusal(message) == (pytest.approx(asked * GIB), pytest.approx(15.75 * GIB))


def test_another_failure_is_not_taken_for_one():
    assert all(math.isnan(x) for x in refusal("RESOURCE_EXHAUSTED: out of something"))
    with pytest.raises(ValueError, match="not a complaint about memory: INVALID_ARGUMENT"):
        refusal("INVALID_ARGUMENT: no")


def test_what_does_not_fit_says_by_how_much():
    assert report().fits and "fits, 5.75 GiB per chip to spare" in text(report())
    large = report(20 * GIB)
    assert not large.fits and "does not fit: 4.25 GiB per chip too much" in text(large)


def test_a_refused_report_counts_what_is_passed_in_once():
    passed = Memory(1 * GIB, 2 * GIB, 0, 0, math.nan, 0, CHIPS["v5e"].memory)
    common = {k: getattr(report(), k) for k in ("name", "topology", "chips", "mesh", "batch", "flops_model")}
    early, late = (aot._refused(common, passed, message, 2.0) for message in (EARLY, LATE))
    assert early.memory.total == pytest.approx((18.14 + 3) * GIB)  # temporaries alone were too much
    assert late.memory.total == pytest.approx(20.35 * GIB)
    assert not early.fits and "compiled" not in text(early)
    with pytest.raises(RuntimeError, match=r"the compiler failed on v5e:4x8, mesh .*: INTERNAL: no"):
        aot._refused(common, passed, "INTERNAL: no", 2.0)


def test_the_json_has_every_number_and_no_nan():
    found = json.loads(json.dumps(report().to_dict(), allow_nan=False))
    assert found["fits"] and found["memory"]["total"] == 10 * GIB and found["roofline"]["bound"] == "compute"
    assert found["collectives"][0] == dataclasses.asdict(SENT)
    unsaid = dataclasses.replace(report().memory, temporaries=math.nan)
    assert json.loads(json.dumps(report(memory=unsaid).to_dict(), allow_nan=False))["memory"]["temporaries"] is None


def test_the_table_names_every_kind_and_the_axis_of_every_collective():
    shown = text(report())
    for words in ("parameters", "optimizer", "fixed", "temporaries", "all-gather", "fsdp", "bound by compute", "50 %"):
        assert words in shown


def test_options_change_the_job():
    parser = argparse.ArgumentParser()
    aot.add_arguments(parser)
    given = "--topology v5e:4x8 --mesh fsdp=-1,model=4 --batch 128 --remat full --accumulate 2"
    job = aot.configured(JOB, parser.parse_args(given.split()))
    assert (job.batch, job.length, job.accumulate, job.cfg.remat) == (128, 16, 2, "full")
    assert job.mesh == MeshConfig(data=1, fsdp=-1, model=4)
    with pytest.raises(ValueError, match="unknown config key 'fdsp'; did you mean 'fsdp'"):
        aot.configured(JOB, parser.parse_args("--topology v5e:4x8 --mesh fdsp=2".split()))


def test_suggestions_keep_the_update_and_stop_at_the_first_that_fits(monkeypatch):
    where, tried = topology.parse("v5e:2x2"), []

    def compile_job(job, where):
        tried.append((job.cfg.remat, job.accumulate, job.mesh))
        fits = job.cfg.remat == "full" and job.accumulate == 4
        return report(10 * GIB if fits else 20 * GIB)

    monkeypatch.setattr(suggest, "compile_job", compile_job)
    found = suggest.suggest(JOB, where)
    assert [r.fits for r in found] == [False] * (len(found) - 1) + [True]
    remats = [remat for remat, accumulate, _ in tried if accumulate == 1]
    assert remats[:3] == ["none", "dots", "full"] and tried[-1][:2] == ("full", 4)
    assert "does not fit" in text_of(suggest.table(found)) and "roofline" in text_of(suggest.table(found))


def test_the_smallest_slice_is_the_first_that_fits_and_shares_the_batch(monkeypatch):
    def compile_job(job, where):
        return report(40 * GIB / where.chips, chips=where.chips, topology=where.name, batch=(job.accumulate, 0))

    monkeypatch.setattr(suggest, "compile_job", compile_job)
    found = suggest.smallest_slice(JOB, "v5e", rows=8)
    assert [(r.topology, r.batch[0]) for r in found] == [("v5e:1x1", 8), ("v5e:2x2", 2)]
    with pytest.raises(ValueError, match="unknown chip 'v5x'; did you mean"):
        suggest.smallest_slice(JOB, "v5x")


def test_microbatches_leave_a_chip_at_most_the_rows_asked_for():
    where = topology.parse("v5e:2x2")
    assert [suggest.in_microbatches(JOB, where, rows).accumulate for rows in (16, 8, 5, 1)] == [1, 2, 4, 16]
    with pytest.raises(ValueError, match="a batch of 6 sequences cannot be shared evenly by 4 chips"):
        suggest.in_microbatches(dataclasses.replace(JOB, batch=6), where, 4)


@pytest.mark.parametrize(
    ("n", "words"), [(0, "0 B"), (2048, "2.00 KiB"), (-3 * GIB, "-3.00 GiB"), (math.nan, "not said")]
)
def test_sizes(n, words):
    assert size(n) == words


def text(found: Report) -> str:
    return text_of(found.table())


def text_of(shown) -> str:
    console = Console(file=io.StringIO(), width=200)
    console.print(shown)
    return console.file.getvalue()
