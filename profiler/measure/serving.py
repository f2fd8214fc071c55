"""The serving engine: requests in a queue, inference workers on lanes of one model, every moment of every request kept.

Scenario names and semantics are MLPerf LoadGen's: `single` and `multi` are closed loops, `offline` hands over everything at
once, `server` is an open loop that follows a schedule whatever the model does. `concurrency` is a closed loop with
several requests in flight. In an open loop latency counts from the moment a request was *due*, so that a stall is felt by all
requests that it delays and not only by the one that it hit (coordinated omission).

Standard library and numpy only. Time and waiting come in as a `Kernel`; `Threads` is the real one.
"""

from __future__ import annotations

import ctypes
import queue
import sys
import threading
import time
from array import array
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from backends.base import BackendError, Feeds, TensorInfo, check_feeds

Scenario = Literal["single", "multi", "offline", "server", "concurrency"]
Ended = Literal["complete", "diverged", "timeout"]

SPIN_NS = 50_000
"""The issue thread sleeps until this long before a request is due and then only yields: a sleep alone wakes up late."""
_NAP_NS = 50_000_000
"""Longest sleep in one piece, so that an error or a stop is noticed while nothing is due."""
_SWITCH_S = 1e-4
"""While serving, a thread that computes in Python gives the interpreter away after so long; Python's own 5 ms would be
lateness of the generator."""
_LEAD_NS = 20_000_000
_PR_SET_TIMERSLACK = 29


class Inbox(Protocol):
    """A first-in-first-out queue between threads."""

    def put(self, item: int, /) -> None:
        """Append; never waits."""
        ...

    def get(self, until_ns: int | None, /) -> int | None:
        """The next item, waiting for it; None when there is none by `until_ns` (None: wait for ever)."""
        ...


class Kernel(Protocol):
    """Time, and all ways to wait for it."""

    def now(self) -> int:
        """Monotonic nanoseconds."""
        ...

    def wait_until(self, moment_ns: int, stopped: Callable[[], bool]) -> None:
        """Return at `moment_ns` as exactly as this system can, or earlier when `stopped()` becomes true."""
        ...

    def inbox(self) -> Inbox:
        """A new queue."""
        ...

    def run(self, jobs: Sequence[Callable[[], None]], abort: Callable[[], None]) -> None:
        """Run the jobs at the same time, the first one in the calling thread; returns when all have ended.

        The calling thread may be the only one that a device accepts. If a thread cannot be started, `abort` ends the others.
        """
        ...


@dataclass(frozen=True)
class Plan:
    """One run. Which fields matter depends on the scenario; sizes are in requests, times in seconds."""

    scenario: Scenario
    max_batch: int = 1
    max_delay_s: float = 0.0
    """A batch is closed when it is full, or when its oldest request has waited so long for others."""
    schedule_s: NDArray[np.float64] | None = None
    """server: when each request is due, from the beginning, ascending, shape (n,)."""
    in_flight: int = 1
    """concurrency: requests that are under way at any moment."""
    samples: int = 1
    """multi: requests in one query, sent together; the next query waits for all of them."""
    count: int = 0
    """offline: how many. Closed loops: at most so many; 0 is no limit."""
    duration_s: float = 0.0
    """Closed loops: no request is sent after it."""
    time_limit_s: float = 60.0
    """The run is given up then, with what was not completed left open."""
    max_backlog: int = 0
    """server: `diverged` when more requests than this are waiting; 0 is no limit."""


@dataclass(frozen=True)
class Served:
    """Every request of a run in the order they were sent, shape (n,). Nanoseconds from the beginning of the run.

    `started_ns` and `completed_ns` are −1 where the run ended first.
    """

    sent_ns: NDArray[np.int64]
    started_ns: NDArray[np.int64]
    completed_ns: NDArray[np.int64]
    batch_size: NDArray[np.int64]
    ended: Ended
    begin_ns: int
    """When it began, on the kernel's clock."""
    generator_cpu_s: float | None
    """Processor time of the issue thread; None in closed loops, which have none."""


class Threads:
    """The real kernel. Clock and sleep are arguments for tests of it."""

    def __init__(
        self, clock: Callable[[], int] = time.perf_counter_ns, sleep: Callable[[float], None] = time.sleep
    ) -> None:
        """Nothing is started yet."""
        self._clock, self._sleep = clock, sleep

    def now(self) -> int:
        """The clock."""
        return self._clock()

    def wait_until(self, moment_ns: int, stopped: Callable[[], bool]) -> None:
        """Sleep, then yield over the last `SPIN_NS`. Yielding lets go of the interpreter: the workers need it, too."""
        while (left := moment_ns - self._clock()) > 0 and not stopped():
            self._sleep(min(left - SPIN_NS, _NAP_NS) / 1e9 if left > SPIN_NS else 0)

    def inbox(self) -> Inbox:
        """A `SimpleQueue`."""
        return _SimpleInbox(self._clock)

    def run(self, jobs: Sequence[Callable[[], None]], abort: Callable[[], None]) -> None:
        """Threads for all but the first job, joined whatever happens."""
        threads = [
            threading.Thread(target=_precise, args=(job,), daemon=True, name=f"edgeprof-serving-{number}")
            for number, job in enumerate(jobs[1:], 1)
        ]
        before = sys.getswitchinterval()
        sys.setswitchinterval(_SWITCH_S)
        started = []
        try:
            for thread in threads:
                thread.start()
                started.append(thread)
            _precise(jobs[0])
        except BaseException:
            abort()
            raise
        finally:
            for thread in started:
                thread.join()
            sys.setswitchinterval(before)


class _SimpleInbox:
    def __init__(self, clock: Callable[[], int]) -> None:
        self._queue: queue.SimpleQueue[int] = queue.SimpleQueue()
        self._clock = clock
        self.put = self._queue.put

    def get(self, until_ns: int | None, /) -> int | None:
        try:
            if until_ns is None:
                return self._queue.get()
            left = until_ns - self._clock()
            return self._queue.get(timeout=left / 1e9) if left > 0 else self._queue.get_nowait()
        except queue.Empty:
            return None


def _precise(job: Callable[[], None]) -> None:
    """Run in this thread with a timer slack of 1 ns instead of 50 µs, where the system has such a thing."""
    set_slack = _slack_setter()
    set_slack(1)
    try:
        job()
    finally:
        set_slack(0)  # 0 is the thread's default


def _slack_setter() -> Callable[[int], object]:
    if sys.platform != "linux":
        return lambda _: None
    try:
        prctl = ctypes.CDLL(None).prctl
    except (OSError, AttributeError):
        return lambda _: None
    return lambda slack_ns: prctl(_PR_SET_TIMERSLACK, ctypes.c_ulong(slack_ns), 0, 0, 0)


class Rows:
    """Requests as feeds: request i carries row i of the pool, over and over, and a batch is put together when it is served."""

    def __init__(
        self, pool: Mapping[str, NDArray[np.generic]], inputs: Sequence[TensorInfo], max_batch: int,
        axes: Mapping[str, Any] | None = None,
    ) -> None:  # fmt: skip
        """`pool` has the model's inputs, shape (rows, …). Raises FeedError, and BackendError when `max_batch` does not fit.

        `axes` tells by input where its rows lie in a batch: an axis (default 0), `none` for an input that is one row, or
        `constant` for one that is the same for all rows, whose first row is fed.
        """
        count = len(next(iter(pool.values()))) if pool else 0
        if count == 0 or any(len(values) != count for values in pool.values()):
            raise BackendError("the rows to serve are missing, or the inputs have different numbers of them.")
        self._axes = {name: (axes or {}).get(name, 0) for name in pool}
        self.padded_to = _fixed_batch(inputs, max_batch, self._axes)
        self._rows: list[dict[str, NDArray[np.generic]]] = [
            {name: self._row(name, values[index]) for name, values in pool.items()} for index in range(count)
        ]
        check_feeds(inputs, self.batch(range(max_batch)))

    def _row(self, name: str, values: Any) -> NDArray[np.generic]:
        axis = self._axes[name]
        # Copies, since some runtimes refuse views that cannot be written to.
        return np.expand_dims(values, axis).copy() if isinstance(axis, int) else np.array(values)

    def batch(self, requests: Sequence[int]) -> Feeds:
        """The feeds of some requests. A model with a fixed batch axis gets its last row again until it is full."""
        rows = [self._rows[request % len(self._rows)] for request in requests]
        rows += rows[-1:] * ((self.padded_to or 0) - len(rows))
        if len(rows) == 1:
            return rows[0]
        return {
            name: np.concatenate([row[name] for row in rows], axis) if isinstance(axis, int) else rows[0][name]
            for name, axis in self._axes.items()
        }


def _fixed_batch(inputs: Sequence[TensorInfo], max_batch: int, axes: Mapping[str, Any]) -> int | None:
    places = {info.name: axes.get(info.name, 0) for info in inputs}
    if "none" in places.values() and max_batch > 1:
        raise BackendError("an input of the model is one row, without a batch axis: use --batching none.")
    fixed = {
        info.shape[axis] for info in inputs
        if isinstance(axis := places[info.name], int) and axis < len(info.shape) and isinstance(info.shape[axis], int)
    }  # fmt: skip
    if not fixed:
        return None
    sizes = sorted(size for size in fixed if isinstance(size, int))
    if len(sizes) > 1:
        raise BackendError(
            f"the inputs have different fixed batch axes ({', '.join(map(str, sizes))}): cannot be served."
        )
    if max_batch > sizes[0]:
        raise BackendError(
            f"the loaded model has a fixed batch axis of {sizes[0]}, batches of up to {max_batch} were asked for: use "
            f"--batching none, or export the model with a dynamic batch axis."
        )
    return sizes[0]


def serve(
    lanes: Sequence[Callable[[Feeds], object]], batch: Callable[[Sequence[int]], Feeds], plan: Plan, *, kernel: Kernel
) -> Served:
    """Do one run of a scenario with one worker per lane.

    `batch` turns request numbers into feeds; putting them together is part of the service, as it is in a server. An
    error in a lane ends the run at once and is raised here. No thread outlives the call.
    """
    _check(lanes, plan)
    run = _Run(lanes, batch, plan, kernel)
    jobs: list[Callable[[], None]] = [partial(run.begin_with, lanes[0]), *(partial(run.work, one) for one in lanes[1:])]
    if plan.scenario == "server":
        jobs.append(run.issue)
    jobs.append(run.watch)
    kernel.run([partial(run.guard, job) for job in jobs], run.stop)
    if run.error is not None:
        raise run.error
    return run.result()


def _check(lanes: Sequence[object], plan: Plan) -> None:
    if not lanes:
        raise ValueError("serving needs one lane at least")
    if plan.max_batch < 1 or plan.in_flight < 1 or plan.samples < 1 or plan.max_delay_s < 0:
        raise ValueError(f"a plan has sizes from 1 and delays from 0, got {plan}")
    if plan.scenario == "server":
        schedule = plan.schedule_s
        if schedule is None or not len(schedule):
            raise ValueError("a server run needs a schedule")
        if not np.isfinite(schedule).all() or schedule[0] < 0 or (np.diff(schedule) < 0).any():
            raise ValueError("a schedule must ascend from 0 on")
    elif plan.scenario == "offline":
        if plan.count < 1:
            raise ValueError("an offline run needs a count")
    elif plan.duration_s <= 0 and plan.count < 1:
        raise ValueError(f"a {plan.scenario} run needs a duration or a count")


_STOP = -1


class _Run:
    """What the threads of one run share. `lock` guards the counters; nothing waits while holding it."""

    def __init__(
        self,
        lanes: Sequence[Callable[[Feeds], object]],
        batch: Callable[[Sequence[int]], Feeds],
        plan: Plan,
        kernel: Kernel,
    ) -> None:
        self.plan, self.kernel, self.batch, self.workers = plan, kernel, batch, len(lanes)
        self.inbox, self.turn, self.over = kernel.inbox(), kernel.inbox(), kernel.inbox()
        self.lock = threading.Lock()
        self.sent, self.started, self.completed, self.sizes = array("q"), array("q"), array("q"), array("q")
        self.done = 0
        self.all_sent = False
        self.stopping = False
        self.ended: Ended = "complete"
        self.error: BaseException | None = None
        self.generator_cpu_s: float | None = None
        self.turn.put(0)
        # Threads take a moment to start; the first request of a schedule shall not pay for it.
        self.begin = kernel.now() + (_LEAD_NS if plan.scenario == "server" else 0)

    def begin_with(self, lane: Callable[[Feeds], object]) -> None:
        """Send what is under way from the first moment on, in the scenarios without a schedule; then work."""
        plan, moment = self.plan, self.kernel.now() - self.begin
        first = {"offline": plan.count, "single": 1, "multi": plan.samples, "concurrency": plan.in_flight}
        wanted = first.get(plan.scenario, 0)
        if plan.count and plan.scenario in ("single", "concurrency"):
            wanted = min(wanted, plan.count)
        if wanted:
            with self.lock:
                for _ in range(wanted):
                    self._send(moment)
                self.all_sent = plan.scenario == "offline"
        self.work(lane)

    def _send(self, moment: int) -> None:
        number = len(self.sent)
        self.sent.append(moment)
        self.started.append(-1)
        self.completed.append(-1)
        self.sizes.append(0)
        self.inbox.put(number)

    def guard(self, job: Callable[[], None]) -> None:
        """Run one thread's work; its error is the run's."""
        try:
            job()
        except BaseException as error:  # noqa: BLE001 (raised again by `serve`, in the caller's thread)
            with self.lock:
                self.error = self.error or error
            self.stop()

    def stop(self, ended: Ended | None = None) -> None:
        """End the run: no request is begun any more, every thread returns."""
        with self.lock:
            if self.stopping:
                return
            self.stopping = True
            if ended is not None:
                self.ended = ended
        self.over.put(_STOP)
        for _ in range(self.workers):
            self.inbox.put(_STOP)

    def is_stopping(self) -> bool:
        return self.stopping

    def watch(self) -> None:
        """Sleep until the run is over, or its time is."""
        limit = self.begin + int(self.plan.time_limit_s * 1e9)
        while not self.stopping and self.over.get(limit) is None:
            if self.kernel.now() >= limit:
                self.stop("timeout")

    def issue(self) -> None:
        """Send each request when it is due, whatever has become of the ones before it."""
        plan, now, begin, inbox = self.plan, self.kernel.now, self.begin, self.inbox
        assert plan.schedule_s is not None
        due = (plan.schedule_s * 1e9).astype(np.int64).tolist()
        # One by one while sending would move memory between two requests.
        blank = array("q", [-1]) * len(due)
        with self.lock:
            self.sent, self.started, self.completed = blank[:], blank[:], blank[:]
            self.sizes = array("q", [0]) * len(due)
        cpu = time.thread_time()
        count = 0
        for number, moment in enumerate(due):
            self.kernel.wait_until(begin + moment, self.is_stopping)
            if self.stopping:
                break
            self.sent[number] = now() - begin
            inbox.put(number)
            count += 1
            if plan.max_backlog and count - self.done > plan.max_backlog:
                self.stop("diverged")
        self.generator_cpu_s = time.thread_time() - cpu
        with self.lock:
            self.all_sent = True
            finished = self.done == count
        if finished:
            self.stop()

    def work(self, infer: Callable[[Feeds], object]) -> None:
        """Take batches and serve them until the run is over."""
        now, begin = self.kernel.now, self.begin
        while (requests := self._gather()) and not self.stopping:
            start = now() - begin
            infer(self.batch(requests))
            end = now() - begin
            with self.lock:
                for request in requests:
                    self.started[request], self.completed[request] = start, end
                    self.sizes[request] = len(requests)
                self.done += len(requests)
                self._follow(len(requests), end)
                finished = self.all_sent and self.done == self._known()
            if finished:
                self.stop()

    def _known(self) -> int:
        schedule = self.plan.schedule_s
        return len(self.sent) if self.plan.scenario != "server" or schedule is None else len(schedule)

    def _gather(self) -> list[int]:
        """The requests of the next batch; empty when the run is over.

        One worker at a time gathers: two that wait for company at the same time would take it from each other.
        """
        plan = self.plan
        if plan.max_batch == 1:
            first = self.inbox.get(None)
            return [] if first is None or first == _STOP else [first]
        self.turn.get(None)
        try:
            first = self.inbox.get(None)
            if first is None or first == _STOP:
                return []
            requests = [first]
            until = self.begin + self.sent[first] + int(plan.max_delay_s * 1e9)
            while len(requests) < plan.max_batch:
                following = self.inbox.get(until)
                if following is None:
                    break
                if following == _STOP:
                    # Somebody else's too: what was gathered is dropped, as the run is over.
                    return []
                requests.append(following)
            return requests
        finally:
            self.turn.put(0)

    def _follow(self, completed: int, moment: int) -> None:
        """Closed loops: send what was waiting for these. `lock` is held."""
        plan = self.plan
        if plan.scenario in ("server", "offline") or self.all_sent:
            return
        wanted = completed if plan.scenario != "multi" else 0
        if plan.scenario == "multi" and self.done == len(self.sent):
            wanted = plan.samples
        if plan.count:
            # A query of `multi` is sent whole or not at all.
            left = max(0, plan.count - len(self.sent))
            wanted = min(wanted, left) if plan.scenario != "multi" or wanted <= left else 0
            self.all_sent = len(self.sent) + wanted + (plan.samples - 1) * (plan.scenario == "multi") >= plan.count
        if plan.duration_s and moment >= int(plan.duration_s * 1e9):
            wanted, self.all_sent = 0, True
        for _ in range(wanted):
            self._send(moment)

    def result(self) -> Served:
        """The arrays. Of a schedule that was broken off, the requests that were never sent are left out."""
        sent = np.array(self.sent, dtype=np.int64)
        kept = sent >= 0
        started, completed, sizes = (
            np.array(values, dtype=np.int64)[kept] for values in (self.started, self.completed, self.sizes)
        )
        return Served(sent[kept], started, completed, sizes, self.ended, self.begin, self.generator_cpu_s)


def warm(lanes: Sequence[Callable[[Feeds], object]], batch: Callable[[Sequence[int]], Feeds], max_batch: int) -> None:
    """Run every batch size once on every lane: runtimes plan memory and kernels for a size when they first see it."""
    for size in range(1, max_batch + 1):
        feeds = batch(range(size))
        for infer in lanes:
            infer(feeds)
