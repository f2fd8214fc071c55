"""A soak on a simulated device: heat, throttling and time are a model's, so that the truth is known and nothing is waited for."""

from __future__ import annotations

import json
from dataclasses import asdict
from types import SimpleNamespace

import numpy as np
import pytest

from backends.base import SessionFacts
from profiler import soak, soak_result
from profiler.budget import Budget
from profiler.errors import StudyError
from profiler.records import Environment, FailureRecord, NotMeasured
from profiler.stats.thermal import BURST, HEATING, SUSTAINED
from profiler.store import open_store
from profiler.study import Case, make_study
from profiler.targets.process import WorkerFailure

AMBIENT_C, LIMIT_C = 40.0, 70.0
FAST, SLOW = 2.4e9, 1.6e9


class Device:
    """A box that warms up under load with one time constant and halves its clock by a third at a limit, for good.

    `sensors` names what it tells; `at_c` is where it begins. The clock is the model's: sleeping and computing move it on.
    """

    def __init__(self, *, gain_c=60.0, tau_s=100.0, sensors=("temperature", "clock"), at_c=AMBIENT_C, throttles=True):
        self.now, self.temperature, self.gain, self.tau = 1000.0, at_c, gain_c, tau_s
        self.sensors, self.throttles, self.slow, self.events = sensors, throttles, False, 0
        self.slept = 0.0

    def pass_time(self, seconds, load):
        power = self.gain * (SLOW / FAST if self.slow else 1.0)
        target = AMBIENT_C + load * power
        self.temperature = target + (self.temperature - target) * np.exp(-seconds / self.tau)
        self.now += seconds
        if self.throttles and not self.slow and self.temperature > LIMIT_C:
            self.slow, self.events = True, self.events + 1
        if self.slow and self.temperature < AMBIENT_C + 10:
            self.slow = False

    def sleep(self, seconds):
        self.slept += seconds
        self.pass_time(seconds, 0.0)

    def observe(self):
        tells = self.sensors
        return soak.Observation(
            self.temperature if "temperature" in tells else None,
            (SLOW if self.slow else FAST) if "clock" in tells else None,
            float(self.events) if "throttles" in tells else None,
            (("throttled",) if self.slow else ()) if "held" in tells else None,
        )

    @property
    def machine(self):
        return soak.Machine(lambda: self.now, self.sleep, self.observe)


class Worker:
    """Answers as a worker does, in the device's time."""

    def __init__(self, device, latency_s, random, dies_at_s=None):
        self.device, self.latency, self.random, self.pid = device, latency_s, random, 7
        self.dies_at = dies_at_s
        self.killed = False

    def request(self, command, arrays=None, *, timeout_s, **fields):
        if command == "first":
            return {"first_inference_s": self.latency}, {}
        if command == "memory":
            return {
                "peak_rss_bytes": 1000,
                "phases": {"load": {"peak_rss_bytes": 1000}},
                "memory_notes": ["a note"],
            }, {}
        if command == "facts":
            return {"facts": asdict(SessionFacts("made", "1", "cpu", 1, None, "made up"))}, {}
        if command != "time":
            return {}, {}
        if self.dies_at is not None and self.device.now >= self.dies_at:
            raise WorkerFailure("crash", "it crashed")
        started = self.device.now
        sample = self.latency * fields.get("per_sample", 1) * (FAST / SLOW if self.device.slow else 1.0)
        count = max(int(fields["min_s"] / sample) + 1, fields["min_samples"])
        durations = sample * np.exp(self.random.normal(0, 0.01, count))
        spent = float(durations.sum())
        self.device.pass_time(spent, 1.0)
        reply = {"started_s": started, "cpu_s": spent, "wall_s": spent, "labels": {"steal_share": 0.0}}
        return reply, {"durations_ns": (durations * 1e9).astype(np.int64)}

    def __enter__(self):
        return self

    def __exit__(self, *error):
        return None

    def kill(self):
        self.killed = True


class SimulatedJob:
    """A Job whose workers are simulated; store, study and progress are real."""

    def __init__(self, folder, study, device, listener, latencies, dies=None, refuses=()):
        self.study, self.progress, self.budget = study, listener(), Budget(clock=lambda: device.now)
        self.store = open_store(folder)
        environment = Environment("host", "x", "Linux", "3.11", None, (), 2, 2, 8 << 30, None, (), {})
        self.run_id = self.store.create_run(study, environment, version="0")
        self.cases = [Case(f"v{index}", "fake", "local", 1, 1) for index in range(len(latencies))]
        self.store.set_plan(self.run_id, {"cases": [asdict(case) for case in self.cases]}, ())
        self._made = dict(zip(self.cases, latencies, strict=True))
        self._device, self._dies, self._refuses = device, dies or {}, refuses
        self._random = np.random.default_rng(1)
        self.opened = 0

    def open(self, case):
        self.opened += 1
        dies = self._dies.get(case.variant)
        return Worker(self._device, self._made[case], self._random, None if dies is None else self._device.now + dies)

    def load(self, worker, case):
        if case.variant in self._refuses:
            raise WorkerFailure("unsupported", "no such op")
        return {"import_s": 0.1, "load_s": 0.2, "rss_before_load_bytes": 5}

    def feeds(self, case):
        return {}

    def fail(self, case_key, stage, failure, replicate=None):
        record = FailureRecord(case_key, stage, failure.kind, str(failure), replicate)
        self.store.add(self.run_id, record)
        return record

    def read(self):
        return soak_result.read_soak(self.store.run(self.run_id))


@pytest.fixture
def simulate(tmp_path, listener):
    """`simulate(device, latencies, …)` makes a job; `plan` are fields of the SoakPlan."""
    made = []

    def make(device, latencies=(0.004,), *, processes=1, dies=None, refuses=(), **plan):
        plan = {"burst_s": 3.0, "sustained_s": 5.0, **plan}
        study = make_study(model="m.onnx", soak=plan, effort={"processes": processes})
        made.append(SimulatedJob(tmp_path / str(len(made)), study, device, listener, latencies, dies, refuses))
        return made[-1]

    yield make
    for job in made:
        job.store.close()


def soaked(job, device):
    soak.measure(job, [job.cases], device.machine)
    return job.read()


def test_a_throttling_device_has_its_true_ratio_and_is_steady(simulate):
    """A clock that falls by a third: 1.5 times as long, for both cases, in an interval that holds it."""
    device = Device(sensors=("temperature", "clock", "throttles"))
    job = simulate(device, (0.004, 0.009))
    found = soaked(job, device)
    (course,) = found.courses

    for case, latency in zip(found.cases, (0.004, 0.009), strict=True):
        assert case.burst_p50_s.value == pytest.approx(latency, rel=0.01)
        assert case.sustained_p50_s.value == pytest.approx(latency * 1.5, rel=0.01)
        assert case.ratio.low <= 1.5 <= case.ratio.high
        assert case.ratio.high / case.ratio.low < 1.03
        assert case.ratio.unit == "round"
    assert course.state.state == "steady"
    assert (course.cool, course.idle_c) == (True, pytest.approx(AMBIENT_C, abs=0.1))
    assert (course.throttles, course.first_throttle_s > 60) == (1, True)
    assert 180 < course.heated_s < 1200
    assert np.nanmax(course.temperatures_c) > LIMIT_C - 1
    assert any("steady after" in note for note in job.progress.notes)


def test_a_device_that_keeps_its_clock_has_no_slowdown(simulate):
    """A fan: it gets warm and nothing else."""
    device = Device(gain_c=20.0, throttles=False, sensors=("temperature", "clock", "throttles"))
    found = soaked(simulate(device), device)

    assert found.cases[0].ratio.low <= 1.0 <= found.cases[0].ratio.high
    assert found.cases[0].ratio.value == pytest.approx(1.0, abs=0.01)
    assert (found.courses[0].throttles, found.courses[0].first_throttle_s) == (0, None)


def test_it_takes_as_long_as_the_device_takes(simulate):
    """A heavy box is soaked for longer than a light one: it is the temperature that ends it."""
    minutes = []
    for tau in (30.0, 200.0):
        device = Device(gain_c=20.0, tau_s=tau, throttles=False)
        minutes.append(soaked(simulate(device, max_s=3000), device).courses[0].heated_s / 60)

    assert 3 <= minutes[0] < 6 < minutes[1] < 20


def test_the_longest_time_ends_a_device_that_never_settles(simulate):
    """Measured all the same, and said to be not steady."""
    device = Device(gain_c=300.0, tau_s=2000.0, throttles=False)
    job = simulate(device, max_s=400)
    (course,) = soaked(job, device).courses

    assert course.state.state == "rising"
    assert 400 <= course.heated_s < 403
    assert any("not shown to be steady (rising)" in note for note in job.progress.notes)


def test_too_short_a_soak_is_unknown(simulate):
    """Three minutes are needed to tell."""
    device = Device()
    course = soaked(simulate(device, max_s=60), device).courses[0]

    assert course.state.state == "unknown"
    assert "180 s are needed" in course.state.reason


def test_without_sensors_the_latency_alone_decides_and_it_is_said(simulate):
    """The usual case in virtual machines: nothing is known of the start, the ratio is measured all the same."""
    device = Device(sensors=())
    job = simulate(device)
    found = soaked(job, device)
    (course,) = found.courses

    assert (course.cool, course.idle_c, course.waited_s, course.throttles) == (None, None, 0.0, None)
    assert np.isnan(course.temperatures_c).all()
    assert course.state.state == "steady"
    assert "no temperature sensor" in course.state.reason
    assert any("cannot be known" in note for note in job.progress.notes)
    assert device.slept == 0
    assert found.cases[0].ratio.low <= 1.5 <= found.cases[0].ratio.high


def test_a_hot_machine_is_left_to_cool_first(simulate):
    """From 90 °C to where the temperature stands still; the burst is the fast one."""
    device = Device(at_c=90.0)
    device.slow = True
    (course,) = soaked(simulate(device), device).courses

    assert course.cool is True
    assert course.start_c <= AMBIENT_C + 5
    assert 100 < course.waited_s <= 600
    assert course.clocks_hz[0] == FAST


@pytest.mark.parametrize(("cool_max_s", "words"), [(100, "is not known"), (0, "is not known")])
def test_a_wait_that_is_too_short_is_not_called_cool(simulate, cool_max_s, words):
    """Where idle was never seen, nobody knows how far above it the start is."""
    device = Device(at_c=95.0, tau_s=400.0)
    job = simulate(device, cool_max_s=cool_max_s, max_s=200)
    (course,) = soaked(job, device).courses

    assert course.cool is None
    assert course.waited_s == pytest.approx(cool_max_s, abs=0.2)
    assert any(words in note for note in job.progress.notes)


def test_a_second_process_starts_no_warmer_than_allowed_or_says_so(simulate):
    """Idle is known from the first soak: the second waits for it, or is called warm when it may not wait that long."""
    patient, hasty = Device(), Device()
    waiting = soaked(simulate(patient, processes=2, max_s=300), patient)
    job = simulate(hasty, processes=2, max_s=300, cool_max_s=70)
    rushed = soaked(job, hasty)

    assert [course.cool for course in waiting.courses] == [True, True]
    assert waiting.courses[1].start_c <= AMBIENT_C + 5.1
    assert [course.cool for course in rushed.courses] == [True, False]
    assert any("the start is warm" in note for note in job.progress.notes)
    assert (waiting.cases[0].ratio.unit, waiting.cases[0].ratio.count) == ("process", 2)


def test_every_block_is_labelled_and_kept_as_in_any_run(simulate):
    """Phases in order, one block of each case and round, positions drawn anew; process records with their memory."""
    device = Device(sensors=("temperature", "held"))
    job = simulate(device, (0.003, 0.005, 0.007), max_s=240)
    soaked(job, device)
    run = job.store.run(job.run_id)
    phases = [int(block.labels[soak_result.PHASE]) for block in run.blocks]

    assert phases == sorted(phases)
    assert set(phases) == {BURST, HEATING, SUSTAINED}
    assert len({(block.case, block.round) for block in run.blocks}) == len(run.blocks)
    assert len({tuple(b.case for b in run.blocks if b.round == index) for index in range(12)}) > 2
    assert {block.labels["steal_share"] for block in run.blocks} == {0.0}
    assert [process.memory["load"]["peak_rss_bytes"] for process in run.processes] == [1000] * 3
    assert run.processes[0].notes == ("a note",)
    assert any("held back after" in note and "throttled" in note for note in job.progress.notes)


def test_each_case_may_have_a_soak_of_its_own(simulate):
    """So that a heavy case does not heat a light one."""
    device = Device()
    job = simulate(device, (0.004, 0.009), each=True, max_s=200)
    found = soaked(job, device)

    assert [course.cases for course in found.courses] == [("v0@fake/b1/t1",), ("v1@fake/b1/t1",)]
    assert [course.cool for course in found.courses] == [True, True]


def test_a_case_that_fails_does_not_end_the_soak_of_the_others(simulate):
    """While loading, and in the middle of heating."""
    device = Device()
    job = simulate(device, (0.004, 0.005, 0.006), dies={"v1": 200.0}, refuses=("v2",), max_s=300)
    found = soaked(job, device)
    failures = {record.case: (record.stage, record.kind) for record in job.store.run(job.run_id).failures}
    by_case = {case.case: case for case in found.cases}

    assert failures == {"v1@fake/b1/t1": ("measure", "crash"), "v2@fake/b1/t1": ("load", "unsupported")}
    assert by_case["v0@fake/b1/t1"].ratio.value > 1.4
    assert isinstance(by_case["v1@fake/b1/t1"].ratio, NotMeasured)
    assert "not reached" in by_case["v1@fake/b1/t1"].sustained_p50_s.reason


def test_an_interrupted_soak_begins_again_and_a_finished_one_is_not_repeated(simulate):
    """What was measured before the interruption stays stored and is not mixed with what followed."""
    device = Device()
    job = simulate(device, max_s=250)

    def interrupt(text=""):
        if device.now > 1000 + 150:
            raise KeyboardInterrupt

    job.progress.step = interrupt
    with pytest.raises(KeyboardInterrupt):
        soak.measure(job, [job.cases], device.machine)
    before = len(job.store.run(job.run_id).blocks)
    del job.progress.step
    found = soaked(job, device)
    opened = job.opened
    again = soaked(job, device)

    assert before > 0
    assert len(job.store.run(job.run_id).blocks) > before
    assert found.courses[0].times_s[0] < 1
    assert (np.diff(found.courses[0].times_s) > 0).all()
    assert opened == job.opened == 2
    assert json.dumps(asdict(again.cases[0])) == json.dumps(asdict(found.cases[0]))


def test_a_soak_interrupted_while_hot_begins_again(simulate, monkeypatch):
    """A few blocks of the sustained phase are not the sustained phase."""
    device = Device()
    job = simulate(device, max_s=250, sustained_s=60)
    stages = []
    job.progress.stage = lambda title, steps: stages.append((title, device.now))

    real = soak._Soak._round

    def rounds(self, attempt, phase, start):
        if phase == SUSTAINED and attempt == 0 and device.now > stages[-1][1] + 10:
            raise KeyboardInterrupt
        real(self, attempt, phase, start)

    monkeypatch.setattr(soak._Soak, "_round", rounds)
    with pytest.raises(KeyboardInterrupt):
        soak.measure(job, [job.cases], device.machine)
    soaked(job, device)
    hot = [b for b in job.store.run(job.run_id).blocks if b.labels["soak_phase"] == SUSTAINED]

    assert {b.attempt for b in hot} == {0, 1}
    assert sum(title == "sustained" for title, _ in stages) == 2


def test_a_time_budget_leaves_room_for_the_sustained_phase(simulate):
    """Heating ends early, and the phase that it is for is measured."""
    device = Device()
    job = simulate(device, max_s=1200)
    job.budget = Budget(400.0, lambda: device.now)
    (course,) = soaked(job, device).courses

    assert course.heated_s < 400
    assert device.now - 1000 < 410
    assert (course.phases == SUSTAINED).sum() >= 3


def test_a_study_without_a_soak_is_told(simulate, tmp_path, listener):
    """With the command that makes one."""
    job = SimpleNamespace(study=make_study(model="m.onnx"))

    with pytest.raises(StudyError, match="edgeprof soak"):
        soak.measure(job, [])


def test_a_run_without_a_soak_reads_as_none(made_run):
    """Ordinary blocks have no phase."""
    run = made_run().timed(made_run().case("fp32"), 0.001).data()

    assert soak_result.read_soak(run) == soak_result.Soak((), ())


@pytest.mark.parametrize("gpu", [True, False])
def test_this_machines_sensors_can_be_asked(gpu):
    """Whatever it has."""
    seen = soak.observe_here(gpu=gpu)

    assert seen.temperature_c is None or -60 < seen.temperature_c < 200
    assert seen.clock_hz is None or seen.clock_hz > 1e6
