"""Checks of who else uses this machine and how much of it is ours: load, pressure, memory, disk, quotas, virtual machines."""

from __future__ import annotations

import re
from pathlib import Path

from backends import cpu
from profiler.doctor.findings import Finding
from profiler.doctor.machine import Machine, core_list
from profiler.measure.cores import shown as cores_text
from profiler.measure.sensors import count, number
from profiler.units import size

BUSY_CORES = 0.1
"""Other work above this many cores disturbs: it lands on ours sooner or later."""
STEAL_SHARE = 0.02
"""From here a block is called dirty (docs/method.md)."""
_MEMORY_SHARE, _MEMORY_LOW, _MEMORY_EMPTY = 0.1, 1e9, 256e6
_DISK_LOW, _DISK_EMPTY = 1e9, 100e6


def load(machine: Machine) -> Finding | None:
    """Other processes that compute, watched for a moment, and the load average."""
    name = "other load"
    average = number((machine.text("proc/loadavg", 80) or "").partition(" ")[0])
    told = "" if average is None or average < 0 else f"; load average {average:.2f}"
    window = machine.window
    others = None if window is None else window.labels.get("other_cpu_share")
    if window is None or others is None:
        return Finding(
            name, "absent", f"processor time cannot be read{told}", "Whether something else computes here is not known."
        )
    busy = [(process, share) for process, share in window.busy if share >= 0.02][:5]
    who = ", ".join(f"{process.name} {share:.2f}" for process, share in busy)
    if others >= BUSY_CORES:
        return Finding(
            name, "problem" if others >= 0.5 * max(len(machine.cores), 1) else "warning",
            f"{others:.1f} cores busy with other work{f' ({who})' if who else ''}{told}",
            "Inferences wait for a core, and caches and memory are shared. Blocks that suffer are labelled and measured again, "
            "which takes time and has limits. Stop that work, or measure when it is done.",
            f"ps -o pid,user,pcpu,etime,args -p {','.join(str(process.pid) for process, _ in busy)}" if busy else None,
        )  # fmt: skip
    if average is not None and average >= 0.5 * max(len(machine.cores), 1):
        return Finding(
            name, "note", f"quiet now, but the load average of the last minute is {average:.2f}",
            "Something computed here a moment ago and may come back.",
        )  # fmt: skip
    return Finding(name, "ok", f"{others:.2f} cores{told}")


def pressure(machine: Machine) -> Finding | None:
    """Whether tasks had to wait for a processor, for memory or for a disk (PSI)."""
    if not machine.is_linux:
        return None
    labels = machine.window.labels if machine.window else {}
    wall = machine.window.wall_s if machine.window else 0.0
    shares = {
        what: labels[f"{what}_pressure_s"] / wall
        for what in ("cpu", "memory", "io")
        if f"{what}_pressure_s" in labels and wall > 0
    }
    if not shares:
        return Finding(
            "pressure", "absent", "the kernel keeps no account of waiting (/proc/pressure)",
            "Waiting for memory or disks would not be seen. `psi=1` on the kernel's command line switches it on.",
        )  # fmt: skip
    told = ", ".join(f"{what} {share * 100:.0f} %" for what, share in shares.items())
    if shares.get("memory", 0.0) > 0.01:
        return Finding(
            "pressure", "problem", f"share of the time somebody waited: {told}",
            "Memory is short: pages are fetched again in the middle of inferences. Close what uses it.",
            "ps aux --sort=-rss | head",
        )  # fmt: skip
    if max(shares.values()) > 0.1:
        return Finding(
            "pressure",
            "warning",
            f"share of the time somebody waited: {told}",
            "Others queue for what inferences need, too.",
        )
    return Finding("pressure", "ok", f"share of the time somebody waited: {told}")


def swap(machine: Machine) -> Finding | None:
    """Swap in use, and how eagerly the kernel swaps."""
    facts = _meminfo(machine)
    total, free = facts.get("SwapTotal"), facts.get("SwapFree")
    if total is None or free is None:
        return None
    used = max(total - free, 0.0)
    swappiness = machine.number("proc/sys/vm/swappiness")
    told = f"{size(used)} of {size(total)} used" + (f", swappiness {swappiness:g}" if swappiness is not None else "")
    if total == 0:
        return Finding("swap", "ok", "none configured")
    pressed = machine.window is not None and machine.window.labels.get("memory_pressure_s", 0.0) > 0
    if used and pressed:
        return Finding(
            "swap", "problem", f"{told}, and memory is being waited for",
            "Weights that were swapped out come back page by page inside an inference: p99 would be the disk's.",
            "sudo swapoff -a && sudo swapon -a",
        )  # fmt: skip
    if used > 0.05 * total:
        return Finding(
            "swap", "note", told, "Memory was short before. What was swapped out comes back when it is used.",
            "sudo swapoff -a && sudo swapon -a",
        )  # fmt: skip
    return Finding("swap", "ok", told)


def memory(machine: Machine) -> Finding | None:
    """Memory that is free to use."""
    facts = _meminfo(machine)
    available, total = facts.get("MemAvailable"), facts.get("MemTotal")
    if available is None or total is None:
        asked = machine.probes.memory()
        if asked is None:
            return Finding("free memory", "absent", "not told", "Whether a model fits is found out when it is loaded.")
        available, total = float(asked[0]), float(asked[1])
    told = f"{size(available)} of {size(total)}"
    if available < _MEMORY_EMPTY:
        severity = "problem"
    elif available < _MEMORY_LOW or available < _MEMORY_SHARE * total:
        severity = "warning"
    else:
        return Finding("free memory", "ok", told)
    why = "Cases run side by side in one process each; when memory ends they fail, or the kernel drops their weights."
    return Finding(
        "free memory", "problem" if severity == "problem" else "warning", told, why, "ps aux --sort=-rss | head"
    )


def disk(machine: Machine) -> Finding | None:
    """Space where runs are stored."""
    free = machine.probes.disk_free(machine.out)
    if free is None:
        return Finding("free disk", "absent", f"unknown in {machine.out}", "Whether a run can be stored is not known.")
    told = f"{size(free)} in {machine.out}"
    if free >= _DISK_LOW:
        return Finding("free disk", "ok", told)
    return Finding(
        "free disk", "problem" if free < _DISK_EMPTY else "warning", told,
        "A run keeps the variants' model files and every sample; when the disk is full it stops. Choose another folder (--out).",
        "df -h",
    )  # fmt: skip


def quota(machine: Machine) -> Finding | None:
    """A limit on processor time that a control group sets (containers)."""
    if not machine.is_linux:
        return None
    cores = quota_cores(machine.root)
    if cores is None:
        return Finding("cpu quota", "ok", "none")
    held = machine.window.labels.get("nr_throttled", 0.0) if machine.window else 0.0
    told = f"{cores} {'core' if cores == 1 else 'cores'}, rounded down"
    return Finding(
        "cpu quota", "problem" if held else "warning", f"{told}; it held us back {held:.0f} times just now" if held else told,
        "When the quota of a period (usually 100 ms) is used up, everything stops until the next one: p99 is the quota's, not "
        "the model's. Start the container without --cpus or a CPU limit, and pin cores instead (--cpuset-cpus).",
    )  # fmt: skip


def quota_cores(root: Path) -> int | None:
    """Whole cores that the strictest quota leaves, at least 1; None without a quota."""
    unlimited = 1 << 30
    cores = cpu.usable_cores(root, affinity=lambda: unlimited)
    return None if cores == unlimited else cores


def pinning(machine: Machine) -> Finding | None:
    """Which cores are ours, and whether the kernel keeps others off them."""
    if not machine.is_linux or not machine.cores:
        return None
    online = core_list(machine.text("sys/devices/system/cpu/online", 256))
    isolated = core_list(machine.text("sys/devices/system/cpu/isolated", 256))
    ours = set(machine.cores)
    if isolated and ours <= isolated:
        return Finding("cores", "ok", f"pinned to isolated cores {cores_text(ours)}: nothing else is scheduled there")
    told = f"{cores_text(ours)}" + (f" of {cores_text(online)}" if online and ours < online else "")
    if isolated:
        return Finding(
            "cores", "note", f"{told}; the kernel keeps {cores_text(isolated)} isolated, unused by us",
            "On isolated cores nothing else is scheduled.", f"taskset -c {cores_text(isolated)} edgeprof …",
        )  # fmt: skip
    return Finding("cores", "ok", told)


_VENDORS = (
    "QEMU",
    "KVM",
    "Xen",
    "VMware",
    "innotek",
    "Bochs",
    "Parallels",
    "Google",
    "OpenStack",
    "DigitalOcean",
    "Alibaba",
)


def hypervisor_name(machine: Machine) -> str | None:
    """Who runs this virtual machine; None on bare metal, as far as can be seen.

    x86 has a flag. Other processors only have their firmware's names, so a well-disguised one is not seen.
    """
    vendor = machine.word("sys/devices/virtual/dmi/id/sys_vendor")
    product = machine.word("sys/devices/virtual/dmi/id/product_name") or ""
    cpuinfo = machine.text("proc/cpuinfo", 1 << 14) or ""
    if re.search(r"^flags\s*:.*\bhypervisor\b", cpuinfo, re.MULTILINE):
        return vendor or machine.word("sys/hypervisor/type") or "unnamed"
    if vendor and (vendor.startswith(_VENDORS) or "Virtual Machine" in product):
        return vendor
    if vendor == "Amazon EC2":
        return None if "metal" in product else vendor
    if "dummy-virt" in (machine.text("proc/device-tree/compatible", 256) or ""):
        return "QEMU"
    return machine.word("sys/hypervisor/type")


def hypervisor(machine: Machine) -> Finding | None:
    """A virtual machine."""
    name = hypervisor_name(machine)
    if name is None:
        return Finding("virtual machine", "ok", "none seen") if machine.is_linux else None
    return Finding(
        "virtual machine", "note", f"yes ({name})",
        "Clocks, heat and neighbours belong to the host and cannot be seen from here. Absolute latencies may shift by a few "
        "per cent between runs with nothing to show for it; several processes and interleaving average over it.",
    )  # fmt: skip


def steal(machine: Machine) -> Finding | None:
    """Time in which the host ran something else on our cores."""
    ticks = [count(field) for field in (machine.text("proc/stat", 512) or "").split("\n", 1)[0].split()[1:9]]
    now = machine.window.labels.get("steal_share") if machine.window else None
    if now is None or len(ticks) < 8 or None in ticks:
        return (
            Finding("steal", "absent", "/proc/stat does not tell", "What the host takes from us is not known.")
            if machine.is_linux
            else None
        )
    known = [tick for tick in ticks if tick is not None]
    boot = known[7] / max(sum(known), 1.0)
    told = f"{now * 100:.1f} % of a core now, {boot * 100:.1f} % of all since boot"
    if now > STEAL_SHARE or boot > STEAL_SHARE:
        return Finding(
            "steal", "problem" if now > STEAL_SHARE else "warning", told,
            "The host gives our cores to others: latencies contain their work. Use a machine with dedicated cores, or measure "
            "when it is quiet; blocks with steal are measured again.",
        )  # fmt: skip
    return Finding("steal", "ok", told)


def container(machine: Machine) -> Finding | None:
    """A container: the machine's settings are shared with whatever else runs outside of it."""
    if not machine.is_linux:
        return None
    groups = machine.text("proc/1/cgroup") or ""
    kind = next((word for word in ("kubepods", "docker", "containerd", "libpod", "lxc") if word in groups), None)
    if kind is None and (machine.root / ".dockerenv").exists():
        kind = "docker"
    if kind is None and (machine.root / "run/.containerenv").exists():
        kind = "podman"
    if kind is None and "KUBERNETES_SERVICE_HOST" in machine.environ:
        kind = "kubepods"
    if kind is None:
        return Finding("container", "ok", "none seen")
    return Finding(
        "container", "note", kind,
        "Processes outside of it are invisible here but use the same cores, and most settings can only be changed on its host.",
    )  # fmt: skip


def _meminfo(machine: Machine) -> dict[str, float]:
    """`/proc/meminfo` in bytes."""
    found = {}
    for line in (machine.text("proc/meminfo") or "").splitlines():
        name, _, rest = line.partition(":")
        amount = count(rest.strip().removesuffix(" kB"))
        if amount is not None:
            found[name] = amount * 1024
    return found
