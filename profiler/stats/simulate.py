"""Latencies whose true percentiles are known: what the statistics are tested against, by tests and by scripts/study_*.

Series are factors on a latency of 1, in time order, one row per simulation. Times count inferences of the machine's own
time line, so gaps between rounds are gaps in `t`, and what is slow on the machine (correlated noise, bursts, drift) is the
same for everybody who runs at that time. No path of a real machine looks exactly like these; each shows one way in
which neighbouring inferences depend on each other.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.special import ndtr, ndtri

__all__ = [
    "CORRELATION", "SCATTER", "Kind", "ar1", "bursts", "lognormal", "noise", "process_effects", "round_times",
    "thermal_rise", "true_quantile", "warmup_decay", "warmup_step",
]  # fmt: skip

Kind = Literal["iid", "ar1", "mixed", "bursts"]
Floats = NDArray[np.float64]

SCATTER = 0.08
"""Standard deviation of log latency."""
CORRELATION = 100.0
"""Inferences after which the correlation of AR(1) noise has fallen to 1/e."""
MIXED_SHARE = 0.2
"""Of `mixed` noise: the share of the variance that is correlated."""
BURST_FACTOR, BURST_SHARE, BURST_LENGTH = 1.6, 0.10, 200.0
"""How much slower, which share of the time, and for how many inferences on average."""


def round_times(rounds: int, m: int, gap: float = 150) -> Floats:
    """Times of `rounds` x `m` inferences, shape (rounds * m,): m in a row, then `gap` in which others run."""
    starts = np.arange(rounds) * (m + gap)
    return np.asarray((starts[:, np.newaxis] + np.arange(m)).ravel(), dtype=np.float64)


def lognormal(rng: np.random.Generator, simulations: int, n: int, scatter: float = SCATTER) -> Floats:
    """Independent log-normal factors with median 1, shape (simulations, n)."""
    return np.asarray(np.exp(rng.normal(0, scatter, (simulations, n))))


def ar1(rng: np.random.Generator, t: Floats, simulations: int, correlation: float = CORRELATION) -> Floats:
    """Stationary standard normal paths at the increasing times `t`, shape (simulations, len(t)).

    The correlation of two moments is exp(-distance / `correlation`), so irregular times and gaps are exact.
    """
    keep = np.exp(-np.diff(t) / correlation)
    fresh = np.sqrt(1 - keep**2)
    path = rng.normal(0, 1, (len(t), simulations))
    for i in range(1, len(t)):
        path[i] *= fresh[i - 1]
        path[i] += keep[i - 1] * path[i - 1]
    return np.ascontiguousarray(path.T)


def bursts(
    rng: np.random.Generator, t: Floats, simulations: int, *, share: float = BURST_SHARE, length: float = BURST_LENGTH
) -> NDArray[np.bool_]:
    """Whether a disturbance is on at the increasing times `t`, shape (simulations, len(t)).

    A two-state Markov process in its stationary state: on for `share` of the time, for `length` inferences on average.
    """
    relax = length * (1 - share)
    keep = np.exp(-np.diff(t) / relax)
    draws = rng.random((len(t), simulations))
    on = np.empty((len(t), simulations), dtype=bool)
    on[0] = draws[0] < share
    for i in range(1, len(t)):
        on[i] = draws[i] < share * (1 - keep[i - 1]) + keep[i - 1] * on[i - 1]
    return np.ascontiguousarray(on.T)


def noise(
    kind: Kind, rng: np.random.Generator, t: Floats, simulations: int, *, scatter: float = SCATTER,
    correlation: float = CORRELATION, burst_length: float = BURST_LENGTH,
) -> Floats:  # fmt: skip
    """Factors with the same scatter of every kind, shape (simulations, len(t)); `true_quantile` tells their percentiles.

    `iid`: independent. `ar1`: all of the scatter is correlated. `mixed`: a fifth of its variance is. `bursts`:
    independent, and 1.6 times as slow during a tenth of the time.
    """
    if kind == "ar1":
        return np.asarray(np.exp(scatter * ar1(rng, t, simulations, correlation)))
    if kind == "mixed":
        slow = MIXED_SHARE**0.5 * ar1(rng, t, simulations, correlation)
        return np.asarray(np.exp(scatter * (slow + rng.normal(0, (1 - MIXED_SHARE) ** 0.5, slow.shape))))
    series = lognormal(rng, simulations, len(t), scatter)
    if kind == "bursts":
        series *= np.where(bursts(rng, t, simulations, length=burst_length), BURST_FACTOR, 1.0)
    return series


def true_quantile(kind: Kind, p: float, *, scatter: float = SCATTER, offset_sd: float = 0.0) -> float:
    """Percentile `p` of `noise(kind)` times log-normal process offsets of standard deviation `offset_sd`."""
    spread = float(np.hypot(scatter, offset_sd))
    if kind != "bursts":
        return float(np.exp(spread * ndtri(p)))

    def excess(log_x: float) -> float:
        slow = ndtr((log_x - np.log(BURST_FACTOR)) / spread)
        return float((1 - BURST_SHARE) * ndtr(log_x / spread) + BURST_SHARE * slow) - p

    return float(np.exp(brentq(excess, -10 * spread, np.log(BURST_FACTOR) + 10 * spread)))


def process_effects(rng: np.random.Generator, simulations: int, processes: int, sd: float = 0.003) -> Floats:
    """Lasting log offsets of process instances, shape (simulations, processes): layout and placement, drawn once each."""
    return np.asarray(rng.normal(0, sd, (simulations, processes)))


def warmup_decay(n: int = 3000, *, height: float = 0.5, tau: float = 150) -> Floats:
    """1 + height exp(-t / tau): caches and branch predictors fill. The steady level is 1."""
    return np.asarray(1 + height * np.exp(-np.arange(n) / tau))


def warmup_step(n: int = 3000, *, height: float = 0.15, until: int = 400) -> Floats:
    """1 + height for the first `until` inferences, then 1: a compiler finished, a clock was raised."""
    return np.where(np.arange(n) < until, 1 + height, 1.0)


def thermal_rise(n: int = 3000, *, height: float = 0.08, tau: float = 600) -> Floats:
    """From 1 towards 1 + height, the steady level, with time constant `tau`: heat lowers the clock."""
    return np.asarray(1 + height * -np.expm1(-np.arange(n) / tau))
