"""Whether a latency has two modes, and whether they take turns in time or belong to different processes.

A model that runs at two speeds (a thread that lands on a shared core, an allocation that missed huge pages) has no latency
"in the middle": a percentile that falls between the modes moves from one to the other with the slightest
change of their shares, and no interval can hold it. Two modes are claimed only when the density between two peaks is
at most half of the lower peak, rounds agree that it is, and each mode was entered several times: a long tail, a slow
wave or one disturbance is none. numpy and scipy; the cost is O(n log n).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter1d
from scipy.special import stdtrit

__all__ = ["Modes", "crosses_modes", "modes"]

Floats = NDArray[np.float64]

_SMALLEST_SHARE = 0.05
_VALLEY = 0.5
"""The density between two modes, as a share of the lower peak's, above which they are one broad mode."""
_ERRORS = 3.5
"""Standard errors by which rounds must agree on the valley: the place of the deepest of all valleys was chosen."""
_VISITS = 3
"""Separate stretches in each mode. Fewer are a step or a disturbance, whatever the density says."""
_GAP = 12.0
"""Distance of two groups of medians, in standard deviations inside a group, that five medians from one normal distribution
reach in 1 % of all cases (two in each group at the least), and more of them far less often."""
_FEWEST_UNITS = 5
_PURE = 0.9
"""Share of a round in one mode from which the round belongs to it."""
_BINS = 512


@dataclass(frozen=True)
class Modes:
    """One or two modes. Centres ascend and are in the unit of the samples."""

    count: Literal[1, 2]
    centres_s: tuple[float, ...]
    """Median of each mode."""
    shares: tuple[float, ...]
    """Share of the samples in each mode; they add up to 1."""
    separation: float
    """Distance of the centres on the log scale, in standard deviations of a mode (robust); 0.0 for one mode."""
    alternates: bool
    """Two modes take turns inside rounds. Otherwise whole rounds or processes are in one of them; False for one mode."""
    boundary: tuple[float, float] | None
    """95 % interval of the share of the faster mode: percentiles inside it may lie in either. None for one mode."""
    reason: str
    """For people."""


def modes(rounds: Sequence[NDArray[np.float64]], *, processes: Sequence[int] | None = None) -> Modes:
    """Find one or two modes in rounds of shape (m_i,), in time order, positive; empty rounds are skipped.

    1. Density of the log samples on a grid, smoothed with Silverman's bandwidth (robust scale), two ticks of
       the clock at the least.
    2. The second peak is the one that stands highest above the saddle between it and anything higher. Both sides of the
       saddle must hold 5 % of the samples, and the density there be at most half of the lower peak's.
    3. Rounds are the witnesses: samples near the lower peak minus samples near the saddle, per round, must be positive by 3.5
       standard errors across rounds, with their lag-1 correlation. Both modes must be visited in 3 separate stretches.
    4. Instead of 3: five or more processes (or rounds) lie entirely in one mode or the other, their medians form two groups
       that are 12 standard deviations apart, and both groups hold two separate stretches of processes (3 of rounds).

    `processes` names the process of each round. Without it, modes of processes are found from rounds only.
    Raises ValueError without samples and for samples that are not positive and finite.
    """
    kept, owners = _clean(rounds, processes)
    x = np.log(np.concatenate(kept))
    sizes = np.array([len(r) for r in kept])
    found = _deepest_valley(x)
    if found is None:
        return _one(x, "one peak")
    peak, split, width = found
    slow = x > split
    share = float(slow.mean())
    if not _SMALLEST_SHARE <= share <= 1 - _SMALLEST_SHARE:
        return _one(x, f"a second peak holds {100 * min(share, 1 - share):.1f} % of the samples, which is no mode")
    edges = np.concatenate(([0], np.cumsum(sizes)[:-1]))
    near = _near(x, peak, width).astype(np.float64) - _near(x, split, width)
    per_round = np.add.reduceat(slow.astype(np.float64), edges)
    inside = (per_round / sizes > 1 - _PURE) & (per_round / sizes < _PURE)
    if not _apart(kept, split, owners):
        if not _agreed(np.add.reduceat(near, edges)):
            return _one(x, "two peaks, but rounds do not agree on the valley between them")
        visits = _visits(slow) if inside.any() else _visits(per_round > sizes / 2)
        if visits < _VISITS:
            return _one(x, f"two levels, one of them entered {visits} times: a step or a disturbance, not a mode")
    alternates = _inside_rounds(per_round, sizes)
    where = "take turns inside rounds" if alternates else "differ between rounds or processes"
    centres = tuple(float(np.exp(np.median(x[side]))) for side in (~slow, slow))
    spread = float(np.sqrt(np.mean([_robust_sd(x[side]) ** 2 for side in (~slow, slow)])))
    separation = (np.log(centres[1]) - np.log(centres[0])) / max(spread, 1e-6)
    reason = f"two modes, {100 * (centres[1] / centres[0] - 1):.0f} % apart, {100 * share:.0f} % in the slower, {where}"
    return Modes(
        2, centres, (1 - share, share), float(separation), alternates, _boundary(per_round, sizes, owners), reason
    )


def crosses_modes(found: Modes, p: float) -> bool:
    """Whether percentile `p` may lie in either mode: then it is "not resolved: bimodal", whatever its interval says."""
    if not 0 < p < 1:
        raise ValueError(f"p must lie strictly between 0 and 1, got {p}")
    return found.boundary is not None and found.boundary[0] <= p <= found.boundary[1]


def _clean(
    rounds: Sequence[NDArray[np.float64]], processes: Sequence[int] | None
) -> tuple[list[Floats], NDArray[np.int64] | None]:
    arrays = [np.asarray(r, dtype=np.float64).ravel() for r in rounds]
    if processes is not None and len(processes) != len(arrays):
        raise ValueError(f"processes must name one process per round: got {len(processes)} for {len(arrays)} rounds")
    keep = [i for i, r in enumerate(arrays) if len(r)]
    if not keep:
        raise ValueError(f"no samples in {len(arrays)} rounds; modes need samples")
    if not all(np.isfinite(arrays[i]).all() and (arrays[i] > 0).all() for i in keep):
        raise ValueError("durations must be positive and finite; a failed inference is a failure record, not a sample")
    return [arrays[i] for i in keep], None if processes is None else np.asarray(processes, dtype=np.int64)[keep]


def _deepest_valley(x: Floats) -> tuple[float, float, float] | None:
    """Place of the lower peak, place of the saddle, and half the width of the windows that compare them."""
    bandwidth = max(0.9 * _robust_sd(x) * len(x) ** -0.2, 2 * _resolution(x))
    low, high = np.quantile(x, [0.001, 0.999])
    if bandwidth <= 0 or high <= low:
        return None
    edges = np.linspace(low - 3 * bandwidth, high + 3 * bandwidth, _BINS + 1)
    step = float(edges[1] - edges[0])
    density = gaussian_filter1d(np.histogram(x, edges)[0].astype(np.float64), max(bandwidth / step, 0.5))
    top = int(np.argmax(density))
    inner = np.arange(1, _BINS - 1)
    peaks = inner[(density[inner] >= density[inner - 1]) & (density[inner] > density[inner + 1]) & (inner != top)]
    best: tuple[float, int, int] | None = None
    for peak in peaks:
        # Towards the highest peak: the saddle of the way to anything higher is at least as low as this one.
        left, right = sorted((int(peak), top))
        saddle = left + int(np.argmin(density[left : right + 1]))
        rise = float(density[peak] - density[saddle])
        if density[saddle] <= _VALLEY * density[peak] and (best is None or rise > best[0]):
            best = rise, int(peak), saddle
    if best is None:
        return None
    middle = (edges[:-1] + edges[1:]) / 2
    _, peak, saddle = best
    return float(middle[peak]), float(middle[saddle]), min(2 * bandwidth, abs(float(middle[peak] - middle[saddle])) / 2)


def _resolution(x: Floats) -> float:
    """Mean distance of the distinct values among the middle 98 %: a clock's ticks must not look like modes."""
    low, high = np.quantile(x, [0.01, 0.99])
    distinct = len(np.unique(x[(x >= low) & (x <= high)]))
    return float(high - low) / max(distinct - 1, 1)


def _near(x: Floats, place: float, width: float) -> NDArray[np.bool_]:
    return np.abs(x - place) <= width


def _agreed(differences: Floats) -> bool:
    """Whether the mean over rounds is positive by far more than their disagreement allows."""
    count = len(differences)
    if count < 2:
        return False
    centred = differences - differences.mean()
    variance = float(centred @ centred) / (count - 1)
    lag = float(np.mean(centred[1:] * centred[:-1])) / variance if variance > 0 else 0.0
    lag = min(max(lag, 0.0), 0.8)
    error = float(np.sqrt(variance / count * (1 + lag) / (1 - lag)))
    return float(differences.mean()) > _ERRORS * error


def _apart(rounds: list[Floats], split: float, owners: NDArray[np.int64] | None) -> bool:
    """Whether processes, or else rounds, form two tight groups on either side of the split."""
    candidates = [(rounds, _VISITS)]
    if owners is not None:
        order = dict.fromkeys(owners.tolist())
        joined = [np.concatenate([r for r, o in zip(rounds, owners, strict=True) if o == name]) for name in order]
        candidates.insert(0, (joined, _VISITS - 1))
    return any(_two_groups(units, split, visits) for units, visits in candidates)


def _two_groups(units: list[Floats], split: float, visits: int) -> bool:
    shares = np.array([np.count_nonzero(np.log(unit) > split) / len(unit) for unit in units])
    pure = (shares <= 1 - _PURE) | (shares >= _PURE)
    slow = shares > 0.5
    if len(units) < _FEWEST_UNITS or pure.mean() < _PURE or _visits(slow) < visits:
        return False
    medians = np.log([float(np.median(unit)) for unit in units])
    groups = medians[~slow], medians[slow]
    within = sum(float(((g - g.mean()) ** 2).sum()) for g in groups) / (len(units) - 2)
    distance = float(groups[1].mean() - groups[0].mean())
    return distance > _GAP * float(np.sqrt(within))


def _visits(slow: NDArray[np.bool_]) -> int:
    """Separate stretches of the mode that has fewer of them."""
    starts = np.concatenate(([True], slow[1:] != slow[:-1]))
    return min(int(np.count_nonzero(starts & slow)), int(np.count_nonzero(starts & ~slow)))


def _inside_rounds(per_round: Floats, sizes: NDArray[np.int64]) -> bool:
    """Whether less than half of the variance between samples (slow or not) lies between rounds: the intraclass correlation."""
    n, count = float(sizes.sum()), len(sizes)
    share = float(per_round.sum()) / n
    size = n / count
    if size <= 1 or count < 2:
        return False
    whole = share * (1 - share)
    between = float((sizes * (per_round / sizes - share) ** 2).sum()) / n * count / (count - 1)
    return (between - whole / size) / (1 - 1 / size) < 0.5 * whole


def _robust_sd(x: Floats) -> float:
    """The smaller of the standard deviation and the one that the middle half would have if normal."""
    deviation = float(x.std())
    low, high = np.quantile(x, [0.25, 0.75])
    return min(deviation, float(high - low) / 1.349) or deviation


def _boundary(per_round: Floats, sizes: NDArray[np.int64], owners: NDArray[np.int64] | None) -> tuple[float, float]:
    n = float(sizes.sum())
    share = float(per_round.sum()) / n
    levels = [per_round - share * sizes]
    if owners is not None and 1 < len(set(owners.tolist())) < len(owners):
        _, where = np.unique(owners, return_inverse=True)
        levels.append(np.bincount(where, weights=levels[0]).astype(np.float64))
    half = 0.0
    for totals in levels:
        count = len(totals)
        error = float(np.sqrt(totals @ totals * count / (count - 1))) / n
        half = max(half, float(stdtrit(count - 1, 0.975)) * error)
    return max(0.0, 1 - share - half), min(1.0, 1 - share + half)


def _one(x: Floats, reason: str) -> Modes:
    return Modes(1, (float(np.exp(np.median(x))),), (1.0,), 0.0, False, None, reason)
