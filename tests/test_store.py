"""The run database keeps what it was given, once, and says in words when it cannot."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
import tempfile
import threading
import zlib
from dataclasses import fields, replace
from datetime import datetime, timezone
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from backends.base import SessionFacts
from profiler import record_codec, wire
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
from profiler.store import DATABASE_NAME, InvalidRecord, open_store
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

CASE = {"variant": "fp32", "backend": "ort", "target": "local", "batch": 1, "threads": 1}


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
    store.set_plan(run_id, {"cases": [CASE], "data_rows": 5}, ["a note"])
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
    assert (run.plan, run.notes) == ({"cases": [CASE], "data_rows": 5}, ("a note",))
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

    with pytest.raises(StoreError, match="no run ''"):
        opened.resolve("")
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


DEEP = "[" * 100_000 + "]" * 100_000
BOMB = zlib.compress(b"\0" * (64 << 20))
DAMAGES = {
    "no JSON": ("update blocks set record = ?", "{not json"),
    "a list": ("update blocks set record = ?", "[]"),
    "other fields": ("update blocks set record = ?", json.dumps({"case": "only this"})),
    "deep JSON": ("update blocks set record = ?", DEEP),
    "no UTF-8": ("update blocks set record = cast(replace(record, 'fp32', ?) as text)", b"\xff\xfe"),
    "one digit": ("update blocks set record = replace(record, '\"batch\": 8', ?)", '"batch": 9'),
    "another round": ("update blocks set round = ?", 99),
    "a number": ("update blocks set record = ?", 5),
    "nothing": ("update blocks set record = ?", ""),
    "a blob": ("update blocks set record = ?", b"\x00\x01"),
    "arrays of text": ("update blocks set arrays = ?", "text"),
    "arrays that are none": ("update blocks set arrays = ?", b"not zlib"),
    "no arrays": ("update blocks set arrays = ?", None),
    "arrays cut short": ("update blocks set arrays = substr(arrays, 1, length(arrays) - ?)", 6),
    "a bomb": ("update blocks set arrays = ?", BOMB),
    "other arrays": ("update blocks set arrays = ?", wire.pack({"samples_s": np.zeros(7)})),
    "infinite": ("update blocks set arrays = ?", wire.pack({"samples_s": np.full(7, np.inf)})),
}


@pytest.mark.parametrize(("statement", "value"), DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_record_costs_itself_and_is_told(tmp_path, statement, value):
    """Whatever became of its row: the others are read, never half of this one, and a note says which it was and why."""
    store = open_store(tmp_path)
    run_id = store.create_run(make_study(model="m"), describe(), version="0")
    store.add(run_id, replace(RECORDS["block"], round=1))
    store.add(run_id, RECORDS["process"])
    store.close()
    altered(tmp_path, f"{statement} where round = 1", value)
    store = open_store(tmp_path)
    store.add(run_id, RECORDS["labelled block"])
    run = store.run(run_id)
    store.close()

    assert ([block.case for block in run.blocks], len(run.processes)) == (["graph@ort/b1/t1"], 1)
    assert [(damage.kind, damage.name) for damage in run.damaged] == [("BlockRecord", "fp32@ort/b1/t1")]
    (note,) = run.notes
    assert note.startswith("1 BlockRecord is damaged and left out: fp32@ort/b1/t1: ")
    assert len(note) < 600


def test_many_damaged_records_are_one_note(tmp_path):
    """Three are named, the others counted."""
    store = open_store(tmp_path)
    run_id = store.create_run(make_study(model="m"), describe(), version="0")
    for index in range(5):
        store.add(run_id, replace(RECORDS["block"], round=index))
    altered(tmp_path, "update blocks set record = ?", "{")
    (note,) = store.run(run_id).notes
    store.close()

    assert note.startswith("5 BlockRecords are damaged and left out: ")
    assert note.endswith("; and 2 more")


def test_a_damaged_record_is_made_good_by_the_next_of_its_key(tmp_path):
    """A resumed run that makes it again keeps it; a whole one stands."""
    store = open_store(tmp_path)
    run_id = store.create_run(make_study(model="m"), describe(), version="0")
    quality = RECORDS["quality without classes"]
    assert store.add(run_id, quality)
    assert not store.add(run_id, replace(quality, seconds=2.0))
    altered(tmp_path, "update qualities set record = ?", "{")
    assert store.records(run_id, QualityRecord) == ()

    assert store.add(run_id, replace(quality, seconds=3.0))
    assert [record.seconds for record in store.records(run_id, QualityRecord)] == [3.0]
    store.close()


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("study", "{"), ("study", json.dumps({"model": "m", "batches": [0]})), ("study", json.dumps([1])), ("study", DEEP),
        ("study", 5), ("environment", "{}"), ("environment", DEEP), ("plan", "nonsense"), ("plan", "[]"), ("plan", DEEP),
        ("plan", '{"cases": 5}'), ("plan", '{"cases": [5]}'), ("plan", json.dumps({"cases": [{**CASE, "extra": 1}]})),
        ("plan", json.dumps({"cases": [{**CASE, "batch": "many"}]})), ("plan", json.dumps({"cases": [{"variant": "fp32"}]})),
        ("plan", '{"data_rows": NaN}'), ("plan", '{"clusters": [[1]]}'), ("plan", '{"detected": {"target": 3}}'),
        ("plan", '{"selftest": []}'), ("plan", '{"search": []}'), ("plan", '{"search": {"asked": {}, "decisions": [1]}}'),
        ("plan", '{"group_memory_bytes": {"local": "all"}}'), ("notes", "5"), ("notes", "[[1]]"), ("status", "odd"),
    ],
    ids=lambda value: str(value)[:40],
)  # fmt: skip
def test_a_run_whose_own_row_is_damaged_is_told_and_hides_no_other(tmp_path, column, value):
    """Without study, environment and plan there is nothing to read its records by."""
    store = open_store(tmp_path)
    run_ids = [store.create_run(make_study(model="m"), describe(), version="0") for _ in range(2)]
    altered(tmp_path, f"update runs set {column} = ? where id = ?", value, run_ids[0])

    with pytest.raises(StoreError, match=f"run {run_ids[0]} in .* is damaged") as caught:
        store.run(run_ids[0])
    assert len(str(caught.value)) < 800
    assert store.run(run_ids[1]).study.model == "m"
    assert [summary.id for summary in store.runs()] == run_ids[::-1]
    store.close()


@pytest.mark.parametrize(
    "name", ["../../X", "/etc/X", "a/b", "..", ".", "", "a\x1b[2Jb", "x" * 41, "-rf", "a b", "~", "C:X"]
)
def test_an_id_that_is_no_id_is_never_a_path(tmp_path, name):
    """It would become the name of a folder: it is neither listed nor the latest, and nobody can ask for it."""
    store = open_store(tmp_path)
    run_ids = [store.create_run(make_study(model="m"), describe(), version="0") for _ in range(2)]
    altered(tmp_path, "update runs set id = ? where id = ?", name, run_ids[1])

    assert [summary.id for summary in store.runs()] == [run_ids[0]]
    assert store.resolve("latest") == run_ids[0]
    for read in (store.run, store.study):
        with pytest.raises(StoreError, match="is no id of a run"):
            read(name)
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
    for name in ("window_s", "window_cpu_s", "window_waited_s", "label_every", "_crc32"):
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


NOBODY = 65534


def read_by_another(place) -> str:
    """What a user without rights there sees of the latest run: in a fork, whose modules are read already."""
    if not sys.platform.startswith("linux") or os.geteuid() != 0:
        pytest.skip("becoming another user needs root")
    told, tell = os.pipe()
    child = os.fork()
    if not child:
        try:
            os.setgroups([])
            os.setgid(NOBODY)
            os.setuid(NOBODY)
            tempfile.tempdir = "/tmp"
            store = open_store(place, create=False)
            run = store.run(store.resolve("latest"))
            os.write(tell, f"{run.status} {len(run.failures)}".encode())
            store.close()
        except BaseException as error:
            os.write(tell, repr(error)[:2000].encode())
        finally:
            os._exit(0)
    os.close(tell)
    with os.fdopen(told, "rb") as stream:
        said = stream.read().decode()
    os.waitpid(child, 0)
    return said


@pytest.fixture
def shared():
    """A folder that everybody can go into and only its owner can write."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


def test_who_may_only_read_sees_what_was_written_last(shared):
    """The newest record stands in SQLite's log, beside the file: while it is written, and after a kill that left the log."""
    store = open_store(shared)
    run_id = store.create_run(make_study(model="m"), describe(), version="0")
    store.add(run_id, RECORDS["failure"])
    store.set_status(run_id, "finished")
    file = shared / DATABASE_NAME
    assert read_by_another(shared) == "finished 1"
    left = shared / "left"
    left.mkdir(mode=0o755)
    for name in (DATABASE_NAME, f"{DATABASE_NAME}-wal"):
        (left / name).write_bytes((shared / name).read_bytes())
    store.close()

    assert read_by_another(left) == "finished 1"
    assert sorted(path.name for path in left.iterdir()) == [DATABASE_NAME, f"{DATABASE_NAME}-wal"]
    assert read_by_another(shared) == "finished 1"
    assert read_by_another(file) == "finished 1"
    assert [path.name for path in shared.iterdir() if path.is_file()] == [DATABASE_NAME]


def test_a_file_of_another_in_a_folder_of_all_is_left_alone(shared):
    """A reader's own log beside it would keep its owner from writing."""
    shared.chmod(0o777)
    store = open_store(shared)
    run_id = store.create_run(make_study(model="m"), describe(), version="0")
    store.close()
    (shared / DATABASE_NAME).chmod(0o644)

    assert read_by_another(shared) == "running 0"
    assert [path.name for path in shared.iterdir()] == [DATABASE_NAME]
    store = open_store(shared)
    store.set_status(run_id, "finished")
    store.close()


def test_an_archive_of_an_older_version_is_read_from_a_copy(tmp_path, monkeypatch):
    """Its tables are made new in the copy; the archive stays as it is, and what is written into the copy is refused."""
    store = open_store(tmp_path)
    run_id = store.create_run(make_study(model="m"), describe(), version="0")
    store.add(run_id, RECORDS["block"])
    store.close()
    for table in ("energies", "loads", "selftests", "device_leases", "device_queues"):
        altered(tmp_path, f"drop table if exists {table}")
    altered(tmp_path, "update edgeprof_schema set version = 1")
    before = (tmp_path / DATABASE_NAME).read_bytes()
    monkeypatch.setattr("profiler.store.os.access", lambda path, mode: False)
    archive = open_store(tmp_path, create=False)
    run = archive.run(run_id)
    copy = archive._folder.name
    with pytest.raises(StoreError, match="readonly"):
        archive.set_status(run_id, "finished")
    archive.close()

    assert (len(run.blocks), run.energies, run.queues) == (1, (), ())
    assert (tmp_path / DATABASE_NAME).read_bytes() == before
    assert not Path(copy).exists()


@pytest.mark.parametrize("version", [0, -1, "two", b"\x02", None, 2.5])
@pytest.mark.parametrize("writable", [True, False])
def test_a_version_that_never_was_is_damage(tmp_path, monkeypatch, version, writable):
    """Told as such, for readers and writers alike."""
    open_store(tmp_path).close()
    altered(tmp_path, "create table other (version)")
    altered(tmp_path, "drop table edgeprof_schema")
    altered(tmp_path, "alter table other rename to edgeprof_schema")
    altered(tmp_path, "insert into edgeprof_schema values (?)", version)
    if not writable:
        monkeypatch.setattr("profiler.store.os.access", lambda path, mode: False)

    with pytest.raises(StoreError, match="its schema version is"):
        open_store(tmp_path, create=writable)


@pytest.mark.parametrize("content", [b"", None])
def test_a_copy_without_its_log_may_be_empty_and_is_told(tmp_path, content):
    """Reading makes no tables in it; the message says what belongs to a copy."""
    file = tmp_path / DATABASE_NAME
    if content is None:
        connection = sqlite3.connect(file)
        connection.execute("create table other (x)")
        connection.commit()
        connection.close()
    else:
        file.write_bytes(content)
    before = file.read_bytes()

    with pytest.raises(StoreError, match=r"holds no runs.*edgeprof\.sqlite-wal beside it belongs to it"):
        open_store(tmp_path, create=False)
    assert file.read_bytes() == before


@pytest.mark.parametrize("name", ["a?b", "feature%2Fx", "a#b", "a b", "ä", "?mode=memory", "%", "a?b/c%d#e"])
def test_any_name_of_a_folder_is_a_name(tmp_path, name):
    """In addresses some signs mean something; the database lies in the folder that was named, and nothing beside it."""
    store = open_store(tmp_path / name)
    run_id = store.create_run(make_study(model="m"), describe(), version="0")
    store.close()
    file = tmp_path / name / DATABASE_NAME
    again = open_store(file, create=False)

    assert again.resolve("latest") == run_id
    again.close()
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [file]


def test_a_database_is_opened_by_its_file(tmp_path):
    """By any name when it is there, and by a name that says it is one; its address is the same."""
    for place in (tmp_path / "new.db", f"sqlite:///{tmp_path / 'new.db'}"):
        store = open_store(place)
        store.create_run(make_study(model="m"), describe(), version="0")
        store.close()
    (tmp_path / "copy").write_bytes((tmp_path / "new.db").read_bytes())
    store = open_store(tmp_path / "copy", create=False)

    assert len(store.runs()) == 2
    store.close()
    with pytest.raises(StoreError, match=r"there is no gone\.sqlite"):
        open_store(f"sqlite:///{tmp_path / 'gone.sqlite'}", create=False)
    assert not (tmp_path / "gone.sqlite").exists()


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
def test_a_block_whose_parts_do_not_fit_is_neither_stored_nor_read(tmp_path, opened, run_id, damage):
    """By the same rules at both ends: told as what it is, not as a bug of whatever computes with it."""
    with pytest.raises(InvalidRecord, match="a BlockRecord of graph@ort/b1/t1 is not stored"):
        opened.add(run_id, replace(GOOD, **damage))
    assert opened.records(run_id, BlockRecord) == ()
    # As an older version stored it.
    content, arrays = record_codec._split(replace(GOOD, **damage))
    opened.add(run_id, GOOD)
    altered(tmp_path / "out", "update blocks set record = ?, arrays = ?", json.dumps(content), wire.pack(arrays))

    assert opened.records(run_id, BlockRecord) == ()
    assert [found.kind for found in opened.run(run_id).damaged] == ["BlockRecord"]


NAN = float("nan")
WRONG = {
    "artifact": [{"size_bytes": -1}, {"facts": {"share": NAN}}, {"seconds": 1e300}, {"sha256": 5}],
    "process": [
        {"load_s": -1.0}, {"import_s": float("inf")}, {"replicate": -1}, {"memory": {"load": {"peak_rss_bytes": 10**30}}},
        {"warmup": WarmupRecord(np.zeros(3), 0, "warmup", None)}, {"warmup": WarmupRecord(np.ones(3), 9, "flat", None)},
        {"facts": {"runtime": "x"}}, {"harness_in_sample_s": 1e308},
    ],
    "block": [
        {"samples_s": np.full(3, 1e10)}, {"samples_s": np.ones(3, np.int64)}, {"wall_s": -1.0}, {"cpu_s": -1e18},
        {"labels": {"steal_share": 1e308}}, {"labels": 5}, {"window_s": np.full(7, 1e308)}, {"window_s": np.zeros(7)},
    ],
    "energy": [
        {"energy_j": {"package-0": NAN}}, {"energy_j": {"package-0": 1e308}}, {"wall_s": -1.0}, {"inferences": -1}, {"batch": 0},
    ],
    "load": [
        {"sent_s": np.zeros(2)}, {"completed_s": np.full(3, np.inf)}, {"batch_size": np.ones(3)}, {"rate_per_s": -1.0},
        {"scheduled_s": np.zeros((3, 1))}, {"scheduled_s": np.full(3, 1e300)}, {"ended": "happily"},
    ],
    "quality": [
        {"agreement": np.zeros(4)}, {"agreement": np.full(5, 2.0)}, {"agreement": np.full(5, NAN)}, {"predictions": np.zeros(5)},
        {"per_sample": np.zeros((5, 2, 2))}, {"per_sample": np.zeros(())}, {"seconds": -1.0},
    ],
    "failure": [{"kind": "no kind"}, {"needs_more_than_bytes": -5}, {"replicate": 2**70}],
}  # fmt: skip


@pytest.mark.parametrize(("kind", "wrong"), [(kind, wrong) for kind in WRONG for wrong in WRONG[kind]], ids=str)
def test_every_kind_of_record_is_checked_before_it_is_stored(opened, run_id, kind, wrong):
    """What could not be read again is not stored in the first place."""
    with pytest.raises(InvalidRecord, match="is not stored"):
        opened.add(run_id, replace(RECORDS[kind], **wrong))
    assert opened.records(run_id, type(RECORDS[kind])) == ()
    assert opened.run(run_id).damaged == ()
