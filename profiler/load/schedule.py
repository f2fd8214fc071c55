"""When requests come: schedules as arrays of seconds from the beginning, ascending. Pure but for reading a trace file."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from profiler.errors import DataError

MAX_REQUESTS = 2_000_000
"""In one run: the record keeps five numbers of each."""
MAX_TRACE_BYTES = 256 << 20
MAX_TRACE_S = 86_400.0
MAX_TRACE_RATE_PER_S = 1e6
TIME_COLUMN = "time_s"


def poisson(rate_per_s: float, count: int, seed: int) -> NDArray[np.float64]:
    """`count` arrivals of a Poisson process: independent exponential gaps, the first one included.

    The realised rate differs from `rate_per_s` by chance, about 1 / sqrt(count).
    """
    _check(rate_per_s, count)
    return np.cumsum(np.random.default_rng(seed).exponential(1 / rate_per_s, count))


def constant(rate_per_s: float, count: int) -> NDArray[np.float64]:
    """Equal gaps, the first request at 0: what a camera or a sensor does."""
    _check(rate_per_s, count)
    return np.arange(count) / rate_per_s


def requests_in(rate_per_s: float, duration_s: float) -> int:
    """How many requests a run of that length offers, one at least. Raises DataError when they are absurdly many."""
    count = max(1, round(rate_per_s * duration_s))
    if count > MAX_REQUESTS:
        raise DataError(
            f"{rate_per_s:g} requests/s for {duration_s:g} s are {count:,} requests, a run has at most {MAX_REQUESTS:,}: "
            "give a lower --rate or a shorter --duration."
        )
    return count


def _check(rate_per_s: float, count: int) -> None:
    if not (math.isfinite(rate_per_s) and rate_per_s > 0):
        raise ValueError(f"a rate must be positive, got {rate_per_s}")
    if not 1 <= count <= MAX_REQUESTS:
        raise ValueError(f"a schedule has 1 to {MAX_REQUESTS} requests, got {count}")


def read_trace(path: Path) -> NDArray[np.float64]:
    """The arrival times of a file, moved so that the first one is 0, shape (n,).

    One time in seconds per line, or a CSV whose header names a column `time_s`; empty lines and lines that begin with # are
    skipped. Raises DataError with the number of the line for what is no time, negative, not finite or earlier than the line
    before, and for files that are too large, too long or without any time.
    """
    try:
        if path.exists() and not path.is_file():
            raise DataError(f"the trace {path} is no regular file: write the arrival times into one.")
        size = path.stat().st_size
        if size > MAX_TRACE_BYTES:
            raise DataError(
                f"the trace {path} has {size:,} bytes, at most {MAX_TRACE_BYTES:,} are read: give a part of it."
            )
        with path.open(encoding="utf-8", newline="") as file:
            times = _times(path, csv.reader(_lines(file)))
    except OSError as error:
        raise DataError(f"cannot read the trace {path}: {error.strerror}.") from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"the trace {path} is not text with one time per line: {error}.") from None
    if not times:
        raise DataError(f"the trace {path} holds no times: one in seconds per line, or a CSV column '{TIME_COLUMN}'.")
    schedule = np.asarray(times)
    schedule -= schedule[0]
    if schedule[-1] > MAX_TRACE_S:
        raise DataError(
            f"the trace {path} lasts {min(schedule[-1], 1e15):,.0f} s, at most {MAX_TRACE_S:,.0f} s: are its times seconds?"
        )
    rate = mean_rate(schedule)
    if rate is not None and not rate <= MAX_TRACE_RATE_PER_S:
        raise DataError(
            f"the trace {path} has {rate:.4g} requests a second, at most {MAX_TRACE_RATE_PER_S:g}: are its times seconds?"
        )
    return schedule


def _lines(file: Iterator[str]) -> Iterator[str]:
    # The CSV reader counts lines, so that comments may not be dropped before it: they become empty ones.
    return ("\n" if line.lstrip().startswith("#") else line for line in file)


def _times(path: Path, rows: Iterator[list[str]]) -> list[float]:
    times: list[float] = []
    column, before, header_seen = 0, 0.0, False
    for number, row in enumerate(rows, 1):
        if not any(cell.strip() for cell in row):
            continue
        if not header_seen:
            header_seen = True
            names = [cell.strip().lstrip("\ufeff") for cell in row]
            if TIME_COLUMN in names:
                column = names.index(TIME_COLUMN)
                continue
            if len(row) > 1:
                raise DataError(
                    f"{path}, line {number}: {len(row)} columns, none of them named '{TIME_COLUMN}'; a CSV needs that header."
                )
        text = row[column].strip() if column < len(row) else ""
        try:
            moment = float(text)
        except ValueError:
            raise DataError(f"{path}, line {number}: '{text[:40]}' is no time in seconds.") from None
        if not math.isfinite(moment) or moment < 0:
            raise DataError(
                f"{path}, line {number}: a time of {text[:40]} is not possible, expected seconds from 0 on."
            )
        if moment < before:
            raise DataError(
                f"{path}, line {number}: {text[:40]} comes before {before:g} of the line above; sort the trace."
            )
        if len(times) >= MAX_REQUESTS:
            raise DataError(f"{path}, line {number}: more than {MAX_REQUESTS:,} requests; give a part of the trace.")
        times.append(moment)
        before = moment
    return times


def mean_rate(schedule: NDArray[np.float64]) -> float | None:
    """Requests per second over the gaps of a schedule; None with fewer than two moments to tell it."""
    span = float(schedule[-1] - schedule[0]) if len(schedule) else 0.0
    if span <= 0:
        return None
    # Gaps below the smallest normal number would make it infinite; the border refuses that rate.
    return (len(schedule) - 1) / max(span, 1e-300)


def stretched(schedule: NDArray[np.float64], rate_per_s: float) -> NDArray[np.float64]:
    """The same pattern at another mean rate: all gaps longer or shorter by one factor. Raises DataError without gaps."""
    rate = mean_rate(schedule)
    if rate is None:
        raise DataError(
            f"the trace has {len(schedule)} requests at one moment: no pattern to stretch to {rate_per_s:g}/s."
        )
    return schedule * (rate / rate_per_s)


def cut(schedule: NDArray[np.float64], duration_s: float) -> NDArray[np.float64]:
    """What comes within `duration_s`; the first request always does."""
    return schedule[: max(1, int(np.searchsorted(schedule, duration_s, side="right")))]
