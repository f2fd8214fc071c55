"""Our side of a dask.distributed cluster: connect, check who is there, and have units of work done, each counted once.

What Dask does by default and we do otherwise:

- A worker's death takes finished results with it, and Dask quietly makes them again. Here a result leaves its worker as soon as
  it is there, and one unit gives one answer however often it ran.
- A task that kills its worker is tried on three more. Here the scheduler must be started with `allowed-failures` 0.
- Then all tasks that were only queued on a dead worker fail too. Here those that had not begun (`tasks.unit`) are sent again.
- A task pinned to a worker that is gone goes to any on its host. Here nothing is pinned, to workers or to resources.
- A task that no worker can take waits for ever. Here there is a limit to every wait.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import hashlib
import importlib
import importlib.util
import io
import json
import threading
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from profiler import wire
from profiler.cluster import tasks
from profiler.cluster.address import Settings
from profiler.errors import TargetError
from profiler.targets import answers
from profiler.targets.log import clean

CONNECT_S = 30.0
PATIENCE_S = 120.0
"""How long a cluster may be without a worker, or leave a unit waiting before it begins."""
CHUNK_BYTES = 8 << 20
_LOOK_S = 2.0
_MAX_LOST = 10
"""Workers may die so often while a unit only waits in their queues."""
_MAX_DELIVERIES = 100
"""Every worker that takes the unit may ask for its files, and again when it was started anew."""
_QUIET = {"distributed.client.heartbeat": "60s", "distributed.client.scheduler-info-interval": "60s"}
"""A connection that is kept while something is measured here must not stir every second."""
_Interrupted = (OSError, RuntimeError, concurrent.futures.CancelledError, asyncio.CancelledError)


class ClusterLost(TargetError):  # noqa: N818 (a state, no mistake)
    """The cluster, or its last worker, is gone, or nobody takes the work."""


class WorkerDied(TargetError):  # noqa: N818 (a state, no mistake)
    """The worker died in the middle of the unit, which may be the reason."""


class LetGo(TargetError):  # noqa: N818 (an answer, no mistake)
    """Whoever asked for the unit does not want it any more."""


class TookTooLong(TargetError):  # noqa: N818 (a state, no mistake)
    """The unit did not end within its limit."""


@dataclass(frozen=True)
class Machine:
    """What a worker said about itself. Texts are clean to print."""

    host: str
    cpu: str
    """The processor's model."""
    machine: str
    isa: tuple[str, ...]
    cores: int
    identity: Mapping[str, Any]
    """See `tasks.identity`."""

    @property
    def named(self) -> str:
        """`render-3 (AMD EPYC 7B13)`."""
        return f"{self.host} ({self.cpu})"

    def runs_like(self, other: Machine) -> bool:
        """Whether kernels that are chosen by instruction sets are the same on both."""
        return (self.machine, self.isa) == (other.machine, other.isa) and bool(self.isa)


@dataclass(frozen=True)
class File:
    """Bytes that units refer to by their hash."""

    sha256: str
    size: int
    open: Callable[[], IO[bytes]] = field(repr=False)


@dataclass(frozen=True)
class Answer:
    """What came of a unit: exactly one of `done`, `not_here` and `failed` is there."""

    machine: Machine
    done: Mapping[str, Any] | None
    not_here: str | None
    """Why this worker would give something else than the machine that asks."""
    failed: Mapping[str, Any] | None
    """`type`, `text`, and whether the text is `for_people`."""
    arrays: wire.Arrays
    begun: int
    """How often the work was done: above 1 when a worker died with the result before it was here."""


class Cluster:
    """A connected cluster. Use it in a `with` block. Methods may be called from several threads at once."""

    def __init__(
        self, client: Any, machines: Mapping[str, Machine], *, patience_s: float = PATIENCE_S, look_s: float = _LOOK_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:  # fmt: skip
        """Made by `connect`; `client` is a `distributed.Client`."""
        self.machines = machines
        """By the worker's address, as of now."""
        self.here = machine(json.loads(tasks.facts()))
        self._client = client
        self._session = uuid.uuid4().hex
        self._topic = f"edgeprof-{self._session}"
        self._patience_s, self._look_s, self._clock = patience_s, look_s, clock
        self._lock, self._count, self._closed = threading.Lock(), 0, threading.Event()

    def __enter__(self) -> Cluster:  # noqa: PYI034 (typing.Self is 3.11)
        """The cluster itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Leave; the cluster stays."""
        self.close()

    @property
    def slots(self) -> int:
        """Units that can be done at the same time, now: workers come and go."""
        try:
            return max(1, len(self._client.nthreads()))
        except _Interrupted:
            return 1

    def close(self) -> None:
        """Stop waiting, in all threads, and disconnect. Units that are not done are forgotten there."""
        self._closed.set()
        self._client.close(timeout=5)

    def do(
        self, kind: str, fields: Mapping[str, Any], files: Sequence[File], *, limit_s: float,
        unwanted: Callable[[], bool] = lambda: False,
    ) -> Answer:  # fmt: skip
        """Have one unit done: a kind of `tasks.KINDS` with its fields (JSON) and the files it reads.

        `limit_s` counts from when a worker begins; `unwanted` is asked now and then whether to go on. Raises WorkerDied,
        TookTooLong, ClusterLost, LetGo.
        """
        with self._lock:
            self._count += 1
            name = f"{self._topic}-{self._count}"
        asked = {
            "topic": self._topic, "kind": kind, "fields": dict(fields), "identity": self.here.identity,
            "files": {file.sha256: file.size for file in files},
        }  # fmt: skip
        keys: list[str] = []
        lost = 0
        while True:
            if unwanted():
                raise LetGo("it was not waited for any longer")
            keys.append(f"{name}-{len(keys) + 1}")
            try:
                header, arrays = self._once({**asked, "key": keys[-1]}, keys[-1], limit_s, unwanted)
            except _Requeue as died:
                lost += 1
                if lost > _MAX_LOST:
                    raise ClusterLost(f"{lost} workers died one after the other: {died}") from None
                continue
            missing = header.get("missing")
            if missing is not None:
                if len(keys) > _MAX_DELIVERIES:
                    raise ClusterLost("its workers ask for the same files again and again")
                self._deliver(str(header.get("worker")), [file for file in files if file.sha256 in missing])
                continue
            return self._answer(header, arrays, self._begun(keys[-1]))

    def _once(
        self, asked: Mapping[str, Any], key: str, limit_s: float, unwanted: Callable[[], bool]
    ) -> tuple[dict[str, Any], wire.Arrays]:
        scheduler: Any = importlib.import_module("distributed.scheduler")
        future = None
        try:
            future = self._client.submit(tasks.unit, json.dumps(asked), key=key, pure=False, retries=0)
            raw = self._result(future, key, limit_s, unwanted)
        except scheduler.KilledWorker as error:
            begun = self._begun(key)
            where = _short(getattr(getattr(error, "last_worker", None), "address", ""))
            if not begun:
                raise _Requeue(f"worker {where} died before it began") from None
            raise WorkerDied(f"the worker {where} died while it worked on this") from None
        except TargetError:
            raise
        except _Interrupted as error:
            raise ClusterLost(f"the cluster is gone ({type(error).__name__}: {_short(error)})") from None
        except Exception as error:  # noqa: BLE001 (whatever Dask or a worker raises: the work is done elsewhere)
            raise ClusterLost(f"the cluster cannot do the work ({type(error).__name__}: {_short(error)})") from None
        finally:
            if future is not None:
                future.release()
        try:
            frame = wire.read_frame(io.BytesIO(raw)) if isinstance(raw, bytes) else None
            if frame is None:
                raise wire.WireError(f"it is {type(raw).__name__}, no frame")
            return answers.tame(frame[0]), frame[1]
        except (wire.WireError, answers.Nonsense) as error:
            raise ClusterLost(f"a worker of the cluster answers what no worker of ours does: {error}") from None

    def _result(self, future: Any, key: str, limit_s: float, unwanted: Callable[[], bool]) -> Any:
        """The result, as soon as it is there. A look now and then tells whether somebody still works on it."""
        asked_at, with_worker_at, began_at = self._clock(), self._clock(), None
        while True:
            try:
                # This waits for the end of the unit, and fetches nothing: `result` within a short time would never bring a
                # large one over a slow link, and Dask ends with one fetch that was given up all that are under way beside it.
                future.exception(timeout=self._look_s)
                return future.result(timeout=self._patience_s)
            except (TimeoutError, asyncio.TimeoutError):
                pass
            except (concurrent.futures.CancelledError, asyncio.CancelledError):
                if future.cancelled():
                    raise
            if self._closed.is_set():
                raise ClusterLost("it was left")
            if unwanted():
                raise LetGo("it was not waited for any longer")
            now = self._clock()
            if began_at is None and self._begun(key):
                began_at = now
            if self._client.nthreads():
                with_worker_at = now
            if now - with_worker_at > self._patience_s:
                raise ClusterLost(f"it had no worker for {self._patience_s:g} s: start some (docs/cluster.md)")
            if began_at is None and now - asked_at > self._patience_s + limit_s:
                raise ClusterLost(
                    f"nobody took the work within {self._patience_s + limit_s:g} s: its workers are busy, or may not take it"
                )
            if began_at is not None and now - began_at > limit_s:
                self._end_worker_of(key)
                raise TookTooLong(f"it took longer than {limit_s:g} s on the cluster")

    def _begun(self, key: str) -> int:
        """How often the scheduler heard that this attempt began."""
        return len(self._places(key))

    def _places(self, key: str) -> list[str]:
        events = self._client.get_events(self._topic) or ()
        return [
            str(event.get("worker")) for _, event in events if isinstance(event, Mapping) and event.get("key") == key
        ]

    def _end_worker_of(self, key: str) -> None:
        """A thread cannot be stopped: end the worker's process, and its nanny starts it anew, where it has one.

        Not by Dask's `restart_workers`: it first asks the worker to close, and one that cannot may take its nanny with it.
        """
        places = self._places(key)[-1:]

        def end() -> None:
            with contextlib.suppress(Exception):
                self._client.run(tasks.end, workers=places, on_error="return")

        # Nobody waits: a worker that is dead gives no answer, and one that is frozen gives none for minutes.
        threading.Thread(target=end, daemon=True, name="edgeprof-cluster-end").start()

    def _deliver(self, worker: str, files: Sequence[File]) -> None:
        """Bring files to a worker. One that died meanwhile gets none; whoever takes the unit next asks again."""
        for file in files:
            offset = 0
            with file.open() as stream:
                while True:
                    chunk = stream.read(CHUNK_BYTES)
                    told = self._run(tasks.receive, worker, file.sha256, file.size, offset, chunk, self._session)
                    offset += len(chunk)
                    if told != "more" or not chunk:
                        break

    def _run(self, function: Callable[..., str], worker: str, *arguments: Any) -> str | None:
        try:
            told = self._client.run(function, *arguments, workers=[worker], on_error="return")
        except _Interrupted:
            return None
        found = told.get(worker)
        if isinstance(found, wire.WireError):
            raise ClusterLost(f"a file did not reach worker {_short(worker)}: {found}")
        return found if isinstance(found, str) else None

    def _answer(self, header: Mapping[str, Any], arrays: wire.Arrays, begun: int) -> Answer:
        found = {key: header.get(key) for key in ("done", "not_here", "failed")}
        types = {"done": dict, "not_here": str, "failed": dict}
        given = [key for key, value in found.items() if value is not None]
        if len(given) != 1 or not isinstance(found[given[0]], types[given[0]]):
            raise ClusterLost("a worker of the cluster answers neither with a result nor with a reason")
        try:
            place = machine(header.get("facts"))
        except TargetError as error:
            raise ClusterLost(str(error)) from None
        return Answer(machine=place, arrays=arrays, begun=begun, **found)


class _Requeue(Exception):  # noqa: N818 (an answer, no mistake)
    pass


def connect(settings: Settings, *, wait_s: float = CONNECT_S, patience_s: float = PATIENCE_S) -> Cluster:
    """Connect to a scheduler, and check that its workers are of the same edgeprof with the same packages as here.

    Raises TargetError that says what is wrong: no scheduler, another authority, no worker within `wait_s`, another version.
    """
    if importlib.util.find_spec("distributed") is None:
        raise TargetError("--cluster needs the package distributed: pip install 'edgeprof[fleet]'.")
    distributed: Any = importlib.import_module("distributed")
    dask: Any = importlib.import_module("dask")
    try:
        with dask.config.set(_QUIET):
            client = distributed.Client(
                settings.address, security=_security(settings), timeout=wait_s, set_as_default=False, name="edgeprof"
            )
    except (OSError, ValueError, TypeError, asyncio.TimeoutError) as error:
        raise TargetError(
            f"cannot connect to the cluster at {settings.address}: {_short(error.__cause__ or error)}. Is its scheduler running "
            "there, with certificates of the same authority as --cluster-keys, and those not expired? See docs/cluster.md."
        ) from None
    try:
        return Cluster(client, _checked(client, settings.address, wait_s), patience_s=patience_s)
    except BaseException:
        client.close(timeout=5)
        raise


def _security(settings: Settings) -> Any:
    security: Any = importlib.import_module("distributed.security")
    if settings.keys is None:
        return None
    names = {"tls_ca_file": "ca.pem", "tls_client_cert": "client.pem", "tls_client_key": "client.key"}
    files = {option: str(settings.keys / name) for option, name in names.items()}
    return security.Security(require_encryption=True, **files)


def _checked(client: Any, address: str, wait_s: float) -> dict[str, Machine]:
    try:
        client.wait_for_workers(1, timeout=wait_s)
    except (TimeoutError, asyncio.TimeoutError):
        raise TargetError(f"the cluster at {address} has no worker: start some (docs/cluster.md).") from None
    try:
        deaths = client.run_on_scheduler(tasks.allowed_failures)
        told = client.run(tasks.facts, on_error="return")
        scheduler = client.run_on_scheduler(tasks.facts)
    except Exception as error:  # noqa: BLE001 (whatever Dask or a worker raises: its words are the reason)
        raise TargetError(
            f"the cluster at {address} does not say what it is: {type(error).__name__}: {_short(error)}."
        ) from None
    if deaths != 0:
        raise TargetError(
            f"the cluster at {address} lets a task kill {int(deaths) + 1} workers before it gives up: start its scheduler with "
            "DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES=0."
        )
    several = [worker for worker, threads in client.nthreads().items() if threads != 1]
    if several:
        raise TargetError(
            f"worker {_short(several[0])} has several threads, and the tools that make variants are not made for that: start "
            "workers with --nthreads 1 --nworkers N."
        )
    same_as_here("the scheduler", scheduler)
    return {str(worker): same_as_here(f"worker {_short(worker)}", text) for worker, text in told.items()}


def same_as_here(name: str, told: object) -> Machine:
    """A machine of the cluster from its `tasks.facts`. Raises TargetError with what differs from what is installed here."""
    if not isinstance(told, str):
        raise TargetError(
            f"{name} has no edgeprof like this one ({type(told).__name__}: {_short(told)}): install the same there "
            "(docs/cluster.md)."
        )
    found, here = machine(_read(told)), machine(json.loads(tasks.facts()))
    if found.identity != here.identity:
        raise TargetError(
            f"{name} on {found.host} has {_short(tasks.difference(here.identity, found.identity))}: variants made there "
            "would not be those made here. Install the same on all machines (docs/cluster.md)."
        )
    return found


def machine(told: Any) -> Machine:
    """A worker's facts, checked. Raises TargetError for what no worker of ours tells."""
    try:
        isa, identity = told["isa"], tasks.identity(told)
        if not isinstance(isa, list) or len(isa) > 100 or not all(isinstance(name, str) for name in isa):
            raise ValueError("its instruction sets are no list of names")
        if not all(value is None or isinstance(value, str) for value in identity.values()):
            raise ValueError("its versions are no texts")
        texts = {key: clean(str(told[key]))[:100] for key in ("host", "cpu", "machine")}
        return Machine(**texts, isa=tuple(isa), cores=int(told["cores"]), identity=identity)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise TargetError(f"a worker of the cluster does not say what it is: {_short(error)}.") from None


def file_of(path: Path) -> File:
    """A file on disk."""
    return File(wire.file_sha256(path), path.stat().st_size, lambda: path.open("rb"))


def file_of_arrays(make: Callable[[], wire.Arrays]) -> File:
    """Arrays as a frame; `make` is called again whenever a worker needs them, so that nothing is held meanwhile."""

    def frame() -> io.BytesIO:
        buffer = io.BytesIO()
        wire.write_frame(buffer, {}, make())
        buffer.seek(0)
        return buffer

    data = frame().getbuffer()
    return File(hashlib.sha256(data).hexdigest(), len(data), frame)


def _read(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _short(value: object) -> str:
    return clean(" ".join(str(value).split()))[:200]
