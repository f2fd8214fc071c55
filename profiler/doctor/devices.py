"""Checks of accelerators and boards: NVIDIA GPUs, Jetson's power mode and clocks, the Raspberry Pi's supply."""

from __future__ import annotations

import re

from profiler.doctor.clocks import CPU
from profiler.doctor.findings import Finding, Severity
from profiler.doctor.machine import Machine
from profiler.measure import sensors


def nvidia(machine: Machine) -> Finding | None:
    """What slows an NVIDIA GPU down or shares it."""
    gpus, reason = machine.gpus
    if not gpus:
        driver = machine.word("proc/driver/nvidia/version")
        if driver is None:
            return None
        return Finding(
            "nvidia gpu", "absent", f"a driver is loaded, but {reason or 'it lists no GPU'}",
            "Its clocks, heat and other users cannot be seen.", "nvidia-smi",
        )  # fmt: skip
    findings = [_gpu(index, gpu) for index, gpu in enumerate(gpus)]
    order: tuple[Severity, ...] = ("problem", "warning", "note", "ok", "absent")
    return min(findings, key=lambda finding: order.index(finding.severity))


def _gpu(index: int, gpu: sensors.Gpu) -> Finding:
    title = f"GPU {index} ({gpu.name})"
    if gpu.throttled_by:
        return Finding(
            "nvidia gpu", "problem", f"{title} is held back: {', '.join(gpu.throttled_by)}",
            "Its latencies are those of a slower clock.", "nvidia-smi -q -d PERFORMANCE,TEMPERATURE,POWER",
        )  # fmt: skip
    if gpu.other_pids:
        shown = ", ".join(map(str, gpu.other_pids[:8]))
        return Finding(
            "nvidia gpu", "warning", f"{title} is also used by {len(gpu.other_pids)} other processes ({shown})",
            "Their kernels run between ours; a GPU has no fair share of time.", "nvidia-smi",
        )  # fmt: skip
    if gpu.persistent is False:
        return Finding(
            "nvidia gpu", "warning", f"{title}: persistence mode is off",
            "The driver unloads between processes, so that each load pays for its start and clocks begin cold.",
            "sudo nvidia-smi -pm 1",
        )  # fmt: skip
    clock = "" if gpu.clock_hz is None else f", SM clock {gpu.clock_hz / 1e6:.0f} MHz"
    heat = "" if gpu.temperature_c is None else f", {gpu.temperature_c:.0f} °C"
    if gpu.clock_hz is not None and gpu.highest_hz is not None and gpu.clock_hz < 0.8 * gpu.highest_hz:
        return Finding(
            "nvidia gpu", "note", f"{title}{clock} of {gpu.highest_hz / 1e6:.0f}{heat}",
            "The clock moves with load. Locked, results repeat better; undo with nvidia-smi -rgc.",
            f"sudo nvidia-smi -i {index} -lgc {gpu.highest_hz / 1e6:.0f}",
        )  # fmt: skip
    return Finding("nvidia gpu", "ok", f"{title}{clock}{heat}")


def is_jetson(machine: Machine) -> bool:
    """By the device tree or by NVIDIA's release file."""
    tree = (machine.text("proc/device-tree/model") or "") + (machine.text("proc/device-tree/compatible") or "")
    return "Jetson" in tree or "tegra" in tree or machine.text("etc/nv_tegra_release", 80) is not None


def jetson(machine: Machine) -> Finding | None:
    """Power mode and locked clocks of a Jetson."""
    if not is_jetson(machine):
        return None
    mode, names = power_mode(machine)
    told = "power mode not told" if mode is None else f"power mode {mode}{f' ({names[mode]})' if mode in names else ''}"
    gpu = sensors.jetson_gpu(machine.root).values
    low, high = gpu.get("lowest_hz"), gpu.get("highest_hz")
    locked = None if low is None or high is None else low == high
    cores = [
        (
            sensors.hertz(machine.root / f"{CPU}/cpu{core}/cpufreq/scaling_min_freq"),
            sensors.hertz(machine.root / f"{CPU}/cpu{core}/cpufreq/scaling_max_freq"),
        )
        for core in machine.cores
    ]
    moving = locked is False or any(lowest != highest for lowest, highest in cores if lowest and highest)
    if moving:
        return Finding(
            "jetson", "warning", f"{told}; clocks are not locked",
            "CPU, GPU and memory clocks follow the load, with a governor that is slow to rise: short models never see full "
            "speed. Undo with sudo jetson_clocks --restore.",
            "sudo jetson_clocks",
        )  # fmt: skip
    best = next((number for number, name in names.items() if name.startswith("MAXN")), None)
    if mode is not None and best is not None and mode != best:
        return Finding(
            "jetson", "note", f"{told}; clocks locked",
            f"Results hold for this power mode only; {names[best]} is the fastest. Measure in the mode that you ship.",
            f"sudo nvpmodel -m {best} && sudo jetson_clocks",
        )  # fmt: skip
    severity: Severity = "ok" if locked else "absent"
    return Finding("jetson", severity, f"{told}; clocks locked" if locked else f"{told}; GPU clock not told")


def power_mode(machine: Machine) -> tuple[int | None, dict[int, str]]:
    """The mode that nvpmodel set, and the names of all modes of this board."""
    status = re.search(r"pmode:(\d{1,4})", machine.text("var/lib/nvpmodel/status", 80) or "")
    catalogue = machine.text("etc/nvpmodel.conf", 1 << 16) or ""
    pairs = re.findall(r"^\s*<\s*POWER_MODEL\s+ID=(\d{1,4})\s+NAME=([\w.+-]{1,32})", catalogue, re.MULTILINE)
    return (int(status[1]) if status else None), {int(number): name for number, name in pairs}


def raspberry_pi(machine: Machine) -> Finding | None:
    """Under-voltage and throttling, as the Pi's firmware tells."""
    if not sensors.is_raspberry_pi(machine.root):
        return None
    found = sensors.pi_throttled(machine.root, machine.probes.run)
    if isinstance(found, str):
        return Finding(
            "raspberry pi", "absent", found, "Whether its supply holds and whether heat slows it is not known.",
            "sudo usermod -aG video $USER",
        )  # fmt: skip
    supply = "The supply or its cable is too weak: the clock drops whenever the voltage does. Use the official supply."
    heat = "Heat slows it down: results drift within minutes. Use a fan, or measure the sustained speed with edgeprof soak."
    if found.now:
        return Finding(
            "raspberry pi",
            "problem",
            f"now: {', '.join(found.now)} ({found.bits:#x})",
            supply if found.bits & 1 else heat,
        )
    if found.since_boot:
        return Finding(
            "raspberry pi", "warning", f"since boot: {', '.join(found.since_boot)} ({found.bits:#x})",
            supply if found.bits >> 16 & 1 else heat,
        )  # fmt: skip
    return Finding("raspberry pi", "ok", "supply and temperature held since boot (0x0)")
