"""Joules per inference, from windows in which the same inferences repeat and windows in which nothing runs.

A window is the unit: readings inside one follow each other and say nothing new about the next. Each window comes from a
process of its own and begins at a random phase of the meter, so that the spread over windows holds what varies between
processes and between phases. What every window shares (a sensor's calibration, what its rails leave out) no number of
windows shows; it is named in the note.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtrit

from profiler import units
from profiler.records import IDLE, EnergyRecord, Estimate, FailureRecord, Figure, NotMeasured

__all__ = ["MIN_WINDOWS", "energy_figure", "idle_of"]

MIN_WINDOWS = 3
"""With fewer, an interval over windows says nothing."""

_Meter = tuple[str, str, tuple[str, ...]]


def idle_of(case: str) -> str:
    """The name under which idle windows of a case's target are stored: `idle`, or `idle@jetson` for `…/b1/t1@jetson`."""
    match = re.search(r"/b\d+(?:/t\d+)?@(.+)$", case)
    return IDLE if match is None else f"{IDLE}@{match[1]}"


def energy_figure(
    records: Iterable[EnergyRecord], case: str, *, failures: Iterable[FailureRecord] = (), level: float = 0.95
) -> Figure:
    """Energy of one inference of a case (of the whole batch), joules, with Student's interval over windows.

    With at least three idle windows on the same meter, idle power x time is subtracted, and the uncertainty of the idle
    power goes into the interval (Welch-Satterthwaite degrees of freedom); else the figure is the total, and the note says so.
    `records` may hold windows of other cases and meters, in any order. `failures` of stage `energy` give the reason where
    there are no windows. `low` is None where the interval reaches below zero.
    """
    if not 0 < level < 1:
        raise ValueError(f"level must lie strictly between 0 and 1, got {level}")
    found = list(records)
    all_own = [record for record in found if record.case == case]
    if not all_own:
        reason = next((item.message for item in failures if item.case == case and item.stage == "energy"), None)
        return NotMeasured(reason or "no energy meter was read in this run")
    own, why = _usable(all_own)
    if len(own) < MIN_WINDOWS:
        return NotMeasured(f"{len(own)} usable energy windows, at least {MIN_WINDOWS} are needed{why}")
    idle = [record for record in found if record.case == idle_of(case) and _meter(record) == _meter(own[0])]
    idle = [record for record in idle if _is_sound(record)]
    return _figure(own, idle, level, why)


def _meter(record: EnergyRecord) -> _Meter:
    return record.meter, record.method, record.total_rails


def _is_sound(record: EnergyRecord) -> bool:
    total = _total_j(record)
    return bool(record.total_rails) and bool(np.isfinite(total)) and record.wall_s > 0


def _total_j(record: EnergyRecord) -> float:
    return float(sum(record.energy_j.get(rail, np.nan) for rail in record.total_rails))


def _usable(records: Sequence[EnergyRecord]) -> tuple[list[EnergyRecord], str]:
    """The sound windows of the meter that has most of them, in order; and what was left out, to be added to a sentence."""
    sound = [record for record in records if _is_sound(record)]
    counted = [record for record in sound if record.inferences > 0]
    meters = Counter(_meter(record) for record in counted)
    best = min(meters, key=lambda meter: (-meters[meter], meter), default=None)
    kept = sorted((record for record in counted if _meter(record) == best), key=lambda record: record.window)
    left_out = [
        f"{count} {what}"
        for count, what in (
            (len(records) - len(sound), "without a reading of every rail of the total"),
            (len(sound) - len(counted), "in which no inference ended"),
            (len(counted) - len(kept), "on another meter"),
        )
        if count
    ]
    return kept, f" (left out: {', '.join(left_out)})" if left_out else ""


def _figure(own: Sequence[EnergyRecord], idle: Sequence[EnergyRecord], level: float, left_out: str) -> Figure:
    # Sorted, so that the same windows in another order add up to the same last digit.
    count = np.array([record.inferences for record in own], dtype=np.float64)
    total = np.array([_total_j(record) for record in own]) / count
    seconds = np.array([record.wall_s for record in own]) / count
    power = np.sort([_total_j(record) / record.wall_s for record in idle])
    subtracts = len(power) >= MIN_WINDOWS
    each = np.sort(total - float(power.mean()) * seconds) if subtracts else np.sort(total)
    value = float(each.mean())
    # The idle power is one number for all windows: its error does not average out over them.
    parts = [(_variance_of_mean(each), len(each) - 1)]
    if subtracts:
        parts.append((float(seconds.mean()) ** 2 * _variance_of_mean(power), len(power) - 1))
    half = _half_width(parts, level)
    note = _note(own, float(total.mean()), power, subtracts=subtracts)
    if value <= 0:
        return NotMeasured(
            f"the windows draw no more than the idle machine ({units.significant(value, 2)} J ± "
            f"{units.significant(half, 2)} J per inference): take more or longer windows, and keep other work away"
        )
    low: float | None = value - half
    if value - half < 0:
        low = None
        note += "; the lower end is not bounded: the difference from idle is within the spread of the windows"
    return Estimate(value, low, value + half, "J", level, note=note + left_out)


def _variance_of_mean(values: NDArray[np.float64]) -> float:
    return float(values.var(ddof=1)) / len(values)


def _half_width(parts: Sequence[tuple[float, int]], level: float) -> float:
    """Half of the interval of a sum of independent means, each given by its variance and degrees of freedom."""
    largest = max(part for part, _ in parts)
    if largest == 0:
        return 0.0
    # In units of the largest: the squares of tiny variances would vanish.
    shares = [(part / largest, freedom) for part, freedom in parts]
    together = sum(share for share, _ in shares)
    freedom = together**2 / sum(share**2 / degrees for share, degrees in shares)
    return float(stdtrit(freedom, (1 + level) / 2)) * float(np.sqrt(together * largest))


def _note(own: Sequence[EnergyRecord], total_j: float, power_w: NDArray[np.float64], *, subtracts: bool) -> str:
    first = own[0]
    if subtracts:
        idle = f"{units.significant(float(power_w.mean()))} W of idle power subtracted ({len(power_w)} idle windows)"
        kind = f"{idle}, {units.significant(total_j)} J with it"
    else:
        kind = f"total with idle power: {len(power_w)} idle windows, {MIN_WINDOWS} are needed to subtract it"
    seconds = units.seconds(float(np.median([record.wall_s for record in own])))
    if first.method == "counter":
        rate = "energy counter read at both ends"
    else:
        rate = f"{units.significant(_rate_hz(own), 2)} readings/s"
    parts = [
        f"{first.coverage} ({first.meter}: {', '.join(first.total_rails)})",
        kind,
        f"{len(own)} windows of {seconds}, {rate}",
        *_common_notes(own),
    ]
    return "; ".join(parts)


def _rate_hz(own: Sequence[EnergyRecord]) -> float:
    """The slowest window decides: power between two readings is a guess."""
    return min(record.readings / record.wall_s for record in own)


def _common_notes(own: Sequence[EnergyRecord]) -> list[str]:
    """What the windows say of themselves, each once; said by a part of them, with how many."""
    said = Counter(note for record in own for note in dict.fromkeys(record.notes))
    return [note if count == len(own) else f"{note} (in {count} windows)" for note, count in sorted(said.items())]
