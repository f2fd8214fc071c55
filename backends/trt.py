"""TensorRT 10.x, 11.x and TensorRT-RTX through one adapter: `trt`, `trt:gpu.1`.

Options: `flavour=auto|trt|rtx`, `precision=model|fp16|bf16|int8` (the flags exist in 10.x only), `workspace_mib=…`,
`level=auto|0…5` (builder optimisation level), `tf32`, `sparse` and `graph` (`true|false`), and `build=0…100`.

An inference copies the inputs into page-locked memory and to the GPU, runs, and copies the outputs back: what a caller with
data on the host waits for. TensorRT can end its process instead of raising; a worker's own process contains that.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from backends.base import (
    Availability,
    BackendError,
    BackendUnavailable,
    Feeds,
    LoadOptions,
    NoOpTimes,
    OpTime,
    Outputs,
    SessionFacts,
    TensorInfo,
    middle_mean,
    warm_runs,
)
from backends.trt_build import Log, Settings, build_engine, make_logger
from backends.trt_cuda import CudaDevice, CudaError, Gpus, probe
from backends.trt_engine import details_of, engine_for
from backends.trt_find import INSTALL, TITLES, Found, find, load
from backends.trt_io import Input, Output, bind, inspected_layers, realised_precision

__all__ = ["TrtBackend", "TrtSession", "build_engine"]

_DEVICE = re.compile(r"(?:gpu|cuda)(?:[.:](\d+))?|(\d+)", re.IGNORECASE)


class TrtBackend:
    """Adapter for the TensorRT family. The arguments are for tests: how to find, import, count and open."""

    name = "trt"

    def __init__(
        self,
        find: Callable[[str], Found] = find,
        load: Callable[[Found], Any] = load,
        probe: Callable[[], Gpus] = probe,
        open_device: Callable[[int], CudaDevice] = CudaDevice,
    ) -> None:
        """Costs nothing; nothing is looked for yet."""
        self._find, self._load, self._probe, self._open_device = find, load, probe, open_device

    @property
    def modules(self) -> Sequence[str]:
        """What a worker imports before `load`, to time the two apart. None when the binding is outside sys.path."""
        try:
            found = self._find("auto")
        except BackendUnavailable:
            return ()
        return () if found.folder else (found.module,)

    def devices(self) -> Sequence[str]:
        """`gpu` is the first one; `gpu.N` the N-th, counted from 0."""
        return ("gpu",)

    def availability(self, device: str | None = None) -> Availability:
        """Told from installed files and from NVML or the driver; TensorRT itself is not imported."""
        ordinal = _ordinal(device)
        try:
            found = self._find("auto")
        except BackendUnavailable as error:
            return Availability(False, reason=str(error), install=INSTALL["auto"])
        gpus = self._probe()
        if gpus.count == 0:
            install = "an NVIDIA driver, on a machine with an NVIDIA GPU"
            return Availability(False, found.version, gpus.reason or "no NVIDIA GPU is visible here", install)
        if ordinal >= gpus.count:
            reason = f"GPU {ordinal} is not here, {gpus.count} visible"
            return Availability(False, found.version, reason, f"choose gpu.0 to gpu.{gpus.count - 1}")
        return Availability(True, found.version)

    def load(self, artifact: Path, options: LoadOptions) -> TrtSession:
        """Build the engine, or take it from `options.cache_dir`, and make a session. See `Backend.load` for the errors."""
        settings, ordinal = Settings.read(options.options), _ordinal(options.device)
        if not artifact.is_file():
            raise BackendError(f"trt: model file '{artifact}' is not there; make the artifact first.")
        found = self._find(settings.flavour)
        # Before the import and before any Runtime: without a working GPU TensorRT's Runtime crashes the process.
        device = self._open_device(ordinal)
        try:
            trt = self._load(found)
            built, origin = engine_for(trt, found, device, artifact, settings, options)
            details = details_of(found, device, settings, built, origin)
            return TrtSession(trt, found, device, artifact.name, built.plan, options, details, graph=settings.graph)
        except BaseException:
            with contextlib.suppress(CudaError):
                device.close()
            raise


def _ordinal(device: str | None) -> int:
    match = _DEVICE.fullmatch(device or "gpu")
    if match is None:
        raise BackendError(f"trt has no device '{device}'; expected gpu, gpu.1 or a GPU's number.")
    return int(match[1] or match[2] or 0)


class TrtSession:
    """One engine, one context, one stream; all buffers are made once. Outputs are reused by the next `infer`."""

    def __init__(
        self,
        trt: Any,
        found: Found,
        device: CudaDevice,
        artifact: str,
        plan: bytes,
        options: LoadOptions,
        details: dict[str, str],
        *,
        graph: bool = False,
    ) -> None:
        """Made by `TrtBackend.load`. Owns `device` from here on if it returns."""
        self._wants_graph, self._graph = graph, 0
        self._artifact, self._found, self._device, self._details = artifact, found, device, details
        self._version = str(trt.__version__)
        self._trt: Any = trt
        self._log = Log()
        self._logger = make_logger(trt, self._log)
        self._facts: SessionFacts | None = None
        self._options = options
        self._closing = contextlib.ExitStack()
        self._runtime: Any = None
        self._engine: Any = None
        self._context: Any = None
        self._inputs: list[Input]
        self._outputs: list[Output]
        with contextlib.ExitStack() as undo:
            undo.callback(self._drop)
            self._runtime = trt.Runtime(self._logger)
            self._engine = self._runtime.deserialize_cuda_engine(plan)
            if self._engine is None:
                raise BackendError(
                    f"{found.title} cannot use its engine of '{artifact}' on {device.name}: {self._why(plan)}"
                )
            self._context = _context(trt, self._engine)
            if self._context is None:
                raise BackendError(
                    f"{found.title} has no room to run '{artifact}' on {device.name}: {self._log.quote()}"
                )
            self._stream = device.create_stream()
            self._closing.callback(device.destroy_stream, self._stream)
            self._buffers = self._closing.enter_context(contextlib.ExitStack())
            self._bind(options)
            undo.pop_all()

    def _bind(self, options: LoadOptions) -> None:
        self._inputs, self._outputs = bind(
            self._trt, self._engine, self._context, self._device, self._buffers, self._artifact, options
        )
        self.inputs: Sequence[TensorInfo] = tuple(item.info for item in self._inputs)
        self.outputs: Sequence[TensorInfo] = tuple(item.info for item in self._outputs)

    def _rebind(self, feeds: Feeds) -> None:
        """Take other shapes, where none were promised. Costs new buffers, so only the first such inference pays."""
        self._forget_graph()
        self._buffers.close()
        try:
            self._bind(replace(self._options, sample_shapes={name: array.shape for name, array in feeds.items()}))
        except BaseException:
            self.close()  # the context holds addresses that are free now
            raise

    def _why(self, plan: bytes) -> str:
        words = self._log.quote()
        if hasattr(self._runtime, "get_engine_validity"):  # TensorRT-RTX says what doesn't fit, as a bit mask
            _, mask = self._runtime.get_engine_validity(plan)
            known = getattr(self._trt.EngineInvalidityDiagnostics, "__members__", {})
            names = [name for name, member in known.items() if int(member) & int(mask)]
            words = ", ".join([*names, words])
        return words

    def infer(self, feeds: Feeds) -> Outputs:
        """Host to device, run, device to host; returns when the stream is idle.

        The outputs are views of page-locked memory: valid until the next `infer` or `close`.
        """
        if self._context is None:
            raise BackendError(f"trt: the session of '{self._artifact}' is closed; load it again.")
        if not self._options.sample_shapes and any(feeds[i.info.name].shape != i.info.shape for i in self._inputs):
            self._rebind(feeds)
        self._send(feeds)
        self._execute()
        self._fetch()
        self._device.synchronize(self._stream)
        return {out.info.name: out.array(self._device, self._stream) for out in self._outputs}

    def _send(self, feeds: Feeds) -> None:
        for item in self._inputs:
            item.send(feeds[item.info.name], self._device, self._stream)

    def _execute(self) -> None:
        if self._graph:
            self._device.launch(self._graph, self._stream)
            return
        self._enqueue()
        if self._wants_graph:
            # The first inference is a usual one: TensorRT sets up what belongs to the shapes then, which cannot be captured.
            self._device.synchronize(self._stream)
            try:
                self._graph = self._device.capture(self._stream, self._enqueue)
            except BackendError as error:
                raise BackendError(
                    f"{self._found.title} cannot capture '{self._artifact}' as a CUDA graph: {error} Leave graph=true out: "
                    "loops, conditions and sizes that depend on the data cannot be in one."
                ) from error

    def _enqueue(self) -> None:
        if not self._context.execute_async_v3(self._stream):
            raise BackendError(f"{self._found.title} could not run '{self._artifact}': {self._log.quote()}")

    def _forget_graph(self) -> None:
        """It holds the addresses of the buffers and the context that it was captured with."""
        if self._graph:
            self._device.destroy_graph(self._graph)
            self._graph = 0

    def _fetch(self) -> None:
        for out in self._outputs:
            out.fetch(self._device, self._stream)

    @property
    def facts(self) -> SessionFacts:
        """What runs; the first call asks the engine's inspector about its layers."""
        if self._facts is None and self._engine is None:
            raise BackendError(f"trt: the session of '{self._artifact}' is closed; load it again.")
        if self._facts is None:
            precision, reason = realised_precision(self._trt, self._engine)
            self._facts = SessionFacts(
                runtime=TITLES[self._found.flavour],
                runtime_version=self._version,
                provider=self._device.name,
                threads=None,
                precision=precision,
                precision_reason=reason,
                details=dict(self._details),
            )
        return self._facts

    def op_times(self, feeds: Feeds, runs: int) -> Sequence[OpTime] | NoOpTimes:
        """Times per layer of the engine, as TensorRT reports them to a profiler, and of the copies to the GPU and back.

        A layer may stand for many ops of the model. A context that was profiled stays synchronous, so the session gets a new one
        afterwards; the copies are timed in that one.
        """
        if not hasattr(self._trt, "IProfiler"):
            return NoOpTimes(f"{self._found.title} {self._version} has no profiler in its Python binding")
        if self._context is None:
            raise BackendError(f"trt: the session of '{self._artifact}' is closed; load it again.")
        warm = warm_runs(runs)
        seen: dict[str, list[float]] = {}
        # A graph tells a profiler nothing of its layers.
        self._forget_graph()
        wanted, self._wants_graph = self._wants_graph, False
        try:
            self._context.profiler = _recorder(self._trt, seen)
            for run in range(warm + runs):
                if run == warm:
                    seen.clear()
                self.infer(feeds)
        finally:
            self._wants_graph = wanted
            self._renew(feeds)
        layers = inspected_layers(self._trt, self._engine)
        ops = []
        for name, times in seen.items():
            kind, precision, kernel = layers.get(name, ("layer", "undetermined", None))
            # Several calls in one inference are reported one by one.
            each = len(times) // runs or 1
            totals = [sum(times[start : start + each]) for start in range(0, each * runs, each)]
            ops.append(OpTime(name, kind, precision, self._device.name, middle_mean(totals), len(times) / runs, kernel))
        if not ops:
            return NoOpTimes(f"{self._found.title} reported no layer times for this engine")
        return (*ops, *self._copy_times(feeds, warm, runs))

    def _copy_times(self, feeds: Feeds, warm: int, runs: int) -> list[OpTime]:
        """What an inference spends on the way to the GPU and back, by the GPU's own clock."""
        device, stream = self._device, self._stream
        with contextlib.ExitStack() as stack:
            marks = [device.create_event() for _ in range(4)]
            for mark in marks:
                stack.callback(device.destroy_event, mark)
            times: tuple[list[float], list[float]] = ([], [])
            for run in range(-warm, runs):
                device.record(marks[0], stream)
                self._send(feeds)
                device.record(marks[1], stream)
                self._execute()
                device.record(marks[2], stream)
                self._fetch()
                device.record(marks[3], stream)
                device.synchronize(stream)
                if run >= 0:
                    times[0].append(device.elapsed_s(marks[0], marks[1]))
                    times[1].append(device.elapsed_s(marks[2], marks[3]))
        named = zip(("host to device", "device to host"), ("HostToDevice", "DeviceToHost"), times, strict=True)
        return [OpTime(name, kind, "copy", device.name, middle_mean(each), 1.0, None) for name, kind, each in named]

    def _renew(self, feeds: Feeds) -> None:
        self._buffers.close()
        self._context = None
        self._context = _context(self._trt, self._engine)
        if self._context is None:
            raise BackendError(f"{self._found.title} has no room to run '{self._artifact}': {self._log.quote()}")
        shapes = self._options.sample_shapes or {name: array.shape for name, array in feeds.items()}
        self._bind(replace(self._options, sample_shapes=shapes))

    def _drop(self) -> None:
        # In this order: memory and stream, then context before engine before runtime, as TensorRT asks. After a fault on
        # the GPU every CUDA call fails; the fault was raised already, and the process's end frees the rest.
        with contextlib.suppress(CudaError):
            self._forget_graph()
            self._closing.close()
        self._context = None
        self._engine = None
        self._runtime = None

    def close(self) -> None:
        """Free the GPU. Calling it twice is harmless."""
        if self._context is not None:
            self._drop()
            with contextlib.suppress(CudaError):
                self._device.close()


def _recorder(trt: Any, seen: dict[str, list[float]]) -> Any:
    class Recorder(trt.IProfiler):  # type: ignore[misc]  # TensorRT ships no types
        def __init__(self) -> None:
            super().__init__()

        def report_layer_time(self, layer_name: str, ms: float) -> None:
            seen.setdefault(layer_name, []).append(ms / 1e3)

    return Recorder()


def _context(trt: Any, engine: Any) -> Any:
    strategy = getattr(trt, "DynamicShapesKernelSpecializationStrategy", None)
    if strategy is None:
        return engine.create_execution_context()
    # TensorRT-RTX would compile shape-specific kernels in the background and swap them in later, amid the measurement.
    config = engine.create_runtime_config()
    config.dynamic_shapes_kernel_specialization_strategy = strategy.EAGER
    return engine.create_execution_context(runtime_config=config)
