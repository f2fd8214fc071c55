"""How large the share of late requests may be in the long run, told from one run whose requests depend on each other."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.special import betaincinv

from profiler.stats.quantiles import _t_over_z, _variances

__all__ = ["SECTIONS", "exceedance", "exceedance_bound"]

SECTIONS = 20
"""Pieces of a run whose disagreement tells how dependent its requests are."""


def exceedance_bound(
    latencies_s: NDArray[np.float64], slo_s: float, *, sections: int = SECTIONS, level: float = 0.95
) -> tuple[float, float]:
    """Share of requests slower than `slo_s`, and a one-sided bound from above on the share in the long run.

    `latencies_s`, shape (n,), in the order of the schedule. The run is cut into `sections` pieces of equal length, whose
    disagreement gives the design effect as in `quantile_interval`; Clopper and Pearson's bound is taken with n / design effect.
    Where no or few requests are late their clusters cannot be seen, so the design effect is also estimated at the run's
    own p90, where a queue forgets no faster, and the larger one is used.

    Raises ValueError for no samples, NaN, fewer than 2 sections and `level` outside (0.5, 1).
    """
    share, _, high, _ = exceedance(np.asarray(latencies_s, dtype=np.float64).ravel(), slo_s, sections, level)
    return share, high


def exceedance(
    latencies: NDArray[np.float64], slo_s: float, sections: int, level: float
) -> tuple[float, float, float, float]:
    """Share late, its one-sided bounds from below and above, and the design effect behind them."""
    if sections < 2:
        raise ValueError(f"sections must be at least 2, got {sections}: one piece cannot disagree with another")
    if not 0.5 < level < 1:
        raise ValueError(f"level must lie strictly between 0.5 and 1, got {level}")
    if not len(latencies) or np.isnan(latencies).any():
        raise ValueError(f"{len(latencies)} latencies, NaN among them or none; a request without an answer is inf")
    n, late = len(latencies), int(np.count_nonzero(latencies > slo_s))
    if n < 2 * sections:
        # Too short to see any dependence: whatever it was, one request is all that is sure.
        effect = float(n)
    else:
        limits = (slo_s, float(np.quantile(latencies, 0.9, method="lower")))
        effect = max(_design_effect(latencies > limit, sections, level) for limit in limits)
    share, n_eff = late / n, max(1.0, n / effect)
    k = n_eff * share
    low = float(betaincinv(k, n_eff - k + 1, 1 - level)) if k > 0 else 0.0
    high = float(betaincinv(k + 1, n_eff - k, level)) if late < n else 1.0
    return share, low, high, effect


def _design_effect(late: NDArray[np.bool_], sections: int, level: float) -> float:
    """How many dependent requests tell as much as one independent one, at least 1."""
    n, share = len(late), float(late.mean())
    if share in {0.0, 1.0}:
        return 1.0
    edges = np.linspace(0, n, sections + 1).astype(int)
    totals = np.add.reduceat(late.astype(np.float64), edges[:-1])
    independent = n * share * (1 - share)
    variances = _variances(totals - np.diff(edges) * share, None)
    return max(max(1.0, v / independent) * _t_over_z(df, 2 * level - 1) ** 2 for v, df in variances)
