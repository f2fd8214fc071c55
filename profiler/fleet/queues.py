"""One queue per device, each in a thread of its own; inside a queue everything happens one after the other, under a lease.

Devices fail alone: one that stays away, or whose worker does not start, ends its own queue, and the others go on. What concerns
the whole run (a full disk, data that do not fit the model, Ctrl-C) ends all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, fields, replace
from queue import Empty, SimpleQueue
from threading import Lock, Thread
from types import TracebackType

from profiler import advice
from profiler.budget import Budget
from profiler.errors import BudgetError, StoreError, TargetError
from profiler.fleet.devices import LOCAL, lanes, lease_name
from profiler.fleet.keeper import Keeper
from profiler.fleet.stop import Stop, Stopped
from profiler.fleet.together import Together
from profiler.job import Job
from profiler.leases import Lease, LeaseLost, LeaseState
from profiler.progress import Progress
from profiler.study import Case
from profiler.targets.process import WorkerProcess
from profiler.targets.remote import LinkLost

_POLL_S = 10.0
_END_S = 10.0
"""How long Ctrl-C waits for queues that are just connecting; their threads end with the process."""
_REASON_CHARACTERS = 1000


class DevicesLeft(TargetError):  # noqa: N818 (an outcome: the others are measured)
    """Some devices of a run were not measured; what the others gave is stored."""

    def __init__(self, message: str, run_id: str) -> None:
        """With the run that the others are in."""
        super().__init__(message)
        self.run_id = run_id


@dataclass(frozen=True)
class DeviceJob(Job):
    """A job as one device's queue does it: under its lease, and to be stopped from another thread."""

    device: str = LOCAL
    stop: Stop = field(default_factory=Stop)

    def open(self, case: Case, environment: Mapping[str, str] | None = None) -> WorkerProcess:
        """As `Job.open`. Raises LeaseLost when the device is another's by now, Stopped when the run ends."""
        self.stop.check()
        lease = self.store.lease
        if lease is not None and lease.gone.is_set():
            self.store.renew(lease)
        return self.stop.watch(super().open(case, environment))


Work = Callable[[DeviceJob], None]


class Queues:
    """The queues of one run, as a context manager."""

    def __init__(self, job: Job, machines: Mapping[str, str | None], *, at_once: int = 1 << 10) -> None:
        """`machines` as `devices.machine_of` tells them, by device; `at_once` is how many lanes may run together."""
        self._job, self._machines, self._at_once = job, machines, max(1, at_once)
        self._keeper = Keeper(job.store)
        self._stops: dict[str, Stop] = {}
        self._problems: dict[str, Exception] = {}
        self._fatal: BaseException | None = None
        self._lock = Lock()

    def __enter__(self) -> Queues:  # noqa: PYI034 (typing.Self is 3.11)
        """Itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop keeping leases."""
        self._keeper.close()

    def one(self, device: str, work: Work, *, progress: Progress | None = None, budget: Budget | None = None) -> None:
        """Do the work on one device once it is its turn; again, from what is stored, when its lease was lost meanwhile.

        Raises what the work raises; what the run should know of it is stored first.
        """
        stop = self._stops.setdefault(device, Stop())
        job = replace(self._job, progress=progress or self._job.progress, budget=budget or self._job.budget)
        store, run_id = job.store, job.run_id
        try:
            while not self._done(job, device, stop, work):
                stop.check()
        except (TargetError, BudgetError) as error:
            with suppress(StoreError):
                status = "lost" if isinstance(error, LinkLost) else "failed"
                store.set_queue(run_id, device, status, str(error)[:_REASON_CHARACTERS])  # type: ignore[arg-type]
            raise
        except BaseException:
            with suppress(StoreError):
                store.set_queue(run_id, device, "waiting", "the run was ended")
            raise

    def all(self, devices: Sequence[str], work: Work, *, title: str, stages: int) -> None:
        """Do the work on all devices: those that are different machines at once, this one after them.

        `stages` is how many stages the work announces. Raises DevicesLeft when some were not measured; with one device only,
        what the work raised.
        """
        if len(devices) == 1:
            return self.one(devices[0], work)
        beside, alone = lanes(devices, self._machines)
        together = Together(self._job.progress)
        together.begin(title, len(devices), stages)
        self._beside(beside, work, together, stages, waiting=bool(alone))
        self._lane(alone, work, together, stages, waiting=False)
        if self._fatal is not None:
            raise self._fatal
        if self._problems:
            raise self._left(len(devices))
        return None

    # Threads ----------------------------------------------------------------------------------------------------------

    def _beside(
        self, beside: Sequence[tuple[str, ...]], work: Work, together: Together, stages: int, *, waiting: bool
    ) -> None:
        todo: SimpleQueue[tuple[str, ...]] = SimpleQueue()
        for lane in beside:
            todo.put(lane)
            for device in lane:
                self._stops.setdefault(device, Stop())

        def serve() -> None:
            while self._fatal is None:
                try:
                    lane = todo.get_nowait()
                except Empty:
                    return
                self._lane(lane, work, together, stages, waiting=waiting)

        count = min(len(beside), self._at_once)
        threads = [Thread(target=serve, name=f"edgeprof queue {number}", daemon=True) for number in range(count)]
        try:
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        except BaseException as error:
            self._end_all(error)
            for thread in threads:
                if thread.ident is not None:
                    thread.join(_END_S)
            raise

    def _lane(self, lane: Sequence[str], work: Work, together: Together, stages: int, *, waiting: bool) -> None:
        for place, device in enumerate(lane):
            if self._fatal is not None:
                return
            part = together.of(device, stages)
            # Whoever comes later in this lane, and this machine's after all lanes, gets as much time.
            budget = part_of(self._job.budget, len(lane) - place + waiting)
            try:
                try:
                    self.one(device, work, progress=part, budget=budget)
                except (TargetError, BudgetError) as error:
                    with self._lock:
                        self._problems[device] = error
                    part.note(f"{error} The other devices go on.")
                part.finish()
            except Stopped:
                return
            except BaseException as error:  # noqa: BLE001 (raised again by whoever waits for this thread)
                self._end_all(error)
                return

    def _end_all(self, error: BaseException) -> None:
        with self._lock:
            self._fatal = self._fatal or error
        for stop in list(self._stops.values()):
            stop.now()

    def _left(self, count: int) -> DevicesLeft:
        reasons = "; ".join(f"{device}: {str(error).rstrip('.')}" for device, error in sorted(self._problems.items()))
        return DevicesLeft(
            f"{count - len(self._problems)} of {count} devices are measured, not {reasons}. "
            f"Their cases stay unmeasured until `{self._job.resume}` goes on with them; "
            f"`{advice.of_run('report', self._job.run_id)}` tells what was measured.",
            self._job.run_id,
        )

    # One device -------------------------------------------------------------------------------------------------------

    def _done(self, job: Job, device: str, stop: Stop, work: Work) -> bool:
        """One lease's worth of it; False when the lease was lost and it has to queue up again."""
        try:
            with self._held(job, device, stop) as mine:
                job.store.set_queue(job.run_id, device, "measuring")
                work(mine)
        except LeaseLost as error:
            job.progress.note(f"{error} It queues up again.")
            return False
        job.store.set_queue(job.run_id, device, "done")
        return True

    @contextmanager
    def _held(self, job: Job, device: str, stop: Stop) -> Iterator[DeviceJob]:
        lease = self._acquired(job, device, stop)
        lease.check = stop.check
        self._keeper.add(lease, stop.end_workers)
        try:
            shared = {item.name: getattr(job, item.name) for item in fields(Job)}
            yield DeviceJob(**{**shared, "store": job.store.under(lease)}, device=device, stop=stop)
        finally:
            try:
                if not stop.asked.is_set():
                    # Before another may have it; when the run ends, `Modes` does it for all devices.
                    job.modes.restore(device)
            except TargetError as error:
                job.progress.note(f"the power mode was not restored: {error} Look with `nvpmodel -q` there.")
            finally:
                self._keeper.drop(lease)
                with suppress(StoreError):
                    job.store.release(lease)

    def _acquired(self, job: Job, device: str, stop: Stop) -> Lease:
        """The device's lease, once whoever has it is done."""
        told = False
        while True:
            found = job.store.acquire(lease_name(device), run_id=job.run_id, machine=self._machines.get(device))
            if isinstance(found, Lease):
                return found
            if not told:
                told = True
                self._tell_waiting(job, device, found)
            job.needs(0.0)
            stop.sleep(min(_POLL_S, max(0.1, found.left_s or 0.0)))

    @staticmethod
    def _tell_waiting(job: Job, device: str, holder: LeaseState) -> None:
        name = "this machine" if device == LOCAL else f"'{device}'"
        alias = "" if holder.device == lease_name(device) else f", known there as '{holder.device}',"
        text = f"{name}{alias} is measuring run {holder.run_id} for {holder.owner or 'someone'}: waiting for its turn."
        job.progress.note(text)
        if holder.run_id != job.run_id:
            job.store.set_queue(job.run_id, device, "waiting", text)


def part_of(budget: Budget, parts: int) -> Budget:
    """A budget that ends when one of `parts` equal parts of what is left is over."""
    if budget.seconds is None or parts <= 1:
        return budget
    return replace(budget, seconds=budget.spent_s + budget.left_s / parts)
