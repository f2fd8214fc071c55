"""Whether a device under load has become as hot as it will, and what that costs: pure functions of a course over time.

A passively cooled device slows down minutes after a benchmark would have ended. Steady means: over three minutes neither the
temperature nor the clock has a trend. A clock that jumps up and down around a limit is steady when it does so all the time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtrit

from profiler.stats.quantiles import LAG_CORRELATION_CAP
from profiler.stats.ratios import ratio_interval

__all__ = ["BURST", "HEATING", "SUSTAINED", "SustainedRatio", "ThermalState", "sustained_ratio", "thermal_state"]

BURST, HEATING, SUSTAINED = 0, 1, 2
"""Phases of a soak: the first seconds after a cool start, the same load until steady, the steady state."""

WINDOW_S = 180.0
SLOPE_C_PER_MIN = 0.2
TREND_SHARE = 0.02
"""A clock or latency whose trend over the window stays below this share of its mean is stable."""
_BINS = 18
_COVERAGE = 0.8
_FEWEST_ROUNDS = 3

Course = Sequence[float | None] | NDArray[np.float64]


@dataclass(frozen=True)
class ThermalState:
    """What the last three minutes say. A number is None where there was no such sensor, or too little of it."""

    state: Literal["rising", "steady", "unknown"]
    """`rising` stands for every lasting change, a device that cools down after throttling too."""
    slope_c_per_min: float | None
    clock_trend: float | None
    """Change of the clock over the window by its trend, as a share of its mean."""
    latency_trend: float | None
    reason: str
    """For people: which sensor said so, and against which bound."""


def thermal_state(
    times_s: Sequence[float] | NDArray[np.float64],
    temperatures_c: Course | None,
    clocks_hz: Course | None,
    latencies: Course | None,
    *,
    window_s: float = WINDOW_S,
) -> ThermalState:
    """Whether the temperature changes by less than 0.2 °C a minute and the clock is stable, both over the last `window_s`.

    All arrays have shape (n,), None (or NaN) where a reading is missing; a missing argument is a missing sensor. `latencies` in
    any unit; where cases take turns, each relative to its own first ones, so that the order of turns is no trend. Trends are
    least squares over means of ten seconds: single hot readings and sensors that count whole degrees do not decide.

    Without temperatures the latency decides together with the clock, and the reason says so. Raises ValueError for arrays of
    different length and times that go back.
    """
    times = np.asarray(times_s, np.float64)
    courses = {
        name: None if values is None else np.array([np.nan if value is None else value for value in values], np.float64)
        for name, values in (("temperature", temperatures_c), ("clock", clocks_hz), ("latency", latencies))
    }
    if times.ndim != 1 or any(values is not None and values.shape != times.shape for values in courses.values()):
        shapes = {name: None if values is None else values.shape for name, values in courses.items()}
        raise ValueError(f"one reading per time is needed: {times.shape} times, readings {shapes}")
    if len(times) > 1 and (np.diff(times) < 0).any():
        raise ValueError("times must not go back")
    slopes = {name: _slope(times, values, window_s) for name, values in courses.items()}
    temperature, clock, latency = (slopes[name] for name in ("temperature", "clock", "latency"))
    slope = None if temperature is None else temperature[0] * 60
    clock_trend, latency_trend = (
        None if found is None or found[1] == 0 else found[0] * window_s / found[1] for found in (clock, latency)
    )
    state, reason = _judge(slope, clock_trend, latency_trend, window_s)
    if state == "unknown" and len(times) and times[-1] - times[0] < window_s:
        reason = f"{times[-1] - times[0]:.0f} s of load are too short to tell: {window_s:g} s are needed"
    return ThermalState(state, slope, clock_trend, latency_trend, reason)


def _judge(
    slope: float | None, clock: float | None, latency: float | None, window_s: float
) -> tuple[Literal["rising", "steady", "unknown"], str]:
    told: list[tuple[bool, str]] = []
    if slope is not None:
        told.append(
            (abs(slope) < SLOPE_C_PER_MIN, f"temperature {slope:+.2f} °C/min (steady below {SLOPE_C_PER_MIN:g})")
        )
    if clock is not None:
        told.append((abs(clock) < TREND_SHARE, f"clock {clock:+.1%} (steady below {TREND_SHARE:.0%})"))
    # Where temperature and clock tell, the latency is what they are there to explain, and has disturbances of its own.
    if latency is not None and (slope is None or clock is None):
        told.append((abs(latency) < TREND_SHARE, f"latency {latency:+.1%} (steady below {TREND_SHARE:.0%})"))
    if not told or (slope is None and latency is None):
        return "unknown", "no temperature and no latency to judge by"
    words = f"over {window_s:g} s: " + ", ".join(text for _, text in told)
    if slope is None:
        words += "; there is no temperature sensor to confirm it"
    return ("steady" if all(steady for steady, _ in told) else "rising"), words


def _slope(
    times: NDArray[np.float64], values: NDArray[np.float64] | None, window_s: float
) -> tuple[float, float] | None:
    """Least squares slope per second over the last window and the mean; None when the window is not covered."""
    if values is None or not len(times) or times[-1] - times[0] < window_s:
        return None
    begin = times[-1] - window_s
    kept = (times >= begin) & np.isfinite(values)
    bins = np.minimum(((times[kept] - begin) / window_s * _BINS).astype(np.int64), _BINS - 1)
    counts = np.bincount(bins, minlength=_BINS)
    filled = counts > 0
    if filled.sum() < _COVERAGE * _BINS:
        return None
    means = np.bincount(bins, weights=values[kept], minlength=_BINS)[filled] / counts[filled]
    centres = np.bincount(bins, weights=times[kept], minlength=_BINS)[filled] / counts[filled]
    deviation = centres - centres.mean()
    return float(deviation @ means / (deviation @ deviation)), float(means.mean())


@dataclass(frozen=True)
class SustainedRatio:
    """Sustained / burst time: 1.3 takes 30 % longer once the device is hot. Bounds are None, with a note, where data are few."""

    value: float
    low: float | None
    high: float | None
    unit: Literal["process", "round"]
    """What the interval was taken over: fresh processes (each soaked from a cool start), or rounds inside a single one."""
    count: int
    """Processes, or rounds of both phases."""
    note: str | None = None


def sustained_ratio(
    burst_blocks: Sequence[NDArray[np.float64]], sustained_blocks: Sequence[NDArray[np.float64]], *, level: float = 0.95
) -> SustainedRatio:
    """Ratio of the typical block in the sustained phase to that in the burst, with its interval.

    Each sequence holds one array per process, in the same order of processes: the medians of its blocks in time order, shape
    (blocks,), any unit of time. Several processes: Student's t over one log ratio per process, as between variants. A single
    one: difference of the medians of log block medians; its standard error is that of a median of normal values (π/2 times the
    mean's variance: too wide rather than too narrow where disturbances stand out), raised for neighbouring blocks that
    resemble each other, with Welch's degrees of freedom.

    Raises ValueError for different numbers of processes, no process with both phases, and times that are not positive.
    """
    if len(burst_blocks) != len(sustained_blocks):
        raise ValueError(f"{len(burst_blocks)} processes have a burst and {len(sustained_blocks)} a sustained phase")
    pairs = [
        (np.asarray(burst, np.float64).ravel(), np.asarray(hot, np.float64).ravel())
        for burst, hot in zip(burst_blocks, sustained_blocks, strict=True)
    ]
    pairs = [(burst, hot) for burst, hot in pairs if len(burst) and len(hot)]
    if not pairs:
        raise ValueError("no process has blocks of both phases")
    if not all(np.isfinite(times).all() and (times > 0).all() for pair in pairs for times in pair):
        raise ValueError("block medians must be positive, finite times")
    logs = [(np.log(burst), np.log(hot)) for burst, hot in pairs]
    if len(logs) > 1:
        found = ratio_interval([np.array([np.median(hot) - np.median(burst)]) for burst, hot in logs], level=level)
        return SustainedRatio(found.value, found.low, found.high, "process", found.pairs)
    burst, hot = logs[0]
    difference = float(np.median(hot) - np.median(burst))
    count = len(burst) + len(hot)
    if min(len(burst), len(hot)) < _FEWEST_ROUNDS:
        few = f"{len(burst)} burst and {len(hot)} sustained rounds are too few for an interval: {_FEWEST_ROUNDS} each are needed"
        return SustainedRatio(float(np.exp(difference)), None, None, "round", count, few)
    note = "one process: the interval is over its rounds and says nothing about another process (--processes 3)"
    errors = [_median_error(values) for values in (burst, hot)]
    variance = sum(square for square, _ in errors)
    half = 0.0
    if variance > 0:
        degrees = variance**2 / sum(square**2 / free for square, free in errors if square > 0)
        half = float(stdtrit(degrees, (1 + level) / 2)) * variance**0.5
    low, high = float(np.exp(difference - half)), float(np.exp(difference + half))
    return SustainedRatio(float(np.exp(difference)), low, high, "round", count, note)


def _median_error(values: NDArray[np.float64]) -> tuple[float, float]:
    """Squared standard error of the median of a series whose neighbours may resemble each other, and its degrees of freedom."""
    n = len(values)
    residuals = values - values.mean()
    squares = float(residuals @ residuals)
    lag = 0.0
    if squares > 0:
        lag = min(max(float(residuals[1:] @ residuals[:-1]) / squares, 0.0), LAG_CORRELATION_CAP)
    inflation = (1 + lag) / (1 - lag)
    return np.pi / 2 * inflation * squares / (n - 1) / n, max(1.0, n / inflation - 1)
