"""Who measures on a device: one lease per device, a row of the run database. Used by `profiler.store`, inside its transactions.

A lease is an id with a deadline. Whoever stores a result names the id, and the statement that moves the deadline on is the one
that tells whether the id still holds, in the transaction of the result itself: between looking and storing nobody else can come.
A lease whose deadline has passed, or whose owner is a process of this very machine that has ended, can be taken over; what its
old owner brings later is refused, and counted.

Deadlines are of one clock: the database server's, or this machine's where the database is a file.
"""

from __future__ import annotations

import getpass
import json
import os
import platform
import secrets
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from threading import Event
from typing import Any, Literal

import psutil
import sqlalchemy as sa

from profiler.errors import StoreError

TTL_S = 90.0
"""How long a lease holds without a sign of life. A controller that was cut off stops before, see `profiler.fleet`."""
_held_here: set[str] = set()
"""Ids of the leases of this process that were not given back: one that a full disk kept in the database is known to be over."""
QueueStatus = Literal["waiting", "measuring", "lost", "failed", "done"]


class LeaseLost(StoreError):  # noqa: N818 (named for what happened)
    """The device is no longer ours: what was measured is not stored."""


@dataclass(frozen=True)
class Owner:
    """The process that holds a lease."""

    host: str
    user: str
    pid: int
    started_unix_s: float
    """Start of the process: a number alone may be given to another one later."""
    seat: str
    """Boot and process namespace: only inside one of them do process ids mean the same."""

    def __str__(self) -> str:
        """For people."""
        return f"{self.user}@{self.host}, process {self.pid}"


@dataclass
class Lease:
    """A device of ours until the deadline. Made by `Store.acquire`."""

    device: str
    id: str
    attempt: int
    """Counts the leases of this device, from 0."""
    ttl_s: float
    renewed_s: float
    """When it was last heard that it holds, monotonic clock."""
    gone: Event = field(default_factory=Event)
    """Set once it is known not to hold any more."""
    check: Callable[[], None] = lambda: None
    """Called before a result is stored, and may raise: what a worker that we killed ourselves says is no result."""


@dataclass(frozen=True)
class LeaseState:
    """A device in the database: who has it, or had it last."""

    device: str
    attempt: int
    owner: Owner | None
    """None when the row cannot be read."""
    run_id: str | None
    left_s: float | None
    """Until the deadline; None when nobody has it."""
    since_unix_s: float
    last_stored: str | None
    """The case of the newest result under the newest lease."""
    refused: int
    """Results that came under a lease which no longer held."""

    @property
    def live(self) -> bool:
        """Whether somebody has it, and is not known to have ended."""
        return self.left_s is not None and not (self.owner is not None and has_ended(self.owner))


@dataclass(frozen=True)
class QueueState:
    """How far a run is with one device."""

    device: str
    status: QueueStatus
    reason: str | None
    since_unix_s: float


def tables(meta: sa.MetaData) -> tuple[sa.Table, sa.Table]:
    """The tables `leases` (one row per device) and `queues` (one per run and device)."""
    leases = sa.Table(
        "leases", meta,
        sa.Column("device", sa.String(200), primary_key=True),
        sa.Column("id", sa.String(40), nullable=False),
        sa.Column("attempt", sa.Integer, nullable=False),
        sa.Column("owner", sa.Text, nullable=False),
        sa.Column("run_id", sa.String(40)),
        sa.Column("machine", sa.String(100)),
        sa.Column("since", sa.Float, nullable=False),
        sa.Column("deadline", sa.Float, nullable=False),
        sa.Column("last_stored", sa.Text),
        sa.Column("refused", sa.Integer, nullable=False),
    )  # fmt: skip
    queues = sa.Table(
        "queues", meta,
        sa.Column("run_id", sa.String(40), sa.ForeignKey("runs.id"), primary_key=True),
        sa.Column("device", sa.String(200), primary_key=True),
        sa.Column("status", sa.String(20), nullable=False),
        sa.Column("reason", sa.Text),
        sa.Column("since", sa.Float, nullable=False),
    )  # fmt: skip
    return leases, queues


def ourselves() -> Owner:
    """This process."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):
        user = str(os.getuid())
    return Owner(platform.node(), user, os.getpid(), psutil.Process().create_time(), _seat())


def has_ended(owner: Owner) -> bool:
    """Whether it is known that the process is over; False for processes of other machines, of which nothing is known."""
    if owner.seat != _seat():
        return False
    try:
        return abs(psutil.Process(owner.pid).create_time() - owner.started_unix_s) > 1.0
    except psutil.NoSuchProcess:
        return True
    except psutil.Error:
        return False


def boot_id(root: Path = Path("/")) -> str | None:
    """What tells this boot of this machine from every other one; containers share their machine's. None where nothing tells."""
    try:
        return (root / "proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip() or None
    except (OSError, ValueError):
        return None


def acquire(
    connection: sa.Connection, table: sa.Table, device: str, *, run_id: str | None, machine: str | None, owner: Owner,
    ttl_s: float, now: float, ended: Callable[[Owner], bool] = has_ended,
) -> Lease | LeaseState:  # fmt: skip
    """Take the device, inside a transaction in which nobody else acquires; or who has it.

    A lease of another device that is the same `machine` counts as one of this device: a board may have two names.
    """
    columns = table.c
    same = columns.device == device if machine is None else (columns.device == device) | (columns.machine == machine)
    rows = connection.execute(sa.select(table).where(same)).mappings().all()
    for row in rows:
        state = _state(row, now)
        over = state.owner is not None and (
            ended(state.owner) or (state.owner == owner and row["id"] not in _held_here)
        )
        if state.left_s is not None and not over:
            return state
    mine = next((row for row in rows if row["device"] == device), None)
    attempt = 0 if mine is None else int(mine["attempt"]) + 1
    lease = Lease(device, secrets.token_hex(16), attempt, ttl_s, time.monotonic())
    values = {
        "id": lease.id, "attempt": attempt, "owner": json.dumps(asdict(owner)), "run_id": run_id, "machine": machine,
        "since": now, "deadline": now + ttl_s, "last_stored": None,
    }  # fmt: skip
    if mine is None:
        connection.execute(table.insert().values(device=device, refused=0, **values))
    else:
        connection.execute(table.update().where(columns.device == device).values(**values))
    _held_here.add(lease.id)
    return lease


def over(lease: Lease) -> None:
    """Say, to this process, that a lease is given back, whether or not the database can be told."""
    _held_here.discard(lease.id)


def renew(connection: sa.Connection, table: sa.Table, lease: Lease, now: Any, stored: str | None = None) -> bool:
    """Move the deadline on; False when the lease does not hold any more. `now` may be an expression of the server's."""
    values: dict[str, Any] = {"deadline": now + lease.ttl_s}
    if stored is not None:
        values["last_stored"] = stored
    held = (table.c.device == lease.device) & (table.c.id == lease.id) & (table.c.deadline >= now)
    return bool(connection.execute(table.update().where(held).values(**values)).rowcount)


def release(connection: sa.Connection, table: sa.Table, lease: Lease) -> None:
    """Give the device back, unless it is another's by now."""
    ours = (table.c.device == lease.device) & (table.c.id == lease.id)
    connection.execute(table.update().where(ours).values(deadline=0.0, id=""))


def refuse(connection: sa.Connection, table: sa.Table, device: str) -> None:
    """Count a result that came too late."""
    connection.execute(table.update().where(table.c.device == device).values(refused=table.c.refused + 1))


def states(connection: sa.Connection, table: sa.Table, now: float) -> tuple[LeaseState, ...]:
    """All devices that ever had a lease, by name."""
    return tuple(_state(row, now) for row in connection.execute(sa.select(table).order_by(table.c.device)).mappings())


def _state(row: Any, now: float) -> LeaseState:
    try:
        owner = Owner(**json.loads(row["owner"]))
    except (ValueError, TypeError):
        owner = None
    left = float(row["deadline"]) - now
    return LeaseState(
        row["device"], int(row["attempt"]), owner, row["run_id"], left if row["id"] and left >= 0 else None,
        float(row["since"]), row["last_stored"], int(row["refused"]),
    )  # fmt: skip


def _seat() -> str:
    """Empty parts where the system does not tell: the host's name then has to do."""
    try:
        namespace = str(Path("/proc/self/ns/pid").readlink())
    except OSError:
        namespace = ""
    return f"{boot_id() or platform.node()} {namespace}".strip()
