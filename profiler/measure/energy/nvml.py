"""NVIDIA GPUs: the energy counter of the driver's management library, or its power reading where there is no counter.

Counter: nvmlDeviceGetTotalEnergyConsumption, millijoules, Volta and later, updated about every 100 ms. On A100 and H100 the
sensor behind it looks at only a quarter of the time (arXiv 2312.02741): long windows of repeated work at random phases even
that out. Power: nvmlDeviceGetPowerUsage is an average over one second from Ampere on, except GA100 (NVML API reference).
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Mapping
from typing import Any

from profiler.measure.energy.base import Absent, MeterInfo, MeterLost

NAME = "nvml"
_UPDATE_S = 0.1
_AVERAGE_S = 1.0


def _import() -> Any:
    return importlib.import_module("pynvml")


def find(
    gpu: int = 0, *, load: Callable[[], Any] = _import, environment: Mapping[str, str] = os.environ
) -> NvmlMeter | Absent:
    """The meter of the GPU that CUDA numbers `gpu`, or why there is none."""
    try:
        nvml = load()
    except ImportError:
        return Absent(NAME, "the Python module pynvml is not installed here: pip install nvidia-ml-py")
    try:
        nvml.nvmlInit()
        handle, index = _handle(nvml, gpu, environment)
    except nvml.NVMLError as error:
        return Absent(NAME, f"no NVIDIA driver or GPU {gpu} answers here ({error})")
    except ValueError as error:
        return Absent(NAME, str(error))
    for kind in ("counter", "power"):
        meter = NvmlMeter(nvml, handle, index, kind)
        try:
            meter.read()
        except MeterLost:
            continue
        return meter
    return Absent(
        NAME,
        f"GPU {index} tells neither energy nor power (integrated GPUs do not; on a Jetson ina3221 reads the module)",
    )


def _handle(nvml: Any, gpu: int, environment: Mapping[str, str]) -> tuple[Any, str]:
    """NVML counts all GPUs in PCI order; CUDA counts those that CUDA_VISIBLE_DEVICES names, in its order."""
    visible = environment.get("CUDA_VISIBLE_DEVICES")
    name = str(gpu)
    if visible is not None:
        names = [part.strip() for part in visible.split(",") if part.strip()]
        if gpu >= len(names):
            raise ValueError(f"CUDA_VISIBLE_DEVICES={visible!r} leaves no GPU {gpu} to measure")
        name = names[gpu]
    if name.isdecimal():
        return nvml.nvmlDeviceGetHandleByIndex(int(name)), name
    if name.startswith("MIG-"):
        raise ValueError(f"a MIG instance ({name}) has no energy counter of its own, only the whole board has")
    return nvml.nvmlDeviceGetHandleByUUID(name.encode()), name


class NvmlMeter:
    """Reads one GPU board."""

    def __init__(self, nvml: Any, handle: Any, index: str, kind: str) -> None:
        """Made by `find`."""
        self._nvml, self._handle = nvml, handle
        rail = f"gpu{index}" if index.isdecimal() else index
        notes = ["the sensor samples a part of the time only (25 % on A100 and H100): its own error stays in"]
        if kind == "power":
            notes.append("polled power, from Ampere on an average over one second: no energy counter before Volta")
        if self._several(index):
            notes.append("several GPUs: NVML's order is CUDA's only with CUDA_DEVICE_ORDER=PCI_BUS_ID")
        if self._partitioned():
            notes.append("an upper bound: the board is divided (MIG), and all instances are in the counter")
        self.info = MeterInfo(
            name=NAME,
            kind="counter" if kind == "counter" else "power",
            rails=(rail,),
            total_rails=(rail,),
            coverage=f"GPU board {self._title()}, without the host",
            update_s=_UPDATE_S,
            powers=("nvidia",),
            settle_s=_AVERAGE_S if kind == "power" else 0.0,
            notes=tuple(notes),
        )

    def read(self) -> Mapping[str, float]:
        """Joules since the driver was loaded, or watts. Raises MeterLost."""
        try:
            if self.info.kind == "counter":
                milli = self._nvml.nvmlDeviceGetTotalEnergyConsumption(self._handle)
            else:
                milli = self._nvml.nvmlDeviceGetPowerUsage(self._handle)
        except self._nvml.NVMLError as error:
            raise MeterLost(f"the GPU's meter stopped answering: {error}") from None
        return {self.info.rails[0]: float(milli) / 1e3}

    def _title(self) -> str:
        try:
            name = self._nvml.nvmlDeviceGetName(self._handle)
        except self._nvml.NVMLError:
            return "(name unknown)"
        # Older bindings return bytes.
        return name.decode(errors="replace") if isinstance(name, bytes) else str(name)

    def _several(self, index: str) -> bool:
        try:
            return index.isdecimal() and int(self._nvml.nvmlDeviceGetCount()) > 1
        except self._nvml.NVMLError:
            return False

    def _partitioned(self) -> bool:
        try:
            current, _ = self._nvml.nvmlDeviceGetMigMode(self._handle)
        except self._nvml.NVMLError:
            return False
        return bool(current)
