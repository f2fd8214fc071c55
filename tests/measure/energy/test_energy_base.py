"""Power over time becomes energy, and only where the readings reach."""

from __future__ import annotations

import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from profiler.measure import energy
from profiler.measure.energy.base import (
    Absent,
    CommandError,
    MeterInfo,
    MeterLost,
    check_cover,
    integrate,
    run_command,
)


def test_known_energies():
    """Constant power, a ramp, and a triangle whose corners are readings."""
    times = np.array([0.0, 1.0, 2.0, 4.0])

    assert integrate(times, np.full(4, 7.0), 0.5, 3.5) == pytest.approx(21.0)
    assert integrate(times, 2 * times, 1.0, 3.0) == pytest.approx(8.0)
    assert integrate(times, np.array([0.0, 4.0, 0.0, 0.0]), 0.0, 4.0) == pytest.approx(4.0)
    assert integrate(times, np.array([0.0, 4.0, 0.0, 0.0]), 0.5, 1.5) == pytest.approx(3.0)


GRIDS = st.lists(st.floats(0.01, 2), min_size=1, max_size=20).map(lambda steps: np.cumsum([0.0, *steps]))


@given(GRIDS, st.data())
def test_energy_adds_up_over_time_and_scales_with_power(times, data):
    """Split anywhere, the parts make the whole; twice the power is twice the energy."""
    watts = np.array(data.draw(st.lists(st.floats(-5, 500), min_size=len(times), max_size=len(times))))
    middle = data.draw(st.floats(0.1, 0.9)) * times[-1]
    whole = integrate(times, watts, 0.0, times[-1])

    assert integrate(times, watts, 0.0, middle) + integrate(times, watts, middle, times[-1]) == pytest.approx(
        whole, abs=1e-9
    )
    assert integrate(times, 2 * watts, 0.0, times[-1]) == pytest.approx(2 * whole, abs=1e-9)
    assert watts.min() * times[-1] - 1e-6 <= whole <= watts.max() * times[-1] + 1e-6


@pytest.mark.parametrize(("start", "end"), [(-0.1, 1.0), (0.0, 3.1), (1.0, 1.0), (2.0, 1.0)])
def test_nothing_is_invented_outside_the_readings(start, end):
    """Neither before the first nor after the last, and no window has no length."""
    with pytest.raises(ValueError, match="do not reach"):
        integrate(np.array([0.0, 1.0, 3.0]), np.ones(3), start, end)


def test_readings_inside_the_window_are_counted():
    """Those at its ends belong to it, those around it do not."""
    assert check_cover(np.arange(0.0, 10.5, 0.5), 1.0, 9.0) == 17


@pytest.mark.parametrize(
    ("times", "words"),
    [
        ([], "all of it is missing"),
        (np.arange(20.0, 30.0), "all of it is missing"),
        (np.arange(3.0, 30.0), "the first 3 s is missing"),
        (np.arange(-1.0, 7.0), "the last 4 s is missing"),
        (np.arange(2.0, 9.0), "the first 2 s and the last 2 s is missing"),
        (np.arange(-3.0, 14.0, 3.0), "4 readings in a window of 10 s, at least 5"),
        ([*np.arange(-1.0, 4.0, 0.5), *np.arange(8.0, 12.0, 0.5)], "no reading for 4.5 s"),
    ],
    ids=["none", "later", "late", "early", "short", "few", "gap"],
)
def test_what_is_not_covered_is_said(times, words):
    """A window of 10 s from 0."""
    with pytest.raises(MeterLost, match=words):
        check_cover(np.array(times, dtype=float), 0.0, 10.0)


@pytest.mark.process
def test_commands_answer_or_say_why_not():
    """Output, an exit code with the first words of the error, a hang, and a command that is not installed."""
    assert run_command([sys.executable, "-c", "print('volt=1')"]) == "volt=1\n"
    with pytest.raises(CommandError, match="exit code 3: no access"):
        run_command([sys.executable, "-c", "import sys; print('no access', file=sys.stderr); sys.exit(3)"])
    with pytest.raises(CommandError, match="no answer"):
        run_command([sys.executable, "-c", "import time; time.sleep(60)"], timeout_s=0.2)
    with pytest.raises(FileNotFoundError):
        run_command(["no-such-command-anywhere"])


def info(name, *powers) -> MeterInfo:
    return MeterInfo(name, "power", ("a",), ("a",), "a", 0.1, powers)


def test_the_first_meter_that_sees_the_device_is_chosen():
    """A processor's meter says nothing of a GPU; one without a list sees everything."""
    gpu, cpu, board = info("nvml", "nvidia"), info("rapl", "cpu"), info("ina3221")

    assert energy.choose([gpu, cpu], "cpu") == cpu
    assert energy.choose([gpu, cpu], "nvidia") == gpu
    assert energy.choose([cpu], "nvidia") is None
    assert energy.choose([board, gpu, cpu], "nvidia") == board
    assert energy.choose([], "cpu") is None


def test_an_empty_machine_says_why_for_each_meter(tmp_path):
    """No meter is silently missing, and the way out is named."""

    def run(arguments):
        raise FileNotFoundError(arguments[0])

    found = energy.find(tmp_path, run=run, names=["rapl", "ina3221", "pmic"])
    words = energy.why_not(found.absent)

    assert found.meters == ()
    assert {item.meter for item in found.absent} == {"rapl", "ina3221", "pmic"}
    assert "rapl: no /sys/class/powercap here: virtual machines hide it" in words
    assert "ina3221: no INA3221" in words
    assert "pmic: not a Raspberry Pi 5" in words
    assert "docs/energy.md" in words


def test_every_reader_answers_on_this_machine():
    """Whatever it has: each name is a meter or has a reason, and a meter can be read."""
    found = energy.find()

    assert {meter.info.name for meter in found.meters} | {item.meter for item in found.absent} == set(energy.READERS)
    assert all(item.reason for item in found.absent)
    for meter in found.meters:
        assert set(meter.info.total_rails) <= set(meter.read()) == set(meter.info.rails)


def test_reasons_are_joined_in_order():
    """One sentence for `not measured`."""
    words = energy.why_not([Absent("a", "no a"), Absent("b", "no b")])

    assert words.startswith("no energy meter can be read here (a: no a; b: no b).")
