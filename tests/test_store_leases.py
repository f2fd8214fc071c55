"""A result is stored under a live lease, or not at all; and on PostgreSQL as on SQLite."""

from __future__ import annotations

import getpass
import importlib.util
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import psutil
import pytest
import sqlalchemy as sa

from backends.base import SessionFacts
from profiler import leases
from profiler.environment import describe
from profiler.errors import StoreError
from profiler.leases import Lease, LeaseLost, LeaseState, Owner
from profiler.records import BlockRecord, FailureRecord, ProcessRecord, QualityRecord
from profiler.run import execute
from profiler.store import Store, open_store, shown_address
from profiler.study import Case, make_study

STRANGER = Owner("elsewhere", "someone", 1, 0.0, "another boot")
SECRET = "hunter2"
TINY = {"processes": 2, "rounds": 2, "block_s": 0.002, "block_samples": 3, "warmup_s": 0.002, "warmup_max_s": 0.01}
TINY = {**TINY, "requeue_share": 0.0}
FACTS = SessionFacts("ort", "1", "CPU", 1, None, "not told")


def block(case: str = "fp32@ort/b1/t1@a", **changes: object) -> BlockRecord:
    return replace(BlockRecord(case, 0, 0, 0, 0, 0, 1.0, np.ones(3), 0, 1, 1, 0.1, 0.1), **changes)  # type: ignore[arg-type]


# A real server ---------------------------------------------------------------------------------------------------------


def server_programs() -> Path | None:
    """Where initdb and postgres are: on the path, or where Debian and Fedora keep the versions."""
    found = shutil.which("initdb")
    places = [Path(found).resolve().parent] if found else []
    places += [*sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True), Path("/usr/pgsql/bin")]
    return next((place for place in places if (place / "initdb").exists() and (place / "postgres").exists()), None)


@pytest.fixture(scope="session")
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[], str]]:
    """`postgres()`: the address of a new database on a server that this fixture starts, on a socket in a temporary folder."""
    programs = server_programs()
    if programs is None:
        pytest.skip("no PostgreSQL server is installed here")
    if importlib.util.find_spec("psycopg") is None:
        pytest.skip("psycopg is not installed: pip install 'edgeprof[postgres]'")
    # The server refuses to be root's; sockets have short paths.
    folder = Path(tmp_path_factory.mktemp("pg"))
    user: dict[str, str] = {}
    if os.geteuid() == 0:
        user = {"user": "nobody"}
        shutil.chown(folder, "nobody")
        # pytest's own folders; with pytest-xdist there is one more of them.
        for above in folder.parents:
            if above.stat().st_uid == 0 and above.name.startswith(("pytest-", "popen-")):
                above.chmod(above.stat().st_mode | 0o011)
    data, password = folder / "data", folder / "password"
    password.write_text(SECRET)
    password.chmod(0o644)
    made = subprocess.run(
        [programs / "initdb", "-D", data, "-U", "team", "-A", "scram-sha-256", "--pwfile", password, "--no-sync"],
        capture_output=True, check=False, cwd=folder, **user,
    )  # fmt: skip
    if made.returncode:
        pytest.skip(f"initdb does not work here: {made.stderr.decode()[-300:]}")
    server = subprocess.Popen(
        [programs / "postgres", "-D", data, "-k", folder, "-c", "listen_addresses=", "-c", "fsync=off"],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=folder, **user,
    )  # fmt: skip
    base = f"postgresql+psycopg://team:{SECRET}@/{{}}?host={folder}"
    admin = sa.create_engine(base.format("postgres"), isolation_level="AUTOCOMMIT")
    try:
        until = time.monotonic() + 60
        while True:
            try:
                admin.connect().close()
                break
            except sa.exc.OperationalError:
                if time.monotonic() > until or server.poll() is not None:
                    pytest.skip("the PostgreSQL server does not start here")
                time.sleep(0.1)
        count = 0

        def fresh() -> str:
            nonlocal count
            count += 1
            with admin.connect() as connection:
                connection.exec_driver_sql(f"create database run{count}")
            return base.format(f"run{count}")

        yield fresh
    finally:
        admin.dispose()
        server.terminate()
        server.wait(30)


@pytest.fixture(params=["sqlite", "postgresql"])
def address(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The address of an empty database, of both kinds in turn."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'shared.db'}"
    return str(request.getfixturevalue("postgres")())


@pytest.fixture
def shared(address: str) -> Iterator[Store]:
    """An open store, of both kinds in turn."""
    store = open_store(address)
    yield store
    store.close()


@pytest.fixture
def run_id(shared: Store) -> str:
    return shared.create_run(make_study(model="m", targets=("a",)), describe(), version="0")


def taken(store: Store, device: str = "a", **settings: object) -> Lease:
    found = store.acquire(device, run_id=None, **settings)  # type: ignore[arg-type]
    assert isinstance(found, Lease)
    return found


# Leases ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "record",
    [
        block(),
        QualityRecord("fp32@ort/b1@a", "top1", np.ones(3), None, np.ones(3), "d" * 64, 0.5),
        FailureRecord("fp32@ort/b1/t1@a", "load", "crash", "it crashed"),
    ],
    ids=lambda record: type(record).__name__,
)
def test_what_comes_after_a_lease_was_taken_over_is_refused_and_counted(shared, run_id, record):
    """The newer owner's is stored, whatever the older one brings later."""
    old = taken(shared, ttl_s=0.0)
    time.sleep(0.01)
    new = taken(shared, owner=STRANGER)

    with pytest.raises(LeaseLost, match="'a'"):
        shared.under(old).add(run_id, record)
    assert shared.records(run_id, type(record)) == ()
    assert shared.under(new).add(run_id, record)
    with pytest.raises(LeaseLost):
        shared.under(old).add(run_id, record)
    (state,) = shared.leases()

    assert (new.attempt, state.attempt, state.refused, state.owner) == (1, 1, 2, STRANGER)
    assert len(shared.records(run_id, type(record))) == 1


def test_a_lease_that_ran_out_does_not_hold_even_if_nobody_took_it(tmp_path):
    """Who was away for so long cannot know what happened meanwhile."""
    clock = SimpleNamespace(now=1000.0)
    store = open_store(tmp_path, clock=lambda: clock.now)
    run_id = store.create_run(make_study(model="m"), describe(), version="0")
    lease = taken(store, ttl_s=90.0)
    for clock.now in (1080.0, 1160.0, 1250.0):
        # Every result moves the deadline on.
        assert store.under(lease).add(run_id, block(round=int(clock.now)))
    clock.now = 1340.1
    with pytest.raises(LeaseLost):
        store.under(lease).add(run_id, block(round=9))
    (state,) = store.leases()

    assert lease.gone.is_set()
    assert (state.left_s, state.refused, state.last_stored) == (None, 1, block().case)
    assert len(store.records(run_id, BlockRecord)) == 3
    store.close()


def test_a_device_that_somebody_has_is_not_given_away(shared, run_id):
    """Whoever asks learns who has it; it is free again when it is given back."""
    lease = taken(shared, owner=STRANGER, ttl_s=60.0)
    found = shared.acquire("a", run_id=run_id)

    assert isinstance(found, LeaseState)
    assert found.owner == STRANGER
    assert 0 < (found.left_s or 0) <= 60.0
    assert isinstance(shared.acquire("b", run_id=run_id), Lease)
    shared.release(lease)
    assert taken(shared).attempt == 1


def test_giving_back_what_is_anothers_changes_nothing(shared):
    """An old owner that wakes up and says goodbye."""
    old = taken(shared, ttl_s=0.0)
    time.sleep(0.01)
    new = taken(shared)
    shared.release(old)
    shared.renew(new)

    with pytest.raises(LeaseLost):
        shared.renew(old)


def test_a_lease_that_could_not_be_given_back_is_free_for_this_process(shared, monkeypatch):
    """The disk was full at the end: whoever goes on in the same notebook need not wait until the lease runs out."""
    lease = taken(shared)
    assert isinstance(shared.acquire("a", run_id=None), LeaseState)
    with monkeypatch.context() as patch:
        patch.setattr(leases, "release", lambda *_: (_ for _ in ()).throw(StoreError("disk full")))
        with pytest.raises(StoreError, match="disk full"):
            shared.release(lease)
    (state,) = shared.leases()

    assert (state.left_s or 0) > 0
    assert taken(shared).attempt == 1
    with pytest.raises(LeaseLost):
        shared.renew(lease)


def test_the_lease_of_a_process_that_ended_is_free_at_once(shared):
    """A killed run is resumed without waiting; the id alone is not believed, since ids are given again."""
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    owner = replace(leases.ourselves(), pid=child.pid, started_unix_s=psutil.Process(child.pid).create_time())
    assert not leases.has_ended(owner)
    assert leases.has_ended(replace(owner, started_unix_s=owner.started_unix_s - 100))
    taken(shared, owner=owner)
    assert isinstance(shared.acquire("a", run_id=None), LeaseState)
    child.kill()
    child.wait()

    assert leases.has_ended(owner)
    assert not leases.has_ended(replace(owner, seat="another boot"))
    assert taken(shared).attempt == 1


def test_two_names_of_one_machine_are_one_device(shared):
    """A board that two people added under different names."""
    first = taken(shared, "jetson", machine="boot 1")
    found = shared.acquire("orin", run_id=None, machine="boot 1")

    assert isinstance(found, LeaseState)
    assert found.device == "jetson"
    assert isinstance(shared.acquire("pi", run_id=None, machine="boot 2"), Lease)
    assert isinstance(shared.acquire("box", run_id=None), Lease)
    shared.release(first)
    assert isinstance(shared.acquire("orin", run_id=None, machine="boot 1"), Lease)


def test_of_many_that_want_a_device_at_once_one_gets_it(address):
    """Also under two names, where no row of the database is common to them."""
    open_store(address).close()
    names, start = ("jetson", "orin"), threading.Barrier(8)
    found: list[Lease | LeaseState | BaseException] = []

    def want(number: int) -> None:
        store = open_store(address)
        try:
            start.wait(60)
            found.append(store.acquire(names[number % 2], run_id=None, machine="boot", owner=STRANGER))
        except BaseException as error:
            found.append(error)
        finally:
            store.close()

    threads = [threading.Thread(target=want, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert sorted(type(one).__name__ for one in found) == ["Lease", *["LeaseState"] * 7]


def test_storing_and_taking_over_at_once_never_both_succeed(address):
    """Whichever is first: a block of the old owner is stored before the take-over, or not at all."""
    store = open_store(address)
    run_id = store.create_run(make_study(model="m"), describe(), version="0")
    lease, stored, taken_at = taken(store, ttl_s=0.3, owner=STRANGER), [], []

    def work() -> None:
        mine = open_store(address).under(lease)
        try:
            for index in range(10_000):
                # Now and then it sleeps for longer than its lease.
                time.sleep(0.6 if index == 5 else 0.0)
                mine.add(run_id, block(round=index))
                stored.append(index)
        except LeaseLost:
            mine.close()

    def take() -> None:
        other = open_store(address)
        while not isinstance(got := other.acquire("a", run_id="other"), Lease):
            time.sleep(0.002)
        taken_at.append({record.round for record in other.records(run_id, BlockRecord)})
        time.sleep(0.1)
        other.release(got)
        other.close()

    threads = [threading.Thread(target=target) for target in (work, take)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    after = {record.round for record in store.records(run_id, BlockRecord)}
    store.close()

    # The lease of the other was released later than the old owner's next result: that one must be refused all the same.
    assert taken_at == [after]
    assert after == set(stored) <= set(range(5))


def test_a_queue_reads_its_own_devices_results_only(shared):
    """Conditions belong to their device; names that end alike, or are a backend's, do not."""
    study = make_study(model="m", targets=("a",))
    run_id = shared.create_run(study, describe(), version="0")
    cases = {
        "a": ["fp32@ort/b1/t1@a", "fp32@a/b1/t1@a{power=15W}", "external{path=/b1/a}@ort{x=/b}/b1/t1@a"],
        "ba": ["fp32@ort/b1/t1@ba", "fp32@ort/b1/t1@ba{cores=little}"],
        "local@me": ["fp32@ort/b1/t1", "fp32@a/b1/t1", "fp32@a{x=1}/b1/t1", "fp32@ort/b1/t1@local{cpus=1}"],
    }
    every = [case for own in cases.values() for case in own]
    for case in every:
        shared.add(run_id, block(case))
        shared.add(run_id, ProcessRecord(case, 0, 0, 0, 1, 0.1, 0.1, 0.1, None, None, FACTS))
        shared.add(run_id, FailureRecord(case, "energy", "unavailable", "no meter"))

    assert sorted(record.case for record in shared.records(run_id, BlockRecord)) == sorted(every)
    for device, own in cases.items():
        view = shared.under(Lease(device, "id", 0, 90.0, 0.0))
        assert [record.case for record in view.records(run_id, BlockRecord)] == own
        assert [record.case for record in view.records(run_id, ProcessRecord)] == own
        assert {case for case, *_ in view.done_blocks(run_id)} == set(own)
        assert view.count(run_id) == len(own)
        assert len(view.records(run_id, FailureRecord)) == 9


def test_how_far_a_run_is_with_a_device_is_kept(shared, run_id):
    """The newest word; gone with the run."""
    shared.set_queue(run_id, "a", "measuring")
    shared.set_queue(run_id, "a", "lost", "no route")
    shared.set_queue(run_id, "b", "done")

    assert [(one.device, one.status, one.reason) for one in shared.run(run_id).queues] == [
        ("a", "lost", "no route"),
        ("b", "done", None),
    ]
    shared.discard(run_id)
    assert shared.queues(run_id) == ()


def test_an_archive_made_before_devices_had_queues_is_read(tmp_path, monkeypatch):
    """It cannot be migrated where it cannot be written."""
    store = open_store(tmp_path)
    run_id = store.create_run(make_study(model="m"), describe(), version="0")
    with store._engine.begin() as connection:
        for table in ("queues", "leases"):
            connection.exec_driver_sql(f"drop table {table}")
        connection.exec_driver_sql("update edgeprof_schema set version = 2")
    store.close()
    real = os.access
    monkeypatch.setattr("profiler.store.os.access", lambda path, mode: mode != os.W_OK and real(path, mode))
    archive = open_store(tmp_path, create=False)
    assert archive.run(run_id).queues == ()
    archive.close()
    monkeypatch.undo()

    store = open_store(tmp_path)
    assert isinstance(store.acquire("a", run_id=run_id), Lease)
    store.close()


def test_threads_share_a_store(shared, run_id):
    """More of them than the pool has connections, all writing and reading: nothing is lost, nobody is told to wait."""
    errors: list[BaseException] = []

    def work(number: int) -> None:
        try:
            view = shared.under(taken(shared, f"d{number}"))
            for index in range(5):
                view.add(run_id, block(f"fp32@ort/b1/t1@d{number}", round=index))
                assert len(view.done_blocks(run_id)) == index + 1
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(30)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert errors == []
    assert len(shared.done_blocks(run_id)) == 150


def test_a_new_database_may_be_met_by_several_at_once(address):
    """One of them makes the tables."""
    start, errors = threading.Barrier(6), []

    def meet() -> None:
        try:
            start.wait(60)
            open_store(address).close()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=meet) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []


# PostgreSQL ------------------------------------------------------------------------------------------------------------


@pytest.mark.process
def test_a_study_gives_the_same_run_on_postgresql_and_sqlite(tmp_path, postgres, fake_study):
    """The same cases, blocks, answers, failures and plan, read back by the same code."""
    failing = "fake{fail=segv,fail_at=infer,read=false}"
    study = fake_study(backends=("fake{read=false}", failing), batches=(1, 4), effort=TINY)
    runs = []
    for number, address in enumerate((postgres(), f"sqlite:///{tmp_path / 'x.db'}")):
        execute(study, out=tmp_path / str(number), database=address)
        store = open_store(address)
        runs.append(store.run(store.resolve("latest")))
        store.close()
    one, other = runs

    assert one.status == other.status == "finished"
    assert one.study == other.study
    for name in ("cases", "source_sha256", "data_sha256", "reference_artifact", "targets"):
        assert one.plan[name] == other.plan[name]
    assert {Case(**fields).key for fields in one.plan["cases"]} > {b.case for b in one.blocks} != set()
    assert places(one) == places(other)
    assert answers(one) == answers(other)
    assert sorted((f.case, f.stage, f.kind) for f in one.failures) == sorted(
        (f.case, f.stage, f.kind) for f in other.failures
    )
    assert [a.sha256 for a in one.artifacts] == [a.sha256 for a in other.artifacts]
    assert (
        [(q.device, q.status) for q in one.queues]
        == [(q.device, q.status) for q in other.queues]
        == [("local", "done")]
    )


def places(run) -> list[tuple[str, int, int, int, int]]:
    return sorted((b.case, b.replicate, b.attempt, b.group, b.round) for b in run.blocks)


def answers(run) -> dict[str, tuple[bytes, bytes]]:
    return {q.case: (q.per_sample.tobytes(), q.agreement.tobytes()) for q in run.qualities}


def test_a_server_that_is_not_there_is_told_without_the_password(tmp_path):
    """Nor the one of a server that refuses it."""
    pytest.importorskip("psycopg")
    with pytest.raises(StoreError) as caught:
        open_store(f"postgresql+psycopg://team:{SECRET}@/x?host={tmp_path}")

    assert SECRET not in str(caught.value)
    assert "team" in str(caught.value)


def test_a_wrong_password_is_not_printed(postgres):
    """The server's words say whom it refused."""
    wrong = postgres().replace(SECRET, "wr0ng-secret")
    with pytest.raises(StoreError) as caught:
        open_store(wrong)

    assert "wr0ng-secret" not in str(caught.value)
    assert "team" in str(caught.value)


def test_the_place_of_a_store_shows_no_password(postgres):
    """Every message of a store names its place."""
    store = open_store(postgres())
    with pytest.raises(StoreError) as caught:
        store.run("nosuch")
    store.close()

    assert SECRET not in store.place + str(caught.value)
    assert "postgresql" in store.place


@pytest.mark.parametrize(
    "address",
    [
        "postgresql+psycopg://team:s3cret@host:notaport/db", "postgresql+psycopg://host/db?password=s3cret",
        "postgresql+psycopg://team:s3cret@host/db?sslpassword=s3cret", "nosuch+thing://team:s3cret@host/db",
        "postgresql+psycopg://team:s3cret@[::1/db", "sqlite://team:s3cret@host/db",
    ],
)  # fmt: skip
def test_a_password_is_hidden_wherever_it_stands(address):
    """Also of addresses that cannot be read at all."""
    assert "s3cret" not in shown_address(address)
    with pytest.raises(StoreError) as caught:
        open_store(address)
    assert "s3cret" not in str(caught.value)


def test_a_missing_driver_is_told_with_the_command_that_installs_it(monkeypatch):
    """SQLAlchemy's own words name only a module."""
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(StoreError, match=r"psycopg.*pip install 'edgeprof\[postgres\]'"):
        open_store("postgresql+psycopg://team@host/db")


def test_our_own_lease_names_us():
    """Who waits for it reads the name."""
    assert str(leases.ourselves()).startswith(f"{getpass.getuser()}@")
