"""Latency percentiles and throughput, with intervals that survive samples that depend on each other.

Neighbouring inferences share caches, clocks and neighbours on the host, so a thousand of them tell less than a thousand
independent ones. Rounds, spread in time, are the clusters: how much they disagree says how many independent samples the
data are worth, and the interval is the one that this many samples would give. This is sectioning from steady-state
simulation (Dong and Nakayama 2014; Alexopoulos et al., Sequest, 2014) with the design effect of survey sampling (Kish 1965;
Korn and Graubard 1998, who also put the effective size into Clopper and Pearson's interval).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.special import betaincinv, chdtri, ndtri, stdtrit

__all__ = ["QuantileEstimate", "minimum_effective_samples", "quantile_interval", "throughput_interval"]

LAG_CORRELATION_CAP = 0.8
"""Above this the estimate of a lag-1 correlation from tens of rounds is noise, and its inflation runs to infinity."""

_MINIMA = ((0.5, 50), (0.1, 500), (0.01, 1_000), (0.001, 10_000))
"""Tail share and the independent samples needed before a percentile that far out is claimed."""


@dataclass(frozen=True)
class QuantileEstimate:
    """A percentile in the unit of its samples. `low` or `high` is None where the data do not bound it."""

    p: float
    value: float
    low: float | None
    high: float | None
    n: int
    n_eff: float
    """How many independent samples the interval is worth; 1.0 for a single round, whose own spread is unknown."""
    resolved: bool
    """Whether both bounds exist and `n_eff` reaches `minimum_effective_samples(p)`."""
    reason: str | None
    """Why it is not resolved, for people; None when it is."""
    typical: bool = False
    """Whether it speaks of a typical process, lasting offsets apart, because processes differ too much to bound all of them."""
    fresh_low: float | None = None
    fresh_high: float | None = None
    """Where it does: the bounds for the percentile of all processes, slower ones too. As `low` and `high` otherwise."""


def minimum_effective_samples(p: float) -> float:
    """Independent samples needed to claim percentile `p`: p50 50, p90 500, p99 1,000, p99.9 10,000.

    In between, the tabulated percentile that is at least as far out counts; further out, ten samples beyond the percentile.
    """
    tail = min(p, 1 - p)
    return next((float(need) for share, need in _MINIMA if tail >= share - 1e-9), 10 / tail)


def quantile_interval(
    rounds: Sequence[NDArray[np.float64]], p: float, *, level: float = 0.95, processes: Sequence[int] | None = None
) -> QuantileEstimate:
    """Percentile `p` of all samples with a distribution-free interval from the disagreement between rounds.

    `rounds` are arrays of shape (m_i,) in time order; sizes may differ and empty ones are skipped. With q the sample
    percentile (linear between order statistics, as `numpy.quantile`), the share of samples <= q in each round has a variance
    across rounds; divided by what independent samples would show, and raised for a positive lag-1 correlation of rounds
    and for the few degrees of freedom, it is the design effect (never below 1). `n_eff` = n / design effect, at least 1,
    enters Clopper and Pearson's interval for the share p, whose ends are mapped to order statistics, rounded outwards. A side
    that `n_eff` independent samples could not bound is None.

    `processes`, one id per round, says which rounds shared a process. Correlation is then only looked for inside a process,
    disagreement between processes is a second design effect, and the larger one is used: the interval speaks about a
    fresh process, not only about those seen. Where processes differ by lasting offsets so large that a side has no bound (the
    tail of all is then the tail of the slowest one), the estimate is that of a *typical* process instead, and says so: the
    offsets of their medians are taken out on the log scale, and what the mean offset is uncertain by, Student's t over processes,
    is added to the interval in quadrature. `fresh_high` holds the tail of all processes' offsets as well:
    it is what a limit is held against. Slow disturbances that last as long as a process are taken out with the offsets.
    Costs O(n log n).

    Raises ValueError without samples, for NaN, and for `p` or `level` outside (0, 1).
    """
    _check_share("p", p)
    kept, owners = _clean(rounds, processes)
    pooled = _of_rounds(kept, owners, p, level, 0.0)
    pooled = replace(pooled, fresh_low=pooled.low, fresh_high=pooled.high)
    if pooled.low is not None and pooled.high is not None:
        return pooled
    aligned, spread = _aligned(kept, owners, level)
    if spread == 0 or owners is None:
        return pooled
    typical = _of_rounds(aligned, owners, p, level, spread)
    if typical.low is None or typical.high is None:
        return pooled
    high = _of_a_fresh_process(aligned, owners, typical.high, p, level, spread)
    return replace(typical, typical=True, fresh_low=typical.low, fresh_high=high)


def _of_a_fresh_process(
    aligned: list[NDArray[np.float64]], owners: NDArray[np.int64], high: float, p: float, level: float, spread: float
) -> float:
    """Upper bound for the percentile of all processes: the tail of a typical one and the tail of the offsets, in quadrature.

    Of the offsets' standard deviation its own upper bound (chi-squared): five processes tell little of how far others lie.
    """
    count = len(np.unique(owners))
    centre = float(np.median(np.concatenate(aligned)))
    if p <= 0.5 or centre <= 0 or high <= centre:
        return high
    deviation = spread * count**0.5 / _t(count - 1, level)
    most = deviation * float(np.sqrt((count - 1) / chdtri(count - 1, (1 + level) / 2)))
    return centre * float(np.exp(np.hypot(np.log(high / centre), float(ndtri(p)) * most)))


def _of_rounds(
    kept: list[NDArray[np.float64]], owners: NDArray[np.int64] | None, p: float, level: float, spread: float
) -> QuantileEstimate:
    """The estimate from rounds that hold samples; `spread` is half the interval of the mean process offset, on the log scale."""
    values = np.sort(np.concatenate(kept))
    n = len(values)
    value = float(np.quantile(values, p))
    if len(kept) < 2:
        alone = (
            f"one round of {n} samples cannot tell how far another round would be from it; measure 30 rounds or more"
        )
        return QuantileEstimate(p, value, None, None, n, 1.0, False, alone)

    sizes = np.array([len(r) for r in kept], dtype=np.float64)
    below = np.array([np.count_nonzero(r <= value) for r in kept], dtype=np.float64)
    residuals = below - sizes * (below.sum() / n)
    independent = n * p * (1 - p)
    effect = max(max(1.0, v / independent) * _t_over_z(df, level) ** 2 for v, df in _variances(residuals, owners))
    n_eff = max(1.0, n / effect)

    alpha = 1 - level
    k = n_eff * p
    share_low = float(betaincinv(k, n_eff - k + 1, alpha / 2))
    share_high = float(betaincinv(k + 1, n_eff - k, 1 - alpha / 2))
    # What n_eff independent samples could not bound, n dependent ones cannot either.
    from_bottom = int(n * share_low) if (1 - p) ** n_eff <= alpha / 2 else 0
    from_top = int(n * (1 - share_high)) if p**n_eff <= alpha / 2 else 0
    low = _widened(value, float(values[from_bottom - 1]), -spread) if from_bottom else None
    high = _widened(value, float(values[n - from_top]), spread) if from_top else None

    need = minimum_effective_samples(p)
    reason: str | None = None
    if n_eff < need or low is None or high is None:
        reason = (
            f"{n} samples in {len(kept)} rounds are worth {n_eff:.0f} independent ones; "
            f"p{100 * p:g} needs {need:.0f}: measure more rounds (--thorough)"
        )
    return QuantileEstimate(p, value, low, high, n, n_eff, reason is None, reason)


def throughput_interval(
    rounds: Sequence[NDArray[np.float64]], *, batch: int, level: float = 0.95, processes: Sequence[int] | None = None
) -> tuple[float, float | None, float | None]:
    """Inferences per second of back-to-back batches: `batch` / mean time in seconds, and its interval.

    The mean time is total time / number of batches, so long rounds weigh as much as they lasted, and
    throughput x time gives back the work done. Its variance comes from the rounds as clusters: residual total_i - mean x m_i,
    lag-1 correlation and `processes` as in `quantile_interval` (the linearised ratio estimator, Cochran 1977, chapter 6).
    The t interval is taken on the logarithm: round means are positive and skewed, the interval never crosses zero,
    and seconds per batch and batches per second get the same interval upside down.

    Bounds are None with fewer than two rounds. Raises ValueError as `quantile_interval`, and for a mean that is not positive.
    """
    _check_share("level", level)
    kept, owners = _clean(rounds, processes)
    sizes = np.array([len(r) for r in kept], dtype=np.float64)
    totals = np.array([r.sum() for r in kept])
    n = sizes.sum()
    mean = float(totals.sum() / n)
    if mean <= 0:
        raise ValueError(f"mean time must be positive, got {mean} s: the clock of these samples is broken")
    value = batch / mean
    if len(kept) < 2:
        return value, None, None
    variances = _variances(totals - sizes * mean, owners)
    half = max(_t(df, level) * float(np.sqrt(v)) for v, df in variances) / (n * mean)
    return value, float(value * np.exp(-half)), float(value * np.exp(half))


def _clean(
    rounds: Sequence[NDArray[np.float64]], processes: Sequence[int] | None
) -> tuple[list[NDArray[np.float64]], NDArray[np.int64] | None]:
    """The rounds that hold samples, and the process of each."""
    arrays = [np.asarray(r, dtype=np.float64).ravel() for r in rounds]
    if processes is not None and len(processes) != len(arrays):
        raise ValueError(f"processes must name one process per round: got {len(processes)} for {len(arrays)} rounds")
    keep = [i for i, r in enumerate(arrays) if len(r)]
    if not keep:
        raise ValueError(f"no samples in {len(arrays)} rounds; an estimate needs at least one")
    if any(np.isnan(arrays[i]).any() for i in keep):
        raise ValueError("samples contain NaN; a failed inference is a failure record, not a sample")
    owners = None if processes is None else np.asarray(processes, dtype=np.int64)[keep]
    return [arrays[i] for i in keep], owners


def _aligned(
    rounds: list[NDArray[np.float64]], owners: NDArray[np.int64] | None, level: float
) -> tuple[list[NDArray[np.float64]], float]:
    """The rounds without the lasting offsets of their processes, and half the interval of the mean offset, on the log scale."""
    if owners is None or len(names := np.unique(owners)) < 2:
        return rounds, 0.0
    medians = np.array(
        [np.median(np.concatenate([r for r, o in zip(rounds, owners, strict=True) if o == name])) for name in names]
    )
    if not (medians > 0).all():
        return rounds, 0.0
    logs = np.log(medians)
    offsets = np.exp(logs - logs.mean())
    half = _t(len(names) - 1, level) * float(logs.std(ddof=1)) / len(names) ** 0.5
    where = np.searchsorted(names, owners)
    return [r / offsets[index] for r, index in zip(rounds, where, strict=True)], half


def _widened(value: float, bound: float, spread: float) -> float:
    """The bound moved away from the value by the log distance `spread` in quadrature; down when that is negative."""
    if spread == 0 or value <= 0 or bound <= 0:
        return bound
    reach = float(np.hypot(np.log(bound / value), spread))
    return value * float(np.exp(-reach if spread < 0 else reach))


def _variances(residuals: NDArray[np.float64], owners: NDArray[np.int64] | None) -> list[tuple[float, float]]:
    """Variance of the sum of cluster residuals and its degrees of freedom: rounds as clusters, then processes if told."""
    count = len(residuals)
    squares = float(residuals @ residuals)
    neighbours = np.ones(count - 1, dtype=bool) if owners is None else owners[1:] == owners[:-1]
    inflation = 1.0
    if squares > 0 and neighbours.any():
        products = (residuals[1:] * residuals[:-1])[neighbours]
        lag = min(max(float(products.mean()) / (squares / count), 0.0), LAG_CORRELATION_CAP)
        inflation = (1 + lag) / (1 - lag)
    levels = [(inflation * _between(residuals), _degrees(residuals))]
    if owners is not None:
        names, where = np.unique(owners, return_inverse=True)
        if 1 < len(names) < count:
            per_process = np.bincount(where, weights=residuals).astype(np.float64)
            levels.append((_between(per_process), _degrees(per_process)))
    return levels


def _between(totals: NDArray[np.float64]) -> float:
    """Variance of the sum of independent cluster totals whose mean is zero."""
    return float(totals @ totals) * len(totals) / (len(totals) - 1)


def _degrees(totals: NDArray[np.float64]) -> float:
    """Degrees of freedom of their variance: count - 1, or fewer when a few clusters carry most of it.

    A p99 seen in three of sixty rounds rests on three rounds. Matching the moments of the sample variance gives
    2 count / (kurtosis - 1) (Satterthwaite 1946; O'Neill, The American Statistician 68, 2014), and 1 at the least.
    """
    count, squares = len(totals), float(totals @ totals)
    kurtosis = count * float((totals**4).sum()) / squares**2 if squares > 0 else 0.0
    heavy = 2 * count / (kurtosis - 1) if kurtosis > 1 else count
    return max(1.0, min(count - 1.0, heavy))


def _t(df: float, level: float) -> float:
    return float(stdtrit(df, (1 + level) / 2))


def _t_over_z(df: float, level: float) -> float:
    _check_share("level", level)
    return _t(df, level) / float(ndtri((1 + level) / 2))


def _check_share(name: str, value: float) -> None:
    if not 0 < value < 1:
        raise ValueError(f"{name} must lie strictly between 0 and 1, got {value}")
