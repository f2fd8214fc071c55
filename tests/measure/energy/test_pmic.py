"""Raspberry Pi 5: current times voltage of each rail, from what the firmware prints.

The sample is a complete public recording of `vcgencmd pmic_read_adc` on a Raspberry Pi 5 under load (all currents, then all
voltages, as the command prints them).
"""

from __future__ import annotations

import pytest

from profiler.measure.energy import pmic
from profiler.measure.energy.base import Absent, CommandError, MeterLost

SAMPLE = """\
     3V7_WL_SW_A current(0)=0.05855580A
       3V3_SYS_A current(1)=0.06148359A
       1V8_SYS_A current(2)=0.13272650A
      DDR_VDD2_A current(3)=0.13955800A
      DDR_VDDQ_A current(4)=0.00980400A
       1V1_SYS_A current(5)=0.19811380A
        0V8_SW_A current(6)=0.34157550A
      VDD_CORE_A current(7)=5.03652000A
       3V3_DAC_A current(17)=0.00006105A
       3V3_ADC_A current(18)=0.00054945A
       0V8_AON_A current(16)=0.00531135A
          HDMI_A current(22)=0.02161170A
     3V7_WL_SW_V volt(8)=3.61069200V
       3V3_SYS_V volt(9)=3.29982600V
       1V8_SYS_V volt(10)=1.81684800V
      DDR_VDD2_V volt(11)=1.10109800V
      DDR_VDDQ_V volt(12)=0.60366240V
       1V1_SYS_V volt(13)=1.10292900V
        0V8_SW_V volt(14)=0.80292960V
      VDD_CORE_V volt(15)=0.89369880V
       3V3_DAC_V volt(20)=3.29944700V
       3V3_ADC_V volt(21)=3.30402600V
       0V8_AON_V volt(19)=0.79618980V
          HDMI_V volt(23)=4.92450000V
         EXT5V_V volt(24)=4.92450000V
          BATT_V volt(25)=0.00341880V
"""
MODEL = {"proc/device-tree/model": "Raspberry Pi 5 Model B Rev 1.0\0"}


def answering(*texts):
    """A `run` that gives one answer after the other, the last one for ever."""
    left = list(texts)

    def run(arguments):
        assert tuple(arguments) == ("vcgencmd", "pmic_read_adc")
        answer = left.pop(0) if len(left) > 1 else left[0]
        if isinstance(answer, Exception):
            raise answer
        return answer

    return run


def test_the_recorded_sample_gives_its_powers(tree):
    """VDD_CORE is 5.03652 A x 0.8936988 V; the twelve rails with a current add up to 5.92 W, and no 5 V input is among them."""
    meter = pmic.find(tree(MODEL), run=answering(SAMPLE))
    watts = meter.read()

    assert watts["VDD_CORE"] == pytest.approx(4.50113, abs=1e-5)
    assert watts["3V7_WL_SW"] == pytest.approx(0.211427, abs=1e-6)
    assert watts["HDMI"] == pytest.approx(0.106427, abs=1e-6)
    assert len(watts) == 12
    assert not {"EXT5V", "BATT"} & set(watts)
    assert set(meter.info.total_rails) == set(watts)
    assert sum(watts.values()) == pytest.approx(5.921612, abs=1e-5)


def test_what_it_leaves_out_is_said(tree):
    """Nobody may take it for the power at the plug."""
    info = pmic.find(tree(MODEL), run=answering(SAMPLE)).info

    assert any("5 V peripherals and conversion loss" in note for note in info.notes)
    assert info.kind == "power"


def test_two_columns_are_read_as_well():
    """Some terminals and logs show current and voltage side by side."""
    lines = SAMPLE.splitlines()
    joined = "\n".join(f"{left}   {right}" for left, right in zip(lines[:12], lines[12:24], strict=True))

    assert pmic.parse(joined) == pmic.parse(SAMPLE)


def test_a_rail_without_a_number_is_left_out_and_said(tree):
    """Some firmware prints `nan`; the others still count."""
    text = SAMPLE.replace("current(22)=0.02161170A", "current(22)=nanA")
    meter = pmic.find(tree(MODEL), run=answering(text))

    assert "HDMI" not in meter.info.rails
    assert sum(meter.read().values()) == pytest.approx(5.921612 - 0.106427, abs=1e-5)
    assert any("no number: HDMI" in note for note in meter.info.notes)


@pytest.mark.parametrize(
    "later",
    [
        SAMPLE.replace("current(7)=5.03652000A", "current(7)=nanA"),
        "".join(line for line in SAMPLE.splitlines(True) if "VDD_CORE_V" not in line),
        CommandError("'vcgencmd pmic_read_adc' ended with exit code 255"),
        "",
    ],
    ids=["nan", "rail gone", "command", "nothing"],
)
def test_a_reading_that_lacks_a_rail_is_lost(tree, later):
    """A sum without it would be a plausible lie."""
    meter = pmic.find(tree(MODEL), run=answering(SAMPLE, later))

    with pytest.raises(MeterLost, match="power chip"):
        meter.read()


@pytest.mark.parametrize(
    ("files", "answer", "words"),
    [
        ({}, SAMPLE, "not a Raspberry Pi 5"),
        ({"proc/device-tree/model": "NVIDIA Jetson Orin Nano\0"}, SAMPLE, "not a Raspberry Pi 5"),
        ({"proc/device-tree/model": "Raspberry Pi 4 Model B Rev 1.4\0"}, SAMPLE, "no current sensors"),
        (MODEL, FileNotFoundError("vcgencmd"), "apt install raspi-utils"),
        (MODEL, CommandError("Can't open device file: /dev/vcio"), "usermod -aG video"),
        (MODEL, 'error=1 error_msg="Command not registered"', "update the firmware"),
    ],
    ids=["other", "jetson", "pi 4", "no command", "no right", "old firmware"],
)
def test_its_absence_has_a_reason(tree, files, answer, words):
    """And what to do about it."""
    absent = pmic.find(tree(files), run=answering(answer))

    assert isinstance(absent, Absent)
    assert words in absent.reason


@pytest.mark.parametrize("model", ["Raspberry Pi 500 Rev 1.0", "Raspberry Pi Compute Module 5 Rev 1.0"])
def test_its_siblings_have_the_same_chip(tree, model):
    """By the names of their device trees."""
    assert not isinstance(pmic.find(tree({"proc/device-tree/model": model}), run=answering(SAMPLE)), Absent)
