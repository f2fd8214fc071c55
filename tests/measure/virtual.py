"""A kernel whose time is a number: threads take turns, and time jumps to the next moment that somebody waits for.

What the serving engine does on it is exact and the same on every machine. A deadlock is an error, not a hang.
"""

from __future__ import annotations

import heapq
import itertools
import threading
from collections import deque


class DeadlockError(AssertionError):
    """Every thread waits for another one."""


class _Task:
    def __init__(self, job):
        self.job = job
        self.baton = threading.Semaphore(0)
        self.resumed_by = None
        self.over = False


class VirtualInbox:
    def __init__(self, kernel):
        self._kernel = kernel
        self.items = deque()
        self.waiting = deque()

    def put(self, item):
        self.items.append(item)
        if self.waiting:
            self._kernel.wake(self.waiting.popleft(), self)

    def get(self, until_ns):
        while not self.items:
            if until_ns is not None and self._kernel.now() >= until_ns:
                return None
            self._kernel.block(self, until_ns)
        return self.items.popleft()


class VirtualKernel:
    """Implements `profiler.measure.serving.Kernel`. `spend` is how a fake model takes time."""

    def __init__(self, late_ns=0):
        self.time_ns = 0
        self.late_ns = late_ns
        self._current = None
        self._ready = deque()
        self._timers = []
        self._count = itertools.count()
        self._scheduler = threading.Semaphore(0)

    def now(self):
        return self.time_ns

    def inbox(self):
        return VirtualInbox(self)

    def spend(self, seconds):
        """Take so long, whatever happens meanwhile."""
        until = self.time_ns + round(seconds * 1e9)
        while self.time_ns < until:
            self.block(None, until)

    def wait_until(self, moment_ns, stopped):
        while self.time_ns < moment_ns and not stopped():
            self.block(None, min(moment_ns + self.late_ns, self.time_ns + 50_000_000))

    def block(self, inbox, until_ns):
        task = self._current
        if task is None:
            # Nobody else is there: warming up, between runs.
            assert until_ns is not None
            self.time_ns = max(self.time_ns, until_ns)
            return
        task.resumed_by = None
        if inbox is not None:
            inbox.waiting.append(task)
        if until_ns is not None:
            heapq.heappush(self._timers, (until_ns, next(self._count), task))
        self._scheduler.release()
        task.baton.acquire()
        if inbox is not None and task in inbox.waiting:
            inbox.waiting.remove(task)
        self._timers = [timer for timer in self._timers if timer[2] is not task]
        heapq.heapify(self._timers)

    def wake(self, task, by):
        task.resumed_by = by
        self._ready.append(task)

    def run(self, jobs, abort):
        tasks = [_Task(job) for job in jobs]
        threads = [threading.Thread(target=self._live, args=(task,), daemon=True) for task in tasks]
        for thread in threads:
            thread.start()
        self._ready.extend(tasks)
        while not all(task.over for task in tasks):
            if self._ready:
                task = self._ready.popleft()
            elif self._timers:
                moment, _, task = heapq.heappop(self._timers)
                self.time_ns = max(self.time_ns, moment)
            else:
                raise DeadlockError(f"{sum(not task.over for task in tasks)} threads wait for each other")
            self._current = task
            task.baton.release()
            self._scheduler.acquire()
        for thread in threads:
            thread.join()
        self._current = None

    def _live(self, task):
        task.baton.acquire()
        try:
            task.job()
        finally:
            task.over = True
            self._scheduler.release()
