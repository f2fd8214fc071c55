"""The timing loop times what it is given, in turn, no less than asked and no longer than allowed."""

from __future__ import annotations

import gc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from profiler.measure.loop import Limits, inferences_per_sample, quiet_collector, time_inferences


class Machine:
    """A clock, and an inference that takes programmed time on it. Looking at the clock costs `look_ns`."""

    def __init__(self, durations, look_ns: int = 0) -> None:
        self.now, self.durations, self.look_ns = 1_000, iter(durations), look_ns
        self.seen: list[object] = []

    def clock(self) -> int:
        self.now += self.look_ns
        return self.now

    def infer(self, feeds) -> None:
        self.seen.append(feeds)
        self.now += next(self.durations)


def endless(value: int):
    while True:
        yield value


def test_each_inference_is_timed_alone():
    """Durations are the machine's, in order, to the nanosecond."""
    machine = Machine([5, 700, 30, 2])
    timing = time_inferences(machine.infer, [{}], Limits(0, 4, 1), clock=machine.clock)

    assert timing.durations_ns.tolist() == [5, 700, 30, 2]
    assert timing.starts_ns.tolist() == [1000, 1005, 1705, 1735]


def test_feeds_are_taken_in_turn():
    """Different inputs, round and round, also inside a sample of several inferences."""
    for per_sample, expected in ((1, [0, 1, 2, 0, 1]), (2, [0, 1, 2, 0, 1, 2, 0, 1, 2, 0])):
        machine = Machine(endless(10))
        time_inferences(machine.infer, [0, 1, 2], Limits(0, 5, 1), clock=machine.clock, per_sample=per_sample)

        assert expected == machine.seen


def test_a_sample_of_several_inferences_is_their_sum():
    """The division by `per_sample` is the caller's."""
    machine = Machine(range(1, 100))
    timing = time_inferences(machine.infer, [{}], Limits(0, 3, 1), clock=machine.clock, per_sample=4)

    assert timing.durations_ns.tolist() == [1 + 2 + 3 + 4, 5 + 6 + 7 + 8, 9 + 10 + 11 + 12]


@given(
    duration=st.integers(1, 10_000_000), min_s=st.floats(0, 0.05), min_samples=st.integers(1, 50),
    max_s=st.floats(0.001, 0.1), max_samples=st.integers(1, 60),
)  # fmt: skip
def test_it_stops_when_and_only_when_a_limit_says_so(duration, min_s, min_samples, max_s, max_samples):
    """Both minima reached, or one maximum: not a sample earlier, not a sample later."""
    machine = Machine(endless(duration))
    count = len(
        time_inferences(
            machine.infer, [{}], Limits(min_s, min_samples, max_s, max_samples), clock=machine.clock
        ).starts_ns
    )

    def over(n: int) -> bool:
        spent = n * duration
        return spent >= int(max_s * 1e9) or n >= max_samples or (spent >= int(min_s * 1e9) and n >= min_samples)

    assert over(count)
    assert not any(over(n) for n in range(1, count))


def test_one_sample_is_taken_at_least():
    """A model slower than the longest block gives one sample, not none."""
    machine = Machine(endless(10**12))

    assert len(time_inferences(machine.infer, [{}], Limits(0, 5, 0.001), clock=machine.clock).durations_ns) == 1


def test_the_cost_of_the_loop_is_outside_samples_but_for_one_look_at_the_clock():
    """Each sample holds one look; what lies between samples belongs to none."""
    machine = Machine(endless(1000), look_ns=30)
    timing = time_inferences(machine.infer, [{}], Limits(0, 5, 1), clock=machine.clock)

    assert timing.durations_ns.tolist() == [1030] * 5


def test_the_collector_rests_inside_and_works_again_after_an_error():
    """Also when the model raises."""
    with pytest.raises(RuntimeError), quiet_collector():  # noqa: PT012 (the block is what is tested)
        inside = gc.isenabled()
        raise RuntimeError

    assert not inside
    assert gc.isenabled()


@given(st.floats(1e-12, 10))
def test_samples_last_long_enough_for_the_clock(duration):
    """At least 20 µs, with no more inferences than that takes."""
    count = inferences_per_sample(duration)
    real = max(duration, 1e-9)

    assert count * real >= 20e-6 * (1 - 1e-9)
    assert count == 1 or (count - 1) * real < 20e-6


def test_timings_are_whole_nanoseconds():
    """Integers: nothing is lost before the statistics."""
    machine = Machine([1, 2, 3])
    timing = time_inferences(machine.infer, [{}], Limits(0, 3, 1), clock=machine.clock)

    assert (np.int64, np.int64) == (timing.durations_ns.dtype, timing.starts_ns.dtype)
