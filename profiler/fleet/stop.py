"""Ending threads that wait for devices: whatever they wait for ends, and what they would store then is not stored."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, field
from threading import Event, Lock
from weakref import WeakSet

from profiler.targets.process import WorkerProcess


class Stopped(Exception):  # noqa: N818 (what happened to a thread, no mistake)
    """The run ends; nothing is wrong with the device."""


@dataclass
class Stop:
    """Whether one device's queue is to end, and the workers that it has."""

    asked: Event = field(default_factory=Event)
    _workers: WeakSet[WorkerProcess] = field(default_factory=WeakSet)
    _lock: Lock = field(default_factory=Lock)

    def watch(self, worker: WorkerProcess) -> WorkerProcess:
        """Remember a worker that was just started."""
        with self._lock:
            self._workers.add(worker)
        if self.asked.is_set():
            worker.close()
            raise Stopped
        return worker

    def check(self) -> None:
        """Raise Stopped when it was asked for."""
        if self.asked.is_set():
            raise Stopped

    def sleep(self, seconds: float) -> None:
        """Wait so long, or until it is asked for. Raises Stopped."""
        if self.asked.wait(seconds):
            raise Stopped

    def now(self) -> None:
        """Ask for it, and end what is waited for."""
        self.asked.set()
        self.end_workers()

    def end_workers(self) -> None:
        """Kill the workers: their device is not ours any more, or the run ends."""
        with self._lock:
            workers = list(self._workers)
        for worker in workers:
            with suppress(OSError):
                worker.kill()
