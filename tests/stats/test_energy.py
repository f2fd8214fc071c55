"""Joules per inference: known answers, an independent oracle, and what must not change the figure or must scale it."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy import stats

from profiler.records import IDLE, EnergyRecord, Estimate, FailureRecord, NotMeasured
from profiler.stats.energy import energy_figure, idle_of

CASE = "int8@ort/b1/t1"


def record(joules, *, case=CASE, window=0, inferences=100, wall_s=5.0, meter="rapl", **fields) -> EnergyRecord:
    """A window whose total is split over two rails, beside one that lies inside."""
    values = {
        "case": case, "meter": meter, "window": window,
        "energy_j": {"package-0": joules * 0.75, "dram": joules * 0.25, "core": joules / 2},
        "total_rails": ("package-0", "dram"), "coverage": "1 processor package and DRAM", "method": "counter",
        "inferences": inferences, "batch": 1, "wall_s": wall_s, "started_unix_s": 1e9 + window, "readings": 2,
        "notes": ("the whole socket",),
    }  # fmt: skip
    return EnergyRecord(**{**values, **fields})


def idle(joules, **fields) -> EnergyRecord:
    return record(joules, **{"case": IDLE, "inferences": 0, **fields})


def test_known_answer():
    """60 J in 5 s for 100 inferences, 2 W idle: 0.5 J each; nothing varies, so the interval is the value."""
    records = [record(60.0, window=n) for n in range(4)] + [idle(10.0, window=n) for n in range(4, 7)]
    figure = energy_figure(records, CASE)

    assert (figure.value, figure.low, figure.high) == pytest.approx((0.5, 0.5, 0.5))
    assert (figure.unit, figure.level, figure.source) == ("J", 0.95, "measured here")


def test_welch_s_interval_with_equal_counts():
    """The same inferences in the same time: the difference of two means with unequal variances, as scipy computes it."""
    rng = np.random.default_rng(3)
    own, rest = rng.normal(60, 2, 10), rng.normal(10, 1, 6)
    records = [record(joules, window=n) for n, joules in enumerate(own)]
    records += [idle(joules, window=100 + n) for n, joules in enumerate(rest)]
    oracle = stats.ttest_ind(own / 100, rest / 100, equal_var=False)
    bounds = oracle.confidence_interval(0.9)
    figure = energy_figure(records, CASE, level=0.9)

    assert figure.value == pytest.approx(own.mean() / 100 - rest.mean() / 100)
    assert (figure.low, figure.high) == pytest.approx((bounds.low, bounds.high))


def test_student_s_interval_of_the_total_without_idle_windows():
    """The mean over windows, and the note says that idle power is in it."""
    own = [60.0, 61.0, 63.0, 62.0]
    records = [record(joules, window=n) for n, joules in enumerate(own)] + [idle(10.0, window=9), idle(11.0, window=10)]
    bounds = stats.ttest_1samp(np.array(own) / 100, 0).confidence_interval(0.95)
    figure = energy_figure(records, CASE)

    assert figure.value == pytest.approx(0.615)
    assert (figure.low, figure.high) == pytest.approx((bounds.low, bounds.high))
    assert "total with idle power: 2 idle windows, 3 are needed to subtract it" in figure.note


def test_windows_of_unequal_length_count_per_inference():
    """Twice as long with twice the inferences is the same work."""
    records = [
        record(60.0),
        record(120.0, window=1, inferences=200, wall_s=10.0),
        record(30.0, window=2, inferences=50, wall_s=2.5),
    ]
    records += [idle(4.0 * n, window=9 + n, wall_s=2.0 * n) for n in (1, 2, 3)]

    assert energy_figure(records, CASE).value == pytest.approx(0.6 - 2 * 0.05)


def test_the_uncertainty_of_the_idle_power_is_in_the_interval():
    """The more the idle windows vary, the wider, though the case's own windows stay the same."""
    own = [record(60.0 + n / 10, window=n) for n in range(5)]

    def width(spread):
        rest = [idle(10.0 + spread * (n - 2), window=10 + n) for n in range(5)]
        figure = energy_figure(own + rest, CASE)
        return figure.high - figure.low

    assert width(0.0) < width(0.5) < width(2.0)


def test_the_note_says_what_was_measured():
    """Rails, idle subtracted and how much, windows, rate, and the systematic part."""
    records = [record(60.0, window=n) for n in range(3)] + [idle(10.0, window=5 + n) for n in range(3)]
    note = energy_figure(records, CASE).note

    assert "1 processor package and DRAM (rapl: package-0, dram)" in note
    assert "2.00 W of idle power subtracted (3 idle windows), 0.600 J with it" in note
    assert "3 windows of 5.00 s, energy counter read at both ends" in note
    assert "the whole socket" in note


def test_the_achieved_rate_of_a_power_meter_is_that_of_its_slowest_window():
    """21 readings a second at worst."""
    rates = (200, 105, 250)
    records = [record(60.0, window=n, method="integrated", meter="pmic", readings=r) for n, r in enumerate(rates)]

    assert "21 readings/s" in energy_figure(records, CASE).note


def test_a_note_of_some_windows_says_of_how_many():
    """A doubt about two windows is not one about all."""
    records = [
        record(60.0, window=n, notes=("the whole socket", "clock unsure") if n < 2 else ("the whole socket",))
        for n in range(5)
    ]
    note = energy_figure(records, CASE).note

    assert "clock unsure (in 2 windows)" in note
    assert "the whole socket (" not in note


@pytest.mark.parametrize(
    ("records", "words"),
    [
        ([], "no energy meter was read in this run"),
        ([idle(10.0, window=n) for n in range(5)], "no energy meter was read in this run"),
        ([record(60.0, window=n) for n in range(2)], "2 usable energy windows, at least 3"),
        ([record(60.0, window=n, inferences=0) for n in range(5)], "0 usable energy windows.*5 in which no inference ended"),
        ([record(math.nan, window=n) for n in range(5)], "5 without a reading of every rail"),
        ([record(60.0, window=n, total_rails=("package-0", "gone")) for n in range(5)], "5 without a reading of every rail"),
        ([record(60.0, window=n, total_rails=()) for n in range(5)], "5 without a reading"),
        ([record(60.0, window=n, wall_s=0.0) for n in range(5)], "5 without"),
        ([record(60.0, window=n, meter=m) for n, m in enumerate(("rapl", "rapl", "nvml", "nvml"))], "2 on another meter"),
    ],
    ids=["nothing", "idle only", "two", "no counts", "nan", "rail", "no rails", "no time", "mixed"],
)  # fmt: skip
def test_what_cannot_be_said_has_a_reason(records, words):
    """Never zero, never NaN."""
    import re

    figure = energy_figure(records, CASE)

    assert isinstance(figure, NotMeasured)
    assert re.search(words, figure.reason)


def test_the_reason_of_the_stage_is_the_reason_of_the_figure():
    """Of this case and stage only."""
    failures = [
        FailureRecord(CASE, "measure", "crash", "another story"),
        FailureRecord("other", "energy", "unavailable", "not this one"),
        FailureRecord(CASE, "energy", "unavailable", "no energy meter can be read here (rapl: virtual)"),
    ]

    assert energy_figure([], CASE, failures=failures) == NotMeasured("no energy meter can be read here (rapl: virtual)")


def test_a_case_that_draws_no_more_than_idle_is_not_measured():
    """A negative energy would be a plausible lie."""
    records = [record(10.0 + n, window=n) for n in range(3)] + [idle(12.0 + n, window=5 + n) for n in range(3)]
    figure = energy_figure(records, CASE)

    assert isinstance(figure, NotMeasured)
    assert "no more than the idle machine" in figure.reason


def test_a_difference_within_the_spread_has_no_lower_end():
    """Above idle on average, but not surely."""
    records = [record(10.0 + n, window=n) for n in range(4)] + [idle(9.0 + n, window=5 + n) for n in range(4)]
    figure = energy_figure(records, CASE)

    assert figure.low is None
    assert figure.high > figure.value > 0
    assert "not bounded" in figure.note


def test_another_meter_s_idle_power_is_not_subtracted():
    """What nvml saw idle is no part of what rapl saw."""
    own = [record(60.0, window=n) for n in range(3)]
    others = [idle(10.0, window=5 + n, meter="nvml") for n in range(3)]
    others += [idle(10.0, window=9 + n, total_rails=("package-0",)) for n in range(3)]
    others += [idle(10.0, window=13 + n, case="idle@jetson") for n in range(3)]

    assert energy_figure(own + others, CASE).value == pytest.approx(0.6)


def test_a_remote_case_takes_the_idle_windows_of_its_own_machine():
    """`idle@jetson` for a case that ran there."""
    remote = f"{CASE}@jetson"
    records = [record(60.0, window=n, case=remote) for n in range(3)]
    records += [idle(10.0, window=5 + n, case="idle@jetson") for n in range(3)]
    records += [idle(50.0, window=9 + n) for n in range(3)]

    assert energy_figure(records, remote).value == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("case", "name"),
    [
        ("fp32@ort/b1/t1", IDLE),
        ("fp32@ort:cuda.1/b8/t2", IDLE),
        ("fp32@ov{precision=bf16}/b1/t1@jetson", "idle@jetson"),
        ("int8-static{per_channel=true}@ort/b1/t4@lab/nano-2", "idle@lab/nano-2"),
    ],
)
def test_idle_windows_belong_to_a_target(case, name):
    """Made from the case's own key."""
    assert idle_of(case) == name


def test_keys_of_cases_and_names_of_idle_windows_agree():
    """With `Case.key` itself."""
    from profiler.study import Case

    assert idle_of(Case("fp32", "ort", "local", 1, 2).key) == IDLE
    assert idle_of(Case("fp32", "ort", "jetson", 1, 2).key) == "idle@jetson"


@pytest.mark.parametrize("level", [0.0, 1.0, 95])
def test_a_level_is_a_proportion(level):
    """95 is not 0.95."""
    with pytest.raises(ValueError, match="level"):
        energy_figure([], CASE, level=level)


WINDOWS = st.lists(st.tuples(st.floats(20, 100), st.integers(1, 1000), st.floats(1, 10)), min_size=3, max_size=8)
IDLES = st.lists(st.tuples(st.floats(0.1, 1.5), st.floats(1, 10)), max_size=6)


def made(windows, idles):
    own = [record(j, window=n, inferences=k, wall_s=s) for n, (j, k, s) in enumerate(windows)]
    return own + [idle(watts * s, window=100 + n, wall_s=s) for n, (watts, s) in enumerate(idles)]


@given(WINDOWS, IDLES, st.floats(0.01, 1000))
def test_energy_scales_with_the_meter(windows, idles, factor):
    """A meter in other units changes the figure and its interval by that factor, and nothing else."""
    records = made(windows, idles)
    scaled = [replace(r, energy_j={rail: j * factor for rail, j in r.energy_j.items()}) for r in records]
    one, other = energy_figure(records, CASE), energy_figure(scaled, CASE)

    assert type(one) is type(other)
    assume(isinstance(one, Estimate))
    assert other.value == pytest.approx(one.value * factor, rel=1e-9)
    assert other.high == pytest.approx(one.high * factor, rel=1e-6)


@given(WINDOWS, IDLES, st.randoms())
def test_order_changes_nothing(windows, idles, random):
    """To the last digit, notes included."""
    records = made(windows, idles)
    shuffled = random.sample(records, len(records))

    assert energy_figure(records, CASE) == energy_figure(shuffled, CASE)


@given(WINDOWS, IDLES)
def test_an_interval_holds_its_value_and_is_wider_at_a_higher_level(windows, idles):
    """Whatever the windows."""
    records = made(windows, idles)
    figure, wider = energy_figure(records, CASE), energy_figure(records, CASE, level=0.99)
    assume(isinstance(figure, Estimate))

    assert figure.value > 0
    assert figure.low is None or 0 <= figure.low <= figure.value
    assert figure.value <= figure.high <= wider.high


@given(WINDOWS, st.floats(0.1, 1.5))
def test_what_is_subtracted_is_idle_power_times_time(windows, watts):
    """A meter that shows more by a constant power shows the same energy."""
    records = made(windows, [(watts, 5.0)] * 4)
    lifted = [
        replace(r, energy_j={rail: j + share * r.wall_s for (rail, j), share in zip(r.energy_j.items(), (3, 1, 2), strict=True)})
        for r in records
    ]  # fmt: skip
    one, other = energy_figure(records, CASE), energy_figure(lifted, CASE)
    assume(isinstance(one, Estimate))

    assert other.value == pytest.approx(one.value, rel=1e-6, abs=1e-9)


def test_coverage_is_nominal_over_windows_and_idle_windows():
    """95 % intervals hold the truth in 93-97 % of 3,000 simulated stages of 10 windows."""
    rng = np.random.default_rng(11)
    inside = 0
    for _ in range(3000):
        own = rng.normal(60, 3, 10)
        rest = rng.normal(10, 3, 10)
        records = [record(j, window=n) for n, j in enumerate(own)] + [
            idle(j, window=20 + n) for n, j in enumerate(rest)
        ]
        figure = energy_figure(records, CASE)
        inside += figure.low <= 0.5 <= figure.high

    assert 0.93 <= inside / 3000 <= 0.97
