"""Numbers for people, in one place. Records carry SI units in their names; only here do they become ms, MB or ¢."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Literal

from backends.errors import EdgeprofError

_TIME = ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs"), (1e-9, "ns"))
_BYTES = ((1e9, "GB"), (1e6, "MB"), (1e3, "kB"), (1.0, "B"))


def significant(value: float, digits: int = 3) -> str:
    """`value` with that many significant digits, without exponent between 1e-6 and 1e9: 0.0803, 12.4, 1,284."""
    if value == 0:
        return "0"
    if not math.isfinite(value):
        return "unbounded"
    magnitude = math.floor(math.log10(abs(value)))
    if not -6 <= magnitude < 9:
        return f"{value:.{digits - 1}e}"
    rounded = round(value, digits - 1 - magnitude)
    # Rounding up may gain a place: 9.996 is 10.0, not 10.00.
    magnitude = math.floor(math.log10(abs(rounded)))
    return f"{rounded:,.{max(0, digits - 1 - magnitude)}f}"


def seconds(value: float, digits: int = 3) -> str:
    """A duration with the unit that suits it: 0.128 ms → `128 µs`."""
    scale, unit = next(((s, u) for s, u in _TIME if abs(value) >= s), _TIME[-1])
    return f"{significant(value / scale, digits)} {unit}"


def size(value: float, digits: int = 3) -> str:
    """A number of bytes in decimal units: 474,000 → `474 kB`."""
    scale, unit = next(((s, u) for s, u in _BYTES if abs(value) >= s), _BYTES[-1])
    return f"{significant(value / scale, digits)} {unit}"


def usd(value: float) -> str:
    """US dollars with two significant decimals below one dollar: `$0.021`, `$4.23`."""
    return f"${significant(value, 2 if abs(value) < 1 else 3)}"


def points(value: float) -> str:
    """A difference of proportions in percentage points, signed: −0.0012 → `−0.12`."""
    return f"{value * 100:+.2f}".replace("-", "−")


def parse_seconds(text: str) -> float:
    """`5ms`, `0.5 s`, `800us` → seconds. Raises EdgeprofError for anything else."""
    return _parse(
        text,
        {"s": 1.0, "ms": 1e-3, "us": 1e-6, "µs": 1e-6, "min": 60.0, "m": 60.0, "h": 3600.0},
        "a time such as 5ms, 0.2s, 20min or 1h",
    )


def parse_bytes(text: str) -> int:
    """`512MB`, `2 GiB`, `64000B` → bytes. Raises EdgeprofError; a bare number could be bytes or megabytes, so it is neither."""
    scales = {"B": 1.0, "kB": 1e3, "KB": 1e3, "MB": 1e6, "GB": 1e9, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}
    return int(_parse(text, scales, "an amount of memory such as 512MB or 2GiB"))


@dataclass(frozen=True)
class Drop:
    """The largest loss of a metric that is accepted."""

    value: float
    """A proportion for `points`, else a number of the metric's unit."""
    unit: Literal["points", "own"] | None
    """What its text said: percentage points, the metric's own unit, or nothing."""


def parse_drop(text: str) -> Drop:
    """`1pt`, `0.5 points`, `1%` (a proportion of 0.01), `0.5dB` (of the metric's unit), `0.01` (of whatever the metric is).

    Whether it fits the metric is known where the metric is: `Constraints.drop_misfit`. Raises EdgeprofError.
    """
    points = {"pt": 0.01, "pts": 0.01, "points": 0.01, "%": 0.01}
    scales = {**points, "dB": 1.0, "": 1.0}
    value = _parse(text, scales, "a loss such as 1pt (one percentage point), 0.01, or 0.5dB in a metric's own unit")
    named = text.strip().lstrip("0123456789.eE+- ")
    return Drop(value, "points" if named in points else "own" if named else None)


def parse_share(text: str) -> float:
    """`2%` or `0.02` → 0.02. Raises EdgeprofError unless it lies between 0 and 1."""
    value = _parse(text, {"%": 0.01, "": 1.0}, "a share such as 2% or 0.02")
    if not 0 < value < 1:
        raise EdgeprofError(f"a share of '{text}' is not between 0 and 100 %: write 2% or 0.02.")
    return value


def _parse(text: str, scales: dict[str, float], expected: str) -> float:
    match = re.fullmatch(r"\s*([0-9]*\.?[0-9]+(?:[eE][-+]?\d+)?)\s*([A-Za-zµ%]*)\s*", text)
    value = float(match[1]) * scales.get(match[2], math.inf) if match is not None else math.inf
    if not math.isfinite(value):
        raise EdgeprofError(f"cannot read '{text}': expected {expected}.")
    return value
