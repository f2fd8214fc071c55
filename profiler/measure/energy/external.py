"""External meters, read by the controller: a file that a logger appends to, or a command that prints watts.

Aligned by wall clock. The meter may hang at this computer while the model runs on another one; the caller brings the
window's beginning and end to this computer's clock.
"""

from __future__ import annotations

import contextlib
import math
import os
import shlex
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import IO, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from profiler.measure.energy.base import Absent, MeterInfo, MeterLost, check_cover, integrate

NAME = "external"
COVERAGE = "what the external meter feeds, usually the whole device with its power supply"
_MAX_LINE = 4096
_MAX_TAIL_BYTES = 64 << 20
_KEEP_S = 3600.0
_PATIENCE_S = 15.0
_POLL_S = 0.05
_MAX_BAD_LINES = 20
_RESTART_S = 0.02
# Later than the year 5138 in seconds: somebody's milliseconds.
_MILLISECONDS_FROM = 1e11


class External(Protocol):
    """A meter that is asked after a window what it saw."""

    @property
    def info(self) -> MeterInfo:
        """What it measures."""
        ...

    def start(self) -> None:
        """A window is about to begin."""
        ...

    def energy(self, start_unix_s: float, end_unix_s: float) -> tuple[Mapping[str, float], int]:
        """Joules by rail over the window and how many readings fell into it; waits for late ones. Raises MeterLost."""
        ...

    def stop(self) -> None:
        """The window is over."""
        ...


def find(csv: Path | None, command: str | None) -> External | Absent:
    """The external meter that was named, or why it cannot be read."""
    if csv is not None:
        try:
            return CsvMeter(csv)
        except MeterLost as error:
            return Absent(NAME, str(error))
    if command is not None:
        try:
            arguments = shlex.split(command)
        except ValueError as error:
            return Absent(NAME, f"cannot split the command {command!r}: {error}")
        return CommandMeter(arguments) if arguments else Absent(NAME, "the command of the external meter is empty")
    return Absent(NAME, "none was named: give a file that a logger writes, or a command that prints watts")


_DENSEST_S = 0.5e-3
_MOST = 1e12
"""Watts or joules; more is a meter that counts something else."""


def _info(kind: Literal["counter", "power"], note: str) -> MeterInfo:
    return MeterInfo(
        name=NAME,
        kind=kind,
        rails=(NAME,),
        total_rails=(NAME,),
        coverage=COVERAGE,
        update_s=_POLL_S,
        notes=(note, "the external meter's own error stays in: see its data sheet"),
    )


def parse_time(text: str) -> float:
    """Unix seconds, or ISO 8601 with an offset, as unix seconds. Raises ValueError that says what was expected."""
    try:
        seconds = float(text)
    except ValueError:
        moment = datetime.fromisoformat(text.strip().replace("Z", "+00:00"))
        if moment.tzinfo is None:
            raise ValueError(f"time '{text}' has no offset: write 2026-01-31T12:00:00Z or +01:00 behind it") from None
        return moment.timestamp()
    if not math.isfinite(seconds) or abs(seconds) > _MILLISECONDS_FROM:
        raise ValueError(f"time {text} is not in unix seconds (milliseconds?)")
    return seconds


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"'{text}' is not a number")
    if not 0 <= value <= _MOST:
        raise ValueError(f"{text} is no power or energy of a device: is the meter's sign or unit right?")
    return value


class CsvMeter:
    """Follows a growing CSV: a header with `time` and either `power_w` or `energy_j` (counted up), other columns ignored."""

    def __init__(
        self,
        path: Path,
        *,
        unix: Callable[[], float] = time.time,
        pause: Callable[[float], None] = time.sleep,
        patience_s: float = _PATIENCE_S,
    ) -> None:
        """Read the header. Raises MeterLost when the file or its columns are not there."""
        self._path, self._unix, self._pause, self._patience_s = path, unix, pause, patience_s
        self._rows: list[tuple[float, float]] = []
        self._bad: str | None = None
        self._time, self._value, column, self._offset = self._header()
        self._counts = column == "energy_j"
        self.info = _info(
            "counter" if self._counts else "power", f"column {column} of {path.name}, aligned by wall clock"
        )

    def start(self) -> None:
        """Nothing to do: the logger runs by itself."""

    def stop(self) -> None:
        """Nothing to do."""

    def energy(self, start_unix_s: float, end_unix_s: float) -> tuple[Mapping[str, float], int]:
        """Joules over the window, once the logger has written past its end; waits 15 s for that. Raises MeterLost."""
        until = self._unix() + self._patience_s
        while True:
            self._follow(start_unix_s - _KEEP_S)
            if self._rows and max(row[0] for row in self._rows[-10:]) >= end_unix_s:
                break
            if self._unix() >= until:
                break
            self._pause(_POLL_S)
        times, values = _sorted(self._rows)
        try:
            count = check_cover(times, start_unix_s, end_unix_s)
        except MeterLost as error:
            skipped = "" if self._bad is None else f"; a row was skipped: {self._bad}"
            raise MeterLost(f"{self._path}: {error}{skipped}") from None
        if not self._counts:
            return {NAME: integrate(times, values, start_unix_s, end_unix_s)}, count
        return {NAME: self._difference(times, values, start_unix_s, end_unix_s)}, count

    def _difference(
        self, times: NDArray[np.float64], joules: NDArray[np.float64], start_s: float, end_s: float
    ) -> float:
        first = int(np.searchsorted(times, start_s, side="right")) - 1
        last = int(np.searchsorted(times, end_s, side="left"))
        if (np.diff(joules[first : last + 1]) < 0).any():
            raise MeterLost(f"{self._path}: energy_j ran backwards inside the window: the meter was reset")
        begin, end = np.interp([start_s, end_s], times, joules)
        return float(end - begin)

    def _header(self) -> tuple[int, int, str, int]:
        if self._path.exists() and not self._path.is_file():
            raise MeterLost(f"{self._path} is no regular file: let the logger append to one")
        try:
            with self._path.open("rb") as file:
                line = file.readline(_MAX_LINE)
        except OSError as error:
            raise MeterLost(f"cannot read {self._path}: {error.strerror}. Start the logger before the run") from None
        names = [name.strip().strip('"').lower() for name in line.decode("utf-8-sig", "replace").split(",")]
        value = next((name for name in ("power_w", "energy_j") if name in names), None)
        if "time" not in names or value is None or not line.endswith(b"\n"):
            raise MeterLost(
                f"{self._path} begins with {line[:80].decode(errors='replace').strip()!r}, expected a header line with the "
                "columns time and power_w, or time and energy_j"
            )
        return names.index("time"), names.index(value), value, len(line)

    def _follow(self, oldest_s: float) -> None:
        """Read what was appended since the last time. A file that became shorter was begun anew: what was read stands."""
        try:
            with self._path.open("rb") as file:
                size = file.seek(0, os.SEEK_END)
                if size < self._offset:
                    self._time, self._value, column, self._offset = self._header()
                    if (column == "energy_j") != self._counts:
                        raise MeterLost(f"{self._path} was begun anew with the column {column}: start a new run")
                skip = max(0, size - self._offset - _MAX_TAIL_BYTES)
                file.seek(self._offset + skip)
                content = file.read(_MAX_TAIL_BYTES)
        except OSError as error:
            raise MeterLost(f"cannot read {self._path}: {error.strerror}") from None
        # The last line may be half written.
        whole = content[: content.rfind(b"\n") + 1]
        self._offset += skip + len(whole)
        lines = whole.decode("utf-8", "replace").splitlines()
        for line in lines[1:] if skip else lines:
            self._add(line)
        self._rows = [row for row in self._rows if row[0] >= oldest_s]

    def _add(self, line: str) -> None:
        cells = [cell.strip().strip('"') for cell in line.split(",")]
        if not line.strip():
            return
        try:
            self._rows.append((parse_time(cells[self._time]), _finite(cells[self._value])))
        except (ValueError, IndexError) as error:
            self._bad = f"{line[:80]!r} ({error})"


def _sorted(rows: Sequence[tuple[float, float]]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Times ascending, each once: of rows with the same time the last one stands."""
    latest = dict(rows)
    times = np.array(sorted(latest), dtype=np.float64)
    return times, np.array([latest[moment] for moment in times.tolist()], dtype=np.float64)


def parse_line(line: str, arrival_unix_s: float) -> tuple[float, float]:
    """One line of a command, `power_w` or `unix_s power_w`, as (unix seconds, watts). Raises ValueError."""
    words = line.replace(",", " ").split()
    if len(words) not in (1, 2):
        raise ValueError(f"expected 'power_w' or 'unix_s power_w', got {line.strip()[:80]!r}")
    try:
        watts = _finite(words[-1])
        return (arrival_unix_s if len(words) == 1 else parse_time(words[0])), watts
    except ValueError as error:
        raise ValueError(f"expected 'power_w' or 'unix_s power_w', got {line.strip()[:80]!r}: {error}") from None


def _end_group(process: subprocess.Popen[bytes]) -> None:
    """Ask the command's process group to end; after two seconds, or when only its leader did, make it."""
    with contextlib.suppress(OSError):
        os.killpg(process.pid, signal.SIGTERM)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(2.0)
    with contextlib.suppress(OSError):
        os.killpg(process.pid, signal.SIGKILL)


class CommandMeter:
    """Runs a command that prints watts: it may go on printing, or print once and end; then it is started again.

    A reading without a time of its own is stamped when it arrives. On the measured device itself the command takes
    part in what is measured, in idle windows too.
    """

    def __init__(
        self,
        arguments: Sequence[str],
        *,
        unix: Callable[[], float] = time.time,
        pause: Callable[[float], None] = time.sleep,
        patience_s: float = _PATIENCE_S,
    ) -> None:
        """Nothing is started yet."""
        self._arguments = list(arguments)
        self._unix, self._pause, self._patience_s = unix, pause, patience_s
        self._rows: list[tuple[float, float]] = []
        self._bad: list[str] = []
        self._broken: str | None = None
        self._stop = threading.Event()
        self._process: subprocess.Popen[bytes] | None = None
        self._thread: threading.Thread | None = None
        self.info = _info("power", f"printed by '{self._arguments[0]}', aligned by wall clock")

    def start(self) -> None:
        """Begin to read; returns when the first reading is there, or after 15 s. Raises MeterLost."""
        self._rows, self._bad, self._broken = [], [], None
        self._stop.clear()
        self._thread = threading.Thread(target=self._pump, name="edgeprof-meter", daemon=True)
        self._thread.start()
        self._wait_for(lambda: bool(self._rows))
        if not self._rows:
            why = self._why("it printed no reading")
            self.stop()
            raise MeterLost(why)

    def stop(self) -> None:
        """End the command and all that it started."""
        self._stop.set()
        if self._process is not None:
            _end_group(self._process)
        if self._thread is not None:
            self._thread.join(5.0)

    def energy(self, start_unix_s: float, end_unix_s: float) -> tuple[Mapping[str, float], int]:
        """Joules over the window, once a reading after its end is there. Raises MeterLost."""
        self._wait_for(lambda: bool(self._rows) and self._rows[-1][0] >= end_unix_s)
        times, watts = _sorted(list(self._rows))
        try:
            count = check_cover(times, start_unix_s, end_unix_s)
        except MeterLost as error:
            raise MeterLost(self._why(str(error))) from None
        return {NAME: integrate(times, watts, start_unix_s, end_unix_s)}, count

    def _wait_for(self, ready: Callable[[], bool]) -> None:
        until = self._unix() + self._patience_s
        while not ready() and self._broken is None and self._unix() < until:
            self._pause(_POLL_S / 5)

    def _why(self, problem: str) -> str:
        detail = self._broken or (f"a line could not be read: {self._bad[-1]}" if self._bad else None)
        return f"the meter command '{self._arguments[0]}': {problem}" + (f"; {detail}" if detail else "")

    def _pump(self) -> None:
        while not self._stop.is_set() and self._broken is None:
            with tempfile.TemporaryFile() as errors:
                try:
                    # A session of its own, so that what the command starts ends with it.
                    process = subprocess.Popen(
                        self._arguments, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=errors,
                        start_new_session=True,
                    )  # fmt: skip
                except OSError as error:
                    self._broken = f"cannot be started: {error.strerror or error}"
                    return
                self._process = process
                with process:
                    assert process.stdout is not None
                    self._lines(process.stdout)
                    if self._stop.is_set() or self._broken:
                        _end_group(process)
                if process.returncode and not self._stop.is_set() and self._broken is None:
                    errors.seek(0)
                    said = errors.read(_MAX_LINE).decode(errors="replace").strip().splitlines()
                    self._broken = f"ended with exit code {process.returncode}" + (
                        f": {said[-1][:200]}" if said else ""
                    )
            self._stop.wait(_RESTART_S)

    def _lines(self, stream: IO[bytes]) -> None:
        while not self._stop.is_set() and (line := stream.readline(_MAX_LINE)):
            try:
                row = parse_line(line.decode("utf-8", "replace"), self._unix())
                # A flood of lines tells no more, and a minute of it would fill the memory.
                if not self._rows or not 0 <= row[0] - self._rows[-1][0] < _DENSEST_S:
                    self._rows.append(row)
            except ValueError as error:
                self._bad.append(str(error))
                if len(self._bad) > _MAX_BAD_LINES and len(self._bad) > len(self._rows):
                    self._broken = f"{len(self._bad)} lines could not be read, the last: {error}"
                    return
