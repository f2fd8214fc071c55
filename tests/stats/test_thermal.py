"""Hot enough is told from still heating, by whatever sensors there are; the ratio has its true value and its coverage."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from profiler.stats.thermal import sustained_ratio, thermal_state

TIMES = np.arange(0.0, 1200.0, 2.0)
HEATED = 75 - 35 * np.exp(-TIMES / 120)


def upto(seconds, *courses):
    kept = seconds >= TIMES
    return TIMES[kept], *(None if course is None else course[kept] for course in courses)


def first_steady(*courses):
    return next((t for t in range(0, 1200, 10) if thermal_state(*upto(t, *courses)).state == "steady"), None)


def test_a_heating_device_is_rising_until_its_temperature_stands_still():
    """An exponential with 120 s: 0.2 °C a minute on average over three minutes is reached after some 11 minutes, not before."""
    steady = first_steady(HEATED, None, None)
    slope_then = (HEATED[steady == TIMES] - HEATED[steady - 180 == TIMES])[0] / 3

    assert thermal_state(*upto(300, HEATED, None, None)).state == "rising"
    assert 400 < steady < 800
    assert 0 < slope_then < 0.35


@given(st.integers(0, 1000), st.floats(20, 90), st.floats(0.8, 5), st.sampled_from([-1, 1]))
def test_a_lasting_slope_is_never_steady_and_a_level_always(seed, level, slope, sign):
    """Noise of half a degree on readings: both ways, up and down."""
    noise = np.random.default_rng(seed).normal(0, 0.5, len(TIMES))
    moving = thermal_state(TIMES, level + sign * slope * TIMES / 60 + noise, None, None)

    assert moving.state == "rising"
    assert moving.slope_c_per_min == pytest.approx(sign * slope, abs=0.2)
    assert thermal_state(TIMES, level + noise / 3, None, None).state == "steady"


def test_whole_degrees_do_not_hide_a_slope():
    """A sensor that counts degrees shows 0.5 °C a minute as steps."""
    stepped = np.floor(60 + 0.5 * TIMES / 60)
    flickering = np.floor(70.5 + np.random.default_rng(3).normal(0, 0.3, len(TIMES)))

    assert {thermal_state(*upto(t, stepped, None, None)).state for t in range(400, 1200, 100)} == {"rising"}
    assert thermal_state(TIMES, flickering, None, None).state == "steady"


def test_a_clock_that_falls_is_not_steady_though_the_temperature_is():
    """Throttling holds the temperature: just after it began the device is not yet what it will be."""
    level = np.full(len(TIMES), 80.0)
    clock = np.where(TIMES < 600, 2.4e9, 1.6e9)

    assert thermal_state(*upto(590, level, clock, None)).state == "steady"
    assert thermal_state(*upto(640, level, clock, None)).state == "rising"
    assert thermal_state(*upto(640 + 180, level, clock, None)).state == "steady"


def test_a_clock_that_swings_around_its_limit_is_steady():
    """A thermostat's saw-tooth is what it will always do."""
    clock = np.where((TIMES // 6) % 2 == 0, 2.4e9, 1.8e9)

    assert thermal_state(TIMES, np.full(len(TIMES), 80.0), clock, None).state == "steady"


def test_without_a_temperature_the_latency_decides_and_it_is_said():
    """The usual case in virtual machines."""
    slowing = 1 + 0.3 * (1 - np.exp(-TIMES / 200))
    early, late = thermal_state(*upto(300, None, None, slowing)), thermal_state(TIMES, None, None, slowing)

    assert (early.state, late.state) == ("rising", "steady")
    assert "no temperature sensor" in late.reason
    assert late.slope_c_per_min is None


def test_where_sensors_tell_latency_is_left_to_them():
    """Somebody else's load slows inferences down: that is no heat."""
    assert thermal_state(TIMES, np.full(len(TIMES), 50.0), np.full(len(TIMES), 2e9), 1 + TIMES / 1000).state == "steady"
    assert thermal_state(TIMES, np.full(len(TIMES), 50.0), None, 1 + TIMES / 1000).state == "rising"


@pytest.mark.parametrize("seconds", [0, 60, 178])
def test_less_than_three_minutes_is_unknown(seconds):
    """Not steady, and not rising either."""
    found = thermal_state(*upto(seconds, np.full(len(TIMES), 50.0), None, None))

    assert found.state == "unknown"
    assert "180 s are needed" in found.reason


@pytest.mark.parametrize(
    "courses",
    [
        (None, None, None), (None, np.full(len(TIMES), 2e9), None), ([None] * len(TIMES), None, None),
        (np.where(TIMES < 1100, 50.0, np.nan), None, None),
    ],
    ids=["nothing", "only a clock", "a silent sensor", "a sensor that vanished"],
)  # fmt: skip
def test_what_cannot_be_told_is_unknown(courses):
    """A constant clock alone says nothing about heat; a sensor must speak in most of the window."""
    assert thermal_state(TIMES, *courses).state == "unknown"


def test_readings_that_do_not_fit_are_refused():
    """Lengths and order."""
    with pytest.raises(ValueError, match="one reading per time"):
        thermal_state([0, 1], [50.0], None, None)
    with pytest.raises(ValueError, match="go back"):
        thermal_state([1, 0], [50.0, 50.0], None, None)


@given(st.integers(0, 10_000), st.floats(0.5, 3))
def test_the_ratio_turns_with_its_phases_and_keeps_its_unit(seed, factor):
    """Swapped phases give the inverse, other units nothing."""
    random = np.random.default_rng(seed)
    burst = [np.exp(random.normal(0, 0.02, 8)) for _ in range(3)]
    hot = [factor * np.exp(random.normal(0, 0.02, 8)) for _ in range(3)]
    found, back, other = (
        sustained_ratio(burst, hot), sustained_ratio(hot, burst),
        sustained_ratio([1e-3 * b for b in burst], [1e-3 * h for h in hot]),
    )  # fmt: skip

    assert found.value == pytest.approx(factor, rel=0.05)
    assert found.low < found.value < found.high
    assert (1 / found.value, 1 / found.high, 1 / found.low) == pytest.approx((back.value, back.low, back.high))
    assert (found.value, found.low, found.high) == pytest.approx((other.value, other.low, other.high))
    assert (found.unit, found.count) == ("process", 3)


def covered(processes: int, correlation: float, runs: int = 400) -> float:
    """Share of simulated soaks whose interval holds the true 1.25."""
    random = np.random.default_rng(7)
    hits = 0
    for _ in range(runs):
        phases = []
        for base in (0.0, np.log(1.25)):
            blocks = []
            for _ in range(processes):
                noise = np.empty(20)
                noise[0] = random.normal()
                for i in range(1, 20):
                    noise[i] = correlation * noise[i - 1] + random.normal() * (1 - correlation**2) ** 0.5
                offset = random.normal(0, 0.01) if processes > 1 else 0.0
                blocks.append(np.exp(base + offset + 0.03 * noise))
            phases.append(blocks)
        found = sustained_ratio(*phases)
        hits += found.low <= 1.25 <= found.high
    return hits / runs


@pytest.mark.parametrize(("processes", "correlation"), [(1, 0.0), (1, 0.4), (3, 0.0), (5, 0.4)])
def test_the_interval_covers(processes, correlation):
    """95 % nominal: at least 92 % of 400 simulated soaks, and not all of them by being absurdly wide."""
    assert 0.92 <= covered(processes, correlation) <= 0.995


def test_a_single_process_says_what_its_interval_is_about():
    """Rounds, not processes."""
    found = sustained_ratio([np.array([1.0, 1.01, 0.99])], [np.array([1.3, 1.31, 1.29])])

    assert (found.unit, found.count) == ("round", 6)
    assert found.value == pytest.approx(1.3)
    assert "another process" in found.note


def test_one_disturbed_round_does_not_move_the_ratio():
    """It widens the interval."""
    burst, hot = np.exp(np.linspace(-0.01, 0.01, 15)), 1.2 * np.exp(np.linspace(-0.01, 0.01, 15))
    spoiled = hot.copy()
    spoiled[4] *= 5
    clean, dirty = sustained_ratio([burst], [hot]), sustained_ratio([burst], [spoiled])

    assert dirty.value == pytest.approx(clean.value, rel=0.005)
    assert dirty.high - dirty.low > clean.high - clean.low


def test_too_few_rounds_give_no_interval():
    """A value, and why there is no more."""
    found = sustained_ratio([np.array([1.0, 1.0])], [np.array([2.0, 2.0, 2.0])])

    assert (found.value, found.low, found.high) == (pytest.approx(2.0), None, None)
    assert "too few" in found.note


@pytest.mark.parametrize(
    ("burst", "hot", "words"),
    [([], [], "no process"), ([[1.0]], [], "processes"), ([[1.0]], [[]], "no process"), ([[0.0]], [[1.0]], "positive")],
)
def test_nothing_to_compare_is_an_error(burst, hot, words):
    """In words."""
    with pytest.raises(ValueError, match=words):
        sustained_ratio([np.array(b) for b in burst], [np.array(h) for h in hot])
