"""Counters that tell from outside of a latency whether the processor was taken away: CPU time, and waiting for a processor.

Both cost about a microsecond, so they can be read between inferences. A process that computes on one thread uses as much CPU
time as wall time unless something interfered. With several threads that says little, and the kernel's run-queue delay takes its
place (second field of `/proc/self/task/<tid>/schedstat`, nanoseconds; kept even where CONFIG_SCHEDSTATS is off).
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from profiler.measure.loop import Clock

MAX_THREADS = 8
"""Threads whose delay is read, the busiest: each costs about a microsecond, and a runtime's idle ones have nothing to tell."""

BUSY_SHARE = 0.005
"""A thread that ran less than this share of a stretch has nothing to do with the inferences."""

ONE_THREAD = 0.03
"""How far from one processor's worth of CPU time a process may be to count as computing on one thread."""

_LINE = 80


class RunDelay:
    """The sum of run-queue delays of the process's busiest threads, nanoseconds. Call it; close it when done."""

    def __init__(self, root: Path = Path("/"), *, only: set[int] | None = None) -> None:
        """Open the threads' files. Raises OSError where the kernel has none. `only` leaves out all other thread ids."""
        folder = root / "proc/self/task"
        busy: list[tuple[int, str]] = []
        for name in sorted(path.name for path in folder.iterdir()):
            if only is not None and int(name) not in only:
                continue
            try:
                fields = (folder / name / "schedstat").read_bytes().split()
                busy.append((int(fields[0]), name))
            except (OSError, ValueError, IndexError):
                continue  # a thread that has just ended
        if not busy:
            raise OSError(f"no thread in {folder} tells its schedstat")
        busy.sort(reverse=True)
        self._files = [os.open(folder / name / "schedstat", os.O_RDONLY) for _, name in busy[:MAX_THREADS]]

    def __call__(self) -> int:
        """Nanoseconds so far. A thread that has ended adds nothing."""
        total = 0
        for file in self._files:
            try:
                total += int(os.pread(file, _LINE, 0).split(b" ", 2)[1])
            except (OSError, ValueError, IndexError):
                continue
        return total

    def close(self) -> None:
        """Close the files."""
        for file in self._files:
            os.close(file)
        self._files = []


@dataclass(frozen=True)
class Watch:
    """Which counters the next stretch should read, learned from the last one."""

    threads: set[int] | None = None
    """Threads that ran; None before anything is known: all."""
    delay: bool = True
    """Whether the run-queue delay is needed: not for a process that fills exactly one processor, where CPU time says more."""


def executed(root: Path = Path("/")) -> dict[int, int]:
    """Nanoseconds on a processor by thread id; empty where the kernel does not tell."""
    found = {}
    try:
        for task in (root / "proc/self/task").iterdir():
            try:
                found[int(task.name)] = int((task / "schedstat").read_bytes().split()[0])
            except (OSError, ValueError, IndexError):
                continue
    except OSError:
        return {}
    return found


def learn(before: dict[int, int], after: dict[int, int], wall_s: float) -> Watch:
    """What to watch, from the time that each thread ran during a stretch of `wall_s` seconds."""
    ran = {thread: time - before.get(thread, 0) for thread, time in after.items()}
    busy = {thread for thread, time in ran.items() if time > BUSY_SHARE * wall_s * 1e9}
    shares = [ran[thread] / max(wall_s * 1e9, 1) for thread in busy]
    # One thread must do it nearly alone: two that were starved to half a processor each add up to one as well.
    alone = max(shares, default=0.0) >= 1 - ONE_THREAD and sum(shares) <= 1 + ONE_THREAD
    return Watch(busy or None, not alone)


@contextmanager
def counters(cpu: Clock, watch: Watch, *, root: Path = Path("/")) -> Iterator[dict[str, Clock]]:
    """The counters that this system has, by name: `cpu` (processor time of all threads) and, where needed, `waited`."""
    if not watch.delay:
        yield {"cpu": cpu}
        return
    try:
        delay = RunDelay(root, only=watch.threads)
    except OSError:
        yield {"cpu": cpu}
        return
    try:
        yield {"cpu": cpu, "waited": delay}
    finally:
        delay.close()
