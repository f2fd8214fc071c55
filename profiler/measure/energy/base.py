"""What an energy meter is, and what is computed from its readings. Runs inside workers: standard library and numpy only.

A meter says which rails it has, which of them add up to what it covers, and whether it counts joules or shows watts. Where a
meter is not there, the reason is a result that people see; it is never a zero.
"""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from backends.errors import EdgeprofError

Kind = Literal["counter", "power"]
Run = Callable[[Sequence[str]], str]
"""Runs a command and returns what it printed. Raises OSError or CommandError."""

MIN_READINGS = 5
"""Fewer readings of power inside a window say too little about what happened between them."""
MAX_GAP_SHARE = 0.25
"""Longest part of a window that may lie between two readings."""


class MeterLost(EdgeprofError):  # noqa: N818 (a window is dropped for it, nothing else goes wrong)
    """A meter stopped answering, or its readings do not cover the window."""


class CommandError(EdgeprofError):
    """A command that reads a sensor failed; the text is what it printed."""


@dataclass(frozen=True)
class MeterInfo:
    """What a meter measures. Plain values, so that it travels from a worker to the controller."""

    name: str
    kind: Kind
    """`counter`: readings are joules since some moment; `power`: readings are watts."""
    rails: tuple[str, ...]
    total_rails: tuple[str, ...]
    """The rails that add up to `coverage`; the others lie inside these or overlap them and are never added."""
    coverage: str
    """What the total powers, for people."""
    update_s: float
    """How often the sensor itself brings a new value."""
    powers: tuple[str, ...] = ()
    """Kinds of devices whose inferences it sees: `cpu`, `nvidia`, `intel`. Empty: everything on the board."""
    settle_s: float = 0.0
    """How long a reading looks back, for sensors that average: work has to run so long before a window begins."""
    notes: tuple[str, ...] = ()
    """Systematic parts that no number of windows averages out."""


class Meter(Protocol):
    """A meter that answers."""

    @property
    def info(self) -> MeterInfo:
        """What it measures."""
        ...

    def read(self) -> Mapping[str, float]:
        """One reading by rail: joules since some moment, or watts. Raises MeterLost."""
        ...


@dataclass(frozen=True)
class Absent:
    """A meter that cannot be read here, and why, with what would help."""

    meter: str
    reason: str


def run_command(arguments: Sequence[str], *, timeout_s: float = 5.0) -> str:
    """What a command prints. Raises FileNotFoundError when it is not installed, CommandError when it fails or hangs."""
    try:
        done = subprocess.run(
            arguments, capture_output=True, text=True, timeout=timeout_s, check=False, errors="replace"
        )
    except subprocess.TimeoutExpired:
        raise CommandError(f"no answer from '{arguments[0]}' within {timeout_s:g} s") from None
    if done.returncode:
        said = (done.stderr.strip() or done.stdout.strip() or "it printed nothing").splitlines()[0]
        raise CommandError(f"'{' '.join(arguments)}' ended with exit code {done.returncode}: {said[:200]}")
    return done.stdout


def read_text(path: Path) -> str:
    """A small file of the kernel without its line end. Raises OSError."""
    return path.read_text(encoding="utf-8", errors="replace").strip("\0\n ")


def integrate(times_s: NDArray[np.float64], watts: NDArray[np.float64], start_s: float, end_s: float) -> float:
    """Joules between two moments, by trapezoid; power at the two moments is interpolated linearly.

    Both arrays have shape (n,), times ascend and reach from `start_s` or before to `end_s` or after. Raises ValueError when
    they do not: what lies outside the readings is not known.
    """
    if len(times_s) < 2 or times_s[0] > start_s or times_s[-1] < end_s or end_s <= start_s:
        raise ValueError(f"readings do not reach from {start_s:g} s to {end_s:g} s")
    inside = (times_s > start_s) & (times_s < end_s)
    at = np.concatenate([[start_s], times_s[inside], [end_s]])
    power = np.interp(at, times_s, watts)
    return float(np.sum(np.diff(at) * (power[1:] + power[:-1])) / 2)


def check_cover(times_s: NDArray[np.float64], start_s: float, end_s: float) -> int:
    """How many readings fell into the window. Raises MeterLost that says what of the window is not covered.

    `times_s` ascends, shape (n,).
    """
    window_s = end_s - start_s
    if not len(times_s) or times_s[0] > start_s or times_s[-1] < end_s:
        missing = "all of it" if not len(times_s) else _missing(float(times_s[0]), float(times_s[-1]), start_s, end_s)
        raise MeterLost(f"the meter's readings do not cover the window of {window_s:.3g} s: {missing} is missing")
    inside = times_s[(times_s >= start_s) & (times_s <= end_s)]
    if len(inside) < MIN_READINGS:
        raise MeterLost(
            f"{len(inside)} readings in a window of {window_s:.3g} s, at least {MIN_READINGS} are needed: read more often, "
            "or take longer windows"
        )
    around = np.concatenate([times_s[times_s <= start_s][-1:], inside, times_s[times_s >= end_s][:1]])
    gap_s = float(np.max(np.diff(around)))
    if gap_s > MAX_GAP_SHARE * window_s:
        raise MeterLost(
            f"no reading for {gap_s:.3g} s of a window of {window_s:.3g} s, at most {MAX_GAP_SHARE:.0%} may be missing"
        )
    return len(inside)


def _missing(first_s: float, last_s: float, start_s: float, end_s: float) -> str:
    if last_s <= start_s or first_s >= end_s:
        return "all of it"
    parts = []
    if first_s > start_s:
        parts.append(f"the first {first_s - start_s:.3g} s")
    if last_s < end_s:
        parts.append(f"the last {end_s - last_s:.3g} s")
    return " and ".join(parts)
