"""`edgeprof soak` end to end on real workers, with a machine whose time and heat are made up; and what it says of mistakes."""

from __future__ import annotations

import json

import numpy as np
import pytest

from profiler import campaign, soak
from profiler.cli import soak_command
from profiler.records import Estimate, NotMeasured
from profiler.soak_result import CaseSoak, Course, Soak
from profiler.stats.thermal import SustainedRatio, ThermalState

QUICK = ("--burst", "0.5s", "--sustained", "0.5s", "--backends", "fake{latency_us=200,read=false}")


class QuickMachine:
    """Each look at the clock is a tenth of a minute later; the temperature follows it up to 60 °C."""

    def __init__(self):
        self.now = 0.0

    def clock(self):
        self.now += 0.1
        return self.now

    def sleep(self, seconds):
        self.now += seconds

    def observe(self):
        self.now += 10.0
        return soak.Observation(
            30.0 if self.now < 200 else 60 - 30 * float(np.exp((200 - self.now) / 20)), 2e9, None, ()
        )


@pytest.fixture
def quick_machine(monkeypatch):
    """Soaks run on it."""
    real = soak.measure

    def measure(job, groups, machine=None):
        made = QuickMachine()
        real(job, groups, soak.Machine(made.clock, made.sleep, made.observe))

    usual = campaign.measure
    monkeypatch.setattr(soak, "_HEATING_BLOCK_S", 0.002)
    monkeypatch.setattr(soak, "measure", measure)
    monkeypatch.setattr(
        campaign, "measure", lambda job, groups: (measure if job.study.soak is not None else usual)(job, groups)
    )


@pytest.mark.process
def test_a_soak_is_measured_shown_and_shown_again(edgeprof, quick_machine, tmp_path, small_model):
    """Ratio with interval, start, course and throttling; the stored run says the same."""
    told = edgeprof("soak", small_model, *QUICK, "--max", "20min", "--out", tmp_path)
    again = edgeprof("soak", "--show", "latest", "--out", tmp_path)

    assert told.code == 0, told.err
    assert "sustained / burst" in told.out
    assert "over" in told.out
    assert "rounds" in told.out
    assert "start: cool, 30.0 °C" in told.out
    assert "steady, over 180 s" in told.out
    assert "temperature" in told.out
    assert "2.00 → 2.00 GHz" in told.out
    assert "said to be held back in 0 of" in told.out
    assert told.out == again.out


@pytest.mark.process
def test_json_is_the_soak(edgeprof, quick_machine, tmp_path, small_model):
    """Numbers for another program, null where a sensor was silent."""
    told = edgeprof("soak", small_model, *QUICK, "--max", "1min", "--each", "--out", tmp_path, "--json")
    content = json.loads(told.out)

    assert content["cases"][0]["ratio"]["unit"] == "round"
    assert content["courses"][0]["state"]["state"] == "unknown"
    assert content["courses"][0]["throttles"] is None
    assert len(content["courses"][0]["times_s"]) == len(content["courses"][0]["temperatures_c"])


@pytest.mark.process
def test_a_case_that_fails_is_told_and_is_no_result(edgeprof, quick_machine, tmp_path, small_model):
    """Exit code 1, with the reason."""
    told = edgeprof("soak", small_model, "--backends", "fake{fail=raise,read=false}", "--out", tmp_path)

    assert told.code == 1
    assert "failed: fp32@fake" in told.out
    assert "told to fail" in told.out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "give either a model"), (("m.onnx", "--show", "latest"), "give either a model"),
        (("m.onnx", "--max", "long"), "cannot read 'long'"), (("m.onnx", "--cool-to", "-1"), "soak.cool_to_c"),
        (("m.onnx", "--processes", "0"), "effort.processes"),
    ],
)  # fmt: skip
def test_mistakes_are_one_message(edgeprof, tmp_path, arguments, words):
    """Before anything is measured."""
    told = edgeprof("soak", *arguments, "--out", tmp_path)

    assert told.code == 2
    assert words in told.err


def test_a_run_without_a_soak_says_what_makes_one(edgeprof, finished):
    """Also when it has other results."""
    told = edgeprof("soak", "--show", "latest", "--out", finished)

    assert told.code == 2
    assert "holds no soak" in told.err


def course(**changes):
    fields = {
        "replicate": 0, "group": 0, "cases": ("a",), "times_s": np.array([0.0, 60.0, 240.0]), "phases": np.array([0, 1, 2]),
        "temperatures_c": np.array([40.0, 60.0, 71.5]), "clocks_hz": np.full(3, np.nan), "slowdown": np.array([1.0, 1.2, 1.5]),
        "held": np.array([0.0, 1.0, 1.0]), "throttles": 3, "first_throttle_s": 60.0,
        "state": ThermalState("steady", 0.1, None, None, "because"), "idle_c": 39.0, "start_c": 40.0,
        "waited_s": 65.0, "cool": True,
    }  # fmt: skip
    return Course(**{**fields, **changes})


def test_the_page_tells_what_is_known_and_what_is_not():
    """Each line of a soak in words, whatever is missing."""
    cases = (
        CaseSoak(
            "a", Estimate(0.004, 0.0039, 0.0041, "s"), Estimate(0.006, None, None, "s"),
            SustainedRatio(1.5, 1.4, 1.6, "process", 3),
        ),
        CaseSoak("b", Estimate(0.004, 0.0039, 0.0041, "s"), NotMeasured("not reached"), NotMeasured("no process has both")),
    )  # fmt: skip
    text = "\n".join(
        soak_command._table(Soak(cases, (course(), course(start_c=None), course(cool=False), course(cool=None))))
    )

    assert "4.00 ms [3.90, 4.10 ms]" in text
    assert "6.00 ms [?, ?]" in text
    assert "1.500 [1.400, 1.600] over 3 processs" not in text
    assert "1.500 [1.400, 1.600] over 3 processes" in text
    assert "not measured" in text
    assert "b: no process has both" in text
    assert "40.0 → 71.5 °C" in text
    assert "clock            not told here" in text
    assert "3 events counted, said to be held back in 2 of 3 rounds, first after 60 s of load" in text
    assert all(words in text for words in ("start: cool", "start: WARM", "cannot be known", "idle was not seen"))


def test_a_chart_rises_with_its_values():
    """Lowest bar first, highest last, and a gap where there was no round."""
    line = soak_command._chart("temperature", course(), course().temperatures_c, 1.0, "°C", 1)
    bars = [char for char in line if char in soak_command._BARS]

    assert (bars[0], bars[-1]) == ("▁", "█")
    assert len(bars) == 3
