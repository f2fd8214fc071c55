"""The ctypes calls, against a C library with the driver's own names whose device memory is host memory."""

from __future__ import annotations

import ctypes
import sys
from pathlib import Path

import numpy as np
import pytest

from backends.base import BackendUnavailable
from backends.trt_cuda import CudaDevice, CudaError, Driver, probe

sys.path.append(str(Path(__file__).parent))
import trt_stubs


def build(folder: Path, *flags: str) -> str:
    try:
        return str(trt_stubs.cuda_library(folder, *flags))
    except trt_stubs.NotPrepared as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def library(tmp_path_factory) -> str:
    return build(tmp_path_factory.mktemp("cuda"))


def test_bytes_survive_the_way_to_the_device_and_back(library):
    """64-bit addresses and sizes pass through ctypes undamaged, and everything is freed."""
    device = CudaDevice(1, lambda: Driver(library))
    assert (device.name, device.compute_capability, device.cuda_version) == ("Stub GPU 1", (12, 1), "13.2")
    stream, sent, got, memory = device.create_stream(), device.pin(64), device.pin(64), device.allocate(64)
    sent.array.view(np.float64)[...] = np.arange(8) / 3
    device.to_device(memory, sent.address, 64, stream)
    device.to_host(got.address, memory, 64, stream)
    device.synchronize(stream)
    assert np.array_equal(np.arange(8) / 3, got.array.view(np.float64))
    for pinned in (sent, got):
        device.unpin(pinned)
    device.free(memory)
    device.destroy_stream(stream)
    device.close()
    assert ctypes.CDLL(library).stub_live() == 0


def test_empty_tensors_get_valid_memory(library):
    """A tensor of zero elements still needs an address."""
    device = CudaDevice(0, lambda: Driver(library))
    pinned, memory = device.pin(0), device.allocate(0)
    assert (pinned.array.nbytes, memory != 0) == (0, True)
    device.unpin(pinned)
    device.free(memory)


def test_marks_tell_the_time_between_them(library):
    """Recorded in a stream, read in seconds, freed again."""
    device = CudaDevice(0, lambda: Driver(library))
    stream, marks = device.create_stream(), [device.create_event() for _ in range(3)]
    for mark in marks:
        device.record(mark, stream)
    assert device.elapsed_s(marks[0], marks[2]) == pytest.approx(2e-3)
    for mark in marks:
        device.destroy_event(mark)
    device.destroy_stream(stream)


def test_a_graph_is_captured_launched_and_freed(library):
    """And a capture whose work fails leaves the stream usable."""
    device = CudaDevice(0, lambda: Driver(library))
    stream, queued = device.create_stream(), []
    graph = device.capture(stream, lambda: queued.append(1))
    device.launch(graph, stream)
    assert queued == [1]
    device.destroy_graph(graph)
    with pytest.raises(RuntimeError, match="no"):
        device.capture(stream, lambda: (_ for _ in ()).throw(RuntimeError("no")))
    device.destroy_graph(device.capture(stream, lambda: None))
    device.destroy_stream(stream)


def test_failed_call_names_the_call_and_the_driver_s_words(library):
    """Out of memory reads as out of memory."""
    device = CudaDevice(0, lambda: Driver(library))
    with pytest.raises(
        CudaError, match=r"cuMemAlloc_v2 failed with error 2 CUDA_ERROR_OUT_OF_MEMORY \(out of memory\)"
    ):
        device.allocate(1 << 30)


def test_unknown_error_code_still_reads_as_a_number(library):
    """A newer driver's code that has no name."""
    with pytest.raises(CudaError, match="cuStreamSynchronize failed with error 400"):
        CudaDevice(0, lambda: Driver(library)).synchronize(0)


def test_gpu_that_is_not_there_names_the_range(library):
    """Asked for the third of two."""
    with pytest.raises(BackendUnavailable, match=r"GPU 2 was asked for, the NVIDIA driver shows 2 \(0 to 1\)"):
        CudaDevice(2, lambda: Driver(library))


def test_driver_without_a_gpu_is_unavailable_not_an_error(tmp_path):
    """The driver is installed, the card is not."""
    with pytest.raises(BackendUnavailable, match=r"no usable GPU.*CUDA_ERROR_NO_DEVICE"):
        Driver(build(tmp_path, "-DNO_DEVICE"))


def test_no_driver_is_unavailable_with_the_library_s_name():
    """As on every machine without NVIDIA's driver."""
    with pytest.raises(BackendUnavailable, match=r"no NVIDIA driver: libnothing\.so\.1 cannot be loaded"):
        Driver("libnothing.so.1")


def test_library_that_is_no_driver_is_refused():
    """A libcuda stub from a toolkit lacks calls."""
    with pytest.raises(BackendUnavailable, match="has no cuInit: this driver is too old"):
        Driver("libm.so.6" if sys.platform == "linux" else ctypes.util.find_library("m"))


def test_probe_counts_or_gives_a_reason():
    """On any machine, with or without GPU, the probe answers and never raises."""
    gpus = probe()
    assert (gpus.count == 0) == (gpus.reason is not None)
