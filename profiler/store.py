"""The run database: every record is stored when it exists, in one transaction, and never changed.

SQLite in the output folder by default, any SQLAlchemy URL otherwise. Samples are kept whole. Uniqueness is the
database's own (no second block for the same case, replicate, group and round), so a resumed run can't count twice.

A store `under` a lease is the same database as one device's queue sees it: it accepts a result only as long as the lease holds
(profiler/leases.py), and it reads the device's own results.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import sqlite3
import tempfile
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Literal, TypeVar, cast

import sqlalchemy as sa
from pydantic import TypeAdapter, ValidationError
from sqlalchemy.exc import DatabaseError, IntegrityError, OperationalError, SQLAlchemyError
from typing_extensions import TypedDict

from profiler import advice, archive, plans, record_codec
from profiler import leases as lease_rows
from profiler.errors import EdgeprofError, StoreError
from profiler.leases import Lease, LeaseLost, LeaseState, Owner, QueueState, QueueStatus
from profiler.records import (
    BESIDE_TIMING,
    ArtifactRecord,
    BlockRecord,
    EnergyRecord,
    Environment,
    FailureRecord,
    LoadRecord,
    ProcessRecord,
    QualityRecord,
    RuntimeRecord,
    SelftestRecord,
)
from profiler.study import Study, make_study

Status = Literal["running", "interrupted", "finished"]
SCHEMA_VERSION = 4
DATABASE_NAME = "edgeprof.sqlite"
_SUFFIXES = {".sqlite", ".sqlite3", ".db"}
"""Of what is a database's file even before it is there; without one of them, a name is that of a folder."""
_SQLITE_MAGIC = b"SQLite format 3\0"
"""How every such file begins (sqlite.org/fileformat2.html, 1.3)."""

_meta = sa.MetaData()
_schema = sa.Table("edgeprof_schema", _meta, sa.Column("version", sa.Integer, nullable=False))
_runs = sa.Table(
    "runs", _meta,
    sa.Column("id", sa.String(40), primary_key=True),
    sa.Column("created_at", sa.String(40), nullable=False),
    sa.Column("status", sa.String(20), nullable=False),
    sa.Column("edgeprof_version", sa.String(40), nullable=False),
    sa.Column("study", sa.Text, nullable=False),
    sa.Column("environment", sa.Text, nullable=False),
    sa.Column("notes", sa.Text, nullable=False),
    sa.Column("plan", sa.Text),
)  # fmt: skip


def _records_table(name: str, *key: str) -> sa.Table:
    """A table of records: the columns that identify one, the rest as JSON, the arrays as one compressed blob."""
    numbers = {"replicate", "attempt", "group", "round", "window", "run"}
    return sa.Table(
        name, _meta,
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("run_id", sa.String(40), sa.ForeignKey("runs.id"), nullable=False, index=True),
        *(sa.Column(part, sa.Integer if part in numbers else sa.Text, nullable=False) for part in key),
        sa.Column("record", sa.Text, nullable=False),
        sa.Column("arrays", sa.LargeBinary),
        sa.UniqueConstraint("run_id", *key, name=f"one_{name}"),
    )  # fmt: skip


_TABLES: dict[type, sa.Table] = {
    ArtifactRecord: _records_table("artifacts", "variant"),
    ProcessRecord: _records_table("processes", "case", "replicate", "attempt", "group"),
    BlockRecord: _records_table("blocks", "case", "replicate", "group", "round"),
    QualityRecord: _records_table("qualities", "case"),
    FailureRecord: _records_table("failures", "case", "stage"),
    RuntimeRecord: _records_table("runtimes", "case"),
    EnergyRecord: _records_table("energies", "case", "meter", "window"),
    LoadRecord: _records_table("loads", "case", "setting", "run"),
}
# Not part of a run: the newest one that fits the machine is copied into each run's plan.
_selftests = sa.Table(
    "selftests", _meta,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("machine", sa.Text, nullable=False, index=True),
    sa.Column("created_at", sa.String(40), nullable=False),
    sa.Column("record", sa.Text, nullable=False),
)  # fmt: skip

_leases, _queues = lease_rows.tables(_meta)

Record = (
    ArtifactRecord | ProcessRecord | BlockRecord | QualityRecord | RuntimeRecord | FailureRecord | EnergyRecord | LoadRecord
)  # fmt: skip
R = TypeVar(
    "R", ArtifactRecord, ProcessRecord, BlockRecord, QualityRecord, RuntimeRecord, FailureRecord, EnergyRecord, LoadRecord
)  # fmt: skip

# Version n → n + 1. Each entry gets the connection inside the transaction that also raises the version.
_MIGRATIONS: dict[int, Callable[[sa.Connection], None]] = {
    # Energy, load and self-tests came with tables of their own; records of version 1 read as they are.
    1: _meta.create_all,
    # Leases and queues of devices.
    2: _meta.create_all,
    # Answers of several runtimes compared.
    3: _meta.create_all,
}


@dataclass(frozen=True)
class RunSummary:
    """One line of `edgeprof runs`."""

    id: str
    created_at: str
    status: Status
    model: str
    data: str | None
    cases: int
    failures: int


@dataclass(frozen=True)
class Damage:
    """A stored record that cannot be read: everything else of its run can."""

    kind: str
    """Name of the record's class."""
    name: str
    """Its case or variant, as its row has it."""
    reason: str


class InvalidRecord(StoreError):  # noqa: N818 (what it is)
    """A record that no measurement can have made; it was not stored."""


class _About(TypedDict):
    created_at: str
    status: Status
    edgeprof_version: str


_ABOUT = TypeAdapter(_About)


@dataclass(frozen=True)
class RunData:
    """All that a run recorded, as read back: what every estimate is computed from."""

    id: str
    created_at: str
    status: Status
    edgeprof_version: str
    study: Study
    environment: Environment
    notes: tuple[str, ...]
    plan: dict[str, Any]
    artifacts: tuple[ArtifactRecord, ...]
    processes: tuple[ProcessRecord, ...]
    blocks: tuple[BlockRecord, ...]
    qualities: tuple[QualityRecord, ...]
    failures: tuple[FailureRecord, ...]
    energies: tuple[EnergyRecord, ...] = ()
    loads: tuple[LoadRecord, ...] = ()
    runtimes: tuple[RuntimeRecord, ...] = ()
    """One for each artifact that ran on several backends; empty in runs that did not compare them."""
    queues: tuple[QueueState, ...] = ()
    """How far it got with each device; empty for runs of one machine made before devices had queues."""
    damaged: tuple[Damage, ...] = ()
    """Records that could not be read and are left out above; `notes` tell them."""

    @property
    def damage_notes(self) -> tuple[str, ...]:
        """Those of the notes that tell them: a sentence for each kind of record."""
        return _told(self.damaged)


class Store:
    """An open run database. Threads may share it."""

    def __init__(
        self,
        engine: sa.Engine,
        place: str,
        *,
        lease: Lease | None = None,
        clock: Callable[[], float] = time.time,
        folder: tempfile.TemporaryDirectory[str] | None = None,
    ) -> None:
        """Use `open_store`, and `under` for one with a lease. `folder` holds a copy that is read, until it is closed."""
        self._engine = engine
        self._folder = folder
        self.place = place
        self.lease = lease
        """What every result that is stored needs; None where nobody else can come."""
        self._clock = clock
        self._writing = _writers(engine)

    def close(self) -> None:
        """Close the connections."""
        self._engine.dispose()
        if self._folder is not None:
            self._folder.cleanup()

    def create_run(self, study: Study, environment: Environment, *, version: str, notes: Sequence[str] = ()) -> str:
        """Begin a run; returns its id, `YYYYMMDD-HHMMSS-xxxx` in UTC."""
        row = {
            "status": "running", "edgeprof_version": version, "study": study.to_json(),
            "environment": json.dumps(asdict(environment)), "notes": json.dumps(list(notes)),
        }  # fmt: skip
        for tries_left in reversed(range(_ID_TRIES)):
            now = datetime.now(timezone.utc)
            run_id = f"{now:%Y%m%d-%H%M%S}-{secrets.token_hex(2)}"
            made = {**row, "id": run_id, "created_at": now.isoformat(timespec="microseconds")}
            try:
                with self._transaction(writes=True) as connection:
                    connection.execute(_runs.insert().values(made))
                break
            except _ConstraintError:
                # Four digits are easy to type, and two runs of one second may draw the same.
                if not tries_left:
                    raise
        return run_id

    def set_plan(self, run_id: str, plan: dict[str, Any], notes: Sequence[str]) -> None:
        """Store what the run will do, once it is known. A plan is set once; a resumed run keeps it."""
        with self._transaction(writes=True) as connection:
            connection.execute(
                _runs.update().where(_runs.c.id == run_id).values(plan=json.dumps(plan), notes=json.dumps(list(notes)))
            )

    def set_status(self, run_id: str, status: Status) -> None:
        """Mark a run."""
        with self._transaction(writes=True) as connection:
            connection.execute(_runs.update().where(_runs.c.id == run_id).values(status=status))

    def add(self, run_id: str, record: Record) -> bool:
        """Store one record. False when one with the same key is stored already: the first one stands, unless it is damaged.

        Raises LeaseLost when the device is not ours any more, InvalidRecord for what no measurement can have made (see
        `profiler.record_checks.check`, which reading goes by too): nothing is stored then.
        """
        if self.lease is not None:
            self.lease.check()
        table = _TABLES[type(record)]
        try:
            content, text, arrays = record_codec.encode(record)
        except ValueError as error:
            named = getattr(record, "case", None) or getattr(record, "variant", "")
            raise InvalidRecord(f"a {type(record).__name__} of {named} is not stored: {error}.") from error
        key = {name: content.get(name) for name in _key_of(table)}
        row = {"run_id": run_id, **key, "record": text, "arrays": arrays}
        try:
            with self._transaction(writes=True) as connection:
                self._hold(connection, content.get("case"))
                connection.execute(table.insert().values(row))
        except LeaseLost:
            self._refused()
            raise
        except _ConstraintError:
            same = (table.c.run_id == run_id, *(table.c[name] == key[name] for name in key))
            with self._transaction(writes=True) as connection:
                stored = connection.execute(sa.select(table).where(*same)).mappings().first()
                if stored is None:
                    # Some other rule of the database: nothing was stored, and nobody may believe it was.
                    raise
                if _damage(type(record), table, stored) is not None:
                    # What cannot be read any more is as good as missing: the new one takes its place.
                    self._hold(connection, content.get("case"))
                    connection.execute(table.update().where(*same).values(row))
                    return True
            return False
        return True

    def take_back(self, run_id: str, failures: Iterable[FailureRecord]) -> None:
        """Forget that these were left out: what a search had no time for may be tried when it goes on."""
        table = _TABLES[FailureRecord]
        with self._transaction(writes=True) as connection:
            self._hold(connection, None)
            for record in failures:
                found = (table.c.run_id == run_id, table.c.case == record.case, table.c.stage == record.stage)
                connection.execute(table.delete().where(*found))

    def discard(self, run_id: str) -> None:
        """Forget a run that never came to measuring anything, so that `latest` stays a run with results."""
        with self._transaction(writes=True) as connection:
            for table in (*_TABLES.values(), _queues):
                connection.execute(table.delete().where(table.c.run_id == run_id))
            connection.execute(_runs.delete().where(_runs.c.id == run_id))

    def done_blocks(self, run_id: str) -> set[tuple[str, int, int, int]]:
        """(case, replicate, group, round) of every stored block."""
        table = _TABLES[BlockRecord]
        columns = (table.c.case, table.c.replicate, table.c.group, table.c.round)
        with self._transaction() as connection:
            query = sa.select(*columns).where(table.c.run_id == run_id, *self._of_device(table))
            return {tuple(row) for row in connection.execute(query)}

    def count(self, run_id: str) -> int:
        """How many results are stored: grows whenever a run gets anywhere."""
        tables = (_TABLES[kind] for kind in (BlockRecord, QualityRecord, EnergyRecord, LoadRecord))
        queries = [
            sa.select(sa.func.count()).select_from(table).where(table.c.run_id == run_id, *self._of_device(table))
            for table in tables
        ]
        with self._transaction() as connection:
            return sum(int(connection.execute(query).scalar() or 0) for query in queries)

    def last_attempt(self, run_id: str, replicate: int, group: int) -> int:
        """The highest attempt number stored for a replicate, −1 when there is none."""
        table = _TABLES[ProcessRecord]
        query = sa.select(sa.func.max(table.c.attempt)).where(
            table.c.run_id == run_id, table.c.replicate == replicate, table.c.group == group
        )
        with self._transaction() as connection:
            found = connection.execute(query).scalar()
        return -1 if found is None else int(found)

    def records(self, run_id: str, kind: type[R]) -> tuple[R, ...]:
        """All records of one kind, in the order they were stored, without those that are damaged (`run` says which)."""
        return self._read(run_id, kind)[0]

    def _read(self, run_id: str, kind: type[R]) -> tuple[tuple[R, ...], tuple[Damage, ...]]:
        table = _TABLES[kind]
        query = sa.select(table).where(table.c.run_id == run_id, *self._of_device(table)).order_by(table.c.id)
        good: list[R] = []
        damaged: list[Damage] = []
        try:
            with self._transaction() as connection:
                # Row by row: the packed arrays of all of them need not lie beside the unpacked ones.
                for row in connection.execute(query).mappings():
                    found = _decoded(kind, table, row)
                    if isinstance(found, Damage):
                        damaged.append(found)
                    else:
                        good.append(found)
        except _MalformedError as error:
            damaged.append(Damage(kind.__name__, "all that follow", str(error)))
        return tuple(good), tuple(damaged)

    def run(self, run_id: str) -> RunData:
        """Everything about one run that can be read; `damaged` and a note name the records that cannot.

        Raises StoreError when the id is unknown, or the run's own row is damaged: study, environment, plan or notes.
        """
        row = self._row(run_id)
        try:
            study = make_study(**record_codec.loads(row["study"]))
            environment = record_codec.adapter(Environment).validate_python(record_codec.loads(row["environment"]))
            notes = record_codec.adapter(tuple[str, ...]).validate_python(record_codec.loads(row["notes"]))
            plan = plans.read(row["plan"])
            about = _ABOUT.validate_python({name: row[name] for name in ("created_at", "status", "edgeprof_version")})
        except (ValidationError, ValueError, TypeError, EdgeprofError) as error:
            words = " ".join(str(error).split())[:500].rstrip(".")
            raise StoreError(f"run {run_id} in {self.place} is damaged: {words}.") from error
        damaged: list[Damage] = []

        def read(kind: type[R]) -> tuple[R, ...]:
            good, bad = self._read(run_id, kind)
            damaged.extend(bad)
            return good

        data = RunData(
            id=run_id, **about, study=study, environment=environment, notes=notes, plan=plan, artifacts=read(ArtifactRecord),
            processes=read(ProcessRecord), blocks=read(BlockRecord), qualities=read(QualityRecord),
            failures=read(FailureRecord), energies=read(EnergyRecord), loads=read(LoadRecord), runtimes=read(RuntimeRecord),
            queues=self.queues(run_id),
        )  # fmt: skip
        return replace(data, damaged=tuple(damaged), notes=(*notes, *_told(damaged)))

    def _row(self, run_id: str) -> sa.RowMapping:
        # An id becomes the name of a folder.
        if not is_run_id(run_id):
            raise StoreError(f"'{str(run_id)[:80]}' is no id of a run. `{advice.of_run('runs')}` lists them.")
        with self._transaction() as connection:
            row = connection.execute(sa.select(_runs).where(_runs.c.id == run_id)).mappings().one_or_none()
        if row is None:
            raise StoreError(f"no run '{run_id}' in {self.place}. `{advice.of_run('runs')}` lists them.")
        return row

    def add_selftest(self, record: SelftestRecord) -> None:
        """Keep a self-test of this machine."""
        try:
            _, text, _ = record_codec.encode(record)
        except ValueError as error:
            raise InvalidRecord(f"the self-test is not stored: {error}.") from error
        row = {"machine": record.machine, "created_at": record.created_at, "record": text}
        with self._transaction(writes=True) as connection:
            connection.execute(_selftests.insert().values(row))

    def last_selftest(self, machine: str) -> SelftestRecord | None:
        """The newest self-test of the machine with that fingerprint."""
        query = sa.select(_selftests.c.record).where(_selftests.c.machine == machine)
        with self._transaction() as connection:
            text = connection.execute(query.order_by(_selftests.c.created_at.desc(), _selftests.c.id.desc())).scalar()
        try:
            return None if text is None else record_codec.decode(SelftestRecord, text, None)
        except ValueError:
            # As good as none: the machine counts as not self-tested.
            return None

    def runs(self) -> list[RunSummary]:
        """All runs, newest first. Rows whose id is none (it would become the name of a folder) are left out."""
        with self._transaction() as connection:
            rows = (
                connection.execute(sa.select(_runs).order_by(_runs.c.created_at.desc(), _runs.c.id.desc()))
                .mappings()
                .all()
            )
            summaries = []
            for row in rows:
                if not is_run_id(row["id"]):
                    continue
                try:
                    asked = record_codec.loads(row["study"])
                    model, data = str(asked["model"]), None if asked["data"] is None else str(asked["data"])
                except (ValueError, KeyError, TypeError):
                    # One damaged run must not hide the others.
                    model, data = "(damaged record)", None
                blocks, failures = _TABLES[BlockRecord], _TABLES[FailureRecord]
                counts = [
                    connection.execute(
                        sa.select(sa.func.count(sa.distinct(table.c.case))).where(table.c.run_id == row["id"], *only)
                    ).scalar_one()
                    for table, only in ((blocks, ()), (failures, (failures.c.stage.notin_(sorted(BESIDE_TIMING)),)))
                ]
                created_at, status = str(row["created_at"]), cast("Status", str(row["status"]))
                summaries.append(RunSummary(row["id"], created_at, status, model, data, *counts))
        return summaries

    def resolve(self, text: str, *, search: bool | None = None, unfinished: bool = False) -> str:
        """A run id from an id, a unique prefix of one, or `latest`: of searches only, or of other runs only, where `search`
        says so; with `unfinished` of what did not end, if there is any. Raises StoreError that lists the nearest.
        """
        summaries = self.runs()
        ids = [summary.id for summary in summaries]
        if text == "latest" and search is not None:
            ended = {summary.id for summary in summaries if unfinished and summary.status == "finished"}
            # Only as many plans are read as it takes.
            fits = (one for one in sorted(ids, key=ended.__contains__) if ("search" in self.plan(one)) == search)
            ids = [next(fits, ids[0])] if ids else ids
        if not ids:
            make = advice.of_run("profile", "MODEL", "--data", "DATA")
            raise StoreError(f"there are no runs in {self.place} yet: `{make}` makes one.")
        if text == "latest":
            return ids[0]
        # Nothing at all begins every id: an unset variable of a shell is no run.
        found = [run_id for run_id in ids if text and run_id.startswith(text)]
        if len(found) == 1:
            return found[0]
        problem = f"'{text}' fits {len(found)} runs" if found else f"no run '{text}'"
        raise StoreError(
            f"{problem} in {self.place}; the newest are: {', '.join(ids[:5])}. `{advice.of_run('runs')}` lists all."
        )

    def study(self, run_id: str) -> Study:
        """What the run was asked, without its records. Raises StoreError as `run` does."""
        text = self._row(run_id)["study"]
        try:
            return make_study(**record_codec.loads(text))
        except (ValueError, TypeError, EdgeprofError) as error:
            raise StoreError(f"run {run_id} in {self.place} is damaged: {error}.") from error

    def plan(self, run_id: str) -> dict[str, Any]:
        """What the run does, as stored; empty when that is not known yet, or damaged."""
        with self._transaction() as connection:
            text = connection.execute(sa.select(_runs.c.plan).where(_runs.c.id == run_id)).scalar()
        try:
            return plans.read(text)
        except (ValueError, TypeError):
            return {}

    # Devices ----------------------------------------------------------------------------------------------------------

    def under(self, lease: Lease) -> Store:
        """The same database for the queue of the lease's device."""
        return Store(self._engine, self.place, lease=lease, clock=self._clock)

    def acquire(
        self, device: str, *, run_id: str | None, machine: str | None = None, owner: Owner | None = None,
        ttl_s: float = lease_rows.TTL_S,
    ) -> Lease | LeaseState:  # fmt: skip
        """The lease of a device, or who has it. `machine` as in `profiler.leases.acquire`; `owner` None is this process."""
        with self._transaction(writes=True) as connection:
            if connection.dialect.name == "postgresql":
                # Two names of one machine are two rows: without this, both could be free at the same moment.
                connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_ACQUIRING)))
            return lease_rows.acquire(
                connection, _leases, device, run_id=run_id, machine=machine, owner=owner or lease_rows.ourselves(),
                ttl_s=ttl_s, now=self._now_s(connection),
            )  # fmt: skip

    def renew(self, lease: Lease) -> None:
        """Say that we are still there. Raises LeaseLost."""
        with self._transaction(writes=True) as connection:
            self._renewed(connection, lease, None)

    def release(self, lease: Lease) -> None:
        """Give a device back."""
        lease_rows.over(lease)
        with self._transaction(writes=True) as connection:
            lease_rows.release(connection, _leases, lease)

    def leases(self) -> tuple[LeaseState, ...]:
        """All devices that ever had a lease in this database."""
        with self._transaction() as connection:
            return lease_rows.states(connection, _leases, self._now_s(connection))

    def set_queue(self, run_id: str, device: str, status: QueueStatus, reason: str | None = None) -> None:
        """Say how far a run is with a device."""
        ours = (_queues.c.run_id == run_id) & (_queues.c.device == device)

        def write() -> None:
            with self._transaction(writes=True) as connection:
                values = {"status": status, "reason": reason, "since": self._now_s(connection)}
                if not connection.execute(_queues.update().where(ours).values(**values)).rowcount:
                    connection.execute(_queues.insert().values(run_id=run_id, device=device, **values))

        try:
            write()
        except _ConstraintError:
            # Another controller of the same run was first.
            write()

    def queues(self, run_id: str) -> tuple[QueueState, ...]:
        """How far a run is with each of its devices, by name."""
        query = sa.select(_queues).where(_queues.c.run_id == run_id).order_by(_queues.c.device)
        with self._transaction() as connection:
            if not sa.inspect(connection).has_table(_queues.name):
                # An archive of an older edgeprof, which cannot be migrated.
                return ()
            rows = connection.execute(query).mappings().all()
        return tuple(QueueState(row["device"], row["status"], row["reason"], float(row["since"])) for row in rows)

    def _hold(self, connection: sa.Connection, stored: str | None) -> None:
        if self.lease is not None:
            self._renewed(connection, self.lease, stored)

    def _renewed(self, connection: sa.Connection, lease: Lease, stored: str | None) -> None:
        server = connection.dialect.name == "postgresql"
        now = _SERVER_NOW if server else self._clock()
        if lease.gone.is_set() or not lease_rows.renew(connection, _leases, lease, now, stored):
            lease.gone.set()
            raise LeaseLost(
                f"the lease on '{lease.device}' in {self.place} does not hold any more: nothing was heard of this run for "
                f"{lease.ttl_s:g} s, or another has the device. What came since is not stored; `edgeprof fleet status` tells who."
            )
        lease.renewed_s = time.monotonic()

    def _refused(self) -> None:
        assert self.lease is not None
        with self._transaction(writes=True) as connection:
            lease_rows.refuse(connection, _leases, self.lease.device)

    def _now_s(self, connection: sa.Connection) -> float:
        if connection.dialect.name == "postgresql":
            return float(connection.execute(sa.select(_SERVER_NOW)).scalar_one())
        return self._clock()

    def _of_device(self, table: sa.Table) -> tuple[sa.ColumnElement[bool], ...]:
        """Which rows the queue of a device reads: those of its cases. All of them without a lease."""
        if self.lease is None or table.name not in _BY_DEVICE:
            return ()
        case, name = table.c.case, self.lease.device.partition("@")[0]
        with_options = case.contains(f"@{name}{{", autoescape=True) & case.endswith("}")
        if name != "local":
            return (case.endswith(f"@{name}", autoescape=True) | with_options,)
        # Of this machine, plain keys tell no target: `fp32@ort/b1/t1`, and `idle`.
        return (~(case.like("%@%@%") | case.like("idle@%")) | with_options,)

    @contextmanager
    def _transaction(self, *, writes: bool = False) -> Iterator[sa.Connection]:
        try:
            with self._writing if writes else nullcontext(), self._engine.connect() as connection:
                connection.execution_options(edgeprof_writes=writes)
                with connection.begin():
                    yield connection
        except IntegrityError as error:
            raise _ConstraintError(f"the run database {self.place} refuses a record: {error.orig}.") from error
        except OperationalError as error:
            raise _storage_error(self.place, error) from error
        except (DatabaseError, UnicodeDecodeError) as error:
            # The second: a name of a column that is no text any more.
            raise _MalformedError(str(_storage_error(self.place, error))) from error
        except SQLAlchemyError as error:
            raise _storage_error(self.place, error) from error


class _MalformedError(StoreError):
    """The database's own pages are damaged; what lies on others can be read."""


class _ConstraintError(StoreError):
    pass


def is_run_id(text: object) -> bool:
    """Whether that may be the id of a run: it becomes the name of a folder, and part of commands that are printed."""
    return isinstance(text, str) and _RUN_ID.fullmatch(text) is not None


def _key_of(table: sa.Table) -> list[str]:
    return [column.name for column in table.c if column.name not in _GENERAL]


def _decoded(kind: type[R], table: sa.Table, row: sa.RowMapping) -> R | Damage:
    key = {name: row[name] for name in _key_of(table)}
    try:
        return record_codec.decode(kind, row["record"], row["arrays"], key)
    except ValueError as error:
        return Damage(kind.__name__, str(key.get("case", key.get("variant")))[:200], str(error))


def _damage(kind: Any, table: sa.Table, row: sa.RowMapping) -> Damage | None:
    found: object = _decoded(kind, table, row)
    return found if isinstance(found, Damage) else None


def _told(damaged: Sequence[Damage]) -> tuple[str, ...]:
    """A note for each kind of record of which some are damaged."""
    notes = []
    for kind in dict.fromkeys(damage.kind for damage in damaged):
        found = [damage for damage in damaged if damage.kind == kind]
        shown = "; ".join(f"{damage.name}: {damage.reason}" for damage in found[:_DAMAGES_SHOWN])
        more = f"; and {len(found) - _DAMAGES_SHOWN} more" if len(found) > _DAMAGES_SHOWN else ""
        notes.append(f"{len(found)} {kind}{'s are' if len(found) > 1 else ' is'} damaged and left out: {shown}{more}")
    return tuple(notes)


_ID_TRIES = 20
_RUN_ID = re.compile(r"[0-9A-Za-z][0-9A-Za-z_-]{0,39}")
_DAMAGES_SHOWN = 3
_GENERAL = {"id", "run_id", "record", "arrays"}
_BY_DEVICE = {"processes", "blocks", "qualities", "energies", "loads"}
# `clock_timestamp` and not `now`, which is the beginning of a transaction that may have waited for another one.
_SERVER_NOW = sa.cast(sa.extract("epoch", sa.func.clock_timestamp()), sa.Float)
_ACQUIRING, _PREPARING = 0x656467650001, 0x656467650002
"""Keys of PostgreSQL's advisory locks."""
_locks: weakref.WeakKeyDictionary[sa.Engine, threading.Lock] = weakref.WeakKeyDictionary()


def _writers(engine: sa.Engine) -> AbstractContextManager[Any]:
    """What threads of ours pass one after the other when they write: SQLite has one writer, and waiting for it is by chance."""
    if engine.dialect.name != "sqlite":
        return nullcontext()
    return _locks.setdefault(engine, threading.Lock())


def open_store(place: str | Path, *, create: bool = True, clock: Callable[[], float] = time.time) -> Store:
    """Open the database in the folder `place` (made when missing), its file itself, or behind an SQLAlchemy URL; migrate it if it
    is older. One that may only be read is read as it is, with what a log beside it holds (profiler/archive.py).

    `clock` is what leases go by, where the database is a file.

    Raises StoreError: not a database, from a newer edgeprof, not writable, disk full.
    """
    path = _file_of(place)
    if path is None:
        engine, shown = _engine(str(place)), shown_address(str(place))
    else:
        shown = str(path)
        if not create and not path.is_file():
            raise StoreError(f"there is no {path.name} in {path.parent}: give the folder of a run with --out.")
        if not create and not (os.access(path.parent, os.W_OK) and os.access(path, os.W_OK)):
            return _archive(path, clock)
        try:
            if "://" not in str(place):
                path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StoreError(
                f"cannot write to {path.parent}: {error.strerror}. Choose another folder with --out."
            ) from None
        # By parts, not as a text: a `?`, `%` or `#` in the name of a folder means nothing.
        engine = _engine(sa.URL.create("sqlite", database=shown), made=create)
    try:
        with engine.begin() as connection:
            ready = _is_ready(connection, shown, create=create or path is None)
        if not ready:
            with engine.connect().execution_options(edgeprof_writes=True) as connection, connection.begin():
                _prepare(connection, shown)
    except OperationalError as error:
        engine.dispose()
        if create or path is None:
            raise _storage_error(shown, error) from error
        try:
            # SQLite needs a little room beside the file, a full disk has none; reading needs none.
            return _archive(path, clock)
        except StoreError:
            raise _storage_error(shown, error) from error
    except (SQLAlchemyError, UnicodeDecodeError) as error:
        raise _storage_error(shown, error) from error
    return Store(engine, shown, clock=clock)


def _file_of(place: str | Path) -> Path | None:
    """The database's file: named itself, in the folder `place`, or behind a plain `sqlite:///` address; None for any other."""
    text = str(place)
    if "://" in text:
        try:
            url = sa.make_url(text)
        except (SQLAlchemyError, ValueError):
            return None
        plain = not (url.query or url.host or url.username) and url.database not in (None, "", ":memory:")
        return Path(str(url.database)) if plain and url.drivername in ("sqlite", "sqlite+pysqlite") else None
    path = Path(text)
    if not path.is_dir() and (path.suffix in _SUFFIXES or _holds_a_database(path)):
        return path
    return path / DATABASE_NAME


def _holds_a_database(path: Path) -> bool:
    """A database may bear any name; a file that is none stands where a folder was meant."""
    try:
        with path.open("rb") as file:
            return file.read(len(_SQLITE_MAGIC)) == _SQLITE_MAGIC
    except OSError:
        return False


def _archive(path: Path, clock: Callable[[], float]) -> Store:
    """Reports can be made from an archive or a read-only mount, where SQLite could not keep its log."""
    shown = str(path)

    def prepare(connection: sa.Connection) -> None:
        _is_ready(connection, shown, create=False)
        _prepare(connection, shown)

    try:
        engine, folder = archive.read_only(
            path, ready=lambda connection: _is_ready(connection, shown, create=False), prepare=prepare, tell=_any_text
        )
    except (SQLAlchemyError, UnicodeDecodeError) as error:
        raise _storage_error(shown, error) from error
    except OSError as error:
        raise StoreError(
            f"the run database {shown} cannot be read: {error.strerror} ({error.filename}). What was written last stands in "
            f"{archive.log_of(path).name} beside it, which is needed too."
        ) from error
    return Store(engine, shown, clock=clock, folder=folder)


def shown_address(url: str) -> str:
    """A database's address for people: without its password, wherever in it that stands."""
    try:
        parsed = sa.make_url(url)
        secret = [key for key in parsed.query if "pass" in key.lower() or "secret" in key.lower()]
        return parsed.difference_update_query(secret).render_as_string(hide_password=True)
    except (SQLAlchemyError, ValueError):
        return url.partition("://")[0] + "://…"


def _engine(url: str | sa.URL, *, made: bool = True) -> sa.Engine:
    """`made`: whether the database may be made, or made one of ours."""
    shown = shown_address(str(url))
    try:
        # A connection that the server closed while a device was measuring is replaced, not an error.
        engine = sa.create_engine(url, pool_pre_ping=not str(url).startswith("sqlite"))
    except ModuleNotFoundError as error:
        advice = " Install it: pip install 'edgeprof[postgres]', and begin the address with postgresql+psycopg://."
        raise StoreError(
            f"the database {shown} needs the module {error.name}, which is not installed."
            f"{advice if str(url).startswith('postgres') else ''}"
        ) from None
    except (SQLAlchemyError, ImportError, ValueError, TypeError) as error:
        # The error's own words may hold the whole address.
        raise StoreError(
            f"cannot use the database address '{shown}' ({type(error).__name__}): expected "
            "postgresql+psycopg://USER@HOST/DATABASE, or sqlite:///FILE."
        ) from None
    if engine.dialect.name == "sqlite":
        _any_text(engine)
        sa.event.listen(engine, "connect", _sqlite_settings)
        if made:
            sa.event.listen(engine, "connect", _sqlite_log)
        sa.event.listen(engine, "begin", _sqlite_begin)
    return engine


def _any_text(engine: sa.Engine) -> None:
    """One damaged byte makes text that is no UTF-8, over which the driver would refuse the whole query: its record tells."""

    def told(connection: Any, _: object) -> None:
        connection.text_factory = lambda data: data.decode(errors="replace")

    sa.event.listen(engine, "connect", told)


_WAL_TRIES, _WAL_PAUSE_S = 100, 0.05


def _sqlite_settings(connection: Any, _: object) -> None:
    """Full synchronisation: a committed record survives the process and the power."""
    # The driver's own idea of a transaction leaves out CREATE TABLE: killed between two of them, half a schema stays.
    connection.isolation_level = None
    cursor = connection.cursor()
    for pragma in ("busy_timeout=10000", "synchronous=FULL", "foreign_keys=ON"):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def _sqlite_log(connection: Any, _: object) -> None:
    """Write-ahead log, so that readers and a writer do not wait for each other. The database remembers it."""
    cursor = connection.cursor()
    for last in (*[False] * _WAL_TRIES, True):
        try:
            cursor.execute("PRAGMA journal_mode=WAL")
            break
        except sqlite3.OperationalError as error:
            # Two that meet a new file at the same moment: SQLite does not wait here, whatever its timeout says.
            if last or "locked" not in str(error):
                raise
            time.sleep(_WAL_PAUSE_S)
    cursor.close()


def _sqlite_begin(connection: sa.Connection) -> None:
    # A transaction that reads first and writes later fails at once where another one wrote between; this one waits its turn.
    writes = connection.get_execution_options().get("edgeprof_writes")
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


def _is_ready(connection: sa.Connection, place: str, *, create: bool = True) -> bool:
    """Whether there is nothing to prepare, so that whoever only reads need not wait for a writer.

    Raises StoreError for a database of another version than can be migrated, and unless `create` for one without our tables.
    """
    if not sa.inspect(connection).has_table(_schema.name):
        if create:
            return False
        raise StoreError(
            f"{place} holds no runs: it is empty, or another program's. Of a database that was copied, the file "
            f"{Path(place).name}-wal beside it belongs to it: copy both."
        )
    return _version(connection, place) == SCHEMA_VERSION


def _version(connection: sa.Connection, place: str) -> int:
    """The schema version of the tables, one that can be migrated. Raises StoreError for any other."""
    rows = connection.execute(sa.select(sa.type_coerce(_schema.c.version, sa.types.NullType()))).scalars().all()
    version: Any = rows[0] if len(rows) == 1 else list(rows)
    if not isinstance(version, int) or version < 1:
        raise StoreError(
            f"{place} is damaged: its schema version is {str(version)[:40]}, those of edgeprof are 1 to {SCHEMA_VERSION}. "
            "Move the file away, or give another folder with --out."
        )
    found: int = version
    if found > SCHEMA_VERSION:
        raise StoreError(
            f"{place} was written by a newer edgeprof (schema {version}, this one knows {SCHEMA_VERSION}): "
            "upgrade with pip install -U edgeprof."
        )
    return found


def _prepare(connection: sa.Connection, place: str) -> None:
    if connection.dialect.name == "postgresql":
        # Two controllers that meet an empty database at the same moment.
        connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_PREPARING)))
    if not sa.inspect(connection).has_table(_schema.name):
        _meta.create_all(connection)
        connection.execute(_schema.insert().values(version=SCHEMA_VERSION))
        return
    version = _version(connection, place)
    while version < SCHEMA_VERSION:
        _MIGRATIONS[version](connection)
        version += 1
        connection.execute(_schema.update().values(version=version))


def _storage_error(place: str, error: SQLAlchemyError | UnicodeDecodeError) -> StoreError:
    words = str(getattr(error, "orig", None) or error).strip()
    advice = ""
    if isinstance(error, UnicodeDecodeError):
        words = "database disk image is malformed"
    if "disk is full" in words or "No space left" in words:
        advice = " Free some space, then go on with --resume: everything stored so far is kept."
    elif "not a database" in words or "malformed" in words:
        advice = " Move the file away, or give another folder with --out."
    elif "readonly" in words or "unable to open" in words:
        advice = " Choose a writable folder with --out."
    elif "locked" in words:
        advice = " Another process is writing to it: wait for it, or give another folder with --out."
    return StoreError(f"the run database {place} cannot be used: {words}.{advice}")
