"""Checks of what decides how fast the processor runs and how time is told: governor, turbo, heat, siblings, clock source."""

from __future__ import annotations

from profiler.doctor.findings import Finding
from profiler.doctor.machine import Machine, core_list
from profiler.measure import sensors
from profiler.measure.cores import shown as cores_text

CPU = "sys/devices/system/cpu"
STEADY_GOVERNORS = ("performance", "userspace")
_NEAR_TRIP_C = 5.0
_TRIPS = ("passive", "hot", "critical")


def governor(machine: Machine) -> Finding | None:
    """Whether the clock follows the load."""
    name = "cpu governor"
    seen = {core: machine.word(f"{CPU}/cpu{core}/cpufreq/scaling_governor") for core in machine.cores}
    found = {core: value for core, value in seen.items() if value}
    if not found:
        return Finding(
            name, "absent", "the kernel offers no cpufreq here",
            "Who sets the clock (firmware, or the host of a virtual machine) can neither be seen nor changed from here.",
        )  # fmt: skip
    moving = [core for core, value in found.items() if value not in STEADY_GOVERNORS and not _held(machine, core)]
    told = ", ".join(f"{value} on {_cores(found, value)}" for value in dict.fromkeys(found.values()))
    if not moving:
        return Finding(name, "ok", told)
    return Finding(
        name, "warning", told,
        "The clock follows the load: the first inferences after a pause run slower, and short blocks never reach the clock "
        "that a busy device has.",
        f"echo performance | sudo tee /{CPU}/cpu*/cpufreq/scaling_governor",
    )  # fmt: skip


def _cores(found: dict[int, str], value: str) -> str:
    cores = [core for core, other in found.items() if other == value]
    return f"core {cores[0]}" if len(cores) == 1 else f"cores {cores_text(cores)}"


def _held(machine: Machine, core: int) -> bool:
    """Whether the lowest clock allowed is the highest one."""
    low = sensors.hertz(machine.root / f"{CPU}/cpu{core}/cpufreq/scaling_min_freq")
    high = sensors.hertz(machine.root / f"{CPU}/cpu{core}/cpufreq/scaling_max_freq")
    return low is not None and low == high


def turbo_on(machine: Machine) -> bool | None:
    """Whether the processor may run above its rated clock; None where the kernel has no switch for it."""
    stopped = machine.number(f"{CPU}/intel_pstate/no_turbo")
    if stopped in (0, 1):
        return stopped == 0
    for path in (f"{CPU}/cpufreq/boost", f"{CPU}/cpu{machine.cores[0] if machine.cores else 0}/cpufreq/boost"):
        boost = machine.number(path)
        if boost in (0, 1):
            return boost == 1
    return None


def turbo(machine: Machine) -> Finding | None:
    """Turbo or boost. Worst on machines that get warm, so a laptop's is told louder."""
    on = turbo_on(machine)
    if on is None:
        return None
    if not on:
        return Finding("turbo", "ok", "off")
    intel = machine.number(f"{CPU}/intel_pstate/no_turbo") is not None
    return Finding(
        "turbo", "warning" if sensors.supply(machine.root).charge_share is not None else "note", "on",
        "How far the clock goes above its rating depends on heat and on how many cores are busy. Absolute latencies hold for "
        "that state only; ratios between interleaved variants keep their meaning.",
        f"echo 1 | sudo tee /{CPU}/intel_pstate/no_turbo" if intel else f"echo 0 | sudo tee /{CPU}/cpufreq/boost",
    )  # fmt: skip


def clock_cap(machine: Machine) -> Finding | None:
    """A highest clock that was set below what the hardware can do."""
    capped = {}
    for core in machine.cores:
        hardware = sensors.highest_hz(machine.root, core)
        allowed = sensors.hertz(machine.root / f"{CPU}/cpu{core}/cpufreq/scaling_max_freq")
        if hardware is not None and allowed is not None and allowed < 0.98 * hardware:
            capped[core] = (allowed, hardware)
    if not capped:
        return None
    allowed, hardware = next(iter(capped.values()))
    return Finding(
        "clock limit", "note", f"cores {cores_text(capped)} are held to {allowed / 1e9:.2f} of {hardware / 1e9:.2f} GHz",
        "A cap makes results repeatable, but they are those of a slower device.",
        f"sudo cpupower frequency-set --max {hardware / 1e6:.0f}MHz",
    )  # fmt: skip


def throttling(machine: Machine) -> Finding | None:
    """Heat that slowed the processor, now or since boot."""
    counts = sensors.throttle_counts(machine.root, machine.cores)
    if not counts.values:
        return None  # `sensors` tells which are missing
    now = machine.window.labels.get("thermal_throttles", 0.0) if machine.window else 0.0
    total = sum(counts.values.values())
    told = ", ".join(f"{name} {value:,.0f}" for name, value in counts.values.items())
    if now > 0:
        return Finding(
            "thermal throttling", "problem", f"{now:,.0f} times just now, at rest",
            "The processor is too hot even without our load: every number is that of a slower device. Let it cool.",
        )  # fmt: skip
    if total > 0:
        return Finding(
            "thermal throttling", "warning", f"times since boot: {told}",
            "It has been too hot under load since it was started, so it may get there again in a long run; the labels of each "
            "block tell. Better cooling helps, and pauses (edgeprof soak measures the sustained speed).",
        )  # fmt: skip
    return Finding("thermal throttling", "ok", "none since boot")


def temperature(machine: Machine) -> Finding | None:
    """How far the hottest sensor is from the point where the kernel starts to slow things down."""
    reading = sensors.temperatures(machine.root)
    if not reading.values:
        return None
    hottest, degrees = max(reading.values.items(), key=lambda item: item[1])
    margins = []
    for zone in sensors.listing(machine.root / "sys/class/thermal"):
        now = sensors.celsius(zone / "temp") if zone.name.startswith("thermal_zone") else "no zone"
        if isinstance(now, str):
            continue
        for point in range(12):
            trip = sensors.celsius(zone / f"trip_point_{point}_temp")
            if sensors.word(zone / f"trip_point_{point}_type") in _TRIPS and not isinstance(trip, str):
                margins.append((trip - now, trip, sensors.word(zone / "type") or zone.name))
    if margins and min(margins)[0] < _NEAR_TRIP_C:
        margin, trip, zone_name = min(margins)
        return Finding(
            "temperature", "warning", f"{zone_name} is {margin:.0f} °C below its limit of {trip:.0f} °C",
            "Under load it will reach the limit, and the clock will drop in the middle of a run. Let it cool first.",
        )  # fmt: skip
    return Finding("temperature", "ok", f"hottest: {hottest} at {degrees:.0f} °C")


def siblings(machine: Machine) -> Finding | None:
    """Two hardware threads of one core, of which we use both or share one."""
    pairs = {}
    for core in machine.cores:
        own = core_list(machine.text(f"{CPU}/cpu{core}/topology/thread_siblings_list", 256))
        if len(own) > 1 and core in own:
            pairs[core] = own
    if not pairs:
        known = machine.text(f"{CPU}/cpu0/topology/thread_siblings_list", 256) is not None
        # A virtual machine may hide that its cores are halves.
        return Finding("hyper-threading", "ok", "no two of our cores are siblings") if known else None
    first = sorted({min(own & set(machine.cores)) for own in pairs.values()})
    outside = {core for own in pairs.values() for core in own} - set(machine.cores)
    others = f", with siblings that others may use ({cores_text(outside)})" if outside else ""
    return Finding(
        "hyper-threading", "note", f"our cores {cores_text(pairs)} are halves of {len(set(pairs.values()))} whole ones{others}",
        "Two busy siblings run at little more than half speed each, so a latency depends on what the other half does.",
        "echo off | sudo tee /sys/devices/system/cpu/smt/control" if outside else f"taskset -c {cores_text(first)} edgeprof …",
    )  # fmt: skip


_SLOW_SOURCES = ("hpet", "acpi_pm", "jiffies", "refined-jiffies", "pit")


def clock_source(machine: Machine) -> Finding | None:
    """What the kernel tells time by."""
    folder = "sys/devices/system/clocksource/clocksource0"
    current = machine.word(f"{folder}/current_clocksource")
    if current is None:
        return (
            Finding(
                "clock source", "absent", "not told", "How fine and how costly a look at the clock is, is not known."
            )
            if machine.is_linux
            else None
        )
    if current not in _SLOW_SOURCES:
        return Finding("clock source", "ok", current)
    others = (machine.word(f"{folder}/available_clocksource") or "").split()
    better = next((name for name in ("tsc", "kvm-clock", "arch_sys_counter") if name in others), None)
    return Finding(
        "clock source", "warning", current,
        "Each look at the clock is a slow read of a device, microseconds long: fast models appear slower than they are."
        + ("" if better else " The kernel gave up the tsc (dmesg | grep -i tsc tells why); `tsc=reliable` forces it at boot."),
        f"echo {better} | sudo tee /{folder}/current_clocksource" if better else None,
    )  # fmt: skip
