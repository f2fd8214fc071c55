"""The disturbing programs, with injected clocks and signals: what they log is what they did, and they end when told."""

from __future__ import annotations

import signal
from itertools import pairwise

import pytest

from profiler.selftest import child


class World:
    """A clock that only sleeping and looking advance, and processes that remember their signals."""

    def __init__(self, pids=(), lives: int = 10_000) -> None:
        self.now, self.log, self.signals, self.pids, self.lives = 0.0, [], [], set(pids), lives

    def clock(self) -> float:
        self.now += 0.0005
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds

    def alive(self) -> bool:
        self.lives -= 1
        return self.lives >= 0

    def kill(self, pid: int, number: int) -> None:
        if pid not in self.pids:
            raise ProcessLookupError
        if number:
            self.signals.append((self.now, pid, number))

    @property
    def intervals(self) -> list[tuple[float, float]]:
        return [tuple(map(float, line.split())) for line in self.log]


def test_bursts_last_as_long_as_asked_and_pause_as_long_on_average():
    """Exact bursts, random pauses that differ, the same for the same seed."""

    def run(seed: int) -> list[tuple[float, float]]:
        world = World(lives=20_000)
        child.spin(0.05, 0.2, seed, world.alive, world.log.append, world.clock, world.sleep)
        return world.intervals

    found = run(1)
    pauses = [after[0] - before[1] for before, after in pairwise(found)]

    assert found == run(1) != run(2)
    assert all(end - start == pytest.approx(0.05, abs=0.003) for start, end in found)
    assert sum(pauses) / len(pauses) == pytest.approx(0.2, rel=0.2)


def test_a_steady_spinner_looks_for_its_parent_and_leaves_no_gap():
    """Pieces of 20 ms that adjoin, until the parent is gone."""
    world = World(lives=5)
    child.spin(0.05, 0.0, 0, world.alive, world.log.append, world.clock, world.sleep)

    assert len(world.intervals) == 5
    for before, after in pairwise(world.intervals):
        assert after[0] - before[1] < 0.002


def test_each_pulse_stops_and_continues_every_process():
    """The log lies between the stop and the continuation, and they come in pairs."""
    world = World(pids={7, 8}, lives=200)
    child.pulse([7, 8], 0.05, 0.3, 1, world.alive, world.log.append, world.clock, world.sleep, world.kill)
    stops = [when for when, pid, number in world.signals if (pid, number) == (7, signal.SIGSTOP)]
    goes = [when for when, pid, number in world.signals if (pid, number) == (7, signal.SIGCONT)]

    assert len(stops) == len(goes) == len(world.intervals) > 3
    for (start, end), stop, go in zip(world.intervals, stops, goes, strict=True):
        assert stop <= start + 1e-8
        assert start < end <= go + 1e-8
        assert end - start == pytest.approx(0.05, abs=0.002)
    assert sum(number == signal.SIGSTOP for _, _, number in world.signals) == 2 * len(stops)


def test_pulses_end_with_the_last_process():
    """A process that has ended is left out, and with none left the program ends."""
    world = World(pids={7})
    child.pulse([6, 7], 0.05, 0.1, 1, world.alive, world.log.append, world.clock, lambda s: (
        world.sleep(s), world.pids.clear() if world.now > 2 else None), world.kill)  # fmt: skip

    assert {pid for _, pid, _ in world.signals} == {7}
    assert 2 < world.now < 3


def test_a_stopped_process_goes_on_even_when_the_program_fails_in_between():
    """An unexpected error in the middle of a pulse leaves SIGTERM usable; the parent's own continuation covers the rest."""

    class BrokenError(Exception):
        pass

    world = World(pids={7})

    def sleep(seconds: float) -> None:
        if world.signals:
            raise BrokenError
        world.sleep(seconds)

    with pytest.raises(BrokenError):
        child.pulse([7], 0.05, 0.1, 1, world.alive, world.log.append, world.clock, sleep, world.kill)

    assert signal.SIGTERM not in signal.pthread_sigmask(signal.SIG_BLOCK, set())


def test_the_hog_copies_until_its_parent_is_gone():
    """Every copy is logged."""
    world = World(lives=4)
    child.hog(1 << 16, world.alive, world.log.append, world.clock)

    assert len(world.intervals) == 4


def test_an_unknown_disturbance_is_refused(capfd):
    """By name."""
    before = signal.getsignal(signal.SIGTERM)
    try:
        with pytest.raises(SystemExit, match="unknown disturbance 'noise'"):
            child.main(["1", "noise"])
    finally:
        signal.signal(signal.SIGTERM, before)

    assert capfd.readouterr().out == "ready\n"
