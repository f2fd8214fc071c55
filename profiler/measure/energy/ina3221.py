"""Jetson boards: the INA3221 power monitors on the module's supply rails.

Kernel documentation: hwmon/ina3221 (`in{n}_label`, `in{n}_input` in mV, `curr{n}_input` in mA). JetPack 4 has an older driver
with `rail_name_{n}` and `in_power{n}_input` in mW. hwmon numbers change between boots, so rails are known by their labels.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from profiler.measure.energy.base import Absent, MeterInfo, MeterLost, read_text

NAME = "ina3221"
_DRIVERS = ("sys/bus/i2c/drivers/ina3221", "sys/bus/i2c/drivers/ina3221x")
_CHANNELS = (1, 2, 3)
_UPDATE_S = 0.01
TOTALS = ("VDD_IN", "POM_5V_IN")
"""Rails that feed the whole module; the others lie inside them."""
_INSIDE: Mapping[str, str] = {"VDDQ_VDD2_1V8AO": "VIN_SYS_5V0"}
"""AGX Orin: memory power is taken from the 5 V input (the monitor shows 5 V on it), where it is counted already."""


@dataclass(frozen=True)
class _Rail:
    name: str
    factors: tuple[Path, ...]
    """mV and mA, or mW alone."""
    scale: float


def find(root: Path = Path("/")) -> Ina3221Meter | Absent:
    """The meter of this Jetson, or why there is none."""
    devices = [path for driver in _DRIVERS for path in _folders(root / driver)]
    if not devices:
        return Absent(
            NAME, f"no INA3221 power monitor under /{_DRIVERS[0]} or {Path(_DRIVERS[1]).name}: Jetsons have one"
        )
    rails: list[_Rail] = []
    closed = 0
    interval_s = _UPDATE_S
    for device in devices:
        for folder in [
            *_folders(device / "hwmon"),
            *(path for path in _folders(device) if path.name.startswith("iio")),
        ]:
            interval_s = max(interval_s, _interval_s(folder))
            for rail in _rails(folder):
                try:
                    _watts(rail)
                except PermissionError:
                    closed += 1
                except (OSError, ValueError):
                    continue
                else:
                    taken = {other.name for other in rails}
                    name = rail.name if rail.name not in taken else f"{rail.name} ({device.name})"
                    rails.append(_Rail(name, rail.factors, rail.scale))
    if not rails:
        why = "may not be read by this user: run as root" if closed else "shows no labelled rail that can be read"
        return Absent(NAME, f"the INA3221 power monitor of this board {why}")
    return Ina3221Meter(rails, interval_s)


def _folders(path: Path) -> list[Path]:
    try:
        return sorted(entry for entry in path.iterdir() if entry.is_dir())
    except OSError:
        return []


def _interval_s(folder: Path) -> float:
    try:
        return float(read_text(folder / "update_interval")) / 1e3
    except (OSError, ValueError):
        return 0.0


def _rails(folder: Path) -> Iterator[_Rail]:
    for channel in _CHANNELS:
        hwmon = (folder / f"in{channel}_input", folder / f"curr{channel}_input")
        iio = (folder / f"in_power{channel - 1}_input",)
        for label, factors, scale in (
            (folder / f"in{channel}_label", hwmon, 1e-6),
            (folder / f"rail_name_{channel - 1}", iio, 1e-3),
        ):
            try:
                name = read_text(label)
            except OSError:
                continue
            # "NC": the channel is not connected.
            if name and name != "NC":
                yield _Rail(name, factors, scale)


def _watts(rail: _Rail) -> float:
    value = rail.scale
    for path in rail.factors:
        value *= float(read_text(path))
    return value


class Ina3221Meter:
    """Reads all labelled rails: about half a millisecond per register over I2C."""

    def __init__(self, rails: Sequence[_Rail], interval_s: float) -> None:
        """Made by `find`."""
        self._rails = tuple(rails)
        names = tuple(rail.name for rail in rails)
        notes = ["a monitor of the board, not a calibrated meter: shunt tolerance and conversion loss stay in"]
        total = tuple(name for name in names if name in TOTALS)[:1]
        coverage = "whole module, carrier board excluded"
        if not total:
            total = tuple(name for name in names if _INSIDE.get(name) not in names)
            coverage = "sum of the module's monitored rails, carrier board excluded"
            left_out = [name for name in names if name not in total]
            if left_out:
                notes.append(f"{', '.join(left_out)} taken as part of {_INSIDE[left_out[0]]} and not added")
        self.info = MeterInfo(
            name=NAME,
            kind="power",
            rails=names,
            total_rails=total,
            coverage=coverage,
            update_s=interval_s,
            notes=tuple(notes),
        )

    def read(self) -> Mapping[str, float]:
        """Watts by rail. Raises MeterLost."""
        try:
            return {rail.name: _watts(rail) for rail in self._rails}
        except (OSError, ValueError) as error:
            raise MeterLost(f"the INA3221 power monitor stopped answering: {error}") from None
