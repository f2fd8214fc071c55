"""Labels tell what was done to a process from outside, and stay quiet when nothing was."""

from __future__ import annotations

import numpy as np
import pytest

from profiler.stats.interference import Windows, choose_rule, dirt, preempted

RNG = np.random.default_rng(5)


def windows(wall, cpu=None, waited=None) -> Windows:
    arrays = [None if values is None else np.asarray(values, np.float64) for values in (wall, cpu, waited)]
    assert arrays[0] is not None
    return Windows(arrays[0], arrays[1], arrays[2])


def quiet(n: int, wall: float = 200e-6) -> Windows:
    base = wall * np.exp(RNG.normal(0, 0.05, n))
    return windows(base, base * (1 + RNG.normal(0, 0.002, n)))


def test_a_process_that_fills_one_processor_is_judged_by_its_cpu_time():
    rule, usual = choose_rule([quiet(500)])

    assert rule == "cpu"
    assert usual == pytest.approx(1.0, abs=0.01)


def test_the_rule_holds_when_most_windows_were_disturbed():
    clean = quiet(200)
    cpu = clean.cpu_s.copy()
    cpu[:160] *= RNG.uniform(0.3, 0.9, 160)

    assert choose_rule([windows(clean.wall_s, cpu)])[0] == "cpu"


def test_missing_cpu_time_labels_exactly_the_windows_that_miss_it():
    clean = quiet(1000)
    wall = clean.wall_s.copy()
    hit = RNG.choice(1000, 50, replace=False)
    wall[hit] += 4e-3  # a time slice of another process

    flags = preempted(windows(wall, clean.cpu_s), "cpu", 1.0)

    assert flags is not None
    assert set(np.flatnonzero(flags)) == set(hit)


def test_a_timer_interrupt_of_three_microseconds_is_no_interference():
    wall = np.full(100, 50e-6)

    assert not preempted(windows(wall, wall - 3e-6), "cpu", 1.0).any()
    assert preempted(windows(wall, wall - 12e-6), "cpu", 1.0).all()


def test_several_threads_are_judged_by_their_waiting():
    wall = np.full(100, 1e-3)
    waited = np.zeros(100)
    waited[7] = 0.5e-3
    both = windows(wall, 1.9 * wall, waited)

    assert choose_rule([both]) == ("waited", pytest.approx(1.9))
    assert list(np.flatnonzero(preempted(both, "waited", 1.9))) == [7]


def test_a_stopped_process_waits_in_no_queue_but_its_cpu_time_collapses():
    wall, cpu = np.full(100, 1e-3), np.full(100, 1.9e-3)
    wall[3] += 50e-3

    flags = preempted(windows(wall, cpu, np.zeros(100)), "waited", 1.9)

    assert list(np.flatnonzero(flags)) == [3]


def test_a_device_that_computes_elsewhere_is_not_blamed_for_idling():
    wall = np.full(100, 1e-3)
    idle = windows(wall, 0.05 * wall, np.zeros(100))
    rule, usual = choose_rule([idle])

    assert rule == "waited"
    assert not preempted(idle, rule, usual).any()


def test_without_counters_nothing_is_claimed():
    bare = windows(np.full(10, 1e-3))

    assert choose_rule([bare]) == ("none", None)
    assert preempted(bare, "none", None) is None
    assert choose_rule([]) == ("none", None)


@pytest.mark.parametrize(
    ("flags", "labels", "words"),
    [
        (np.r_[np.ones(11, bool), np.zeros(89, bool)], {}, "11% of its samples"),
        (None, {"steal_share": 0.3}, "stole 30%"),
        (None, {"throttled_s": 0.012}, "12 ms"),
        (None, {"thermal_throttles": 1.0}, "heat"),
        (None, {"device_throttled": 1.0}, "firmware"),
        (None, {"clock_hz": 1.5e9}, "75%"),
    ],
)
def test_a_dirty_block_says_why(flags, labels, words):
    (reason,) = dirt(flags, labels, 0.1, 2.0e9)

    assert words in reason


@pytest.mark.parametrize(
    ("flags", "labels"),
    [
        (np.r_[np.ones(10, bool), np.zeros(90, bool)], {}),
        (None, {"steal_share": 0.1}),  # one tick of 10 ms
        (None, {"clock_hz": 1.9e9, "throttled_s": 0.0, "thermal_throttles": 0.0}),
        (None, {}),
        (np.zeros(0, bool), {}),
    ],
)
def test_a_clean_block_has_no_reasons(flags, labels):
    assert dirt(flags, labels, 0.1, 2.0e9) == ()
