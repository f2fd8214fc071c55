"""When enough was measured: a rule for looks that are few, growing and late enough. Pure; whoever measures asks it.

Whoever looks after every round and stops at the first narrow interval keeps the runs in which the machine happened to be
quiet. Here looks lie a factor 1.5 apart, each asks for the width at 99 % (five looks at 1 % spend the 5 % of the interval
that is published at 95 %), and none counts before the machine was seen for long enough. scripts/study_coverage shows what
this is worth. The parts say what is still missing in words; `all_of` puts them together.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from profiler.stats.quantiles import QuantileEstimate
from profiler.stats.ratios import RatioEstimate, compare_verdict

__all__ = [
    "LOOK_LEVEL", "MINIMUM_SPAN_S", "Look", "all_of", "correlation_time_s", "looks", "process_looks",
    "quantile_target_met", "quantile_targets", "ratio_target_met", "relative_half_width", "span_met",
]  # fmt: skip

LOOK_LEVEL = 0.99
"""The level of the intervals that a look judges. The published interval of the same data has 95 %."""
MINIMUM_SPAN_S = 60.0
CORRELATION_TIMES = 20.0
"""Looks count once the span holds so many correlation times: fewer, and one quiet spell may be all that was seen."""
_GROWTH = 1.5
_ROUNDING = 1e-9
"""Differences of floating-point numbers that mean nothing."""
_CHANCE = 3.0
"""Standard errors that a fitted correlation must exceed to count."""
_GRID = 40
"""Correlation times that are tried."""
_MAX_BLOCKS = 400
"""Memory and time grow with its square: 80,000 pairs take tens of milliseconds."""
_SMALLEST_SERIES = 8
"""Blocks below which a correlation cannot be told from chance."""


@dataclass(frozen=True)
class Look:
    """What one look at the data says: whether to stop, and in words why or what is missing."""

    converged: bool
    reason: str
    missing: tuple[str, ...] = ()
    """One phrase per condition that does not hold yet; empty exactly when converged."""


def looks(first: int, last: int) -> tuple[int, ...]:
    """Rounds after which to look: `first`, each 1.5 times the one before (rounded down), and `last`, the budget.

    looks(30, 150) is 30, 45, 67, 100, 150. Raises ValueError unless 1 <= first <= last.
    """
    return _schedule(first, last, math.floor)


def process_looks(first: int = 5, last: int = 27) -> tuple[int, ...]:
    """Whole replicates (fresh processes) after which to look, rounded up: process_looks() is 5, 8, 12, 18, 27.

    The process is the unit of every interval, so a look inside one would judge a replicate that is not finished.
    """
    return _schedule(first, last, math.ceil)


def _schedule(first: int, last: int, to_integer: Callable[[float], int]) -> tuple[int, ...]:
    if not 1 <= first <= last:
        raise ValueError(f"the first look must come at 1 or later and not after the last: got {first} and {last}")
    steps = [first]
    while steps[-1] < last:
        # The smallest schedules would stand still when rounded down.
        steps.append(min(max(to_integer(steps[-1] * _GROWTH), steps[-1] + 1), last))
    return tuple(steps)


def quantile_targets(p50: float = 0.02, p90: float = 0.03) -> dict[float, float]:
    """Relative half-widths by percentile; p99 may be twice as wide as p90, whose tail holds ten times the samples."""
    for name, value in (("p50", p50), ("p90", p90)):
        if not 0 < value < 1:
            raise ValueError(f"the target of {name} is a share of the latency between 0 and 1, got {value}")
    return {0.5: p50, 0.9: p90, 0.99: 2 * p90}


def relative_half_width(estimate: QuantileEstimate) -> float | None:
    """Half the width of the interval as a share of the value; None where a bound is missing."""
    if estimate.low is None or estimate.high is None:
        return None
    return (estimate.high - estimate.low) / (2 * estimate.value)


def quantile_target_met(estimates: Iterable[QuantileEstimate], targets: Mapping[float, float] | None = None) -> Look:
    """Whether every percentile that has a target is known that well.

    `estimates` hold intervals at `LOOK_LEVEL`, from `quantile_interval(…, level=LOOK_LEVEL)`; `targets` are relative
    half-widths by percentile, as from `quantile_targets`. An interval without a bound misses every target. The count of
    samples that a claim needs (`QuantileEstimate.resolved`) is another question and not asked here.

    Raises ValueError when a percentile with a target has no estimate.
    """
    wanted = quantile_targets() if targets is None else targets
    found = {estimate.p: estimate for estimate in estimates}
    absent = [p for p in wanted if p not in found]
    if absent:
        names = ", ".join(_name(p) for p in absent)
        raise ValueError(f"no estimate of {names}; a look needs every percentile that has a target")
    missing, met = [], []
    for p, target in wanted.items():
        width = relative_half_width(found[p])
        if width is None:
            side = "above" if found[p].high is None else "below"
            missing.append(f"{_name(p)} has no bound {side} yet, the target is ±{100 * target:.2g} %")
        elif width > target * (1 + _ROUNDING):
            missing.append(f"{_name(p)} is known to ±{100 * width:.3g} %, the target is ±{100 * target:.2g} %")
        else:
            met.append(f"{_name(p)} ±{100 * width:.2g} %")
    return _look(missing, f"known well enough at {100 * LOOK_LEVEL:g} %: {', '.join(met)}")


def ratio_target_met(estimate: RatioEstimate, margin: float = 0.02) -> Look:
    """Whether the interval of a ratio, at `LOOK_LEVEL`, already decides: it excludes 1, or it lies within the margin.

    The words "differs" and "equivalent" are those of `compare_verdict`.
    """
    verdict = compare_verdict(estimate, margin)
    if estimate.low is None or estimate.high is None:
        return _look([f"{estimate.note or 'the ratio has no interval'}"], "")
    interval = f"{estimate.low:.4g} to {estimate.high:.4g}"
    if verdict == "differs":
        return _look([], f"differs: the ratio is {interval}, which excludes 1")
    if verdict == "equivalent":
        return _look([], f"equivalent: the ratio is {interval}, within ±{100 * margin:g} %")
    return _look([f"the ratio may be {interval}: it neither excludes 1 nor lies within ±{100 * margin:g} %"], "")


def span_met(span_s: float, correlation_s: float | None, *, minimum_s: float = MINIMUM_SPAN_S) -> Look:
    """Whether the machine was watched for long enough: `minimum_s`, and 20 of its correlation times where one is known.

    `span_s` runs from the start of the first block to the end of the last.
    """
    needed, why = minimum_s, f"{minimum_s:g} s at the least"
    if correlation_s is not None and CORRELATION_TIMES * correlation_s > minimum_s:
        needed = CORRELATION_TIMES * correlation_s
        why = f"{CORRELATION_TIMES:g} times the {correlation_s:.3g} s for which disturbances last"
    if span_s >= needed:
        return _look([], f"watched for {span_s:.3g} s ({why})")
    return _look([f"watched for {span_s:.3g} s, {needed:.3g} s are needed ({why})"], "")


def all_of(parts: Iterable[Look]) -> Look:
    """One look from several: converged when each of them is; says everything that is missing, or why all is well."""
    every = list(parts)
    return _look([phrase for part in every for phrase in part.missing], "; ".join(p.reason for p in every if p.reason))


def correlation_time_s(
    block_times_s: NDArray[np.float64], block_values: NDArray[np.float64], processes: Sequence[int] | None = None
) -> float | None:
    """For how long neighbouring blocks resemble each other: the time after which their correlation fell to 1/e, seconds.

    `block_times_s` and `block_values` have shape (blocks,): when a block began, in seconds, and its median or mean, positive.
    The products of all pairs of log values are fitted by a exp(-distance / time), by least squares over a grid of times;
    noise of single blocks only lowers `a`. With `processes`, one id per block, pairs of one process get a
    constant of their own: lasting offsets of processes are no disturbance that passes.

    What lasts less than the distance between neighbouring blocks cannot be seen, so that distance is the smallest
    answer, and the whole span the largest. None with fewer than 8 blocks, when all are alike, or without any distance
    between them. Raises ValueError for shapes that differ and values that are not positive.
    """
    times, values = np.asarray(block_times_s, np.float64), np.asarray(block_values, np.float64)
    owners = np.zeros(len(times), dtype=np.int64) if processes is None else np.asarray(processes, dtype=np.int64)
    if times.ndim != 1 or times.shape != values.shape or owners.shape != times.shape:
        raise ValueError(f"one time, value and process per block: got {times.shape}, {values.shape} and {owners.shape}")
    if not (np.isfinite(times).all() and np.isfinite(values).all() and (values > 0).all()):
        raise ValueError("block times must be finite and block values positive and finite")
    if len(times) < _SMALLEST_SERIES:
        return None
    times, y, owners = _pooled(times, np.log(values), owners)
    y = y - y.mean()
    variance = float(y @ y) / (len(y) - 1)
    spacing, span = float(np.median(np.diff(times))), float(np.ptp(times))
    # Below a ten-thousandth of a per cent it is rounding.
    if variance <= 1e-12 or not 0 < spacing < span:
        return None

    i, j = np.triu_indices(len(times), 1)
    distances, same = np.abs(times[j] - times[i]), owners[i] == owners[j]
    # Centring makes independent values look opposed, by variance / count.
    products = y[i] * y[j] / variance + 1 / len(y)
    grid = np.geomspace(spacing, span, _GRID)
    shapes = np.exp(-distances / grid[:, np.newaxis])
    if same.any() and not same.all():
        products[same] -= products[same].mean()
        shapes[:, same] -= shapes[:, same].mean(axis=1, keepdims=True)
    # Over independent blocks, shapes @ products has the variance sum(shapes^2): what is left is standard normal by chance.
    size = np.sqrt((shapes * shapes).sum(axis=1))
    strength = shapes @ products / np.maximum(size, 1e-9)
    best = int(np.argmax(strength))
    return float(grid[best]) if strength[best] > _CHANCE else spacing


def _pooled(
    times: NDArray[np.float64], y: NDArray[np.float64], owners: NDArray[np.int64]
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.int64]]:
    """Neighbouring blocks averaged until few enough are left for all their pairs."""
    order = np.argsort(times, kind="stable")
    starts = np.arange(0, len(y), -(-len(y) // _MAX_BLOCKS))
    counts = np.diff(np.append(starts, len(y)))
    mean_times, mean_y = (np.add.reduceat(a[order], starts) / counts for a in (times, y))
    return mean_times, mean_y, owners[order][starts]


def _look(missing: list[str], reached: str) -> Look:
    return Look(not missing, "; ".join(missing) if missing else reached, tuple(missing))


def _name(p: float) -> str:
    return f"p{100 * p:g}"
