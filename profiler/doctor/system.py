"""Checks of power, of what cannot be seen, and of software: memory layout, Python, environment variables, runtimes."""

from __future__ import annotations

from profiler.doctor.findings import Finding
from profiler.doctor.machine import Machine
from profiler.measure import sensors

NO_RANDOM_LAYOUT = 0x0040000
"""ADDR_NO_RANDOMIZE of personality(2): what `setarch -R` sets."""


def power(machine: Machine) -> Finding | None:
    """Mains or battery."""
    supply = sensors.supply(machine.root)
    on_battery = supply.on_battery
    if on_battery is None and not machine.is_linux:
        on_battery = machine.probes.on_battery()
    if on_battery is None:
        return None  # desktops, servers and boards have neither a battery nor a plug that tells
    charge = "" if supply.charge_share is None else f", battery at {supply.charge_share * 100:.0f} %"
    if on_battery:
        return Finding(
            "power supply", "problem", f"on battery{charge}",
            "On battery, firmware and kernel hold clocks back, more so as it empties. Plug it in.",
        )  # fmt: skip
    return Finding("power supply", "ok", f"mains{charge}")


def missing(machine: Machine) -> Finding | None:
    """Sensors that are not there, and what is therefore not known."""
    if not machine.is_linux:
        return Finding(
            "sensors", "absent", "no /proc and /sys here",
            "Throttling, steal, pressure and clocks cannot be told on this system; only latencies themselves are.",
        )  # fmt: skip
    labels = machine.window.labels if machine.window else {}
    classes, _ = sensors.clocks(machine.root)
    looks = {
        "clock": (any(found.now_hz is not None for found in classes), "changes of clock"),
        "temperature": (bool(sensors.temperatures(machine.root).values), "heat"),
        "throttle count": (bool(sensors.throttle_counts(machine.root, machine.cores).values), "throttling for heat"),
        "run-queue delay": ("run_delay_s" in labels, "waiting of threads for a core"),
        "pressure": ("cpu_pressure_s" in labels, "waiting for memory and disks"),
        "processor energy": (_has_energy(machine), "joules per inference"),
    }
    absent = {name: unknown for name, (there, unknown) in looks.items() if not there}
    if not absent:
        return Finding("sensors", "ok", f"all there: {', '.join(looks)}")
    return Finding(
        "sensors", "absent", f"missing: {', '.join(absent)}",
        f"So a run here cannot tell: {', '.join(absent.values())}. What cannot be told is shown as not measured.",
    )  # fmt: skip


def _has_energy(machine: Machine) -> bool:
    zones = sensors.listing(machine.root / "sys/class/powercap")
    return any(sensors.count(sensors.text(zone / "energy_uj", 64)) is not None for zone in zones)


def address_layout(machine: Machine) -> Finding | None:
    """Randomised memory layout, which should be on: fresh processes then average over layouts."""
    setting = machine.number("proc/sys/kernel/randomize_va_space")
    try:
        personality = int(machine.text("proc/self/personality", 64) or "0", 16)
    except ValueError:
        personality = 0
    why = (
        "One fixed layout is one fixed bias of a per cent or so, the same in every process. Left on, each fresh process draws "
        "its own, and the interval says how much that matters."
    )
    if personality & NO_RANDOM_LAYOUT:
        return Finding("address layout", "warning", "not random for this process (setarch -R)", why)
    if setting is None:
        return Finding("address layout", "absent", "not told", why) if machine.is_linux else None
    if setting == 2:
        return Finding("address layout", "ok", "random (ASLR on), as it should be")
    return Finding(
        "address layout", "warning" if setting == 0 else "note",
        "not random (ASLR off)" if setting == 0 else f"partly random (randomize_va_space = {setting:g})", why,
        "sudo sysctl kernel.randomize_va_space=2",
    )  # fmt: skip


def huge_pages(machine: Machine) -> Finding | None:
    """Transparent huge pages."""
    folder = "sys/kernel/mm/transparent_hugepage"
    setting = machine.word(f"{folder}/enabled")
    chosen = next((word[1:-1] for word in (setting or "").split() if word.startswith("[") and word.endswith("]")), None)
    if chosen is None:
        return None
    if chosen != "always":
        return Finding("huge pages", "ok", chosen)
    return Finding(
        "huge pages", "note", "always",
        "Which buffers get huge pages depends on how fragmented memory is, so processes differ, and merging pages can pause one. "
        "If the device you ship has the same setting, leave it.",
        f"echo madvise | sudo tee /{folder}/enabled",
    )  # fmt: skip


def python_build(machine: Machine) -> Finding | None:
    """A Python made for finding bugs."""
    why = "Such a Python is several times slower between inferences, and its allocator checks every block."
    if machine.probes.debug_build():
        return Finding(
            "python", "problem", "a debug build", f"{why} Use an ordinary one.",
            "python3 -m venv .venv && .venv/bin/pip install edgeprof",
        )  # fmt: skip
    slow = [name for name in ("PYTHONDEVMODE", "PYTHONMALLOC", "PYTHONTRACEMALLOC") if machine.environ.get(name)]
    if slow:
        told = ", ".join(f"{name}={sensors.clean(machine.environ[name])}" for name in slow)
        return Finding("python", "warning", told, why, f"unset {' '.join(slow)}")
    return Finding("python", "ok", "an ordinary build")


_ISA_LIMITS = (
    "OV_CPU_MAX_ISA",
    "ONEDNN_MAX_CPU_ISA",
    "DNNL_MAX_CPU_ISA",
    "OPENBLAS_CORETYPE",
    "MKL_ENABLE_INSTRUCTIONS",
)
_THREADS = (
    "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "BLIS_NUM_THREADS", "TBB_NUM_THREADS", "OMP_THREAD_LIMIT",
    "OMP_PROC_BIND", "OMP_PLACES", "GOMP_CPU_AFFINITY", "KMP_AFFINITY", "KMP_BLOCKTIME", "OMP_WAIT_POLICY", "OMP_DYNAMIC",
    "LD_PRELOAD",
)  # fmt: skip


def variables(machine: Machine) -> Finding | None:
    """Environment variables that change what the runtimes do, unseen by the study."""
    limits = [name for name in _ISA_LIMITS if machine.environ.get(name)]
    threads = [name for name in _THREADS if machine.environ.get(name)]
    if not limits and not threads:
        return Finding("environment", "ok", "no variable that changes threads or instruction sets")
    told = ", ".join(f"{name}={sensors.clean(machine.environ[name])}" for name in (*limits, *threads))
    if limits:
        why = (
            "Runtimes leave out instructions that this processor has: the results are those of an older one. Good if that is "
            "meant, and then part of the result."
        )
    else:
        why = "These override or bend the number of threads that a case asks for, and the study does not say so."
    return Finding("environment", "warning" if limits else "note", told, why, f"unset {' '.join((*limits, *threads))}")


_NOT_FOR_MEASURING = ("fake", "injected")


def runtimes(machine: Machine) -> Finding | None:
    """Runtimes that can run a model here."""
    found = [item for item in machine.probes.availability() if item[0] not in _NOT_FOR_MEASURING]
    usable = [
        f"{name}:{device}{f' {state.version}' if state.version else ''}"
        for name, device, state in found
        if state.available
    ]
    if usable:
        return Finding("runtimes", "ok", ", ".join(map(sensors.clean, usable)))
    install = next((state.install for _, _, state in found if state.install), None)
    return Finding(
        "runtimes",
        "problem",
        "none works here",
        "Nothing can be measured; edgeprof backends says why for each.",
        install,
    )
