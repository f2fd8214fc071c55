"""What a report says about its own numbers."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import date

import numpy as np
import pytest

from profiler.analysis import analyse
from profiler.records import WarmupRecord
from profiler.report import details, export, trust
from profiler.report.table import text

TODAY = date(2026, 1, 1)


@pytest.fixture
def labelled(made_run):
    """A run of two cases whose slower one was interrupted in one window of twenty, by five milliseconds each time."""

    def make(**settings):
        run = made_run(weather=0.0, samples=400)
        slow, fast = run.case("fp32"), run.case("int8-static")
        run.timed(slow, 1e-3, offsets=0.001).timed(fast, 0.6e-3, offsets=0.001)
        for index, block in enumerate(run.blocks):
            samples = block.samples_s.copy()
            cpu = samples.copy()
            if block.case.startswith("fp32"):
                samples[10::20] += 5e-3
            run.blocks[index] = replace(
                block,
                samples_s=samples,
                window_s=samples,
                window_cpu_s=cpu,
                labels={"other_cpu_share": 0.0, "steal_share": 0.0},
            )
        run.process_records = [
            replace(
                record, harness_in_sample_s=60e-9, harness_labels_s=1.2e-6, warmup=WarmupRecord(np.ones(3), 0, "flat", 0.0),
                memory={"import": {"peak_rss_bytes": 40_000_000, "rss_anon_bytes": None}, "load": {"peak_rss_bytes": 70_000_000}},
                notes=("a note about memory",),
            )
            for record in run.process_records
        ]  # fmt: skip
        return run.data(**settings)

    return make


def test_both_views_stand_beside_each_other(labelled):
    analysis = analyse(labelled(), today=TODAY)
    told = text(analysis, width=160)
    case = analysis.case("fp32")

    assert case.latency_p99_s.value < 1.1e-3
    assert case.observed["latency_p99_s"].value > 5e-3
    assert trust.OBSERVED_TITLE in told
    # One window in twenty, and the one after it.
    assert case.excluded_share == pytest.approx(0.10, abs=0.01)
    assert "0.0% to 1" in told


def test_the_grade_and_the_harness_cost_are_in_every_report(labelled):
    lines = trust.lines(analyse(labelled(), today=TODAY))

    assert any(
        line.startswith("no grade: no self-test on this machine") and "edgeprof selftest" in line for line in lines
    )
    assert any("60 ns" in line and "1.2 µs" in line for line in lines)


def test_a_self_test_in_the_plan_raises_the_grade(labelled):
    run = labelled()
    plan = {**run.plan, "selftest": {"passed": True}, "dedicated": True, "fixed_clocks": True}

    assert analyse(replace(run, plan=plan), today=TODAY).grade.letter == "A"


def test_processes_that_never_settled_are_named(labelled):
    run = labelled()
    first, *rest = run.processes
    assert first.warmup is not None
    unsettled = replace(first, warmup=replace(first.warmup, label="no_steady_state"))
    slower = replace(rest[0], warmup=replace(first.warmup, label="slowdown"))
    lines = " ".join(trust.lines(analyse(replace(run, processes=(unsettled, slower, *rest[1:])), today=TODAY)))

    assert "no steady state in 1 of 10 processes (fp32@ort/b1/t1)" in lines
    assert "1 of 10 processes slowed down" in lines


def test_a_run_without_labels_says_that_nothing_could_be_told_apart(made_run):
    run = made_run()
    run.timed(run.case("fp32"), 1e-3)
    analysis = analyse(run.data(), today=TODAY)

    assert any("could not be told apart" in line for line in trust.lines(analysis))
    assert trust.OBSERVED_TITLE not in text(analysis, width=160)


def test_how_the_measurement_ended_is_told_only_when_it_went_on_until_precise(labelled):
    assert trust.stopping(analyse(labelled(), today=TODAY)) is None
    told = trust.stopping(analyse(labelled(effort={"processes": 5, "rounds": 6, "precision": 0.00001}), today=TODAY))
    assert told is not None
    assert told.startswith("budget exhausted: 2 of 2 cases")


def test_json_has_both_views_the_grade_and_the_ending(labelled):
    analysis = analyse(labelled(), today=TODAY)
    told = json.loads(export.to_json(analysis))
    case = told["cases"][0]

    assert told["grade"]["letter"] == "D"
    assert case["as_observed"]["latency_p99"]["value"] > 4 * case["figures"]["latency_p99"]["value"]
    assert case["stopping"]["status"] == "fixed"
    assert 0.09 < case["excluded_share"] < 0.11


def test_memory_is_told_by_phase(labelled):
    rows = details.memory_rows(analyse(labelled(), today=TODAY).case("fp32").process)

    assert rows == [("import", "peak 40.0 MB"), ("load", "peak 70.0 MB"), ("note", "a note about memory")]


def test_a_limit_that_only_one_view_meets_is_undecided(labelled):
    (check,) = analyse(labelled(constraints={"slo_p99_s": 2e-3}), today=TODAY).case("fp32").checks

    assert check.verdict == "INCONCLUSIVE"
    assert "as observed" in check.text
