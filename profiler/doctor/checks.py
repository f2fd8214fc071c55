"""All checks, and the examination that runs them. One more check is a function and a line in `CHECKS`."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path

from profiler.doctor import clocks, devices, load, system
from profiler.doctor.findings import Finding, Report
from profiler.doctor.machine import Machine, Probes, watch

Check = Callable[[Machine], Finding | None]
"""Looks at one thing. None: it does not concern this machine (a Jetson's power mode on a laptop)."""

# Heaviest first: the order within one severity, and so what the verdict calls the worst.
CHECKS: dict[str, Check] = {
    "runtimes": system.runtimes,
    "power supply": system.power,
    "raspberry pi": devices.raspberry_pi,
    "thermal throttling": clocks.throttling,
    "other load": load.load,
    "steal": load.steal,
    "cpu quota": load.quota,
    "nvidia gpu": devices.nvidia,
    "jetson": devices.jetson,
    "cpu governor": clocks.governor,
    "turbo": clocks.turbo,
    "swap": load.swap,
    "free memory": load.memory,
    "pressure": load.pressure,
    "temperature": clocks.temperature,
    "python": system.python_build,
    "environment": system.variables,
    "clock source": clocks.clock_source,
    "address layout": system.address_layout,
    "hyper-threading": clocks.siblings,
    "clock limit": clocks.clock_cap,
    "huge pages": system.huge_pages,
    "cores": load.pinning,
    "virtual machine": load.hypervisor,
    "container": load.container,
    "free disk": load.disk,
    "sensors": system.missing,
}


def examine(
    root: Path = Path("/"),
    *,
    out: Path = Path("runs"),
    environ: Mapping[str, str] | None = None,
    probes: Probes | None = None,
    window_s: float = 1.0,
    checks: Mapping[str, Check] | None = None,
) -> Report:
    """Look at this machine for `window_s` and a moment. Never raises for what the machine's files and drivers answer.

    `root` stands for the file system's root, `out` is where runs would be stored, `probes` answers what is asked of the system.
    """
    asked = probes or Probes()
    machine = Machine(root, out, os.environ if environ is None else environ, asked, watch(root, asked, window_s))
    findings = [_safely(name, check, machine) for name, check in (CHECKS if checks is None else checks).items()]
    return Report.of([finding for finding in findings if finding is not None])


def _safely(name: str, check: Check, machine: Machine) -> Finding | None:
    """A check that fails says so, and the others go on: drivers and foreign backends may raise anything."""
    try:
        return check(machine)
    except Exception as error:  # noqa: BLE001
        told = f"the check failed ({type(error).__name__}: {str(error)[:200]})"
        return Finding(
            name, "absent", told, "So nothing is known about it. This is a bug in edgeprof; please report it."
        )
