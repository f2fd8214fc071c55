"""Conditions of a machine, applied inside the worker before any runtime is imported: fewer cores, less memory, a power mode.

What the machine allows decides the means, and the answer says which it was: control groups where they can be written, otherwise
affinity and a limit of the data segment. Only the standard library: it runs on devices.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from backends.errors import BackendUnavailable
from profiler.measure import memory
from profiler.measure.control_group import Groups, NoControlGroup
from profiler.measure.cores import CPU, core_classes, cpu_list, shown
from profiler.measure.power_mode import PowerModes

_ROOM_BYTES = 8 << 20
"""What must be left for the case beside the worker itself."""


class NotPossible(BackendUnavailable):
    """A condition cannot be had on this machine; the text says what there is."""


def apply(
    asked: Mapping[str, Any],
    power: PowerModes,
    *,
    root: Path = Path("/"),
    groups: Groups | None = None,
    limit_data: Callable[[int], None] | None = None,
) -> dict[str, str]:
    """Put this process under the conditions; returns what each was done with, by its name in a target's text.

    `asked` may hold `cpus` (a number, fractions are of processor time), `memory_bytes`, `cores` (`little`, `0-3|6`) and
    `power` (a mode) with `power_step`: `check` whether it could be set, `verify` that it is, `set` or `restore` it.
    Raises NotPossible, and NoPowerMode.
    """
    told: dict[str, str] = {}
    if asked.get("power") is not None or asked.get("power_step") == "restore":
        told.update(_power(asked, power))
    cpus, limit = asked.get("cpus"), asked.get("memory_bytes")
    groups = groups or Groups(root)
    if cpus is not None or asked.get("cores") is not None:
        told.update(_processors(None if cpus is None else float(cpus), asked.get("cores"), root, groups))
    if limit is not None:
        told["memory"] = _memory(int(limit), root, groups)
    try:
        groups.enter()
    except NoControlGroup as error:
        told = _without_groups(told, str(error))
    if limit is not None and not told["memory"].startswith("cgroup"):
        (limit_data or _limit_data)(int(limit))
    return told


def set_affinity(cpus: Iterable[int], root: Path = Path("/")) -> None:
    """Bind all threads of this process: those that libraries started already would keep their own mask."""
    wanted = set(cpus)
    try:
        threads = [int(entry.name) for entry in (root / "proc/self/task").iterdir()]
    except OSError:
        threads = [0]
    for thread in threads:
        try:
            os.sched_setaffinity(thread, wanted)
        except ProcessLookupError:  # it has ended meanwhile
            continue


def choose(count: int, pool: Sequence[int], siblings: Callable[[int], frozenset[int]]) -> tuple[int, ...]:
    """`count` processors of the pool, of different physical cores as long as there are any; `siblings` share one."""
    fresh: list[int] = []
    rest: list[int] = []
    for cpu in pool:
        (rest if siblings(cpu) & set(fresh) else fresh).append(cpu)
    return tuple(sorted([*fresh, *rest][:count]))


def parse_cores(text: str) -> tuple[int, ...] | None:
    """`0-3|6` as numbers; None for anything else, which is then the name of a class."""
    return cpu_list(text.replace("|", ",")) or None


def format_cores(numbers: Iterable[int]) -> str:
    """Numbers as `0-3|6`."""
    return _listed(numbers).replace(",", "|")


def _power(asked: Mapping[str, Any], power: PowerModes) -> dict[str, str]:
    step = asked.get("power_step", "verify")
    if step == "restore":
        power.restore()
        return {}
    acts = {"check": power.check, "verify": power.verify, "set": power.set}
    if step not in acts:
        raise NotPossible(f"power_step is {step!r}, known: check, verify, set, restore.")
    return {"power": f"nvpmodel: {acts[step](str(asked['power']))}"}


def _processors(cpus: float | None, cores: str | None, root: Path, groups: Groups) -> dict[str, str]:
    if not hasattr(os, "sched_setaffinity"):
        raise NotPossible("processes cannot be bound to processors on this system: leave cpus= and cores= out.")
    pool = sorted(os.sched_getaffinity(0))
    told = {}
    if cores is not None:
        pool = list(_of_class(str(cores), pool, root))
    count = len(pool) if cpus is None else math.ceil(cpus)
    if count > len(pool) or count < 1:
        raise NotPossible(f"cpus={cpus:g} is not possible: the worker may use processors {_listed(pool)} here.")
    chosen = choose(count, pool, lambda cpu: _siblings(cpu, root))
    # Before a quota, which can be refused: by then nothing has been changed.
    quota = _quota(cpus, groups)
    try:
        means = groups.cpus(chosen)
    except NoControlGroup:
        means = "affinity"
    set_affinity(chosen, root)
    told["cpus" if cores is None else "cores"] = f"{means}, processors {_listed(chosen)}"
    if quota is not None:
        told["cpus"] = f"{quota}, processors {_listed(chosen)}"
    elif cpus is not None:
        told["cpus"] = f"{means}, processors {_listed(chosen)}"
    return told


def _quota(cpus: float | None, groups: Groups) -> str | None:
    """A quota for a fraction of a processor; None for whole ones, which are bound instead. Raises NotPossible."""
    if cpus is None or cpus == int(cpus):
        return None
    try:
        return groups.quota(cpus)
    except NoControlGroup as error:
        raise NotPossible(
            f"cpus={cpus:g} needs a control group, and {error}: ask for whole processors, or run where control groups "
            "can be written (root, or `systemd-run --user --scope -p Delegate=yes`)."
        ) from None


def _of_class(text: str, allowed: Sequence[int], root: Path) -> tuple[int, ...]:
    numbers = parse_cores(text)
    if numbers is None:
        classes = core_classes(root)
        if text not in classes:
            there = "; ".join(f"{name}: {_listed(cpus)}" for name, cpus in classes.items())
            raise NotPossible(
                f"cores={text}: this machine has no such class of cores "
                f"({there or 'all are alike'}). Name processors by number, such as cores={format_cores(allowed[:2])}."
            )
        numbers = classes[text]
    missing = sorted(set(numbers) - set(allowed))
    if missing:
        raise NotPossible(
            f"cores={text}: processors {_listed(missing)} are not there or not ours, the worker may use {_listed(allowed)}."
        )
    return tuple(numbers)


def _memory(limit: int, root: Path, groups: Groups) -> str:
    """What this process holds already stays with the group it was taken from, so the new group gets the rest."""
    now = memory.read(root)
    held = (now.rss_bytes if now.rss_anon_bytes is None else now.rss_anon_bytes) or 0
    if limit - held < _ROOM_BYTES:
        raise NotPossible(
            f"memory={limit / 1e6:g}MB is not possible: the worker alone, Python and numpy without a runtime, "
            f"holds {held / 1e6:.0f} MB."
        )
    try:
        means = groups.memory(limit - held)
    except NoControlGroup as error:
        return f"rlimit data, as {error}"
    return f"{means}, {held / 1e6:.0f} MB of it held before; pages of files that others have read are not counted"


def _without_groups(told: Mapping[str, str], why: str) -> dict[str, str]:
    """The means that are left when the groups, with their limits set, could not be entered."""
    if any("quota" in text for text in told.values()):
        raise NotPossible(f"the control group for cpus= cannot be entered: {why}. Ask for whole processors.")
    changed = dict(told)
    for key in ("cpus", "cores"):
        if key in changed:
            changed[key] = "affinity, " + changed[key].partition(", ")[2]
    if changed.get("memory", "").startswith("cgroup"):
        changed["memory"] = f"rlimit data, as {why}"
    return changed


def _limit_data(limit: int) -> None:
    import resource

    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    if hard != resource.RLIM_INFINITY:
        limit = min(limit, hard)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))


def _siblings(cpu: int, root: Path) -> frozenset[int]:
    try:
        return frozenset(cpu_list((root / CPU / f"cpu{cpu}/topology/thread_siblings_list").read_text()) or (cpu,))
    except (OSError, ValueError):
        return frozenset((cpu,))


def _listed(cpus: Iterable[int]) -> str:
    return shown(tuple(sorted(set(cpus))))
