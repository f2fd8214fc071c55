"""A process of this machine that works on models for us: it reads them, makes variants of them, counts in them, runs them.

A model is untrusted, and what works on it is native code: a division by zero while constants are folded, a loop without an
end, a constant of gigabytes end a process. So it is never this one. The maker (`profiler.maker`) speaks the worker's protocol,
has a time and a memory limit and a working folder of its own, and its death is a WorkerFailure with a reason. It is kept for
the next piece of work, because its libraries take a second to import, and replaced after a death.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import sys
import tempfile
import threading
import weakref
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from numpy.typing import NDArray

from backends.base import TensorInfo
from profiler import units
from profiler.errors import DataError, EdgeprofError, ModelError, StoreError, StudyError, TargetError, VariantError
from profiler.held import held_folder
from profiler.measure.memory import own_limit
from profiler.targets.base import START, Target
from profiler.targets.process import WorkerFailure, WorkerProcess

Rows = Mapping[str, NDArray[Any]]

PREFIX = "edgeprof-"
"""Of folders in the system's temporary folder."""
STEPS = 3
"""One piece of work holds several steps (preparing, calibrating, comparing): so many times --time-limit is its own limit."""
BUDGET_SHARE = 0.5
"""Most that one piece of work may take of what a time budget leaves: a model that hangs must leave time for the others."""
SHORTEST_S = 10.0
"""A shorter limit would end a process that is still importing its libraries."""
MEMORY_SHARE = 0.75
"""Most that a maker may allocate of the memory of this machine, or of the container it is in."""
USUAL_S = 300.0
_DELIMITER = " Try a smaller"
_CLASSES = (DataError, ModelError, StoreError, StudyError, VariantError, EdgeprofError)


@dataclass(frozen=True)
class Limits:
    """What one piece of work may take, and in words where that comes from."""

    time_s: float
    time_told: str
    memory_bytes: int
    memory_told: str


def limits_of(
    time_limit_s: float = USUAL_S, memory_limit_bytes: int | None = None, left_s: float = float("inf")
) -> Limits:
    """The limits that belong to --time-limit, --memory-limit and the seconds that a time budget leaves.

    Making a variant takes more memory than running it: a --memory-limit below the usual share of the machine is one for cases.
    """
    time_s, time_told = STEPS * time_limit_s, f"{STEPS} times --time-limit"
    if left_s * BUDGET_SHARE < time_s:
        time_s, time_told = left_s * BUDGET_SHARE, f"{BUDGET_SHARE:.0%} of what --time-budget leaves"
    if time_s < SHORTEST_S:
        time_s, time_told = SHORTEST_S, f"the least that is given, more than {time_told}"
    usual = int(MEMORY_SHARE * min(psutil.virtual_memory().total, own_limit() or sys.maxsize))
    if memory_limit_bytes is not None and memory_limit_bytes > usual:
        return Limits(time_s, time_told, memory_limit_bytes, "--memory-limit")
    share = f"{MEMORY_SHARE:.0%} of this machine's, more with --memory-limit"
    return Limits(time_s, time_told, usual, share)


def usual_limits() -> Limits:
    """Those of commands that have no options for them."""
    usual = limits_of()
    return Limits(
        usual.time_s, "the most that is waited for", usual.memory_bytes, f"{MEMORY_SHARE:.0%} of this machine's"
    )


class Maker:
    """A maker process that is started when there is work, and again after a death. Use it in a `with` block, from any thread."""

    def __init__(self, limits: Callable[[], Limits] = usual_limits, folder: Path | None = None) -> None:
        """`limits` is asked before each piece of work. Below `folder` (None: the system's temporary folder) it works."""
        self._limits, self._parent = limits, folder
        self._worker: WorkerProcess | None = None
        self._home: Path | None = None
        self._rows: dict[str, Path] = {}
        self._scratch: Path | None = None
        self._count = 0
        self._lock = threading.RLock()
        self._held = ExitStack()
        # Also where nobody closes it: folders go, and the process with its pipe.
        self._ended = weakref.finalize(self, self._held.close)

    def __enter__(self) -> Maker:  # noqa: PYI034 (typing.Self is 3.11)
        """Itself."""
        return self

    def __exit__(self, *exception: object) -> None:
        """End the process and take its folder away."""
        self.close()

    def close(self) -> None:
        """End the process and take its folder away. What is asked later starts another one."""
        with self._lock:
            self._drop(kill=False)
            self._held.close()
            self._rows, self._scratch = {}, None

    def do(self, task: str, what: str, **fields: Any) -> Any:
        """Have a task of `profiler.maker` done and return what it answers.

        `what` begins the message of a failure: "making int8-static". Paths may be relative, and stand so in messages. Raises
        WorkerFailure when the process died, did not end in time or ran out of memory, else what the task raised.
        """
        paths = {str(value.absolute()): str(value) for value in fields.values() if isinstance(value, Path)}
        fields = {name: str(value.absolute()) if isinstance(value, Path) else value for name, value in fields.items()}
        with self._lock:
            limits = self._limits()
            try:
                worker = self._running(limits)
                fields = {"working_folder": str(Path.cwd()), "scratch": str(self._home), **fields}
                reply, arrays = worker.request("do", timeout_s=limits.time_s, task=task, fields=fields)
            except WorkerFailure as failure:
                home = str(self._home)
                self._drop(kill=True)
                raise _told(failure, what, limits, home) from failure
            except BaseException:
                self._drop(kill=True)
                raise
        raised = reply.get("raised")
        if isinstance(raised, dict):
            names = raised.get("classes") or ()
            known = next((one for one in _CLASSES if one.__name__ in names), EdgeprofError)
            text = str(raised.get("text")).replace(f"{self._home}/", "")
            for absolute, given in paths.items():
                text = text.replace(f"'{absolute}'", f"'{given}'")
            raise known(text)
        return json.loads(arrays["answer"].tobytes())

    def lay_out(self, rows: Rows | None, key: str) -> str | None:
        """The folder in which the process finds these rows; written once for each `key`. Raises OSError."""
        if rows is None:
            return None
        with self._lock:
            if key not in self._rows:
                folder = Path(tempfile.mkdtemp(prefix="rows-", dir=self._folder()))
                write_rows(rows, folder)
                self._rows[key] = folder
            return str(self._rows[key])

    def _folder(self) -> Path:
        if self._scratch is None:
            parent = Path(tempfile.gettempdir()) if self._parent is None else self._parent
            self._scratch = self._held.enter_context(held_folder(parent, PREFIX))
        return self._scratch

    def _running(self, limits: Limits) -> WorkerProcess:
        if self._worker is not None and self._worker.alive:
            return self._worker
        self._drop(kill=True)
        self._count += 1
        self._home = self._folder() / f"process-{self._count}"
        self._home.mkdir()
        target, memory = _target(self._home), _within_own(limits.memory_bytes)
        # The kernel ends the process with the thread that started it, so one thread starts it that stays until the end.
        starter = self._held.enter_context(_lasting_thread())
        future = starter.submit(WorkerProcess, target, memory_limit_bytes=memory, folder=self._home)
        try:
            self._worker = future.result()
        except BaseException:
            future.add_done_callback(lambda done: None if done.exception() else done.result().kill())
            raise
        self._held.callback(self._worker.close)
        return self._worker

    def _drop(self, *, kill: bool) -> None:
        """End the process, at once if it may hang, and remove what it left."""
        worker, self._worker = self._worker, None
        if worker is not None:
            if kill:
                worker.kill()
            worker.close()
        if self._home is not None:
            shutil.rmtree(self._home, ignore_errors=True)
            self._home = None


@dataclass(frozen=True)
class ModelFacts:
    """What is to be known of a model file before anything is done with it."""

    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]
    sha256: str
    """As `profiler.artifacts.source_sha256`."""


def describe(path: Path, maker: Maker | None = None) -> ModelFacts:
    """Read and check a model in a maker process; `maker` None: in one of its own.

    Raises ModelError, also where the model ends that process.
    """
    with model_errors(), ExitStack() as stack:
        maker = maker or stack.enter_context(Maker())
        found = maker.do("describe", f"reading the model '{path}'", path=path)
    return ModelFacts(_infos(found["inputs"]), _infos(found["outputs"]), str(found["sha256"]))


@contextmanager
def model_errors() -> Iterator[None]:
    """Where nothing goes on without the model: what becomes of its process is an error of the model."""
    try:
        yield
    except WorkerFailure as failure:
        raise ModelError(str(failure)) from failure


def _infos(found: Any) -> tuple[TensorInfo, ...]:
    return tuple(TensorInfo(str(one["name"]), str(one["dtype"]), tuple(one["shape"])) for one in found)


def write_rows(rows: Rows, folder: Path) -> None:
    """Arrays as files, for `read_rows`; text becomes text of a fixed width, never a pickle. Raises OSError."""
    names = []
    for number, (name, array) in enumerate(rows.items()):
        text = array.dtype.kind == "O"
        np.save(folder / f"{number}.npy", array.astype(str) if text else array, allow_pickle=False)
        names.append({"name": name, "text": text})
    (folder / "names.json").write_text(json.dumps(names), encoding="utf-8")


def read_rows(folder: Path) -> dict[str, NDArray[Any]]:
    """The arrays of `write_rows`, read as they are used; writing into them changes no file."""
    rows: dict[str, NDArray[Any]] = {}
    for number, entry in enumerate(json.loads((folder / "names.json").read_text(encoding="utf-8"))):
        file = folder / f"{number}.npy"
        try:
            array = np.asarray(np.load(file, mmap_mode="c", allow_pickle=False))
        except ValueError:
            # What has no bytes cannot be mapped.
            array = np.load(file, allow_pickle=False)
        rows[entry["name"]] = array.astype(object) if entry["text"] else array
    return rows


def _target(home: Path) -> Target:
    here = str(Path(__file__).resolve().parents[2])
    # It works in a folder of its own, where relative entries would mean something else.
    paths = [str(Path(part).absolute()) for part in os.environ.get("PYTHONPATH", "").split(os.pathsep) if part]
    environment = {"PYTHONPATH": os.pathsep.join([here, *paths]), "TMPDIR": str(home)}
    command = (sys.executable, "-c", START.format(module="profiler.maker"))
    return Target("local", command, shares_files=True, environment=environment)


def _within_own(memory_bytes: int) -> int:
    """A limit cannot be raised above the one that this process was given."""
    hard = resource.getrlimit(resource.RLIMIT_DATA)[1]
    return memory_bytes if hard == resource.RLIM_INFINITY else min(memory_bytes, hard)


@contextmanager
def _lasting_thread() -> Iterator[ThreadPoolExecutor]:
    pool = ThreadPoolExecutor(1, thread_name_prefix="edgeprof-maker")
    try:
        yield pool
    finally:
        pool.shutdown(wait=False)


def _told(failure: WorkerFailure, what: str, limits: Limits, home: str) -> WorkerFailure:
    """The failure in words that fit work on a model, with the limit that ended it and the option that changes it."""
    cause = str(failure).partition(_DELIMITER)[0].replace(" during 'do'", "").replace(f"{home}/", "").rstrip(". ")
    if failure.kind == "timeout":
        text = (
            f"{what} did not end within {limits.time_s:.4g} s ({limits.time_told}): the process that did it was ended."
        )
    elif failure.kind == "out_of_memory":
        allowed = f"{units.size(limits.memory_bytes)} that it may allocate ({limits.memory_told})"
        text = f"{what} needs more memory than there is, or than the {allowed}: {cause}."
    elif failure.kind == "crash":
        text = f"{what} ended the process that did it: {cause}."
    else:
        text = f"{what} failed: {cause}."
    return WorkerFailure(failure.kind, text, failure.log_tail, needs_more_than_bytes=failure.needs_more_than_bytes)


def as_failure(error: EdgeprofError) -> tuple[Any, str | None, int | None]:
    """Kind, last words and least memory of what kept a variant from being made, as a FailureRecord has them."""
    if isinstance(error, WorkerFailure):
        return error.kind, error.log_tail, error.needs_more_than_bytes
    return "unsupported", None, None


def is_of_the_machine(error: EdgeprofError) -> bool:
    """Whether it says nothing about the variant: a full disk, a process that cannot be started."""
    return isinstance(error, StoreError) or (isinstance(error, TargetError) and not isinstance(error, WorkerFailure))
