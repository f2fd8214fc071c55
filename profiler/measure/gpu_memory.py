"""Device memory of a process: NVML's account of it, and nvmap's on a Jetson, whose DRAM is shared."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

_NVIDIA_DEVICES = {"cuda", "tensorrt"}
_CPU_DEVICES = {"cpu", ""}
_NVMAP = "sys/kernel/debug/nvmap/iovmm/clients"
_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}


@dataclass(frozen=True)
class Reading:
    """Device memory at one moment, bytes; None with a note where it is not known."""

    process_bytes: int | None
    device_used_bytes: int | None
    """In use on all devices together, by anybody."""
    notes: tuple[str, ...] = ()


class GpuReader(Protocol):
    """Reads the device memory of one process."""

    def read(self, pid: int) -> Reading:
        """The memory that process holds now. Never raises."""
        ...


def kind_of(backend: str, device: str | None) -> Literal["nvidia", "other", "none"]:
    """Whose memory a case uses beside the host's: `trt`, `ort:cuda` → nvidia, `ov:GPU` and `ov:NPU` → other, `ort` → none."""
    family = (device or "").split(".")[0].lower()
    if backend == "trt" or family in _NVIDIA_DEVICES:
        return "nvidia"
    if family in _CPU_DEVICES or backend in ("fake", "injected"):
        return "none"
    return "other"


def is_jetson(root: Path = Path("/")) -> bool:
    """Whether CPU and GPU share this machine's DRAM, as on every Tegra."""
    if (root / "etc/nv_tegra_release").is_file():
        return True
    try:
        return b"nvidia,tegra" in (root / "proc/device-tree/compatible").read_bytes()
    except OSError:
        return False


def reader(root: Path = Path("/")) -> GpuReader:
    """The reader for this machine."""
    return Nvmap(root) if is_jetson(root) else Nvml()


class Nvml:
    """The driver's own account, summed over all devices. `library` lets tests give another pynvml."""

    def __init__(self, library: Any = None) -> None:
        """Nothing is imported or opened before the first reading."""
        self._library = library
        self._handles: list[Any] | None = None

    def read(self, pid: int) -> Reading:
        """`usedGpuMemory` of `pid`, and the devices' `used`."""
        try:
            handles = self._open()
        except Exception as error:  # noqa: BLE001 (no driver, no library, a driver of another version: all mean the same here)
            return Reading(None, None, (f"GPU memory is not known: {error}",))
        used = 0
        own: int | None = None
        others = False
        notes: list[str] = []
        for handle in handles:
            try:
                used += int(self._library.nvmlDeviceGetMemoryInfo(handle).used)
                for process in self._library.nvmlDeviceGetComputeRunningProcesses(handle):
                    others = others or process.pid != pid
                    if process.pid != pid:
                        continue
                    if process.usedGpuMemory is None:
                        notes.append(
                            "GPU memory per process is not known: the driver does not tell it here (MIG, vGPU)"
                        )
                    else:
                        own = (own or 0) + int(process.usedGpuMemory)
            except Exception as error:  # noqa: BLE001
                return Reading(own, None, (f"GPU memory is not known: {error}",))
        if own is None and not notes and others:
            notes.append(
                "GPU memory per process is not known: this process is not among those that the driver lists, which has "
                "other process ids where a container has its own (docker run --pid=host shows them)"
            )
        if others:
            notes.append("other processes use the GPU too: the device's total is not this model's alone")
        return Reading(own, used, tuple(notes))

    def _open(self) -> list[Any]:
        if self._handles is None:
            if self._library is None:
                import pynvml

                self._library = pynvml
            self._library.nvmlInit()
            self._handles = [
                self._library.nvmlDeviceGetHandleByIndex(index) for index in range(self._library.nvmlDeviceGetCount())
            ]
        return self._handles


class Nvmap:
    """A Jetson's account: device buffers lie in the one DRAM, partly inside the process's own resident set."""

    def __init__(self, root: Path = Path("/")) -> None:
        """`root` lets tests give a recorded tree."""
        self._root = root

    def read(self, pid: int) -> Reading:
        """The line of `pid` among nvmap's clients (`CLIENT PROCESS PID SIZE`), and their total. Only root may read it."""
        shared = "CPU and GPU share one memory (Jetson): GPU memory is part of the process's PSS and of nvmap, do not add them"
        try:
            text = (self._root / _NVMAP).read_text()
        except OSError as error:
            return Reading(
                None, None,
                (shared, f"nvmap's share is not known: /{_NVMAP}: {error.strerror}; it needs root and a mounted debugfs"),
            )  # fmt: skip
        own = total = None
        for line in text.splitlines():
            if client := re.fullmatch(r"\s*\S+\s+\S+\s+(\d+)\s+(\d+)([KMG]?)\s*", line):
                if int(client[1]) == pid:
                    own = (own or 0) + int(client[2]) * _UNITS[client[3]]
            elif sum_line := re.fullmatch(r"\s*total\s+(\d+)([KMG]?)\s*", line):
                total = int(sum_line[1]) * _UNITS[sum_line[2]]
        return Reading(own, total, (shared,))
