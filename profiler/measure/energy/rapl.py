"""RAPL: the energy counters of x86 processors, in Linux's powercap folders.

Kernel documentation: power/powercap. Since CVE-2020-8694 the counters are readable by root only.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from profiler.measure.energy.base import Absent, MeterInfo, MeterLost, read_text

NAME = "rapl"
_FOLDER = "sys/class/powercap"
# Not intel-rapl-mmio:0, which shows the same package a second time.
_ZONE = re.compile(r"intel-rapl:(\d+)(?::(\d+))?")
_UPDATE_S = 0.001
_FIX = "allow it with: sudo chmod o+r /sys/class/powercap/intel-rapl:*/energy_uj (until the next boot), or run as root"


@dataclass(frozen=True)
class _Zone:
    rail: str
    path: Path
    range_uj: int | None
    """The counter starts again from zero after this value."""
    is_total: bool


def find(root: Path = Path("/")) -> RaplMeter | Absent:
    """The meter of this machine's processors, or why there is none."""
    folder = root / _FOLDER
    if not folder.is_dir():
        return Absent(NAME, _no_folder(root))
    zones, closed = _zones(folder)
    if closed and not any(zone.is_total and zone.rail.startswith("package") for zone in zones):
        return Absent(NAME, f"{closed[0]} may not be read by this user (root only since CVE-2020-8694): {_FIX}")
    if not any(zone.is_total for zone in zones):
        return Absent(
            NAME, f"no processor package under /{_FOLDER}: the kernel module intel_rapl_msr may not be loaded"
        )
    notes = [
        "an upper bound on a shared machine: the whole socket with all that runs on it",
        "RAPL counts energy inside the socket: no board, fans or power supply; SGX filtering can distort it",
    ]
    if closed:
        notes.append(f"left out, not readable by this user: {', '.join(str(path) for path in closed)}")
    return RaplMeter(zones, tuple(notes))


def _no_folder(root: Path) -> str:
    where = f"no /{_FOLDER} here"
    try:
        cpuinfo = read_text(root / "proc/cpuinfo")
    except OSError:
        cpuinfo = ""
    if re.search(r"^flags\s*:.*\bhypervisor\b", cpuinfo, re.MULTILINE):
        return f"{where}: virtual machines hide it; measure on the host, or with an external meter"
    if cpuinfo and not re.search(r"^flags\s*:", cpuinfo, re.MULTILINE):
        return f"{where}: only x86 processors have these counters"
    return f"{where}: virtual machines hide it, and some kernels are built without CONFIG_POWERCAP"


def _zones(folder: Path) -> tuple[list[_Zone], list[Path]]:
    """All zones that can be read, and the counters of those that this user may not read."""
    found: list[tuple[int, int, str, Path]] = []
    packages: dict[int, str] = {}
    for path in sorted(folder.iterdir()):
        match = _ZONE.fullmatch(path.name)
        if match is None:
            continue
        try:
            name = read_text(path / "name")
        except OSError:
            continue
        top, sub = int(match[1]), -1 if match[2] is None else int(match[2])
        if sub < 0:
            packages[top] = name
        found.append((top, sub, name, path))
    zones: list[_Zone] = []
    closed: list[Path] = []
    for top, sub, name, path in sorted(found):
        parent = packages.get(top, f"zone-{top}")
        counter = path / "energy_uj"
        try:
            int(read_text(counter))
        except PermissionError:
            closed.append(Path("/") / counter.relative_to(folder.parents[2]))
            continue
        except (OSError, ValueError):
            continue
        in_package = parent.startswith("package")
        # psys overlaps the packages, core and uncore lie inside them; DRAM is beside them.
        is_total = in_package and (sub < 0 or name == "dram")
        zones.append(_Zone(name if sub < 0 else f"{parent}/{name}", counter, _range_uj(path), is_total))
    return zones, closed


def _range_uj(zone: Path) -> int | None:
    try:
        return int(read_text(zone / "max_energy_range_uj"))
    except (OSError, ValueError):
        return None


class RaplMeter:
    """Reads every zone; each counter is followed over its wrap, which comes after minutes: windows have to be shorter."""

    def __init__(self, zones: Sequence[_Zone], notes: tuple[str, ...]) -> None:
        """Made by `find`."""
        self._zones = tuple(zones)
        self._last: dict[str, int] = {}
        self._passed_uj: dict[str, int] = {}
        total = tuple(zone.rail for zone in zones if zone.is_total)
        memory = any(rail.endswith("/dram") for rail in total)
        packages = sum("/" not in rail for rail in total)
        self.info = MeterInfo(
            name=NAME,
            kind="counter",
            rails=tuple(zone.rail for zone in zones),
            total_rails=total,
            coverage=f"{packages} processor package{'s' if packages > 1 else ''}"
            + (" and DRAM" if memory else ", without DRAM"),
            update_s=_UPDATE_S,
            powers=("cpu", "intel"),
            notes=notes,
        )

    def read(self) -> Mapping[str, float]:
        """Joules of each zone since the first reading. Raises MeterLost when a counter is gone or ran backwards."""
        joules: dict[str, float] = {}
        for zone in self._zones:
            try:
                now = int(read_text(zone.path))
            except (OSError, ValueError) as error:
                raise MeterLost(f"RAPL zone {zone.rail} stopped answering: {error}") from None
            step = now - self._last.get(zone.rail, now)
            if step < 0:
                if zone.range_uj is None or now > zone.range_uj:
                    raise MeterLost(f"the counter of RAPL zone {zone.rail} ran backwards, and its range is not known")
                # The kernel counts to max_energy_range_uj and from there to 0.
                step += zone.range_uj
            self._last[zone.rail] = now
            self._passed_uj[zone.rail] = self._passed_uj.get(zone.rail, 0) + step
            joules[zone.rail] = self._passed_uj[zone.rail] / 1e6
        return joules
