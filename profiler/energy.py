"""The energy stage: windows of every case and of the idle machine, in random order, after everything else was measured.

Every window has a process of its own, so the spread over windows holds what differs between processes, and one model at a
time is in memory. On-device sensors are read by the worker; external meters by this process, which may be another
computer's: windows are brought to our clock. Each window is stored when it ends, and a resumed stage takes those missing.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from backends import spec
from profiler.errors import StudyError, TargetError
from profiler.job import Job, add
from profiler.measure import energy as meters
from profiler.measure.energy import external
from profiler.measure.energy.base import Absent, MeterInfo, MeterLost
from profiler.records import EnergyRecord, FailureRecord, ProcessRecord
from profiler.stats.energy import idle_of
from profiler.study import Case, EnergyPlan
from profiler.targets.process import WorkerFailure, WorkerProcess
from profiler.targets.remote import LinkLost

_MAX_LOST_IN_A_ROW = 3
_PHASE_S = 0.1
_IDLE_LEAD_S = 1.0
_CLOCK_TOLERANCE_S = 0.001
_ORDER, _PHASE = 1, 2

OpenExternal = Callable[["Path | None", "str | None"], "external.External | Absent"]


@dataclass
class _Lane:
    """What gets windows: a case, or (`case` only says where) the idle machine."""

    key: str
    case: Case
    meter: MeterInfo
    gpu: int
    idle: bool
    lead_s: float
    notes: tuple[str, ...] = ()
    done: int = 0
    lost: list[str] = field(default_factory=list)
    """Reasons of the last windows that were worth nothing, up to the last good one."""
    over: bool = False


def check(plan: EnergyPlan | None) -> None:
    """Raise StudyError when an external meter that was named is not there, before anything is measured."""
    if plan is None or (plan.csv is None and plan.command is None):
        return
    found = external.find(None if plan.csv is None else Path(plan.csv), plan.command)
    if isinstance(found, Absent):
        raise StudyError(
            f"the external energy meter cannot be read: {found.reason}. docs/energy.md tells what it must give."
        )


def measure(
    job: Job,
    cases: Sequence[Case],
    *,
    open_external: OpenExternal = external.find,
    unix: Callable[[], float] = time.time,
) -> None:
    """Take every energy window of the plan that is not stored yet. Nothing here ends a run.

    A case that no meter sees gets a failure of stage `energy` that says why; so does one whose worker fails, or whose
    meter is lost again and again. A window whose meter was lost is dropped with a note.
    """
    plan = job.study.energy
    if plan is None or not cases:
        return
    outside: external.External | None = None
    if plan.csv is not None or plan.command is not None:
        found = open_external(None if plan.csv is None else Path(plan.csv), plan.command)
        if isinstance(found, Absent):
            for case in cases:
                _fail(job, case.key, WorkerFailure("unavailable", meters.why_not([found])))
            return
        outside = found
    lanes = _lanes(job, plan, _to_measure(job, cases), outside)
    stored = job.store.records(job.run_id, EnergyRecord)
    for lane in lanes:
        lane.done = sum(
            (record.case, record.meter, record.total_rails) == (lane.key, lane.meter.name, lane.meter.total_rails)
            for record in stored
        )
    number = 1 + max((record.window for record in stored), default=-1)
    job.progress.stage("measuring energy", plan.windows * len(lanes))
    for turn in range(plan.windows):
        order = np.random.default_rng((job.study.seed, _ORDER, turn)).permutation(len(lanes))
        for place in order:
            lane = lanes[place]
            if job.budget.left_s < plan.window_s + lane.lead_s and not lane.over:
                lane.over = True
                job.progress.note(
                    f"the time budget is used up: {lane.done} of {plan.windows} energy windows of {lane.key}"
                )
            if lane.done <= turn and not lane.over:
                _one(job, plan, lane, number, outside, unix)
                number += 1
            job.progress.step(lane.key)


def _to_measure(job: Job, cases: Sequence[Case]) -> list[Case]:
    """The cases that did not fail before. A meter that was absent may be there now, so that is no reason to leave one out."""
    failed = {
        record.case
        for record in job.store.records(job.run_id, FailureRecord)
        if record.stage != "serve" and not (record.stage == "energy" and record.kind == "unavailable")
    }
    return [case for case in cases if case.key not in failed and case.quality_key not in failed]


def _lanes(job: Job, plan: EnergyPlan, cases: Sequence[Case], outside: external.External | None) -> list[_Lane]:
    """A lane for each case that a meter sees, and one for each idle machine and meter that these use."""
    found: dict[tuple[str, int], tuple[list[MeterInfo], list[Absent]]] = {}
    lanes: list[_Lane] = []
    idle: dict[tuple[str, str, int], _Lane] = {}
    steady_s = _time_to_steady_s(job)
    for case in cases:
        device, gpu = _device(case)
        place = (case.target, gpu)
        if outside is None and place not in found:
            try:
                found[place] = _ask(job, case, gpu)
            except LinkLost:
                raise
            except TargetError as error:
                _fail(job, case.key, error)
                continue
        here, absent = ([outside.info], []) if outside is not None else found[place]
        wanted = [meter for meter in here if plan.meter in ("auto", meter.name)]
        meter = meters.choose(wanted, device)
        notes: tuple[str, ...] = ()
        if meter is None and plan.meter != "auto" and wanted:
            meter, notes = wanted[0], (f"this meter does not see the {device} device that the case ran on",)
        if meter is None:
            _fail(job, case.key, WorkerFailure("unavailable", _no_meter(plan, device, here, absent)))
            continue
        effort = job.study.effort
        lead_s = min(max(effort.warmup_s, steady_s.get(case.key, 0.0)), effort.warmup_max_s)
        lanes.append(_Lane(case.key, case, meter, gpu, False, lead_s, notes))
        idle.setdefault(
            (case.target, meter.name, gpu), _Lane(idle_of(case.key), case, meter, gpu, True, max(lead_s, _IDLE_LEAD_S))
        )
    return [*lanes, *idle.values()]


def _ask(job: Job, case: Case, gpu: int) -> tuple[list[MeterInfo], list[Absent]]:
    with job.open(case) as worker:
        reply, _ = worker.request("energy", timeout_s=job.study.time_limit_s, gpu=gpu)
    try:
        return [_info(fields) for fields in reply["meters"]], [Absent(**fields) for fields in reply["absent"]]
    except (KeyError, TypeError, ValueError) as error:
        raise TargetError(f"the worker of {case.key} gave an incomplete answer to 'energy': {error}.") from error


def _info(fields: dict[str, Any]) -> MeterInfo:
    lists = ("rails", "total_rails", "powers", "notes")
    values: dict[str, Any] = {key: tuple(value) if key in lists else value for key, value in fields.items()}
    return MeterInfo(**values)


def _device(case: Case) -> tuple[str, int]:
    """What kind of device a case runs on, as meters name them, and which one of several."""
    backend = spec.parse(case.backend)
    kind, _, ordinal = (backend.device or "").lower().partition(".")
    number = int(ordinal or 0)
    if backend.name.startswith("trt") or kind in ("cuda", "tensorrt"):
        return "nvidia", number
    if backend.name == "ov" and kind in ("gpu", "npu"):
        return "intel", 0
    return ("cpu" if kind in ("", "cpu") else kind), 0


def _no_meter(plan: EnergyPlan, device: str, here: Sequence[MeterInfo], absent: Sequence[Absent]) -> str:
    if plan.meter != "auto":
        return meters.why_not([item for item in absent if item.meter == plan.meter])
    blind = [Absent(meter.name, f"sees {meter.coverage} only, and the case runs on {device}") for meter in here]
    return meters.why_not([*blind, *absent])


def _time_to_steady_s(job: Job) -> dict[str, float]:
    """How long each case's slowest process took to become steady, as measured before."""
    longest: dict[str, float] = {}
    for record in job.store.records(job.run_id, ProcessRecord):
        if record.warmup is not None and record.warmup.time_to_steady_s is not None:
            longest[record.case] = max(longest.get(record.case, 0.0), record.warmup.time_to_steady_s)
    return longest


def _one(
    job: Job,
    plan: EnergyPlan,
    lane: _Lane,
    number: int,
    outside: external.External | None,
    unix: Callable[[], float],
) -> None:
    """Take and store one window, or say why there is none."""
    phase_s = float(
        np.random.default_rng((job.study.seed, _PHASE, number)).uniform(0, max(_PHASE_S, lane.meter.update_s))
    )
    try:
        add(job, _window(job, plan, lane, number, phase_s, outside, unix))
    except LinkLost:
        raise
    except TargetError as error:
        if lane.idle:
            job.progress.note(f"no idle window: {str(error).splitlines()[0][:200]}")
        else:
            _fail(job, lane.key, error)
        lane.over = True
    except MeterLost as error:
        lane.lost.append(str(error))
        job.progress.note(f"an energy window of {lane.key} is dropped: {error}")
        if len(lane.lost) >= _MAX_LOST_IN_A_ROW:
            lane.over = True
            if not lane.idle:
                text = f"{len(lane.lost)} energy windows in a row were dropped, the last because {error}"
                _fail(job, lane.key, WorkerFailure("unavailable", text))
    else:
        lane.done += 1
        lane.lost.clear()


def _window(
    job: Job,
    plan: EnergyPlan,
    lane: _Lane,
    number: int,
    phase_s: float,
    outside: external.External | None,
    unix: Callable[[], float],
) -> EnergyRecord:
    limit_s = job.study.time_limit_s
    request: dict[str, Any] = {
        "window_s": plan.window_s, "lead_s": lane.lead_s + phase_s, "idle": lane.idle, "gpu": lane.gpu,
        "meter": None if outside is not None else lane.meter.name,
        "timeout_s": limit_s + plan.window_s + lane.lead_s + phase_s,
    }  # fmt: skip
    with job.open(lane.case) as worker:
        if not lane.idle:
            job.load(worker, lane.case)
            worker.request("feed", job.feeds(lane.case), timeout_s=limit_s)
            worker.request("first", timeout_s=limit_s)
        if outside is None:
            reply, _ = worker.request("energy", **request)
            return _record(lane, number, reply, _info(_part(lane, reply, "meter")), lane.notes)
        ahead_s, doubt_s = _clock_difference(worker, limit_s, unix)
        outside.start()
        try:
            reply, _ = worker.request("energy", **request)
            taken = _part(lane, reply, "window")
            start = float(taken["started_unix_s"]) - ahead_s
            energy, readings = outside.energy(start, start + float(taken["wall_s"]))
        finally:
            outside.stop()
    taken.update(energy_j=dict(energy), readings=readings, started_unix_s=start)
    notes = lane.notes
    if ahead_s:
        notes = (*notes, f"clocks of the two computers brought together to within {doubt_s * 1e3:.2g} ms")
    return _record(lane, number, {"window": taken}, outside.info, notes)


def _clock_difference(worker: WorkerProcess, limit_s: float, unix: Callable[[], float]) -> tuple[float, float]:
    """How far the worker's wall clock is ahead of ours, and half of the round trip that this is uncertain by, seconds.

    Zero where the difference is within that: on one machine there is one clock.
    """
    before = unix()
    reply, _ = worker.request("energy", clock=True, timeout_s=limit_s)
    after = unix()
    ahead_s, doubt_s = float(reply["unix_s"]) - (before + after) / 2, (after - before) / 2
    return (0.0, 0.0) if abs(ahead_s) <= doubt_s + _CLOCK_TOLERANCE_S else (ahead_s, doubt_s)


def _part(lane: _Lane, reply: dict[str, Any], name: str) -> dict[str, Any]:
    if "lost" in reply:
        raise MeterLost(str(reply["lost"]))
    part = reply.get(name)
    if not isinstance(part, dict):
        raise TargetError(f"the worker of {lane.key} gave an answer to 'energy' without '{name}'.")
    return dict(part)


def _record(lane: _Lane, number: int, reply: dict[str, Any], meter: MeterInfo, notes: tuple[str, ...]) -> EnergyRecord:
    taken = _part(lane, reply, "window")
    try:
        return EnergyRecord(
            case=lane.key, meter=meter.name, window=number,
            energy_j={str(rail): float(joules) for rail, joules in taken["energy_j"].items()},
            total_rails=meter.total_rails, coverage=meter.coverage,
            method="counter" if meter.kind == "counter" else "integrated",
            inferences=int(taken["inferences"]), batch=lane.case.batch, wall_s=float(taken["wall_s"]),
            started_unix_s=float(taken["started_unix_s"]), readings=int(taken["readings"]), notes=(*meter.notes, *notes),
        )  # fmt: skip
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise TargetError(f"the worker of {lane.key} gave an incomplete answer to 'energy': {error}.") from error


def _fail(job: Job, key: str, error: TargetError) -> None:
    """Store why a case has no energy figure. Its other figures are not touched by that."""
    failure = error if isinstance(error, WorkerFailure) else WorkerFailure("error", str(error))
    job.store.add(
        job.run_id,
        FailureRecord(case=key, stage="energy", kind=failure.kind, message=str(failure), log_tail=failure.log_tail),
    )
    job.progress.note(f"no energy for {key} ({failure.kind}): {str(failure).splitlines()[0][:300]}")
