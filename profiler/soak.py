"""The soak stage, in place of the usual rounds: how much slower a case is once the device is hot.

A device that is cooled by air alone bursts for some seconds and then slows down. A soak waits for a cool start, measures the
first seconds, keeps the same randomised mixture of cases running until temperature and clock stand still, and measures again.
Every block is stored with its phase and the sensors' readings as labels (profiler/soak_result.py reads them).

What cannot be known is said: without a temperature sensor there is no telling a cool start from a warm one, and whether the
device has become steady is judged by the latency alone.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from backends import spec
from backends.base import SessionFacts
from profiler import soak_result as labels
from profiler.errors import StudyError, TargetError
from profiler.job import Job, add
from profiler.measure import host
from profiler.measure.gpu_memory import kind_of
from profiler.measure.loop import (
    MAX_BLOCK_SAMPLES,
    canary_places,
    inferences_per_sample,
    reentry_samples,
    samples_per_window,
)
from profiler.records import BlockRecord, FailureRecord, ProcessRecord
from profiler.stats.thermal import BURST, HEATING, SUSTAINED
from profiler.study import Case, SoakPlan
from profiler.targets.process import WorkerFailure, WorkerProcess

_FEWEST_ROUNDS = 3
_WHOLE_SHARE = 0.9
"""Of the sustained phase that must be stored for a soak to count as ended."""
_HEATING_BLOCK_S = 1.0
_HEATING_SAMPLE_S = 1e-3
"""While heating, inferences are timed in groups of this length: twenty minutes of them are looked at, not counted one by one."""
_COOL_POLL_S = 5.0
_PLATEAU_S = 60.0
_PLATEAU_C_PER_MIN = 0.5


@dataclass(frozen=True)
class Observation:
    """The device at one moment; None where nothing tells."""

    temperature_c: float | None = None
    clock_hz: float | None = None
    throttles: float | None = None
    """Thermal throttle events since boot."""
    held: tuple[str, ...] | None = None
    """What firmware or driver says holds it back now, in words."""


def observe_here(*, gpu: bool) -> Observation:
    """This machine's sensors. Takes milliseconds where firmware is asked: once per round. With `gpu`, the hotter of both."""
    quick, slow = host.read().values, host.slow_read()
    degrees = [quick.get("temperature_c", slow.values.get("hottest_c"))]
    clock = quick.get("clock_hz", slow.values.get("clock_hz"))
    if gpu:
        degrees.append(slow.values.get("gpu_temperature_c"))
        clock = slow.values.get("gpu_clock_hz", clock)
    known = [value for value in degrees if value is not None]
    return Observation(
        max(known, default=None), clock, quick.get("thermal_throttles"),
        slow.throttled_now if slow.tells_throttling else None,
    )  # fmt: skip


@dataclass(frozen=True)
class Machine:
    """Time and sensors, which tests replace."""

    clock: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep
    observe: Callable[[], Observation] | None = None
    """None: this machine's sensors, its GPUs too where a case runs on one."""


def measure(job: Job, groups: Sequence[Sequence[Case]], machine: Machine | None = None) -> None:
    """Soak every group of cases (with `each`, every case alone), once per process of the study's effort.

    A soak that was interrupted begins again from a cool start; one that came to its end is not repeated. A case that fails is
    stored as a failure and left out. Raises StudyError when the study asks for no soak.
    """
    plan = job.study.soak
    if plan is None:
        raise StudyError(
            "this study asks for no soak: `edgeprof soak MODEL` makes one, or a [soak] table in a study file."
        )
    machine = _with_sensors(machine or Machine(), [case for group in groups for case in group])
    units = [list(group) for group in groups]
    if plan.each:
        units = [[case] for case in dict.fromkeys(case for group in groups for case in group)]
    failed = {record.case for record in job.store.records(job.run_id, FailureRecord)}
    device = _Device(machine, plan)
    for replicate in range(job.study.effort.processes):
        for number, unit in enumerate(units):
            wanted = [case for case in unit if case.key not in failed]
            if wanted and not _is_complete(job, replicate, number, wanted):
                _Soak(job, plan, device, replicate, number, failed).run(wanted)


def _with_sensors(machine: Machine, cases: Sequence[Case]) -> Machine:
    if machine.observe is not None:
        return machine
    backends = [spec.parse(case.backend) for case in cases]
    gpu = any(kind_of(backend.name, backend.device) == "nvidia" for backend in backends)
    return replace(machine, observe=lambda: observe_here(gpu=gpu))


def _is_complete(job: Job, replicate: int, group: int, cases: Sequence[Case]) -> bool:
    """Whether that soak came to its end: in one attempt, rounds enough over long enough a sustained phase, by every case."""
    assert job.study.soak is not None
    began: dict[tuple[int, str], list[float]] = {}
    for block in job.store.records(job.run_id, BlockRecord):
        hot = block.labels.get(labels.PHASE) == SUSTAINED
        if hot and (block.replicate, block.group) == (replicate, group):
            began.setdefault((block.attempt, block.case), []).append(block.labels.get(labels.ELAPSED_S, 0.0))

    def ended(times: Sequence[float]) -> bool:
        if len(times) < _FEWEST_ROUNDS:
            return False
        # From the first block's beginning to the last one's end, which lies about one round after its beginning.
        lasted = (max(times) - min(times)) * len(times) / (len(times) - 1)
        return lasted >= _WHOLE_SHARE * job.study.soak.sustained_s  # type: ignore[union-attr]

    attempts = {attempt for attempt, _ in began}
    return any(all(ended(began.get((attempt, case.key), ())) for case in cases) for attempt in attempts)


@dataclass
class _Device:
    """What was learned about the device over all soaks of this run."""

    machine: Machine
    plan: SoakPlan
    idle_c: float | None = None
    heated: bool = False

    def observe(self) -> Observation:
        assert self.machine.observe is not None
        return self.machine.observe()

    def cool_down(self, tell: Callable[[str], None]) -> dict[str, float]:
        """Wait for a cool start, a bounded time; returns what the blocks of the burst are labelled with."""
        begin = self.machine.clock()
        course: list[tuple[float, float]] = []
        while True:
            now, degrees = self.machine.clock() - begin, self.observe().temperature_c
            if degrees is None:
                return self._cool_blindly(tell)
            course.append((now, degrees))
            cool = self._is_cool(course)
            if cool or now >= self.plan.cool_max_s:
                break
            # Never so short that the clock would not move.
            self.machine.sleep(max(0.1, min(_COOL_POLL_S, self.plan.cool_max_s - now)))
        found = {labels.START_C: degrees, labels.WAITED_S: now}
        if self.idle_c is None:
            tell(
                f"whether the start is cool is not known: {degrees:.1f} °C was still falling after {now:.0f} s, or there was no "
                "time to see; give more with --cool-max"
            )
            return found
        if not cool:
            tell(
                f"the start is warm: {degrees:.1f} °C after waiting {now:.0f} s, {self.plan.cool_to_c:g} °C above idle "
                f"({self.idle_c:.1f} °C) were allowed; give more time with --cool-max, or more degrees with --cool-to"
            )
        return {**found, labels.IDLE_C: self.idle_c, labels.COOL: float(cool)}

    def _is_cool(self, course: Sequence[tuple[float, float]]) -> bool:
        """At most `cool_to_c` above idle. Idle is where the temperature stops falling while nothing of ours runs."""
        now, degrees = course[-1]
        recent = np.array([point for point in course if point[0] >= now - _PLATEAU_S])
        if now >= _PLATEAU_S and len(recent) > 2:
            slope = float(np.polyfit(recent[:, 0], recent[:, 1], 1)[0]) * 60
            if slope > -_PLATEAU_C_PER_MIN:
                self.idle_c = min(float(recent[:, 1].mean()), math.inf if self.idle_c is None else self.idle_c)
        return self.idle_c is not None and degrees <= self.idle_c + self.plan.cool_to_c

    def _cool_blindly(self, tell: Callable[[str], None]) -> dict[str, float]:
        rest = self.plan.cool_max_s if self.heated else 0.0
        self.machine.sleep(rest)
        tell(
            "whether the start is cool cannot be known: there is no temperature sensor"
            + (f"; rested for {rest:.0f} s after the soak before" if rest else "")
        )
        return {labels.WAITED_S: rest}


@dataclass
class _Lane:
    """One case: its loaded worker, and how long its inferences usually take."""

    case: Case
    worker: WorkerProcess
    usual_s: float
    burst_s: list[float] = field(default_factory=list)
    """Block medians of the burst."""


@dataclass
class _Soak:
    """One soak of one set of fresh processes."""

    job: Job
    plan: SoakPlan
    device: _Device
    replicate: int
    group: int
    failed: set[str]
    lanes: dict[str, _Lane] = field(default_factory=dict)
    course: list[tuple[float, float, float, float]] = field(default_factory=list)
    """Seconds, °C, Hz and relative time, by round; NaN where not known."""
    round: int = 0
    began_s: float = 0.0
    throttles: float | None = None
    told_held: bool = False

    def run(self, cases: Sequence[Case]) -> None:
        """Open, cool down, burst, heat up, measure hot."""
        job = self.job
        attempt = job.store.last_attempt(job.run_id, self.replicate, self.group) + 1
        stored = [key[3] for key in job.store.done_blocks(job.run_id) if key[1:3] == (self.replicate, self.group)]
        self.round = max(stored, default=-1) + 1
        with ExitStack() as stack:
            job.progress.stage("loading", len(cases))
            for case in cases:
                worker = stack.enter_context(job.open(case))
                try:
                    self.lanes[case.key] = self._ready(case, worker, attempt)
                except WorkerFailure as failure:
                    self._failed(case.key, "load", failure)
                job.progress.step(case.key)
            if self.lanes:
                self._phases(attempt)

    def _phases(self, attempt: int) -> None:
        progress, clock = self.job.progress, self.device.machine.clock
        progress.stage("cooling down", 1)
        start = self.device.cool_down(progress.note)
        progress.step()
        self.device.heated = True
        self.throttles = self.device.observe().throttles
        self.began_s = clock()
        progress.stage("burst", 1)
        while self.lanes and (self.course_rounds < _FEWEST_ROUNDS or self.elapsed < self.plan.burst_s):
            self._round(attempt, BURST, start)
        progress.step()
        self._heat(attempt)
        progress.stage("sustained", 1)
        hot, hot_rounds = clock(), self.course_rounds
        while self.lanes and (
            self.course_rounds - hot_rounds < _FEWEST_ROUNDS or clock() - hot < self.plan.sustained_s
        ):
            self._round(attempt, SUSTAINED, {})
        progress.step()

    def _heat(self, attempt: int) -> None:
        """Keep it busy until it is steady, or the longest time is over."""
        progress = self.job.progress
        # What a time budget leaves, but for the phase that all of this is for.
        longest = min(self.plan.max_s, self.elapsed + self.job.budget.left_s - self.plan.sustained_s)
        progress.stage("heating until steady", max(1, math.ceil(longest / 60)))
        minutes = 0
        state = labels.state_of(*self._course())
        while self.lanes and state.state != "steady" and self.elapsed < longest:
            self._round(attempt, HEATING, {})
            state = labels.state_of(*self._course())
            while minutes < int(self.elapsed / 60):
                minutes += 1
                progress.step(state.reason[:40])
        if self.lanes:
            what = "steady" if state.state == "steady" else f"not shown to be steady ({state.state})"
            progress.note(f"{what} after {self.elapsed / 60:.1f} min of load: {state.reason}")

    @property
    def course_rounds(self) -> int:
        """Rounds so far."""
        return len(self.course)

    @property
    def elapsed(self) -> float:
        """Seconds of load."""
        return self.device.machine.clock() - self.began_s

    def _course(self) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
        table = np.array(self.course, np.float64).reshape(-1, 4)
        return table[:, 0], table[:, 1], table[:, 2], table[:, 3]

    def _round(self, attempt: int, phase: int, start: dict[str, float]) -> None:
        """One block of every case in random order, labelled with what the sensors said just before."""
        seen, elapsed = self.device.observe(), self.elapsed
        common = {**start, labels.PHASE: float(phase), **self._readings(seen)}
        seeds = (self.job.study.seed, self.replicate, self.group, self.round)
        keys = sorted(self.lanes)
        medians: dict[str, float] = {}
        for position, place in enumerate(np.random.default_rng(seeds).permutation(len(keys))):
            lane = self.lanes[keys[place]]
            try:
                block = self._block(lane, attempt, position, phase, {**common, labels.ELAPSED_S: self.elapsed})
                add(self.job, block)
            except WorkerFailure as failure:
                self._failed(lane.case.key, "measure", failure)
                lane.worker.kill()
                continue
            medians[lane.case.key] = float(np.median(block.samples_s[block.discarded :]))
            if phase == BURST:
                lane.burst_s.append(medians[lane.case.key])
        usual = {key: float(np.median(lane.burst_s)) for key, lane in self.lanes.items() if lane.burst_s}
        nan = float("nan")
        self.course.append(
            (
                elapsed, nan if seen.temperature_c is None else seen.temperature_c,
                nan if seen.clock_hz is None else seen.clock_hz, labels.relative_time(medians, usual),
            )
        )  # fmt: skip
        self.round += 1

    def _readings(self, seen: Observation) -> dict[str, float]:
        found = {}
        if seen.temperature_c is not None:
            found[labels.TEMPERATURE_C] = seen.temperature_c
        if seen.clock_hz is not None:
            found[labels.CLOCK_HZ] = seen.clock_hz
        if seen.throttles is not None and self.throttles is not None and seen.throttles >= self.throttles:
            found[labels.THROTTLES] = seen.throttles - self.throttles
        if seen.held is not None:
            found[labels.HELD] = float(bool(seen.held))
            if seen.held and not self.told_held:
                self.told_held = True
                self.job.progress.note(f"held back after {self.elapsed:.0f} s of load: {', '.join(seen.held)}")
        return found

    def _ready(self, case: Case, worker: WorkerProcess, attempt: int) -> _Lane:
        """Load and run a few inferences: caches and kernels are warm, the device is not yet."""
        job, limit = self.job, self.job.study.time_limit_s
        loaded = job.load(worker, case)
        worker.request("feed", job.feeds(case), timeout_s=limit)
        first, _ = worker.request("first", timeout_s=limit)
        _, arrays = worker.request("time", timeout_s=limit, min_s=0.05, min_samples=3, max_s=1.0)
        memory, _ = worker.request("memory", timeout_s=limit)
        facts, _ = worker.request("facts", timeout_s=limit)
        try:
            record = ProcessRecord(
                case=case.key, replicate=self.replicate, attempt=attempt, group=self.group, pid=worker.pid,
                import_s=float(loaded["import_s"]), load_s=float(loaded["load_s"]),
                first_inference_s=float(first["first_inference_s"]),
                rss_before_load_bytes=loaded.get("rss_before_load_bytes"), peak_rss_bytes=memory.get("peak_rss_bytes"),
                facts=SessionFacts(**facts["facts"]),
                notes=tuple(str(note) for note in memory.get("memory_notes", ())),
                memory={str(phase): dict(found) for phase, found in memory.get("phases", {}).items()},
            )  # fmt: skip
        except (KeyError, TypeError, ValueError) as error:
            raise TargetError(f"the worker of {case.key} gave an incomplete answer: {error}.") from error
        add(job, record)
        return _Lane(case, worker, float(np.median(arrays["durations_ns"].astype(np.float64))) / 1e9)

    def _block(self, lane: _Lane, attempt: int, position: int, phase: int, found: dict[str, float]) -> BlockRecord:
        effort = self.job.study.effort
        heating = phase == HEATING
        floor = {"floor_s": _HEATING_SAMPLE_S} if heating else {}
        per_sample = inferences_per_sample(lane.usual_s, **floor)
        label_every = samples_per_window(lane.usual_s * per_sample)
        length = _HEATING_BLOCK_S if heating else effort.block_s
        reply, arrays = lane.worker.request(
            "time", timeout_s=self.job.study.time_limit_s, min_s=length,
            min_samples=1 if heating else effort.block_samples, max_s=max(length, 1.0), max_samples=MAX_BLOCK_SAMPLES,
            per_sample=per_sample, label_every=label_every,
        )  # fmt: skip
        seconds = {name: values.astype(np.float64) / 1e9 for name, values in arrays.items() if name != "canary_at"}
        samples = seconds["durations_ns"] / per_sample
        return BlockRecord(
            case=lane.case.key, replicate=self.replicate, attempt=attempt, group=self.group, round=self.round,
            position=position, started_s=float(reply["started_s"]), samples_s=samples,
            discarded=reentry_samples(samples, per_sample), inferences_per_sample=per_sample, batch=lane.case.batch,
            cpu_s=float(reply["cpu_s"]), wall_s=float(reply["wall_s"]),
            labels={**{str(key): float(value) for key, value in reply["labels"].items()}, **found},
            window_s=seconds.get("window_ns"), window_cpu_s=seconds.get("cpu_ns"),
            window_waited_s=seconds.get("waited_ns"), label_every=label_every,
            canary_s=seconds.get("canary_ns"), canary_at=canary_places(arrays),
        )  # fmt: skip

    def _failed(self, key: str, stage: str, failure: WorkerFailure) -> None:
        self.job.fail(key, "load" if stage == "load" else "measure", failure, self.replicate)
        self.failed.add(key)
        self.lanes.pop(key, None)
