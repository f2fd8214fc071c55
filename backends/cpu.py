"""What the CPU can do and how much of it is ours: instruction sets that decide inference latency, and usable cores.

Both read the system through arguments, so that a fixture tree stands for any machine.
"""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

_DECISIVE = (
    "sse4_2", "avx", "f16c", "fma", "avx2", "avx_vnni", "avx_vnni_int8",
    "avx512f", "avx512bw", "avx512_vnni", "avx512_bf16", "avx512_fp16", "amx_tile", "amx_int8", "amx_bf16", "amx_fp16",
    "neon", "asimd", "fphp", "asimdhp", "asimddp", "i8mm", "bf16", "sve", "sve2", "sme", "sme2",
)  # fmt: skip
"""Linux' names (arch/x86/include/asm/cpufeatures.h, Documentation/arch/arm64/elf_hwcaps.rst), in the order of the answer."""

_MAC = {
    "hw.optional.sse4_2": "sse4_2",
    "hw.optional.avx1_0": "avx",
    "hw.optional.f16c": "f16c",
    "hw.optional.fma": "fma",
    "hw.optional.avx2_0": "avx2",
    "hw.optional.avx512f": "avx512f",
    "hw.optional.avx512bw": "avx512bw",
    "hw.optional.AdvSIMD": "asimd",
    "hw.optional.arm.FEAT_FP16": "asimdhp",
    "hw.optional.arm.FEAT_DotProd": "asimddp",
    "hw.optional.arm.FEAT_I8MM": "i8mm",
    "hw.optional.arm.FEAT_BF16": "bf16",
    "hw.optional.arm.FEAT_SME": "sme",
    "hw.optional.arm.FEAT_SME2": "sme2",
}
"""Apple, "Determining instruction set characteristics", as Linux names the same."""


def _sysctl() -> str:
    return subprocess.run(
        ["/usr/sbin/sysctl", "hw.optional"], capture_output=True, text=True, check=False, timeout=10
    ).stdout


def isa(root: Path = Path("/"), system: str | None = None, sysctl: Callable[[], str] = _sysctl) -> tuple[str, ...]:
    """Instruction sets that all cores have, by Linux' names; empty when the system does not tell.

    `root` stands for the file system's root, `sysctl` for the text of `sysctl hw.optional` (macOS).
    """
    if (system or platform.system()) == "Darwin":
        lines = (line.partition(":") for line in sysctl().splitlines())
        found = {_MAC[key.strip()] for key, _, value in lines if key.strip() in _MAC and value.strip() == "1"}
    else:
        # Cores may differ (big.LITTLE, hybrid): a kernel can rely only on what each has.
        cores = list(_flags(root / "proc/cpuinfo"))
        found = set.intersection(*cores) if cores else set()
    return tuple(name for name in _DECISIVE if name in found)


def _flags(cpuinfo: Path) -> Iterator[set[str]]:
    for line in (_text(cpuinfo) or "").splitlines():
        key, _, value = line.partition(":")
        if key.strip() in {"flags", "Features"}:
            yield set(value.split())


def _affinity() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def usable_cores(root: Path = Path("/"), affinity: Callable[[], int] = _affinity) -> int:
    """Cores this process may keep busy: its affinity mask, cut by the CPU quotas of its control groups (v1 and v2).

    A quota is rounded down, but not below 1: with 1.5 cores, two busy threads are throttled in each period and a latency
    would be the quota's, not the model's.
    """
    quotas = list(_quotas(root))
    return max(1, min([affinity(), *(int(quota) for quota in quotas)]))


def _quotas(root: Path) -> Iterator[float]:
    """Quotas in cores of our groups and of the groups above them; a limit higher up holds for us as well."""
    for line in (_text(root / "proc/self/cgroup") or "").splitlines():
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if not controllers:
            mounts, read = (root / "sys/fs/cgroup", root / "sys/fs/cgroup/unified"), _quota_v2
        elif "cpu" in controllers.split(","):
            mounts, read = (root / "sys/fs/cgroup" / controllers, root / "sys/fs/cgroup/cpu"), _quota_v1
        else:
            continue
        parts = [part for part in path.split("/") if part not in {"", ".."}]
        # In a container the path may be the host's and not exist below the mount: then the mount is our group.
        for mount in dict.fromkeys(mounts):
            for depth in range(len(parts), -1, -1):
                quota = read(mount.joinpath(*parts[:depth]))
                if quota is not None:
                    yield quota


def _quota_v2(group: Path) -> float | None:
    quota, _, period = (_text(group / "cpu.max") or "").strip().partition(" ")
    return int(quota) / int(period) if quota.isdecimal() and period.isdecimal() and int(period) else None


def _quota_v1(group: Path) -> float | None:
    quota, period = _text(group / "cpu.cfs_quota_us"), _text(group / "cpu.cfs_period_us")
    if (
        quota is None
        or period is None
        or not (quota.strip().isdecimal() and period.strip().isdecimal())
        or int(period) == 0
    ):
        return None  # -1 means no quota
    return int(quota) / int(period)


def _text(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
