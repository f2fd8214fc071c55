"""External meters: a growing file and a command, aligned by wall clock; what does not cover the window is refused in words."""

from __future__ import annotations

import contextlib
import os
import sys
import textwrap
from datetime import datetime, timezone

import psutil
import pytest

from profiler.measure.energy import external
from profiler.measure.energy.base import Absent, MeterLost

START = 1_800_000_000.0


class Wall:
    """Wall clock that passes while somebody waits; `events` run when their time has come."""

    def __init__(self, now=START) -> None:
        self.now, self.events = now, []

    def unix(self) -> float:
        return self.now

    def pause(self, seconds) -> None:
        self.now += seconds
        while self.events and self.events[0][0] <= self.now:
            self.events.pop(0)[1]()


@pytest.fixture
def wall():
    return Wall()


@pytest.fixture
def log(tmp_path):
    """`log(header, rows)` is a file; `log.add(rows)` appends to it."""
    path = tmp_path / "power.csv"

    def make(header, rows=()):
        path.write_text(header + "\n" + "".join(f"{row}\n" for row in rows))
        return path

    def add(*rows, end="\n"):
        with path.open("a") as file:
            file.write("".join(f"{row}{end}" for row in rows))

    make.add, make.path = add, path
    return make


def meter(path, wall, **fields):
    return external.CsvMeter(path, unix=wall.unix, pause=wall.pause, **fields)


def steady(watts=7.0, start=-1.0, end=12.0, step=0.1):
    count = round((end - start) / step)
    return [f"{START + start + n * step:.3f},{watts}" for n in range(count + 1)]


def test_logged_power_is_integrated_over_the_window(log, wall):
    """7 W for 10 s, from rows around it."""
    energy, readings = meter(log("time,power_w", steady()), wall).energy(START + 0.05, START + 10.05)

    assert energy == {"external": pytest.approx(70.0)}
    assert readings == 100


def test_logged_energy_is_a_difference_between_rows(log, wall):
    """A counter in joules that began somewhere: 3 W, between two rows at both ends."""
    rows = [f"{START + n / 2},{1000 + 1.5 * n}" for n in range(-2, 30)]
    taken = meter(log("time,energy_j", rows), wall)

    assert taken.info.kind == "counter"
    assert taken.energy(START + 0.25, START + 10.25)[0] == {"external": pytest.approx(30.0)}


@pytest.mark.parametrize(
    ("header", "row"),
    [
        ("time,power_w", "{iso},7"),
        ("voltage, Power_W ,time", "5.1, 7 ,{iso}"),
        ('"time","power_w"', '"{unix}","7"'),
        ("\ufefftime,power_w", "{unix},7.0"),
        ("time,power_w,note", "{unix},7,ok"),
    ],
    ids=["iso", "order", "quotes", "byte order mark", "more columns"],
)
def test_loggers_write_in_many_ways(log, wall, header, row):
    """Columns by name, in any order, ISO 8601 or unix seconds."""
    rows = []
    for n in range(-5, 60):
        unix = START + n / 5
        iso = datetime.fromtimestamp(unix, timezone.utc).isoformat().replace("+00:00", "Z")
        rows.append(row.format(unix=unix, iso=iso))
    energy, _ = meter(log(header, rows), wall).energy(START, START + 10)

    assert energy["external"] == pytest.approx(70.0)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("1800000000.25", 1_800_000_000.25),
        ("2027-01-15T08:00:00Z", 1_800_000_000.0),
        ("2027-01-15T09:00:00.500000+01:00", 1_800_000_000.5),
        ("2027-01-15 08:00:00+00:00", 1_800_000_000.0),
    ],
)
def test_times_that_are_read(text, seconds):
    """The same moment in several forms."""
    assert external.parse_time(text) == pytest.approx(seconds)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("1800000000250", "milliseconds"),
        ("2027-01-15T08:00:00", "no offset"),
        ("nan", "unix seconds"),
        ("noon", "Invalid isoformat"),
    ],
)
def test_times_that_could_mean_something_else_are_refused(text, words):
    """A wrong guess would measure another moment."""
    with pytest.raises(ValueError, match=words):
        external.parse_time(text)


def test_late_rows_are_waited_for(log, wall):
    """The logger writes blocks: the end of the window is there three seconds later."""
    path = log("time,power_w", steady(end=8.0))
    wall.now = START + 10
    wall.events = [(START + 13, lambda: log.add(*steady(start=8.1)))]
    energy, _ = meter(path, wall).energy(START, START + 10)

    assert energy["external"] == pytest.approx(70.0)
    assert START + 13 <= wall.now < START + 14


def test_half_a_row_is_not_a_row(log, wall):
    """The file ends in the middle of a number; the rest comes later."""
    path = log("time,power_w", steady(end=9.9))
    wall.now = START + 10
    log.add(f"{START + 10.5},70", end="")
    wall.events = [(START + 11, lambda: log.add("0.0"))]
    taken = meter(path, wall)
    energy, _ = taken.energy(START, START + 9.5)
    assert energy["external"] == pytest.approx(9.5 * 7)

    energy, _ = taken.energy(START, START + 10.2)
    # From 7 W at 9.9 s to 700 W at 10.5 s, half of which lies in the window: read as 70 W it would be far less.
    assert energy["external"] == pytest.approx(9.9 * 7 + 0.3 * (7 + 353.5) / 2)


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        (steady(end=8.0), "the last 2 s is missing"),
        (steady(start=3.0), "the first 3 s is missing"),
        ([], "all of it is missing"),
        (steady(step=4.0, end=13), "2 readings in a window of 10 s"),
        ([*steady(end=2.0), *steady(start=7.0)], "no reading for 5 s"),
        ([row.replace(",7.0", ",nan") for row in steady()], "a row was skipped: .*nan"),
        ([row.replace("1800", "1800000") for row in steady()], "milliseconds"),
    ],
    ids=["ends", "begins", "empty", "slow", "gap", "nan", "milliseconds"],
)
def test_what_does_not_cover_the_window_is_refused(log, wall, rows, words):
    """It says what of the window is missing, in which file."""
    wall.now = START + 10

    with pytest.raises(MeterLost, match=f"(?s)power.csv.*{words}"):
        meter(log("time,power_w", rows), wall).energy(START, START + 10)
    assert wall.now <= START + 26


def test_broken_rows_between_good_ones_do_no_harm(log, wall):
    """A line of the logger's own words, an empty one, a time without offset."""
    rows = steady()
    rows[20:20] = ["logger restarted", "", "2027-01-15T08:00:00,900", f"{START + 1},inf"]

    assert meter(log("time,power_w", rows), wall).energy(START, START + 10)[0]["external"] == pytest.approx(70.0)


def test_a_meter_that_was_reset_inside_the_window_is_lost(log, wall):
    """Joules from zero again: the difference is not the energy. Before the window it does not matter."""
    rows = [f"{START + n / 2},{100 + n if n < 8 else n}" for n in range(-2, 30)]
    taken = meter(log("time,energy_j", rows), wall)

    with pytest.raises(MeterLost, match="ran backwards"):
        taken.energy(START, START + 10)
    assert taken.energy(START + 4, START + 14)[0]["external"] == pytest.approx(20.0)


def test_a_file_that_was_begun_anew_is_followed(log, wall):
    """A logger that rotates, inside a window even: what was read before stands beside what the new file has."""
    taken = meter(log("time,power_w", steady(watts=9.0)), wall)
    taken.energy(START, START + 10)
    log("power_w,time", [",".join(reversed(row.split(","))) for row in steady(watts=2.0, start=12.1, end=20.0)])

    assert taken.energy(START + 13, START + 15)[0]["external"] == pytest.approx(4.0)
    assert taken.energy(START + 8, START + 18)[0]["external"] == pytest.approx(4 * 9 + 0.1 * 5.5 + 5.9 * 2)


def test_windows_one_after_the_other_read_what_was_appended(log, wall):
    """Each its own energy."""
    taken = meter(log("time,power_w", steady(watts=5.0, end=10.0)), wall)
    first = taken.energy(START + 1, START + 6)[0]
    log.add(*steady(watts=11.0, start=10.1, end=30.0))
    second = taken.energy(START + 12, START + 17)[0]

    assert (first["external"], second["external"]) == (pytest.approx(25.0), pytest.approx(55.0))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "expected a header line"),
        ("1800000000,7\n", "expected a header line with the columns time and power_w"),
        ("time,watts\n", "expected a header line"),
        ("power_w\n", "expected a header line"),
        ("time,power_w", "expected a header line"),
        (None, "Start the logger before the run"),
    ],
    ids=["empty", "no header", "other unit", "no time", "unfinished", "missing"],
)
def test_a_file_that_is_no_log_is_absent_with_a_reason(tmp_path, text, words):
    """Before anything is measured."""
    path = tmp_path / "power.csv"
    if text is not None:
        path.write_text(text)
    absent = external.find(path, None)

    assert isinstance(absent, Absent)
    assert words in absent.reason


@pytest.mark.parametrize(
    ("command", "words"), [('watts "', "cannot split"), ("  ", "is empty"), (None, "none was named")]
)
def test_a_command_that_is_none_is_absent_with_a_reason(command, words):
    """Split as a shell splits, but no shell runs it."""
    absent = external.find(None, command)

    assert isinstance(absent, Absent)
    assert words in absent.reason


@pytest.mark.parametrize(
    ("line", "row"),
    [
        ("7.25\n", (5.0, 7.25)),
        ("1800000000 7.25", (START, 7.25)),
        ("1800000000,7", (START, 7.0)),
        (" 7 \r\n", (5.0, 7.0)),
    ],
)
def test_lines_that_are_read(line, row):
    """Watts, stamped when they arrive, or with a time of their own."""
    assert external.parse_line(line, 5.0) == row


@pytest.mark.parametrize("line", ["", "7 W", "power: 7", "1 2 3", "nan", "inf", "1800000000250 7"])
def test_lines_that_say_something_else_are_refused(line):
    """The line is shown."""
    with pytest.raises(ValueError, match=r"expected 'power_w' or 'unix_s power_w'"):
        external.parse_line(line, 5.0)


STREAM = """
    import time
    n = 0
    while True:
        print({start} + n / 10, {watts}, flush=True)
        n += 1
        time.sleep(0.0005)
"""


def command(code, **fields):
    return external.CommandMeter([sys.executable, "-c", textwrap.dedent(code)], **fields)


@pytest.mark.process
def test_a_streaming_command_is_integrated_by_its_own_times():
    """It prints a tenth of a second of its time per line: 10 s of 6 W, however long the machine takes for it."""
    taken = command(STREAM.format(start=START, watts=6.0), patience_s=60.0)
    taken.start()
    try:
        energy, readings = taken.energy(START + 1.0, START + 11.0)
    finally:
        taken.stop()

    assert energy == {"external": pytest.approx(60.0)}
    assert readings == pytest.approx(101, abs=1)
    assert taken._process.poll() is not None


@pytest.mark.process
def test_a_command_that_prints_one_reading_is_called_again(tmp_path):
    """Each call counts up in a file: reading k is at k seconds."""
    code = f"""
        from pathlib import Path
        path = Path({str(tmp_path / "count")!r})
        n = int(path.read_text()) if path.exists() else 0
        path.write_text(str(n + 1))
        print({START} + n, 4.0)
    """
    taken = command(code, patience_s=60.0)
    taken.start()
    try:
        energy, readings = taken.energy(START, START + 6.0)
    finally:
        taken.stop()

    assert (energy, readings) == ({"external": pytest.approx(24.0)}, 7)


@pytest.mark.process
@pytest.mark.parametrize(
    ("code", "words"),
    [
        (
            "import sys; print('no meter on /dev/ttyUSB0', file=sys.stderr); sys.exit(2)",
            "exit code 2: no meter on /dev/ttyUSB0",
        ),
        ("print('seven watts\\n' * 50)", "lines could not be read, the last: .*seven watts"),
        ("print('x' * 100_000_000)", "could not be read"),
    ],
    ids=["fails", "words", "endless line"],
)
def test_a_command_that_gives_no_watts_is_lost_in_its_own_words(code, words):
    """Its last words on stderr, or the line that could not be read."""
    taken = command(code, patience_s=60.0)

    with pytest.raises(MeterLost, match=words):
        taken.start()
    assert not taken._thread.is_alive()


def test_a_command_that_is_not_installed_is_lost(wall):
    """Named."""
    taken = external.CommandMeter(["no-such-meter-anywhere"], patience_s=60.0)

    with pytest.raises(MeterLost, match=r"'no-such-meter-anywhere'.*cannot be started: No such file"):
        taken.start()


@pytest.mark.process
def test_a_command_that_dies_inside_the_window_loses_it():
    """The readings end there, and its exit code is told."""
    code = f"""
        import sys
        for n in range(30): print({START} + n / 10, 5.0, flush=True)
        sys.exit(4)
    """
    taken = command(code, patience_s=60.0)
    taken.start()
    try:
        with pytest.raises(MeterLost, match=r"the last 7.1 s is missing; ended with exit code 4"):
            taken.energy(START, START + 10)
    finally:
        taken.stop()


def test_negative_power_is_a_wrong_sign_and_no_reading(log, wall):
    """Idle power subtracted from it would give energies with the wrong sign."""
    with pytest.raises(MeterLost, match="sign or unit"):
        meter(log("time,power_w", steady(watts=-5.0)), wall, patience_s=1.0).energy(START, START + 10)
    with pytest.raises(ValueError, match="sign or unit"):
        external.parse_line("-5", START)
    with pytest.raises(ValueError, match="sign or unit"):
        external.parse_line("1e308", START)


def test_a_log_begun_anew_with_another_column_is_lost(log, wall):
    """Joules read as watts would be a million times too much."""
    found = meter(log("time,power_w", steady()), wall)
    found.energy(START + 0.05, START + 1.05)
    log("time,energy_j")
    with pytest.raises(MeterLost, match="begun anew with the column energy_j"):
        found.energy(START + 2, START + 3)


def test_a_pipe_is_no_log(tmp_path):
    """Opening one would wait for a writer."""
    os.mkfifo(tmp_path / "pipe")
    found = external.find(tmp_path / "pipe", None)

    assert isinstance(found, Absent)
    assert "no regular file" in found.reason


@pytest.mark.process
def test_what_a_command_started_ends_with_it(tmp_path):
    """Also when both ignore SIGTERM."""
    script = tmp_path / "meter.sh"
    script.write_text(
        f"trap '' TERM; (trap '' TERM; sleep 300) & echo $! > {tmp_path}/child; while true; do echo 5; sleep 0.05; done\n"
    )
    found = external.CommandMeter(["sh", str(script)])
    found.start()
    found.stop()
    child = int((tmp_path / "child").read_text())

    # Killed and not yet collected counts as ended.
    with contextlib.suppress(psutil.NoSuchProcess, psutil.TimeoutExpired):
        psutil.Process(child).wait(2)
    assert not psutil.pid_exists(child) or psutil.Process(child).status() == psutil.STATUS_ZOMBIE
