"""What load records mean: rates, latencies with intervals, queueing apart from service, and whether a run may be believed. Pure.

Time slices of a run are the rounds of `profiler.stats.quantiles`: requests that are neighbours in a queue share their fate, so
that not requests but slices tell how well a percentile is known. Where a setting ran in several processes these count too.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from profiler.load.scenario import LoadPlan, Setting, parse_setting
from profiler.records import Estimate, Figure, LoadRecord, NotMeasured
from profiler.stats.quantiles import quantile_interval, throughput_interval
from profiler.stats.replay import Service
from profiler.stats.slo import RateEstimate, RateRun, find_max_rate

SLICES = 30
"""Rounds of one run."""
_MINIMUM_SLICE = 10
LATENESS_FLOOR_S = 100e-6
LATENESS_SHARE = 0.01
"""Of the latency limit: a generator later than this at p99 is in the figures, which is said."""
LATENESS_LIMIT_SHARE = 0.5
"""Of the latency limit: a generator later than this at p99 measures itself. Without a limit: `LATENESS_LIMIT_S`."""
LATENESS_LIMIT_S = 1e-3
RATE_TOLERANCE = 0.01
_CEILING = 1.25
"""Over the rate of `offline`, where a search ends: no queue can carry more than it for long."""
_BUDGET_S = 30.0
_BUDGET = (5_000, 80_000)
_FLOOR = 1 / 16
"""Of the ceiling, where a search begins."""


def setting_of(record: LoadRecord) -> Setting:
    """The setting a record was made with."""
    return parse_setting(record.setting)


@dataclass(frozen=True)
class Validity:
    """Whether one run offered what it should have, and whether it was carried."""

    offered_per_s: float | None
    """Realised by the schedule; None in closed loops."""
    achieved_per_s: float | None
    """Answers per second: of an open loop, the offered rate less what the queue grew by; None without answers."""
    lateness_p99_s: float | None
    late: str | None
    """Why the generator cannot be believed; None when it can."""
    inflated: str | None
    """That its lateness is in the figures: latencies are too high, so rates that hold a limit are lower bounds. Else None."""
    not_carried: str | None
    """Why the run says nothing of a lasting state: the queue grew, or the run was ended."""

    @property
    def valid(self) -> bool:
        """Nothing speaks against it."""
        return self.late is None and self.not_carried is None

    @property
    def reasons(self) -> tuple[str, ...]:
        """All that speaks against it."""
        return tuple(reason for reason in (self.late, self.not_carried) if reason is not None)


_NOTHING = Validity(None, None, None, None, None, None)


def validity(record: LoadRecord, slo_s: float | None = None) -> Validity:
    """Judge one run; the rate may differ by 1 %.

    Latency counts from when a request was due, so a late generator makes it longer, never shorter. Above 100 µs at p99, or 1 % of
    `slo_s` when that is more, this is said; above half of `slo_s` (1 ms without one) the run is not believed (ADR 0011).
    """
    ended = None
    if record.ended != "complete":
        why = "the queue only grew" if record.ended == "diverged" else "its time was over"
        open_ones = int(np.isnan(record.completed_s).sum())
        ended = f"stopped: {why}, {open_ones:,} requests were unanswered"
    done = ~np.isnan(record.completed_s)
    if record.scheduled_s is None:
        span = float(record.completed_s[done].max() - record.sent_s.min()) if done.any() else 0.0
        return Validity(None, int(done.sum()) / span if span > 0 else None, None, None, None, ended)
    late_s = float(np.quantile(record.sent_s - record.scheduled_s, 0.99))
    allowed = LATENESS_LIMIT_S if slo_s is None else max(LATENESS_FLOOR_S, LATENESS_LIMIT_SHARE * slo_s)
    late = inflated = None
    if late_s > allowed:
        late = f"requests were sent up to {late_s * 1e3:.3g} ms late (p99), {allowed * 1e3:.3g} ms are allowed"
    elif late_s > max(LATENESS_FLOOR_S, LATENESS_SHARE * (slo_s or 0.0)):
        inflated = f"requests were sent up to {late_s * 1e3:.3g} ms late (p99), which is in their latency"
    offered, achieved = _rates(record, done)
    not_carried = ended
    apart = offered is not None and achieved is not None and abs(achieved / offered - 1) > RATE_TOLERANCE
    if not_carried is None and apart:
        not_carried = f"{offered:.4g} requests/s were offered, {achieved:.4g} answered"
    return Validity(offered, achieved, late_s, late, inflated, not_carried)


def _rates(record: LoadRecord, done: NDArray[np.bool_]) -> tuple[float | None, float | None]:
    """Rate of the schedule, and the rate of answers: its span is longer by what latency grew from the first tenth to the last.

    Growth of the medians, not of single requests: one late answer at the end is latency, not a rate.
    """
    assert record.scheduled_s is not None
    due = record.scheduled_s
    span = float(due[-1] - due[0])
    if len(due) < 2 or span <= 0:
        return None, None
    offered = (len(due) - 1) / span
    if not done.all():
        ends = record.completed_s[done]
        whole = float(ends.max() - due[0]) if len(ends) else 0.0
        return offered, len(ends) / whole if whole > 0 else None
    latency = record.completed_s - due
    tenth = max(1, len(due) // 10)
    growth = float(np.median(latency[-tenth:]) - np.median(latency[:tenth]))
    return offered, (len(due) - 1) / (span + growth) if span + growth > 0 else None


def latencies_s(record: LoadRecord) -> NDArray[np.float64]:
    """What a caller waited, in the order sent: from when it was due (open loop) or sent; inf where no answer came.

    In `multi` one number per query, to its last sample.
    """
    begin = record.sent_s if record.scheduled_s is None else record.scheduled_s
    waited = np.where(np.isnan(record.completed_s), np.inf, record.completed_s) - begin
    samples = setting_of(record).samples
    if samples == 1:
        return waited
    whole = len(waited) // samples
    highest: NDArray[np.float64] = waited[: whole * samples].reshape(whole, samples).max(axis=1)
    return highest


@dataclass(frozen=True)
class LoadFigures:
    """One setting on one case, at one rate where rates are offered: all its runs together."""

    case: str
    setting: str
    rate_per_s: float | None
    """Asked for; None in closed loops."""
    runs: int
    valid_runs: int
    reasons: tuple[str, ...]
    """What spoke against runs, each once."""
    inflated: str | None
    """That the generator's lateness is in the figures; None when it is too small to matter."""
    offered_per_s: float | None
    achieved_per_s: Figure
    p50: Figure
    p99: Figure
    queueing_p50: Figure
    """From due (or sent) to the beginning of the inference: the generator's lateness, the queue and the wait for company."""
    queueing_p99: Figure
    service_p50: Figure
    service_p99: Figure
    lateness_p99_s: float | None
    """Highest over the runs; None in closed loops."""
    mean_batch: float
    generator_share: float | None
    """Of one core, what the issue thread took."""

    @property
    def valid(self) -> bool:
        """Whether all that is shown comes from runs that nothing speaks against."""
        return self.valid_runs > 0


def summarise(records: Iterable[LoadRecord], slo_s: float | None = None) -> tuple[LoadFigures, ...]:
    """Figures of every (case, setting, rate), in the order first seen; runs of a search are left out.

    When some runs of a setting are valid, only they count; when none is, all are shown together, with `valid` false.
    """
    groups: dict[tuple[str, str, float | None], list[LoadRecord]] = {}
    for record in records:
        if record.purpose == "scenario":
            groups.setdefault((record.case, record.setting, record.rate_per_s), []).append(record)
    return tuple(_figures(group, slo_s) for group in groups.values())


def _figures(records: Sequence[LoadRecord], slo_s: float | None) -> LoadFigures:
    judged = [(record, validity(record, slo_s)) for record in records]
    valid = [pair for pair in judged if pair[1].valid]
    shown = valid or judged
    kept = [record for record, _ in shown]
    setting = setting_of(records[0])
    # One reason of each kind: of the latest generator, and of the first run that was not carried.
    late = max((v for _, v in judged if v.late), key=lambda v: v.lateness_p99_s or 0.0, default=None)
    lost = next((v for _, v in judged if v.not_carried), None)
    # An overload makes the generator late too: it comes first.
    told = (lost.not_carried if lost else None, late.late if late else None)
    reasons = tuple(reason for reason in told if reason is not None)
    lateness = [verdict.lateness_p99_s for _, verdict in shown if verdict.lateness_p99_s is not None]
    offered = [verdict.offered_per_s for _, verdict in shown if verdict.offered_per_s is not None]
    sizes = np.concatenate([record.batch_size[record.batch_size > 0] for record in kept])
    generator = [
        record.labels["generator_cpu_s"] / record.wall_s
        for record in kept
        if "generator_cpu_s" in record.labels and record.wall_s > 0
    ]
    waits = [latencies_s(record) for record in kept]
    if setting.scenario == "offline":
        queue: list[NDArray[np.float64]] | str = "offline hands over everything at once: only its rate means something"
        latency: list[NDArray[np.float64]] | str = queue
    else:
        latency = waits
        queue = [_queueing(record) for record in kept]
    service = [_service(record) for record in kept]
    processes = [int(record.labels.get("process", number)) for number, record in enumerate(kept)]
    return LoadFigures(
        case=records[0].case, setting=records[0].setting, rate_per_s=records[0].rate_per_s, runs=len(records),
        valid_runs=len(valid), reasons=reasons,
        inflated=max((v for _, v in shown if v.inflated), key=lambda v: v.lateness_p99_s or 0.0, default=_NOTHING).inflated,
        offered_per_s=float(np.mean(offered)) if offered else None,
        achieved_per_s=_achieved(shown, processes),
        p50=_quantile(latency, 0.5, processes), p99=_quantile(latency, 0.99, processes),
        queueing_p50=_quantile(queue, 0.5, processes), queueing_p99=_quantile(queue, 0.99, processes),
        service_p50=_quantile(service, 0.5, processes), service_p99=_quantile(service, 0.99, processes),
        lateness_p99_s=max(lateness) if lateness else None,
        mean_batch=float(1 / np.mean(1 / sizes)) if len(sizes) else math.nan,
        generator_share=float(np.mean(generator)) if generator else None,
    )  # fmt: skip


def _queueing(record: LoadRecord) -> NDArray[np.float64]:
    begin = record.sent_s if record.scheduled_s is None else record.scheduled_s
    waited: NDArray[np.float64] = np.where(np.isnan(record.started_s), np.inf, record.started_s) - begin
    return waited


def _service(record: LoadRecord) -> NDArray[np.float64]:
    took = record.completed_s - record.started_s
    kept: NDArray[np.float64] = took[~np.isnan(took)]
    return kept


def slices(values: NDArray[np.float64]) -> list[NDArray[np.float64]]:
    """A run cut into up to 30 stretches of equally many requests, ten in each at the least."""
    count = max(1, min(SLICES, len(values) // _MINIMUM_SLICE))
    return list(np.array_split(values, count)) if len(values) else []


def _quantile(runs: Sequence[NDArray[np.float64]] | str, p: float, processes: Sequence[int]) -> Figure:
    if isinstance(runs, str):
        return NotMeasured(runs)
    rounds = [(part, process) for values, process in zip(runs, processes, strict=True) for part in slices(values)]
    total = sum(len(part) for part, _ in rounds)
    if not total:
        return NotMeasured("no request was answered")
    unanswered = sum(int(np.isinf(part).sum()) for part, _ in rounds)
    # Interpolation may touch the order statistic above.
    if unanswered > max(0.0, (1 - p) * total - 2):
        return NotMeasured(f"{unanswered:,} of {total:,} requests had no answer when the run ended")
    owners = [process for _, process in rounds]
    found = quantile_interval([part for part, _ in rounds], p, processes=owners if len(set(owners)) > 1 else None)
    high = None if found.high is None or math.isinf(found.high) else found.high
    return Estimate(found.value, found.low, high, "s", note=found.reason)


def _achieved(shown: Sequence[tuple[LoadRecord, Validity]], processes: Sequence[int]) -> Figure:
    """Of closed loops the rate of answers with its interval; of open loops what came of what was offered, which has none."""
    if shown[0][0].scheduled_s is not None:
        rates = [verdict.achieved_per_s for _, verdict in shown if verdict.achieved_per_s is not None]
        if not rates:
            return NotMeasured("no request was answered")
        return Estimate(float(np.mean(rates)), None, None, "1/s", note="counted, not estimated")
    rounds, owners = [], []
    for (record, _), process in zip(shown, processes, strict=True):
        ends = np.sort(record.completed_s[~np.isnan(record.completed_s)])
        for part in slices(np.diff(ends, prepend=float(record.sent_s.min()))):
            rounds.append(part)
            owners.append(process)
    if not rounds or sum(float(part.sum()) for part in rounds) <= 0:
        return NotMeasured("no request was answered")
    value, low, high = throughput_interval(rounds, batch=1, processes=owners if len(set(owners)) > 1 else None)
    note = None if low is not None else "too few requests to tell how far another run would be from it"
    return Estimate(value, low, high, "1/s", note=note)


# The highest rate ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Bounds:
    """Where a search looks; `reason` says why there is nothing to look for."""

    floor_per_s: float
    ceiling_per_s: float
    service: Figure
    """The p-quantile of the service alone: one request at a time, no queue."""
    reason: str | None = None


def capacity_settings(setting: Setting) -> tuple[Setting, Setting]:
    """What a search measures first: the service alone, and the rate when the queue is never empty."""
    return Setting("single"), replace(setting, scenario="offline", arrivals="poisson", max_delay_s=0.0)


def search_bounds(records: Sequence[LoadRecord], setting: Setting, slo_s: float, p: float) -> Bounds:
    """Floor and ceiling of a search from its first two runs. Raises ValueError when these are missing."""
    single, offline = capacity_settings(setting)
    alone = [record for record in records if record.setting == str(single)]
    full = [record for record in records if record.setting == str(offline)]
    if not alone or not full:
        raise ValueError(f"a search needs a run of {single} and one of {offline}")
    processes = list(range(len(alone)))
    service = _quantile([latencies_s(record) for record in alone], p, processes)
    ceiling = _CEILING * max(validity(record).achieved_per_s or 0.0 for record in full)
    if ceiling <= 0:
        return Bounds(0.0, 0.0, service, "no request was answered")
    median = _quantile([latencies_s(record) for record in alone], 0.5, processes)
    bounds = Bounds(ceiling * _FLOOR, ceiling, service)
    for name, figure in ((f"p{100 * p:g}", service), ("p50", median)):
        if isinstance(figure, Estimate) and figure.low is not None and figure.low > slo_s:
            return replace(
                bounds,
                reason=f"not attainable at any rate: {figure.value * 1e3:.3g} ms ({name}) is what the service takes alone, "
                f"the limit is {slo_s * 1e3:g} ms",
            )
    return bounds


def budget(load: LoadPlan, bounds: Bounds) -> int:
    """Requests of a search: as asked, else what half a minute at its highest rate offers, 5,000 to 80,000.

    Repeated searches of 80,000 differ by a few per cent, of 20,000 by twice as much (docs/results/measurement/rate.md).
    """
    return load.budget_queries or int(min(max(_BUDGET_S * bounds.ceiling_per_s, _BUDGET[0]), _BUDGET[1]))


def search_seed(seed: int, case: str, setting: Setting) -> int:
    """A seed of its own for every search."""
    return zlib.crc32(f"{seed} {case} {setting}".encode())


def find_run(records: Iterable[LoadRecord], setting: Setting, rate_per_s: float, seed: int) -> LoadRecord | None:
    """The stored run of a search at that rate with that schedule."""
    for record in records:
        same = record.seed == seed and record.rate_per_s == rate_per_s and record.setting == str(setting)
        if same and record.purpose != "scenario":
            return record
    return None


def rate_run(record: LoadRecord, count: int, slo_s: float) -> RateRun:
    """A stored run as the search reads it. Requests that were never sent because the queue only grew count as unanswered."""
    verdict = validity(record, slo_s)
    waited = latencies_s(record)
    waited = np.concatenate([waited, np.full(max(0, count - len(waited)), np.inf)])
    assert record.rate_per_s is not None
    setting = setting_of(record)
    one_by_one = setting.max_batch == 1 and setting.samples == 1 and setting.arrivals == "poisson"
    service = (
        Service.observed(record.sent_s, record.started_s, record.completed_s, setting.workers) if one_by_one else None
    )
    return RateRun(record.rate_per_s, record.seed, waited, verdict.late is None, verdict.late, service)


@dataclass(frozen=True)
class MaxRate:
    """The highest rate of one setting on one case; `estimate` is None with a reason where there is none."""

    case: str
    setting: str
    slo_s: float
    p: float
    service: Figure
    estimate: RateEstimate | None
    reason: str | None
    inflated: str | None = None
    """That the generator's lateness is in the latencies it rests on, so that the rate is a lower bound."""

    @property
    def parsed(self) -> Setting:
        """The setting."""
        return parse_setting(self.setting)

    @property
    def rate_per_s(self) -> float | None:
        """The estimate itself; None where there is none."""
        return None if self.estimate is None else self.estimate.rate_per_s


class _NotStoredError(Exception):
    pass


def max_rates(
    records: Sequence[LoadRecord], load: LoadPlan, cases: Sequence[str], seed: int, failures: dict[str, str]
) -> tuple[MaxRate, ...]:
    """The result of every search of a plan, from its stored runs. `failures` has the reason by `case setting`."""
    found = []
    if load.find_max_rate and load.slo_s is not None:
        for case in cases:
            for setting in load.parsed:
                if setting.open_loop:
                    key = f"{case} {setting}"
                    found.append(_max_rate(records, load, case, setting, seed, failures.get(key)))
    return tuple(found)


def _max_rate(
    records: Sequence[LoadRecord], load: LoadPlan, case: str, setting: Setting, seed: int, failure: str | None
) -> MaxRate:
    slo_s = load.slo_s
    assert slo_s is not None
    number = float(zlib.crc32(str(setting).encode()) & 0xFFFFFFFF)
    mine = [record for record in records if record.case == case and record.labels.get("search") == number]

    def none(reason: str, service: Figure | None = None) -> MaxRate:
        return MaxRate(
            case, str(setting), slo_s, load.p, service or NotMeasured("no run of it"), None, failure or reason
        )

    def stored(rate_per_s: float, seed: int, count: int) -> RateRun:
        record = find_run(mine, setting, rate_per_s, seed)
        if record is None:
            raise _NotStoredError
        return rate_run(record, count, slo_s)

    try:
        bounds = search_bounds(mine, setting, slo_s, load.p)
    except ValueError:
        return none("the search has not begun")
    if bounds.reason is not None:
        return none(bounds.reason, bounds.service)
    try:
        estimate = find_max_rate(
            stored, slo_s=slo_s, p=load.p, floor_rate=bounds.floor_per_s, ceiling_rate=bounds.ceiling_per_s,
            budget_queries=budget(load, bounds), seed=search_seed(seed, case, setting),
        )  # fmt: skip
    except _NotStoredError:
        return none("the search is not finished, or another version of edgeprof, which searches otherwise, did it")
    if estimate.method == "replay":
        # Replays send every request on time.
        return MaxRate(case, str(setting), slo_s, load.p, bounds.service, estimate, estimate.note)
    late = max(
        (v for record in mine if (v := validity(record, slo_s)).inflated and v.late is None),
        key=lambda verdict: verdict.lateness_p99_s or 0.0,
        default=_NOTHING,
    )
    return MaxRate(case, str(setting), slo_s, load.p, bounds.service, estimate, estimate.note, late.inflated)
