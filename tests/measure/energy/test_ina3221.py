"""Jetson boards: rails by label; a rail that feeds the module is the total, and what lies inside it is never added.

Labels and powers are those of public recordings: tegrastats lines of an Orin Nano (JetPack 6.2), a Nano (JetPack 4.6.1) and a
Xavier NX (JetPack 5.1.2) from waggle-sensor/jetson-exporter's tests, an AGX Orin (L4T R36.4.4) from lesomnus/tegra-exporter's.
Voltages there are not recorded; trees here have 5 V and the current that makes the recorded power.
"""

from __future__ import annotations

import pytest

from profiler.measure.energy import ina3221
from profiler.measure.energy.base import Absent, MeterLost

DRIVER = "sys/bus/i2c/drivers/ina3221"


def board(*chips, volts_mv=5000):
    """hwmon trees of one or more monitors: each a list of (label, mW) by channel."""
    files = {}
    for number, channels in enumerate(chips):
        folder = f"{DRIVER}/1-004{number}/hwmon/hwmon{3 + number}"
        for channel, (label, milliwatts) in enumerate(channels, 1):
            files[f"{folder}/in{channel}_label"] = f"{label}\n"
            files[f"{folder}/in{channel}_input"] = f"{volts_mv}\n"
            files[f"{folder}/curr{channel}_input"] = f"{milliwatts * 1000 / volts_mv}\n"
    return files


ORIN_NANO = board([("VDD_IN", 16321), ("VDD_CPU_GPU_CV", 7104), ("VDD_SOC", 3120)])
XAVIER_NX = board([("VDD_IN", 2763), ("VDD_CPU_GPU_CV", 650), ("VDD_SOC", 650)])
NANO = board([("POM_5V_IN", 1750), ("POM_5V_GPU", 0), ("POM_5V_CPU", 366)])
AGX_ORIN = board(
    [("VDD_GPU_SOC", 2412), ("VDD_CPU_CV", 1607), ("VIN_SYS_5V0", 4707)],
    [("NC", 0), ("VDDQ_VDD2_1V8AO", 301), ("NC", 0)],
)


@pytest.mark.parametrize(
    ("files", "total", "watts"),
    [
        (ORIN_NANO, ("VDD_IN",), 16.321),
        (XAVIER_NX, ("VDD_IN",), 2.763),
        (NANO, ("POM_5V_IN",), 1.750),
        (AGX_ORIN, ("VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0"), 2.412 + 1.607 + 4.707),
    ],
    ids=["orin nano", "xavier nx", "nano", "agx orin"],
)
def test_recorded_boards_give_their_recorded_totals(tree, files, total, watts):
    """mV times mA; the module's input where there is one, else the rails, with memory counted once."""
    meter = ina3221.find(tree(files))
    reading = meter.read()

    assert meter.info.total_rails == total
    assert sum(reading[rail] for rail in total) == pytest.approx(watts)


def test_unconnected_channels_are_no_rails_and_the_memory_rail_stays_visible(tree):
    """`NC` twice on one monitor."""
    meter = ina3221.find(tree(AGX_ORIN))

    assert meter.info.rails == ("VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0", "VDDQ_VDD2_1V8AO")
    assert meter.read()["VDDQ_VDD2_1V8AO"] == pytest.approx(0.301)
    assert any("VDDQ_VDD2_1V8AO taken as part of VIN_SYS_5V0" in note for note in meter.info.notes)
    assert "carrier board excluded" in meter.info.coverage


def test_a_memory_rail_alone_is_added(tree):
    """Where the input that it lies in is not monitored, it would be missing."""
    files = board([("VDD_GPU_SOC", 1000), ("VDD_CPU_CV", 500), ("VDDQ_VDD2_1V8AO", 300)])

    assert ina3221.find(tree(files)).info.total_rails == ("VDD_GPU_SOC", "VDD_CPU_CV", "VDDQ_VDD2_1V8AO")


def test_the_older_driver_shows_power_itself(tree):
    """JetPack 4: iio channels from 0, in mW."""
    folder = "sys/bus/i2c/drivers/ina3221x/6-0040/iio:device0"
    files = {}
    for channel, (label, milliwatts) in enumerate([("POM_5V_IN", 1750), ("POM_5V_GPU", 0), ("POM_5V_CPU", 366)]):
        files[f"{folder}/rail_name_{channel}"] = label
        files[f"{folder}/in_power{channel}_input"] = f"{milliwatts}\n"
    meter = ina3221.find(tree(files))

    assert meter.read() == {"POM_5V_IN": 1.75, "POM_5V_GPU": 0.0, "POM_5V_CPU": 0.366}
    assert meter.info.total_rails == ("POM_5V_IN",)


def test_equal_labels_on_two_monitors_stay_two_rails(tree):
    """Neither hides the other."""
    meter = ina3221.find(tree(board([("SYS", 100)], [("SYS", 200)])))

    assert sorted(meter.read().values()) == pytest.approx([0.1, 0.2])


def test_a_slow_monitor_says_how_slow(tree):
    """`update_interval` is in milliseconds; without it 10 ms are assumed."""
    slow = ORIN_NANO | {f"{DRIVER}/1-0040/hwmon/hwmon3/update_interval": "35\n"}

    assert ina3221.find(tree(ORIN_NANO)).info.update_s == pytest.approx(0.01)
    assert ina3221.find(tree(slow)).info.update_s == pytest.approx(0.035)


def test_a_rail_that_vanishes_is_lost(tree):
    """A sensor that answers EAGAIN or is gone."""
    root = tree(ORIN_NANO)
    meter = ina3221.find(root)
    (root / f"{DRIVER}/1-0040/hwmon/hwmon3/curr2_input").unlink()

    with pytest.raises(MeterLost, match="INA3221"):
        meter.read()


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({}, "no INA3221 power monitor"),
        ({f"{DRIVER}/bind": ""}, "no INA3221 power monitor"),
        (board([("NC", 0)]), "no labelled rail"),
        ({f"{DRIVER}/1-0040/hwmon/hwmon3/in1_label": "VDD_IN"}, "no labelled rail"),
    ],
    ids=["no driver", "no device", "not connected", "no values"],
)
def test_its_absence_has_a_reason(tree, files, words):
    """Nothing to read is not zero watts."""
    absent = ina3221.find(tree(files))

    assert isinstance(absent, Absent)
    assert words in absent.reason
