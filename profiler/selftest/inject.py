"""Disturbances of known time and kind, to see whether the profiler's labels find them. Context managers that clean up.

Each gives an `Injected` whose `intervals` are the truth: when it disturbed, in seconds of CLOCK_MONOTONIC, the clock that
blocks are dated with on the same machine (`BlockRecord.started_s`).
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from profiler.errors import EdgeprofError
from profiler.selftest import child

Interval = tuple[float, float]
"""[start, end) in seconds of CLOCK_MONOTONIC."""

STOP_S = 0.050
HOG_SHARE = 0.25
"""Of the memory that is free: a hog that makes the machine swap would measure the swap."""

_READY_S = 20.0
_GRACE_S = 2.0
_JOIN_S = 1e-3
_QUOTA_PERIOD_S = 0.1


class CannotInject(EdgeprofError):  # noqa: N818 (a state of this machine, shown as "not measured: why")
    """This disturbance cannot be injected on this machine."""


@dataclass
class Injected:
    """One disturbance that is going on, or was."""

    kind: str
    _logs: list[IO[bytes]] = field(default_factory=list, repr=False)
    _done: list[Interval] = field(default_factory=list, repr=False)

    @property
    def intervals(self) -> tuple[Interval, ...]:
        """When it disturbed, in time order and merged; what is going on counts up to the last line of its log."""
        found = list(self._done)
        for log in self._logs:
            found += _read(log)
        return merged(found)


def merged(intervals: Sequence[Interval]) -> tuple[Interval, ...]:
    """In time order, overlapping and adjoining ones (to a millisecond) joined."""
    joined: list[Interval] = []
    for start, end in sorted(intervals):
        if joined and start <= joined[-1][1] + _JOIN_S:
            joined[-1] = (joined[-1][0], max(joined[-1][1], end))
        else:
            joined.append((start, end))
    return tuple(joined)


@contextmanager
def spinners(count: int, *, on_s: float = 0.05, off_s: float = 0.0, seed: int = 0) -> Iterator[Injected]:
    """`count` processes that keep a processor busy each: always, or in bursts of `on_s` with pauses of `off_s` on average."""
    commands = [("spin", f"{on_s:g}", f"{off_s:g}", str(seed + number)) for number in range(count)]
    with _children("bursts" if off_s else "spinners", commands) as injected:
        yield injected


@contextmanager
def stop_pulses(
    pids: Sequence[int], *, stop_s: float = STOP_S, gap_s: float = 0.3, seed: int = 0
) -> Iterator[Injected]:
    """Stop the processes (SIGSTOP) for `stop_s` again and again; they run on at the end, whatever happens."""
    try:
        command = ("pulse", f"{stop_s:g}", f"{gap_s:g}", str(seed), *map(str, pids))
        with _children("stop pulses", [command]) as injected:
            yield injected
    finally:
        for pid in pids:
            with suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGCONT)


@contextmanager
def memory_hog(size_bytes: int, *, available_bytes: Callable[[], int] | None = None) -> Iterator[Injected]:
    """A process that copies memory about, at most a quarter of what is free."""
    free = (available_bytes or _available)()
    bounded = min(size_bytes, int(free * HOG_SHARE))
    if bounded < 1 << 20:
        raise CannotInject(f"cannot be injected here: {free >> 20} MiB of memory are free, too few for a memory hog.")
    with _children("memory hog", [("hog", str(bounded))]) as injected:
        yield injected


@contextmanager
def cpu_quota(
    share: float,
    *,
    pid: int | None = None,
    root: Path = Path("/"),
    mkdir: Callable[[Path], None] = os.mkdir,
    rmdir: Callable[[Path], None] = os.rmdir,
    clock: Callable[[], float] = time.monotonic,
) -> Iterator[Injected]:
    """Limit `pid` (None: this process) and what it starts from now on to `share` of one processor, by a control group.

    Raises CannotInject where control groups of the processor are absent or not ours to write.
    """
    who = os.getpid() if pid is None else pid
    with ExitStack() as stack:
        try:
            _enter_group(stack, who, share, root, mkdir, rmdir)
        except OSError as error:
            raise CannotInject(
                f"cannot be injected here: the control group of process {who} cannot be limited ({error.strerror}: "
                f"{error.filename}); it takes root and a writable cgroup file system."
            ) from error
        injected = Injected("cpu quota")
        begin = clock()
        try:
            yield injected
        finally:
            injected._done.append((begin, clock()))  # noqa: SLF001 (made here)


def _enter_group(
    stack: ExitStack, pid: int, share: float, root: Path, mkdir: Callable[[Path], None], rmdir: Callable[[Path], None]
) -> None:
    """Make a group below the process's own (v1) or beside it (v2), limit it and move the process there; undone by `stack`."""
    home, version = _home(pid, root)
    parent = home
    if version == 2:
        # Processes and controlled children exclude each other, except in the root group.
        parent = home if home == root / "sys/fs/cgroup" else home.parent
        if "cpu" not in (parent / "cgroup.subtree_control").read_text().split():
            _write(parent / "cgroup.subtree_control", "+cpu")
            stack.callback(_ignore_errors, _write, parent / "cgroup.subtree_control", "-cpu")
    group = parent / f"edgeprof-selftest-{pid}"
    mkdir(group)
    stack.callback(_ignore_errors, rmdir, group)
    period_us = int(_QUOTA_PERIOD_S * 1e6)
    quota_us = max(1000, int(period_us * share))
    if version == 2:
        _write(group / "cpu.max", f"{quota_us} {period_us}")
    else:
        _write(group / "cpu.cfs_period_us", str(period_us))
        _write(group / "cpu.cfs_quota_us", str(quota_us))
    stack.callback(_move_all, group, home)
    _write(group / "cgroup.procs", str(pid))


def _home(pid: int, root: Path) -> tuple[Path, int]:
    """The folder of the process's control group for the processor, and the version of the file system."""
    unified: str | None = None
    for line in (root / f"proc/{pid}/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if "cpu" in controllers.split(","):
            for mount in (controllers, "cpu"):
                folder = root / "sys/fs/cgroup" / mount / path.lstrip("/")
                if folder.is_dir():
                    return folder, 1
        if not controllers:
            unified = path
    folder = root / "sys/fs/cgroup"
    if unified is not None and "cpu" in (folder / "cgroup.controllers").read_text().split():
        return folder / unified.lstrip("/"), 2
    raise FileNotFoundError(2, "no control group of the processor", f"/proc/{pid}/cgroup")


def _move_all(group: Path, home: Path) -> None:
    """Back to where they came from: what is still in the group, one by one."""
    with suppress(OSError):
        for pid in (group / "cgroup.procs").read_text().split():
            with suppress(OSError):
                _write(home / "cgroup.procs", pid)


def _ignore_errors(act: Callable[..., object], *arguments: object) -> None:
    with suppress(OSError):
        act(*arguments)


def _write(path: Path, text: str) -> None:
    # Never makes a file: where the kernel has none, the absence is the answer.
    handle = os.open(path, os.O_WRONLY)
    try:
        os.write(handle, text.encode())
    except OSError as error:
        error.filename = str(path)
        raise
    finally:
        os.close(handle)


@contextmanager
def _children(kind: str, commands: Sequence[Sequence[str]]) -> Iterator[Injected]:
    """Start the children, wait until they disturb, and end them; their logs outlive them in `Injected`."""
    injected = Injected(kind)
    with ExitStack() as logs, ExitStack() as processes:
        for command in commands:
            log = logs.enter_context(tempfile.TemporaryFile())
            try:
                # Isolated and without site: starts in a few milliseconds, imports nothing of anybody's.
                process = subprocess.Popen(
                    [sys.executable, "-I", "-S", child.__file__, str(os.getpid()), *command],
                    stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.DEVNULL, start_new_session=True,
                )  # fmt: skip
            except OSError as error:
                raise CannotInject(f"cannot be injected here: {kind} need a process ({error.strerror}).") from error
            processes.callback(_end, process)
            injected._logs.append(log)  # noqa: SLF001 (made here)
            _wait_ready(kind, log, process)
        try:
            yield injected
        finally:
            processes.close()
            injected._done += [interval for log in injected._logs for interval in _read(log)]  # noqa: SLF001
            injected._logs.clear()  # noqa: SLF001


def _wait_ready(kind: str, log: IO[bytes], process: subprocess.Popen[bytes]) -> None:
    until = time.monotonic() + _READY_S
    while not os.pread(log.fileno(), 5, 0):
        if process.poll() is not None or time.monotonic() > until:
            raise CannotInject(f"cannot be injected here: {kind} did not start (exit code {process.poll()}).")
        time.sleep(0.002)


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(_GRACE_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _read(log: IO[bytes]) -> list[Interval]:
    text = os.pread(log.fileno(), os.fstat(log.fileno()).st_size, 0).decode()
    lines = (line.split() for line in text.split("\n")[:-1])
    return [(float(parts[0]), float(parts[1])) for parts in lines if len(parts) == 2]


def _available() -> int:
    import psutil

    return int(psutil.virtual_memory().available)
