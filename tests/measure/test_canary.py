"""The canary sings about every millisecond, between inferences, and its songs end up beside the samples they concern."""

from __future__ import annotations

import numpy as np

from profiler.measure.canary import TARGET_NS, Canary
from profiler.measure.loop import Limits, time_inferences
from profiler.stats.interference import slowed


class Clock:
    """Each look costs 100 ns; the loop's turns cost nothing but these."""

    def __init__(self) -> None:
        self.now = 0

    def __call__(self) -> int:
        self.now += 100
        return self.now


def test_a_song_is_told_per_thousand_turns():
    assert Canary(Clock(), turns=500)() == 200
    assert Canary(Clock(), turns=2000)() == 50


def test_a_song_is_made_about_as_long_as_wanted():
    clock = Clock()
    canary = Canary(clock)
    # 64 turns seem to take 100 ns on this clock.
    assert len(canary._turns) == 64 * TARGET_NS // 100


def test_songs_stand_before_between_and_after_the_samples():
    now = [0]
    songs = iter(range(100, 200))

    def infer(_):
        now[0] += 400_000

    def canary():
        now[0] += 12_000
        return next(songs)

    timing = time_inferences(
        infer, [{}], Limits(0, 7, 1.0), clock=lambda: now[0], canary=canary, canary_gap_ns=1_000_000
    )

    assert timing.canary_at.tolist() == [0, 3, 6, 7]
    assert timing.canary_ns.tolist() == [100, 101, 102, 103]
    # The song is in no sample.
    assert set(timing.durations_ns.tolist()) == {400_000}


def test_without_a_canary_there_are_no_songs():
    now = [0]

    def infer(_):
        now[0] += 1000

    timing = time_inferences(infer, [{}], Limits(0, 3, 1.0), clock=lambda: now[0])

    assert len(timing.canary_ns) == len(timing.canary_at) == 0


def test_samples_on_both_sides_of_a_slow_song_are_slowed():
    songs, places = np.array([10.0, 10.1, 15.0, 10.0, 9.9]), np.array([0, 4, 8, 12, 16])
    (flags,) = slowed([songs], [places], [16])

    assert np.flatnonzero(flags).tolist() == list(range(4, 12))


def test_the_usual_is_that_of_all_blocks_of_the_case():
    """A block that was slow from beginning to end is told by the others."""
    places = np.array([0, 5, 10])
    fast, slow = np.full(3, 10.0), np.full(3, 14.0)
    flags = slowed([fast, slow, fast], [places] * 3, [10, 10, 10])

    assert [bool(found.all()) for found in flags] == [False, True, False]


def test_where_every_song_is_equally_slow_nobody_is_blamed():
    places = np.array([0, 5, 10])

    assert not slowed([np.full(3, 14.0)], [places], [10])[0].any()
    assert not slowed([np.zeros(0)], [np.zeros(0, np.int64)], [10])[0].any()
    assert slowed([], [], []) == []
