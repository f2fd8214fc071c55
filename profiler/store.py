"""The run database: every record is stored when it exists, in one transaction, and never changed.

SQLite in the output folder by default, any SQLAlchemy URL otherwise. Samples are kept whole. Uniqueness is the
database's own (no second block for the same case, replicate, group and round), so a resumed run can't count twice.

A store `under` a lease is the same database as one device's queue sees it: it accepts a result only as long as the lease holds
(profiler/leases.py), and it reads the device's own results.
"""

from __future__ import annotations

import json
import os
import secrets
import sqlite3
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass, fields
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Literal, TypeVar
from urllib.parse import quote

import numpy as np
import sqlalchemy as sa
from pydantic import TypeAdapter, ValidationError
from sqlalchemy.exc import IntegrityError, SQLAlchemyError

from profiler import leases as lease_rows
from profiler import wire
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
    WarmupRecord,
)
from profiler.study import Study, make_study

Status = Literal["running", "interrupted", "finished"]
SCHEMA_VERSION = 4
DATABASE_NAME = "edgeprof.sqlite"

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


class Store:
    """An open run database. Threads may share it."""

    def __init__(
        self,
        engine: sa.Engine,
        place: str,
        *,
        lease: Lease | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Use `open_store`, and `under` for one with a lease."""
        self._engine = engine
        self.place = place
        self.lease = lease
        """What every result that is stored needs; None where nobody else can come."""
        self._clock = clock
        self._writing = _writers(engine)

    def close(self) -> None:
        """Close the connections."""
        self._engine.dispose()

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
        """Store one record. False when one with the same key is stored already: the first one stands.

        Raises LeaseLost when the device is not ours any more: nothing is stored then.
        """
        if self.lease is not None:
            self.lease.check()
        table = _TABLES[type(record)]
        content, arrays = _encode(record)
        key = {column.name: content.get(column.name) for column in table.c if column.name not in _GENERAL}
        row = {"run_id": run_id, **key, "record": json.dumps(content), "arrays": wire.pack(arrays) if arrays else None}
        try:
            with self._transaction(writes=True) as connection:
                self._hold(connection, content.get("case"))
                connection.execute(table.insert().values(row))
        except LeaseLost:
            self._refused()
            raise
        except _ConstraintError:
            found = sa.select(table.c.id).where(table.c.run_id == run_id, *(table.c[name] == key[name] for name in key))
            with self._transaction() as connection:
                if connection.execute(found).first() is not None:
                    return False
            # Some other rule of the database: nothing was stored, and nobody may believe it was.
            raise
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
        """All records of one kind, in the order they were stored."""
        table = _TABLES[kind]
        query = sa.select(table.c.record, table.c.arrays).where(table.c.run_id == run_id, *self._of_device(table))
        query = query.order_by(table.c.id)
        with self._transaction() as connection:
            rows = connection.execute(query).all()
        return tuple(_decode(kind, text, arrays) for text, arrays in rows)

    def run(self, run_id: str) -> RunData:
        """Everything about one run. Raises StoreError when the id is unknown or a record is damaged."""
        with self._transaction() as connection:
            row = connection.execute(sa.select(_runs).where(_runs.c.id == run_id)).mappings().one_or_none()
        if row is None:
            raise StoreError(f"no run '{run_id}' in {self.place}. `edgeprof runs` lists them.")
        try:
            study = make_study(**json.loads(row["study"]))
            environment = _adapter(Environment).validate_python(json.loads(row["environment"]))
            notes, plan = tuple(json.loads(row["notes"])), json.loads(row["plan"] or "{}")
        except (ValidationError, ValueError, TypeError, EdgeprofError) as error:
            raise StoreError(f"run {run_id} in {self.place} is damaged: {error}.") from error
        return RunData(
            id=row["id"], created_at=row["created_at"], status=row["status"], edgeprof_version=row["edgeprof_version"],
            study=study, environment=environment, notes=notes, plan=plan,
            artifacts=self.records(run_id, ArtifactRecord), processes=self.records(run_id, ProcessRecord),
            blocks=self.records(run_id, BlockRecord), qualities=self.records(run_id, QualityRecord),
            failures=self.records(run_id, FailureRecord), energies=self.records(run_id, EnergyRecord),
            loads=self.records(run_id, LoadRecord), runtimes=self.records(run_id, RuntimeRecord), queues=self.queues(run_id),
        )  # fmt: skip

    def add_selftest(self, record: SelftestRecord) -> None:
        """Keep a self-test of this machine."""
        row = {"machine": record.machine, "created_at": record.created_at, "record": json.dumps(asdict(record))}
        with self._transaction(writes=True) as connection:
            connection.execute(_selftests.insert().values(row))

    def last_selftest(self, machine: str) -> SelftestRecord | None:
        """The newest self-test of the machine with that fingerprint."""
        query = sa.select(_selftests.c.record).where(_selftests.c.machine == machine)
        with self._transaction() as connection:
            text = connection.execute(query.order_by(_selftests.c.created_at.desc(), _selftests.c.id.desc())).scalar()
        return None if text is None else _decode(SelftestRecord, text, None)

    def runs(self) -> list[RunSummary]:
        """All runs, newest first."""
        with self._transaction() as connection:
            rows = (
                connection.execute(sa.select(_runs).order_by(_runs.c.created_at.desc(), _runs.c.id.desc()))
                .mappings()
                .all()
            )
            summaries = []
            for row in rows:
                try:
                    asked = json.loads(row["study"])
                    model, data = str(asked["model"]), asked["data"]
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
                summaries.append(RunSummary(row["id"], row["created_at"], row["status"], model, data, *counts))
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
            raise StoreError(f"there are no runs in {self.place} yet: `edgeprof profile MODEL --data DATA` makes one.")
        if text == "latest":
            return ids[0]
        found = [run_id for run_id in ids if run_id.startswith(text)]
        if len(found) == 1:
            return found[0]
        problem = f"'{text}' fits {len(found)} runs" if found else f"no run '{text}'"
        raise StoreError(f"{problem} in {self.place}; the newest are: {', '.join(ids[:5])}. `edgeprof runs` lists all.")

    def study(self, run_id: str) -> Study:
        """What the run was asked, without its records. Raises StoreError as `run` does."""
        with self._transaction() as connection:
            text = connection.execute(sa.select(_runs.c.study).where(_runs.c.id == run_id)).scalar()
        if text is None:
            raise StoreError(f"no run '{run_id}' in {self.place}. `edgeprof runs` lists them.")
        try:
            return make_study(**json.loads(text))
        except (ValueError, TypeError, EdgeprofError) as error:
            raise StoreError(f"run {run_id} in {self.place} is damaged: {error}.") from error

    def plan(self, run_id: str) -> dict[str, Any]:
        """What the run does, as stored; empty when that is not known yet, or damaged."""
        with self._transaction() as connection:
            text = connection.execute(sa.select(_runs.c.plan).where(_runs.c.id == run_id)).scalar()
        try:
            plan = json.loads(text or "{}")
        except ValueError:
            return {}
        return plan if isinstance(plan, dict) else {}

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
        except SQLAlchemyError as error:
            raise _storage_error(self.place, error) from error


class _ConstraintError(StoreError):
    pass


_ID_TRIES = 20
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
    """Open the database in the folder `place` (made when missing), or behind an SQLAlchemy URL; migrate it if it is older.

    `clock` is what leases go by, where the database is a file.

    Raises StoreError: not a database, from a newer edgeprof, not writable, disk full.
    """
    text = str(place)
    if "://" in text:
        engine, shown = _engine(text), shown_address(text)
    else:
        folder = Path(text)
        path = folder / DATABASE_NAME
        if not create and not path.is_file():
            raise StoreError(f"there is no {DATABASE_NAME} in {folder}: give the folder of a run with --out.")
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StoreError(f"cannot write to {folder}: {error.strerror}. Choose another folder with --out.") from None
        if not create and not os.access(folder, os.W_OK):
            # Reports can be made from an archive or a read-only mount, where SQLite could not keep its log.
            return Store(
                _engine(f"sqlite:///file:{quote(str(path.resolve()))}?mode=ro&immutable=1&uri=true"), str(path)
            )
        engine, shown = _engine(f"sqlite:///{path}"), str(path)
    try:
        with engine.begin() as connection:
            ready = _is_ready(connection)
        if not ready:
            with engine.connect().execution_options(edgeprof_writes=True) as connection, connection.begin():
                _prepare(connection, shown)
    except SQLAlchemyError as error:
        raise _storage_error(shown, error) from error
    return Store(engine, shown, clock=clock)


def shown_address(url: str) -> str:
    """A database's address for people: without its password, wherever in it that stands."""
    try:
        parsed = sa.make_url(url)
        secret = [key for key in parsed.query if "pass" in key.lower() or "secret" in key.lower()]
        return parsed.difference_update_query(secret).render_as_string(hide_password=True)
    except (SQLAlchemyError, ValueError):
        return url.partition("://")[0] + "://…"


def _engine(url: str) -> sa.Engine:
    try:
        # A connection that the server closed while a device was measuring is replaced, not an error.
        engine = sa.create_engine(url, pool_pre_ping=not url.startswith("sqlite"))
    except ModuleNotFoundError as error:
        advice = " Install it: pip install 'edgeprof[postgres]', and begin the address with postgresql+psycopg://."
        raise StoreError(
            f"the database {shown_address(url)} needs the module {error.name}, which is not installed."
            f"{advice if url.startswith('postgres') else ''}"
        ) from None
    except (SQLAlchemyError, ImportError, ValueError, TypeError) as error:
        # The error's own words may hold the whole address.
        raise StoreError(
            f"cannot use the database address '{shown_address(url)}' ({type(error).__name__}): expected "
            "postgresql+psycopg://USER@HOST/DATABASE, or sqlite:///FILE."
        ) from None
    if engine.dialect.name == "sqlite" and "immutable=1" not in url:
        sa.event.listen(engine, "connect", _sqlite_settings)
        sa.event.listen(engine, "begin", _sqlite_begin)
    return engine


_WAL_TRIES, _WAL_PAUSE_S = 100, 0.05


def _sqlite_settings(connection: Any, _: object) -> None:
    """Write-ahead log with full synchronisation: a committed record survives the process and the power."""
    # The driver's own idea of a transaction leaves out CREATE TABLE: killed between two of them, half a schema stays.
    connection.isolation_level = None
    cursor = connection.cursor()
    for pragma in ("busy_timeout=10000", "synchronous=FULL", "foreign_keys=ON"):
        cursor.execute(f"PRAGMA {pragma}")
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


def _is_ready(connection: sa.Connection) -> bool:
    """Whether there is nothing to prepare, so that whoever only reads need not wait for a writer."""
    if not sa.inspect(connection).has_table(_schema.name):
        return False
    return connection.execute(sa.select(_schema.c.version)).scalar() == SCHEMA_VERSION


def _prepare(connection: sa.Connection, place: str) -> None:
    if connection.dialect.name == "postgresql":
        # Two controllers that meet an empty database at the same moment.
        connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_PREPARING)))
    if not sa.inspect(connection).has_table(_schema.name):
        _meta.create_all(connection)
        connection.execute(_schema.insert().values(version=SCHEMA_VERSION))
        return
    version = int(connection.execute(sa.select(_schema.c.version)).scalar_one())
    if version > SCHEMA_VERSION:
        raise StoreError(
            f"{place} was written by a newer edgeprof (schema {version}, this one knows {SCHEMA_VERSION}): "
            "upgrade with pip install -U edgeprof."
        )
    while version < SCHEMA_VERSION:
        _MIGRATIONS[version](connection)
        version += 1
        connection.execute(_schema.update().values(version=version))


def _storage_error(place: str, error: SQLAlchemyError) -> StoreError:
    words = str(getattr(error, "orig", None) or error).strip()
    advice = ""
    if "disk is full" in words or "No space left" in words:
        advice = " Free some space, then go on with --resume: everything stored so far is kept."
    elif "not a database" in words or "malformed" in words:
        advice = " Move the file away, or give another folder with --out."
    elif "readonly" in words or "unable to open" in words:
        advice = " Choose a writable folder with --out."
    elif "locked" in words:
        advice = " Another process is writing to it: wait for it, or give another folder with --out."
    return StoreError(f"the run database {place} cannot be used: {words}.{advice}")


_adapters: dict[Any, TypeAdapter[Any]] = {}


def _adapter(kind: Any) -> TypeAdapter[Any]:
    """What checks a record that is read back; made once per kind."""
    if kind not in _adapters:
        _adapters[kind] = TypeAdapter(kind)
    return _adapters[kind]


def _encode(record: Record) -> tuple[dict[str, Any], wire.Arrays]:
    """Split a record into JSON and its arrays; a nested warm-up keeps its samples under `warmup.`."""
    arrays: wire.Arrays = {}
    content: dict[str, Any] = {}
    for field in fields(record):
        value = getattr(record, field.name)
        if isinstance(value, np.ndarray):
            arrays[field.name] = value
        elif isinstance(value, WarmupRecord):
            arrays["warmup.samples_s"] = value.samples_s
            content["warmup"] = {"cut": value.cut, "label": value.label, "time_to_steady_s": value.time_to_steady_s}
        else:
            content[field.name] = asdict(value) if hasattr(value, "__dataclass_fields__") else value
    return content, arrays


_D = TypeVar("_D")


def _decode(kind: type[_D], text: str, packed: bytes | None) -> _D:
    try:
        arrays = wire.unpack(packed) if packed else {}
        content = json.loads(text)
        content.update({name: arrays[name] for name in arrays if "." not in name})
        if content.get("warmup") is not None:
            content["warmup"]["samples_s"] = arrays["warmup.samples_s"]
        record: _D = _adapter(kind).validate_python(content)
        if isinstance(record, BlockRecord):
            record.check()
    except (ValidationError, ValueError, KeyError, TypeError, AttributeError, wire.WireError) as error:
        raise StoreError(f"a {kind.__name__} in the run database is damaged: {error}.") from error
    return record
