"""Folders for a while, below the system's temporary folder; what killed processes left there is taken away by the next one."""

from __future__ import annotations

import fcntl
import os
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

STALE_AFTER_S = 24 * 3600.0
_PREFIXES = ("edgeprof-", "edgeprof.")


@contextmanager
def scratch_folder() -> Iterator[str]:
    """A folder that is gone afterwards, and marked as in use until then: a run may take days."""
    sweep(Path(tempfile.gettempdir()))
    with tempfile.TemporaryDirectory(prefix="edgeprof-") as folder:
        handle = os.open(folder, os.O_RDONLY)
        try:
            # The lock vanishes with the process, however that ends.
            fcntl.flock(handle, fcntl.LOCK_SH)
            yield folder
        finally:
            os.close(handle)


def sweep(place: Path, now_s: float | None = None) -> None:
    """Remove our folders in `place` that are a day old and that no process uses: those of this user only, and no links.

    `now_s` is the time that their age is counted from, the wall clock's where it is None: it is compared with file times.
    """
    now_s = time.time() if now_s is None else now_s
    try:
        found = [path for path in place.iterdir() if path.name.startswith(_PREFIXES)]
    except OSError:
        return
    for path in found:
        try:
            about = path.lstat()
            old = now_s - about.st_mtime > STALE_AFTER_S
            if old and stat.S_ISDIR(about.st_mode) and about.st_uid == os.geteuid() and not _in_use(path):
                shutil.rmtree(path, ignore_errors=True)
        except OSError:
            continue


def _in_use(folder: Path) -> bool:
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(handle)
    return False
