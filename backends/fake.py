"""A backend that does as it is told: programmable latency, memory and failures, for tests of everything above the adapters.

Options: `latency_us`, `jitter` (the relative spread of it, uniform, seeded by `seed`), `shape` (its course over the inferences,
`backends.fake_shapes`, seeded too), `load_ms`, `memory_mb` (really allocated and touched),
`fail=none|raise|unsupported|alloc|oom|segv|exit|hang` and `fail_at=load|infer|N` (N-th inference, from 1; `infer` is 1).
`read=false` takes any file for x [batch, 4] -> y [batch, 2], which spares importing `onnx`.
`wait=spin|sleep` says how the latency passes: computing in Python, or asleep, which lets other lanes run meanwhile as a runtime
does that computes outside the interpreter. `row_us` is added per row. `stall_at=N` makes the N-th inference (of all lanes, from
1) take `stall_s` more, asleep: a hiccup as of a swapped-out page or a frozen container.
`ops=conv1:Conv:f32:30|out:Cast:conversion:5` are the ops that `op_times` tells: name, type, realised precision, microseconds.

`alloc` is an allocation that fails (MemoryError, the process lives). `oom`, `segv` and `exit` end the process as the kernel's
OOM killer (SIGKILL), a native crash (SIGSEGV) and a library that calls `exit(3)` do.
"""

from __future__ import annotations

import copy
import itertools
import os
import random
import signal
import time
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import numpy as np
from numpy.typing import NDArray

from backends.base import (
    Availability,
    BackendError,
    Feeds,
    LoadOptions,
    NoOpTimes,
    OpTime,
    Outputs,
    SessionFacts,
    TensorInfo,
)
from backends.fake_shapes import SHAPES, factors
from backends.options import choice, flag, number, require_known

_NUMBERS = {"latency_us": 0.0, "jitter": 0.0, "seed": 0.0, "load_ms": 0.0, "memory_mb": 0.0} | {
    "row_us": 0.0,
    "stall_at": 0.0,
    "stall_s": 0.0,
}
_FAILURES = ("none", "raise", "unsupported", "alloc", "oom", "segv", "exit", "hang")
_ANY_FILE = (
    (TensorInfo("x", "float32", ("batch", 4)),),
    (TensorInfo("y", "float32", ("batch", 2)),),
)


def _die(kind: str) -> None:
    if kind == "exit":
        os._exit(3)
    os.kill(os.getpid(), signal.SIGSEGV if kind == "segv" else signal.SIGKILL)


@dataclass(frozen=True)
class FakeBackend:
    """Adapter without a runtime. Clock, sleep and death are arguments, so that tests of it need no waiting."""

    clock_ns: Callable[[], int] = time.perf_counter_ns
    sleep: Callable[[float], None] = time.sleep
    die: Callable[[str], None] = _die

    @property
    def name(self) -> str:
        """`fake`."""
        return "fake"

    def devices(self) -> Sequence[str]:
        """`cpu`."""
        return ("cpu",)

    def availability(self, device: str | None = None) -> Availability:
        """Always, on `cpu`."""
        if device not in {None, "cpu"}:
            return Availability(
                False, "1", reason=f"backend 'fake' has no device '{device}'", install="use 'fake' or 'fake:cpu'"
            )
        return Availability(True, "1")

    def load(self, artifact: Path, options: LoadOptions) -> FakeSession:
        """Take any file; from an ONNX model (when `onnx` is installed) the inputs and outputs are read, else it is x -> y."""
        require_known(self.name, options.options, (*_NUMBERS, "shape", "fail", "fail_at", "read", "wait", "ops"))
        numbers = {key: number(self.name, options.options, key, default) for key, default in _NUMBERS.items()}
        choice(self.name, options.options, "shape", SHAPES, "constant")
        fail = choice(self.name, options.options, "fail", _FAILURES, "none")
        fail_at = _fail_at(options.options.get("fail_at", "load"))
        read = flag(self.name, options.options, "read", default=True)
        choice(self.name, options.options, "wait", ("spin", "sleep"), "spin")
        ops = _ops(options.options.get("ops", ""))
        if not self.availability(options.device).available:
            raise BackendError(f"backend 'fake' has no device '{options.device}', expected cpu.")
        if not artifact.is_file():
            raise BackendError(f"fake: model file '{artifact}' is not there; make the artifact first.")
        if numbers["load_ms"]:
            self.sleep(numbers["load_ms"] / 1e3)
        session = FakeSession(self, artifact, options, numbers, fail, fail_at, read=read, ops=ops)
        if fail_at == 0:
            session.fail("load")
        return session


class FakeSession:
    """Answers numbers in [0, 1) that depend on each row of the first input alone, so batches and repeats agree."""

    def __init__(
        self,
        backend: FakeBackend,
        artifact: Path,
        options: LoadOptions,
        numbers: Mapping[str, float],
        fail: str,
        fail_at: int,
        *,
        read: bool = True,
        ops: Sequence[OpTime] = (),
    ) -> None:
        """Made by `FakeBackend.load`."""
        self._backend, self._artifact, self._numbers, self._fail, self._fail_at = (
            backend,
            artifact,
            numbers,
            fail,
            fail_at,
        )
        self._random = random.Random(int(numbers["seed"]))
        self._shape = options.options.get("shape", "constant")
        self._factors = factors(self._shape, int(numbers["seed"]))
        self._started = itertools.count(1)
        self._asleep = options.options.get("wait") == "sleep"
        self._closed = False
        self._ops = tuple(ops)
        # Ones, not zeros or empty: a page that is never written is never resident.
        self._memory: NDArray[np.uint8] | None = np.ones(int(numbers["memory_mb"] * 1e6), np.uint8)
        self.inputs, self.outputs = _interface(artifact) if read else _ANY_FILE
        self.facts = SessionFacts(
            runtime="fake",
            runtime_version="1",
            provider="cpu",
            threads=options.threads,
            precision=None,
            precision_reason="the fake backend executes no ops",
            details=dict(options.options),
        )

    def infer(self, feeds: Feeds) -> Outputs:
        """New arrays after the programmed latency, spent computing as a runtime spends it, or the programmed failure."""
        if self._closed:
            raise BackendError(f"fake: the session of '{self._artifact.name}' is closed; load it again.")
        start = self._backend.clock_ns()
        number = next(self._started)
        if number == self._fail_at:
            self.fail("run")
        rows = len(next(iter(feeds.values()))) if self._numbers["row_us"] else 0
        jitter = self._numbers["jitter"] * self._random.uniform(-1, 1)
        latency = self._numbers["latency_us"] * next(self._factors) * (1 + jitter)
        latency += rows * self._numbers["row_us"]
        outputs = {info.name: _answer(info, self.inputs, feeds) for info in self.outputs}
        if number == self._numbers["stall_at"]:
            self._backend.sleep(self._numbers["stall_s"])
        if self._asleep:
            self._backend.sleep(max(0.0, latency / 1e6 - (self._backend.clock_ns() - start) / 1e9))
        while self._backend.clock_ns() - start < latency * 1e3:
            pass
        return outputs

    def lane(self) -> FakeSession:
        """Another handle with random numbers of its own; inferences are counted over all lanes."""
        if self._closed:
            raise BackendError(f"fake: the session of '{self._artifact.name}' is closed; load it again.")
        lane = copy.copy(self)
        lane._random = random.Random(self._random.random())  # noqa: SLF001 (a copy of ourselves)
        lane._factors = factors(self._shape, lane._random.getrandbits(32))  # noqa: SLF001 (a copy of ourselves)
        return lane

    def op_times(self, feeds: Feeds, runs: int) -> Sequence[OpTime] | NoOpTimes:
        """The ops of the option `ops`, after as many inferences as a runtime's profiler would need."""
        for _ in range(runs):
            self.infer(feeds)
        return self._ops or NoOpTimes("the fake backend executes no ops; name some with ops=conv1:Conv:f32:30")

    def close(self) -> None:
        """Free the memory."""
        self._closed, self._memory = True, None

    def fail(self, stage: str) -> None:
        """Fail as programmed. Returns when nothing is programmed, and when `die` is a test's that lets it live."""
        name, fail = self._artifact.name, self._fail
        if fail == "raise":
            raise BackendError(f"fake could not {stage} '{name}': it was told to fail (fail=raise).")
        if fail == "unsupported":
            raise BackendError(f"fake could not {stage} '{name}': unsupported op FakeOp (fail=unsupported).")
        if fail == "alloc":
            raise MemoryError(f"fake could not {stage} '{name}': it was told that memory is short (fail=alloc).")
        if fail == "hang":
            self._hang()
        if fail != "none":
            self._backend.die(fail)

    def _hang(self) -> NoReturn:
        while True:
            self._backend.sleep(3600)


def _fail_at(text: str) -> int:
    if text in {"load", "infer"}:
        return int(text == "infer")
    if not (text.isdecimal() and int(text) > 0):
        raise BackendError(
            f"backend 'fake' got fail_at={text}, expected load, infer or the number of an inference from 1."
        )
    return int(text)


def _ops(text: str) -> tuple[OpTime, ...]:
    found = []
    for part in filter(None, text.split("|")):
        name, _, rest = part.partition(":")
        kind, _, rest = rest.partition(":")
        precision, _, microseconds = rest.partition(":")
        duration_s = number("fake", {"ops": microseconds}, "ops", 0.0) / 1e6
        found.append(OpTime(name, kind, precision, "cpu", duration_s, 1.0))
    return tuple(found)


def _interface(artifact: Path) -> tuple[Sequence[TensorInfo], Sequence[TensorInfo]]:
    try:
        import onnx
    except ImportError:
        return _ANY_FILE
    try:
        graph = onnx.load(str(artifact), load_external_data=False).graph
    except Exception:  # noqa: BLE001 (whatever onnx says of a file that is no model: any file will do here)
        return _ANY_FILE
    if not graph.output:
        return _ANY_FILE
    constants = {tensor.name for tensor in graph.initializer}

    def read(value: onnx.ValueInfoProto) -> TensorInfo:
        tensor = value.type.tensor_type
        dtype = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type)).name
        sizes = [dim.dim_value if dim.HasField("dim_value") else (dim.dim_param or None) for dim in tensor.shape.dim]
        return TensorInfo(value.name, dtype, tuple(sizes))

    return tuple(read(value) for value in graph.input if value.name not in constants), tuple(map(read, graph.output))


def _answer(info: TensorInfo, inputs: Sequence[TensorInfo], feeds: Feeds) -> NDArray[np.generic]:
    sizes = {
        name: fed
        for given in inputs
        if given.name in feeds
        for name, fed in zip(given.shape, feeds[given.name].shape, strict=False)
        if isinstance(name, str)
    }
    first = next(iter(feeds.values())) if feeds else np.zeros((1, 1))
    rows = np.ascontiguousarray(first).reshape(len(first), -1) if first.ndim else np.zeros((1, 1))
    shape = [size if isinstance(size, int) else sizes.get(size or "", 1) for size in info.shape]
    if shape and not isinstance(info.shape[0], int) and info.shape[0] not in sizes:
        shape[0] = len(rows)
    width = int(np.prod(shape[1:])) if len(shape) > 1 else 1
    count = shape[0] if shape else 1
    seeds = np.array(
        [zlib.crc32(rows[row % len(rows)].tobytes()) if len(rows) else 0 for row in range(count)], np.uint64
    )
    # Knuth's multiplicative hash (TAOCP 6.4) spreads the row's checksum over its outputs.
    mixed = (seeds[:, None] + np.arange(1, width + 1, dtype=np.uint64)) * np.uint64(2654435761) % np.uint64(2**32)
    values: NDArray[np.generic] = (mixed / 2.0**32).reshape(shape).astype(np.dtype(info.dtype))
    return values
