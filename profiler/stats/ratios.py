"""How one variant compares with another: ratios of a statistic, with the process pair as the unit.

Two processes that run the same file differ by a small, lasting offset (memory layout, placement), so blocks inside
a process pair are repeats of one comparison, not new ones. Tests that count blocks find differences between identical
processes far too often; a t interval over one number per pair does not (Kalibera and Jones, ISMM 2013).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtr, stdtrit

__all__ = ["MATERIAL", "RatioEstimate", "compare_verdict", "holm", "ratio_interval"]

Verdict = Literal["differs", "equivalent", "inconclusive"]

MATERIAL = 0.02
"""A smaller difference between two times is none to speak of: MLPerf's convention for "materially different"."""


@dataclass(frozen=True)
class RatioEstimate:
    """A ratio variant / reference. Bounds and p-value are None, with a note, where pairs are too few."""

    value: float
    low: float | None
    high: float | None
    pairs: int
    """Process pairs that held at least one paired block."""
    p_value: float | None
    """Two-sided p-value of "the ratio is 1", before any correction for several variants (see `holm`)."""
    note: str | None = None


def ratio_interval(log_ratios_by_process: Sequence[NDArray[np.float64]], *, level: float = 0.95) -> RatioEstimate:
    """Ratio of a statistic between two variants, from paired blocks inside paired processes.

    Each array, shape (blocks,), holds log(statistic of the variant / statistic of the reference) of the paired blocks of one
    process pair. Its median stands for the pair (a burst that hits one block does not move it), the estimate is exp of the
    mean of these medians and the interval is Student's over pairs. Swapping variant and reference inverts value
    and bounds; the order of pairs and of blocks changes nothing.

    Pairs without blocks are left out and the note says so. Raises ValueError when no pair is left and for numbers
    that are not finite.
    """
    if not 0 < level < 1:
        raise ValueError(f"level must lie strictly between 0 and 1, got {level}")
    arrays = [np.asarray(a, dtype=np.float64).ravel() for a in log_ratios_by_process]
    kept = [a for a in arrays if len(a)]
    if not kept:
        raise ValueError(f"no paired blocks in {len(arrays)} process pairs; a ratio needs at least one")
    if not all(np.isfinite(a).all() for a in kept):
        raise ValueError("log ratios must be finite; a block with a zero or missing statistic cannot be paired")
    # Sorted, so that the same pairs in another order add up to the same last digit.
    medians = np.sort([float(np.median(a)) for a in kept])
    pairs = len(medians)
    dropped = (
        f"{len(arrays) - pairs} of {len(arrays)} process pairs held no paired block" if pairs < len(arrays) else None
    )
    mean = float(medians.mean())
    value = float(np.exp(mean))
    if pairs < 2:
        note = "one process pair: its own lasting offset cannot be told from a difference; measure 3 processes or more"
        return RatioEstimate(value, None, None, pairs, None, "; ".join(filter(None, (dropped, note))))

    error = float(medians.std(ddof=1)) / pairs**0.5
    if error == 0:
        return RatioEstimate(value, value, value, pairs, 1.0 if mean == 0 else 0.0, dropped)
    half = float(stdtrit(pairs - 1, (1 + level) / 2)) * error
    p_value = 2 * float(stdtr(pairs - 1, -abs(mean) / error))
    return RatioEstimate(value, float(np.exp(mean - half)), float(np.exp(mean + half)), pairs, p_value, dropped)


def holm(p_values: Sequence[float] | NDArray[np.float64]) -> NDArray[np.float64]:
    """Adjusted p-values, shape and order as given: reject all <= alpha and the chance of any false claim is <= alpha.

    Holm's step-down method (Scandinavian Journal of Statistics 6, 1979). Raises ValueError for values outside [0, 1].
    """
    p = np.asarray(p_values, dtype=np.float64)
    if p.ndim != 1 or not ((p >= 0) & (p <= 1)).all():
        raise ValueError(f"p-values must be a flat list of numbers from 0 to 1, got {p!r}")
    order = np.argsort(p, kind="stable")
    steps = np.minimum(1.0, p[order] * np.arange(len(p), 0, -1))
    adjusted = np.empty_like(p)
    adjusted[order] = np.maximum.accumulate(steps)
    return adjusted


def compare_verdict(estimate: RatioEstimate, margin: float = MATERIAL) -> Verdict:
    """What the interval allows to say about the ratio.

    - `equivalent`: the whole interval lies within [1 / (1 + margin), 1 + margin], even if it excludes 1; a real difference
      too small to matter is reported as none. The 95 % interval makes this two one-sided tests at 2.5 %.
    - `differs`: otherwise, the interval excludes 1.
    - `inconclusive`: anything else, missing bounds included.

    The margin is symmetric on the log scale, so swapping variant and reference changes no verdict. Its default is
    MLPerf's convention for "materially different" (inference policies, audit guidelines).
    """
    if margin <= 0:
        raise ValueError(f"margin must be positive, got {margin}")
    if estimate.low is None or estimate.high is None:
        return "inconclusive"
    if 1 / (1 + margin) <= estimate.low and estimate.high <= 1 + margin:
        return "equivalent"
    return "differs" if estimate.low > 1 or estimate.high < 1 else "inconclusive"
