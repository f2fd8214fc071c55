"""NVIDIA GPUs: the counter where there is one, power where there is none, the right one of several, and reasons."""

from __future__ import annotations

import types

import pytest

from profiler.measure.energy import nvml
from profiler.measure.energy.base import Absent, MeterLost


class NVMLError(Exception):
    pass


def library(**calls):
    """A pynvml module with two GPUs; `calls` replaces functions, and an exception there is raised."""

    def failing(error):
        def call(*args):
            raise error

        return call

    functions = {
        "nvmlInit": lambda: None,
        "nvmlDeviceGetCount": lambda: 2,
        "nvmlDeviceGetHandleByIndex": lambda index: f"handle{index}",
        "nvmlDeviceGetHandleByUUID": lambda uuid: f"handle of {uuid.decode()}",
        "nvmlDeviceGetName": lambda handle: "NVIDIA A30",
        "nvmlDeviceGetTotalEnergyConsumption": lambda handle: 12_345_678,
        "nvmlDeviceGetPowerUsage": lambda handle: 71_500,
        "nvmlDeviceGetMigMode": failing(NVMLError("Not Supported")),
    }
    for name, call in calls.items():
        functions[name] = failing(call) if isinstance(call, Exception) else call
    return types.SimpleNamespace(NVMLError=NVMLError, **functions)


def find(gpu=0, environment=None, **calls):
    return nvml.find(gpu, load=lambda: library(**calls), environment=environment or {})


def test_the_counter_is_millijoules():
    """Since the driver was loaded; it is updated about every 100 ms."""
    meter = find()

    assert meter.read() == {"gpu0": 12_345.678}
    assert (meter.info.kind, meter.info.update_s, meter.info.powers) == ("counter", 0.1, ("nvidia",))
    assert meter.info.coverage == "GPU board NVIDIA A30, without the host"


def test_without_a_counter_power_is_polled():
    """Before Volta; the reading looks back up to one second, so work has to run so long before a window."""
    meter = find(nvmlDeviceGetTotalEnergyConsumption=NVMLError("Not Supported"))

    assert meter.read() == {"gpu0": 71.5}
    assert (meter.info.kind, meter.info.settle_s) == ("power", 1.0)
    assert any("no energy counter before Volta" in note for note in meter.info.notes)


@pytest.mark.parametrize(
    ("gpu", "visible", "rail"),
    [
        (0, None, "gpu0"),
        (1, None, "gpu1"),
        (0, "1", "gpu1"),
        (1, "1,0", "gpu0"),
        (0, "GPU-8f2e", "GPU-8f2e"),
    ],
)
def test_the_gpu_is_the_one_that_cuda_means(gpu, visible, rail):
    """CUDA counts what CUDA_VISIBLE_DEVICES names; NVML counts all."""
    asked = []
    meter = nvml.find(
        gpu,
        load=lambda: library(
            nvmlDeviceGetHandleByIndex=lambda index: asked.append(f"gpu{index}"),
            nvmlDeviceGetHandleByUUID=lambda uuid: asked.append(uuid.decode()),
        ),
        environment={} if visible is None else {"CUDA_VISIBLE_DEVICES": visible},
    )

    assert (asked, meter.info.rails) == ([rail], (rail,))


def test_a_divided_board_is_an_upper_bound():
    """With MIG on, the counter holds all instances."""
    notes = find(nvmlDeviceGetMigMode=lambda handle: (1, 1)).info.notes

    assert any("upper bound" in note for note in notes)
    assert not any("upper bound" in note for note in find(nvmlDeviceGetMigMode=lambda handle: (0, 1)).info.notes)


def test_old_bindings_return_bytes():
    """The name is text for people."""
    assert "Tesla T4" in find(nvmlDeviceGetName=lambda handle: b"Tesla T4").info.coverage


def test_a_gpu_that_falls_off_the_bus_is_lost():
    """A reading fails, the process does not."""
    answers = iter([1000, 2000])

    def energy(handle):
        try:
            return next(answers)
        except StopIteration:
            raise NVMLError("GPU is lost") from None

    meter = find(nvmlDeviceGetTotalEnergyConsumption=energy)
    meter.read()

    with pytest.raises(MeterLost, match="GPU is lost"):
        meter.read()


def no_module():
    raise ImportError("pynvml")


@pytest.mark.parametrize(
    ("absent", "words"),
    [
        (nvml.find(load=no_module, environment={}), "pip install nvidia-ml-py"),
        (find(nvmlInit=NVMLError("NVML Shared Library Not Found")), "NVML Shared Library Not Found"),
        (find(7, nvmlDeviceGetHandleByIndex=NVMLError("Invalid Argument")), "GPU 7"),
        (find(0, {"CUDA_VISIBLE_DEVICES": ""}), "leaves no GPU 0"),
        (find(0, {"CUDA_VISIBLE_DEVICES": "MIG-1c2d"}), "MIG instance"),
        (
            find(
                nvmlDeviceGetTotalEnergyConsumption=NVMLError("Not Supported"),
                nvmlDeviceGetPowerUsage=NVMLError("Not Supported"),
            ),
            "neither energy nor power",
        ),
    ],
    ids=["module", "driver", "index", "hidden", "mig", "integrated"],
)
def test_its_absence_has_a_reason(absent, words):
    """In the driver's words where it has some."""
    assert isinstance(absent, Absent)
    assert words in absent.reason
