"""From blocks to error rates of verdicts: ours with the process pair as the unit, naive ones on the same processes. Pure.

An experiment of P process pairs takes one number from each: the median over rounds of the log ratio of block medians. Experiments
over disjoint pairs are independent and counted first. Resampled ones (P of all pairs, without replacement, each with a random
label swap, which an A/A comparison must not notice) share pairs: their share is a smoother estimate, not more evidence.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from profiler.stats.ratios import compare_verdict, ratio_interval
from scripts.studies_lib.tables import share

MARGIN = 0.02
Samples = NDArray[np.float64]
Pair = tuple[Samples, Samples]


@dataclass(frozen=True)
class Decision:
    """What one experiment says."""

    ratio: float
    excludes_one: bool
    differs: bool
    """Our verdict: the interval excludes 1 and does not lie within ±2 %."""


def decide(logs: Sequence[NDArray[np.float64]], signs: NDArray[np.float64] | None = None) -> Decision:
    """One experiment: log ratios of the rounds, one array per process pair; a sign of −1 swaps the pair's labels."""
    signed = [values * sign for values, sign in zip(logs, np.ones(len(logs)) if signs is None else signs, strict=True)]
    found = ratio_interval(signed)
    excludes = found.low is not None and found.high is not None and (found.low > 1 or found.high < 1)
    return Decision(found.value, excludes, compare_verdict(found, MARGIN) == "differs")


def disjoint(logs: Sequence[NDArray[np.float64]], size: int) -> list[Decision]:
    """Independent experiments: the pairs in the order they were measured, `size` at a time."""
    return [decide(logs[start : start + size]) for start in range(0, len(logs) - size + 1, size)]


def resampled(logs: Sequence[NDArray[np.float64]], size: int, count: int, seed: int, *, swap: bool) -> list[Decision]:
    """`count` experiments of `size` different pairs drawn at random, with random label swaps if `swap`."""
    random = np.random.default_rng(seed)
    if len(logs) < size:
        return []
    decisions = []
    for _ in range(count):
        chosen = random.choice(len(logs), size, replace=False)
        signs = random.choice([-1.0, 1.0], size) if swap else np.ones(size)
        decisions.append(decide([logs[place] for place in chosen], signs))
    return decisions


def false_positives(decisions: Sequence[Decision]) -> dict[str, Any]:
    """Of an A/A comparison: any difference that is claimed is false."""
    count = len(decisions)
    return {
        "differs": share(sum(d.differs for d in decisions), count),
        "interval_excludes_1": share(sum(d.excludes_one for d in decisions), count),
        "beyond_margin": share(sum(abs(np.log(d.ratio)) > np.log1p(MARGIN) for d in decisions), count),
    }


def detections(decisions: Sequence[Decision]) -> dict[str, Any]:
    """Of an injected slowness: found is a difference in the right direction."""
    count = len(decisions)
    return {
        "differs": share(sum(d.differs and d.ratio > 1 for d in decisions), count),
        "interval_above_1": share(sum(d.excludes_one and d.ratio > 1 for d in decisions), count),
        "median_ratio": float(np.median([d.ratio for d in decisions])) if decisions else None,
    }


def mann_whitney(a: Samples, b: Samples) -> bool:
    """Pooled inferences, two-sided, as if they were independent."""
    return bool(stats.mannwhitneyu(a, b).pvalue < 0.05)


def welch(a: Samples, b: Samples) -> bool:
    """Welch's t on pooled inferences."""
    return bool(stats.ttest_ind(a, b, equal_var=False).pvalue < 0.05)


def separate_medians(a: Samples, b: Samples) -> bool:
    """Whether the order-statistic 95 % intervals of two medians, made as if inferences were independent, do not overlap."""
    (a_low, a_high), (b_low, b_high) = _median_interval(a), _median_interval(b)
    return a_high < b_low or b_high < a_low


def _median_interval(values: Samples) -> tuple[float, float]:
    ordered, n = np.sort(values), len(values)
    low, high = stats.binom.ppf([0.025, 0.975], n, 0.5).astype(int)
    return float(ordered[max(low - 1, 0)]), float(ordered[min(high, n - 1)])


NAIVE: Mapping[str, Callable[[Samples, Samples], bool]] = {
    "pooled Mann-Whitney": mann_whitney,
    "iid median intervals do not overlap": separate_medians,
    "pooled Welch t": welch,
}


def naive_rates(pairs: Sequence[Pair]) -> dict[str, Any]:
    """How often each naive test finds a difference, one experiment per process pair."""
    return {name: share(sum(test(a, b) for a, b in pairs), len(pairs)) for name, test in NAIVE.items()}


def paired_blocks(logs: Sequence[NDArray[np.float64]]) -> dict[str, Any]:
    """The interleaved rounds of one process pair tested as if blocks were the unit: what ignoring processes costs."""
    tested = [values for values in logs if len(values) > 1 and values.std() > 0]
    return share(sum(bool(stats.ttest_1samp(values, 0).pvalue < 0.05) for values in tested), len(tested))


def errors(ratios: Sequence[float]) -> dict[str, float | int | None]:
    """|ratio − 1| of single process pairs whose true ratio is 1."""
    found = np.abs(np.asarray(ratios) - 1)
    if not len(found):
        return {"count": 0, "p50": None, "p90": None, "max": None, "sd": None}
    return {
        "count": len(found), "p50": float(np.median(found)), "p90": float(np.quantile(found, 0.9)),
        "max": float(found.max()), "sd": float(np.std(np.log(ratios))),
    }  # fmt: skip
