"""Whether a worker's death was a lack of memory, and how much it needed at least: what the parent can witness.

A process that the kernel kills for memory can no longer say so. The kernel counts such kills, for the machine and for each
control group, and tells the parent the highest resident set of the child it reaps; the worker itself told its memory phase by
phase before. A SIGKILL without any of these signs was sent by somebody, and is not called a lack of memory.
"""

from __future__ import annotations

import resource
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from profiler.measure.memory import PHASES, counter, group_folder, group_limit, small_text, status_fields
from profiler.units import size

ENOUGH_SHARE = 0.1
"""Memory counts as plentiful when this share of it was free while the worker still had its own."""
_ADVICE = "Try a smaller batch (--batch), a smaller variant such as int8-dynamic, or"
_MORE = {
    "group": "raise the limit of its container or service",
    "machine": "a machine with more memory; --memory-limit makes such a case fail before it fills the machine",
}
_GPU_WORDS = ("cuda", "gpu", "device memory", "cublas", "cudnn")
_LOG_WORDS = ("bad_alloc", "out of memory", "cannot allocate memory", "failed to allocate", "memoryerror")


@dataclass(frozen=True)
class Finding:
    """What a death or a failed allocation was."""

    is_memory: bool
    message: str
    needs_more_than_bytes: int | None


@dataclass
class Witness:
    """What the parent of one worker sees of its memory. `local` says whether the worker's process is on this machine."""

    local: bool
    limit_bytes: int | None = None
    root: Path = Path("/")
    pid: int | None = None
    _inherited_bytes: int = field(default_factory=lambda: peak_of(resource.getrusage(resource.RUSAGE_SELF)))
    _machine_kills: int | None = None
    _groups: dict[Path, tuple[int, int | None]] = field(default_factory=dict)
    _phases: Mapping[str, Mapping[str, int | None]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Remember the machine's count of kills as it is before the worker begins."""
        self._machine_kills = machine_kills(self.root) if self.local else None

    def look(self) -> None:
        """Before a command: find the worker's control group. A launcher may have moved it since it was started."""
        found = group_folder(self.root, self.pid) if self.local and self.pid is not None else None
        if found is not None and found[0] not in self._groups:
            self._groups[found[0]] = (found[1], group_kills(*found))

    def heard(self, reply: Mapping[str, Any]) -> None:
        """Remember the phases in a worker's answer."""
        phases = reply.get("phases")
        if isinstance(phases, Mapping):
            self._phases = phases

    def of_kill(self, command: str, reaped_peak_bytes: int | None) -> Finding:
        """What a SIGKILL during `command` was. `reaped_peak_bytes` is `ru_maxrss` of the reaped child."""
        own, at_most = self._resident(reaped_peak_bytes)
        had = f"it had {size(own)} resident when it was killed" if own is not None else "how much it had is not known"
        killer = self._killer()
        if killer is not None:
            needs = "" if own is None else f"needs more than {size(own)}: "
            return Finding(
                True,
                f"out of memory during '{command}': {needs}{had} (SIGKILL) by {killer}. {_ADVICE} {_MORE[self._limited()]}.",
                own,
            )
        counted = self._machine_kills is not None and machine_kills(self.root) is not None
        free = self._free(at_most)
        if free is not None and free[1]:
            resident = f"at most {size(at_most)}" if own is None and at_most is not None else size(own or 0)
            kernel = "the kernel counted no out-of-memory kill meanwhile, " if counted else ""
            return Finding(
                False,
                f"the worker was killed (SIGKILL) from outside during '{command}', not for its memory: {kernel}it had "
                f"{resident} resident and {size(free[0])} were still free. Look for what ends processes here "
                "(a batch system, a container's stop, a person) and run the case again.",
                None,
            )
        if counted:
            cause = "the kernel counted no out-of-memory kill but memory was short: a service such as systemd-oomd or earlyoom"
        else:
            cause = "usually the kernel out of memory; its counts cannot be read here"
        return Finding(
            True,
            f"the worker was killed (SIGKILL) during '{command}', probably for its memory ({cause}): {had}. "
            f"{_ADVICE} {_MORE['machine']}.",
            own,
        )

    def of_allocation(self, message: str, *, alive: bool) -> Finding:
        """What is known beside the runtime's own words that it could not allocate."""
        if any(word in message.lower() for word in _GPU_WORDS):
            held = self._last("gpu_bytes")
            told = "" if held is None else f" Needs more GPU memory than the {size(held[1])} it held after '{held[0]}'."
            return Finding(True, f"{message}{told} {_ADVICE} a GPU with more memory.", None)
        peak = self._peak_now() if alive else None
        known = self._last("peak_rss_bytes")
        if peak is None and known is not None:
            peak = known[1]
        had = "" if peak is None else f"it had {size(peak)} resident when an allocation failed"
        if self.limit_bytes is not None:
            text = f"Needs more than the {size(self.limit_bytes)} it may allocate (--memory-limit)"
            return Finding(
                True,
                f"{message} {text}{': ' if had else ''}{had}. {_ADVICE} a higher --memory-limit.",
                self.limit_bytes,
            )
        if peak is None:
            return Finding(True, f"{message} {_ADVICE} {_MORE['machine']}.", None)
        return Finding(True, f"{message} Needs more than {size(peak)}: {had}. {_ADVICE} {_MORE['machine']}.", peak)

    def _resident(self, reaped: int | None) -> tuple[int | None, int | None]:
        """The highest resident set that is surely the worker's own, and one that it surely did not exceed.

        A child starts as a copy of its parent, whose peak the kernel takes over into the child's: below it, nothing is known.
        """
        told = self._last("peak_rss_bytes")
        own = None if told is None else told[1]
        if reaped is not None and reaped > self._inherited_bytes:
            own = max(reaped, own or 0)
        return own, max((value for value in (reaped, own) if value is not None), default=None)

    def _last(self, key: str) -> tuple[str, int] | None:
        """The highest value of the phases told so far, and its phase."""
        known: list[tuple[str, int]] = []
        for phase in PHASES:
            value = self._phases.get(phase, {}).get(key)
            if isinstance(value, int):
                known.append((phase, value))
        return max(known, key=lambda item: item[1], default=None)

    def _killer(self) -> str | None:
        """Who killed for memory meanwhile, by the kernel's counts; None when nobody is known to have."""
        for folder, (version, before) in self._groups.items():
            now = group_kills(folder, version)
            if before is not None and now is not None and now > before:
                limit = group_limit(folder, version)
                return "its control group" + ("" if limit is None else f", whose limit is {size(limit)}")
        now = machine_kills(self.root) if self.local else None
        if self._machine_kills is not None and now is not None and now > self._machine_kills:
            return "the kernel, as the machine was out of memory"
        return None

    def _limited(self) -> str:
        limits = (group_limit(folder, version) for folder, (version, _) in self._groups.items())
        return "group" if any(limit is not None for limit in limits) else "machine"

    def _free(self, had: int | None) -> tuple[int, bool] | None:
        """What was free while the worker had `had` bytes, and whether that is plenty; None when it cannot be told."""
        if not self.local or had is None:
            return None
        rooms = [_machine_room(self.root)]
        rooms += [_group_room(folder, version) for folder, (version, _) in self._groups.items()]
        # It has died since, and its memory is free again.
        left = [(free - had, total) for free, total in (room for room in rooms if room is not None)]
        if not left or rooms[0] is None:
            return None
        return max(0, min(free for free, _ in left)), all(free >= ENOUGH_SHARE * total for free, total in left)

    def _peak_now(self) -> int | None:
        """`VmHWM` of the worker, which still lives."""
        if not self.local or self.pid is None:
            return None
        try:
            return status_fields(self.root / "proc" / str(self.pid) / "status").get("VmHWM")
        except (OSError, ValueError, IndexError):
            return None


def speaks_of_memory(log: str | None) -> bool:
    """Whether what a process wrote last says that it could not allocate."""
    return any(word in (log or "").lower() for word in _LOG_WORDS)


def peak_of(usage: resource.struct_rusage) -> int:
    """`ru_maxrss` in bytes: macOS counts bytes, Linux and the BSDs kibibytes (getrusage(2) of each)."""
    return int(usage.ru_maxrss) * (1 if sys.platform == "darwin" else 1024)


def machine_kills(root: Path = Path("/")) -> int | None:
    """Processes that the kernel has killed for memory since boot, in control groups and machine-wide (Linux 4.13 on)."""
    return counter(root / "proc/vmstat", "oom_kill")


def group_kills(folder: Path, version: int) -> int | None:
    """Processes of a control group that the kernel has killed for memory."""
    return counter(folder / ("memory.oom_control" if version == 1 else "memory.events"), "oom_kill")


def _group_room(folder: Path, version: int) -> tuple[int, int] | None:
    limit = group_limit(folder, version)
    used = small_text(folder / ("memory.usage_in_bytes" if version == 1 else "memory.current"))
    if limit is None or used is None or not used.isdecimal():
        return None
    return limit - int(used), limit


def _machine_room(root: Path) -> tuple[int, int] | None:
    free = counter(root / "proc/meminfo", "MemAvailable:")
    total = counter(root / "proc/meminfo", "MemTotal:")
    return None if free is None or total is None else (free * 1024, total * 1024)
