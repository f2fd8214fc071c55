"""Many devices: each has one queue and one lease, fails alone, and nothing is measured twice or lost."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import psutil
import pytest

from profiler.budget import Budget
from profiler.errors import BudgetError, StoreError, TargetError
from profiler.fleet import devices, queues, status
from profiler.fleet.keeper import Keeper
from profiler.fleet.queues import DevicesLeft, Queues, part_of
from profiler.fleet.stop import Stop, Stopped
from profiler.fleet.together import Together
from profiler.job import Job
from profiler.leases import Lease, LeaseLost, Owner
from profiler.machines import device_of
from profiler.progress import Silent
from profiler.run import execute
from profiler.search.run import Asked, decisions, execute_search
from profiler.store import open_store
from profiler.study import Case, Effort
from profiler.targets import bundle, config
from profiler.targets.remote import LinkLost

ROOT = Path(__file__).parents[1]
ONE = {"processes": 1, "rounds": 2, "block_s": 0.002, "block_samples": 3, "warmup_s": 0.002, "warmup_max_s": 0.01}
ONE = {**ONE, "requeue_share": 0.0}
STRANGER = Owner("elsewhere", "someone", 1, 0.0, "another boot")

RELAY = '''
"""What ssh is to a worker: another process, with a link that can break between them."""
import os, subprocess, sys, threading
if os.path.exists(sys.argv[1]):
    sys.stderr.write("connect to host: No route to host\\n")
    sys.exit(255)
worker = subprocess.Popen(sys.argv[2:], stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0)

def copy(source, sink):
    while data := os.read(source, 65536):
        view = memoryview(data)
        while view:
            view = view[os.write(sink, view):]

def forth():
    try:
        copy(0, worker.stdin.fileno())
    except OSError:
        pass
    worker.stdin.close()

threading.Thread(target=forth, daemon=True).start()
copy(worker.stdout.fileno(), 1)
code = worker.wait()
os._exit(code if code >= 0 else 128 - code)
'''


class Device:
    """A device behind a link: `NAME` with the source tree as its bundle."""

    def __init__(self, name: str, folder: Path, *, link: bool = True) -> None:
        self.name, self.folder, self.down = name, folder / name, folder / f"{name}.down"
        (self.folder / "bundles").mkdir(parents=True)
        (self.folder / "bundles" / bundle.modules_name()).symlink_to(ROOT, target_is_directory=True)
        relay = folder / "relay.py"
        relay.write_text(RELAY)
        prefix = (sys.executable, "-S", str(relay), str(self.down)) if link else ("env",)
        config.save(
            config.TargetSpec(
                name, prefix, link_codes=(255,) if link else (), python=sys.executable, folder=str(self.folder),
                bundles=(bundle.modules_name(),),
            )
        )  # fmt: skip

    def processes(self, *, relay: bool = False) -> list[psutil.Process]:
        """Its workers, or what connects to them."""
        found = []
        for process in psutil.process_iter():
            try:
                words = process.cmdline()
            except psutil.Error:
                continue
            if str(self.folder) in words and ("relay.py" in " ".join(words)) == relay:
                found.append(process)
        return found

    def signal(self, number: int, *, relay: bool = False) -> None:
        """Send a signal to one of them."""
        processes = self.processes(relay=relay)
        assert processes
        processes[-1].send_signal(number)


@pytest.fixture
def device(tmp_path, monkeypatch) -> Callable[..., Device]:
    """`device(name, link=True)` makes one, known to this test only."""
    monkeypatch.setenv("EDGEPROF_TARGETS", str(tmp_path / "targets.toml"))
    return lambda name, **settings: Device(name, tmp_path / "devices", **settings)


class Acts:
    """A Progress that does things when a device has made so many steps. Steps of one device come from its own thread."""

    def __init__(self, **acts: tuple[int, Callable[[], None]]) -> None:
        self.acts, self.steps, self.notes, self.stages = dict(acts), {}, [], []

    def stage(self, title: str, steps: int) -> None:
        self.stages.append((title, steps))

    def step(self, text: str = "") -> None:
        name = text.partition(" ")[0]
        self.steps[name] = self.steps.get(name, 0) + 1
        at, act = self.acts.get(name, (0, None))
        if act is not None and self.steps[name] >= at:
            del self.acts[name]
            act()

    def note(self, text: str) -> None:
        self.notes.append(text)


def itself(name: str) -> str:
    """Every device counts as a machine of its own, although all of them are this one."""
    return name


def many(count: int) -> tuple[str, ...]:
    return tuple(f"fake{{read=false,seed={number}}}" for number in range(count))


def read(out, run_id: str = "latest", database: str | None = None):
    store = open_store(database or out, create=False)
    try:
        return store.run(store.resolve(run_id))
    finally:
        store.close()


def device_of_key(key: str) -> str:
    return key.rpartition("/t1")[2].lstrip("@").partition("{")[0] or "local"


def assert_accounted_for(run) -> None:
    """Every case of the plan has all its blocks, each once, or a failure that says why."""
    rounds = run.study.effort.rounds * run.study.effort.processes
    failed = {record.case for record in run.failures}
    keys = [Case(**fields).key for fields in run.plan["cases"]]
    for key in keys:
        mine = [(b.replicate, b.group, b.round) for b in run.blocks if b.case == key]
        assert len(mine) == len(set(mine))
        assert len(mine) == rounds or key in failed, key
    assert {b.case for b in run.blocks} <= set(keys)


def assert_one_at_a_time(*runs) -> None:
    """Blocks of one device do not overlap, whoever measured them. All devices here share the clock of this machine."""
    spans: dict[str, list[tuple[float, float]]] = {}
    for run in runs:
        for block in run.blocks:
            took_s = float(block.samples_s.sum()) * block.inferences_per_sample
            spans.setdefault(device_of_key(block.case), []).append((block.started_s, block.started_s + took_s))
    assert spans
    for mine in spans.values():
        mine.sort()
        assert all(before[1] <= after[0] for before, after in itertools.pairwise(mine))


def assert_nothing_left(*made: Device) -> None:
    """No worker and no connection outlives its run; a worker that lost its link may take a moment to notice."""
    until = time.monotonic() + 30
    while time.monotonic() < until and any(one.processes() or one.processes(relay=True) for one in made):
        time.sleep(0.1)
    assert [one.processes() + one.processes(relay=True) for one in made] == [[] for _ in made]


# Whole runs ------------------------------------------------------------------------------------------------------------


@pytest.mark.process
def test_three_devices_fifty_cases_and_everything_that_happens_to_devices(tmp_path, device, fake_study):
    """One worker is killed, one freezes, one link breaks: failures of two cases, and the third device measured to its end."""
    killed, frozen, cut = device("killed"), device("frozen", link=False), device("cut")
    heard = Acts(
        killed=(60, lambda: killed.signal(signal.SIGKILL)),
        frozen=(60, lambda: frozen.signal(signal.SIGSTOP)),
        cut=(60, lambda: cut.signal(signal.SIGKILL, relay=True)),
    )
    study = fake_study(data=None, backends=many(17), targets=("killed", "frozen", "cut"), effort=ONE, time_limit_s=4.0)
    run = read(tmp_path, execute(study, out=tmp_path, progress=heard, machines=itself))

    assert heard.acts == {}
    assert (run.status, len(run.plan["cases"])) == ("finished", 51)
    assert_accounted_for(run)
    assert_one_at_a_time(run)
    assert_nothing_left(killed, frozen, cut)
    failures = {device_of_key(record.case): record for record in run.failures}
    assert sorted(failures) == ["frozen", "killed"]
    assert len(run.failures) == 2
    assert failures["frozen"].kind == "timeout"
    assert failures["killed"].kind in ("crash", "out_of_memory")
    # What was measured before the link broke stands, the rest came in another attempt.
    assert {b.attempt for b in run.blocks if device_of_key(b.case) == "cut"} == {0, 1}
    assert {b.attempt for b in run.blocks if device_of_key(b.case) == "killed"} == {0}
    assert any("cut: the connection to 'cut' was lost" in note for note in heard.notes)
    assert {state.device: state.status for state in run.queues} == dict.fromkeys(("killed", "frozen", "cut"), "done")
    assert sum(steps for _, steps in heard.stages) == sum(heard.steps.values())
    assert sorted(run.plan["targets"]) == ["cut", "frozen", "killed"]


@pytest.mark.process
def test_a_device_that_stays_away_ends_its_own_queue_only(tmp_path, device, fake_study, monkeypatch):
    """The others finish, the run tells which and why, and goes on when the device is back."""
    monkeypatch.setattr("profiler.run.LINK_PAUSES_S", (0.0, 0.0))
    there, away = device("there"), device("away")

    def unplug() -> None:
        away.down.touch()
        away.signal(signal.SIGKILL, relay=True)

    study = fake_study(backends=many(2), targets=("away", "there", "local"), effort=ONE)
    with pytest.raises(DevicesLeft, match=r"2 of 3 devices are measured, not away: .*edgeprof run --resume 2"):
        execute(study, out=tmp_path, progress=Acts(away=(130, unplug)), machines=itself)
    run = read(tmp_path)
    states = {state.device: state for state in run.queues}

    assert run.status == "interrupted"
    assert [states[name].status for name in ("away", "local", "there")] == ["lost", "done", "done"]
    assert "No route to host" in str(states["away"].reason)
    assert run.failures == ()
    assert {key for key in ("there", "local") if any(device_of_key(b.case) == key for b in run.blocks)} == {
        "there",
        "local",
    }
    away.down.unlink()
    again = read(tmp_path, execute(None, out=tmp_path, resume="latest", machines=itself))

    assert again.status == "finished"
    assert_accounted_for(again)
    assert_one_at_a_time(again)
    assert {b.samples_s.tobytes() for b in run.blocks} <= {b.samples_s.tobytes() for b in again.blocks}
    assert_nothing_left(there, away)


@pytest.mark.process
def test_a_device_that_is_away_at_the_start_is_known_once_it_is_back(tmp_path, device, fake_study, monkeypatch):
    """The others begin without it; what its machine is stands in the plan as soon as it tells."""
    pauses: list[float] = []

    def back(self: Stop, seconds: float) -> None:
        pauses.append(seconds)
        late.down.unlink(missing_ok=True)

    monkeypatch.setattr(Stop, "sleep", back)
    device("there")
    late = device("late")
    late.down.touch()
    study = fake_study(data=None, targets=("there", "late"), effort=ONE)
    run = read(tmp_path, execute(study, out=tmp_path, machines=itself))

    assert pauses == [1.0]
    assert (run.status, sorted(run.plan["targets"])) == ("finished", ["late", "there"])
    assert_accounted_for(run)


@pytest.mark.process
def test_nothing_begins_when_no_device_can_be_reached(tmp_path, device, fake_study):
    """Not a run with reasons everywhere, but the first reason."""
    for name in ("one", "two"):
        device(name).down.touch()

    with pytest.raises(TargetError, match="'one'"):
        execute(fake_study(data=None, targets=("one", "two")), out=tmp_path, machines=itself)
    assert read(tmp_path).blocks == ()


@pytest.mark.process
def test_all_devices_are_compared_with_the_outputs_of_one(tmp_path, device, fake_study):
    """The first of the plan that works, whichever thread comes first: the same answers as on one machine."""
    for name in ("one", "two", "three"):
        device(name)
    backends = ("fake{fail=raise,fail_at=infer,read=false}", *many(2))
    settings = {"backends": backends, "effort": ONE}
    run = read(
        tmp_path / "fleet",
        execute(fake_study(targets=("one", "two", "three"), **settings), out=tmp_path / "fleet", machines=itself),
    )
    alone = read(tmp_path / "alone", execute(fake_study(**settings), out=tmp_path / "alone"))

    expected = {q.case: (q.per_sample.tobytes(), q.agreement.tobytes(), q.notes) for q in alone.qualities}
    assert len(run.qualities) == 3 * len(expected) == 6
    for quality in run.qualities:
        plain = quality.case.rpartition("@")[0]
        assert (quality.per_sample.tobytes(), quality.agreement.tobytes(), quality.notes) == expected[plain]
    assert len([record for record in run.failures if record.stage == "quality"]) == 3


@pytest.mark.process
def test_a_search_has_the_device_to_itself_and_goes_on_after_a_lost_link(tmp_path, device, fake_study, monkeypatch):
    """Under the device's lease, as a run. A candidate whose screening the link broke is no failed one."""
    monkeypatch.setattr("profiler.run.LINK_PAUSES_S", (0.0, 0.0))
    monkeypatch.setattr("profiler.search.bench.RACE_EFFORT", Effort(**ONE))
    pi, taken, notes = device("pi"), [], []

    def step(text: str = "") -> None:
        if text == "fp32@fake{read=false,seed=1}/b1@pi" and not taken:
            store = open_store(tmp_path, create=False)
            taken.append(store.acquire(devices.lease_name("pi"), run_id="another"))
            store.close()
            pi.down.touch()

    def note(text: str) -> None:
        notes.append(text)
        if "Trying again" in text:
            pi.down.unlink()

    heard = SimpleNamespace(stage=lambda *_: None, step=step, note=note)
    study = fake_study(backends=many(2), targets=("pi",), effort=ONE, variants=("fp32",))
    run = read(tmp_path, execute_search(study, Asked(seeds=False), out=tmp_path, progress=heard))

    assert (run.status, run.failures, list(run.plan["targets"])) == ("finished", (), ["pi"])
    assert [state.run_id for state in taken] == [run.id]
    assert any("the connection to 'pi' was lost" in text for text in notes)
    assert {item["outcome"] for item in decisions(run)} <= {"contender", "dropped"}
    assert {state.device: state.status for state in run.queues} == {"pi": "done"}
    assert len({(b.case, b.replicate, b.group, b.round) for b in run.blocks}) == len(run.blocks)
    assert_one_at_a_time(run)
    assert_nothing_left(pi)


@pytest.fixture
def interruptible():
    """A shell that starts the tests in its background makes them deaf to Ctrl-C: Python's own handler, for a while."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
@pytest.mark.process
def test_ctrl_c_ends_all_devices_and_the_run_goes_on_later(tmp_path, device, fake_study):
    """No failure is made of it, no process stays, every block is there once in the end."""
    one, two = device("one"), device("two", link=False)
    heard = Acts(two=(60, lambda: os.kill(os.getpid(), signal.SIGINT)))
    study = fake_study(data=None, backends=many(3), targets=("one", "two"), effort={**ONE, "rounds": 20})
    with pytest.raises(KeyboardInterrupt):
        execute(study, out=tmp_path, progress=heard, machines=itself)
    run = read(tmp_path)

    assert (run.status, run.failures) == ("interrupted", ())
    assert_nothing_left(one, two)
    again = read(tmp_path, execute(None, out=tmp_path, resume="latest", machines=itself))
    assert (again.status, again.failures) == ("finished", ())
    assert_accounted_for(again)
    assert_one_at_a_time(again)


def small_disk(folder: Path) -> None:
    if not sys.platform.startswith("linux") or os.geteuid() != 0:
        pytest.skip("mounting a small file system needs root on Linux")
    folder.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", folder], capture_output=True, check=False)
    if done.returncode:
        pytest.skip(f"mounting is not allowed here: {done.stderr.decode().strip()}")


@pytest.mark.process
def test_a_full_disk_ends_all_devices_and_the_run_goes_on_when_there_is_room(tmp_path, device, fake_study):
    """It concerns the run and no device: the message is the database's, and nothing that was stored is lost."""
    one, two, out = device("one"), device("two"), tmp_path / "small"
    small_disk(out)

    def fill() -> None:
        with (out / "filler").open("wb", buffering=0) as file:
            while file.write(bytes(1 << 16)):
                pass

    def filled() -> None:
        try:
            fill()
        except OSError:
            return

    try:
        study = fake_study(
            data=None, backends=many(2), targets=("one", "two"), effort={**ONE, "rounds": 12, "block_samples": 400}
        )
        with pytest.raises(StoreError, match=r"full|No space|disk I/O"):
            execute(study, out=out, progress=Acts(one=(10, filled)), machines=itself)
        assert_nothing_left(one, two)
        (out / "filler").unlink()
        subprocess.run(["mount", "-o", "remount,size=64m", out], check=True)
        stored = read(out).blocks
        run = read(out, execute(None, out=out, resume="latest", machines=itself))
    finally:
        subprocess.run(["umount", "-l", out], check=False)

    assert (run.status, run.failures) == ("finished", ())
    assert_accounted_for(run)
    assert 0 < len(stored) < len(run.blocks)
    assert {b.samples_s.tobytes() for b in stored} <= {b.samples_s.tobytes() for b in run.blocks}


@pytest.mark.process
def test_devices_that_are_one_machine_take_turns(tmp_path, device, fake_study):
    """A container and its host, or a board with two names: their blocks never overlap, and this machine's count too."""
    device("one"), device("two")
    study = fake_study(data=None, backends=many(2), targets=("one", "two", "local"), effort={**ONE, "rounds": 4})
    run = read(tmp_path, execute(study, out=tmp_path))
    if devices.machine_of("local") is None:
        pytest.skip("this machine does not tell its boot from others'")
    spans = sorted((b.started_s, b.started_s + float(b.samples_s.sum()) * b.inferences_per_sample) for b in run.blocks)

    assert len(spans) == 3 * 2 * 4
    assert all(before[1] <= after[0] for before, after in itertools.pairwise(spans))
    assert devices.machine_of("one") == devices.machine_of("two") == devices.machine_of("local")


def two_controllers(tmp_path, fake_study, database: str) -> list[str]:
    """Two runs of one study at the same time, each from a folder of its own, in one database; their ids."""
    found: list[str] = []
    errors: list[BaseException] = []

    def control(number: int) -> None:
        study = fake_study(data=None, backends=many(2), targets=("shared",), effort={**ONE, "rounds": 5})
        try:
            found.append(execute(study, out=tmp_path / f"controller{number}", database=database, machines=itself))
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=control, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    return found


@pytest.mark.process
def test_two_controllers_take_turns_on_a_device(tmp_path, device, fake_study, monkeypatch):
    """Whatever their folders: the lease is in the database that they share."""
    monkeypatch.setattr(queues, "_POLL_S", 0.05)
    shared, database = device("shared"), f"sqlite:///{tmp_path / 'team.db'}"
    ids = two_controllers(tmp_path, fake_study, database)
    runs = [read(tmp_path, run_id, database) for run_id in ids]

    for run in runs:
        assert_accounted_for(run)
    assert_one_at_a_time(*runs)
    store = open_store(database)
    (state,) = store.leases()
    store.close()
    assert (state.device, state.attempt, state.left_s, state.refused) == ("shared", 1, None, 0)
    assert_nothing_left(shared)


@pytest.mark.process
def test_a_run_whose_lease_is_taken_queues_up_again(tmp_path, device, fake_study, monkeypatch):
    """What it brings after that is refused and counted; the same blocks are measured again once the other is done."""
    monkeypatch.setattr(queues, "_POLL_S", 0.05)
    device("one")
    clock = SimpleNamespace(ahead_s=0.0)
    monkeypatch.setattr(
        "profiler.run.open_store", lambda place: open_store(place, clock=lambda: time.time() + clock.ahead_s)
    )
    other: list[Lease] = []

    class Thief(Acts):
        def note(self, text: str) -> None:
            super().note(text)
            if "waiting for its turn" in text:
                store = open_store(tmp_path)
                store.release(other[0])
                store.close()

    def steal() -> None:
        # The controller slept for two minutes, and somebody else came.
        clock.ahead_s = 120.0
        store = open_store(tmp_path, clock=lambda: time.time() + clock.ahead_s)
        lease = store.acquire("one", run_id="other", owner=STRANGER)
        store.close()
        assert isinstance(lease, Lease)
        other.append(lease)

    class Steals(Thief):
        def step(self, text: str = "") -> None:
            # With one device, steps come as they are.
            super().step(f"one {text}")

    heard = Steals(one=(6, steal))
    study = fake_study(data=None, backends=many(2), targets=("one",), effort={**ONE, "rounds": 5})
    run = read(tmp_path, execute(study, out=tmp_path, progress=heard, machines=itself))

    assert [lease.attempt for lease in other] == [1]
    assert any("does not hold any more" in note for note in heard.notes)
    assert any("'one' is measuring run other for someone@elsewhere" in note for note in heard.notes)
    assert run.failures == ()
    assert_accounted_for(run)
    assert {b.attempt for b in run.blocks} == {0, 1}
    store = open_store(tmp_path)
    (state,) = store.leases()
    store.close()
    assert (state.attempt, state.refused) == (2, 1)


# Queues, without processes ---------------------------------------------------------------------------------------------


@pytest.fixture
def job(tmp_path, fake_study):
    """A job with a real database, whose work is a function of the test."""
    store = open_store(tmp_path)
    from profiler.environment import describe

    study = fake_study()
    run_id = store.create_run(study, describe(), version="0")
    yield Job(run_id, study, store, None, {}, None, tmp_path, Silent(), Budget())  # type: ignore[arg-type]
    store.close()


def test_a_device_has_its_own_power_mode_again_before_another_may_have_it(job):
    """Restored under the lease, also after an error; a mode that stays changed is told and keeps nobody from going on."""

    class Restored:
        def __init__(self, answer: Exception | None) -> None:
            self.answer, self.while_held = answer, []

        def restore(self, name: str) -> None:
            self.while_held.append((name, [one.device for one in job.store.leases() if one.left_s is not None]))
            if self.answer is not None:
                raise self.answer

    def work(mine) -> None:
        raise LinkLost("gone.")

    for answer in (None, TargetError("no answer.")):
        modes, heard = Restored(answer), Acts()
        with Queues(Job(**{**job.__dict__, "modes": modes, "progress": heard}), {}) as fleet:
            with pytest.raises(LinkLost):
                fleet.one("a", work)
            fleet.one("a", lambda mine: None)
        assert modes.while_held == [("a", ["a"])] * 2
        assert len([note for note in heard.notes if "power mode" in note]) == (0 if answer is None else 2)


def test_different_machines_are_worked_on_at_once(job):
    """Each work waits for all others: one after the other, none would ever end."""
    meet = threading.Barrier(3)
    done = []

    def work(mine) -> None:
        meet.wait(60)
        done.append(mine.device)

    with Queues(job, {name: name for name in "abc"}) as fleet:
        fleet.all(tuple("abc"), work, title="3 devices", stages=1)
    assert sorted(done) == ["a", "b", "c"]


def test_this_machine_is_worked_on_alone_and_last(job):
    """And so is what runs on it under another name; the lanes of other machines are in order inside."""
    working, events, lock = set(), [], threading.Lock()

    def work(mine) -> None:
        with lock:
            working.add(mine.device)
            events.append((mine.device, frozenset(working)))
        time.sleep(0.01)
        with lock:
            working.discard(mine.device)

    here = devices.machine_of("local") or "here"
    names = ("local", "a", "box", "b", "twin")
    with Queues(job, {"local": here, "box": here, "a": "m1", "twin": "m1", "b": None}) as fleet:
        fleet.all(names, work, title="", stages=1)
    order = [name for name, _ in events]

    assert order[-2:] == ["local", "box"]
    assert [sorted(beside) for name, beside in events if name in ("local", "box")] == [["local"], ["box"]]
    assert all(not {"a", "twin"} <= beside for _, beside in events)
    assert order.index("a") < order.index("twin")
    assert sorted(order) == sorted(names)


@pytest.mark.parametrize("error", [LinkLost("gone."), TargetError("no worker."), BudgetError("no time.")])
def test_what_concerns_a_device_ends_its_queue(job, error):
    """With its reason in the database; the others are done."""
    done = []

    def work(mine) -> None:
        if mine.device == "b":
            raise error
        done.append(mine.device)

    with Queues(job, {}) as fleet, pytest.raises(DevicesLeft, match=rf"2 of 3 .* b: {str(error)[:-1]}"):
        fleet.all(tuple("abc"), work, title="", stages=1)
    found = {state.device: (state.status, state.reason) for state in job.store.queues(job.run_id)}

    assert sorted(done) == ["a", "c"]
    assert found["b"] == ("lost" if isinstance(error, LinkLost) else "failed", str(error))
    assert found["a"] == found["c"] == ("done", None)
    assert all(state.left_s is None for state in job.store.leases())


@pytest.mark.parametrize("error", [StoreError("disk full"), RuntimeError("a bug"), KeyboardInterrupt()])
def test_what_concerns_the_run_ends_all_queues(job, error):
    """Others stop at their next step, also those that sleep between two tries."""
    begun = threading.Barrier(2)
    ended = []

    def work(mine) -> None:
        begun.wait(60)
        if mine.device == "a":
            raise error
        try:
            mine.stop.sleep(600)
        except Stopped:
            ended.append(mine.device)
            raise

    with Queues(job, {}) as fleet, pytest.raises(type(error)):
        fleet.all(("a", "b"), work, title="", stages=1)
    assert ended == ["b"]
    assert all(state.left_s is None for state in job.store.leases())


def test_one_device_alone_raises_what_happened(job):
    """Nothing is wrapped where nothing else was measured."""

    def work(mine) -> None:
        raise LinkLost("gone.")

    with Queues(job, {}) as fleet, pytest.raises(LinkLost, match=r"gone\."):
        fleet.all(("a",), work, title="", stages=1)


def test_no_more_lanes_than_were_allowed(job):
    """Open files are limited; all devices get their turn."""
    count, most, lock, done = 0, 0, threading.Lock(), []

    def work(mine) -> None:
        nonlocal count, most
        with lock:
            count += 1
            most = max(most, count)
        time.sleep(0.005)
        with lock:
            count -= 1
            done.append(mine.device)

    names = tuple(f"d{number}" for number in range(12))
    with Queues(job, {}, at_once=3) as fleet:
        fleet.all(names, work, title="", stages=1)
    assert most <= 3
    assert sorted(done) == sorted(names)


def test_a_budget_is_shared_by_what_comes_one_after_the_other(job):
    """Devices beside each other have the whole time, those of one machine their part, and this machine its own."""
    clock = SimpleNamespace(now=0.0)
    budget = Budget(120.0, clock=lambda: clock.now, began=0.0)
    job = Job(**{**job.__dict__, "budget": budget})
    left = {}

    def work(mine) -> None:
        left[mine.device] = mine.budget.left_s

    with Queues(job, {"a": "m", "b": "m", "c": "n"}, at_once=1) as fleet:
        fleet.all(("a", "b", "c", "local"), work, title="", stages=1)

    assert left == {"a": 40.0, "b": 60.0, "c": 60.0, "local": 120.0}
    assert part_of(Budget(None), 4).seconds is None


def test_a_queue_waits_for_its_turn_no_longer_than_the_budget(job, monkeypatch):
    """Who has the device is told; the wait ends with the budget."""
    now = iter([0.0, 0.0, 50.0, 50.0, 50.0, 50.0])
    heard = Acts()
    budget = Budget(10.0, clock=lambda: next(now, 50.0), began=0.0)
    job = Job(**{**job.__dict__, "budget": budget, "progress": heard})
    monkeypatch.setattr(queues, "_POLL_S", 0.0)
    job.store.acquire("a", run_id="theirs", owner=STRANGER)

    with Queues(job, {}) as fleet, pytest.raises(BudgetError):
        fleet.all(("a",), lambda mine: pytest.fail("it is not our turn"), title="", stages=1)
    assert heard.notes == ["'a' is measuring run theirs for someone@elsewhere, process 1: waiting for its turn."]


# Parts -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "name"), [("jetson", "jetson"), ("jetson{power=15W}", "jetson"), ("local{cpus=1,memory=512MB}", "local")]
)
def test_conditions_are_no_device_of_their_own(text, name):
    """One queue for a board in all its power modes."""
    assert device_of(text) == name


def test_this_machines_lease_is_not_that_of_another_controller():
    """Everybody's own machine is called local."""
    assert devices.lease_name("jetson") == "jetson"
    assert devices.lease_name("local").startswith("local@")


@pytest.mark.process
@pytest.mark.parametrize(
    "says", ["print('x' * 10**6)", "print('not a boot id')", "import time; time.sleep(600)", "raise SystemExit(3)"]
)
def test_a_device_that_tells_no_boot_is_a_machine_of_its_own(tmp_path, monkeypatch, says):
    """Whatever it says instead, and if it says nothing for ever."""
    monkeypatch.setenv("EDGEPROF_TARGETS", str(tmp_path / "targets.toml"))
    monkeypatch.setattr(devices, "_ASK_S", 1.0)
    config.save(config.TargetSpec("odd", (sys.executable, "-c", says)))

    assert devices.machine_of("odd") is None


def test_the_steps_of_all_devices_add_up():
    """However many stages a device turns out to have, and however far it came."""
    heard = Acts()
    together = Together(heard)
    together.begin("3 devices", 3, 2)
    for device, stages in (("a", [3, 7]), ("b", [1, 10, 5]), ("c", [400])):
        part = together.of(device, 2)
        for steps in stages:
            part.stage("", steps)
            for _ in range(steps):
                part.step("case")
        part.note("hello")
        part.finish()

    assert heard.stages == [("3 devices", 600)]
    assert heard.steps == {"a": 200, "b": 200, "c": 200}
    assert heard.notes == ["a: hello", "b: hello", "c: hello"]


class Renewals:
    """A store that answers renewals as it is told."""

    def __init__(self, clock) -> None:
        self.clock, self.count, self.answer = clock, 0, None

    def renew(self, lease: Lease) -> None:
        self.count += 1
        if self.answer is not None:
            raise self.answer
        lease.renewed_s = self.clock.now


@pytest.fixture
def kept():
    clock = SimpleNamespace(now=0.0)
    store = Renewals(clock)
    keeper = Keeper(store, clock=lambda: clock.now)  # type: ignore[arg-type]
    lease, lost = Lease("a", "id", 0, 90.0, 0.0), []
    # The thread is not what is tested here.
    keeper._held[lease.id] = lease, lambda: lost.append(lease.id)
    return keeper, store, clock, lease, lost


def test_a_lease_is_renewed_when_no_result_did_it(kept):
    """A third of its time after the last sign of life; results count as one."""
    keeper, store, clock, lease, lost = kept

    assert (keeper.look(), store.count) == (30.0, 0)
    clock.now = lease.renewed_s = 25.0
    clock.now = 30.0
    assert (keeper.look(), store.count) == (25.0, 0)
    clock.now = 55.0
    keeper.look()
    assert (store.count, lease.renewed_s, lost) == (1, 55.0, [])


def test_who_loses_a_lease_stops_at_once(kept):
    """Its workers are ended, and it is renewed no more."""
    keeper, store, clock, lease, lost = kept
    store.answer = LeaseLost("taken")
    clock.now = 40.0

    assert keeper.look() == 3600.0
    assert (lost, lease.gone.is_set()) == (["id"], True)


def test_who_cannot_reach_the_database_stops_before_the_lease_ends(kept):
    """Tried again until then: whoever takes the device over must find it idle."""
    keeper, store, clock, lease, lost = kept
    store.answer = StoreError("no connection")
    for clock.now in (31.0, 40.0, 71.0):
        assert 0 < keeper.look() <= 30.0
        assert lost == []
    clock.now = 73.0
    keeper.look()
    assert lost == ["id"]
    assert clock.now < lease.ttl_s


def test_status_tells_what_each_device_does(tmp_path, fake_study):
    """Idle, measuring with the newest case, lost with the reason, waiting for another run; how many cases are done."""
    from profiler.environment import describe
    from profiler.records import BlockRecord, FailureRecord

    study = fake_study(targets=("a", "b{power=15W}", "c", "d"), backends=many(2), effort={**ONE, "rounds": 1})
    cases = [Case("fp32", backend, target, 1, 1) for target in study.targets for backend in study.backends]
    store = open_store(tmp_path)
    run_id = store.create_run(study, describe(), version="0")
    store.set_plan(run_id, {"cases": [vars(case) for case in cases]}, ())
    lease = store.acquire("a", run_id=run_id)
    assert isinstance(lease, Lease)
    store.set_queue(run_id, "a", "measuring")
    block = BlockRecord(cases[0].key, 0, 0, 0, 0, 0, 1.0, np.ones(3), 0, 1, 1, 0.1, 0.1)
    store.under(lease).add(run_id, block)
    store.set_queue(run_id, "b", "lost", "the connection was lost")
    store.add(run_id, FailureRecord(cases[2].quality_key, "quality", "crash", "it crashed"))
    store.acquire("c", run_id="other", owner=STRANGER)
    found = status.of_run(store, run_id)

    assert [(one.device, one.state, one.reason) for one in found] == [
        ("a", f"measuring {cases[0].key}", None),
        ("b", "lost", "the connection was lost"),
        ("c", "waiting", "run other of someone@elsewhere, process 1 has it"),
        ("d", "idle", None),
    ]
    assert [(one.cases, one.measured, one.failed) for one in found] == [(2, 1, 0), (2, 0, 1), (2, 0, 0), (2, 0, 0)]
    a, c = store.leases()
    assert status.words_of(a).startswith(f"measuring run {run_id} for ")
    assert status.words_of(c) == "measuring run other for someone@elsewhere, process 1"
    store.release(lease)
    assert status.words_of(store.leases()[0]) == "idle"
    assert status.of_run(store, run_id)[0].reason == "its controller ended while it was measured"
    store.close()
