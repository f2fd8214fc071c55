"""The facts about this machine that a measurement depends on. Absent ones stay None."""

from __future__ import annotations

import hashlib
import json
import os
import platform
from importlib import metadata
from pathlib import Path

from backends import cpu
from profiler.measure.memory import own_limit
from profiler.records import Environment

_PACKAGES = (
    "numpy",
    "onnx",
    "onnxruntime",
    "onnxruntime-gpu",
    "openvino",
    "tensorrt",
    "tensorrt-rtx",
    "torch",
    "scikit-learn",
)


def describe(root: Path = Path("/")) -> Environment:
    """Look at this machine. `root` lets tests give a recorded tree in place of `/proc` and `/sys`."""
    import psutil

    total, limit = psutil.virtual_memory().total, own_limit(root)
    gpus, gpu_note = _gpus()
    return Environment(
        hostname=platform.node(),
        machine=platform.machine(),
        system=f"{platform.system()} {platform.release()}",
        python=platform.python_version(),
        cpu_model=_cpu_model(root),
        cpu_isa=cpu.isa(root),
        logical_cores=psutil.cpu_count() or 1,
        usable_cores=cpu.usable_cores(root),
        memory_bytes=total if limit is None else min(total, limit),
        hypervisor=_hypervisor(root),
        gpus=gpus,
        versions=_versions(),
        governor=_text(root / "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"),
        load_1min=os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        notes=(gpu_note,) if gpu_note else (),
    )


_DECISIVE_PACKAGES = ("numpy", "onnxruntime", "onnxruntime-gpu", "openvino")


def fingerprint(environment: Environment, version: str | None = None) -> str:
    """16 hexadecimal digits that stay the same while a self-test holds: same machine type, cores, kernel and software.

    Load, hostname and free memory are left out, so that a reboot or a twin machine gives the same. `version` is edgeprof's own,
    default the one that runs.
    """
    from profiler import __version__

    facts = {
        "machine": environment.machine,
        "cpu_model": environment.cpu_model,
        "usable_cores": environment.usable_cores,
        "system": environment.system,
        "hypervisor": environment.hypervisor,
        "edgeprof": version or __version__,
        "versions": {name: environment.versions.get(name) for name in _DECISIVE_PACKAGES},
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]


def _versions() -> dict[str, str]:
    found = {}
    for name in _PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def _cpu_model(root: Path) -> str | None:
    for line in (_text(root / "proc/cpuinfo") or "").splitlines():
        key, _, value = line.partition(":")
        if key.strip() in ("model name", "Model", "Hardware"):
            return value.strip()
    return platform.processor() or None


def _hypervisor(root: Path) -> str | None:
    """The flag says that there is one, the firmware sometimes which."""
    if " hypervisor" not in (_text(root / "proc/cpuinfo") or ""):
        return None
    return _text(root / "sys/devices/virtual/dmi/id/sys_vendor") or "unnamed"


def _gpus() -> tuple[tuple[str, ...], str | None]:
    """Names of NVIDIA GPUs, asked of the driver; a machine without one is the usual case and no note."""
    try:
        import pynvml
    except ImportError:
        return (), "NVIDIA GPUs not looked for: nvidia-ml-py is not installed"
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return (), None
    try:
        handles = [pynvml.nvmlDeviceGetHandleByIndex(index) for index in range(pynvml.nvmlDeviceGetCount())]
        names = [pynvml.nvmlDeviceGetName(handle) for handle in handles]
        return tuple(name.decode() if isinstance(name, bytes) else str(name) for name in names), None
    except pynvml.NVMLError as error:
        return (), f"NVIDIA GPUs cannot be listed: {error}"
    finally:
        pynvml.nvmlShutdown()


def _text(path: Path) -> str | None:
    try:
        return path.read_text(errors="replace").strip() or None
    except OSError:
        return None
