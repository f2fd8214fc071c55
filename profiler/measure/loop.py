"""The timing loop. Everything a block does besides the inference itself is here, and `scripts/bench_overhead` weighs it."""

from __future__ import annotations

import gc
import itertools
from array import array
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from backends.base import Feeds

Clock = Callable[[], int]
"""Monotonic nanoseconds: `time.perf_counter_ns`, or a test's own."""


@dataclass(frozen=True)
class Limits:
    """When a loop ends: after `min_s` and `min_samples` are both reached, or at `max_s` or `max_samples`, whichever first."""

    min_s: float
    min_samples: int
    max_s: float
    max_samples: int = 1_000_000


@dataclass(frozen=True)
class Timing:
    """Start times and durations of consecutive samples, in nanoseconds, shape (n,)."""

    starts_ns: NDArray[np.int64]
    durations_ns: NDArray[np.int64]


def time_inferences(
    infer: Callable[[Feeds], object], feeds: Sequence[Feeds], limits: Limits, *, clock: Clock, per_sample: int = 1
) -> Timing:
    """Run inferences back to back and time each (or each `per_sample` of them, for models faster than the clock is fine).

    The feeds are taken in turn, so that a sequence of different inputs is measured rather than one that caches learn.
    """
    starts, ends = array("q"), array("q")
    add_start, add_end = starts.append, ends.append
    turn = itertools.cycle(feeds)
    begin = clock()
    earliest, latest = begin + int(limits.min_s * 1e9), begin + int(limits.max_s * 1e9)
    count = 0
    while True:
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
        count += 1
        if end >= latest or count >= limits.max_samples or (end >= earliest and count >= limits.min_samples):
            break
    starts_ns = np.frombuffer(starts, dtype=np.int64)
    return Timing(starts_ns, np.frombuffer(ends, dtype=np.int64) - starts_ns)


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
