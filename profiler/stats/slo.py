"""The highest request rate that still holds a latency limit, and how sure that is.

How much of the traffic misses the limit rises steeply with the rate, and a run of a few thousand requests tells that share
badly: waiting times resemble their neighbours, so late requests come in clusters. A search that decides on one run per rate
(bisection) inherits the luck of each run. Here a short bisection only finds the region; then many short runs follow at
randomised rates around it. Where requests are served one by one, their service times are replayed with arrivals drawn anew
(`profiler.stats.replay`); where batches are formed, the late requests of all runs are counted and fitted together
(`profiler.stats.crossing`). Runs are resampled for the interval. A last run, with a schedule that no earlier run had, is asked to
confirm, by counting.

Nothing here measures: the run is a function given by the caller, and the same function and seed give the same answer.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.special import betaincinv

from profiler.stats.crossing import resampled, solve
from profiler.stats.exceedance import SECTIONS, exceedance
from profiler.stats.replay import LateCurve, Service, late_again, late_curve

__all__ = [
    "Confirmation",
    "RateEstimate",
    "RateRun",
    "RunSummary",
    "find_max_rate",
]

Stage = Literal["coarse", "fit", "confirm"]
Method = Literal["replay", "counted", "both", "bracket"]
"""How a rate was found: by replayed service times, by a line through counted late requests, as the range that holds what both
say where they contradict each other, or only as a bracket."""

MINIMUM_FIT_RUNS = 10
"""Usable runs below which a fitted line follows single runs (simulated: worse than bisection when load comes in bursts)."""

_MINIMUM_RUN = 500
_TAIL_REQUESTS = 10
"""Late requests expected in one run at the rate looked for: p99 makes runs of 1,000."""
_COARSE_SHARE = 0.25
_CONFIRM_SHARE = 0.20
"""Shares of the budget that the first bisection may take, and that is kept for confirming."""
_SMALLEST_PARTS = 12
"""A budget too small for full runs is cut into so many."""
_COARSE_RATIO = 1.25
_BISECTION_RATIO = 1.02
_WINDOW = (0.75, 1.20)
_STEP = 1.15
"""Longest step of the centre of the window after one more run."""
_MINIMUM_STEP_RUNS = 3
_FITTED_WINDOW = 1.6
"""Runs further than this factor from the answer are left out of the fit: far away the line is none."""
_SETTLING_SHARE = 0.1
"""The first requests of a run meet an empty queue; counted in, they flatter every rate."""
_UNLUCKY_Z = 0.84
_CONTRADICTS_Z = 3.0
"""Standard deviations of the replays between what they expect and what was counted in the same runs, before it is said that
service depends on the queue: chance alone exceeds them in one search of 370."""
_CURVES = 4
_CENTRED = 1.2
"""A curve of replays is made again, up to so many times, while the answer is further than this factor from its middle."""


@dataclass(frozen=True)
class RateRun:
    """One open-loop run at a constant mean rate, as the caller measured it."""

    rate_per_s: float
    """The rate offered."""
    seed: int
    """Of the arrival schedule."""
    latencies_s: NDArray[np.float64]
    """Completion minus scheduled time, seconds, in the order of the schedule; inf for a request never answered."""
    valid: bool
    """Whether the generator kept its schedule. A run cut short by a growing queue is valid: the queue is the finding."""
    reason: str | None = None
    """Why it is not valid."""
    service: Service | None = None
    """What the server did, for replays; None where requests are not served one by one."""


@dataclass(frozen=True)
class RunSummary:
    """What is kept of a run of the search."""

    stage: Stage
    rate_per_s: float
    seed: int
    queries: int
    share: float | None
    """Of its requests, how many took longer than the limit; None when the run is not valid."""
    valid: bool
    reason: str | None


@dataclass(frozen=True)
class Confirmation:
    """A run with a fresh schedule at one rate, after the search."""

    rate_per_s: float
    seed: int
    queries: int
    share: float
    low: float
    """One-sided bound from below on the share of late requests."""
    high: float
    """One-sided bound from above; the rate is confirmed when this is at most 1 - p."""
    effect: float
    """How many of these dependent requests tell as much as one independent request."""

    def verdict(self, tail: float) -> bool | None:
        """True: the limit is held; False: it is missed; None: the run is too short to tell."""
        return True if self.high <= tail else False if self.low > tail else None


@dataclass(frozen=True)
class RateEstimate:
    """The highest rate whose p-quantile of latency is at most `slo_s`."""

    rate_per_s: float | None
    """The estimate; None with a note where there is none. The ceiling itself when `at_ceiling`."""
    low: float | None
    high: float | None
    """Interval by resampling runs; after a bisection only the last bracket (the note says so). `high` is None at the ceiling."""
    p: float
    slo_s: float
    confirmed: bool | None
    """True: a fresh run at `confirmation.rate_per_s` held the limit; False: missed it; None: not done, or too short to tell."""
    confirmation: Confirmation | None
    """The run at `rate_per_s`, or, when that did not pass, the one at `low` or somewhat below: its rate is what was confirmed."""
    runs: tuple[RunSummary, ...]
    """Every run in the order it was done, invalid ones included."""
    attainable: bool
    """False when the lowest rate asked for already misses the limit."""
    note: str | None
    at_ceiling: bool = False
    """The limit was held up to the highest rate tried: the true maximum is this or more."""
    method: Method = "bracket"
    counted: tuple[float, float, float] | None = None
    """Estimate, low and high by counting late requests alone, where replays gave the answer: less sure, but without a model."""

    @property
    def queries(self) -> int:
        """Requests spent."""
        return sum(run.queries for run in self.runs)

    @property
    def invalid_runs(self) -> int:
        """Runs that were left out because the generator was late."""
        return sum(not run.valid for run in self.runs)


Run = Callable[[float, int, int], RateRun]
"""`run(rate_per_s, seed, count)`: offer `count` requests at that rate, by a schedule drawn from `seed`."""


def find_max_rate(
    run: Run, *, slo_s: float, p: float = 0.99, floor_rate: float, ceiling_rate: float, budget_queries: int = 20_000,
    seed: int = 0, level: float = 0.95,
) -> RateEstimate:  # fmt: skip
    """The highest rate between `floor_rate` and `ceiling_rate`, requests per second, whose `p`-quantile is at most `slo_s`.

    Spends about `budget_queries` requests: up to a quarter on a bisection that finds the region, then runs of about
    10 / (1 - p) requests at rates from 25 % below to 20 % above the estimate of the moment, and a fifth on confirming.
    With fewer than ten usable runs for the line the answer is the bracket of a bisection, and the note says so.
    Invalid runs are left out, counted and paid for. `level` is that of the interval and of the confirming bounds.

    Raises ValueError for impossible arguments and for runs without latencies or with NaN among them.
    """
    _check(slo_s, p, floor_rate, ceiling_rate, budget_queries, level)
    search = _Search(run, slo_s, 1 - p, floor_rate, ceiling_rate, budget_queries, level, np.random.SeedSequence(seed))
    return search.result(p)


@dataclass
class _Search:
    """One search in progress."""

    run: Run
    slo_s: float
    tail: float
    floor: float
    ceiling: float
    budget: int
    level: float
    seeds: np.random.SeedSequence
    runs: list[RunSummary] = field(default_factory=list)
    latencies: list[NDArray[np.float64]] = field(default_factory=list)
    services: list[Service | None] = field(default_factory=list)
    spent: int = 0
    curve: LateCurve | None = None
    counted: tuple[float, float, float] | None = None
    contradicted: bool = False
    """Whether the late requests that were counted are none that the replays of the same runs expect."""
    notes: list[str] = field(default_factory=list)
    reachable: float = math.inf
    """Rates from here on could not be offered on schedule."""

    @property
    def length(self) -> int:
        """Requests of one run of the fit."""
        return max(_MINIMUM_RUN, math.ceil(_TAIL_REQUESTS / self.tail - 1e-6))

    @property
    def single(self) -> int:
        """Requests of a run that is decided by itself."""
        return min(self.length, max(100, self.budget // _SMALLEST_PARTS))

    @property
    def top(self) -> float:
        """The lowest rate that is certainly too high to be asked for."""
        return min(self.ceiling, self.reachable)

    @property
    def highest(self) -> float:
        """The highest rate that can be told of: above it the generator was late, or nobody asked."""
        return self.ceiling if self.reachable > self.ceiling else max(done.rate_per_s for done in self._valid())

    def result(self, p: float) -> RateEstimate:
        def answer(
            rate: float | None, low: float | None = None, high: float | None = None, *, attainable: bool = True,
            confirmation: Confirmation | None = None, at_ceiling: bool = False,
        ) -> RateEstimate:  # fmt: skip
            invalid = sum(not done.valid for done in self.runs)
            if invalid and rate is not None:
                self.notes.append(f"{invalid} of {len(self.runs)} runs left out, e.g. {self._complaint()}")
            confirmed = None if confirmation is None else confirmation.verdict(self.tail)
            note = "; ".join(self.notes) or None
            method: Method = "bracket" if self.counted is None else "counted" if self.curve is None else "replay"
            method = "both" if self.contradicted else method
            return RateEstimate(
                rate, low, high, p, self.slo_s, confirmed, confirmation, tuple(self.runs), attainable, note, at_ceiling, method,
                self.counted if method in ("replay", "both") else None,
            )  # fmt: skip

        reserve = int(self.budget * _CONFIRM_SHARE)
        missed = self._floor_misses(p)
        if missed is not None:
            self.notes.append(missed)
            return answer(None, attainable=False)
        if not self._valid():
            self._explain_no_valid_run()
            return answer(None)
        self._bisect(_COARSE_RATIO, int(self.budget * _COARSE_SHARE), self.single // 2)
        if self._bracket()[0] >= self.ceiling:
            shown = self._confirming(self.ceiling, reserve)
            if shown is not None and shown.verdict(self.tail):
                self.notes.append(f">= {self.ceiling:.4g}/s: the limit is held at the highest rate asked for")
                return answer(self.ceiling, self.ceiling, None, confirmation=shown, at_ceiling=True)
        planned = (self.budget - reserve - self.spent) // self.length
        estimate = None
        if planned >= MINIMUM_FIT_RUNS:
            self._scatter(planned)
            estimate = self._fit()
        if estimate is None:
            few = (
                f"{len(self._near())} usable runs near the limit" if planned >= MINIMUM_FIT_RUNS
                else f"{self.budget:,} requests are too few for runs of {self.length:,}"
            )  # fmt: skip
            self.notes.append(
                f"{few}, and a fit needs {MINIMUM_FIT_RUNS} of them: the range is the bracket of a bisection, "
                "not a confidence interval; raise the budget"
            )
            self._bisect(_BISECTION_RATIO, self.budget - reserve, self.single)
            estimate = self._bracket_estimate()
        rate, low, high = estimate
        if rate < self.floor:
            self.notes.append(
                f"at the lowest rate, {self.floor:g}/s, too many requests are slower than {_ms(self.slo_s)} to call the limit "
                f"held; the service time there is {_ms(self._service_s())} in the median: allow more time, or lower the floor"
            )
            return answer(None, attainable=False)
        low = max(low, self.floor)
        if rate > self.highest * (1 - 1e-9):
            rate = self.highest
            low = min(low, rate)
            why = (
                "the highest rate asked for" if self.reachable >= self.ceiling
                else "the generator could not keep its schedule at higher ones"
            )  # fmt: skip
            held = "the limit is held there" if low >= rate else "the limit is probably held there"
            self.notes.append(f">= {rate:.4g}/s: {held}, {why}")
            return answer(rate, low, None, confirmation=self._confirm(rate, low, reserve), at_ceiling=True)
        return answer(rate, low, high, confirmation=self._confirm(rate, low, reserve))

    def _do(self, stage: Stage, rate: float, count: int) -> RunSummary:
        """One more run, with a schedule of its own."""
        seed = int(self.seeds.spawn(1)[0].generate_state(1)[0])
        done = self.run(rate, seed, count)
        latencies = np.asarray(done.latencies_s, dtype=np.float64).ravel()
        self.spent += max(count, len(latencies))
        if done.valid and not len(latencies):
            raise ValueError(f"a valid run at {rate:g}/s gave no latencies; a request without an answer is inf")
        if done.valid and np.isnan(latencies).any():
            raise ValueError(f"the run at {rate:g}/s gave NaN among its latencies; a request without an answer is inf")
        settled = latencies[int(len(latencies) * _SETTLING_SHARE) :]
        share = float(np.mean(settled > self.slo_s)) if done.valid else None
        summary = RunSummary(stage, rate, seed, len(latencies), share, done.valid, done.reason)
        self.runs.append(summary)
        self.latencies.append(settled)
        self.services.append(done.service)
        return summary

    def _try(self, stage: Stage, rate: float, count: int) -> RunSummary:
        """A run, and a second one if the generator was late: one disturbance must not decide."""
        done = self._do(stage, rate, count)
        return done if done.valid else self._do(stage, rate, count)

    def _valid(self, *stages: Stage) -> list[RunSummary]:
        return [done for done in self.runs if done.valid and (not stages or done.stage in stages)]

    def _complaint(self) -> str:
        return next((f"'{done.reason}'" for done in self.runs if not done.valid and done.reason), "no reason was given")

    def _explain_no_valid_run(self) -> None:
        self.notes.append(
            f"none of {len(self.runs)} runs at {self.floor:g}/s could be used ({self._complaint()}): "
            "the generator is late even at the lowest rate, so no rate can be told here"
        )

    def _service_s(self) -> float:
        """Median latency of the slowest run: almost no waiting, so nearly the service time."""
        slowest = min((i for i, done in enumerate(self.runs) if done.valid), key=lambda i: self.runs[i].rate_per_s)
        return float(np.median(self.latencies[slowest]))

    def _floor_misses(self, p: float) -> str | None:
        """Run at the floor; the words when it surely misses the limit."""
        done = self._try("coarse", self.floor, self.single)
        if not done.valid:
            return None
        latencies = self.latencies[-1]
        if exceedance(latencies, self.slo_s, SECTIONS, self.level)[1] <= self.tail:
            return None
        service = float(np.median(latencies))
        share, why = (
            done.share or 0,
            "no rate holds this limit" if service > self.slo_s else "its tail alone misses this limit",
        )
        return (
            f"{100 * share:.3g} % of {len(latencies):,} requests at the lowest rate, {self.floor:g}/s, are slower than "
            f"{_ms(self.slo_s)}; p{100 * p:g} allows {100 * self.tail:.3g} %. "
            f"The service time there is {_ms(service)} in the median: {why}"
        )

    def _bisect(self, ratio: float, until: int, count: int) -> None:
        """Halve the bracket, on the logarithm, until it is narrow or the requests are spent."""
        while self.spent + count <= until:
            low, high = self._bracket()
            if high / low <= ratio:
                return
            # The top first: where it holds, nothing between is of interest.
            untried = high >= self.ceiling and not any(done.rate_per_s >= self.ceiling for done in self.runs)
            rate = self.ceiling if untried else math.sqrt(low * high)
            if not self._try("coarse", rate, count).valid:
                self.reachable = min(self.reachable, rate)
            elif untried and (self.runs[-1].share or 0) <= self.tail:
                return

    def _bracket(self) -> tuple[float, float]:
        """Highest rate that holds and lowest that does not, after neighbours that contradict each other were pooled."""
        done = sorted(self._valid(), key=lambda one: one.rate_per_s)
        rates = np.array([one.rate_per_s for one in done])
        shares = _increasing(np.array([one.share for one in done]), np.array([one.queries for one in done], np.float64))
        held, missed = rates[shares <= self.tail], rates[shares > self.tail]
        return (float(held.max()) if len(held) else self.floor), (float(missed.min()) if len(missed) else self.top)

    def _bracket_estimate(self) -> tuple[float, float, float]:
        low, high = self._bracket()
        if low >= self.top * (1 - 1e-9):
            return low, low, high
        if all((done.share or 0) <= self.tail for done in self._valid()) and self.reachable <= self.ceiling:
            return self.top, low, high
        held = any((done.share or 0) <= self.tail for done in self._valid() if done.rate_per_s <= low)
        return (math.sqrt(low * high), low, high) if held else (self.floor * 0.99, self.floor, high)

    def _scatter(self, planned: int) -> None:
        """Runs at rates spread over the window around the estimate of the moment, in an order without pattern."""
        low, high = self._bracket()
        centre = math.sqrt(low * high)
        shift = float(np.random.default_rng(self.seeds.spawn(1)[0]).random())
        low_log, high_log = math.log(_WINDOW[0]), math.log(_WINDOW[1])
        for number in range(planned):
            # Steps of the golden section fill the window evenly after any number of runs.
            place = (shift + number * (math.sqrt(5) - 1) / 2) % 1
            rate = centre * math.exp(low_log + place * (high_log - low_log))
            self._do("fit", max(min(rate, self.highest), self.floor), self.length)
            near = self._near(centre)
            if len(near) >= _MINIMUM_STEP_RUNS:
                found = solve(*self._counts(near), self.tail)
                centre = max(min(found, centre * _STEP, self.top), centre / _STEP, self.floor)

    def _near(self, centre: float | None = None) -> list[int]:
        """Indices of usable runs near the answer."""
        fits = [done.rate_per_s for done in self._valid("fit")]
        if centre is None:
            centre = float(np.median(fits)) if fits else math.sqrt(math.prod(self._bracket()))
        return [
            index for index, done in enumerate(self.runs)
            if done.valid and done.stage != "confirm" and centre / _FITTED_WINDOW <= done.rate_per_s <= centre * _FITTED_WINDOW
        ]  # fmt: skip

    def _counts(self, indices: Sequence[int]) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
        """Rates, late requests and requests of these runs."""
        rates = np.array([self.runs[i].rate_per_s for i in indices])
        sizes = np.array([len(self.latencies[i]) for i in indices], dtype=np.float64)
        late = np.array([np.count_nonzero(self.latencies[i] > self.slo_s) for i in indices], dtype=np.float64)
        return rates, late, sizes

    def _fit(self) -> tuple[float, float, float] | None:
        """Estimate and interval, or None with too few runs. Replays answer unless what was counted contradicts them."""
        near = self._near()
        if len(near) < MINIMUM_FIT_RUNS:
            return None
        rates, late, sizes = self._counts(near)
        rate = solve(rates, late, sizes, self.tail)
        low, high = resampled(rates, late, sizes, self.tail, self.level, np.random.default_rng(self.seeds.spawn(1)[0]))
        self.counted = (rate, min(low, rate), max(high, rate))
        services = [service for index in near if (service := self.services[index]) is not None and len(service.busy_s)]
        if len(services) < len(near):
            return self.counted
        random = np.random.default_rng(self.seeds.spawn(1)[0])
        curve, rate = self._replayed(services, random)
        low, high = curve.interval(self.tail, self.level, random)
        low, high = min(low, rate), max(high, rate)
        apart = low > self.counted[2] or high < self.counted[1]
        if apart and self._contradicts(near, random):
            counted, counted_low, counted_high = self.counted
            self.contradicted = True
            self.notes.append(
                f"replayed service times give {rate:.4g}/s [{low:.4g}, {high:.4g}], counted late requests {counted:.4g}/s "
                f"[{counted_low:.4g}, {counted_high:.4g}], and the same runs replayed do not give what was counted in them: "
                "service seems to depend on the queue. The lower rate is given, with a range that holds both"
            )
            return min(rate, counted), min(low, counted_low), max(high, counted_high)
        self.curve = curve
        return rate, low, high

    def _contradicts(self, near: Sequence[int], random: np.random.Generator) -> bool:
        """Whether the late requests that were counted are too many or too few for replays of the runs they were counted in.

        Like is compared with like: counting flatters near saturation, since every run begins with an empty queue, and so do
        these replays. Runs that were cut short are left out, and those at higher rates with them, where the runs that
        were not cut are the lucky ones.
        """

        def whole(index: int) -> bool:
            service = self.services[index]
            return service is not None and len(service.busy_s) == self.runs[index].queries

        cut = min((self.runs[index].rate_per_s for index in near if not whole(index)), default=math.inf)
        kept = [
            (index, service)
            for index in near
            if (service := self.services[index]) and self.runs[index].rate_per_s < cut
        ]
        if not kept:
            return True
        rates = np.array([self.runs[index].rate_per_s for index, _ in kept])
        expected = late_again([service for _, service in kept], rates, self.slo_s, _SETTLING_SHARE, random)
        counted = np.array([np.count_nonzero(self.latencies[index] > self.slo_s) for index, _ in kept])
        # Square roots, so that the few runs near saturation do not decide alone.
        totals = np.sqrt(expected).sum(axis=0)
        spread = max(float(totals.std(ddof=1)), 1e-9)
        return bool(abs(np.sqrt(counted).sum() - totals.mean()) > _CONTRADICTS_Z * spread)

    def _replayed(self, services: Sequence[Service], random: np.random.Generator) -> tuple[LateCurve, float]:
        """The curve whose middle is about the answer, and the answer."""
        assert self.counted is not None
        middle = self.counted[0]
        for _ in range(_CURVES):
            curve = late_curve(services, self.slo_s, middle, random)
            rate = curve.rate(self.tail)
            if max(rate / middle, middle / rate) <= _CENTRED:
                break
            middle = rate
        return curve, rate

    def _rate_at(self, share: float) -> float:
        """The rate at which that share of requests is expected to be late."""
        return solve(*self._counts(self._near()), share) if self.curve is None else self.curve.rate(share)

    def _confirm(self, rate: float, low: float, reserve: int) -> Confirmation | None:
        """A fresh run at the rate; when that does not pass, one with all that is left at the lower bound, or below it if only
        there a run of that length can pass: at the estimate itself even a long run passes once in twenty times."""
        first = self._confirming(rate, reserve // 4 if low < rate else self.budget - self.spent)
        if first is not None and first.verdict(self.tail):
            return first
        left = self.budget - self.spent
        target = low if first is None else min(low, self._showable(first, rate, left))
        second = self._confirming(target, left) if target < rate else None
        last = second or first
        if last is None:
            self.notes.append(f"not confirmed: the generator was late in the confirming run ({self._complaint()})")
        elif last.verdict(self.tail) is None:
            # With none late the bound is 1 - (1 - level)^(1/n): the fewest requests that can confirm anything.
            fewest = math.log(1 - self.level) / math.log1p(-self.tail) * last.effect
            self.notes.append(
                f"a fresh run of {last.queries:,} requests at {last.rate_per_s:.4g}/s had {100 * last.share:.2g} % late, "
                f"at most {100 * last.high:.2g} %: too short to confirm {100 * self.tail:.3g} %, "
                f"which takes {fewest:,.0f} or more even if none is late (a larger --budget-queries)"
            )
        elif last.verdict(self.tail) is False:
            self.notes.append(
                f"a fresh run at {last.rate_per_s:.4g}/s missed the limit: {100 * last.share:.2g} % late; "
                "the machine was busier then, or bursts are longer than a run"
            )
        return last

    def _showable(self, seen: Confirmation, rate: float, count: int) -> float:
        """The highest rate at which the line expects `count` more requests to pass, four times in five; else `rate`."""
        n_eff = count / seen.effect
        if len(self._near()) < MINIMUM_FIT_RUNS or (1 - self.tail) ** n_eff > 1 - self.level:
            return rate
        shares = self.tail * np.linspace(0.02, 1.0, 50)
        unlucky = shares + _UNLUCKY_Z * np.sqrt(shares * (1 - shares) / n_eff)
        passing = shares[betaincinv(n_eff * unlucky + 1, n_eff * (1 - unlucky), self.level) <= self.tail]
        wanted = self._rate_at(float(passing.max())) if len(passing) else 0.0
        return max(wanted, _WINDOW[0] * rate, self.floor)

    def _confirming(self, rate: float, count: int) -> Confirmation | None:
        done = self._try("confirm", rate, max(count, 2 * SECTIONS))
        if not done.valid:
            return None
        share, low, high, effect = exceedance(self.latencies[-1], self.slo_s, SECTIONS, self.level)
        return Confirmation(rate, done.seed, done.queries, share, low, high, effect)


def _increasing(values: NDArray[np.float64], weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """The closest sequence that never falls: neighbours that contradict are averaged (isotonic regression)."""
    blocks: list[tuple[float, float, int]] = []
    for value, weight in zip(values, weights, strict=True):
        mean, mass, count = float(value), float(weight), 1
        while blocks and blocks[-1][0] > mean:
            before, their, many = blocks.pop()
            mean, mass, count = (before * their + mean * mass) / (their + mass), their + mass, count + many
        blocks.append((mean, mass, count))
    return np.repeat([mean for mean, _, _ in blocks], [count for _, _, count in blocks]).astype(np.float64)


def _ms(seconds: float) -> str:
    return f"{1e3 * seconds:.4g} ms"


def _check(slo_s: float, p: float, floor_rate: float, ceiling_rate: float, budget_queries: int, level: float) -> None:
    if not slo_s > 0:
        raise ValueError(f"slo_s must be positive, got {slo_s}")
    if not 0.5 <= p < 1:
        raise ValueError(f"p must be at least 0.5 and below 1, got {p}")
    if not (0 < floor_rate < ceiling_rate < math.inf):
        raise ValueError(f"rates must be 0 < floor < ceiling, got {floor_rate} and {ceiling_rate} per second")
    if budget_queries < 1:
        raise ValueError(f"budget_queries must be at least 1, got {budget_queries}")
    if not 0.5 < level < 1:
        raise ValueError(f"level must lie strictly between 0.5 and 1, got {level}")
