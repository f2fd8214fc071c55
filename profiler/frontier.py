"""Which cases nothing else beats, and how sure that is. Pure functions of arrays, minimising unless told otherwise.

A row is a point (a case), a column an objective (latency, drop, cost). Point j *dominates* i when it is at least as good in
every column and better in one. What nothing dominates is the frontier.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

__all__ = ["Frontier", "frontier", "hypervolume_2d", "knee", "nondominated"]

Directions = bool | Sequence[bool]
"""Whether larger is better: for all columns, or one answer per column."""


@dataclass(frozen=True)
class Frontier:
    """The frontier of n points and how firmly the others are below it."""

    members: NDArray[np.bool_]
    """Points that no point estimate dominates, shape (n,). Equal points are all members."""
    dominated_by: list[list[int]]
    """For each point the members whose point estimates dominate it, ascending; empty for members only."""
    tied: NDArray[np.bool_]
    """Not a member, yet no member dominates it with separated intervals, shape (n,)."""


def nondominated(points: NDArray[np.float64], *, maximise: Directions = False) -> NDArray[np.bool_]:
    """Whether each of n points, shape (n, d), is dominated by none. O(n^2 d) time, O(n d) memory.

    Equal points do not dominate each other, so duplicates are kept together. Infinities are ordinary worst or best values.

    Raises ValueError for NaN (an unknown value neither wins nor loses: leave the point out), and for other shapes.

    >>> nondominated(np.array([[1.0, 2.0], [2.0, 1.0], [2.0, 2.0], [1.0, 2.0]]))
    array([ True,  True, False,  True])
    """
    costs = _costs(points, maximise)
    dominated = [bool(((costs <= row).all(axis=1) & (costs < row).any(axis=1)).any()) for row in costs]
    return ~np.array(dominated, dtype=bool)


def frontier(
    values: NDArray[np.float64],
    low: NDArray[np.float64],
    high: NDArray[np.float64],
    *,
    maximise: Directions = False,
    separation: Literal["any", "all"] = "any",
) -> Frontier:
    """The frontier of point estimates with interval bounds, all of shape (n, d).

    Member j dominates i *with separated intervals* when its point estimate dominates that of i and

    - `separation="any"` (default): in at least one column the whole interval of j is better than the whole interval of i.
      Such an i is known to lose somewhere and nothing measured speaks for it. This is what a report calls dominated;
    - `separation="all"`: the same, and in every column the interval of j is nowhere worse than that of i (touching or equal
      ends allowed). Only then is i off the true frontier at the intervals' level, but two cases whose accuracy intervals
      overlap are never separated, however far apart their latencies.

    Points neither on the frontier nor so dominated are `tied`: more measurement may move them. A column known exactly has
    low == value == high. A bound of NaN or of either infinity is unbounded: it separates nothing in that column. Intervals need
    not hold their point estimate. With many points the intervals should be wide enough for all comparisons at once
    (see `profiler.stats.ratios.holm`).

    Raises ValueError for NaN in `values` and for shapes that differ.
    """
    costs = _costs(values, maximise)
    lower, upper = np.asarray(low, dtype=np.float64), np.asarray(high, dtype=np.float64)
    if lower.shape != costs.shape or upper.shape != costs.shape:
        raise ValueError(f"bounds must have the shape of values {costs.shape}, got {lower.shape} and {upper.shape}")
    flip = _signs(maximise, costs.shape[1]) < 0
    best, worst = np.where(flip, -upper, lower), np.where(flip, -lower, upper)
    # NaN compares false with everything, which is what "separates nothing" means.
    best, worst = (np.where(np.isfinite(bound), bound, np.nan) for bound in (best, worst))

    members = nondominated(costs)
    front = np.flatnonzero(members)
    tied = np.zeros(len(costs), dtype=bool)
    dominated_by: list[list[int]] = []
    for i, row in enumerate(costs):
        beats = front[(costs[front] <= row).all(axis=1) & (costs[front] < row).any(axis=1)]
        dominated_by.append([int(j) for j in beats])
        sure = (worst[beats] < best[i]).any(axis=1)
        if separation == "all":
            sure &= (worst[beats] <= best[i]).all(axis=1)
        tied[i] = not members[i] and not sure.any()
    return Frontier(members, dominated_by, tied)


def hypervolume_2d(points: NDArray[np.float64], reference: Sequence[float], maximise: Directions = False) -> float:
    """Area that points of shape (n, 2) dominate up to `reference`, in the product of the two columns' units. O(n log n).

    Points that are not better than the reference in both columns add nothing, nor do dominated ones. Compare areas
    only for the same reference (Zitzler and Thiele, 1998).

    Raises ValueError for NaN, for infinities, and for other shapes.

    >>> hypervolume_2d(np.array([[1.0, 2.0], [2.0, 1.0]]), (3.0, 3.0))
    3.0
    """
    costs = _costs(points, maximise)
    corner = np.asarray(reference, dtype=np.float64)
    if costs.shape[1] != 2 or corner.shape != (2,):
        raise ValueError(f"the area needs two columns and a reference of two, got {costs.shape} and {corner.shape}")
    corner = corner * _signs(maximise, 2)
    if not (np.isfinite(costs).all() and np.isfinite(corner).all()):
        raise ValueError("points and reference must be finite; an infinite point spans an infinite area")
    inside = costs[(costs < corner).all(axis=1)]
    area, roof = 0.0, float(corner[1])
    for x, y in inside[np.lexsort((inside[:, 1], inside[:, 0]))]:
        if y < roof:
            area += float((corner[0] - x) * (roof - y))
            roof = float(y)
    return area


def knee(points: NDArray[np.float64], maximise: Directions = False) -> int | None:
    """Index of the frontier point of shape (n, 2) that bends furthest from the line between the two ends of the frontier.

    Columns are first scaled to the frontier's extent, so units do not matter. None when the frontier has fewer than three
    different points, or nowhere bends towards the better side. Of equal bends the lowest index is taken (Das, 1999).
    """
    costs = _costs(points, maximise)
    if costs.shape[1] != 2:
        raise ValueError(f"a knee needs two columns, got shape {costs.shape}")
    if not np.isfinite(costs).all():
        raise ValueError("points must be finite; leave unbounded ones out")
    front = np.flatnonzero(nondominated(costs))
    if len(front) < 3:
        return None
    corner = costs[front].min(axis=0)
    extent = costs[front].max(axis=0) - corner
    if not (extent > 0).all():
        return None
    # Both ends lie on x + y = 1 after scaling, so the distance from their line is the distance from that sum.
    bend = 1 - ((costs[front] - corner) / extent).sum(axis=1)
    winner = int(np.argmax(bend))
    return int(front[winner]) if bend[winner] > 1e-9 else None


def _signs(maximise: Directions, columns: int) -> NDArray[np.float64]:
    answers = [maximise] * columns if isinstance(maximise, bool) else list(maximise)
    if len(answers) != columns:
        raise ValueError(f"maximise must be one bool or one per column: got {len(answers)} for {columns} columns")
    return np.where(np.array(answers, dtype=bool), -1.0, 1.0)


def _costs(points: NDArray[np.float64], maximise: Directions) -> NDArray[np.float64]:
    """A copy of the points in which smaller is better in every column."""
    array = np.asarray(points, dtype=np.float64)
    if array.ndim != 2:
        raise ValueError(f"points must have the shape (points, objectives), got {array.shape}")
    unknown = np.flatnonzero(np.isnan(array).any(axis=1))
    if len(unknown):
        raise ValueError(f"points {unknown.tolist()} hold NaN; leave out what was not measured")
    return np.asarray(array * _signs(maximise, array.shape[1]), dtype=np.float64)
