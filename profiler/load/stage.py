"""The load stage: fresh workers serve each setting, and every run is stored as soon as it is over.

Scenarios at given rates run `repeats` times, each time in a fresh process and in another random order, so that settings see
the same weather. A search for the highest rate holds as many processes at once and takes them in turn, so that no answer
rests on one process. What is stored is not measured again; a search is played back up to where it stopped.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from profiler.errors import BudgetError, StudyError
from profiler.job import Job, add
from profiler.load import figures, schedule
from profiler.load.scenario import LoadPlan, Setting
from profiler.records import FailureRecord, LoadRecord
from profiler.stats.slo import RateRun, find_max_rate
from profiler.study import Case
from profiler.targets.process import WorkerFailure, WorkerProcess

MAX_ROWS = 256
MAX_POOL_BYTES = 64 << 20
"""Rows that requests carry in turn: enough that caches do not learn one, few enough for an edge device's memory."""
BACKLOG_S = 2.0
"""A run is stopped as diverged when the traffic of so many seconds is waiting; a stall of half a second must not end it."""
MIN_BACKLOG = 100
DRAIN_S = 15.0
"""After the last request is due, or the duration is over, so long is waited for answers."""
SINGLE_S = 1.0
OFFLINE_S = 1.0
"""Lengths of the two runs that a search begins with: the service time alone, and the rate with a queue that is never empty."""
_PROBE_S = 0.2


@dataclass(frozen=True)
class Planned:
    """One run that is to be done, with its number."""

    run: int
    repeat: int
    case: Case
    setting: Setting
    rate_per_s: float | None


def plan_runs(cases: Sequence[Case], load: LoadPlan, rates: Sequence[float], seed: int) -> list[Planned]:
    """All runs at given rates and of closed loops, in the order in which they are done. The same for the same study.

    `rates` are those offered to server settings; empty when a search finds them.
    """
    runs: list[Planned] = []
    for repeat in range(load.repeats):
        pairs = [(case, setting) for case in cases for setting in load.parsed if rates or not setting.open_loop]
        random = np.random.default_rng((seed, repeat, 0x10AD))
        for place in random.permutation(len(pairs)):
            case, setting = pairs[place]
            offered: list[float | None] = [*rates] if setting.open_loop else [None]
            for index in random.permutation(len(offered)):
                runs.append(Planned(len(runs), repeat, case, setting, offered[index]))
    return runs


def check_load(load: LoadPlan | None) -> None:
    """Raise StudyError or DataError for a trace that cannot be used, and for more requests than a run may have."""
    if load is None:
        return
    trace = None if load.trace is None else schedule.read_trace(Path(load.trace).expanduser())
    for rate in _rates(load, trace):
        if trace is None:
            schedule.requests_in(rate, load.duration_s)


def measure_load(job: Job, cases: Sequence[Case]) -> None:
    """Do every run of the study's load plan that is not stored yet. A case that fails is a stored failure; the others go on.

    Raises StudyError and DataError for a trace that cannot be used, before anything is measured.
    """
    load = job.study.load
    if load is None:
        return
    # Batches are formed by the settings here: of cases that differ in nothing but their batch size one is enough.
    cases = [case for case in cases if case.batch == job.study.batches[0]]
    stage = _Stage(job, load)
    runs = plan_runs(cases, load, stage.rates, job.study.seed)
    searches = [
        (case, setting) for case in cases for setting in load.parsed if load.find_max_rate and setting.open_loop
    ]
    job.progress.stage("serving", len(runs) + len(searches))
    try:
        stage.scenarios(runs)
        for case, setting in searches:
            stage.search(case, setting, first_run=len(runs))
            job.progress.step(f"{case.key} {setting}")
    except BudgetError as error:
        if not stage.stored:
            raise
        job.progress.note(f"{error} What was served until here stands.")


class _Stage:
    def __init__(self, job: Job, load: LoadPlan) -> None:
        self.job, self.load = job, load
        self.trace = None if load.trace is None else schedule.read_trace(Path(load.trace).expanduser())
        self.rates = _rates(load, self.trace)
        self.stored = {record.run: record for record in job.store.records(job.run_id, LoadRecord)}
        self.failed = {
            record.case for record in job.store.records(job.run_id, FailureRecord) if record.stage == "serve"
        }
        self.pool = _pool(job)
        self.processes = 1 + max((int(record.labels.get("process", 0)) for record in self.stored.values()), default=-1)
        self._check_trace()

    def _check_trace(self) -> None:
        for record in self.stored.values():
            if self.trace is None or record.scheduled_s is None or record.rate_per_s is None:
                continue
            due = self._schedule(figures.setting_of(record), record.rate_per_s, record.seed)
            if not np.array_equal(due[: len(record.scheduled_s)], record.scheduled_s):
                raise StudyError(
                    f"the trace {self.load.trace} changed since run {self.job.run_id} began: start a new run instead of resuming."
                )

    # Scenarios at given rates -----------------------------------------------------------------------------------------

    def scenarios(self, runs: Sequence[Planned]) -> None:
        """Runs of one repeat, case and setting follow each other and share a process."""
        groups: dict[tuple[int, str, str], list[Planned]] = {}
        for planned in runs:
            groups.setdefault((planned.repeat, planned.case.key, str(planned.setting)), []).append(planned)
        for group in groups.values():
            missing = [planned for planned in group if planned.run not in self.stored]
            case, setting = group[0].case, group[0].setting
            if missing and _key(case, setting) not in self.failed:
                try:
                    with ExitStack() as stack:
                        server = stack.enter_context(_Server(self, case, setting))
                        for planned in missing:
                            self.store(server.run(setting, planned.rate_per_s, planned.repeat, planned.run, "scenario"))
                except WorkerFailure as failure:
                    self.fail(case, setting, failure, group[0].repeat)
            for planned in group:
                self.job.progress.step(f"{case.key} {planned.setting}")

    def store(self, record: LoadRecord) -> LoadRecord:
        """Store it and remember it."""
        add(self.job, record)
        self.stored[record.run] = record
        return record

    def fail(self, case: Case, setting: Setting, failure: WorkerFailure, repeat: int | None) -> None:
        """A setting that failed is left out from here on; another one of the same case may work."""
        key = _key(case, setting)
        self.failed.add(key)
        record = FailureRecord(
            case=key, stage="serve", kind=failure.kind, message=str(failure), replicate=repeat, log_tail=failure.log_tail,
        )  # fmt: skip
        self.job.store.add(self.job.run_id, record)
        self.job.progress.note(f"{key} failed ({record.kind}): {record.message.splitlines()[0][:200]}")

    # Searches ---------------------------------------------------------------------------------------------------------

    def search(self, case: Case, setting: Setting, *, first_run: int) -> None:
        """Find the highest rate of one setting. Stored runs are played back: a resumed search goes on where it stopped."""
        if _key(case, setting) in self.failed:
            return
        mine = [r for r in self.stored.values() if r.run >= first_run and r.case == case.key]
        mine = [r for r in mine if int(r.labels.get("search", -1)) == _search_id(setting)]
        try:
            with _Servers(self, case, setting) as servers:
                self._search(case, setting, mine, servers, first_run)
        except WorkerFailure as failure:
            self.fail(case, setting, failure, None)

    def _search(self, case: Case, setting: Setting, mine: list[LoadRecord], servers: _Servers, first_run: int) -> None:
        load = self.load
        assert load.slo_s is not None
        slo_s = load.slo_s

        def number() -> int:
            return max([*self.stored, first_run - 1]) + 1

        for other in figures.capacity_settings(setting):
            if not any(record.setting == str(other) for record in mine):
                mine.append(self.store(servers.next().run(other, None, 0, number(), "search", search=setting)))
        bounds = figures.search_bounds(mine, setting, load.slo_s, load.p)
        if bounds.reason is not None:
            self.job.progress.note(f"{_key(case, setting)}: {bounds.reason}")
            return

        def run(rate_per_s: float, seed: int, count: int) -> RateRun:
            found = figures.find_run(mine, setting, rate_per_s, seed)
            if found is None:
                server = servers.next()
                record = server.run(setting, rate_per_s, seed, number(), "search", count=count, search=setting)
                found = self.store(record)
                mine.append(found)
            return figures.rate_run(found, count, slo_s)

        find_max_rate(
            run, slo_s=load.slo_s, p=load.p, floor_rate=bounds.floor_per_s, ceiling_rate=bounds.ceiling_per_s,
            budget_queries=figures.budget(load, bounds), seed=figures.search_seed(self.job.study.seed, case.key, setting),
        )  # fmt: skip

    # What a run is asked ----------------------------------------------------------------------------------------------

    def _schedule(
        self, setting: Setting, rate_per_s: float, seed: int, count: int | None = None
    ) -> NDArray[np.float64]:
        if setting.arrivals == "trace":
            assert self.trace is not None
            return schedule.cut(schedule.stretched(self.trace, rate_per_s), self.load.duration_s)
        wanted = count or schedule.requests_in(rate_per_s, self.load.duration_s)
        if setting.arrivals == "constant":
            return schedule.constant(rate_per_s, wanted)
        return schedule.poisson(rate_per_s, wanted, seed)


def _rates(load: LoadPlan, trace: NDArray[np.float64] | None) -> tuple[float, ...]:
    if load.find_max_rate:
        return ()
    if trace is None or load.rates_per_s:
        return load.rates_per_s
    rate = schedule.mean_rate(trace)
    if rate is None:
        raise StudyError(
            f"the trace {load.trace} has all its requests at one moment: nothing to follow. Give a longer one."
        )
    return (rate,)


def _pool(job: Job) -> dict[str, NDArray[np.generic]]:
    rows = job.prepared.rows
    count = len(next(iter(rows.values())))
    row_bytes = sum(array[:1].nbytes for array in rows.values())
    wanted = max(1, min(count, MAX_ROWS, MAX_POOL_BYTES // max(row_bytes, 1)))
    index = np.sort(np.random.default_rng((job.study.seed, wanted)).choice(count, wanted, replace=False))
    return {f"row/{name}": np.ascontiguousarray(array[index]) for name, array in rows.items()}


def _seconds(arrays: dict[str, NDArray[np.generic]], name: str) -> NDArray[np.float64]:
    """Moments as seconds, NaN where the run ended first."""
    moments = arrays[name].astype(np.float64)
    moments[moments < 0] = np.nan
    return moments / 1e9


def _key(case: Case, setting: Setting) -> str:
    return f"{case.key} {setting}"


def _search_id(setting: Setting) -> int:
    return zlib.crc32(str(setting).encode()) & 0xFFFFFFFF


class _Servers:
    """The processes of one search, opened when they are first needed and taken in turn."""

    def __init__(self, stage: _Stage, case: Case, setting: Setting) -> None:
        self._stage, self._case, self._setting = stage, case, setting
        self._stack = ExitStack()
        self._open: list[_Server] = []
        self._turn = 0

    def __enter__(self) -> _Servers:  # noqa: PYI034 (typing.Self is 3.11)
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def next(self) -> _Server:
        """The next one in turn."""
        if len(self._open) < self._stage.load.repeats:
            server = self._stack.enter_context(_Server(self._stage, self._case, self._setting))
            self._open.append(server)
            return server
        self._turn += 1
        return self._open[self._turn % len(self._open)]


class _Server:
    """One fresh worker with a case loaded for a setting, warm."""

    def __init__(self, stage: _Stage, case: Case, setting: Setting) -> None:
        self._stage, self._case, self._setting = stage, case, setting
        self._worker: WorkerProcess | None = None
        self._service_s = 0.0
        self.process = stage.processes
        stage.processes += 1

    def __enter__(self) -> _Server:  # noqa: PYI034 (typing.Self is 3.11)
        job, setting = self._stage.job, self._setting
        self._worker = job.open(self._case)
        try:
            loaded = replace(self._case, batch=max(setting.max_batch, self._case.batch))
            job.load(self._worker, loaded, streams=setting.workers, varying_batch=setting.max_batch > 1)
            warm, _ = self._ask("single", self._stage.pool, duration_s=max(job.study.effort.warmup_s, 1e-3))
            _, arrays = self._ask("single", duration_s=max(job.study.effort.warmup_s, 1e-3))
            self._padded_to = warm.get("padded_to")
            self._service_s = float(np.median(_seconds(arrays, "completed_ns") - _seconds(arrays, "started_ns")))
            if not (math.isfinite(self._service_s) and self._service_s > 0):
                raise WorkerFailure(
                    "error",
                    f"a service time of {self._service_s:g} s was measured: the worker's clock is too coarse, or jumped.",
                )
        except BaseException:
            self._worker.close()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        if self._worker is not None:
            self._worker.close()

    def _ask(
        self, scenario: str, arrays: dict[str, NDArray[np.generic]] | None = None, *, max_batch: int = 1,
        time_limit_s: float = 0.0, **fields: Any,
    ) -> tuple[dict[str, Any], dict[str, NDArray[np.generic]]]:  # fmt: skip
        assert self._worker is not None
        study = self._stage.job.study
        limit = time_limit_s or float(fields.get("duration_s", 0.0)) + DRAIN_S
        due = None if arrays is None else arrays.get("schedule_s")
        lasts = float(fields.get("duration_s", 0.0)) if due is None else float(due.astype(np.float64)[-1])
        self._stage.job.needs(lasts)
        return self._worker.request(
            "serve", arrays, timeout_s=limit + study.time_limit_s, scenario=scenario, workers=self._setting.workers,
            max_batch=max_batch, time_limit_s=limit, **fields,
        )  # fmt: skip

    def run(
        self, setting: Setting, rate_per_s: float | None, seed: int, run: int,
        purpose: Literal["scenario", "search"], *, count: int | None = None, search: Setting | None = None,
    ) -> LoadRecord:  # fmt: skip
        """One run as a record. `setting` may be another one than the worker was loaded for, of no more workers and batch.

        Raises WorkerFailure.
        """
        stage, duration = self._stage, self._stage.load.duration_s
        due: NDArray[np.float64] | None = None
        fields: dict[str, Any] = {"max_batch": setting.max_batch, "max_delay_s": setting.max_delay_s}
        if setting.open_loop:
            assert rate_per_s is not None
            due = stage._schedule(setting, rate_per_s, seed, count)  # noqa: SLF001 (one module)
            fields |= {
                "time_limit_s": float(due[-1]) + DRAIN_S,
                "max_backlog": max(MIN_BACKLOG, math.ceil(rate_per_s * BACKLOG_S)),
            }
        elif setting.scenario == "offline":
            fields |= {"count": self._offline_count(setting, OFFLINE_S if search else duration)}
            fields |= {"time_limit_s": 10 * duration + DRAIN_S}
        else:
            fields |= {"duration_s": SINGLE_S if search else duration, "in_flight": setting.in_flight}
            fields |= {"samples": setting.samples}
        reply, arrays = self._ask(setting.scenario, None if due is None else {"schedule_s": due}, **fields)
        labels = {str(name): float(value) for name, value in reply["labels"].items()} | {"process": float(self.process)}
        optional = {"generator_cpu_s": reply.get("generator_cpu_s"), "padded_to": reply.get("padded_to")}
        labels |= {name: float(value) for name, value in optional.items() if value is not None}
        if search is not None:
            labels["search"] = float(_search_id(search))
        sent, started, completed = (_seconds(arrays, name) for name in ("sent_ns", "started_ns", "completed_ns"))
        return LoadRecord(
            case=self._case.key, setting=str(setting), run=run, purpose=purpose, rate_per_s=rate_per_s, seed=seed,
            scheduled_s=None if due is None else due[: len(sent)], sent_s=sent, started_s=started, completed_s=completed,
            batch_size=arrays["batch_size"].astype(np.int64), ended=reply["ended"], cpu_s=float(reply["cpu_s"]),
            wall_s=float(reply["wall_s"]), labels=labels,
        )  # fmt: skip

    def _offline_count(self, setting: Setting, seconds: float) -> int:
        """As many requests as last about so long, from a short run of the same kind."""
        full = setting.max_batch * setting.workers
        probe = max(4 * full, math.ceil(_PROBE_S * setting.workers / self._service_s))
        probe = min(probe, schedule.MAX_REQUESTS)
        _, arrays = self._ask("offline", max_batch=setting.max_batch, count=probe, time_limit_s=10 * seconds + DRAIN_S)
        done = _seconds(arrays, "completed_ns")
        done = done[~np.isnan(done)]
        rate = len(done) / float(done.max()) if len(done) else full / seconds
        return max(4 * full, min(schedule.MAX_REQUESTS, math.ceil(rate * seconds)))
