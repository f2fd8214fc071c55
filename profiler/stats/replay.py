"""How many requests of a queue would be late at any rate, from how long each one was really served.

Counting late requests in one open-loop run tells little: waiting times resemble their neighbours, and most of what differs
from run to run is which requests happened to arrive together. That luck need not be suffered: arrivals of an open loop are
known to be random and independent of the service, so the served sequence of a run is kept as it was, bursts, stalls and all, and
new arrivals are drawn for it again and again (a trace-driven simulation with Lindley's recursion, Proc. Cambridge Phil.
Soc. 48, 1952; in Monte Carlo terms conditioning on the service, which removes the arrivals' share of the variance).

Assumed: first in, first out; requests served one at a time by `workers` equal workers; service that does not depend on who waits.
Batches break the last one, and a service that depends on the load is only known near the loads it was seen at.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr, stdtrit

__all__ = ["LateCurve", "Service", "late_again", "late_curve"]

_REPLAYS = 24
_REPEATS = 200
"""Replays of runs at their own rates: enough to place what was counted among them at three standard deviations."""
_POINTS = 25
_SPAN = 1.5
"""The rates of a curve: so far to both sides of its middle, in steps of 3.4 %."""
_WARM_SHARE = 0.2
"""Of a stretch, at the beginning of each replay: the queue begins empty, which flatters."""
_RUNS_A_STRETCH = 4
_STRETCHES = (8, 20)
"""Fewest and most."""
_BOOTSTRAPS = 2_000
_SMALLEST_SHARE = 1e-9


@dataclass(frozen=True)
class Service:
    """What one open-loop run showed of its server, seconds, in the order in which inferences began."""

    busy_s: NDArray[np.float64]
    """From the beginning of an inference to its end, shape (n,)."""
    wake_s: NDArray[np.float64]
    """From the arrival of a request that found a free worker to the beginning of its inference, shape (a,)."""
    next_s: NDArray[np.float64]
    """From one inference's end to the beginning of the next where a request waited, shape (b,)."""
    workers: int = 1

    @classmethod
    def observed(
        cls, sent_s: NDArray[np.float64], started_s: NDArray[np.float64], completed_s: NDArray[np.float64], workers: int = 1
    ) -> Service:  # fmt: skip
        """From the moments of each request, shape (n,) each; NaN where the run ended first. Unanswered ones are left out."""
        done = ~(np.isnan(started_s) | np.isnan(completed_s))
        order = np.argsort(started_s[done], kind="stable")
        sent, started, completed = (moments[done][order] for moments in (sent_s, started_s, completed_s))
        free = np.full(workers, -np.inf)
        freed = np.empty(len(sent))
        for index, end in enumerate(completed):
            first = int(free.argmin())
            freed[index], free[first] = free[first], end
        found_free = sent > freed
        wake, following = np.maximum(0.0, started - sent)[found_free], np.maximum(0.0, started - freed)[~found_free]
        return cls(completed - started, wake, following, workers)


@dataclass(frozen=True)
class LateCurve:
    """Share of requests slower than the limit, by rate."""

    rates_per_s: NDArray[np.float64]
    """Ascending, shape (points,)."""
    shares: NDArray[np.float64]
    """By stretch of consecutive runs and rate, shape (stretches, points)."""

    def share(self, rate_per_s: float) -> float:
        """Share of late requests expected at a rate; the ends of the curve beyond them."""
        mean = np.maximum.accumulate(self.shares.mean(axis=0))
        return float(np.interp(np.log(rate_per_s), np.log(self.rates_per_s), mean))

    def rate(self, share: float) -> float:
        """The rate at which that share is late; an end of the curve when it lies beyond."""
        return float(self._crossings(np.ones((1, len(self.shares))), share)[0])

    def interval(self, share: float, level: float, random: np.random.Generator) -> tuple[float, float]:
        """Percentile interval of `rate` over resampled stretches, widened for their small number (Hesterberg, American
        Statistician 69, 2015). The machine's speed drifts over longer times than a run: hence stretches of runs.
        """
        count = len(self.shares)
        weights = random.multinomial(count, np.full(count, 1 / count), size=_BOOTSTRAPS).astype(np.float64)
        z = np.sqrt(count / (count - 1)) * stdtrit(count - 1, (1 + level) / 2) if count > 1 else np.inf
        outside = float(ndtr(-z))
        low, high = np.quantile(self._crossings(weights, share), [outside, 1 - outside])
        return float(low), float(high)

    def _crossings(self, weights: NDArray[np.float64], share: float) -> NDArray[np.float64]:
        means = weights @ self.shares / weights.sum(axis=1, keepdims=True)
        logs = np.log(np.maximum(np.maximum.accumulate(means, axis=1), _SMALLEST_SHARE))
        rates, wanted = np.log(self.rates_per_s), np.log(share)
        return np.exp([np.interp(wanted, row, rates) for row in logs])


def late_curve(
    services: Sequence[Service], slo_s: float, middle_per_s: float, random: np.random.Generator
) -> LateCurve:
    """Replay consecutive runs, in this order, at rates around `middle_per_s` with Poisson arrivals of their own.

    Stretches of equally many inferences go round and round from random places, 24 times at every rate, with the same
    arrivals (stretched) at all rates, so that the curve is smooth. Raises ValueError without inferences and where the numbers of
    workers differ.
    """
    workers = {service.workers for service in services}
    total = sum(len(service.busy_s) for service in services)
    if len(workers) != 1 or not total:
        raise ValueError(f"runs of one number of workers with inferences are needed, got {len(services)} of {workers}")
    rates = middle_per_s * np.geomspace(1 / _SPAN, _SPAN, _POINTS)
    stretches = min(_STRETCHES[1], max(_STRETCHES[0], len(services) // _RUNS_A_STRETCH), total)
    length = total // stretches

    def laid_out(arrays: list[NDArray[np.float64]]) -> NDArray[np.float64]:
        return np.concatenate(arrays)[: stretches * length].reshape(stretches, length)

    busy = laid_out([service.busy_s for service in services])
    wake, following = (
        laid_out([_drawn(getattr(service, name), len(service.busy_s), random) for service in services])
        for name in ("wake_s", "next_s")
    )
    warm = int(_WARM_SHARE * length)
    place = random.integers(0, length, size=(stretches, _REPLAYS))
    stretch = np.arange(stretches)[:, None]
    now = np.zeros((stretches, len(rates), _REPLAYS))
    servers = _Servers(workers.pop(), now.shape)
    late = np.zeros((stretches, len(rates)))
    for step in range(warm + length):
        now += random.exponential(size=(stretches, 1, _REPLAYS)) / rates[:, None]
        here = (stretch, (place + step) % length)
        end = servers.serve(now, wake[here][:, None], following[here][:, None], busy[here][:, None])
        if step >= warm:
            late += (end - now > slo_s).mean(axis=2)
    return LateCurve(rates, late / length)


def late_again(
    services: Sequence[Service], rates_per_s: NDArray[np.float64], slo_s: float, settling_share: float,
    random: np.random.Generator, replays: int = _REPEATS,
) -> NDArray[np.int64]:  # fmt: skip
    """How many requests of each run would have been late with other arrivals at its own rate, shape (runs, replays).

    Each run begins as it did, with idle workers, and its first `settling_share` is not counted: what was counted of the runs
    themselves is one more draw of the same distribution, unless service depends on who waits. Raises ValueError for runs without
    inferences and for runs of different numbers of workers.
    """
    workers = {service.workers for service in services}
    sizes = np.array([len(service.busy_s) for service in services])
    if len(workers) != 1 or not sizes.all():
        raise ValueError(f"runs of one number of workers with inferences are needed, got {len(services)} of {workers}")
    runs, longest = len(services), int(sizes.max())

    def laid_out(arrays: list[NDArray[np.float64]]) -> NDArray[np.float64]:
        # Longer than a run is no request: it is neither served nor counted below.
        return np.stack([np.pad(array, (0, longest - len(array))) for array in arrays])

    busy = laid_out([service.busy_s for service in services])
    wake, following = (
        laid_out([_drawn(getattr(service, name), len(service.busy_s), random) for service in services])
        for name in ("wake_s", "next_s")
    )
    counted_from = (sizes * settling_share).astype(int)
    now = np.zeros((runs, replays))
    servers = _Servers(workers.pop(), now.shape)
    late = np.zeros((runs, replays), dtype=np.int64)
    for step in range(longest):
        now += random.exponential(size=(runs, replays)) / rates_per_s[:, None]
        end = servers.serve(now, wake[:, step, None], following[:, step, None], busy[:, step, None])
        counts = (step >= counted_from) & (step < sizes)
        late += (end - now > slo_s) & counts[:, None]
    return late


class _Servers:
    """Equal workers of many queues at once, first in, first out (Lindley's recursion)."""

    def __init__(self, workers: int, shape: tuple[int, ...]) -> None:
        self._free = np.zeros((workers, *shape))
        """When each worker of each queue will be free."""

    def serve(
        self, now: NDArray[np.float64], wake: NDArray[np.float64], following: NDArray[np.float64], busy: NDArray[np.float64]
    ) -> NDArray[np.float64]:  # fmt: skip
        """When the request that arrives `now` will have been answered."""
        first = self._free.argmin(axis=0)[None]
        freed = np.take_along_axis(self._free, first, axis=0)[0]
        end: NDArray[np.float64] = np.maximum(now + wake, freed + following) + busy
        np.put_along_axis(self._free, first, end[None], axis=0)
        return end


def _drawn(seen: NDArray[np.float64], count: int, random: np.random.Generator) -> NDArray[np.float64]:
    """So many of the values seen; none seen is none needed: no request found the server so."""
    return random.choice(seen, count) if len(seen) else np.zeros(count)
