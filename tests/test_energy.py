"""The energy stage: windows of all cases and the idle machine in random order, each stored when it ends, none taken twice."""

from __future__ import annotations

import sys
import textwrap
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import pytest

from profiler import energy, worker
from profiler.budget import Budget
from profiler.measure.energy.base import Absent, MeterInfo, MeterLost
from profiler.records import (
    IDLE,
    EnergyRecord,
    Environment,
    FailureRecord,
    NotMeasured,
    ProcessRecord,
    WarmupRecord,
)
from profiler.stats.energy import energy_figure
from profiler.store import open_store
from profiler.study import Case, make_study, read_study
from profiler.targets.base import local
from profiler.targets.process import WorkerFailure, WorkerProcess

PACKAGE = MeterInfo(
    "rapl", "counter", ("package-0", "core"), ("package-0",), "1 processor package", 0.001, ("cpu",), notes=("socket",)
)
GPU = MeterInfo("nvml", "counter", ("gpu0",), ("gpu0",), "GPU board", 0.1, ("nvidia",))
ABSENT = (Absent("ina3221", "no Jetson"), Absent("pmic", "no Pi"))
DEVICE = MeterInfo("external", "power", ("external",), ("external",), "the device", 0.05, notes=("logged",))
CPU_CASES = [Case("fp32", "ort", "local", 1, 1), Case("int8-dynamic", "ort", "local", 1, 1)]
CUDA_CASE = Case("fp32", "ort:cuda", "local", 1, 1)


@dataclass
class Machine:
    """What the workers of a test answer: 20 W working, 5 W idle, 100 inferences a window; and what they were asked."""

    meters: tuple[MeterInfo, ...] = (PACKAGE,)
    absent: tuple[Absent, ...] = ABSENT
    windows: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)
    lost: dict[str, list[str]] = field(default_factory=dict)
    """Reasons for the next windows of a case (or `idle`) to be lost; an empty one is a window that works."""
    broken: dict[str, WorkerFailure] = field(default_factory=dict)
    """Failures by case key, raised at load."""
    ahead_s: float = 0.0
    now: float = 1_000_000.0

    def unix(self) -> float:
        return self.now


class FakeWorker:
    def __init__(self, machine, case) -> None:
        self.machine, self.case, self.loaded = machine, case, False

    def __enter__(self):
        return self

    def __exit__(self, *_):
        return None

    def request(self, command, arrays=None, *, timeout_s, **fields):
        machine = self.machine
        machine.asked.append(command)
        assert timeout_s > fields.get("window_s", 0)
        if command != "energy":
            return {}, {}
        if fields.get("clock"):
            return {"unix_s": machine.now + machine.ahead_s}, {}
        if fields.get("window_s") is None:
            return {"meters": [asdict(m) for m in machine.meters], "absent": [asdict(a) for a in machine.absent]}, {}
        key = IDLE if fields["idle"] else self.case.key
        assert self.loaded != fields["idle"]
        machine.windows.append((key, fields))
        if machine.lost.get(key) and (reason := machine.lost[key].pop(0)):
            return {"lost": reason}, {}
        wall_s = fields["window_s"]
        started = machine.now + machine.ahead_s
        machine.now += wall_s
        watts = 5.0 if fields["idle"] else 20.0
        info = next((m for m in machine.meters if m.name == fields["meter"]), None)
        joules = {} if info is None else dict.fromkeys(info.rails, watts * wall_s)
        window = {
            "energy_j": joules, "inferences": 0 if fields["idle"] else 100, "wall_s": wall_s, "started_unix_s": started,
            "readings": 2 if joules else 0,
        }  # fmt: skip
        return {"window": window, "meter": None if info is None else asdict(info)}, {}


@dataclass
class FakeJob:
    """The part of a job that this stage uses, on a real run database."""

    run_id: str
    study: Any
    store: Any
    progress: Any
    machine: Machine
    budget: Budget = field(default_factory=Budget)

    def open(self, case):
        return FakeWorker(self.machine, case)

    def load(self, worker, case):
        if case.key in self.machine.broken:
            raise self.machine.broken[case.key]
        worker.loaded = True
        return {}

    def feeds(self, case):
        return {"0/x": np.zeros((case.batch, 4), "f4")}


@pytest.fixture
def job(tmp_path, listener):
    """`job(machine, energy={...})`: called again with `again=job`, the same run resumed on another machine."""
    stores = []

    def make(machine=None, again=None, **settings):
        study = make_study(model="m", **{"energy": {"windows": 4, "window_s": 2.0}, **settings})
        store = again.store if again else open_store(tmp_path)
        stores.append(store)
        host = Environment("host", "x86_64", "Linux 6", "3.11.7", None, (), 2, 2, 8 << 30, None, (), {})
        run_id = again.run_id if again else store.create_run(study, host, version="0")
        return FakeJob(run_id, study, store, listener(), machine or Machine())

    yield make
    for store in stores:
        store.close()


def stored(job) -> tuple[EnergyRecord, ...]:
    return job.store.records(job.run_id, EnergyRecord)


def failures(job) -> dict[str, FailureRecord]:
    return {record.case: record for record in job.store.records(job.run_id, FailureRecord)}


def test_every_case_and_the_idle_machine_get_their_windows(job):
    """As many as planned, on the meter that sees them, numbered in the order in which they ran."""
    run = job()
    energy.measure(run, CPU_CASES)
    records = stored(run)

    assert {key: [r.case for r in records].count(key) for key in ("fp32@ort/b1/t1", "int8-dynamic@ort/b1/t1", IDLE)} == {
        "fp32@ort/b1/t1": 4, "int8-dynamic@ort/b1/t1": 4, IDLE: 4,
    }  # fmt: skip
    assert [record.window for record in records] == list(range(12))
    assert {record.total_rails for record in records} == {("package-0",)}
    assert {record.notes for record in records} == {("socket",)}
    assert run.progress.stages == [("measuring energy", 12)]
    assert len(run.progress.steps) == 12


def test_the_figure_is_what_the_case_draws_above_idle(job):
    """(20 W - 5 W) x 2 s over 100 inferences."""
    run = job()
    energy.measure(run, CPU_CASES)

    assert energy_figure(stored(run), CPU_CASES[0].key).value == pytest.approx(0.3)


def test_the_order_is_random_seeded_and_balanced(job):
    """Each turn holds every lane once; the same seed gives the same order, another one another."""
    orders = []
    for seed in (1, 1, 2):
        run = job(seed=seed)
        energy.measure(run, CPU_CASES)
        orders.append([key for key, _ in run.machine.windows])

    assert orders[0] == orders[1] != orders[2]
    assert all(len(set(orders[0][n : n + 3])) == 3 for n in range(0, 12, 3))
    assert len({tuple(orders[0][n : n + 3]) for n in range(0, 12, 3)}) > 1


def test_each_window_begins_at_its_own_phase(job):
    """An offset of up to an update of the meter, on top of the warm-up; idle windows wait a second for the machine to calm."""
    run = job(Machine(meters=(GPU,)), effort={"warmup_s": 0.3})
    energy.measure(run, [CUDA_CASE])
    leads = {key: [fields["lead_s"] for k, fields in run.machine.windows if k == key] for key in (IDLE, CUDA_CASE.key)}

    assert all(0.3 <= lead <= 0.4 for lead in leads[CUDA_CASE.key])
    assert all(1.0 <= lead <= 1.1 for lead in leads[IDLE])
    assert len(set(leads[CUDA_CASE.key])) == 4


def test_a_case_runs_until_it_was_steady_before_a_window_begins(job):
    """As long as its slowest process needed, but not longer than the longest warm-up."""
    from backends.base import SessionFacts

    run = job(effort={"warmup_s": 0.3, "warmup_max_s": 4.0})
    for replicate, (case, seconds) in enumerate([(CPU_CASES[0], 1.0), (CPU_CASES[0], 2.5), (CPU_CASES[1], 9.0)]):
        warmup = WarmupRecord(np.ones(3), 1, "warmup", seconds)
        facts = SessionFacts("made", "1", "cpu", 1, None)
        run.store.add(run.run_id, ProcessRecord(case.key, replicate, 0, 0, 1, 0.1, 0.1, 0.1, None, None, facts, warmup))
    energy.measure(run, CPU_CASES)
    shortest = {
        key: min(fields["lead_s"] for k, fields in run.machine.windows if k == key) for key, _ in run.machine.windows
    }

    assert 2.5 <= shortest[CPU_CASES[0].key] < 2.6
    assert 4.0 <= shortest[CPU_CASES[1].key] < 4.1


def test_a_window_has_a_process_of_its_own_with_the_model_running(job):
    """Loaded, fed and run once before; nothing of that in idle windows."""
    run = job()
    energy.measure(run, CPU_CASES[:1])

    assert run.machine.asked.count("feed") == run.machine.asked.count("first") == 4
    assert run.machine.asked.count("energy") == 8 + 1


@pytest.mark.parametrize("at", range(1, 9))
def test_a_killed_stage_goes_on_where_it_stopped(job, listener, at):
    """Whatever is stored is not taken again, and no number is used twice."""

    def die():
        raise KeyboardInterrupt

    first = job()
    first.progress = listener(at=at, act=die)
    with pytest.raises(KeyboardInterrupt):
        energy.measure(first, CPU_CASES)
    before = stored(first)
    resumed = job(again=first)
    energy.measure(resumed, CPU_CASES)
    after = stored(resumed)

    assert len(before) == at
    assert after[:at] == before
    assert len(resumed.machine.windows) == 12 - at
    assert sorted(record.window for record in after) == list(range(12))
    assert {key: [r.case for r in after].count(key) for key in {r.case for r in after}} == dict.fromkeys(
        {"fp32@ort/b1/t1", "int8-dynamic@ort/b1/t1", IDLE}, 4
    )


def test_a_finished_stage_measures_nothing_again(job):
    """Not even a worker with a model is started."""
    run = job()
    energy.measure(run, CPU_CASES)
    again = job(again=run)
    energy.measure(again, CPU_CASES)

    assert again.machine.windows == []
    assert len(again.progress.steps) == 12


def test_a_case_that_no_meter_sees_is_not_measured_and_says_why(job):
    """On a machine whose only meter sees the processor, a GPU case gets every reason; the others are measured."""
    run = job()
    energy.measure(run, [*CPU_CASES, CUDA_CASE])
    figure = energy_figure(stored(run), CUDA_CASE.key, failures=failures(run).values())

    assert set(failures(run)) == {CUDA_CASE.key}
    assert isinstance(figure, NotMeasured)
    assert "rapl: sees 1 processor package only, and the case runs on nvidia" in figure.reason
    assert "ina3221: no Jetson" in figure.reason
    assert len(stored(run)) == 12


def test_each_case_gets_the_meter_of_its_device_and_that_meter_s_idle_windows(job):
    """A processor and a GPU in one machine."""
    run = job(Machine(meters=(GPU, PACKAGE)))
    energy.measure(run, [CPU_CASES[0], CUDA_CASE])
    pairs = {(record.case, record.meter) for record in stored(run)}

    assert pairs == {(CPU_CASES[0].key, "rapl"), (CUDA_CASE.key, "nvml"), (IDLE, "rapl"), (IDLE, "nvml")}
    assert energy_figure(stored(run), CUDA_CASE.key).value == pytest.approx(0.3)


@pytest.mark.parametrize(
    ("backend", "device"),
    [
        ("ort", ("cpu", 0)), ("ort:cpu", ("cpu", 0)), ("ov:CPU", ("cpu", 0)), ("ort:cuda", ("nvidia", 0)),
        ("trt:gpu.2", ("nvidia", 2)),
        ("ort:cuda.1", ("nvidia", 1)), ("trt", ("nvidia", 0)), ("ov:GPU", ("intel", 0)), ("ov:NPU", ("intel", 0)),
        ("other:dsp", ("dsp", 0)),
    ],
)  # fmt: skip
def test_devices_are_named_as_meters_name_them(backend, device):
    """From the text of the backend alone."""
    assert energy._device(Case("fp32", backend, "local", 1, 1)) == device


def test_a_meter_that_was_asked_for_is_used_and_its_blindness_noted(job):
    """Somebody who asks for the processor's meter on a GPU case gets the host's share, and it says so."""
    run = job(energy={"windows": 3, "window_s": 1.0, "meter": "rapl"})
    energy.measure(run, [CUDA_CASE])
    figure = energy_figure(stored(run), CUDA_CASE.key)

    assert "this meter does not see the nvidia device" in figure.note


def test_a_meter_that_was_asked_for_and_is_absent_says_why(job):
    """Only its own reason: the others were not asked for."""
    run = job(energy={"windows": 3, "window_s": 1.0, "meter": "pmic"})
    energy.measure(run, CPU_CASES[:1])
    message = failures(run)[CPU_CASES[0].key].message

    assert "pmic: no Pi" in message
    assert "no Jetson" not in message


def test_a_meter_that_appears_later_is_read_on_resume(job):
    """Absent the first time, for want of a permission; then measured, and the old reason does not hide the figure."""
    run = job(Machine(meters=(), absent=(Absent("rapl", "may not be read"),)))
    energy.measure(run, CPU_CASES[:1])
    assert failures(run)[CPU_CASES[0].key].kind == "unavailable"
    again = job(Machine(), again=run)
    energy.measure(again, CPU_CASES[:1])

    assert energy_figure(stored(again), CPU_CASES[0].key, failures=failures(again).values()).value == pytest.approx(0.3)


def test_a_lost_window_is_dropped_with_a_note_and_the_rest_is_kept(job):
    """Two of four, not one after the other's third: the other windows stand, and resuming takes the missing ones."""
    key = CPU_CASES[0].key
    run = job(Machine(lost={key: ["the sensor vanished", "again"]}))
    energy.measure(run, CPU_CASES)

    assert [record.case for record in stored(run)].count(key) == 2
    assert len(stored(run)) == 10
    assert any("the sensor vanished" in note for note in run.progress.notes)
    assert failures(run) == {}
    energy.measure(job(again=run), CPU_CASES)
    assert [record.case for record in stored(run)].count(key) == 4


def test_a_meter_that_stays_away_is_given_up_for_that_case(job):
    """After three windows in a row; the reason is stored, the other case goes on."""
    key = CPU_CASES[0].key
    run = job(Machine(lost={key: ["unplugged"] * 9}))
    energy.measure(run, CPU_CASES)

    assert len([k for k, _ in run.machine.windows if k == key]) == 3
    assert "3 energy windows in a row were dropped, the last because unplugged" in failures(run)[key].message
    assert energy_figure(stored(run), CPU_CASES[1].key).value == pytest.approx(0.3)


def test_losses_with_a_good_window_between_them_are_no_reason_to_give_up(job):
    """A loose plug is not a missing one."""
    key = CPU_CASES[0].key
    run = job(Machine(lost={key: ["loose", "loose", "", "loose", "loose"]}), energy={"windows": 5, "window_s": 2.0})
    energy.measure(run, CPU_CASES)

    assert len([k for k, _ in run.machine.windows if k == key]) == 5
    assert failures(run) == {}


def test_idle_windows_that_fail_leave_the_total(job):
    """The case is still measured; the figure says that idle power is in it."""
    run = job(Machine(lost={IDLE: ["unplugged"] * 9}))
    energy.measure(run, CPU_CASES[:1])
    figure = energy_figure(stored(run), CPU_CASES[0].key)

    assert figure.value == pytest.approx(0.4)
    assert "total with idle power" in figure.note
    assert failures(run) == {}


def test_a_worker_that_dies_costs_its_case_only(job):
    """Once: it is a failure of this stage, and resuming does not try again."""
    broken = CPU_CASES[0].key
    run = job(Machine(broken={broken: WorkerFailure("crash", "SIGSEGV", "last words")}))
    energy.measure(run, CPU_CASES)
    energy.measure(job(again=run), CPU_CASES)
    failure = failures(run)[broken]

    assert (failure.stage, failure.kind, failure.log_tail) == ("energy", "crash", "last words")
    assert {record.case for record in stored(run)} == {CPU_CASES[1].key, IDLE}
    assert any("SIGSEGV" in note for note in run.progress.notes)


def test_cases_that_failed_before_are_left_out(job):
    """What cannot be loaded or timed draws nothing worth knowing."""
    run = job()
    run.store.add(run.run_id, FailureRecord(CPU_CASES[0].key, "load", "crash", "gone"))
    run.store.add(run.run_id, FailureRecord(CPU_CASES[1].quality_key, "quality", "error", "gone"))
    energy.measure(run, CPU_CASES)

    assert stored(run) == ()


def test_without_a_plan_nothing_is_asked(job):
    """Energy is measured when somebody wants it."""
    run = job(energy=None)
    energy.measure(run, CPU_CASES)

    assert (run.machine.asked, run.progress.stages) == ([], [])


def test_a_used_up_time_budget_ends_the_stage(job):
    """What is stored stays; each lane is told once."""
    run = job()
    run.budget = Budget(9.0, clock=run.machine.unix)
    energy.measure(run, CPU_CASES)

    assert 0 < len(stored(run)) < 12
    assert sum("time budget" in note for note in run.progress.notes) == 3


@dataclass
class Outside:
    """An external meter that says 3 W over whatever window it is asked for."""

    error: str | None = None
    calls: list[Any] = field(default_factory=list)
    info: MeterInfo = DEVICE

    def start(self):
        self.calls.append("start")

    def stop(self):
        self.calls.append("stop")

    def energy(self, start, end):
        self.calls.append((start, end))
        if self.error:
            raise MeterLost(self.error)
        return {"external": 3.0 * (end - start)}, 40


EXTERNAL = {"windows": 3, "window_s": 2.0, "csv": "power.csv"}


def test_an_external_meter_is_read_here_over_the_worker_s_window(job):
    """The worker runs and says when; no meter of its own is asked."""
    run, outside = job(energy=EXTERNAL), Outside()
    energy.measure(run, [CUDA_CASE], open_external=lambda csv, command: outside, unix=run.machine.unix)
    records = stored(run)

    assert {(record.meter, record.method, record.readings) for record in records} == {("external", "integrated", 40)}
    assert all(record.energy_j == {"external": pytest.approx(6.0)} for record in records)
    assert {fields["meter"] for _, fields in run.machine.windows} == {None}
    assert outside.calls[:3] == ["start", (records[0].started_unix_s, records[0].started_unix_s + 2.0), "stop"]
    assert all("clocks" not in note for record in records for note in record.notes)


def test_windows_of_another_computer_are_brought_to_our_clock(job):
    """Its clock is 100 s ahead: the meter is asked for our own times, and the record says so."""
    run, outside = job(Machine(ahead_s=100.0), energy=EXTERNAL), Outside()
    begin = run.machine.now
    energy.measure(run, CPU_CASES[:1], open_external=lambda csv, command: outside, unix=run.machine.unix)

    assert outside.calls[1] == (pytest.approx(begin), pytest.approx(begin + 2.0))
    assert stored(run)[0].started_unix_s == pytest.approx(begin)
    assert any("clocks of the two computers" in note for note in stored(run)[0].notes)


def test_an_external_meter_that_lost_the_window_is_stopped_and_told(job):
    """The command ends with each window, whatever happened in it."""
    run, outside = job(energy=EXTERNAL), Outside(error="the last 2 s is missing")
    energy.measure(run, CPU_CASES[:1], open_external=lambda csv, command: outside, unix=run.machine.unix)

    assert outside.calls.count("start") == outside.calls.count("stop") == 6
    assert "the last 2 s is missing" in failures(run)[CPU_CASES[0].key].message


def test_a_log_that_is_not_there_is_a_reason_for_every_case(job, tmp_path):
    """The logger was not started."""
    run = job(energy={**EXTERNAL, "csv": str(tmp_path / "none.csv")})
    energy.measure(run, CPU_CASES)

    assert all("Start the logger before the run" in record.message for record in failures(run).values())
    assert len(failures(run)) == 2
    assert run.machine.asked == []


def ask(state, **fields):
    return worker._answer(state, {"command": "energy", **fields}, {})[0]


def test_the_worker_tells_meters_and_time(tmp_path):
    """Each reader by name, here or with a reason; the clock without looking for any."""
    state = worker.State(tmp_path)
    reply = ask(state)
    named = {meter["name"] for meter in reply["meters"]} | {item["meter"] for item in reply["absent"]}

    assert named == {"ina3221", "pmic", "nvml", "rapl"}
    assert set(ask(state, clock=True)) == {"ok", "unix_s"}


def test_the_worker_needs_a_model_for_all_but_idle_windows(tmp_path):
    """As for every other command."""
    state = worker.State(tmp_path)
    fields = {"meter": None, "window_s": 0.001, "lead_s": 0.0}

    assert "send 'load' first" in ask(state, **fields)["message"]
    assert ask(state, idle=True, **fields)["window"]["inferences"] == 0
    assert "does not know it" in ask(state, idle=True, **{**fields, "meter": "abacus"})["lost"]


METER = """
    import time
    while True:
        print(6.5, flush=True)
        time.sleep(0.002)
"""


@pytest.mark.process
def test_real_workers_and_a_real_command_give_the_true_energy(job, tmp_path):
    """Constant power: each stored window holds power x time, whatever the machine did; those that are not say why."""
    model = tmp_path / "model.bin"
    model.write_bytes(b"anything")
    script = tmp_path / "meter.py"
    script.write_text(textwrap.dedent(METER))
    plan = {"windows": 3, "window_s": 0.4, "command": f"{sys.executable} {script}"}
    run = job(energy=plan, effort={"warmup_s": 0.0}, time_limit_s=60.0)
    run.open = lambda case: WorkerProcess(local(), cache=tmp_path / "cache")
    run.load = lambda worker, case: worker.request(
        "load", backend="fake", path=str(model), threads=1, batch=1, options={"latency_us": "500", "read": "false"}, timeout_s=60,
    )[0]  # fmt: skip
    case = Case("fp32", "fake", "local", 1, 1)
    energy.measure(run, [case])
    records = stored(run)

    assert len(records) + sum("dropped" in note for note in run.progress.notes) == 6
    assert all(record.energy_j["external"] == pytest.approx(6.5 * record.wall_s) for record in records)
    assert all((record.inferences > 0) == (record.case == case.key) for record in records)
    assert all(record.wall_s >= 0.4 for record in records)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"windows": 2}, "energy.windows"),
        ({"window_s": 0}, "energy.window_s"),
        ({"window_s": 61}, "energy.window_s"),
        ({"window_s": float("nan")}, "energy.window_s"),
        ({"meter": "abacus"}, "energy.meter"),
        ({"meter": "external"}, "needs csv or command"),
        ({"csv": "a", "command": "b"}, "two external meters"),
        ({"csv": "a", "meter": "rapl"}, "meter is 'rapl'"),
        ({"window": 3}, "Did you mean window"),
    ],
    ids=str,
)
def test_impossible_plans_are_refused(fields, words):
    """At the border, with the setting's name."""
    from profiler.errors import StudyError

    with pytest.raises(StudyError, match=words):
        make_study(model="m", energy=fields)


def test_a_plan_survives_its_text_and_old_studies_have_none():
    """What the run database keeps."""
    import json

    study = make_study(model="m", energy={"windows": 5, "command": "read-watts --port /dev/ttyUSB0"})

    assert make_study(**json.loads(study.to_json())) == study
    assert make_study(model="m").energy is None


def test_a_study_file_names_its_log_from_its_own_folder(tmp_path):
    """Like its model and data; absolute paths stay."""
    for text, expected in (("log/power.csv", tmp_path / "log" / "power.csv"), ("/var/power.csv", "/var/power.csv")):
        (tmp_path / "study.toml").write_text(f'model = "m.onnx"\n[energy]\ncsv = "{text}"\n')

        assert read_study(tmp_path / "study.toml").energy.csv == str(expected)
