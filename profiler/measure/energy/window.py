"""One window: the same inferences over and over while a meter is read, or nothing running while it is read.

Energy windows are apart from timed blocks. Reading a meter disturbs (a sampler thread takes the interpreter's lock, a sensor
on a slow bus takes the processor), so of two instruments used at once each would measure the other: one disturbing
instrument at a time.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from types import TracebackType

import numpy as np

from profiler.measure.energy.base import Meter, MeterLost, check_cover, integrate

Clock = Callable[[], float]
"""Monotonic seconds."""

_SLOW_S = 0.01
"""Counters that are updated less often than this get windows that begin and end at an update."""
_STILL_UPDATES = 20
_PAUSE_S = 0.01
_MAX_PERIOD_S = 0.02
_MIN_PERIOD_S = 0.005


@dataclass(frozen=True)
class Window:
    """What was read over one window; what was left out of it was never begun inside."""

    energy_j: Mapping[str, float]
    """By rail; empty when no meter was read here."""
    inferences: int
    wall_s: float
    started_unix_s: float
    readings: int


class Load:
    """What runs during a window: inferences, which are counted, or pauses, which are not."""

    def __init__(self, infer: Callable[[], object] | None, pause: Callable[[float], None]) -> None:
        """`infer` runs one inference; None for an idle window."""
        self._infer, self._pause = infer, pause
        self.inferences = 0

    def step(self) -> None:
        """One inference, or one pause of 10 ms."""
        if self._infer is None:
            self._pause(_PAUSE_S)
        else:
            self._infer()
            self.inferences += 1


class Samples(AbstractContextManager["Samples"]):
    """Power readings from before the `with` block until after it, taken by a thread of its own meanwhile."""

    def __init__(self, meter: Meter, clock: Clock) -> None:
        """Nothing is read yet."""
        self._meter, self._clock = meter, clock
        self._times: list[float] = []
        self._watts: list[Mapping[str, float]] = []
        self._lost: MeterLost | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._sample, name="edgeprof-energy", daemon=True)

    def __enter__(self) -> Samples:  # noqa: PYI034 (typing.Self is 3.11)
        """The first reading, before anything of the window has begun. Raises MeterLost."""
        self.take()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """The last reading, after everything of the window is over. Raises MeterLost."""
        self._stop.set()
        self._thread.join()
        if kind is None:
            if self._lost is not None:
                raise self._lost
            self.take()

    def take(self) -> None:
        """One reading, stamped with the middle of the time that it took. Raises MeterLost."""
        before = self._clock()
        watts = self._meter.read()
        self._times.append((before + self._clock()) / 2)
        self._watts.append(watts)

    def joules(self, start_s: float, end_s: float) -> tuple[dict[str, float], int]:
        """Energy by rail between two moments of the clock, and how many readings lay there. Raises MeterLost."""
        times = np.array(self._times)
        count = check_cover(times, start_s, end_s)
        rails = self._watts[0]
        energy = {
            rail: integrate(times, np.array([watts[rail] for watts in self._watts]), start_s, end_s) for rail in rails
        }
        return energy, count

    def _sample(self) -> None:
        # Twice as often as the sensor changes, at least 50 times a second where it lets us.
        period_s = min(_MAX_PERIOD_S, max(_MIN_PERIOD_S, self._meter.info.update_s / 2))
        while not self._stop.wait(period_s):
            try:
                self.take()
            except MeterLost as error:
                self._lost = error
                return


def take(
    meter: Meter | None,
    infer: Callable[[], object] | None,
    *,
    window_s: float,
    lead_s: float,
    clock: Clock = time.perf_counter,
    unix: Clock = time.time,
    pause: Callable[[float], None] = time.sleep,
    samples: Callable[[Meter, Clock], Samples] = Samples,
) -> Window:
    """Run for `lead_s` unmeasured, then for at least `window_s` measured. Without a meter only inferences are counted.

    A window begins and ends between two inferences, so its count is exact. Raises MeterLost: the window is worth nothing.
    """
    load = Load(infer, pause)
    _run_until(load, clock, clock() + max(lead_s, 0.0 if meter is None else meter.info.settle_s))
    if meter is None:
        begin, unix_s, done = clock(), unix(), load.inferences
        _run_until(load, clock, begin + window_s)
        return Window({}, load.inferences - done, clock() - begin, unix_s, 0)
    if meter.info.kind == "counter":
        return _counted(meter, load, window_s, clock, unix)
    with samples(meter, clock) as taken:
        begin, unix_s, done = clock(), unix(), load.inferences
        _run_until(load, clock, begin + window_s)
        end, inferences = clock(), load.inferences - done
    energy, readings = taken.joules(begin, end)
    return Window(energy, inferences, end - begin, unix_s, readings)


def _run_until(load: Load, clock: Clock, until_s: float) -> None:
    while clock() < until_s:
        load.step()


def _counted(meter: Meter, load: Load, window_s: float, clock: Clock, unix: Clock) -> Window:
    begin, first = _edge(meter, load, clock)
    unix_s, done = unix(), load.inferences
    _run_until(load, clock, begin + window_s)
    end, last = _edge(meter, load, clock)
    energy = {rail: last[rail] - first[rail] for rail in first}
    back = [rail for rail, joules in energy.items() if joules < 0]
    if back:
        raise MeterLost(
            f"the counter of {back[0]} ran backwards during the window: the driver may have been loaded again"
        )
    return Window(energy, load.inferences - done, end - begin, unix_s, 2)


def _edge(meter: Meter, load: Load, clock: Clock) -> tuple[float, Mapping[str, float]]:
    """A reading, and when it was taken; of a slow counter, the first one after an update, with the load going on.

    Read in the middle of an update's interval, a counter that is updated every 100 ms would leave out up to 2 % of 5 s.
    """
    update_s = meter.info.update_s
    before = clock()
    reading = meter.read()
    if update_s < _SLOW_S:
        return (before + clock()) / 2, reading
    limit_s = before + _STILL_UPDATES * update_s
    while True:
        # Not after every inference: the reads themselves must not become the load.
        _run_until(load, clock, clock() + update_s / 20)
        before = clock()
        now = meter.read()
        if any(now[rail] != reading[rail] for rail in meter.info.total_rails):
            return (before + clock()) / 2, now
        if before > limit_s:
            raise MeterLost(f"the counter stood still for {before - limit_s + _STILL_UPDATES * update_s:.3g} s")
