"""What the host did to a block: counters read before and after it. A counter that this system lacks is simply absent.

`read` is for every block: small files of the kernel only. What needs a command or a driver's library is `slow_read`, once per
round at most. Neither raises for what a file holds: firmware, drivers and containers put anything there.
"""

from __future__ import annotations

import functools
import os
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from profiler.measure import sensors
from profiler.measure.sensors import count, number, text

_TICKS = os.sysconf("SC_CLK_TCK") if hasattr(os, "sysconf") else 100
# Not os.cpu_count(), which an environment variable can change.
_CORES = os.sysconf("SC_NPROCESSORS_CONF") if hasattr(os, "sysconf") else os.cpu_count() or 1
_TICK_S = 0.01
"""The grain of `/proc/stat`: on short blocks a whole tick may fall into a fraction of it."""

_CORES_READ = 8
"""Cores whose clock and throttle counts are read; more would make a reading of a large machine slow."""

_SLACK_S = 1.0
"""Some counters are brought up to date late: a throttled period counts when it ends, pressure up to 2 s after the fact."""


@dataclass(frozen=True)
class Counters:
    """Readings at one moment, seconds since an arbitrary start; absent keys could not be read."""

    wall_s: float
    cpu_s: float
    values: Mapping[str, float]


def read(root: Path = Path("/"), cores: Collection[int] | None = None) -> Counters:
    """Read all counters, about 100 µs; outside timed samples only. `cores` are those we run on, default our affinity mask."""
    values: dict[str, float] = {}
    values.update(_system_times(root))
    values.update(_run_delay(root))
    values.update(_pressure(root))
    values.update(_throttling(root))
    values.update(_hardware(root, _affinity() if cores is None else frozenset(cores)))
    try:
        import resource

        usage = resource.getrusage(resource.RUSAGE_SELF)
        values["involuntary_switches"] = float(usage.ru_nivcsw)
        values["major_faults"] = float(usage.ru_majflt)
    except ImportError:  # not on this platform
        pass
    return Counters(time.perf_counter(), time.process_time(), values)


_SECONDS = {
    "run_delay_s": 4096.0,
    "throttled_s": 4096.0,
    "cpu_pressure_s": 1.0,
    "memory_pressure_s": 1.0,
    "io_pressure_s": 1.0,
}
"""How many of these seconds one second of wall time can hold at most: threads that wait, or a share of the time itself."""

_COUNTS = ("involuntary_switches", "major_faults", "nr_throttled", "thermal_throttles")


def difference(before: Counters, after: Counters, cores: int = _CORES) -> dict[str, float]:
    """What happened between two readings.

    `steal_share` and `other_cpu_share` are shares of one core's time; `*_s` are seconds; `clock_hz` is the mean clock at the
    second reading, `temperature_c` the higher of both; the rest are counts. What cannot be true (a counter that went back, more
    time than `cores` have, a clock that jumped back) is left out, as is what only one of the readings has.
    """
    elapsed = after.wall_s - before.wall_s
    wall = max(elapsed, 1e-9)
    delta = {key: after.values[key] - value for key, value in before.values.items() if key in after.values}
    if elapsed < 0:
        delta = {key: value for key, value in delta.items() if key in _COUNTS or key in _LEVELS}
    labels: dict[str, float] = {}
    for key, most in _SECONDS.items():
        if key in delta and 0 <= delta[key] <= most * (wall + _SLACK_S):
            labels[key] = delta[key]
    labels.update({key: delta[key] for key in _COUNTS if delta.get(key, -1.0) >= 0})
    own = after.cpu_s - before.cpu_s
    possible = cores * (wall + _TICK_S)
    if 0 <= delta.get("busy_s", -1.0) <= possible and own >= 0:
        # The kernel counts in ticks of 10 ms: on short blocks the difference may come out slightly negative.
        labels["other_cpu_share"] = max(0.0, delta["busy_s"] - own) / wall
    if 0 <= delta.get("steal_s", -1.0) <= possible:
        labels["steal_share"] = delta["steal_s"] / wall
    if "clock_hz" in delta:
        labels["clock_hz"] = after.values["clock_hz"]
    if "temperature_c" in delta:
        labels["temperature_c"] = max(before.values["temperature_c"], after.values["temperature_c"])
    return labels


_LEVELS = ("clock_hz", "temperature_c")


def _affinity() -> frozenset[int]:
    if hasattr(os, "sched_getaffinity"):
        return frozenset(os.sched_getaffinity(0))
    return frozenset(range(os.cpu_count() or 1))


def _system_times(root: Path) -> dict[str, float]:
    fields = (text(f"{root}/proc/stat", 512) or "").split("\n", 1)[0].split()[1:9]
    ticks = [count(field) for field in fields]
    if len(ticks) < 8 or None in ticks:
        return {}
    user, nice, system, _idle, _iowait, irq, softirq, steal = (tick / _TICKS for tick in ticks if tick is not None)
    return {"busy_s": user + nice + system + irq + softirq, "steal_s": steal}


def _run_delay(root: Path) -> dict[str, float]:
    """Time that this process's threads waited for a processor (second field of schedstat, ns)."""
    total, told = 0.0, False
    try:
        tasks = [entry.path for entry in os.scandir(f"{root}/proc/self/task")]
    except OSError:
        return {}
    for task in tasks:
        content = text(f"{task}/schedstat", 80)
        if content is None:  # a thread that has just ended
            continue
        fields = content.split()
        waited = count(fields[1]) if len(fields) >= 2 else None
        if waited is None:
            return {}
        total, told = total + waited, True
    return {"run_delay_s": total / 1e9} if told else {}


def _pressure(root: Path) -> dict[str, float]:
    """Time in which at least one task of the whole system waited for a processor, for memory or for a disk."""
    found = {}
    for resource in ("cpu", "memory", "io"):
        some = (text(f"{root}/proc/pressure/{resource}", 256) or "").split("\n", 1)[0]
        total = count(some.rpartition("total=")[2]) if some.startswith("some ") else None
        if total is not None:
            found[f"{resource}_pressure_s"] = total / 1e6
    return found


def _throttling(root: Path) -> dict[str, float]:
    """How often and how long quotas of our control groups, or of those above them, held us back.

    v2 counts `throttled_usec`, v1 `throttled_time` in ns. A group's own counters do not include those of the groups above it.
    """
    seconds, times = [], []
    for stat in _cpu_stats(root):
        fields = dict(line.split(" ", 1) for line in stat.splitlines() if " " in line)
        for key, scale in (("throttled_usec", 1e6), ("throttled_time", 1e9)):
            amount = count(fields.get(key))
            if amount is not None:
                seconds.append(amount / scale)
        periods = count(fields.get("nr_throttled"))
        if periods is not None:
            times.append(periods)
    found = {"throttled_s": sum(seconds)} if seconds else {}
    return {**found, "nr_throttled": sum(times)} if times else found


def _cpu_stats(root: Path) -> Iterator[str]:
    """The texts of `cpu.stat` from our group up, v2 and v1. Our group is asked for each time: a process can be moved."""
    found = False
    for line in (text(f"{root}/proc/self/cgroup") or "").splitlines():
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if not controllers or "cpu" in controllers.split(","):
            for stat in _group_stats(root, (controllers, "cpu") if controllers else ("", "unified"), path):
                found = True
                yield stat
    if not found:
        yield from _group_stats(root, ("", "cpu"), "")


def _group_stats(root: Path, mounts: Sequence[str], path: str) -> Iterator[str]:
    parts = [part for part in path.split("/") if part not in ("", ".", "..")][:16]
    for mount in mounts:
        found = False
        # In a container the path may be the host's and not exist below the mount: then the mount is our group.
        for depth in range(len(parts), -1, -1):
            names = [f"{root}/sys/fs/cgroup", *([mount] if mount else []), *parts[:depth], "cpu.stat"]
            stat = text("/".join(names))
            if stat is not None:
                found = True
                yield stat
        if found:  # the other mount is the same hierarchy by another name
            return


@dataclass(frozen=True)
class _Places:
    """Where this machine keeps its sensors: looked for once, read for each block."""

    clocks: tuple[tuple[str, ...], ...]
    temperatures: tuple[str, ...]
    core_throttles: tuple[str, ...]
    package_throttles: tuple[str, ...]


@functools.lru_cache(maxsize=64)
def _places(root: Path, cores: frozenset[int]) -> _Places:
    clocks: list[tuple[str, ...]] = []
    own: list[str] = []
    packages: dict[str, str] = {}
    for core in sorted(cores)[:_CORES_READ]:
        folder = f"{root}/sys/devices/system/cpu/cpu{core}"
        names = (f"{folder}/cpufreq/cpuinfo_avg_freq", f"{folder}/cpufreq/scaling_cur_freq")
        there = tuple(name for name in names if text(name, 64) is not None)
        if there and not _clock_reading_waits(root):
            clocks.append(there)
        if text(f"{folder}/thermal_throttle/core_throttle_count", 64) is not None:
            own.append(f"{folder}/thermal_throttle/core_throttle_count")
        if text(f"{folder}/thermal_throttle/package_throttle_count", 64) is not None:
            package = text(f"{folder}/topology/physical_package_id", 64) or "0"
            packages.setdefault(package, f"{folder}/thermal_throttle/package_throttle_count")
    return _Places(tuple(clocks), sensors.processor_sensors(root), tuple(own), tuple(packages.values()))


def _clock_reading_waits(root: Path) -> bool:
    """Whether reading a core's clock may sleep 10 ms: on x86 before Linux 5.19 (arch_freq_get_on_cpu of aperfmperf.c)."""
    if "vendor_id" not in (text(f"{root}/proc/cpuinfo", 512) or ""):  # a line of x86 kernels
        return False
    release = (text(f"{root}/proc/sys/kernel/osrelease", 80) or "").split(".")
    major, minor = (number(part) for part in [*release, "", ""][:2])
    return major is not None and minor is not None and (major, minor) < (5, 19)


def _hardware(root: Path, cores: frozenset[int]) -> dict[str, float]:
    """Mean clock of our cores, highest temperature of the processor, and how often heat throttled it since boot."""
    places = _places(root, cores)
    found = {}
    clocks = []
    for names in places.clocks:
        hz = next((hz for hz in map(sensors.hertz, names) if hz is not None), None)
        if hz is not None:
            clocks.append(hz)
    if clocks:
        found["clock_hz"] = sum(clocks) / len(clocks)
    degrees = [value for value in map(sensors.celsius, places.temperatures) if not isinstance(value, str)]
    if degrees:
        found["temperature_c"] = max(degrees)
    throttles = [count(text(path, 64)) for path in (*places.core_throttles, *places.package_throttles)]
    if throttles and None not in throttles:
        found["thermal_throttles"] = sum(value for value in throttles if value is not None)
    return found


# What needs a command or a driver ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Slow:
    """What the slower sensors tell at one moment: values by name, sticky facts, and why others are absent."""

    values: Mapping[str, float] = field(default_factory=dict)
    throttled_now: tuple[str, ...] = ()
    """What holds a Raspberry Pi or a GPU back at this moment, in words."""
    throttled_since_boot: tuple[str, ...] = ()
    tells_throttling: bool = False
    """Whether anything here could have told that it was held back."""
    reasons: tuple[str, ...] = ()


def slow_read(
    root: Path = Path("/"),
    *,
    run: sensors.Run = sensors.run_command,
    nvml: sensors.Nvml = sensors.open_nvml,
    own_pids: Collection[int] = (),
) -> Slow:
    """Read what costs milliseconds: between rounds, at most once per round. `own_pids` are our workers, besides this process.

    Values: `hottest_c` over all sensors, `on_battery` (1 or 0), `gpu_clock_hz` (lowest GPU), `gpu_temperature_c` (hottest),
    `gpu_load_share` (Jetson), `gpu_other_processes`; `clock_hz` where the quick reading leaves it out.
    """
    values: dict[str, float] = {}
    reasons: list[str] = []
    now: list[str] = []
    heat = sensors.temperatures(root)
    if heat.values:
        values["hottest_c"] = max(heat.values.values())
    reasons += heat.reasons
    classes, missing = sensors.clocks(root)
    told = [(found.now_hz, len(found.cores)) for found in classes if found.now_hz is not None]
    if told:
        values["clock_hz"] = sum(hz * cores for hz, cores in told) / sum(cores for _, cores in told)
    reasons += missing
    supply = sensors.supply(root)
    if supply.on_battery is not None:
        values["on_battery"] = float(supply.on_battery)
    elif supply.reason:
        reasons.append(supply.reason)
    pi = sensors.pi_throttled(root, run)
    if isinstance(pi, str):
        reasons += [pi] if sensors.is_raspberry_pi(root) else []
    now += () if isinstance(pi, str) else pi.now
    jetson = sensors.jetson_gpu(root).values
    values.update({f"gpu_{name}": jetson[name] for name in ("clock_hz", "load_share") if name in jetson})
    gpus, reason = sensors.nvidia(nvml, own_pids)
    reasons += [reason] if reason else []
    values.update(_gpu_values(gpus))
    now += [f"GPU {index}: {why}" for index, gpu in enumerate(gpus) for why in gpu.throttled_by or ()]
    tells = not isinstance(pi, str) or any(gpu.throttled_by is not None for gpu in gpus)
    return Slow(values, tuple(now), () if isinstance(pi, str) else pi.since_boot, tells, tuple(reasons))


def _gpu_values(gpus: Sequence[sensors.Gpu]) -> dict[str, float]:
    values = {}
    clocks = [gpu.clock_hz for gpu in gpus if gpu.clock_hz is not None]
    degrees = [gpu.temperature_c for gpu in gpus if gpu.temperature_c is not None]
    others = [gpu.other_pids for gpu in gpus if gpu.other_pids is not None]
    if clocks:
        values["gpu_clock_hz"] = min(clocks)
    if degrees:
        values["gpu_temperature_c"] = max(degrees)
    if others:
        values["gpu_other_processes"] = float(len({pid for pids in others for pid in pids}))
    return values


def slow_difference(before: Slow, after: Slow) -> dict[str, float]:
    """What the slower sensors say of the time between two readings, as labels.

    `device_throttled` is 1 when something held the device back at either end, or a Raspberry Pi's firmware remembers a new
    event in between, else 0; absent where nothing could have told. Levels are those of the second reading, `hottest_c` of both.
    """
    labels = {key: value for key, value in after.values.items() if key in before.values}
    if "hottest_c" in labels:
        labels["hottest_c"] = max(before.values["hottest_c"], after.values["hottest_c"])
    new = set(after.throttled_since_boot) - set(before.throttled_since_boot)
    held = bool(before.throttled_now or after.throttled_now or new)
    if held or after.tells_throttling:
        labels["device_throttled"] = float(held)
    return labels
