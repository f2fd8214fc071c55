"""The highest request rate that still holds a latency limit, and how sure that is.

How much of the traffic misses the limit rises steeply with the rate, and a run of a few thousand requests tells that share
badly: waiting times resemble their neighbours, so late requests come in clusters. A search that decides on one run per rate
(bisection) inherits the luck of each run. Here a short bisection only finds the region; then many short runs at randomised
rates around it are fitted together, logit(share of late requests) as a straight line over log(rate), and the line is solved for
the share allowed. Runs are the clusters: they are resampled for the interval, and their disagreement beyond chance scales
the evidence (quasi-likelihood, Wedderburn 1974). A last run, with a schedule that no earlier run had, is asked to confirm.

Nothing here measures: the run is a function given by the caller, and the same function and seed give the same answer.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.special import betainc, betaincinv, expit, logit, ndtr, stdtrit

from profiler.stats.quantiles import _t_over_z, _variances

__all__ = [
    "Confirmation",
    "RateEstimate",
    "RateRun",
    "RunSummary",
    "early_stopping_floor",
    "early_stopping_min_passing",
    "early_stopping_quantile",
    "exceedance_bound",
    "find_max_rate",
]

Stage = Literal["coarse", "fit", "confirm"]

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
_SLOPE = (10.0, 10.0, 0.5)
"""Of logit(share) over log(rate): mean and spread of a weak prior, and the lowest slope believed. Light traffic has 1 (two
requests must meet), a queue near its capacity 10 to 40; a few clusters of late requests alone do not tell."""
_UNLUCKY_Z = 0.84
_NEWTON_STEPS = 30
_BOOTSTRAPS = 2_000
_SECTIONS = 20


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
    spent: int = 0
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
            return RateEstimate(
                rate, low, high, p, self.slo_s, confirmed, confirmation, tuple(self.runs), attainable, note, at_ceiling
            )

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
        if _exceedance(latencies, self.slo_s, _SECTIONS, self.level)[1] <= self.tail:
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
                found = _solve(*self._counts(near), self.tail)
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
        """Estimate and interval from the line, or None with too few runs."""
        near = self._near()
        if len(near) < MINIMUM_FIT_RUNS:
            return None
        rates, late, sizes = self._counts(near)
        rate = _solve(rates, late, sizes, self.tail)
        low, high = _resampled(rates, late, sizes, self.tail, self.level, np.random.default_rng(self.seeds.spawn(1)[0]))
        return rate, min(low, rate), max(high, rate)

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
                f"which takes {fewest:,.0f} or more even if none is late"
            )
        elif last.verdict(self.tail) is False:
            self.notes.append(
                f"a fresh run at {last.rate_per_s:.4g}/s missed the limit: {100 * last.share:.2g} % late; "
                "the machine was busier then, or bursts are longer than a run"
            )
        return last

    def _showable(self, seen: Confirmation, rate: float, count: int) -> float:
        """The highest rate at which the line expects `count` more requests to pass, four times in five; else `rate`."""
        near = self._near()
        n_eff = count / seen.effect
        if len(near) < MINIMUM_FIT_RUNS or (1 - self.tail) ** n_eff > 1 - self.level:
            return rate
        shares = self.tail * np.linspace(0.02, 1.0, 50)
        unlucky = shares + _UNLUCKY_Z * np.sqrt(shares * (1 - shares) / n_eff)
        passing = shares[betaincinv(n_eff * unlucky + 1, n_eff * (1 - unlucky), self.level) <= self.tail]
        wanted = _solve(*self._counts(near), float(passing.max())) if len(passing) else 0.0
        return max(wanted, _WINDOW[0] * rate, self.floor)

    def _confirming(self, rate: float, count: int) -> Confirmation | None:
        done = self._try("confirm", rate, max(count, 2 * _SECTIONS))
        if not done.valid:
            return None
        share, low, high, effect = _exceedance(self.latencies[-1], self.slo_s, _SECTIONS, self.level)
        return Confirmation(rate, done.seed, done.queries, share, low, high, effect)


def exceedance_bound(
    latencies_s: NDArray[np.float64], slo_s: float, *, sections: int = _SECTIONS, level: float = 0.95
) -> tuple[float, float]:
    """Share of requests slower than `slo_s`, and a one-sided bound from above on the share in the long run.

    `latencies_s`, shape (n,), in the order of the schedule. The run is cut into `sections` pieces of equal length, whose
    disagreement gives the design effect as in `quantile_interval`; Clopper and Pearson's bound is taken with n / design effect.
    Where no or few requests are late their clusters cannot be seen, so the design effect is also estimated at the run's
    own p90, where a queue forgets no faster, and the larger one is used.

    Raises ValueError for no samples, NaN, fewer than 2 sections and `level` outside (0.5, 1).
    """
    share, _, high, _ = _exceedance(np.asarray(latencies_s, dtype=np.float64).ravel(), slo_s, sections, level)
    return share, high


def _exceedance(
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


def _solve(rates: NDArray[np.float64], late: NDArray[np.float64], sizes: NDArray[np.float64], tail: float) -> float:
    """The rate at which the fitted line crosses the share allowed."""
    return float(np.exp(_crossings(rates, late, sizes, tail, np.ones((1, len(rates))))[0]))


def _resampled(
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


def early_stopping_min_passing(late: int, p: float, *, confidence: float = 0.99) -> int:
    """Requests within the limit that MLPerf asks for beside `late` ones before it accepts that percentile `p` is held.

    The fewest h for which h + late independent requests, each late with probability 1 - p, would show at most `late` late ones
    with probability <= 1 - confidence; that probability is the regularised incomplete beta function I_p(h, late + 1).
    MLPerf assumes independence, which a queue does not grant; beside our own bound this one is optimistic.
    """
    if late < 0 or not 0 < p < 1 or not 0 < confidence < 1:
        raise ValueError(f"late must be >= 0, p and confidence in (0, 1); got {late}, {p}, {confidence}")
    low, high = 0, 1
    while betainc(high, late + 1, p) > 1 - confidence:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if betainc(middle, late + 1, p) <= 1 - confidence else (middle, high)
    return high


def early_stopping_floor(p: float, *, confidence: float = 0.99) -> int:
    """Requests that MLPerf needs before it estimates percentile `p` of a single or multi stream: 64 for p90, 662 for p99."""
    return early_stopping_min_passing(1, p, confidence=confidence) + 1


def early_stopping_quantile(latencies_s: NDArray[np.float64], p: float, *, confidence: float = 0.99) -> float | None:
    """MLPerf's estimate of percentile `p` of a single or multi stream, seconds; None with fewer samples than the floor.

    With t the most late requests that still pass among n, it is the t-th largest latency.
    """
    values = np.sort(np.asarray(latencies_s, dtype=np.float64).ravel())
    n = len(values)
    if n < early_stopping_floor(p, confidence=confidence):
        return None
    low, high = 1, n
    while high - low > 1:
        middle = (low + high) // 2
        fits = middle + early_stopping_min_passing(middle, p, confidence=confidence) <= n
        low, high = (middle, high) if fits else (low, middle)
    return float(values[n - low])


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
