"""What rows that nobody saw could still do to a drop: the bounds below which no interval of a change is believed. Pure.

A bootstrap draws from what was seen. Where nothing changed it says that nothing can change, and where three rows of a thousand
got worse it knows three rows. So its interval is held against what a share of unseen rows could add: counted, not resampled.
Right/wrong answers over independent rows need none of it: Tango's interval knows the rows that did not change.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri

from profiler.quality.metrics import LosesByRow, Metric
from profiler.stats.paired import clopper_pearson

Rows = NDArray[np.float64]

FEWEST_ROWS = 50
"""Independent rows below which a bootstrap bounds nothing (docs/method.md, "Does a verdict err as often as it says?")."""
FEWEST_OF_A_CLASS = 10
"""Rows of the rarest class below which a metric that weighs all classes alike is not bounded."""
FEW_CHANGED = 10
"""Rows (or clusters) that got worse below which their share is counted instead of resampled."""
MATERIAL = 0.05
"""A loss below this share of the largest one seen counts as noise: a thousand rounding errors are no thousand failures."""


@dataclass(frozen=True)
class Bound:
    """The interval of a change as far as the rows support one, in the metric's own direction of *gain*; and why, for people."""

    low: float | None
    high: float | None
    note: str | None


def too_little(metric: Metric, reference: Rows, n: int) -> str | None:
    """Why these rows bound nothing, whatever they say; None where they are enough. `n` are the independent ones."""
    if n < FEWEST_ROWS:
        return f"{n} independent rows, and an interval of this metric needs {FEWEST_ROWS}"
    rarest = metric.rarest(reference) if isinstance(metric, LosesByRow) else None
    if rarest is not None and rarest < FEWEST_OF_A_CLASS:
        rows = f"{rarest} row{'s' * (rarest != 1)}"
        return (
            f"the rarest class has {rows}, and this metric, which weighs it like any other, needs {FEWEST_OF_A_CLASS}"
        )
    return None


def losses(metric: Metric, reference: Rows, variant: Rows, clusters: NDArray[np.int64] | None) -> Rows:
    """What each row (cluster) adds to the drop, times their number: positive is worse, the mean is about the drop."""
    if isinstance(metric, LosesByRow):
        found = metric.row_losses(reference, variant)
    elif metric.mean_reduced:
        found = reference - variant if metric.higher_is_better else variant - reference
    else:
        return np.full(len(reference), np.nan)
    if clusters is None:
        return found
    sums = np.bincount(clusters, weights=found)
    return np.asarray(sums * (len(sums) / len(found)), np.float64)


def nothing_changed(metric: Metric, reference: Rows, n: int, level: float) -> Bound:
    """Where no row changed: a share of the rows may change unseen, by as much as a row can."""
    share = clopper_pearson(0, n, (1 + level) / 2, "upper")[1]
    largest = _largest(metric, reference)
    seen = f"no sample changed; changes in fewer than {share:.2%} of samples would probably not have shown"
    if largest is None:
        return Bound(None, None, f"{seen}, and nothing bounds how much worse such a sample may be")
    reach = share * largest
    return Bound(-reach, reach, seen)


def widened(
    found: Rows, low: float | None, high: float | None, level: float
) -> tuple[float | None, float | None, str | None]:
    """An interval [low, high] of the gain that holds what `losses` leave open: few bad rows are counted, and one row as bad as
    the worst may be missing from any sample.
    """
    if low is None or high is None or not np.isfinite(found).all():
        return low, high, None
    loss, note = _reach(found, -low, level)
    gain, other = _reach(-found, high, level)
    if other is not None:
        # A handful of rows that got better says little of how many may, but the others got worse all the same.
        gain = min(gain, max(high, _reach_with_the_others(-found, level)))
    return -loss, gain, note or other


def _reach(side: Rows, end: float, level: float) -> tuple[float, str | None]:
    """How far one side goes: `end` of a bootstrap, or further; and why."""
    worst = float(max(side.max(), 0.0))
    if worst == 0:
        return end, None
    resampled = end + worst / len(side)
    bad = int((side > MATERIAL * worst).sum())
    if bad >= FEW_CHANGED:
        return resampled, None
    counted = worst * clopper_pearson(bad, len(side), (1 + level) / 2, "upper")[1]
    if counted <= resampled:
        return resampled, None
    return counted, f"few rows changed ({bad} of {len(side)} in one direction): bounded by counting them"


def _reach_with_the_others(side: Rows, level: float) -> float:
    """How far one side goes when its few large rows are counted and the others taken as they are, half of the error for each."""
    worst, share = float(side.max()), (3 + level) / 4
    large = side > MATERIAL * worst
    counted = worst * clopper_pearson(int(large.sum()), len(side), share, "upper")[1]
    rest = np.where(large, 0.0, side)
    return counted + float(rest.mean() + ndtri(share) * rest.std(ddof=1) / np.sqrt(len(side)))


def bounded(metric: Metric) -> bool:
    """Whether something bounds what one row can do: scores and similarities have ends, errors and a user's own numbers none."""
    if isinstance(metric, LosesByRow):
        return metric.unit == "proportion"
    return metric.unit == "proportion" or metric.name.startswith("cosine")


def _largest(metric: Metric, reference: Rows) -> float | None:
    """The most that one row can lose, times the number of rows."""
    if isinstance(metric, LosesByRow):
        return metric.largest_row_loss(reference)
    # A proportion of rows of 0 to 1; similarities lie in -1 to 1; of a user's own number nothing is known.
    if not metric.mean_reduced:
        return None
    if metric.unit == "proportion":
        return 1.0
    return 2.0 if metric.name.startswith("cosine") else None
