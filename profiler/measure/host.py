"""What the host did to a block: counters read before and after it. A counter that this system lacks is simply absent."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

_TICKS = os.sysconf("SC_CLK_TCK") if hasattr(os, "sysconf") else 100


@dataclass(frozen=True)
class Counters:
    """Readings at one moment, seconds since an arbitrary start; absent keys could not be read."""

    wall_s: float
    cpu_s: float
    values: Mapping[str, float]


def read(root: Path = Path("/")) -> Counters:
    """Read all counters. About 30 µs; outside timed samples only."""
    values: dict[str, float] = {}
    values.update(_system_times(root))
    values.update(_run_delay(root))
    values.update(_pressure(root))
    values.update(_throttling(root))
    try:
        import resource

        values["involuntary_switches"] = float(resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw)
    except ImportError:  # not on this platform
        pass
    return Counters(time.perf_counter(), time.process_time(), values)


def difference(before: Counters, after: Counters) -> dict[str, float]:
    """What happened between two readings.

    `steal_share` and `other_cpu_share` are shares of one core's time; `*_s` are seconds; the rest are counts.
    """
    wall = max(after.wall_s - before.wall_s, 1e-9)
    delta = {key: after.values[key] - value for key, value in before.values.items() if key in after.values}
    kept = ("run_delay_s", "involuntary_switches", "throttled_s", "cpu_pressure_s")
    labels: dict[str, float] = {key: delta[key] for key in kept if key in delta}
    if "busy_s" in delta:
        own = after.cpu_s - before.cpu_s
        # The kernel counts in ticks of 10 ms: on short blocks the difference may come out slightly negative.
        labels["other_cpu_share"] = max(0.0, delta["busy_s"] - own) / wall
    if "steal_s" in delta:
        labels["steal_share"] = delta["steal_s"] / wall
    return labels


def _system_times(root: Path) -> dict[str, float]:
    try:
        fields = (root / "proc/stat").read_text().split("\n", 1)[0].split()[1:]
        user, nice, system, _idle, _iowait, irq, softirq, steal = (int(field) / _TICKS for field in fields[:8])
    except (OSError, ValueError):
        return {}
    return {"busy_s": user + nice + system + irq + softirq, "steal_s": steal}


def _run_delay(root: Path) -> dict[str, float]:
    """Time that this process's threads waited for a processor (second field of schedstat, ns)."""
    total = 0
    try:
        for task in (root / "proc/self/task").iterdir():
            total += int((task / "schedstat").read_text().split()[1])
    except (OSError, ValueError, IndexError):
        return {}
    return {"run_delay_s": total / 1e9}


def _pressure(root: Path) -> dict[str, float]:
    try:
        some = (root / "proc/pressure/cpu").read_text().split("\n", 1)[0]
        return {"cpu_pressure_s": int(some.rpartition("total=")[2]) / 1e6}
    except (OSError, ValueError):
        return {}


def _throttling(root: Path) -> dict[str, float]:
    """Time a control group's quota held us back: `throttled_usec` of cgroup v2, `throttled_time` (ns) of v1."""
    for path, key, scale in (
        ("sys/fs/cgroup/cpu.stat", "throttled_usec", 1e6),
        ("sys/fs/cgroup/cpu/cpu.stat", "throttled_time", 1e9),
    ):
        try:
            for line in (root / path).read_text().splitlines():
                if line.startswith(key + " "):
                    return {"throttled_s": int(line.split()[1]) / scale}
        except (OSError, ValueError):
            continue
    return {}
