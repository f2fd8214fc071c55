"""The worker: one process that runs one case. It reads commands from stdin and answers on its original stdout.

Imports only the standard library, numpy and (through the adapter) one runtime, because it also starts on devices where
nothing else is installed. It exits when stdin ends, and when a command passes its deadline, so that it leaves no orphans.
Start it as `python -P -m profiler.worker`.
"""

from __future__ import annotations

import contextlib
import faulthandler
import gc
import importlib
import math
import os
import re
import signal
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from backends import base, registry
from profiler import wire
from profiler.measure import (
    conditions,
    gpu_memory,
    host,
    lanes,
    loadgen,
    loop,
    memory,
    power_mode,
    realised,
    sensors,
    threads,
)
from profiler.measure.canary import Canary
from profiler.measure.energy import serve as energy_meters
from profiler.measure.outputs import as_arrays

_PR_SET_PDEATHSIG = 1
_QUIET_SHARE = 0.1
_QUIET_SLICE_S = 0.005
_QUIET_LIMIT_S = 0.5
_SHA256 = re.compile(r"[0-9a-f]{64}")
_FORGOTTEN_S = 3600.0
_LONGEST_COMMAND_S = 86_400.0
"""On a device, where whoever asks may be gone without a word: nothing is waited for, or worked at, for ever."""

Reply = tuple[dict[str, Any], wire.Arrays]


@dataclass
class State:
    """What this worker holds between commands."""

    cache: Path
    remote: bool = False
    """Whether the parent is another machine: it may then name no file here but those it sent."""
    session: base.Session | None = None
    feeds: list[base.Feeds] = field(default_factory=list)
    meter: memory.Meter = field(default_factory=memory.Meter)
    watch: threads.Watch = field(default_factory=threads.Watch)
    canary: Canary | None = None
    on_gpu: bool = False
    """Whether the model runs on an NVIDIA device."""
    slow_sensors: bool | None = None
    """Whether firmware or a driver tells something here; None before it was asked."""
    lanes: lanes.Lanes = field(default_factory=lanes.Lanes)
    power: power_mode.PowerModes = field(default_factory=power_mode.PowerModes)
    commands: Mapping[str, Command] = field(default_factory=lambda: _COMMANDS)
    """What this process knows to do, by name."""


Command = Callable[[State, Mapping[str, Any], wire.Arrays], Reply]


def main(*, remote: bool = False, more: Mapping[str, Command] | None = None) -> None:
    """Serve commands until stdin ends. `EDGEPROF_WORKER_CACHE` names the folder that received artifacts go to.

    `more` are commands beside a worker's own, of processes that do other work on models in the same way.
    """
    _end_with_parent()
    commands, replies = _take_over_pipes()
    _apply_memory_limit(os.environ.get("EDGEPROF_WORKER_MEMORY_BYTES"))
    cache = Path(os.environ.get("EDGEPROF_WORKER_CACHE") or "edgeprof-worker-cache")
    state = State(cache, remote, commands={**_COMMANDS, **(more or {})})
    if remote:
        _end_when_forgotten(_FORGOTTEN_S)
    while (frame := wire.read_frame(commands)) is not None:
        header, arrays = frame
        if remote:
            _end_when_forgotten(0)
        reply, reply_arrays = _answer(state, header, arrays)
        try:
            wire.write_frame(replies, reply, reply_arrays)
        except (TypeError, ValueError, wire.WireError) as error:
            # Raised before a byte is written: complex numbers, a foreign adapter's facts that are no JSON.
            wire.write_frame(
                replies, _failure("error", f"the answer to '{header.get('command')}' cannot travel: {error}")
            )
        if header.get("command") == "stop":
            break
        if remote:
            _end_when_forgotten(_seconds(header, "idle_s") or _FORGOTTEN_S)
    state.lanes.close()
    if state.session is not None:
        state.session.close()


def _end_with_parent() -> None:
    """On Linux: be killed when the parent dies, also in the middle of an inference that reads no pipe."""
    if not sys.platform.startswith("linux"):
        return
    import ctypes

    parent = os.getppid()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


def _take_over_pipes() -> tuple[IO[bytes], IO[bytes]]:
    """Keep the pipes for the protocol; whatever native libraries print to stdout goes to stderr instead."""
    commands = os.fdopen(os.dup(0), "rb", buffering=1 << 16)
    replies = os.fdopen(os.dup(1), "wb", buffering=1 << 16)
    with Path(os.devnull).open("rb") as nothing:
        os.dup2(nothing.fileno(), 0)
    os.dup2(2, 1)
    sys.stdout = sys.stderr
    return commands, replies


def _end_when_forgotten(seconds: float) -> None:
    """End the process when no command comes for so long: a link that died without a word leaves the pipe open for ever."""
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_REAL, max(0.0, seconds))


def _seconds(header: Mapping[str, Any], key: str) -> float:
    """A time that the parent gives, 0 where it gives none or nonsense."""
    value = header.get(key)
    good = isinstance(value, (int, float)) and math.isfinite(value) and value > 0
    return min(float(value), _LONGEST_COMMAND_S) if good and value is not None else 0.0


def _apply_memory_limit(limit: object) -> None:
    """Limit the data segment, so that a case too large fails here and not the machine."""
    if not limit:
        return
    import resource

    resource.setrlimit(resource.RLIMIT_DATA, (int(str(limit)), int(str(limit))))


def _answer(state: State, header: Mapping[str, Any], arrays: wire.Arrays) -> Reply:
    """Run one command; every failure becomes an answer, so that only a death of the process ends the conversation."""
    name = str(header.get("command"))
    command = state.commands.get(name)
    if command is None:
        known = ", ".join(sorted(state.commands))
        return _failure("error", f"unknown command '{name}'; this worker knows {known}."), {}
    deadline_s = _seconds(header, "deadline_s") or (_LONGEST_COMMAND_S if state.remote else 0.0)
    if deadline_s > 0:
        # Works in a C thread: it ends the process even when native code hangs and holds the interpreter's lock.
        faulthandler.dump_traceback_later(deadline_s, exit=True)
    try:
        reply, reply_arrays = command(state, header, arrays)
    except base.ProviderMismatch as error:
        return _failure("mismatch", str(error)), {}
    except base.BackendUnavailable as error:
        return _failure("unavailable", str(error)), {}
    except MemoryError:
        return _failure("out_of_memory", "the process ran out of memory (MemoryError)."), {}
    except base.EdgeprofError as error:
        return _failure(kind_of(str(error)), str(error)), {}
    except Exception as error:  # noqa: BLE001 (the border: a foreign runtime may raise anything)
        return _failure(kind_of(str(error)), f"{type(error).__name__}: {error}"), {}
    finally:
        if deadline_s > 0:
            faulthandler.cancel_dump_traceback_later()
    return {"ok": True, **reply}, reply_arrays


_MEMORY_WORDS = (
    "failed to allocate",
    "out of memory",
    "bad_alloc",
    "bad allocation",
    "allocaterawinternal",
    "cannot allocate memory",
    "unable to start watchdog thread",
    "can't start new thread",
)
_UNSUPPORTED_WORDS = (
    "not implemented", "not_implemented", "unsupported", "no opset import", "is not a registered function", "not supported",
    "could not find an implementation", "no conversion rule", "cannot convert", "failed to find", "opconversionfailure",
)  # fmt: skip


def kind_of(text: str) -> str:
    """The runtimes raise one exception class for everything: the kind can only be read from their words."""
    lower = text.lower()
    if any(words in lower for words in _MEMORY_WORDS):
        return "out_of_memory"
    return "unsupported" if any(words in lower for words in _UNSUPPORTED_WORDS) else "error"


def _failure(kind: str, message: str) -> dict[str, Any]:
    return {"ok": False, "kind": kind, "message": message[:20_000]}


def _hello(state: State, header: Mapping[str, Any], arrays: wire.Arrays) -> Reply:
    """Who this worker is. `conditions` (see `conditions.apply`) are put on it before any runtime is imported, and named."""
    del arrays
    _apply_memory_limit(header.get("memory_limit_bytes"))
    told = conditions.apply(header.get("conditions") or {}, state.power)
    if told:
        # They belong to every figure of this process, so they travel with its notes.
        state.meter = memory.Meter(_notes={f"{key}: {means}": None for key, means in told.items()})
    return {
        "protocol": wire.PROTOCOL,
        "pid": os.getpid(),
        "python": sys.version.split()[0],
        "platform": sys.platform,
        "conditions": told,
    }, {}


def _put(state: State, header: Mapping[str, Any], arrays: wire.Arrays) -> Reply:
    """Receive one chunk of one file of an artifact, which appears as `<cache>/<sha256>/<name>` when it is whole and right.

    Until then it lies beside it under another name, so that a transfer which broke goes on where it stopped.
    """
    path = _cached(state, str(header["sha256"]), str(header["name"]))
    part, offset, size = _part(path), int(header["offset"]), int(header["size"])
    chunk = np.ascontiguousarray(arrays["chunk"]).reshape(-1).view(np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with part.open("ab" if offset else "wb") as file:
            if file.tell() != offset or offset + chunk.size > size:
                raise wire.WireError(
                    f"{file.tell()} bytes of '{path.name}' are here, {chunk.size} more came for {offset} of {size}."
                )
            file.write(chunk.data if chunk.size else b"")
    except OSError:
        # A disk that is full should not stay so for a part that is of no use.
        part.unlink(missing_ok=True)
        raise
    if offset + chunk.size == size:
        if wire.file_sha256(part) != header["file_sha256"]:
            part.unlink()
            raise wire.WireError(f"'{path.name}' arrived damaged: send it again.")
        part.replace(path)
    return {"offset": offset + int(chunk.size)}, {}


def _have(state: State, header: Mapping[str, Any], arrays: wire.Arrays) -> Reply:
    """Whether a file of an artifact is here, whole: compared by size and SHA-256; otherwise how many bytes of it are."""
    del arrays
    path = _cached(state, str(header["sha256"]), str(header["name"]))
    size, part = int(header["size"]), _part(path)
    if path.is_file() and path.stat().st_size == size and wire.file_sha256(path) == header["file_sha256"]:
        return {"have": True, "offset": size}, {}
    there = part.stat().st_size if part.is_file() else 0
    return {"have": False, "offset": there if there < size else 0}, {}


def _part(path: Path) -> Path:
    return path.with_name(f"{path.name}.part")


def _cached(state: State, sha256: str, name: str) -> Path:
    """The place of a received file; names that would leave the cache are refused, links that lead out of it too."""
    parts = Path(name).parts
    plain = parts and not Path(name).is_absolute() and ".." not in parts and "\0" not in name
    path = state.cache / sha256 / name
    if not _SHA256.fullmatch(sha256) or not plain or not path.resolve().is_relative_to(state.cache.resolve() / sha256):
        raise wire.WireError(f"artifact file '{name}' of '{sha256[:80]}' is not a plain relative path.")
    return path


def _load(state: State, header: Mapping[str, Any], arrays: wire.Arrays) -> Reply:
    """Import the runtime, then load the artifact; the two are timed apart because people can only shorten one of them."""
    del arrays
    backend = _backend(state, header)
    path = _model_path(state, header)
    state.meter.begin()
    begin = time.perf_counter()
    for module in getattr(backend, "modules", ()):
        # A missing runtime gets the adapter's own, better words from load below.
        with contextlib.suppress(ImportError):
            importlib.import_module(module)
    imported = time.perf_counter()
    before = memory.read()
    state.meter.end("import")
    state.meter.watch_gpu(str(header["backend"]), header.get("device"))
    state.on_gpu = gpu_memory.kind_of(str(header["backend"]), header.get("device")) == "nvidia"
    options = base.LoadOptions(
        device=header.get("device"),
        threads=int(header["threads"]),
        batch=int(header["batch"]),
        varying_batch=bool(header.get("varying_batch", False)),
        streams=int(header.get("streams", 1)),
        sample_shapes={str(k): tuple(int(size) for size in v) for k, v in header.get("sample_shapes", {}).items()},
        options={str(k): str(v) for k, v in header.get("options", {}).items()},
        cache_dir=_engines(state, header),
    )
    state.meter.begin()
    start = time.perf_counter()
    state.session = backend.load(path, options)
    loaded = time.perf_counter()
    state.meter.end("load")
    return {
        "import_s": imported - begin,
        "load_s": loaded - start,
        "rss_before_load_bytes": before.rss_bytes,
        "phases": _phases(state),
        "inputs": [asdict(info) for info in state.session.inputs],
        "outputs": [asdict(info) for info in state.session.outputs],
    }, {}


def _backend(state: State, header: Mapping[str, Any]) -> base.Backend:
    """The adapter that is named. A parent elsewhere may name those of edgeprof and those that the device's owner allows.

    Others are code of whoever wrote them, which takes options that nobody here has read. The owner's word is the environment
    variable `EDGEPROF_WORKER_BACKENDS`, which no command can set.
    """
    name, device = str(header["backend"]), str(header.get("device") or "")
    if state.remote:
        allowed = {*registry.BUILT_IN, *filter(None, os.environ.get("EDGEPROF_WORKER_BACKENDS", "").split(","))}
        # `injected:NAME` runs the backend NAME.
        for one in (name, device) if name == "injected" and device else (name,):
            if one not in allowed:
                raise base.BackendUnavailable(
                    f"a worker on a device runs edgeprof's own backends, '{one}' is none: allow it there with "
                    f"EDGEPROF_WORKER_BACKENDS={one[:40]}."
                )
    return registry.get(name)


def _model_path(state: State, header: Mapping[str, Any]) -> Path:
    """The file to load; on a device only what was sent to it, and no model that names files elsewhere."""
    if header.get("path") and not state.remote:
        return Path(str(header["path"]))
    if header.get("path"):
        raise wire.WireError("a worker on a device loads only what was sent to it, not files of the device.")
    path = _cached(state, str(header["sha256"]), str(header["name"]))
    if state.remote and path.is_file() and header["backend"] != "fake":
        from backends.trt_cache import external_files

        # Runtimes would read external data from wherever the model says, and the model's answers would tell what stands there.
        external_files(path)
    return path


def _engines(state: State, header: Mapping[str, Any]) -> Path | None:
    """Where engines built here are kept; on a device always beside its artifacts."""
    if state.remote:
        return state.cache / "engines"
    return Path(str(header["cache_dir"])) if header.get("cache_dir") else None


def _session(state: State) -> base.Session:
    if state.session is None:
        raise base.BackendError("no model is loaded: send 'load' first.")
    return state.session


def _facts(state: State, header: Mapping[str, Any], arrays: wire.Arrays) -> Reply:
    """What really runs. Asked after the measurement, because some runtimes build a second model to tell."""
    del header, arrays
    facts = asdict(_session(state).facts)
    return {"facts": facts}, {}


def _feed(state: State, header: Mapping[str, Any], arrays: wire.Arrays) -> Reply:
    """Receive the inputs that timing runs on: arrays named `<turn>/<input>`, several turns of one batch each."""
    del header
    session = _session(state)
    turns: dict[str, dict[str, NDArray[np.generic]]] = {}
    for key, array in arrays.items():
        turn, _, name = key.partition("/")
        # A copy: frames hand out read-only views, which some runtimes refuse.
        turns.setdefault(turn, {})[name] = array.copy()
    for feeds in turns.values():
        base.check_feeds(session.inputs, feeds)
    state.feeds = list(turns.values())
    return {"turns": len(state.feeds)}, {}


def _first(state: State, header: Mapping[str, Any], arrays: wire.Arrays) -> Reply:
    """Time the very first inference, which allocates and sometimes compiles."""
    del header, arrays
    session = _session(state)
    state.meter.begin()
    start = time.perf_counter()
    session.infer(state.feeds[0])
    seconds = time.perf_counter() - start
    state.meter.end("first")
    state.meter.begin()
    return {"first_inference_s": seconds, "phases": _phases(state)}, {}


def _time(state: State, header: Mapping[str, Any], arrays: wire.Arrays) -> Reply:
    """One stretch of timed inferences: a block, or a piece of the warm-up."""
    session = _session(state)
    limits = loop.Limits(
        float(header["min_s"]),
        int(header["min_samples"]),
        float(header["max_s"]),
        int(header.get("max_samples", 1_000_000)),
    )
    per_sample, label_every = int(header.get("per_sample", 1)), int(header.get("label_every", 1))
    clock = time.perf_counter_ns
    with loop.quiet_collector(), threads.counters(time.process_time_ns, state.watch) as counters:
        slow = _slow(state)
        ran, before = threads.executed(), host.read()
        canary = state.canary = state.canary or Canary()
        timing = loop.time_inferences(
            session.infer, state.feeds, limits, clock=clock, per_sample=per_sample, counters=counters, label_every=label_every,
            canary=canary,
        )  # fmt: skip
        after = host.read()
        state.watch = threads.learn(ran, threads.executed(), after.wall_s - before.wall_s)
        labels = {
            **host.difference(before, after),
            **({} if slow is None else host.slow_difference(slow, _slow_read(state))),
        }
    cost = _harness_cost(state.watch) if header.get("weigh") else None
    parked_cpu_s = become_quiet()
    reply = {
        "started_s": float(timing.starts_ns[0]) / 1e9,
        "cpu_s": after.cpu_s - before.cpu_s,
        "wall_s": after.wall_s - before.wall_s,
        "labels": labels,
        "parked_cpu_s": parked_cpu_s,
        "harness": None if cost is None else asdict(cost),
    }
    arrays = {
        "durations_ns": timing.durations_ns, "window_ns": timing.window_ns, "canary_ns": timing.canary_ns,
        "canary_at": timing.canary_at,
    }  # fmt: skip
    return reply, {**arrays, **{f"{name}_ns": values for name, values in timing.counters_ns.items()}}


def _slow(state: State) -> host.Slow | None:
    """What only firmware and drivers tell, where they tell anything: a machine without them is asked once."""
    if state.slow_sensors is False:
        return None
    found = _slow_read(state)
    state.slow_sensors = bool(found.values) or found.tells_throttling
    return found if state.slow_sensors else None


def _slow_read(state: State) -> host.Slow:
    def not_asked() -> Any:
        raise base.BackendError("the model does not run on an NVIDIA device")

    # Importing NVML's bindings takes 16 MB, which would count as the model's.
    return host.slow_read(nvml=sensors.open_nvml if state.on_gpu else not_asked)


def _harness_cost(watch: threads.Watch) -> loop.HarnessCost:
    """With the counters that the next stretch will read."""
    with loop.quiet_collector(), threads.counters(time.process_time_ns, watch) as counters:
        return loop.harness_cost(clock=time.perf_counter_ns, counters=counters)


def become_quiet() -> float:
    """Wait until the runtime's own threads sleep, so that a parked worker takes nothing from the one measured next.

    Thread pools spin for a while after their last task. Turning that off would change what is measured; waiting does not.
    Returns the processor time spent while waiting, seconds.
    """
    start = time.process_time()
    limit = time.perf_counter() + _QUIET_LIMIT_S
    while time.perf_counter() < limit:
        cpu, wall = time.process_time(), time.perf_counter()
        time.sleep(_QUIET_SLICE_S)
        if time.process_time() - cpu < _QUIET_SHARE * (time.perf_counter() - wall):
            break
    return time.process_time() - start


def _ops(state: State, header: Mapping[str, Any], arrays: wire.Arrays) -> Reply:
    """What runs and the time of each op, beside inferences without the profiler; `machine` adds what the cores can do."""
    del arrays
    found = realised.op_report(_session(state), state.feeds, header)
    if header.get("machine"):
        found["machine"] = asdict(realised.machine())
    become_quiet()
    return found, {}


def _serve(state: State, header: Mapping[str, Any], arrays: wire.Arrays) -> Reply:
    """One run of a load scenario; see `Lanes.serve`."""
    return state.lanes.serve(_session(state), header, arrays)


def _loadgen(state: State, header: Mapping[str, Any], arrays: wire.Arrays) -> Reply:
    """One run of MLPerf LoadGen over the rows `row/<input>`; see `loadgen.drive`."""
    pool = {name.removeprefix("row/"): rows for name, rows in arrays.items()}
    return loadgen.drive(_session(state), pool, header)


def _infer(state: State, header: Mapping[str, Any], arrays: wire.Arrays) -> Reply:
    """Run one batch for its outputs, untimed."""
    del header
    session = _session(state)
    feeds = {name: array.copy() for name, array in arrays.items()}
    base.check_feeds(session.inputs, feeds)
    return {}, as_arrays(session.infer(feeds))


def _memory(state: State, header: Mapping[str, Any], arrays: wire.Arrays) -> Reply:
    """What it holds now, the highest it ever held, and each phase; `running` is everything since the first inference."""
    del header, arrays
    gc.collect()
    now = memory.read()
    state.meter.end("running")
    return {
        "rss_bytes": now.rss_bytes,
        "peak_rss_bytes": state.meter.peak_rss_bytes,
        "phases": _phases(state),
        "memory_notes": list(state.meter.notes),
    }, {}


def _phases(state: State) -> dict[str, dict[str, int | None]]:
    return {phase: asdict(found) for phase, found in state.meter.phases.items()}


def _energy(state: State, header: Mapping[str, Any], arrays: wire.Arrays) -> Reply:
    """The energy meters of this machine; with `window_s`, one window of the loaded model, or (`idle`) of nothing running.

    With `clock`, only what this machine's wall clock shows, for meters that are read elsewhere.
    """
    del arrays
    if header.get("clock"):
        return {"unix_s": time.time()}, {}
    if header.get("window_s") is None:
        return energy_meters.meters(int(header.get("gpu", 0))), {}
    infer = None if header.get("idle") else _session(state).infer
    return energy_meters.measure(infer, state.feeds, header), {}


def _availability(state: State, header: Mapping[str, Any], arrays: wire.Arrays) -> Reply:
    del arrays
    return asdict(_backend(state, header).availability(header.get("device"))), {}


def _environment(state: State, header: Mapping[str, Any], arrays: wire.Arrays) -> Reply:
    """The facts about this machine that a measurement depends on, and the machine that its files say it is."""
    del state, header, arrays
    from profiler.environment import describe

    return {"environment": asdict(describe())}, {}


def _stop(state: State, header: Mapping[str, Any], arrays: wire.Arrays) -> Reply:
    del state, header, arrays
    return {}, {}


_COMMANDS: dict[str, Command] = {
    "hello": _hello,
    "availability": _availability,
    "environment": _environment,
    "have": _have,
    "put": _put,
    "load": _load,
    "facts": _facts,
    "feed": _feed,
    "first": _first,
    "time": _time,
    "ops": _ops,
    "serve": _serve,
    "loadgen": _loadgen,
    "infer": _infer,
    "memory": _memory,
    "energy": _energy,
    "stop": _stop,
}

if __name__ == "__main__":
    main()
