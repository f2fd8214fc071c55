"""Where the steady state of a series of inferences begins. numpy only: devices run this too.

A fixed number of warm-up inferences is wrong for the next model. Here the series is cut where its level changes (PELT,
Killick, Fearnhead and Eckley, JASA 107, 2012), and the steady state begins after the last level that differs from where
the series ends up. The labels are those of Barrett et al. (OOPSLA 2017), who found that many programs never settle.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

__all__ = ["SteadyState", "steady_state"]

Label = Literal["flat", "warmup", "slowdown", "no_steady_state"]

_MAX_GROUPS = 800
"""Keeps PELT, quadratic on a series without changes, within tens of milliseconds on a device."""
_MAX_EXCURSIONS = 0.25
"""Share of the steady state that passing disturbances may take before it is called bimodal."""
_SIGMA_FLOOR = 1e-4
"""Noise of a series that its clock rounds to a few values, as a share of the latency: far below any tolerance."""
_MAD_TO_SIGMA = 1.4826
"""Turns a median absolute deviation into a standard deviation, for normal noise."""


@dataclass(frozen=True)
class SteadyState:
    """Where the steady state begins and whether to trust it."""

    cut: int
    """Index of the first sample of the steady state, below n; when not accepted, of what comes nearest to one."""
    label: Label
    """`warmup`: what was cut was slower; `slowdown`: it was faster (turbo clocks, heat); `flat`: nothing was cut."""
    accepted: bool
    reason: str
    """For people: what was seen, and when not accepted what to do."""


def steady_state(
    samples_s: NDArray[np.float64],
    *,
    tolerance: float = 0.01,
    group: int = 10,
    group_s: float = 0.020,
    min_size: int = 5,
    penalty: float = 6.0,
    winsor: float = 0.02,
) -> SteadyState:
    """Find the steady state in durations of consecutive inferences, shape (n,), in seconds and in time order.

    1. y = log of the medians of consecutive groups: `group` inferences each, fewer when these already last `group_s` or when
       n is small, more when n is so large that the search would take long. Groups are winsorised at shares `winsor` and
       1 - `winsor`.
    2. PELT with squared error, segments of at least `min_size` groups and penalty `penalty` sigma^2 ln(groups); sigma from the
       median absolute first difference, which level changes hardly touch.
    3. The reference level is the median of the last half of y. A segment whose mean is over `tolerance` away deviates.
       The cut is the end of the last deviating stretch, but one that follows at least as many steady groups and returns
       to them is a disturbance that passed and stays in.
    4. Accepted if the last segment does not deviate, the rest lasts at least as long as what was cut, the medians of its two
       halves agree within `tolerance`, and disturbances take at most a quarter of it.

    Temperature and clock trends are the caller's to check; a drift longer than the series is not visible in it.
    Raises ValueError for samples that are not positive and finite.
    """
    samples = np.asarray(samples_s, dtype=np.float64).ravel()
    if not (np.isfinite(samples).all() and (samples > 0).all()):
        raise ValueError("durations must be positive and finite; a clock that jumps or a failed inference got in")
    n = len(samples)
    size = _group_size(samples, group, group_s)
    count = n // size if n else 0
    if count < 2 * min_size:
        reason = f"{n} inferences make {count} groups of {size}; two levels need {2 * min_size}: extend the warm-up"
        return SteadyState(0, "no_steady_state", False, reason)

    y = _group_logs(samples, size, count, winsor)
    sigma = max(_MAD_TO_SIGMA * float(np.median(np.abs(np.diff(y)))) / 2**0.5, _SIGMA_FLOOR)
    ends = _pelt(y, penalty * sigma**2 * float(np.log(count)), min_size)
    starts = [0, *ends[:-1]]
    reference = float(np.median(y[count // 2 :]))
    # Medians on both sides: of two modes a mean lies between them and would differ from the median for ever.
    levels = np.array([np.median(y[i:j]) for i, j in zip(starts, ends, strict=True)]) - reference
    deviates = np.abs(levels) > np.log1p(tolerance)

    if deviates[-1]:
        away = 100 * float(np.expm1(levels[-1]))
        reason = f"the last {n - starts[-1] * size} of {n} inferences are {away:+.1f} % off the level before: extend the warm-up"
        return SteadyState(starts[-1] * size, "no_steady_state", False, reason)
    cut, disturbed = _cut(deviates, starts, ends)
    trouble = _trouble(y[cut:], samples, cut * size, disturbed, tolerance)
    if trouble is not None:
        return SteadyState(cut * size, "no_steady_state", False, f"{trouble}: extend the warm-up")
    return _accepted(y, cut, size, reference, disturbed)


def _group_size(samples: NDArray[np.float64], group: int, group_s: float) -> int:
    n = len(samples)
    if n == 0:
        return 1
    enough = int(np.ceil(group_s / float(np.median(samples))))
    # 20 groups at the least where n allows, so that a short series of slow inferences still shows its shape.
    return max(1, min(group, enough, n // 20), -(-n // _MAX_GROUPS))


def _group_logs(samples: NDArray[np.float64], size: int, count: int, winsor: float) -> NDArray[np.float64]:
    # The last n - count * size samples are left out: fewer than one group.
    y = np.log(np.median(samples[: count * size].reshape(count, size), axis=1))
    low, high = np.quantile(y, [winsor, 1 - winsor])
    return np.clip(y, low, high)


def _pelt(y: NDArray[np.float64], penalty: float, min_size: int) -> list[int]:
    """Ends of the segments that minimise squared error + penalty x segments, the last one being len(y)."""
    n = len(y)
    centred = y - y.mean()
    sums = np.concatenate(([0.0], np.cumsum(centred)))
    squares = np.concatenate(([0.0], np.cumsum(centred * centred)))
    best = np.full(n + 1, np.inf)
    best[0] = -penalty
    previous = np.zeros(n + 1, dtype=np.int64)
    starts = np.zeros(0, dtype=np.int64)
    # A start that lost at t can only be forgotten when a segment that begins at t may end: min_size later.
    expires = np.zeros(0, dtype=np.int64)
    for t in range(min_size, n + 1):
        if np.isfinite(best[t - min_size]):
            starts = np.append(starts, t - min_size)
            expires = np.append(expires, n + 1)
        total = sums[t] - sums[starts]
        costs = best[starts] + (squares[t] - squares[starts]) - total * total / (t - starts)
        winner = int(np.argmin(costs))
        best[t] = costs[winner] + penalty
        previous[t] = starts[winner]
        expires[(costs > best[t]) & (expires > n)] = t + min_size
        keep = expires > t
        starts, expires = starts[keep], expires[keep]
    ends = [n]
    while previous[ends[-1]] > 0:
        ends.append(int(previous[ends[-1]]))
    return ends[::-1]


def _cut(deviates: NDArray[np.bool_], starts: list[int], ends: list[int]) -> tuple[int, int]:
    """First group of the steady state, and how many groups after it belong to disturbances that passed."""
    cut = disturbed = steady = away = 0
    for off, start, end in zip(deviates, starts, ends, strict=True):
        if off:
            away += end - start
            continue
        if away > steady:
            cut, disturbed, steady = start, 0, 0
        elif away:
            disturbed += away
        away = 0
        steady += end - start
    return cut, disturbed


def _trouble(
    rest: NDArray[np.float64], samples: NDArray[np.float64], cut: int, disturbed: int, tolerance: float
) -> str | None:
    before, after = float(samples[:cut].sum()), float(samples[cut:].sum())
    if after < before:
        return (
            f"the steady state lasted {after:.3g} s after {before:.3g} s of warm-up, which is too short to confirm it"
        )
    if disturbed > _MAX_EXCURSIONS * len(rest):
        share = 100 * disturbed / len(rest)
        return f"the latency alternates between levels: {share:.0f} % of the time it is over {100 * tolerance:g} % away"
    half = len(rest) // 2
    step = float(np.median(rest[half:]) - np.median(rest[:half]))
    if abs(step) > np.log1p(tolerance):
        return f"the two halves of what remains differ by {100 * float(np.expm1(step)):+.1f} %"
    return None


def _accepted(y: NDArray[np.float64], cut: int, size: int, reference: float, disturbed: int) -> SteadyState:
    passed = f"; {disturbed * size} later inferences were disturbed and stay in" if disturbed else ""
    if cut == 0:
        return SteadyState(0, "flat", True, f"no level change at the start{passed}")
    level = float(y[:cut].mean()) - reference
    label: Label = "warmup" if level > 0 else "slowdown"
    reason = (
        f"the first {cut * size} inferences were {100 * float(np.expm1(level)):+.1f} % off the steady level{passed}"
    )
    return SteadyState(cut * size, label, True, reason)
