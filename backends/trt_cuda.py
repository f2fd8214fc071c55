"""The few CUDA driver calls that running an engine needs, by ctypes, so that nothing but the driver has to be installed.

TensorRT itself uses the CUDA runtime, whose context is the device's primary context; the driver calls here join that one.
Each call is checked. Names and signatures: NVIDIA, "CUDA Driver API" reference manual.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from backends.base import BackendError, BackendUnavailable

LIBRARY = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"

_POINTER, _SIZE, _INT = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int
_DEVICE_POINTER = ctypes.c_uint64
_SIGNATURES: dict[str, tuple[Any, ...]] = {
    "cuInit": (ctypes.c_uint,),
    "cuDriverGetVersion": (ctypes.POINTER(_INT),),
    "cuDeviceGetCount": (ctypes.POINTER(_INT),),
    "cuDeviceGet": (ctypes.POINTER(_INT), _INT),
    "cuDeviceGetName": (ctypes.c_char_p, _INT, _INT),
    "cuDeviceGetAttribute": (ctypes.POINTER(_INT), _INT, _INT),
    "cuDevicePrimaryCtxRetain": (ctypes.POINTER(_POINTER), _INT),
    "cuDevicePrimaryCtxRelease_v2": (_INT,),
    "cuCtxSetCurrent": (_POINTER,),
    "cuMemAlloc_v2": (ctypes.POINTER(_DEVICE_POINTER), _SIZE),
    "cuMemFree_v2": (_DEVICE_POINTER,),
    "cuMemHostAlloc": (ctypes.POINTER(_POINTER), _SIZE, ctypes.c_uint),
    "cuMemFreeHost": (_POINTER,),
    "cuStreamCreate": (ctypes.POINTER(_POINTER), ctypes.c_uint),
    "cuStreamDestroy_v2": (_POINTER,),
    "cuStreamSynchronize": (_POINTER,),
    "cuMemcpyHtoDAsync_v2": (_DEVICE_POINTER, _POINTER, _SIZE, _POINTER),
    "cuMemcpyDtoHAsync_v2": (_POINTER, _DEVICE_POINTER, _SIZE, _POINTER),
    "cuEventCreate": (ctypes.POINTER(_POINTER), ctypes.c_uint),
    "cuEventDestroy_v2": (_POINTER,),
    "cuEventRecord": (_POINTER, _POINTER),
    "cuEventElapsedTime": (ctypes.POINTER(ctypes.c_float), _POINTER, _POINTER),
    "cuStreamBeginCapture_v2": (_POINTER, _INT),
    "cuStreamEndCapture": (_POINTER, ctypes.POINTER(_POINTER)),
    "cuGraphInstantiateWithFlags": (ctypes.POINTER(_POINTER), _POINTER, ctypes.c_ulonglong),
    "cuGraphLaunch": (_POINTER, _POINTER),
    "cuGraphDestroy": (_POINTER,),
    "cuGraphExecDestroy": (_POINTER,),
    "cuGetErrorName": (_INT, ctypes.POINTER(ctypes.c_char_p)),
    "cuGetErrorString": (_INT, ctypes.POINTER(ctypes.c_char_p)),
}
_MAJOR, _MINOR = 75, 76  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, _MINOR
_NON_BLOCKING = 1  # CU_STREAM_NON_BLOCKING: no implicit waits on the default stream
_THREAD_LOCAL = 1  # CU_STREAM_CAPTURE_MODE_THREAD_LOCAL: what other threads do meanwhile does not end the capture


class CudaError(BackendError):
    """A CUDA driver call failed; the text has the call, the error's name and the driver's own words."""


@dataclass(frozen=True)
class Gpus:
    """How many GPUs a probe saw. `reason` is given when it saw none."""

    count: int
    reason: str | None = None


@dataclass(frozen=True)
class Pinned:
    """Page-locked host memory: its address and the same bytes as an array. The array dies with the memory."""

    address: int
    array: NDArray[np.uint8]


def probe() -> Gpus:
    """Count the GPUs without loading TensorRT: by NVML, which leaves no CUDA state behind, else by the CUDA driver."""
    # NVML doesn't know CUDA_VISIBLE_DEVICES, so with it only the driver's own count is true.
    if "CUDA_VISIBLE_DEVICES" not in os.environ:
        count = _nvml_count()
        if count:
            return Gpus(count)
    try:
        driver = Driver()
        return Gpus(driver.device_count())
    except BackendError as error:
        return Gpus(0, str(error))


def _nvml_count() -> int:
    try:
        import pynvml
    except ImportError:
        return 0
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return 0
    try:
        return int(pynvml.nvmlDeviceGetCount())
    except pynvml.NVMLError:
        return 0
    finally:
        pynvml.nvmlShutdown()


class Driver:
    """The loaded and initialised driver library. Raises BackendUnavailable when there is none or it sees no device."""

    def __init__(self, library: str = LIBRARY) -> None:
        """Load `library` and call cuInit."""
        try:
            self._library = ctypes.CDLL(library)
        except OSError as error:
            raise BackendUnavailable(
                f"no NVIDIA driver: {library} cannot be loaded ({error}). Install the driver, or run on a machine with a GPU."
            ) from error
        for name, arguments in _SIGNATURES.items():
            function = getattr(self._library, name, None)
            if function is None:
                raise BackendUnavailable(f"{library} has no {name}: this driver is too old. Update the NVIDIA driver.")
            function.argtypes, function.restype = arguments, _INT
        try:
            self.call("cuInit", 0)
        except CudaError as error:
            raise BackendUnavailable(f"the NVIDIA driver is there but finds no usable GPU: {error}") from error

    def call(self, name: str, *arguments: Any) -> None:
        """Call `name`; raise CudaError unless it answers CUDA_SUCCESS."""
        status = getattr(self._library, name)(*arguments)
        if status != 0:
            raise CudaError(f"CUDA: {name} failed with {self._error(status)}.")

    def _error(self, status: int) -> str:
        words = []
        for function in ("cuGetErrorName", "cuGetErrorString"):
            text = ctypes.c_char_p()
            known = getattr(self._library, function)(status, ctypes.byref(text)) == 0
            words.append((text.value or b"").decode(errors="replace") if known else "")
        return f"error {status} {words[0]} ({words[1]})"

    def integer(self, name: str, *arguments: Any) -> int:
        """Call a function whose first parameter is `int *` and return what it wrote."""
        value = _INT()
        self.call(name, ctypes.byref(value), *arguments)
        return value.value

    def device_count(self) -> int:
        """Devices that this process may see."""
        return self.integer("cuDeviceGetCount")


class CudaDevice:
    """One GPU with its primary context made current on this thread."""

    def __init__(self, ordinal: int, open_driver: Callable[[], Driver] = Driver) -> None:
        """Retain device `ordinal`. Raises BackendUnavailable when there is no such device."""
        self._driver = driver = open_driver()
        count = driver.device_count()
        if ordinal >= count:
            raise BackendUnavailable(
                f"GPU {ordinal} was asked for, the NVIDIA driver shows {count}"
                + (f" (0 to {count - 1})" if count else "")
                + "; check CUDA_VISIBLE_DEVICES or choose another."
            )
        self._device = driver.integer("cuDeviceGet", ordinal)
        name = ctypes.create_string_buffer(256)
        driver.call("cuDeviceGetName", name, len(name), self._device)
        self.name = name.value.decode(errors="replace")
        self.compute_capability = (
            driver.integer("cuDeviceGetAttribute", _MAJOR, self._device),
            driver.integer("cuDeviceGetAttribute", _MINOR, self._device),
        )
        version = driver.integer("cuDriverGetVersion")
        self.cuda_version = f"{version // 1000}.{version % 1000 // 10}"
        context = _POINTER()
        driver.call("cuDevicePrimaryCtxRetain", ctypes.byref(context), self._device)
        driver.call("cuCtxSetCurrent", context)

    def allocate(self, size_bytes: int) -> int:
        """Device memory of at least one byte; returns its address."""
        address = _DEVICE_POINTER()
        self._driver.call("cuMemAlloc_v2", ctypes.byref(address), max(1, size_bytes))
        return address.value

    def free(self, address: int) -> None:
        """Free what `allocate` gave."""
        self._driver.call("cuMemFree_v2", address)

    def pin(self, size_bytes: int) -> Pinned:
        """Page-locked host memory, which the copy engine reads without a detour."""
        address = _POINTER()
        self._driver.call("cuMemHostAlloc", ctypes.byref(address), max(1, size_bytes), 0)
        assert address.value is not None
        memory = memoryview((ctypes.c_uint8 * size_bytes).from_address(address.value)).cast("B")
        return Pinned(address.value, np.frombuffer(memory, np.uint8) if size_bytes else np.empty(0, np.uint8))

    def unpin(self, memory: Pinned) -> None:
        """Free what `pin` gave."""
        self._driver.call("cuMemFreeHost", memory.address)

    def create_stream(self) -> int:
        """A stream that doesn't wait for the default stream."""
        stream = _POINTER()
        self._driver.call("cuStreamCreate", ctypes.byref(stream), _NON_BLOCKING)
        assert stream.value is not None
        return stream.value

    def destroy_stream(self, stream: int) -> None:
        """Destroy what `create_stream` gave."""
        self._driver.call("cuStreamDestroy_v2", stream)

    def to_device(self, target: int, source: int, size_bytes: int, stream: int) -> None:
        """Queue a copy from host to device."""
        self._driver.call("cuMemcpyHtoDAsync_v2", target, source, size_bytes, stream)

    def to_host(self, target: int, source: int, size_bytes: int, stream: int) -> None:
        """Queue a copy from device to host."""
        self._driver.call("cuMemcpyDtoHAsync_v2", target, source, size_bytes, stream)

    def create_event(self) -> int:
        """A mark that takes the GPU's time when the work queued before it is done."""
        event = _POINTER()
        self._driver.call("cuEventCreate", ctypes.byref(event), 0)
        assert event.value is not None
        return event.value

    def destroy_event(self, event: int) -> None:
        """Destroy what `create_event` gave."""
        self._driver.call("cuEventDestroy_v2", event)

    def record(self, event: int, stream: int) -> None:
        """Queue the mark."""
        self._driver.call("cuEventRecord", event, stream)

    def elapsed_s(self, start: int, end: int) -> float:
        """Seconds between two marks that were passed; to about half a microsecond."""
        milliseconds = ctypes.c_float()
        self._driver.call("cuEventElapsedTime", ctypes.byref(milliseconds), start, end)
        return milliseconds.value / 1e3

    def capture(self, stream: int, queue: Callable[[], None]) -> int:
        """A graph of what `queue` puts into the stream, which is not run now; `launch` runs all of it with one call."""
        graph, executable = _POINTER(), _POINTER()
        self._driver.call("cuStreamBeginCapture_v2", stream, _THREAD_LOCAL)
        try:
            queue()
        except BaseException:
            # The capture is invalid, and the stream is of no use until it was ended.
            with contextlib.suppress(CudaError):
                self._driver.call("cuStreamEndCapture", stream, ctypes.byref(graph))
            raise
        self._driver.call("cuStreamEndCapture", stream, ctypes.byref(graph))
        try:
            self._driver.call("cuGraphInstantiateWithFlags", ctypes.byref(executable), graph, 0)
        finally:
            self._driver.call("cuGraphDestroy", graph)
        assert executable.value is not None
        return executable.value

    def launch(self, graph: int, stream: int) -> None:
        """Queue a graph from `capture`."""
        self._driver.call("cuGraphLaunch", graph, stream)

    def destroy_graph(self, graph: int) -> None:
        """Destroy what `capture` gave."""
        self._driver.call("cuGraphExecDestroy", graph)

    def synchronize(self, stream: int) -> None:
        """Wait until the stream is idle. A kernel's failure shows here, as a CudaError."""
        self._driver.call("cuStreamSynchronize", stream)

    def close(self) -> None:
        """Release the primary context."""
        self._driver.call("cuDevicePrimaryCtxRelease_v2", self._device)
