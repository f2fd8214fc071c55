"""Reading a SQLite database that we may not write: an archive, a read-only medium, another user's folder.

SQLite keeps what was written last in a log beside the file (`-wal`) and needs an index of it (`-shm`) that it usually makes
itself. So the file alone may be older than the database. Without a log it is read as a file that nobody changes; with a log and
its index as the database in use that it is; with a log alone, or when that fails, from a private copy of both. Nothing is made
beside it: files of ours there would keep its owner from writing.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from urllib.parse import quote

import sqlalchemy as sa
from sqlalchemy.exc import OperationalError

_COPIES = 3

Connected = Callable[[sa.Engine], None]
"""Told of each engine before it connects, to listen to its events."""


def log_of(path: Path) -> Path:
    """Where SQLite keeps what was not yet written into the file itself."""
    return path.with_name(f"{path.name}-wal")


def read_only(
    path: Path, *, ready: Callable[[sa.Connection], bool], prepare: Callable[[sa.Connection], None], tell: Connected
) -> tuple[sa.Engine, tempfile.TemporaryDirectory[str] | None]:
    """An engine that reads the newest state of the database and writes nothing; with the folder of its copy, if it needs one.

    `ready` says whether the tables are those of this version; where not, `prepare` makes them so, in the copy. Raises
    SQLAlchemyError, OSError where there is a log that may not be read, and what the two raise.
    """
    logged = _has_log(path)
    if not logged or path.with_name(f"{path.name}-shm").exists():
        options = {"mode": "ro"} if logged else {"mode": "ro", "immutable": "1"}
        engine = _engine(f"file:{quote(str(path.resolve()))}", {**options, "uri": "true"})
        tell(engine)
        try:
            with engine.connect() as connection:
                good = ready(connection)
        except OperationalError:
            good = False
        except BaseException:
            engine.dispose()
            raise
        if good:
            return engine, None
        engine.dispose()
    return _copied(path, prepare, tell)


def _copied(
    path: Path, prepare: Callable[[sa.Connection], None], tell: Connected
) -> tuple[sa.Engine, tempfile.TemporaryDirectory[str]]:
    folder = tempfile.TemporaryDirectory(prefix="edgeprof-")
    try:
        copy = Path(folder.name) / path.name
        for _ in range(_COPIES):
            before = _state(path)
            shutil.copyfile(path, copy)
            log_of(copy).unlink(missing_ok=True)
            if _has_log(path):
                shutil.copyfile(log_of(path), log_of(copy))
            if _state(path) == before:
                break
        engine = _engine(str(copy), {})
        tell(engine)
        with engine.connect() as connection:
            prepare(connection)
            connection.commit()
        # What is written into a copy would be lost without a word.
        sa.event.listen(engine, "connect", _refuse_writes)
        engine.dispose()
    except BaseException:
        folder.cleanup()
        raise
    return engine, folder


def _engine(database: str, query: dict[str, str]) -> sa.Engine:
    return sa.create_engine(sa.URL.create("sqlite", database=database, query=query))


def _refuse_writes(connection: object, _: object) -> None:
    connection.execute("PRAGMA query_only=ON")  # type: ignore[attr-defined]  # a driver's connection


def _has_log(path: Path) -> bool:
    log = log_of(path)
    return log.exists() and log.stat().st_size > 0


def _state(path: Path) -> list[tuple[int, int]]:
    found = [file.stat() for file in (path, log_of(path)) if file.exists()]
    return [(one.st_size, one.st_mtime_ns) for one in found]
