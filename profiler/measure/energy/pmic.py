"""Raspberry Pi 5: the power management chip, through the firmware's `vcgencmd pmic_read_adc`.

It prints a current and a voltage for most internal rails. Their products add up to what the chip delivers, not to what the
board draws: USB, fans and other 5 V consumers and the conversion loss are outside. Earlier boards have no current sensors.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path

from profiler.measure.energy.base import Absent, CommandError, MeterInfo, MeterLost, Run, read_text, run_command

NAME = "pmic"
COMMAND = ("vcgencmd", "pmic_read_adc")
_LINE = re.compile(r"(\S+)_([AV])\s+(?:current|volt)\(\d+\)=(\S+?)[AV](?=\s|$)")
# One call takes about 48 ms: 21 a second were reached.
_UPDATE_S = 0.048
_MODELS = re.compile(r"Raspberry Pi (5|500|Compute Module 5)\b")


def parse(text: str) -> tuple[dict[str, float], tuple[str, ...]]:
    """Watts by rail that has both a current and a voltage, and the rails whose reading is no number (some firmware: `nan`)."""
    amperes: dict[str, float] = {}
    volts: dict[str, float] = {}
    for rail, kind, number in _LINE.findall(text):
        try:
            value = float(number)
        except ValueError:
            value = math.nan
        (amperes if kind == "A" else volts)[rail] = value
    watts = {rail: amperes[rail] * volts[rail] for rail in amperes if rail in volts}
    unknown = tuple(rail for rail, value in watts.items() if not math.isfinite(value))
    return {rail: value for rail, value in watts.items() if rail not in unknown}, unknown


def find(root: Path = Path("/"), *, run: Run = run_command) -> PmicMeter | Absent:
    """The meter of this Raspberry Pi, or why there is none."""
    try:
        model = read_text(root / "proc/device-tree/model")
    except OSError:
        model = ""
    if "Raspberry Pi" not in model:
        return Absent(NAME, "not a Raspberry Pi 5")
    if not _MODELS.search(model):
        return Absent(NAME, f"{model} has no current sensors (the Raspberry Pi 5 is the first): use an external meter")
    try:
        watts, unknown = parse(run(COMMAND))
    except FileNotFoundError:
        return Absent(NAME, "the command vcgencmd is not installed here: sudo apt install raspi-utils")
    except (OSError, CommandError) as error:
        return Absent(NAME, f"{error}. Users outside the group 'video' may not ask: sudo usermod -aG video $USER")
    if not watts:
        return Absent(NAME, f"'{' '.join(COMMAND)}' printed no rail with a current and a voltage: update the firmware")
    return PmicMeter(tuple(watts), unknown, run)


class PmicMeter:
    """Asks the firmware for all rails at once."""

    def __init__(self, rails: tuple[str, ...], unknown: tuple[str, ...], run: Run) -> None:
        """Made by `find`."""
        self._run = run
        notes = [
            "excludes 5 V peripherals and conversion loss: the board draws more than this",
            "each reading starts a process on the board, in idle windows too",
        ]
        if unknown:
            notes.append(f"left out, the firmware gives no number: {', '.join(unknown)}")
        self.info = MeterInfo(
            name=NAME,
            kind="power",
            rails=rails,
            total_rails=rails,
            coverage="internal rails of the Raspberry Pi's power chip",
            update_s=_UPDATE_S,
            notes=tuple(notes),
        )

    def read(self) -> Mapping[str, float]:
        """Watts by rail. Raises MeterLost when the command fails or a rail is missing: a sum without it would be too small."""
        try:
            watts, _ = parse(self._run(COMMAND))
            return {rail: watts[rail] for rail in self.info.rails}
        except KeyError as error:
            raise MeterLost(f"the power chip gave no number for {error.args[0]}") from None
        except (OSError, CommandError) as error:
            raise MeterLost(f"the power chip stopped answering: {error}") from None
