"""Folders of the moment, which go also when their process was killed: whoever makes the next one takes away what nobody holds.

A folder is held by a lock on a file in it, which the kernel lets go with the process, however that ends. Numbers of processes
would not do: containers that share a folder count their own.
"""

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

HELD = ".held"
_TRIES = 10
STALE_AFTER_S = 24 * 3600.0
_OURS = ("edgeprof-", "edgeprof.")


@contextmanager
def held_folder(parent: Path, prefix: str) -> Iterator[Path]:
    """A new folder in `parent` for the `with` block, this user's alone; those of processes that are gone are removed first.

    Raises OSError where nothing can be written.
    """
    sweep(parent, prefix)
    folder, lock = _made(parent, prefix)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        if lock is not None:
            os.close(lock)


def sweep(parent: Path, prefix: str) -> None:
    """Remove the folders in `parent` that were made by `held_folder` with that prefix and that no process holds any more."""
    for folder in parent.glob(f"{prefix}*"):
        try:
            # Never another user's, nor what a link leads to: the parent may be everybody's.
            if folder.is_symlink() or folder.stat().st_uid != os.getuid():
                continue
            lock = os.open(folder / HELD, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError:
            continue
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder, ignore_errors=True)
        except OSError:
            continue
        finally:
            os.close(lock)


def sweep_old(parent: Path, now_s: float | None = None) -> None:
    """Remove our folders in `parent` that are a day old and that nobody holds, those without a lock file too.

    Recipes and runtimes make folders of their own, which a killed process leaves without one. Those of this user only, and no
    links. `now_s` is the time that their age is counted from, the wall clock's where it is None: it is compared with file times.
    """
    now_s = time.time() if now_s is None else now_s
    try:
        found = [path for path in parent.iterdir() if path.name.startswith(_OURS)]
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
    try:
        lock = os.open(folder / HELD, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(lock)
    return False


def _made(parent: Path, prefix: str) -> tuple[Path, int | None]:
    """A folder and its lock; None where the file system knows no locks: such a folder is nobody's to sweep."""
    for _ in range(_TRIES):
        folder = Path(tempfile.mkdtemp(prefix=prefix, dir=parent))
        lock = os.open(folder / HELD, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            # Somebody sweeps it at this moment.
            os.close(lock)
            continue
        except OSError:
            os.close(lock)
            (folder / HELD).unlink(missing_ok=True)
            return folder, None
        if (folder / HELD).exists():
            return folder, lock
        os.close(lock)
    return Path(tempfile.mkdtemp(prefix=prefix, dir=parent)), None
