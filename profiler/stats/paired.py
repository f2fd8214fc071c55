"""Answers of two models on the same samples: paired proportions, paired means, and how many samples a claim needs.

Words used throughout: `b` samples went from right (reference) to wrong (variant), `g` from wrong to right, `n` is all
samples, difference d = (g - b) / n, so a drop is negative. Pairing removes what both models find hard, which makes the
standard error several times smaller than comparing two accuracies.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.special import bdtr, betaincinv, gammaln, ndtr, ndtri, stdtrit, xlog1py, xlogy

__all__ = [
    "clopper_pearson",
    "expanded_percentiles",
    "label_free_bound",
    "mcnemar",
    "newcombe_interval",
    "ni_power",
    "ni_sample_size",
    "paired_bootstrap",
    "paired_differences",
    "tango_interval",
    "tango_noninferior_p",
]

Statistic = Callable[[NDArray[np.float64]], float]
"""A number from rows of samples, shape (m,) or (m, k): accuracy, macro F1, mean loss, …"""

_CHUNK = 2_000_000
"""Resampled indices held at once: 16 MB."""


def mcnemar(b: int, g: int) -> tuple[float, float]:
    """Two-sided p-values of "flips go both ways equally": (exact conditional, mid-p).

    Tells whether anything changed, not whether the change matters. The mid-p keeps its level in practice and is less
    timid than the exact one (Fagerland, Lydersen and Laake, BMC Medical Research Methodology 13:91, 2013).
    Both are 1 without flips.
    """
    _check_counts(b=b, g=g)
    flips, fewer = b + g, min(b, g)
    if flips == 0:
        return 1.0, 1.0
    point = float(np.exp(_log_binomial(np.float64(fewer), flips, 0.5)))
    if b == g:
        return 1.0, 1 - point / 2
    exact = min(1.0, 2 * float(bdtr(fewer, flips, 0.5)))
    return exact, exact - point


def tango_interval(b: int, g: int, n: int, level: float = 0.95) -> tuple[float, float]:
    """Interval of the paired difference d = (g - b) / n by inverting Tango's test (Statistics in Medicine 17, 1998).

    Holds its level with few flips, where Wald and square-and-add intervals do not. Ends lie in [-1, 1].
    """
    _check_flips(b, g, n)
    z, d = float(ndtri((1 + level) / 2)), (g - b) / n
    return _invert(b, g, n, z, d, -1.0), _invert(b, g, n, -z, d, 1.0)


def tango_noninferior_p(b: int, g: int, n: int, margin: float) -> float:
    """One-sided p-value of "the variant is worse by `margin` or more" (a share: 0.01 is one point); small means non-inferior.

    The score statistic of Tango at d = -margin.
    """
    _check_flips(b, g, n)
    _check_share("margin", margin)
    return float(ndtr(-_tango_z(np.float64(b), np.float64(g), n, -margin)))


def newcombe_interval(both_right: int, b: int, g: int, both_wrong: int, level: float = 0.95) -> tuple[float, float]:
    """Interval of the paired difference by squaring and adding Wilson limits, with the continuity-corrected correlation.

    Newcombe's method 10 (Statistics in Medicine 17, 1998). For display: as a gate it is too generous when nearly
    all flips are bad; use `tango_noninferior_p` there.
    """
    _check_counts(both_right=both_right, b=b, g=g, both_wrong=both_wrong)
    n = both_right + b + g + both_wrong
    if n == 0:
        raise ValueError("the table is empty; a difference needs at least one sample")
    z = float(ndtri((1 + level) / 2))
    variant, reference = (both_right + g) / n, (both_right + b) / n
    (low_v, high_v), (low_r, high_r) = _wilson(variant, n, z), _wilson(reference, n, z)
    cross = float(both_right * both_wrong - b * g)
    if cross > 0:
        cross = max(cross - n / 2, 0.0)
    margins = float(both_right + g) * (b + both_wrong) * (both_right + b) * (g + both_wrong)
    phi = cross / math.sqrt(margins) if margins else 0.0

    def reach(x: float, y: float) -> float:
        return math.sqrt(max(x * x - 2 * phi * x * y + y * y, 0.0))

    d = (g - b) / n
    low = d - reach(variant - low_v, high_r - reference)
    high = d + reach(high_v - variant, reference - low_r)
    return max(low, -1.0), min(high, 1.0)


def clopper_pearson(
    k: int, n: int, level: float = 0.95, side: Literal["both", "lower", "upper"] = "both"
) -> tuple[float, float]:
    """Exact interval of a share after `k` of `n`; one-sided bounds put the whole error on their side, the other end is 0 or 1."""
    _check_counts(k=k, n=n)
    _check_share("level", level)
    if not 0 <= k <= n or n == 0:
        raise ValueError(f"k of n must satisfy 0 <= k <= n and n > 0, got {k} of {n}")
    error = (1 - level) / (2 if side == "both" else 1)
    low = 0.0 if side == "upper" or k == 0 else float(betaincinv(k, n - k + 1, error))
    high = 1.0 if side == "lower" or k == n else float(betaincinv(k + 1, n - k, 1 - error))
    return low, high


def label_free_bound(disagreements: int, n: int, level: float = 0.95) -> float:
    """Largest accuracy drop that `disagreements` of `n` top-1 answers with the reference leave possible, without any label.

    Drop <= P(right to wrong) <= P(answers differ); this is the one-sided Clopper-Pearson bound of the last.
    """
    return clopper_pearson(disagreements, n, level, "upper")[1]


def ni_sample_size(psi: float, margin: float, drop: float = 0, alpha: float = 0.05, power: float = 0.8) -> int:
    """Samples after which a non-inferiority test passes with chance `power`, given the share of flips and the true drop.

    (z_alpha + z_power)^2 (psi - drop^2) / (margin - drop)^2, to the nearest integer. The normal approximation promises too
    much below about ten expected flips: check with `ni_power`. Raises ValueError if the true drop reaches the margin (no
    number of samples suffices) or exceeds the flips.
    """
    _check_plan(psi, margin, drop, alpha)
    _check_share("power", power)
    if drop >= margin:
        raise ValueError(f"a true drop of {drop} cannot be shown to stay within a margin of {margin}; widen the margin")
    z = float(ndtri(1 - alpha)) + float(ndtri(power))
    return max(1, round(z * z * (psi - drop * drop) / (margin - drop) ** 2))


def ni_power(n: int, psi: float, margin: float, *, drop: float = 0, alpha: float = 0.05) -> float:
    """Exact chance that Tango's test shows non-inferiority with `n` samples; at drop = margin, its true error rate.

    Sums over every (b, g) that has a chance above rounding: flips ~ Binomial(n, psi), bad ones among them
    ~ Binomial(flips, (psi + drop) / (2 psi)). Time and memory grow with the square of the expected flips.
    """
    _check_plan(psi, margin, drop, alpha)
    if n < 1:
        raise ValueError(f"n must be at least 1, got {n}")
    spread = 10 * (n * psi * (1 - psi)) ** 0.5 + 20
    flips = np.arange(max(0, int(n * psi - spread)), min(n, int(n * psi + spread)) + 1, dtype=np.float64)
    bad = np.arange(flips[-1] + 1, dtype=np.float64)[:, np.newaxis]
    good = flips - bad
    possible = good >= 0
    good = np.where(possible, good, 0.0)
    log_p = _log_binomial(flips, n, psi) + np.where(
        possible, _log_binomial(np.minimum(bad, flips), flips, (psi + drop) / (2 * psi)), -np.inf
    )
    passed = _tango_z(bad, good, n, -margin) > float(ndtri(1 - alpha))
    return float(np.exp(log_p)[passed & possible].sum())


def paired_bootstrap(
    per_sample_ref: NDArray[np.float64],
    per_sample_var: NDArray[np.float64],
    statistic: Statistic,
    *,
    clusters: NDArray[np.int64] | None = None,
    level: float = 0.95,
    seed: int,
    resamples: int = 2000,
) -> tuple[float, float | None, float | None]:
    """Difference statistic(variant) - statistic(reference) on the same samples, and its bootstrap interval.

    Arrays have shape (n,) or (n, k), one row per sample in the same order. Both sides of a sample are drawn together;
    with `clusters`, integers of shape (n,), whole clusters are (the corruptions of one image, the turns of one dialogue),
    because drawing their members apart calls noise a difference. Percentile interval, widened for few clusters as
    Hesterberg does (The American Statistician 69, 2015). Same seed, same interval. `np.mean` of flat or wide arrays takes a
    route without a Python loop.

    Bounds are None with fewer than two clusters, and when the statistic is undefined (NaN) on over 5 % of the resamples.
    Raises ValueError when shapes differ or nothing is there.
    """
    _check_share("level", level)
    value, differences, count = paired_differences(
        per_sample_ref, per_sample_var, statistic, clusters=clusters, seed=seed, resamples=resamples
    )
    return (value, None, None) if count < 2 else (value, *expanded_percentiles(differences, count, level))


def paired_differences(
    per_sample_ref: NDArray[np.float64],
    per_sample_var: NDArray[np.float64],
    statistic: Statistic,
    *,
    clusters: NDArray[np.int64] | None = None,
    seed: int,
    resamples: int = 2000,
) -> tuple[float, NDArray[np.float64], int]:
    """The resamples of `paired_bootstrap`: the difference seen, that of each resample, and how many clusters were drawn from.

    For intervals at several levels (`expanded_percentiles`) without drawing again. No resamples with fewer than two clusters.
    """
    ref, var = np.asarray(per_sample_ref), np.asarray(per_sample_var)
    if ref.shape != var.shape or not len(ref):
        raise ValueError(f"both sides must hold the same samples, at least one: got shapes {ref.shape} and {var.shape}")
    if clusters is not None and np.shape(clusters) != (len(ref),):
        raise ValueError(
            f"clusters must be one integer per sample: got shape {np.shape(clusters)} for {len(ref)} samples"
        )
    if resamples < 1:
        raise ValueError(f"resamples must be at least 1, got {resamples}")
    value = float(statistic(var)) - float(statistic(ref))
    order, starts, sizes = _grouped(clusters, len(ref))
    count = len(sizes)
    if count < 2:
        return value, np.empty(0), count

    rng = np.random.default_rng(seed)
    rows = max(1, _CHUNK // count)
    parts: list[NDArray[np.float64]] = []
    # The mean of all entries is a ratio of cluster sums, so no resample has to be gathered.
    mean_of = _cluster_sums(var.astype(np.float64) - ref, order, starts) if statistic is np.mean else None
    for first in range(0, resamples, rows):
        draws = rng.integers(0, count, size=(min(rows, resamples - first), count))
        if mean_of is not None:
            parts.append(mean_of[draws].sum(axis=1) / sizes[draws].sum(axis=1))
        else:
            chosen = (_members(draw, order, starts, sizes) for draw in draws)
            parts.append(np.array([float(statistic(var[i])) - float(statistic(ref[i])) for i in chosen]))
    return value, np.concatenate(parts), count


def expanded_percentiles(
    differences: NDArray[np.float64], count: int, level: float
) -> tuple[float | None, float | None]:
    """The interval of `paired_bootstrap` at `level` from its resamples, which were drawn from `count` (2 or more) clusters.

    Further out than ten resamples lie, the normal tail of their spread is taken where it is wider.
    """
    defined = differences[np.isfinite(differences)]
    if len(defined) < 0.95 * len(differences):
        return None, None
    # Bootstrap variance lacks the factor count / (count - 1), and normal tails are too short for few clusters.
    reach = (count / (count - 1)) ** 0.5 * float(stdtrit(count - 1, (1 + level) / 2))
    tail = float(ndtr(-reach))
    low, high = (float(end) for end in np.quantile(defined, [tail, 1 - tail]))
    if tail * len(defined) < 10:
        middle, spread = float(defined.mean()), float(defined.std(ddof=1))
        low, high = min(low, middle - reach * spread), max(high, middle + reach * spread)
    return low, high


def _grouped(
    clusters: NDArray[np.int64] | None, n: int
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Sample indices sorted by cluster, and where each cluster starts and how long it is."""
    if clusters is None:
        every = np.arange(n, dtype=np.int64)
        return every, every, np.ones(n, dtype=np.int64)
    order = np.argsort(clusters, kind="stable")
    _, starts, sizes = np.unique(np.asarray(clusters)[order], return_index=True, return_counts=True)
    return order, starts, sizes


def _members(
    draw: NDArray[np.int64], order: NDArray[np.int64], starts: NDArray[np.int64], sizes: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Sample indices of the drawn clusters, cluster after cluster."""
    if len(order) == len(sizes):
        members: NDArray[np.int64] = order[draw]
        return members
    lengths = sizes[draw]
    ends = np.cumsum(lengths)
    within = np.arange(ends[-1]) - np.repeat(ends - lengths, lengths)
    gathered: NDArray[np.int64] = order[np.repeat(starts[draw], lengths) + within]
    return gathered


def _cluster_sums(
    difference: NDArray[np.float64], order: NDArray[np.int64], starts: NDArray[np.int64]
) -> NDArray[np.float64]:
    per_sample = difference.reshape(len(difference), -1).mean(axis=1)
    return np.asarray(np.add.reduceat(per_sample[order], starts), dtype=np.float64)


def _tango_z(
    b: NDArray[np.float64] | np.float64, g: NDArray[np.float64] | np.float64, n: int, delta: float
) -> NDArray[np.float64]:
    """Tango's score statistic of d = delta; q is the share of bad flips that fits best under it."""
    linear = (2 * n - g + b) * delta - g - b
    constant = -b * delta * (1 - delta)
    q = (np.sqrt(np.maximum(linear * linear - 8 * n * constant, 0)) - linear) / (4 * n)
    variance = n * np.maximum(2 * q + delta * (1 - delta), 0)
    difference = g - b - n * delta
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(np.where(difference == 0, 0.0, difference / np.sqrt(variance)))


def _invert(b: int, g: int, n: int, z: float, inside: float, outside: float) -> float:
    """The difference between `inside` and `outside` at which the statistic, which falls with delta, equals `z`."""
    for _ in range(60):
        middle = (inside + outside) / 2
        if (float(_tango_z(np.float64(b), np.float64(g), n, middle)) < z) == (z > 0):
            inside = middle
        else:
            outside = middle
    return (inside + outside) / 2


def _wilson(share: float, n: int, z: float) -> tuple[float, float]:
    centre = share + z * z / (2 * n)
    reach = z * (share * (1 - share) / n + z * z / (4 * n * n)) ** 0.5
    return (centre - reach) / (1 + z * z / n), (centre + reach) / (1 + z * z / n)


def _log_binomial(k: NDArray[np.float64] | np.float64, n: NDArray[np.float64] | int, p: float) -> NDArray[np.float64]:
    return np.asarray(gammaln(n + 1) - gammaln(k + 1) - gammaln(n - k + 1) + xlogy(k, p) + xlog1py(n - k, -p))


def _check_counts(**counts: int) -> None:
    for name, count in counts.items():
        if count < 0:
            raise ValueError(f"{name} is a count and cannot be negative, got {count}")


def _check_flips(b: int, g: int, n: int) -> None:
    _check_counts(b=b, g=g)
    if not 0 < n >= b + g:
        raise ValueError(f"n must be positive and hold all flips: got n={n} with b={b} and g={g}")


def _check_share(name: str, value: float) -> None:
    if not 0 < value < 1:
        raise ValueError(f"{name} must lie strictly between 0 and 1, got {value}")


def _check_plan(psi: float, margin: float, drop: float, alpha: float) -> None:
    for name, value in (("psi", psi), ("margin", margin), ("alpha", alpha)):
        _check_share(name, value)
    if abs(drop) > psi:
        raise ValueError(f"a drop of {drop} needs at least that share of flips, got psi={psi}")
