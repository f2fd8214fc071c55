"""The timing loop. Everything a block does besides the inference itself is here, and `scripts/bench_overhead` weighs it."""

from __future__ import annotations

import gc
import itertools
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from backends.base import Feeds
from profiler.measure.canary import GAP_NS

Clock = Callable[[], int]
"""Monotonic nanoseconds: `time.perf_counter_ns`, or a test's own."""

LABEL_FLOOR_S = 50e-6
"""Counters are read once per window of at least this: reading them costs about 1.5 µs (method.md, interference)."""


@dataclass(frozen=True)
class Limits:
    """When a loop ends: after `min_s` and `min_samples` are both reached, or at `max_s` or `max_samples`, whichever first."""

    min_s: float
    min_samples: int
    max_s: float
    max_samples: int = 1_000_000


@dataclass(frozen=True)
class Timing:
    """Start times and durations of consecutive samples, in nanoseconds, shape (n,).

    A window is `label_every` samples together with what the harness did around them; windows follow each other without a gap.
    """

    starts_ns: NDArray[np.int64]
    durations_ns: NDArray[np.int64]
    window_ns: NDArray[np.int64]
    """Wall time of each window, shape (n / label_every,); empty when no counters were read."""
    counters_ns: dict[str, NDArray[np.int64]] = field(default_factory=dict)
    """What each counter rose by in each window, same shape."""
    canary_ns: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    """What the canary said, shape (c,): before the first sample, about every millisecond, and after the last."""
    canary_at: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    """How many samples had been taken then, same shape."""


def time_inferences(
    infer: Callable[[Feeds], object],
    feeds: Sequence[Feeds],
    limits: Limits,
    *,
    clock: Clock,
    per_sample: int = 1,
    counters: dict[str, Clock] | None = None,
    label_every: int = 1,
    canary: Clock | None = None,
    canary_gap_ns: int = GAP_NS,
) -> Timing:
    """Run inferences back to back and time each (or each `per_sample` of them, for models faster than the clock is fine).

    The feeds are taken in turn, so that a sequence of different inputs is measured rather than one that caches learn.
    `counters` are read after every `label_every` samples, between inferences: they tell from outside of the latency
    whether the processor was taken away meanwhile. `canary`, at least `canary_gap_ns` apart, tells whether the core was slowed.
    """
    starts, ends = array("q"), array("q")
    add_start, add_end = starts.append, ends.append
    readings = {name: array("q") for name in counters or {}}
    taps = [(readings[name].append, read) for name, read in (counters or {}).items()]
    turn = itertools.cycle(feeds)
    songs, places = array("q"), array("q")
    if canary is not None:
        songs.append(canary())
        places.append(0)
    begin = clock()
    for add, read in taps:
        add(read())
    next_song = begin + canary_gap_ns if canary is not None else 1 << 62
    earliest, latest = begin + int(limits.min_s * 1e9), begin + int(limits.max_s * 1e9)
    samples = range(label_every)
    count = 0
    while True:
        for _ in samples:
            if per_sample == 1:
                feed = next(turn)
                start = clock()
                infer(feed)
                end = clock()
            else:
                batch = [next(turn) for _ in range(per_sample)]
                start = clock()
                for feed in batch:
                    infer(feed)
                end = clock()
            add_start(start)
            add_end(end)
        for add, read in taps:
            add(read())
        count += label_every
        if end >= next_song and canary is not None:
            songs.append(canary())
            places.append(count)
            next_song = clock() + canary_gap_ns
        if end >= latest or count >= limits.max_samples or (end >= earliest and count >= limits.min_samples):
            break
    if canary is not None and places[-1] != count:
        songs.append(canary())
        places.append(count)
    starts_ns, ends_ns = np.frombuffer(starts, dtype=np.int64), np.frombuffer(ends, dtype=np.int64)
    borders = np.concatenate((np.array([begin], np.int64), ends_ns[label_every - 1 :: label_every]))
    risen: dict[str, NDArray[np.int64]] = {}
    for name, values in readings.items():
        read_ns = np.frombuffer(values, dtype=np.int64)
        risen[name] = read_ns[1:] - read_ns[:-1]
    return Timing(
        starts_ns,
        ends_ns - starts_ns,
        borders[1:] - borders[:-1] if taps else np.zeros(0, np.int64),
        risen,
        np.array(songs, dtype=np.int64),
        np.array(places, dtype=np.int64),
    )


@dataclass(frozen=True)
class HarnessCost:
    """What the harness adds on this machine, seconds."""

    in_sample_s: float
    """What every recorded sample holds too much: the clock itself."""
    labelled_s: float
    """What reading the counters adds between two inferences; divide by `label_every` for the cost per inference."""


def harness_cost(*, clock: Clock, counters: dict[str, Clock], count: int = 2000) -> HarnessCost:
    """Weigh the loop with an inference that does nothing: medians over parts of it, so that one interruption does not count."""

    def nothing(_: Feeds) -> None:
        return None

    limits = Limits(0.0, count, 60.0, count)
    bare, labelled = (
        time_inferences(nothing, [{}], limits, clock=clock, counters=found) for found in ({"none": lambda: 0}, counters)
    )
    steps = [float(np.median(timing.window_ns)) for timing in (bare, labelled)]
    return HarnessCost(float(np.median(bare.durations_ns)) / 1e9, max(0.0, steps[1] - steps[0]) / 1e9)


@contextmanager
def quiet_collector() -> Iterator[None]:
    """Collect now and not inside: a garbage collection of the harness must not land in a sample of the model."""
    gc.collect()
    gc.freeze()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
        gc.unfreeze()


def inferences_per_sample(duration_s: float, *, floor_s: float = 20e-6) -> int:
    """How many inferences to time together so that a sample lasts at least `floor_s` (clock and loop cost below 1 %)."""
    return max(1, int(np.ceil(floor_s / max(duration_s, 1e-9))))


def samples_per_window(sample_s: float, *, floor_s: float = LABEL_FLOOR_S) -> int:
    """How many samples share one reading of the counters, so that a window lasts at least `floor_s`."""
    return max(1, int(np.ceil(floor_s / max(sample_s, 1e-9))))


MAX_BLOCK_SAMPLES = 20_000
_REENTRY_SAMPLES = 3
_REENTRY_S = 0.020
_REENTRY_SHARE = 0.2


def reentry_samples(samples_s: NDArray[np.float64], per_sample: int) -> int:
    """How many leading samples of a block re-entered caches and clocks: 3 of them or 20 ms, but at most a fifth of the block."""
    elapsed = np.cumsum(samples_s) * per_sample
    by_time = int(np.searchsorted(elapsed, _REENTRY_S))
    return min(max(_REENTRY_SAMPLES, by_time), int(len(samples_s) * _REENTRY_SHARE))


def canary_places(arrays: Mapping[str, NDArray[np.generic]]) -> NDArray[np.int64] | None:
    """Where the canary sang, from a worker's answer; None from one that has no canary."""
    found = arrays.get("canary_at")
    return None if found is None else found.astype(np.int64)
