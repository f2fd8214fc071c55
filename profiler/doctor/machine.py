"""What the checks look at: the files below a root, the environment, a short window of time, and questions to the system.

Everything comes in from outside, so that a tree of small files and a few lambdas stand for any machine.
"""

from __future__ import annotations

import functools
import os
import shutil
import sysconfig
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from backends.base import Availability
from profiler.measure import host, sensors


@dataclass(frozen=True)
class Process:
    """One process of the system and the processor time it has used so far."""

    pid: int
    name: str
    cpu_s: float


def _processes() -> list[Process]:
    import psutil

    found = []
    for process in psutil.process_iter(["pid", "name", "cpu_times"]):
        times = process.info["cpu_times"]
        if times is not None:  # another user's, where the system hides it
            found.append(
                Process(process.info["pid"], sensors.clean(process.info["name"] or "?"), times.user + times.system)
            )
    return found


def _disk_free(folder: Path) -> int | None:
    """Free bytes where the folder is, or will be."""
    for place in (folder, *folder.absolute().parents):
        try:
            return shutil.disk_usage(place).free
        except OSError:
            continue
    return None


def _availability() -> list[tuple[str, str, Availability]]:
    """Every backend on every device it knows."""
    from backends import registry

    found = []
    for name in registry.names():
        backend = registry.get(name)
        found += [(name, device, backend.availability(device)) for device in backend.devices()]
    return found


def _memory() -> tuple[int, int] | None:
    import psutil

    memory = psutil.virtual_memory()
    return memory.available, memory.total


def _on_battery() -> bool | None:
    """What the system says where there is no /sys (macOS, Windows)."""
    import psutil

    battery = psutil.sensors_battery() if hasattr(psutil, "sensors_battery") else None
    return None if battery is None or battery.power_plugged is None else not battery.power_plugged


def _debug_build() -> bool:
    return bool(sysconfig.get_config_var("Py_DEBUG"))


def _affinity() -> frozenset[int]:
    if hasattr(os, "sched_getaffinity"):
        return frozenset(os.sched_getaffinity(0))
    return frozenset(range(os.cpu_count() or 1))


@dataclass(frozen=True)
class Probes:
    """Questions that are asked of the system and not of files; each can be replaced."""

    processes: Callable[[], Sequence[Process]] = _processes
    disk_free: Callable[[Path], int | None] = _disk_free
    availability: Callable[[], Sequence[tuple[str, str, Availability]]] = _availability
    memory: Callable[[], tuple[int, int] | None] = _memory
    """(available, total) bytes, asked where `/proc/meminfo` is not."""
    on_battery: Callable[[], bool | None] = _on_battery
    debug_build: Callable[[], bool] = _debug_build
    affinity: Callable[[], frozenset[int]] = _affinity
    counters: Callable[[Path], host.Counters] = host.read
    run: sensors.Run = sensors.run_command
    nvml: sensors.Nvml = sensors.open_nvml
    sleep: Callable[[float], None] = time.sleep
    own_pids: Collection[int] = field(default_factory=lambda: (os.getpid(),))


@dataclass(frozen=True)
class Window:
    """What happened on the machine while nothing of ours ran."""

    wall_s: float
    labels: Mapping[str, float]
    """As `host.difference` gives them."""
    busy: tuple[tuple[Process, float], ...]
    """Processes that computed, with their share of one core, busiest first."""


@dataclass(frozen=True)
class Machine:
    """One machine under examination."""

    root: Path
    out: Path
    environ: Mapping[str, str]
    probes: Probes
    window: Window | None
    """None when nobody watched."""

    def text(self, path: str, limit: int = 4096) -> str | None:
        """The beginning of a file below the root."""
        return sensors.text(self.root / path, limit)

    def word(self, path: str) -> str | None:
        """One line of printable characters from a file below the root."""
        return sensors.word(self.root / path)

    def number(self, path: str) -> float | None:
        """A number from a file below the root."""
        return sensors.number(sensors.text(self.root / path, 64))

    @functools.cached_property
    def cores(self) -> tuple[int, ...]:
        """The cores that we may run on."""
        return tuple(sorted(self.probes.affinity()))

    @property
    def is_linux(self) -> bool:
        """Whether the root looks like a running Linux at all."""
        return self.text("proc/stat", 16) is not None

    @functools.cached_property
    def gpus(self) -> tuple[tuple[sensors.Gpu, ...], str | None]:
        """NVIDIA GPUs as their driver sees them, asked once."""
        return sensors.nvidia(self.probes.nvml, self.probes.own_pids)


def watch(root: Path, probes: Probes, window_s: float) -> Window:
    """Sleep for `window_s` and see what others do meanwhile."""
    # The list of processes is long to make: outside the counters, so that making it is not taken for load.
    processes = {process.pid: process for process in _listed(probes)}
    wall_s, labels = count(root, probes, window_s)
    later = _listed(probes)
    if wall_s <= 0:
        return Window(0.0, {}, ())
    shares = []
    for process in later:
        earlier = processes.get(process.pid)
        if earlier is not None and earlier.name == process.name and process.pid not in probes.own_pids:
            share = (process.cpu_s - earlier.cpu_s) / wall_s
            if share > 0:
                shares.append((process, share))
    shares.sort(key=lambda item: -item[1])
    return Window(wall_s, labels, tuple(shares))


def count(root: Path, probes: Probes, window_s: float) -> tuple[float, dict[str, float]]:
    """Sleep for `window_s`; how long that took, and what the host's counters did meanwhile."""
    before = probes.counters(root)
    probes.sleep(window_s)
    after = probes.counters(root)
    online = len(core_list(sensors.text(root / "sys/devices/system/cpu/online", 256)))
    labels = host.difference(before, after, online) if online else host.difference(before, after)
    return after.wall_s - before.wall_s, labels


def _listed(probes: Probes) -> Sequence[Process]:
    """Processes are for telling names only: where they cannot be listed, the load is known without."""
    try:
        return probes.processes()
    except Exception:  # noqa: BLE001 (psutil raises what the system raises: permissions, vanished processes, odd /proc)
        return ()


def core_list(value: str | None) -> frozenset[int]:
    """`0-3,8` as numbers; empty for what is no such list. At most 65,536 cores are believed."""
    found: set[int] = set()
    for part in (value or "").split(","):
        first, dash, last = part.strip().partition("-")
        if not (first.isdecimal() and len(first) < 6 and (not dash or (last.isdecimal() and len(last) < 6))):
            continue
        found.update(range(int(first), int(last if dash else first) + 1))
    return frozenset(found)
