"""The verdicts of the self-test: each can come out either way, and only the decisive ones decide."""

from __future__ import annotations

from dataclasses import replace

import pytest

from profiler.selftest import checks
from profiler.selftest.known import Known
from profiler.selftest.omission import Omission
from profiler.selftest.truth import Found
from profiler.stats.ratios import RatioEstimate


def ratio(value: float, low: float | None, high: float | None) -> RatioEstimate:
    return RatioEstimate(value, low, high, 8, 0.5, None)


GOOD = Known("constant", 4e-4, 4e-4, 5e-7, "flat")


@pytest.mark.parametrize(
    ("found", "verdict"),
    [
        (ratio(1.001, 0.995, 1.007), "as wanted"),
        (ratio(1.01, 1.005, 1.015), "as wanted"),  # a real difference, too small to matter
        (ratio(1.0, 0.9, 1.1), "as wanted"),
        (ratio(1.03, 1.01, 1.05), "not as wanted"),
        (ratio(0.95, 0.93, 0.97), "not as wanted"),
        (ratio(1.0, None, None), "not resolved"),
    ],
)
def test_identical_models_may_not_be_called_different(found, verdict):
    """Beyond the margin of 2 %, either way."""
    check = checks.identical(found)

    assert check.verdict == verdict
    assert check.decisive
    assert (check.figures["aa_ratio"], check.figures["aa_ratio_low"]) == (found.value, found.low)


@pytest.mark.parametrize(
    ("found", "verdict", "note"),
    [
        (ratio(1.05, 1.04, 1.06), "as wanted", None),
        (ratio(1.05, 0.99, 1.11), "not resolved", "more processes"),
        (ratio(0.97, 0.96, 0.99), "not as wanted", "outside the interval"),
        (ratio(1.08, 1.07, 1.09), "as wanted", "outside the interval"),
        (ratio(1.05, None, None), "not resolved", "holds 1"),
    ],
)
def test_an_injected_difference_has_to_be_found(found, verdict, note):
    """Above 1; that the truth lies outside the interval is told."""
    check = checks.slowed(found, 0.05, decisive=True)

    assert check.verdict == verdict
    assert (check.note is None) if note is None else (note in check.note)
    assert check.figures["slow_5_percent_ratio"] == found.value


def test_known_latencies_are_judged_with_their_complaints():
    """Right and wrong sessions."""
    bad = replace(GOOD, error_s=9e-6)

    assert checks.known([GOOD]).verdict == "as wanted"
    assert checks.known([bad]).verdict == "not as wanted"
    assert checks.known([bad]).figures == {
        "known_worst_p50_error_s": 9e-6,
        "known_p50_error_limit_s": pytest.approx(2e-6),
    }


@pytest.mark.parametrize(
    ("found", "verdict"),
    [
        (Found(20, 20, 1000, 0), "as wanted"),
        (Found(20, 18, 1000, 0), "not as wanted"),
        (Found(3, 3, 1000, 0), "not resolved"),
        (Found(0, 0, 1000, 0), "not measured"),
    ],
)
def test_recall_needs_enough_to_find(found, verdict):
    """95 % of at least five."""
    check = checks.recall("stops", "stops", "stop_pulses", found, false_name="stop_pulses_false_share")

    assert check.verdict == verdict
    assert check.figures == {"stop_pulses_recall": found.recall, "stop_pulses_false_share": 0.0}


def test_labels_of_a_quiet_machine_harness_and_stall():
    """Each at its limit."""
    assert checks.quiet(0.02).verdict == "as wanted"
    assert checks.quiet(0.021).verdict == "not resolved"
    assert checks.quiet(None).verdict == "not measured"
    assert checks.harness(0.1e-6, 2.5e-6).verdict == "as wanted"
    assert checks.harness(0.11e-6, 1e-6).verdict == "not as wanted"
    assert checks.harness(0.05e-6, None).verdict == "not measured"
    assert checks.omission(Omission(0.48, 0.001)).verdict == "as wanted"
    assert checks.omission(Omission(0.002, 0.001)).verdict == "not as wanted"
    assert checks.omission(Omission(0.48, 0.4)).verdict == "not as wanted"


def test_only_what_is_decisive_decides():
    """All of it has to be measured and as wanted; the rest is told and decides nothing."""
    same, slowed = ratio(1, 0.99, 1.01), ratio(1.05, 1.04, 1.06)
    good = [checks.known([GOOD]), checks.identical(same), checks.slowed(slowed, 0.05, decisive=True)]
    aside = [checks.recall("a", "b", "c", Found(20, 1)), checks.missing("x", "y", ["z"], "absent")]
    lost = checks.missing(checks.AA, checks.AA_WANTED, ["aa_ratio"], "no runtime", decisive=True)

    assert checks.passed([*good, *aside])
    assert "can be trusted" in checks.sentence([*good, *aside])
    assert not checks.passed([*good, lost])
    assert not checks.passed(aside)
    assert checks.sentence([*good, lost]).startswith("Nothing shows that measurements on this machine can be trusted")
    assert "two identical models: not measured" in checks.sentence([*good, lost])
