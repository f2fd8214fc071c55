"""Control groups of Linux for one process: made for its limits, entered, and taken away when it has ended.

Both versions are known, and each controller is looked for in both: machines with version 1, with 2, and with some of each exist.
In version 1 the group lies below the process's own. In version 2 a group that holds processes cannot have limited children,
except at the root, so the group is made beside the process's own, and takes over its limits where they are lower.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from profiler.measure.afterwards import run_afterwards
from profiler.measure.memory import small_text

PREFIX = "edgeprof-envelope-"
PERIOD_US = 100_000
"""Of a quota: what containers use."""
_CONTROLLERS = ("memory", "cpu", "cpuset")
# The parent reads the group's counters after a death; a group that something still runs in cannot be removed.
_REMOVE = (
    'sleep 2; for g in "$@"; do n=0; '
    'until rmdir "$g" || [ ! -d "$g" ] || [ "$n" -ge 30 ]; do n=$((n+1)); sleep 1; done; done'
)


class NoControlGroup(OSError):  # noqa: N818 (an answer: whoever asked has another way)
    """No group can be made for a controller; the text says why."""


@dataclass(frozen=True)
class _Home:
    """Where a group for a controller is made."""

    folder: Path
    version: int
    limits: Path | None
    """Version 2: the process's own group, whose limits would otherwise be left."""


@dataclass
class Groups:
    """The groups of one process. Set limits with `memory`, `quota` and `cpus`, then `enter` all at once."""

    root: Path = Path("/")
    pid: int = field(default_factory=os.getpid)
    mkdir: Callable[[Path], None] = os.mkdir
    rmdir: Callable[[Path], None] = os.rmdir
    afterwards: Callable[..., object] = run_afterwards
    made: list[Path] = field(default_factory=list)

    def memory(self, limit_bytes: int) -> str:
        """Limit memory and swap together. Returns what does it; raises NoControlGroup."""
        group, version = self._made("memory")
        if version == 1:
            self._write(group, "memory.limit_in_bytes", str(limit_bytes))
            # Absent where the kernel does not count swap.
            if (group / "memory.memsw.limit_in_bytes").exists():
                self._write(group, "memory.memsw.limit_in_bytes", str(limit_bytes))
            return "cgroup v1"
        own = (self._left("memory", "memory.max") or "").strip()
        self._write(group, "memory.max", str(min(limit_bytes, int(own)) if own.isdecimal() else limit_bytes))
        if (group / "memory.swap.max").exists():
            self._write(group, "memory.swap.max", "0")
        return "cgroup v2"

    def quota(self, cpus: float) -> str:
        """Limit processor time to so many processors. Returns what does it; raises NoControlGroup."""
        group, version = self._made("cpu")
        quota_us = max(1000, round(PERIOD_US * cpus))
        if version == 1:
            self._write(group, "cpu.cfs_period_us", str(PERIOD_US))
            self._write(group, "cpu.cfs_quota_us", str(quota_us))
            return "cgroup v1 cpu quota"
        own, _, period = (self._left("cpu", "cpu.max") or "").partition(" ")
        if own.isdecimal() and period.isdecimal():
            quota_us = min(quota_us, int(own) * PERIOD_US // int(period))
        self._write(group, "cpu.max", f"{quota_us} {PERIOD_US}")
        return "cgroup v2 cpu quota"

    def cpus(self, numbers: tuple[int, ...]) -> str:
        """Only these processors, also for threads that set their own mask. Returns what does it; raises NoControlGroup."""
        group, version = self._made("cpuset")
        if version == 1:
            # Both are empty in a new group, and without them nothing may enter it.
            self._write(group, "cpuset.mems", small_text(group.parent / "cpuset.mems") or "0")
        self._write(group, "cpuset.cpus", ",".join(map(str, numbers)))
        return f"cgroup v{version} cpuset"

    def enter(self) -> None:
        """Move the process, with all its threads, into its groups, and have them removed after its end. Raises NoControlGroup."""
        if not self.made:
            return
        try:
            # Before entering: the shell must not be inside what it removes.
            self.afterwards(_REMOVE, *map(str, self.made))
        except OSError as error:
            self._give_up(f"nothing could be left behind to remove the group ({error})")
        for group in self.made:
            self._write(group, "cgroup.procs", str(self.pid))

    def _made(self, controller: str) -> tuple[Path, int]:
        home = self._home(controller)
        group = home.folder / f"{PREFIX}{self.pid}"
        if group in self.made:
            return group, home.version
        self.clean(home.folder)
        try:
            with suppress(FileExistsError):
                self.mkdir(group)
        except OSError as error:
            raise NoControlGroup(f"{home.folder} is not ours to write ({error.strerror})") from None
        self.made.append(group)
        return group, home.version

    def clean(self, folder: Path) -> None:
        """Remove groups whose process is gone: a killed machine or shell could not."""
        for stale in folder.glob(f"{PREFIX}*"):
            pid = stale.name[len(PREFIX) :]
            if pid == str(self.pid) or not (self.root / "proc" / pid).exists():
                with suppress(OSError):
                    self.rmdir(stale)

    def _home(self, controller: str) -> _Home:
        paths = self._paths()
        if controller in paths:
            names, path = paths[controller]
            for mount in dict.fromkeys((names, controller)):
                base = self.root / "sys/fs/cgroup" / mount
                # In a container the path may be the host's: then the mount is our group.
                for folder in (base / path.lstrip("/"), base):
                    if (folder / "cgroup.procs").is_file():
                        return _Home(folder, 1, None)
        if "" in paths:
            for mount in ("sys/fs/cgroup", "sys/fs/cgroup/unified"):
                found = self._unified(controller, self.root / mount, paths[""][1])
                if found is not None:
                    return found
        raise NoControlGroup(f"there is no control group for {controller} here")

    def _unified(self, controller: str, mount: Path, path: str) -> _Home | None:
        """Version 2: the own group where it is the root, else the one above, which must hand the controller down."""
        own = mount / path.lstrip("/")
        own = own if (own / "cgroup.procs").is_file() else mount
        if controller not in (small_text(own / "cgroup.controllers") or "").split():
            return None
        # Only the real root has no `cgroup.type`.
        parent = own if not (own / "cgroup.type").exists() else own.parent
        control = parent / "cgroup.subtree_control"
        if not control.is_file():
            return None
        if controller not in (small_text(control) or "").split():
            # Left so afterwards: taking it back would take the limits of whoever else got one meanwhile.
            self._write(parent, "cgroup.subtree_control", f"+{controller}")
        return _Home(parent, 2, own)

    def _left(self, controller: str, name: str) -> str | None:
        """Version 2: a limit of the process's own group, which it leaves for the new one."""
        limits = self._home(controller).limits
        return None if limits is None else small_text(limits / name)

    def _paths(self) -> Mapping[str, tuple[str, str]]:
        """By controller (version 2: ''): the name of its hierarchy, and the path of the process's group."""
        paths: dict[str, tuple[str, str]] = {}
        for line in (small_text(self.root / "proc" / str(self.pid) / "cgroup") or "").splitlines():
            _, _, rest = line.partition(":")
            names, _, path = rest.partition(":")
            for name in names.split(","):
                if name in ("", *_CONTROLLERS):
                    paths[name] = (names, path)
        return paths

    def _write(self, folder: Path, name: str, text: str) -> None:
        try:
            # Never makes a file: where the kernel has none, the absence is the answer.
            handle = os.open(folder / name, os.O_WRONLY)
            try:
                os.write(handle, text.encode())
            finally:
                os.close(handle)
        except OSError as error:
            raise NoControlGroup(f"{folder / name} takes no '{text}' ({error.strerror})") from None

    def _give_up(self, reason: str) -> None:
        for group in self.made:
            with suppress(OSError):
                self.rmdir(group)
        self.made.clear()
        raise NoControlGroup(reason)
