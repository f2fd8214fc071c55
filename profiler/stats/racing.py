"""When a candidate may be dropped from a race, and how sure that is. Pure functions of arrays.

Two objectives: a time (paired log values of interleaved blocks) and a quality (paired values of the same rows). A candidate is
dropped when another one is surely faster and surely not worse by more than a stated tolerance. Both must be shown, so the chance
of a wrong drop is at most that of the one that is false; a union bound over ordered pairs and looks does the rest. The chance
that a race ever drops anything it should have kept is at most `alpha` then, whatever the number of true frontier points.

Time: a process has a small lasting offset, so processes and not blocks are counted (profiler/stats/ratios.py). With one or two
of them their scatter cannot be known from one candidate, but it can from all together. The variance is therefore pooled over
candidates and moderated by a prior of `PRIOR_DF` degrees of freedom at `PRIOR_SD` (Smyth, 2004): after the first process
only differences far beyond what processes differ by are believed, later ones as the data allow. Now and then a whole process
takes up to twice as long, which no pooled variance expects of the candidate it hits: so one process alone decides only beyond a
factor of `ONE_PROCESS_RATIO`, and two only where each says the same. This level rests on these assumptions and on simulation
(tests/stats/test_racing.py), the one of the quality is proved.

Quality: evidence by betting (Waudby-Smith and Ramdas, 2024). The wealth of a bet against "the mean is at most the limit" exceeds
1 / level with probability at most `level`, however often one looks and whenever one stops. This holds for bounded values of
independent rows in random order and needs no distribution.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import logsumexp, stdtrit

__all__ = [
    "ONE_PROCESS_RATIO", "PRIOR_DF", "PRIOR_SD", "Elimination", "Separation", "cluster_means", "dominated", "log_evidence",
    "pair_level", "separation", "surely_above",
]  # fmt: skip

Floats = NDArray[np.float64]

PRIOR_SD = 0.02
"""What processes of one file are taken to differ by (standard deviation of log time) as long as nothing is known: six times what
was found on a shared machine (0.3 %), so that two processes in different moods are not taken for two models."""
PRIOR_DF = 8.0
"""How many degrees of freedom that assumption is worth against the data."""
ONE_PROCESS_RATIO = 2.0
"""So many times as long a candidate must surely take in the only process there is, before it may go."""
_MOMENTS = 16
_BETS = np.geomspace(0.002, 0.95, 24)
"""Stakes as a share of the largest one that cannot ruin the bettor; their mean wealth is itself a fair bet."""
_WEIGHTS = np.append(np.full(len(_BETS) - 1, 0.5 / (len(_BETS) - 1)), 0.5)
"""What is put on each: half on the largest, which wins soonest where nothing differs, as is usual between runtimes."""


@dataclass(frozen=True)
class Separation:
    """All pairs of candidates compared in time, shape (m, m) each; entry [j, i] is candidate j against i."""

    difference: Floats
    """Mean log(time of j / time of i); negative means that j is faster."""
    error: Floats
    """Its standard error."""
    df: float
    """Degrees of freedom of the pooled variance, the prior's included."""
    worst: Floats | None = None
    """The largest difference in any one process, while there are too few for a scatter of their own; None with three or more."""
    processes: int = 3

    def upper(self, level: float) -> Floats:
        """One-sided upper bounds of the differences, each at `level`."""
        return np.asarray(self.difference + float(stdtrit(self.df, 1 - level)) * self.error, np.float64)


@dataclass(frozen=True)
class Elimination:
    """One candidate that another one beats."""

    candidate: int
    by: int
    ratio: float
    """Time of the candidate / time of the one that beats it."""
    ratio_low: float
    """Its lower bound at `level`."""
    level: float
    """Chance that this one comparison, at this look, is wrong."""


def pair_level(alpha: float, *, candidates: int, looks: int) -> float:
    """Level of one ordered comparison at one look such that a whole race errs with probability `alpha` at most.

    Raises ValueError for a share outside (0, 1) and for counts below 1.
    """
    if not 0 < alpha < 1:
        raise ValueError(f"alpha must lie strictly between 0 and 1, got {alpha}")
    if candidates < 1 or looks < 1:
        raise ValueError(f"a race has at least one candidate and one look, got {candidates} and {looks}")
    return alpha / (max(1, candidates * (candidates - 1)) * looks)


def separation(logs: Floats, *, prior_sd: float = PRIOR_SD, prior_df: float = PRIOR_DF) -> Separation:
    """Compare all pairs in time. `logs` has the shape (candidates, processes, rounds): log of each block's median.

    Rounds of one process that are NaN in a candidate are left out of its median (a block that was disturbed). In a process all
    candidates were measured in the same rounds, so what slows the machine for a while slows them alike and cancels.

    Raises ValueError for other shapes, without any process, and where a candidate has a process without a block.
    """
    table = np.asarray(logs, dtype=np.float64)
    if table.ndim != 3 or min(table.shape) < 1:
        raise ValueError(
            f"logs must have the shape (candidates, processes, rounds), at least 1 each, got {table.shape}"
        )
    empty = np.isnan(table).all(axis=2)
    if empty.any():
        candidate, process = (int(place[0]) for place in np.nonzero(empty))
        raise ValueError(f"candidate {candidate} has no block in process {process}: leave the process or it out")
    cells = np.nanmedian(table, axis=2)
    count, processes = cells.shape
    means = cells.mean(axis=1)
    residual = cells - means[:, np.newaxis] - cells.mean(axis=0) + cells.mean()
    df = (count - 1) * (processes - 1)
    variance = (prior_df * prior_sd**2 + float((residual**2).sum())) / (prior_df + df)
    # What the blocks of one process scatter by counts in full and not by the number of blocks: neighbours are correlated.
    if processes == 1:
        variance += _round_variance(table)
    squared = np.full((count, count), 2 * variance)
    if processes >= 3:
        # A pair that scatters more than all together do is judged by its own scatter.
        pairs = cells[:, np.newaxis, :] - cells[np.newaxis, :, :]
        squared = np.maximum(squared, pairs.var(axis=2, ddof=1))
    worst = None if processes >= 3 else (cells[:, np.newaxis, :] - cells[np.newaxis, :, :]).max(axis=2)
    return Separation(
        means[:, np.newaxis] - means[np.newaxis, :], np.sqrt(squared / processes), prior_df + df, worst, processes
    )


def _round_variance(table: Floats) -> float:
    """Variance of a block around its candidate and its round, pooled over candidates, of the processes in `table`."""
    count, processes, rounds = table.shape
    if count < 2 or rounds < 2:
        return 0.0
    complete = table[:, :, ~np.isnan(table).any(axis=(0, 1))]
    if complete.shape[2] < 2:
        return 0.0
    centred = complete - complete.mean(axis=2, keepdims=True) - complete.mean(axis=0, keepdims=True)
    centred += complete.mean(axis=(0, 2), keepdims=True)
    return float((centred**2).sum() / ((count - 1) * (complete.shape[2] - 1) * processes))


def dominated(
    found: Separation, not_worse: NDArray[np.bool_], *, level: float, slack: float = 0.0,
    protected: NDArray[np.bool_] | None = None,
) -> list[Elimination]:  # fmt: skip
    """Which candidates go, each with the one that beats it. Shapes as in `found`.

    `not_worse[j, i]` says that the quality of j is surely not below that of i (by more than the tolerance, at `level`). With
    `slack` > 0 a candidate may also go when the other is surely no slower than by that log ratio and looks at least as
    fast; the one that beats it always stays in the race, so one look loses that much at most. `protected` ones stay.
    """
    count = len(found.difference)
    if not_worse.shape != (count, count):
        raise ValueError(f"not_worse must have the shape {(count, count)}, got {not_worse.shape}")
    upper = found.upper(level)
    safe = np.zeros(count, dtype=bool) if protected is None else protected
    beats = not_worse & (upper < slack) & (found.difference <= 0)
    if found.processes == 1:
        beats &= upper < -math.log(ONE_PROCESS_RATIO)
    elif found.worst is not None:
        beats &= found.worst < max(slack, 0.0) + 1e-12
    np.fill_diagonal(beats, val=False)
    gone: list[Elimination] = []
    kept: list[int] = []
    # The fastest first: whoever beats a candidate stands before it, so its own fate is known.
    for i in np.argsort(found.difference[:, 0], kind="stable"):
        rivals = [j for j in kept if beats[j, i]]
        if safe[i] or not rivals:
            kept.append(int(i))
            continue
        best = min(rivals, key=lambda j: upper[j, i])
        ratio, low = np.exp(-found.difference[best, i]), np.exp(-upper[best, i])
        gone.append(Elimination(int(i), best, float(ratio), float(low), level))
    return gone


def log_evidence(values: Floats, limit: float, *, low: float = -1.0) -> float:
    """Highest log wealth so far of betting against "the mean of `values` is at most `limit`", over n rows in time order.

    It is read at up to 16 moments, evenly spread over the rows.

    `values` have shape (n,) and are nowhere below `low`. exp of the result exceeds 1 / level with probability at most
    `level` when that statement is true (Ville), so looks are free. 0 rows: no evidence. Raises ValueError for
    values below `low` or not finite, and for a limit that is not above `low`.
    """
    x = np.asarray(values, dtype=np.float64)
    if x.ndim != 1 or not np.isfinite(x).all() or (x < low).any():
        raise ValueError(
            f"values must be flat, finite and at least {low}, got shape {x.shape} from {x.min(initial=low)}"
        )
    if not limit > low:
        raise ValueError(f"the limit must be above the smallest possible value {low}, got {limit}")
    if not len(x):
        return 0.0
    stakes = _BETS[:, np.newaxis] / (limit - low)
    # Answers are right or wrong, so few values come often: each is bet on once, by how often it came until each moment.
    distinct, inverse = np.unique(x, return_inverse=True)
    moments = min(_MOMENTS, len(x))
    place = inverse * moments + np.arange(len(x)) * moments // len(x)
    counts = np.bincount(place, minlength=len(distinct) * moments).reshape(len(distinct), moments)
    wealth = np.cumsum(np.log1p(stakes * (distinct - limit)) @ counts, axis=1)
    mixed = logsumexp(wealth, axis=0, b=_WEIGHTS[:, np.newaxis])
    return max(0.0, float(mixed.max()))


def surely_above(values: Floats, limit: float, *, level: float, low: float = -1.0) -> bool:
    """Whether the mean of `values` is shown to be above `limit` with an error of at most `level` over all looks."""
    return log_evidence(values, limit, low=low) > -math.log(level)


def cluster_means(values: Floats, clusters: NDArray[np.int64] | None, limit: float) -> Floats:
    """`values` such that rows of one cluster are one bet: sums of (value − limit) by cluster over the largest cluster's size.

    The result is around 0 where `values` are around `limit`, in order of first appearance, and never below (low − limit).
    Without clusters it is `values - limit`.
    """
    centred = np.asarray(values, dtype=np.float64) - limit
    if clusters is None:
        return centred
    names, first, inverse = np.unique(clusters, return_index=True, return_inverse=True)
    sums = np.bincount(inverse, weights=centred, minlength=len(names))
    return np.asarray(sums[np.argsort(first, kind="stable")] / np.bincount(inverse).max(), dtype=np.float64)
