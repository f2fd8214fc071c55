"""What a runtime adapter is: two Protocols and the words they share.

An adapter loads a model file and runs it. It never times, prints or retries: the meter, the reports and the
scheduler do that, once, for all adapters. This module imports only the standard library and numpy, because every
worker imports it, on devices where little else is installed.

If you find yourself adding a method to a Protocol here, pause: every adapter, ours and other people's, has to follow.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from backends.errors import BackendError, BackendUnavailable, EdgeprofError, FeedError, ProviderMismatch

__all__ = [
    "Availability",
    "Backend",
    "BackendError",
    "BackendUnavailable",
    "EdgeprofError",
    "FeedError",
    "Feeds",
    "LoadOptions",
    "NoOpTimes",
    "OpTime",
    "Outputs",
    "ProviderMismatch",
    "Session",
    "SessionFacts",
    "TensorInfo",
    "check_feeds",
    "format_shape",
    "lane",
    "middle_mean",
    "op_times",
    "warm_runs",
]

Feeds = Mapping[str, NDArray[np.generic]]
"""Input arrays by input name, batch axis first."""

Outputs = dict[str, NDArray[np.generic]]
"""Output arrays by output name."""


@dataclass(frozen=True)
class Availability:
    """Whether a backend can run here. `reason` and `install` are given when it cannot."""

    available: bool
    version: str | None = None
    reason: str | None = None
    install: str | None = None


@dataclass(frozen=True)
class TensorInfo:
    """One model input or output. A dimension is an int, or its symbolic name, or None when it has none."""

    name: str
    dtype: str
    """numpy's name of the element type: `float32`, `int64`, `bool`, …"""
    shape: tuple[int | str | None, ...]


@dataclass(frozen=True)
class LoadOptions:
    """How to load an artifact. `options` are the backend's own, from its text form (`ov{precision=bf16}`)."""

    device: str | None = None
    """`cpu`, `cuda`, `tensorrt` for ort; `CPU`, `GPU`, `NPU` for ov; None is the backend's default."""
    threads: int = 1
    """Threads inside one inference, on CPU devices. Ignored by devices that have none; `facts.threads` tells."""
    batch: int = 1
    """Rows an inference will carry; runtimes that compile for a shape use it."""
    varying_batch: bool = False
    """Inferences will carry 1 to `batch` rows. A runtime that cannot leave the axis open compiles for `batch`, its inputs say
    so, and the caller fills smaller batches up."""
    streams: int = 1
    """Inferences that will run at the same time on lanes (see `lane`); runtimes that plan for it use it."""
    sample_shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    """Shape of each input as it will be fed, batch included; what a compiled engine's profile is made from."""
    options: Mapping[str, str] = field(default_factory=dict)
    cache_dir: Path | None = None
    """Where compiled engines may be kept between processes; None means not at all."""


@dataclass(frozen=True)
class SessionFacts:
    """What really runs, as the runtime tells it, not as it was asked."""

    runtime: str
    runtime_version: str
    provider: str
    """Execution provider or device that runs the graph: `CPUExecutionProvider`, `CPU`, `NVIDIA H200`, …"""
    threads: int | None
    precision: Mapping[str, int] | None
    """Number of executed ops by realised precision (`{"f32": 12, "i8": 30}`), or None with `precision_reason`."""
    precision_reason: str | None = None
    details: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class OpTime:
    """One op of the graph that the runtime made of the model, and the time that it takes in one inference."""

    name: str
    """As the runtime calls it: often a name of the model with something added."""
    op_type: str
    """The runtime's own: `QLinearConv`, `Convolution`, …"""
    precision: str
    """Realised: `f32`, `i8`, `conversion`, … as in `SessionFacts.precision`."""
    provider: str
    duration_s: float
    """Mean of the middle half of the profiled inferences; all calls of one inference together."""
    calls: float
    """Executions per inference: more than 1 in a Loop, less in a branch of an If that is taken at times."""
    kernel: str | None = None
    """The implementation, where the runtime names it: `brgconv_avx512_I8`; it tells the instruction set."""
    origins: tuple[str, ...] = ()
    """Names in the model file of what was fused into this op, where the runtime tells."""


def read_op_time(fields: Mapping[str, Any]) -> OpTime:
    """An `OpTime` as a worker's report has it: a mapping, its tuples as lists."""
    return OpTime(**{**fields, "origins": tuple(fields["origins"])})


@dataclass(frozen=True)
class NoOpTimes:
    """Why there are no times per op."""

    reason: str


@runtime_checkable
class Session(Protocol):
    """A loaded model. Not thread-safe; one process owns it."""

    @property
    def inputs(self) -> Sequence[TensorInfo]:
        """The model's inputs, in the model's order."""
        ...

    @property
    def outputs(self) -> Sequence[TensorInfo]:
        """The model's outputs, in the model's order."""
        ...

    @property
    def facts(self) -> SessionFacts:
        """What really runs. Free after the first call."""
        ...

    def infer(self, feeds: Feeds) -> Outputs:
        """Run once. Returns when the outputs are on the host and the device is idle.

        The arrays may be reused by the next call: copy what you keep. Inputs are taken as they are, unchecked, because
        this call is what gets timed; `check_feeds` is for the border.
        """
        ...

    def close(self) -> None:
        """Free the device. Calling it twice is harmless."""
        ...


@runtime_checkable
class Backend(Protocol):
    """A runtime adapter. Constructing one costs nothing and imports nothing heavy."""

    @property
    def name(self) -> str:
        """Short name used in case texts: `ort`, `ov`, `trt`, `fake`."""
        ...

    def availability(self, device: str | None = None) -> Availability:
        """Whether it can run here (on `device` when given), without importing the runtime where that can be told."""
        ...

    def devices(self) -> Sequence[str]:
        """Device names this backend knows, default first. Which of them work here, `availability` says."""
        ...

    def load(self, artifact: Path, options: LoadOptions) -> Session:
        """Load a model file.

        Raises BackendUnavailable (not installed, no such device), ProviderMismatch (something else would run it) or
        BackendError (the runtime refuses the model; its own words are quoted).
        """
        ...


def lane(session: Session) -> Session:
    """One more handle on the model that `session` has loaded, for one more thread: both may infer at the same time.

    A session is not thread-safe, its lanes are to each other. Not part of the Protocol: an adapter whose runtime can run
    several inferences on one loaded model has a method `lane()`. Close lanes before the session they came from. Raises
    BackendError when the adapter has no lanes, and what the adapter raises.
    """
    make = getattr(session, "lane", None)
    if make is None:
        raise BackendError(
            f"{session.facts.runtime} runs one inference at a time on a loaded model (its adapter has no lanes), "
            "several workers were asked for: use --workers 1, or another backend."
        )
    made: Session = make()
    return made


def op_times(session: Session, feeds: Feeds, runs: int) -> Sequence[OpTime] | NoOpTimes:
    """The ops that run for `feeds` and the time of each, from the runtime's own profiler, over `runs` inferences after a warm-up.

    Profiling costs time: the sum is good for shares and for comparing ops, a latency is what `infer` takes without it. Not part
    of the Protocol: an adapter whose runtime has a profiler has a method `op_times(feeds, runs)`. It may load the model a
    second time, so call it outside timed code. Raises what the adapter raises when the model cannot run.
    """
    if runs < 1:
        raise BackendError(f"op times need at least 1 inference, {runs} were asked for.")
    make = getattr(session, "op_times", None)
    if make is None:
        return NoOpTimes(f"the adapter of {session.facts.runtime} does not ask its runtime for times per op")
    found: Sequence[OpTime] | NoOpTimes = make(feeds, runs)
    return found


def warm_runs(runs: int) -> int:
    """Inferences before those that count: caches, clocks and the profiler's own buffers settle."""
    return max(2, runs // 4)


def middle_mean(values: Sequence[float]) -> float:
    """Mean of the middle half: profilers count whole microseconds, which a median could not get below."""
    ordered = np.sort(np.asarray(values, np.float64))
    cut = len(ordered) // 4
    return float(ordered[cut : len(ordered) - cut].mean())


def check_feeds(inputs: Sequence[TensorInfo], feeds: Feeds) -> None:
    """Raise FeedError unless `feeds` has exactly the model's inputs with their dtypes, ranks and fixed sizes."""
    expected = {info.name: info for info in inputs}
    missing, extra = sorted(expected.keys() - feeds.keys()), sorted(feeds.keys() - expected.keys())
    if missing or extra:
        raise FeedError(
            f"the data has arrays {sorted(feeds)}, the model's inputs are {sorted(expected)}"
            + (f"; missing: {', '.join(missing)}" if missing else "")
            + (f"; unknown: {', '.join(extra)}" if extra else "")
            + ". Name the arrays as the model's inputs."
        )
    for name, info in expected.items():
        array = feeds[name]
        if array.dtype.name != info.dtype:
            raise FeedError(
                f"input '{name}' got {array.dtype.name}, the model expects {info.dtype}: convert the array."
            )
        if array.ndim != len(info.shape):
            raise FeedError(
                f"input '{name}' got rank {array.ndim} with shape {tuple(array.shape)}, "
                f"the model expects rank {len(info.shape)}: {format_shape(info.shape)}."
            )
        for axis, (got, want) in enumerate(zip(array.shape, info.shape, strict=True)):
            if isinstance(want, int) and got != want:
                raise FeedError(
                    f"input '{name}' has size {got} on axis {axis}, the model expects {want} "
                    f"(shape {format_shape(info.shape)}, got {tuple(array.shape)})."
                )


def format_shape(shape: Sequence[int | str | None]) -> str:
    """`[N, 3, 224, 224]` for people."""
    return "[" + ", ".join("?" if size is None else str(size) for size in shape) + "]"
