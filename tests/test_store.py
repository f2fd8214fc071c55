"""The run database keeps what it was given, once, and says in words when it cannot."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
import threading
from dataclasses import fields, replace
from datetime import datetime, timezone
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from backends.base import SessionFacts
from profiler import store as store_module
from profiler.environment import describe
from profiler.errors import StoreError
from profiler.records import (
    ArtifactRecord,
    BlockRecord,
    EnergyRecord,
    FailureRecord,
    LoadRecord,
    ProcessRecord,
    QualityRecord,
    SelftestRecord,
    WarmupRecord,
)
from profiler.store import DATABASE_NAME, open_store
from profiler.study import make_study

RNG = np.random.default_rng(0)
FACTS = SessionFacts("ort", "1.2", "CPUExecutionProvider", 2, {"f32": 3, "i8": 1}, None, {"graph": "x"})
RECORDS = {
    "artifact": ArtifactRecord(
        "int8-static{per_channel=true}", "a" * 64, 10, None, True,
        {"ops": 3, "share": 0.5, "opset": "17", "made": True, "none": None}, ("a note",), "fp32", 0.25,
    ),
    "process": ProcessRecord(
        "fp32@ort/b1/t1", 0, 1, 2, 4711, 0.1, 0.2, 0.3, None, 123, FACTS,
        WarmupRecord(RNG.random(9), 4, "warmup", None), 0.001, ("n",),
    ),
    "process without warm-up": ProcessRecord(
        "graph@ort/b1/t1", 0, 0, 0, 1, 0.1, 0.2, 0.3, 5, None, replace(FACTS, precision=None, precision_reason="why")
    ),
    "block": BlockRecord("fp32@ort/b1/t1", 0, 1, 2, 3, 4, 5.5, RNG.random(7), 1, 2, 8, 0.5, 0.6, {"steal_share": 0.0}),
    "labelled block": BlockRecord(
        "graph@ort/b1/t1", 0, 1, 2, 3, 4, 5.5, RNG.random(8), 1, 2, 8, 0.5, 0.6, {"steal_share": 0.0},
        RNG.random(4), RNG.random(4), None, 2,
    ),
    "energy": EnergyRecord(
        "fp32@ort/b1/t1", "rapl", 3, {"package-0": 1.5, "dram": 0.2}, ("package-0", "dram"), "packages and DRAM", "counter", 99,
        8, 5.0, 1.7e9, 12, ("n",),
    ),
    "load": LoadRecord(
        "fp32@ort/b1/t1", "server{workers=2}", 4, "search", 500.0, 7, RNG.random(3), RNG.random(3), RNG.random(3),
        np.array([0.1, 0.2, np.nan]), np.array([1, 1, 2]), "diverged", 0.5, 0.6, {"steal_share": 0.0},
    ),
    "quality": QualityRecord(
        "fp32@ort/b1", "top1", RNG.random((5, 2)), RNG.integers(-(2**63), 9, 5), RNG.random(5), "d" * 64, 0.5
    ),
    "quality without classes": QualityRecord("graph@ort/b1", "rmse", RNG.random(5), None, RNG.random(5), "d" * 64, 0.5, ("n",)),
    "failure": FailureRecord("graph@ov/b1/t1", "load", "crash", "it crashed\nbadly", 2, "last\nwords · µ"),
    "failure of a plan": FailureRecord("graph", "variant", "unsupported", "no"),
}  # fmt: skip


def same(one, two) -> None:
    """Equal field by field, arrays by dtype, shape and bytes."""
    assert type(one) is type(two)
    for field in fields(one):
        mine, theirs = getattr(one, field.name), getattr(two, field.name)
        if isinstance(mine, np.ndarray):
            assert (mine.dtype, mine.shape, mine.tobytes()) == (theirs.dtype, theirs.shape, theirs.tobytes())
        elif isinstance(mine, WarmupRecord):
            same(mine, theirs)
        else:
            assert mine == theirs


@pytest.fixture
def opened(tmp_path):
    store = open_store(tmp_path / "out")
    yield store
    store.close()


@pytest.fixture
def run_id(opened):
    return opened.create_run(make_study(model="m.onnx"), describe(), version="0.1")


@pytest.mark.parametrize("record", RECORDS.values(), ids=RECORDS)
def test_every_kind_of_record_comes_back(opened, run_id, record):
    """Every field, every bit of every array, absent ones as None."""
    assert opened.add(run_id, record)
    (back,) = opened.records(run_id, type(record))

    same(record, back)


def test_a_run_comes_back_whole(tmp_path):
    """Study, environment, plan, notes, status and records, from a database opened anew."""
    study, environment = make_study(model="m.onnx", variants=("graph",), constraints={"max_drop": 0.01}), describe()
    store = open_store(tmp_path)
    run_id = store.create_run(study, environment, version="9.9")
    store.set_plan(run_id, {"cases": [{"variant": "fp32"}], "data_rows": 5}, ["a note"])
    store.set_status(run_id, "finished")
    for record in RECORDS.values():
        store.add(run_id, record)
    store.close()
    store = open_store(tmp_path, create=False)
    run = store.run(store.resolve("latest"))
    store.close()

    assert (run_id, "finished", "9.9", study, environment) == (
        run.id,
        run.status,
        run.edgeprof_version,
        run.study,
        run.environment,
    )
    assert (run.plan, run.notes) == ({"cases": [{"variant": "fp32"}], "data_rows": 5}, ("a note",))
    assert tuple(map(len, (run.artifacts, run.processes, run.blocks, run.qualities, run.failures))) == (1, 2, 2, 2, 2)
    assert (len(run.energies), len(run.loads)) == (1, 1)


@pytest.mark.parametrize("record", RECORDS.values(), ids=RECORDS)
def test_a_second_record_of_the_same_key_is_refused_and_the_first_stands(opened, run_id, record):
    """A resumed run cannot count twice."""
    names = ("seconds", "message", "load_s", "cpu_s", "wall_s")
    name = next(name for name in names if hasattr(record, name))
    numbers = {name: "other" if name == "message" else 99.0}
    assert opened.add(run_id, record)

    assert not opened.add(run_id, replace(record, **numbers))
    (back,) = opened.records(run_id, type(record))
    same(record, back)


def test_a_block_measured_in_another_attempt_is_still_the_same_block(opened, run_id):
    """The attempt is not part of a block's key: what was measured is not measured again."""
    assert opened.add(run_id, RECORDS["block"])

    assert not opened.add(run_id, replace(RECORDS["block"], attempt=7))
    assert {("fp32@ort/b1/t1", 0, 2, 3)} == opened.done_blocks(run_id)


def test_a_record_of_an_unknown_run_is_an_error_and_not_a_duplicate(opened, run_id):
    """False means stored before; a record that was stored nowhere is told."""
    with pytest.raises(StoreError, match="refuses"):
        opened.add("20000101-000000-0000", RECORDS["block"])


def test_runs_do_not_mix(opened, run_id):
    """The same keys in another run are other records."""
    other = opened.create_run(make_study(model="n.onnx"), describe(), version="0.1")
    opened.add(run_id, RECORDS["block"])

    assert opened.add(other, RECORDS["block"])
    assert (len(opened.records(run_id, BlockRecord)), len(opened.records(other, BlockRecord))) == (1, 1)


def test_the_latest_run_is_the_one_begun_last(opened):
    """Also among runs of one second, whose random ids say nothing."""
    ids = [opened.create_run(make_study(model="m"), describe(), version="0") for _ in range(12)]

    assert ids[-1] == opened.resolve("latest")
    assert ids[::-1] == [summary.id for summary in opened.runs()]


def test_what_is_resumed_is_the_latest_that_did_not_end(opened):
    """A finished run is not opened again while another one waits; where all ended, the newest is meant."""
    ids = [opened.create_run(make_study(model="m"), describe(), version="0") for _ in range(3)]
    opened.set_status(ids[0], "interrupted")
    for run_id in ids[1:]:
        opened.set_status(run_id, "finished")
    assert opened.resolve("latest", search=False, unfinished=True) == ids[0]
    assert opened.resolve("latest", search=False) == ids[-1]
    opened.set_status(ids[0], "finished")
    assert opened.resolve("latest", search=False, unfinished=True) == ids[-1]


def test_two_runs_of_one_second_never_share_an_id(opened, monkeypatch):
    """However the digits fall."""
    drawn = iter(["aaaa", "aaaa", "aaaa", "bbbb"])
    monkeypatch.setattr("profiler.store.secrets.token_hex", lambda _: next(drawn, "cccc"))
    monkeypatch.setattr(
        "profiler.store.datetime", SimpleNamespace(now=lambda _: datetime(2026, 1, 1, tzinfo=timezone.utc))
    )
    ids = [opened.create_run(make_study(model="m"), describe(), version="0") for _ in range(2)]

    assert ids == ["20260101-000000-aaaa", "20260101-000000-bbbb"]


def test_a_run_is_found_by_the_beginning_of_its_id(opened, run_id):
    """When only one fits; otherwise the message lists the newest."""
    assert run_id == opened.resolve(run_id[:-1])
    with pytest.raises(StoreError, match="no run 'zzz'"):
        opened.resolve("zzz")
    opened.create_run(make_study(model="m"), describe(), version="0")
    with pytest.raises(StoreError, match="fits 2 runs"):
        opened.resolve("2")


def test_an_empty_database_says_what_makes_a_run(opened):
    """`latest` of nothing."""
    with pytest.raises(StoreError, match="edgeprof profile"):
        opened.resolve("latest")


def test_attempts_are_counted_by_replicate_and_group(opened, run_id):
    """-1 before the first."""
    assert opened.last_attempt(run_id, 0, 2) == -1
    opened.add(run_id, RECORDS["process"])

    assert tuple(opened.last_attempt(run_id, *where) for where in ((0, 2), (0, 1), (1, 2))) == (1, -1, -1)


def test_a_discarded_run_leaves_nothing(opened, run_id):
    """Neither itself nor its records, and other runs keep theirs."""
    other = opened.create_run(make_study(model="m"), describe(), version="0")
    for record in RECORDS.values():
        opened.add(run_id, record)
        opened.add(other, record)
    opened.discard(run_id)

    assert [other] == [summary.id for summary in opened.runs()]
    assert opened.records(run_id, BlockRecord) == ()
    assert len(opened.records(other, BlockRecord)) == 2


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_bytes(b"this is no database, it only has the name" * 50),
        lambda path: path.write_bytes(path.read_bytes()[:5000]),
        lambda path: path.write_bytes(path.read_bytes()[:4096] + os.urandom(len(path.read_bytes()) - 4096)),
        lambda path: (path.unlink(), path.mkdir()),
    ],
    ids=["text", "cut", "overwritten", "folder"],
)
def test_a_damaged_database_is_told(tmp_path, damage):
    """In words that name the file, whatever happened to it."""
    store = open_store(tmp_path)
    run_id = store.create_run(make_study(model="m"), describe(), version="0")
    store.add(run_id, RECORDS["block"])
    store.close()
    damage(tmp_path / DATABASE_NAME)

    with pytest.raises(StoreError, match=DATABASE_NAME):  # noqa: PT012 (whichever of the two notices)
        reopened = open_store(tmp_path)
        try:
            reopened.run(reopened.resolve("latest"))
        finally:
            reopened.close()


def altered(folder, statement: str, *values: object) -> None:
    connection = sqlite3.connect(folder / DATABASE_NAME)
    with connection:
        connection.execute(statement, values)
    connection.close()


@pytest.mark.parametrize(
    ("statement", "value"),
    [
        ("update blocks set record = ?", "{not json"),
        ("update blocks set record = ?", "[]"),
        ("update blocks set record = ?", json.dumps({"case": "only this"})),
        ("update blocks set arrays = ?", b"not zlib"),
        ("update blocks set arrays = ?", None),
        ("update processes set record = ?", json.dumps({"case": 3, "warmup": 5})),
        ("update runs set study = ?", "{"),
        ("update runs set study = ?", json.dumps({"model": "m", "batches": [0]})),
        ("update runs set study = ?", json.dumps([1])),
        ("update runs set environment = ?", "{}"),
        ("update runs set plan = ?", "nonsense"),
        ("update runs set notes = ?", "5"),
    ],
)
def test_a_damaged_record_is_told(tmp_path, statement, value):
    """A record that does not check is an error of the store, never a half-read number."""
    store = open_store(tmp_path)
    run_id = store.create_run(make_study(model="m"), describe(), version="0")
    store.add(run_id, RECORDS["block"])
    store.add(run_id, RECORDS["process"])
    store.close()
    altered(tmp_path, statement, value)
    store = open_store(tmp_path)

    with pytest.raises(StoreError, match="damaged"):
        store.run(run_id)
    store.close()


def test_a_database_of_a_newer_edgeprof_is_left_alone(tmp_path):
    """It names both versions and the upgrade."""
    open_store(tmp_path).close()
    altered(tmp_path, "update edgeprof_schema set version = ?", 99)

    with pytest.raises(StoreError, match=r"schema 99, this one knows .*upgrade"):
        open_store(tmp_path)


def test_an_older_database_is_migrated_in_one_transaction(tmp_path, monkeypatch):
    """Each step runs once, in order, and what was stored stays."""
    store = open_store(tmp_path)
    run_id = store.create_run(make_study(model="m"), describe(), version="0")
    store.add(run_id, RECORDS["block"])
    store.close()
    calls = []

    def step(number):
        def migrate(connection):
            calls.append(number)
            connection.exec_driver_sql(f"create table added_{number} (x integer)")

        return migrate

    now = store_module.SCHEMA_VERSION
    monkeypatch.setattr(store_module, "SCHEMA_VERSION", now + 2)
    monkeypatch.setattr(store_module, "_MIGRATIONS", {now: step(1), now + 1: step(2)})
    for _ in range(2):
        store = open_store(tmp_path)
        assert len(store.records(run_id, BlockRecord)) == 1
        store.close()
    connection = sqlite3.connect(tmp_path / DATABASE_NAME)

    assert calls == [1, 2]
    assert connection.execute("select version from edgeprof_schema").fetchone()[0] == now + 2
    connection.close()


def test_a_database_of_the_first_version_is_read_and_gets_the_new_tables(tmp_path):
    """Runs made before labels, energy and load existed stay what they were."""
    store = open_store(tmp_path)
    run_id = store.create_run(make_study(model="m"), describe(), version="0")
    store.add(run_id, RECORDS["block"])
    store.close()
    connection = sqlite3.connect(tmp_path / DATABASE_NAME)
    old = json.loads(connection.execute("select record from blocks").fetchone()[0])
    for name in ("window_s", "window_cpu_s", "window_waited_s", "label_every"):
        old.pop(name, None)
    connection.execute("update blocks set record = ?", (json.dumps(old),))
    for table in ("energies", "loads", "selftests"):
        connection.execute(f"drop table {table}")
    connection.execute("update edgeprof_schema set version = 1")
    connection.commit()
    connection.close()

    store = open_store(tmp_path)
    run = store.run(run_id)

    assert run.blocks[0].window_s is None
    assert (run.energies, run.loads, store.last_selftest("here")) == ((), (), None)
    store.close()


def test_the_newest_self_test_of_a_machine_is_found(tmp_path):
    """Others' and older ones do not count."""
    store = open_store(tmp_path)
    for machine, day, passed in (
        ("here", "2026-01-02", True),
        ("here", "2026-01-01", False),
        ("there", "2026-01-03", False),
    ):
        store.add_selftest(SelftestRecord(machine, day, passed, {"aa_ratio": 1.001, "energy_j": None}, ("note",)))

    assert store.last_selftest("here") == SelftestRecord(
        "here", "2026-01-02", True, {"aa_ratio": 1.001, "energy_j": None}, ("note",)
    )
    assert store.last_selftest("nowhere") is None
    store.close()


def test_a_migration_that_fails_changes_nothing(tmp_path, monkeypatch):
    """The tables that its first half made are gone again, so that it can be tried again."""
    open_store(tmp_path).close()

    def half(connection):
        connection.exec_driver_sql("create table half (x integer)")
        connection.exec_driver_sql("insert into nowhere values (1)")

    now = store_module.SCHEMA_VERSION
    monkeypatch.setattr(store_module, "SCHEMA_VERSION", now + 1)
    monkeypatch.setattr(store_module, "_MIGRATIONS", {now: half})
    with pytest.raises(StoreError, match="nowhere"):
        open_store(tmp_path)
    connection = sqlite3.connect(tmp_path / DATABASE_NAME)

    assert connection.execute("select version from edgeprof_schema").fetchone()[0] == now
    assert connection.execute("select name from sqlite_master where name = 'half'").fetchall() == []
    connection.close()


def test_a_schema_is_made_whole_or_not_at_all(tmp_path, monkeypatch):
    """Stopped between two tables, the next start begins anew instead of finding half a schema."""
    real = store_module._prepare

    class StoppedError(Exception):
        pass

    def stopped(connection, place):
        real(connection, place)
        raise StoppedError

    monkeypatch.setattr(store_module, "_prepare", stopped)
    with pytest.raises(StoppedError):
        open_store(tmp_path)
    connection = sqlite3.connect(tmp_path / DATABASE_NAME)
    tables = connection.execute("select name from sqlite_master").fetchall()
    connection.close()
    monkeypatch.setattr(store_module, "_prepare", real)

    assert tables == []
    open_store(tmp_path).close()


def test_a_database_address_works_in_place_of_a_folder(tmp_path):
    """Any SQLAlchemy URL: another SQLite file, or one in memory."""
    for address in (f"sqlite:///{tmp_path / 'other.db'}", "sqlite://"):
        store = open_store(address)
        run_id = store.create_run(make_study(model="m"), describe(), version="0")
        store.add(run_id, RECORDS["block"])
        same(RECORDS["block"], store.records(run_id, BlockRecord)[0])
        store.close()

    assert (tmp_path / "other.db").is_file()


@pytest.mark.parametrize(
    "address", ["nosuch://x", "sqlite:////no/such/folder/x.db", "postgresql+nodriver://u:secret@h/d", "://"]
)
def test_a_database_address_that_cannot_be_used_is_told_without_its_password(address):
    """Unknown dialect, missing folder, missing driver."""
    with pytest.raises(StoreError) as caught:
        open_store(address)

    assert "secret" not in str(caught.value)


def test_a_folder_without_a_database_names_the_option(tmp_path):
    """Reading never makes a database."""
    with pytest.raises(StoreError, match="--out"):
        open_store(tmp_path, create=False)

    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_made_names_the_option(tmp_path):
    """The way is blocked by a file."""
    (tmp_path / "file").write_text("")

    with pytest.raises(StoreError, match="--out"):
        open_store(tmp_path / "file" / "runs")


def mounted(folder, *options: str) -> None:
    if not sys.platform.startswith("linux") or os.geteuid() != 0:
        pytest.skip("mounting a small file system needs root on Linux")
    folder.mkdir(exist_ok=True)
    done = subprocess.run(["mount", *options, str(folder)], capture_output=True, check=False)
    if done.returncode:
        pytest.skip(f"mounting is not allowed here: {done.stderr.decode().strip()}")


def test_a_full_disk_is_told_and_what_was_stored_is_kept(tmp_path):
    """The message says how to go on; after space was made, everything up to the last record is there."""
    small = tmp_path / "small"
    mounted(small, "-t", "tmpfs", "-o", "size=1m", "tmpfs")
    try:
        store = open_store(small)
        run_id = store.create_run(make_study(model="m"), describe(), version="0")
        stored = 0
        with pytest.raises(StoreError, match=r"full.*--resume|No space"):  # noqa: PT012 (which record fills the disk is not known)
            for index in range(500):
                samples = np.random.default_rng(index).random(2000)
                store.add(run_id, replace(RECORDS["block"], round=index, samples_s=samples))
                stored += 1
        store.close()
        subprocess.run(["mount", "-o", "remount,size=4m", str(small)], check=True)
        store = open_store(small)
        blocks = store.records(run_id, BlockRecord)
        assert store.add(run_id, RECORDS["failure"])
        store.close()
    finally:
        subprocess.run(["umount", "-l", str(small)], check=False)

    assert 0 < stored == len(blocks)
    np.testing.assert_array_equal(np.random.default_rng(stored - 1).random(2000), blocks[-1].samples_s)


def test_a_read_only_folder_is_told(tmp_path):
    """Nothing can be stored there, and the message names the option that helps."""
    folder = tmp_path / "ro"
    mounted(folder, "-t", "tmpfs", "-o", "size=1m,ro", "tmpfs")
    try:
        with pytest.raises(StoreError, match="--out"):
            open_store(folder)
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=False)


def test_two_writers_wait_for_each_other(tmp_path):
    """Readers and writers of one database at once lose nothing."""
    first = open_store(tmp_path)
    run_id = first.create_run(make_study(model="m"), describe(), version="0")
    first.close()
    errors: list[BaseException] = []

    def write(replicate: int) -> None:
        store = open_store(tmp_path)
        try:
            for index in range(15):
                store.add(run_id, replace(RECORDS["block"], replicate=replicate, round=index))
                store.done_blocks(run_id)
        except BaseException as error:
            errors.append(error)
        finally:
            store.close()

    threads = [threading.Thread(target=write, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    store = open_store(tmp_path)

    assert errors == []
    assert len(store.done_blocks(run_id)) == 45
    store.close()


@given(case=st.text(max_size=12), message=st.text(max_size=30), tail=st.none() | st.text(max_size=30))
def test_any_text_survives(tmp_path_factory, case, message, tail):
    """Native libraries write whatever they like; quotes, zero bytes and line ends are text like any other."""
    store = open_store("sqlite://")
    run_id = store.create_run(make_study(model="m"), describe_once(), version="0")
    record = FailureRecord(case, "load", "error", message, None, tail)
    store.add(run_id, record)

    assert (record,) == store.records(run_id, FailureRecord)
    store.close()


_environment = []


def describe_once():
    if not _environment:
        _environment.append(describe())
    return _environment[0]


def test_a_folder_that_cannot_be_written_can_still_be_read(tmp_path, monkeypatch):
    """Reports are made from archives too, where SQLite could not keep its log."""
    store = open_store(tmp_path)
    run_id = store.create_run(make_study(model="m.onnx"), describe(), version="0")
    store.close()
    before = {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    monkeypatch.setattr("profiler.store.os.access", lambda path, mode: False)

    archive = open_store(tmp_path, create=False)

    assert archive.resolve("latest") == run_id
    assert archive.run(run_id).study.model == "m.onnx"
    with pytest.raises(StoreError, match="readonly"):
        archive.set_status(run_id, "finished")
    archive.close()
    assert {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == before


GOOD = RECORDS["labelled block"]


@pytest.mark.parametrize(
    "damage",
    [
        {"samples_s": np.zeros(0)}, {"samples_s": np.full(8, np.nan)}, {"samples_s": -GOOD.samples_s},
        {"samples_s": GOOD.samples_s.reshape(2, 4)}, {"discarded": 10**6}, {"label_every": 0}, {"batch": 0}, {"replicate": -1},
        {"window_cpu_s": np.ones(3)}, {"window_s": np.zeros(4)}, {"labels": {"steal_share": float("nan")}},
        {"started_s": float("nan")}, {"canary_s": np.ones(3)}, {"canary_s": np.ones(3), "canary_at": np.array([0, 4])},
        {"canary_s": np.ones(2), "canary_at": np.array([0, 10**9])},
        {"canary_s": np.array([1.0, np.nan]), "canary_at": np.array([0, 8])},
    ],
    ids=str,
)  # fmt: skip
def test_a_block_whose_parts_do_not_fit_is_damaged(opened, run_id, damage):
    """Found when it is read, and told as such, not as a bug of whatever computes with it."""
    opened.add(run_id, replace(GOOD, **damage))
    with pytest.raises(StoreError, match="BlockRecord in the run database is damaged"):
        opened.records(run_id, BlockRecord)
