"""The two questions about a machine that the grade of a measurement depends on. None where it cannot be told."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from pathlib import Path

from profiler.doctor import clocks, load
from profiler.doctor.machine import Machine, Probes, count
from profiler.measure import sensors


def fixed_clocks(root: Path = Path("/"), cores: Collection[int] | None = None) -> bool | None:
    """Whether the clock of `cores` (default: those we may run on) stays where it is under load.

    True: the lowest allowed clock is the highest allowed one, or the governor always asks for the highest, and in either case
    nothing above the rated clock is reached, because turbo is off or the limit lies at or below `base_frequency`. Heat can still
    lower it, which the labels of a block tell. None where the kernel offers no cpufreq (virtual machines).
    """
    machine = _machine(root, cores)
    answers = [_fixed(machine, core) for core in machine.cores]
    if False in answers:
        return False
    return None if None in answers or not answers else True


def _fixed(machine: Machine, core: int) -> bool | None:
    folder = machine.root / f"{clocks.CPU}/cpu{core}/cpufreq"
    low, high = sensors.hertz(folder / "scaling_min_freq"), sensors.hertz(folder / "scaling_max_freq")
    governor = sensors.word(folder / "scaling_governor")
    if high is None or (low is None and governor is None):
        return None
    if low != high and governor != "performance":
        return False
    base = sensors.hertz(folder / "base_frequency")
    if base is not None and high <= base:
        return True
    # Without a switch there is no turbo: boards whose table of clocks ends at the rated one.
    return clocks.turbo_on(machine) is not True


def dedicated(
    root: Path = Path("/"), *, labels: Mapping[str, float] | None = None, probes: Probes | None = None, window_s: float = 1.0
) -> bool | None:  # fmt: skip
    """Whether this machine does our work and nothing else: no CPU quota, no steal, little other load.

    `labels` are those of `host.difference` over the time in question (means over blocks are fine); without them the machine is
    watched for `window_s`, during which nothing of ours may run. False as soon as one thing speaks against it. None in a virtual
    machine that looks quiet, because its neighbours cannot be seen, and where load or steal cannot be read.
    """
    asked = probes or Probes()
    seen = count(root, asked, window_s)[1] if labels is None else labels
    others, stolen = seen.get("other_cpu_share"), seen.get("steal_share")
    if load.quota_cores(root) is not None:
        return False
    if (others is not None and others >= load.BUSY_CORES) or (stolen is not None and stolen > 0):
        return False
    if others is None or stolen is None:
        return None
    return None if load.hypervisor_name(_machine(root, None, asked)) else True


def _machine(root: Path, cores: Collection[int] | None, probes: Probes | None = None) -> Machine:
    fixed = None if cores is None else frozenset(cores)
    asked = probes or (Probes() if fixed is None else Probes(affinity=lambda: fixed))
    return Machine(root, Path(), os.environ, asked, None)
