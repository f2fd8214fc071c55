"""Which cores are the big and which the little ones, and which threads share a core. Standard library only.

Everything is read below `root`, or given as texts by path; what is no plausible content is as if it were absent.

Sources: the kernel's Documentation/ABI/testing/sysfs-devices-system-cpu (`cpu_capacity`, `online`, `topology`), `perf`'s
Documentation/intel-hybrid.txt (`/sys/devices/cpu_core/cpus`, `cpu_atom/cpus`), Documentation/core-api/cputopology ("cpulist").
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path

CPU = "sys/devices/system/cpu"
HYBRID = (("big", "sys/devices/cpu_core/cpus"), ("little", "sys/devices/cpu_atom/cpus"))
"""Intel's performance cores and its efficiency cores."""
_PER_CORE = re.compile(rf"{CPU}/cpu(\d{{1,5}})/(cpu_capacity|cpufreq/cpuinfo_max_freq|topology/thread_siblings_list)")
_MOST_CORES = 4096
_SAME_KIND = 1.15
"""Favoured cores of one kind are up to about 10 % faster than their siblings; kinds differ by more than this."""


def core_classes(root: Path = Path("/")) -> dict[str, tuple[int, ...]]:
    """Logical CPUs by class, those that are online: `big` and `little`, or `big`, `middle` and `little`, or only `all`.

    `all` means that the machine tells and all are of one kind. Nothing at all: the machine does not tell (usual in virtual
    machines).
    """
    return classes(read(root))


def read(root: Path = Path("/")) -> dict[str, str]:
    """The texts that `classes` and `physical_cores` need, by path below `root`."""
    names = [*(path for _, path in HYBRID), f"{CPU}/online", f"{CPU}/present"]
    try:
        folders = [path.name for path in (root / CPU).iterdir()]
    except OSError:
        folders = []
    for folder in folders:
        if re.fullmatch(r"cpu\d{1,5}", folder):
            names += [f"{CPU}/{folder}/{name}" for name in
                      ("cpu_capacity", "cpufreq/cpuinfo_max_freq", "topology/thread_siblings_list")]  # fmt: skip
    found = {}
    for name in names:
        try:
            with (root / name).open("rb") as file:
                found[name] = file.read(4096).decode("utf-8", "replace")
        except OSError:
            continue
    return found


def classes(files: Mapping[str, str]) -> dict[str, tuple[int, ...]]:
    """Like `core_classes`, from the texts of the files by path without the leading slash."""
    online = cpu_list(files.get(f"{CPU}/online", ""))
    hybrid = {name: _only(cpu_list(files.get(path, "")), online) for name, path in HYBRID}
    if all(hybrid.values()):
        return hybrid
    # The scheduler's own scale where the kernel has one; the highest clock else, which orders kinds but not their worth.
    for name in ("cpu_capacity", "cpufreq/cpuinfo_max_freq"):
        rated = {core: rate for core, rate in _numbers(files, name).items() if not online or core in online}
        if rated and set(rated) >= set(online):
            return _by_rate(rated)
    return {}


def physical_cores(files: Mapping[str, str]) -> int | None:
    """Cores that are online, threads of one core counted once; None when the machine does not tell."""
    online = cpu_list(files.get(f"{CPU}/online", ""))
    siblings = {
        min(threads)
        for path, content in files.items()
        if (found := _PER_CORE.fullmatch(path)) and found[2] == "topology/thread_siblings_list"
        if (threads := _only(cpu_list(content), online))
    }
    return len(siblings) or None


def cpu_list(content: str) -> tuple[int, ...]:
    """The kernel's list of CPUs, e.g. `0-3,8`, in their order; empty for what is no such list."""
    cores: set[int] = set()
    for part in content.strip("\0 \n").split(","):
        span = re.fullmatch(r"(\d{1,5})(?:-(\d{1,5}))?", part.strip())
        first, last = (int(span[1]), int(span[2] or span[1])) if span else (0, -1)
        if last < first or last - first + len(cores) > _MOST_CORES:
            return ()
        cores.update(range(first, last + 1))
    return tuple(sorted(cores))


def shown(cores: Iterable[int]) -> str:
    """The same list as the kernel writes it: `0-3,8`."""
    parts: list[list[int]] = []
    for core in sorted(set(cores)):
        if parts and core == parts[-1][1] + 1:
            parts[-1][1] = core
        else:
            parts.append([core, core])
    return ",".join(f"{first}" if first == last else f"{first}-{last}" for first, last in parts)


def _only(cores: tuple[int, ...], online: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(core for core in cores if not online or core in online)


def _numbers(files: Mapping[str, str], name: str) -> dict[int, float]:
    found = {}
    for path, content in files.items():
        place = _PER_CORE.fullmatch(path)
        if place and place[2] == name and re.fullmatch(r"[1-9]\d{0,11}", content.strip()):
            found[int(place[1])] = float(content)
    return found


def _by_rate(rated: Mapping[int, float]) -> dict[str, tuple[int, ...]]:
    kinds: list[list[int]] = []
    for core in sorted(rated, key=lambda core: (-rated[core], core)):
        # Compared with the fastest of the kind, so that a chain of small steps does not make one kind of all.
        if kinds and rated[core] > rated[kinds[-1][0]] / _SAME_KIND:
            kinds[-1].append(core)
        else:
            kinds.append([core])
    if len(kinds) == 1:
        return {"all": tuple(sorted(kinds[0]))}
    middle = sorted(core for kind in kinds[1:-1] for core in kind)
    named = {"big": sorted(kinds[0]), **({"middle": middle} if middle else {}), "little": sorted(kinds[-1])}
    return {name: tuple(cores) for name, cores in named.items()}
