"""Memory of this process by phase: what the imports, loading the model, the first inference and running it each needed.

Read from the kernel's own accounting, between timed stretches only. The watermark of the resident set is set back before each
phase, so that a peak belongs to the phase it happened in; where that is not permitted, the notes say that a peak is of
everything so far. Pages of a mapped file (weights that a runtime does not copy) are told apart from anonymous ones.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from profiler.measure import gpu_memory

PHASES = ("import", "load", "first", "running")
"""After the imports; loading the model or building its engine; the first inference; everything after it."""


@dataclass(frozen=True)
class Memory:
    """Resident memory now and its peak since the watermark was last set back, bytes; None where the system does not tell."""

    rss_bytes: int | None
    peak_rss_bytes: int | None
    rss_anon_bytes: int | None = None
    """Private memory: heap, stacks, copies of weights."""
    rss_file_bytes: int | None = None
    """Resident pages of mapped files, weights and libraries alike: the kernel can drop and read them again."""
    rss_shmem_bytes: int | None = None


@dataclass(frozen=True)
class PhaseMemory:
    """Memory of one phase, bytes; None where it could not be read (`Meter.notes` says why). Peaks are of the phase, the rest is
    read at its end.
    """

    peak_rss_bytes: int | None
    rss_anon_bytes: int | None
    rss_file_bytes: int | None
    rss_shmem_bytes: int | None
    pss_bytes: int | None
    """Proportional set size of the process and its children: a page that n processes share counts as 1/n in each."""
    cgroup_peak_bytes: int | None
    """Highest use of the whole control group, page cache included: secondary."""
    gpu_bytes: int | None
    """Device memory held by this process."""
    gpu_device_bytes: int | None
    """What all devices together hold more than before the phases began, whoever holds it."""


def read(root: Path = Path("/")) -> Memory:
    """`/proc/self/status` on Linux; elsewhere psutil and `ru_maxrss`."""
    try:
        kept = ("VmRSS", "VmHWM", "RssAnon", "RssFile", "RssShmem")
        fields = {key: value for key, value in status_fields(root / "proc/self/status").items() if key in kept}
    except (OSError, ValueError, IndexError):
        return _portable()
    return Memory(
        fields.get("VmRSS"), fields.get("VmHWM"), fields.get("RssAnon"), fields.get("RssFile"), fields.get("RssShmem")
    )


def status_fields(path: Path) -> dict[str, int]:
    """The sizes in a `/proc/<pid>/status`, bytes by name. Raises OSError, ValueError or IndexError when it cannot be read."""
    fields = {}
    for line in path.read_text().splitlines():
        key, _, value = line.partition(":")
        if key.startswith(("Vm", "Rss")):
            fields[key] = int(value.split()[0]) * 1024
    return fields


def _portable() -> Memory:
    try:
        import resource

        import psutil
    except ImportError:
        return Memory(None, None)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # ru_maxrss is bytes on macOS and kibibytes on Linux and the BSDs (getrusage(2) of each).
    return Memory(psutil.Process().memory_info().rss, peak if sys.platform == "darwin" else peak * 1024)


@dataclass
class Meter:
    """Follows one process through its phases: `begin()` before each, `end(phase)` after it."""

    root: Path = Path("/")
    gpu: Callable[[], gpu_memory.GpuReader] | None = None
    """Makes the reader when a case first turns out to run on an NVIDIA device; NVML's by default."""
    phases: dict[str, PhaseMemory] = field(default_factory=dict)
    peak_rss_bytes: int | None = None
    """Highest resident set seen over all phases."""
    _notes: dict[str, None] = field(default_factory=dict)
    _group: _GroupPeak | None = None
    _reader: gpu_memory.GpuReader | None = None
    _device_base: int | None = None

    @property
    def notes(self) -> tuple[str, ...]:
        """What could not be read or does not mean what its name says, each once."""
        return tuple(self._notes)

    def watch_gpu(self, backend: str, device: str | None) -> None:
        """Also read device memory from now on, when that backend and device are NVIDIA's; a note for other accelerators."""
        kind = gpu_memory.kind_of(backend, device)
        if kind == "nvidia" and self._reader is None:
            self._reader = self.gpu() if self.gpu is not None else gpu_memory.reader(self.root)
            reading = self._reader.read(os.getpid())
            self._device_base = reading.device_used_bytes
        elif kind == "other":
            self._note(f"the memory of device '{device}' is not read: its driver has no interface that edgeprof knows")

    def begin(self) -> None:
        """Set the watermarks back. Costs some 20 µs."""
        self._fold(read(self.root).peak_rss_bytes)
        try:
            # 5 resets the peak resident set alone (proc(5)); pages and their reference bits stay as they are.
            (self.root / "proc/self/clear_refs").write_text("5")
        except OSError as error:
            self._note(
                f"peaks are of everything so far, not of the phase alone: the watermark cannot be set back ({_words(error)})"
            )
        if self._group is None:
            self._group = _GroupPeak(self.root)
        self._group.reset()

    def end(self, phase: str) -> PhaseMemory:
        """Read what the phase needed, and keep it in `phases`. Tenths of a millisecond, more for large processes."""
        now = read(self.root)
        self._fold(now.peak_rss_bytes)
        if now.rss_anon_bytes is None:
            self._note("anonymous and file-mapped memory are not told apart here (no RssAnon in /proc/self/status)")
        pss, why = proportional_bytes(self.root)
        if why is not None:
            self._note(why)
        group = self._group if self._group is not None else _GroupPeak(self.root)
        group_peak = group.read()
        for note in group.notes:
            self._note(note)
        gpu_bytes, gpu_device_bytes = self._read_gpu()
        self.phases[phase] = PhaseMemory(
            now.peak_rss_bytes, now.rss_anon_bytes, now.rss_file_bytes, now.rss_shmem_bytes, pss, group_peak,
            gpu_bytes, gpu_device_bytes,
        )  # fmt: skip
        return self.phases[phase]

    def _read_gpu(self) -> tuple[int | None, int | None]:
        if self._reader is None:
            return None, None
        reading = self._reader.read(os.getpid())
        for note in reading.notes:
            self._note(note)
        delta = None
        if reading.device_used_bytes is not None and self._device_base is not None:
            delta = reading.device_used_bytes - self._device_base
        return reading.process_bytes, delta

    def _fold(self, peak: int | None) -> None:
        if peak is not None:
            self.peak_rss_bytes = max(peak, self.peak_rss_bytes or 0)

    def _note(self, text: str) -> None:
        self._notes[text] = None


def proportional_bytes(root: Path = Path("/"), pid: int | None = None) -> tuple[int | None, str | None]:
    """Proportional set size of a process (None: this one) and its descendants, bytes, or None with the reason.

    A child that ends while it is being read is left out; the process itself must be readable.
    """
    own = _pss(root / "proc" / ("self" if pid is None else str(pid)))
    if own is None:
        return None, "shared pages are not divided up (PSS): /proc/self/smaps_rollup cannot be read here"
    children = [_pss(folder) for folder in _descendants(root, root / "proc" / ("self" if pid is None else str(pid)))]
    return own + sum(size for size in children if size is not None), None


def _pss(process: Path) -> int | None:
    try:
        for line in (process / "smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
    except (OSError, ValueError, IndexError):
        pass
    return None


def _descendants(root: Path, process: Path) -> Iterator[Path]:
    """Folders in `/proc` of the children of every thread, and of theirs."""
    try:
        tasks = list((process / "task").iterdir())
    except OSError:
        return
    for task in tasks:
        with contextlib.suppress(OSError):
            for child in (task / "children").read_text().split():
                yield root / "proc" / child
                yield from _descendants(root, root / "proc" / child)


def group_folder(root: Path = Path("/"), pid: int | None = None) -> tuple[Path, int] | None:
    """The control group folder that accounts a process's memory, and the version (1 or 2) of its files; None without one.

    The kernel gives the path as the host sees it. A container sees its own group at the mount's root instead, so that is
    looked at when the path does not exist. The real root of version 1, which holds the whole machine, is no group.
    """
    try:
        lines = (root / "proc" / ("self" if pid is None else str(pid)) / "cgroup").read_text().splitlines()
    except OSError:
        return None
    paths: dict[str, str] = {}
    for line in lines:
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if "memory" in controllers.split(","):
            paths["1"] = path
        elif number == "0" and not controllers:
            paths["2"] = path
    mounts = [(root / "sys/fs/cgroup/memory", paths["1"], 1)] if "1" in paths else []
    if "2" in paths:
        mounts += [(root / "sys/fs/cgroup", paths["2"], 2), (root / "sys/fs/cgroup/unified", paths["2"], 2)]
    for mount, path, version in mounts:
        usage = "memory.usage_in_bytes" if version == 1 else "memory.current"
        for folder in (mount / path.lstrip("/"), mount):
            # `release_agent` exists in the real root of a version 1 hierarchy only.
            if (folder / usage).is_file() and not (version == 1 and (folder / "release_agent").exists()):
                return folder, version
    return None


def group_limit(folder: Path, version: int) -> int | None:
    """The lowest memory limit on a control group and those above it, bytes; None when nothing limits it."""
    if version == 1:
        limit = counter(folder / "memory.stat", "hierarchical_memory_limit")
        # Without a limit it is the largest number of pages that fit into 64 bits.
        return limit if limit is not None and limit < 1 << 60 else None
    limits = []
    while (folder / "memory.max").is_file():
        text = small_text(folder / "memory.max")
        limits += [int(text)] if text is not None and text.isdecimal() else []
        folder = folder.parent
    return min(limits, default=None)


def own_limit(root: Path = Path("/")) -> int | None:
    """What a container or service lets this process use, bytes; None when nothing limits it."""
    found = group_folder(root)
    return None if found is None else group_limit(*found)


def counter(path: Path, key: str) -> int | None:
    """The number behind `key` in a file of lines `key number`; None when there is none."""
    for line in (small_text(path) or "").splitlines():
        name, _, rest = line.partition(" ")
        value = rest.split()
        if name == key and value and value[0].isdecimal():
            return int(value[0])
    return None


def small_text(path: Path) -> str | None:
    """What stands in a file of the kernel's; None when it cannot be read."""
    try:
        return path.read_text().strip()
    except (OSError, ValueError):
        return None


class _GroupPeak:
    """The highest memory use of this process's control group.

    Version 2 (from Linux 6.12) lets a reader set back the watermark for its own file descriptor, so that one is kept open. In
    version 1 setting it back would take it from everybody else who reads it, so it is left alone.
    """

    def __init__(self, root: Path) -> None:
        self.notes: list[str] = []
        self._path: Path | None = None
        self._file: IO[bytes] | None = None
        found = group_folder(root)
        if found is None:
            self.notes.append("the control group's peak is not known: this process is in no control group for memory")
            return
        folder, version = found
        self._path = folder / ("memory.max_usage_in_bytes" if version == 1 else "memory.peak")
        if version == 2:
            with contextlib.suppress(OSError):
                self._file = self._path.open("r+b", buffering=0)
        if not self._path.is_file():
            self.notes.append("the control group's peak is not known: memory.peak came with Linux 5.19")
            self._path = None

    def reset(self) -> None:
        if self._path is None:
            return
        if self._file is not None:
            try:
                self._file.write(b"reset")
                return
            except OSError:
                self._file.close()
                self._file = None
        self.notes[:] = ["the control group's peak is of everything since the group was made, and includes page cache"]

    def read(self) -> int | None:
        if self._path is None:
            return None
        try:
            if self._file is not None:
                self._file.seek(0)
                return int(self._file.read(64))
            return int(self._path.read_text())
        except (OSError, ValueError) as error:
            self.notes[:] = [f"the control group's peak cannot be read: {_words(error)}"]
            return None


def _words(error: Exception) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__
