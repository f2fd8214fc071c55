"""`edgeprof doctor`: the verdict first, worst things next, every command in one piece; the same facts on any terminal."""

from __future__ import annotations

import io
import json

import pytest
from rich.console import Console

from profiler.cli import doctor_command
from profiler.doctor import Finding, Report

FIX = "echo performance | sudo tee /sys/devices/system/cpu/cpu*/cpufreq/scaling_governor"
REPORT = Report.of(
    [
        Finding("swap", "ok", "none configured"),
        Finding("sensors", "absent", "missing: clock", "So a run here cannot tell changes of clock."),
        Finding("turbo", "note", "on", "How far it goes depends on heat."),
        Finding("cpu governor", "warning", "powersave on cores 0-7", "The clock follows the load.", FIX),
        Finding("power supply", "problem", "on battery, battery at 71 %", "Clocks are held back. Plug it in."),
        Finding("environment", "note", "LD_PRELOAD=[red]x[/red]", "Markup in it is only text."),
    ]
)


def shown(*, width=100, encoding="utf-8", color=None):
    buffer = io.BytesIO()
    file = io.TextIOWrapper(buffer, encoding=encoding)
    doctor_command.show(REPORT, Console(file=file, width=width, color_system=color, force_terminal=color is not None))
    file.flush()
    return buffer.getvalue().decode(encoding)


@pytest.fixture
def examined(monkeypatch):
    """The command sees REPORT, and tells what it was asked."""
    asked = []
    monkeypatch.setattr("profiler.doctor.examine", lambda **settings: (asked.append(settings), REPORT)[1])
    return asked


def test_the_first_line_is_the_verdict_and_the_worst_comes_first(edgeprof, examined):
    told = edgeprof("doctor")

    assert (told.code, told.err) == (0, "")
    assert told.out.startswith(
        "2 things will spoil measurements here; the worst: power supply: on battery, battery at 71 %"
    )
    places = [
        told.out.index(name)
        for name in ("\n  power supply:", "\n  cpu governor:", "\n  turbo:", "\n  sensors:", "\n  swap ")
    ]
    assert places == sorted(places)


def test_words_say_what_colours_say():
    """The headings name the severity."""
    out = shown()

    assert "\x1b" not in out
    for word in ("problems:", "warnings:", "notes:", "absent:", "fine"):
        assert f"\n{word}" in out
    assert "\x1b" in shown(color="standard")


@pytest.mark.parametrize("width", [30, 50, 72, 200])
def test_a_command_stays_in_one_piece_however_narrow(width):
    """It is there to be copied. All else fits."""
    lines = shown(width=width).splitlines()

    assert f"    fix: {FIX}" in lines
    assert all(len(line) <= width for line in lines if not line.startswith("    fix:"))


def test_a_terminal_without_unicode_gets_the_same_facts():
    out = shown(encoding="ascii")

    assert "power supply: on battery" in out
    assert FIX in out


def test_markup_is_text():
    assert "LD_PRELOAD=[red]x[/red]" in shown()


def test_json_is_the_report(edgeprof, examined):
    told = edgeprof("doctor", "--json")

    assert told.code == 0
    assert json.loads(told.out) == REPORT.to_json()
    assert [finding["name"] for finding in json.loads(told.out)["findings"]][:2] == ["power supply", "cpu governor"]


def test_the_folder_of_runs_is_passed_on(edgeprof, examined, tmp_path):
    edgeprof("doctor", "--out", tmp_path / "elsewhere")

    assert examined == [{"out": tmp_path / "elsewhere"}]


def test_it_really_looks(edgeprof, tmp_path):
    """On this machine, whatever it is: exit code 0 and a verdict."""
    told = edgeprof("doctor", "--json", "--out", tmp_path)
    report = json.loads(told.out)

    assert told.code == 0
    assert report["spoilers"] == sum(finding["severity"] in ("problem", "warning") for finding in report["findings"])
    assert {"runtimes", "free disk", "python"} <= {finding["name"] for finding in report["findings"]}
