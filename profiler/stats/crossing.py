"""The rate at which a share of requests is late, from counted late requests of many runs: logit(share) as a line over log(rate).

Runs are the clusters: their disagreement beyond chance scales the evidence (quasi-likelihood, Wedderburn 1974), and they are
resampled for the interval.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, logit, ndtr, stdtrit

__all__ = ["resampled", "solve"]

_SLOPE = (10.0, 10.0, 0.5)
"""Of logit(share) over log(rate): mean and spread of a weak prior, and the lowest slope believed. Light traffic has 1 (two
requests must meet), a queue near its capacity 10 to 40; a few clusters of late requests alone do not tell."""
_NEWTON_STEPS = 30
_BOOTSTRAPS = 2_000


def solve(rates: NDArray[np.float64], late: NDArray[np.float64], sizes: NDArray[np.float64], tail: float) -> float:
    """The rate at which the fitted line crosses the share allowed."""
    return float(np.exp(_crossings(rates, late, sizes, tail, np.ones((1, len(rates))))[0]))


def resampled(
    rates: NDArray[np.float64], late: NDArray[np.float64], sizes: NDArray[np.float64], tail: float, level: float,
    random: np.random.Generator,
) -> tuple[float, float]:  # fmt: skip
    """Percentile interval over resampled runs, widened for their small number (Hesterberg, American Statistician 69, 2015)."""
    count = len(rates)
    weights = random.multinomial(count, np.full(count, 1 / count), size=_BOOTSTRAPS).astype(np.float64)
    crossings = _crossings(rates, late, sizes, tail, weights)
    z = math.sqrt(count / (count - 1)) * float(stdtrit(count - 2, (1 + level) / 2))
    outside = float(ndtr(-z))
    low, high = np.exp(np.quantile(crossings, [outside, 1 - outside]))
    return float(low), float(high)


def _crossings(
    rates: NDArray[np.float64], late: NDArray[np.float64], sizes: NDArray[np.float64], tail: float,
    weights: NDArray[np.float64],
) -> NDArray[np.float64]:  # fmt: skip
    """log(rate) of the crossing for each row of `weights`, shape (rows, runs): how often each run counts.

    Twice fitted: the disagreement of runs beyond chance, from the first fit, scales the evidence that the second
    weighs against the prior of the slope. Never further than a quarter outside the rates seen.
    """
    middle = float(np.mean(np.log(rates)))
    x = np.log(rates) - middle
    intercept, slope = _line(x, late, sizes, weights, np.ones(len(weights)), tail)
    share = expit(intercept[:, None] + slope[:, None] * x)
    chance = np.maximum(sizes * share * (1 - share), 1e-9)
    # A run where almost nothing is expected tells nothing of dispersion, however large its quotient.
    telling = weights * (chance > 0.5)
    pearson = (telling * (late - sizes * share) ** 2 / chance).sum(axis=1)
    dispersion = np.maximum(1.0, pearson / np.maximum(1.0, telling.sum(axis=1) - 2))
    intercept, slope = _line(x, late, sizes, weights, dispersion, tail)
    crossing = (float(logit(tail)) - intercept) / slope
    return middle + np.clip(crossing, x.min() - 0.25, x.max() + 0.25)


def _line(
    x: NDArray[np.float64], late: NDArray[np.float64], sizes: NDArray[np.float64], weights: NDArray[np.float64],
    dispersion: NDArray[np.float64], tail: float,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:  # fmt: skip
    """Intercepts and slopes of logit(share) over x, one per row of `weights`: Newton's method on the penalised likelihood."""
    mean, spread, lowest = _SLOPE
    w = weights / dispersion[:, None]
    intercept = np.full(len(w), float(logit(tail)))
    slope = np.full(len(w), mean)
    for _ in range(_NEWTON_STEPS):
        share = expit(intercept[:, None] + slope[:, None] * x)
        residual = w * (late - sizes * share)
        curvature = w * sizes * share * (1 - share)
        gradient_a = residual.sum(axis=1)
        gradient_b = (residual * x).sum(axis=1) - (slope - mean) / spread**2
        # A run's worth of nothing on the diagonal: with no late request at all the intercept runs off, in bounded steps.
        aa = curvature.sum(axis=1) + 1e-6
        ab = (curvature * x).sum(axis=1)
        bb = (curvature * x * x).sum(axis=1) + 1 / spread**2
        determinant = aa * bb - ab * ab
        intercept = intercept + np.clip((bb * gradient_a - ab * gradient_b) / determinant, -1.0, 1.0)
        slope = np.maximum(slope + np.clip((aa * gradient_b - ab * gradient_a) / determinant, -4.0, 4.0), lowest)
    return intercept, slope
