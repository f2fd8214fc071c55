"""Settings: one text each, that parses back; plans that make no sense are refused with the reason."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from profiler.errors import EdgeprofError, StudyError
from profiler.load.scenario import SCENARIOS, LoadPlan, Setting, parse_setting
from profiler.study import make_study, read_study


@st.composite
def settings(draw):
    name = draw(st.sampled_from(SCENARIOS))
    batch = draw(st.integers(1, 1024))
    own = {
        "multi": {"samples": draw(st.integers(1, 1000))},
        "concurrency": {"in_flight": draw(st.integers(1, 1000))},
        "server": {"arrivals": draw(st.sampled_from(["poisson", "constant", "trace"]))},
    }
    delay = draw(st.floats(0, 10)) if batch > 1 else 0.0
    return Setting(name, draw(st.integers(1, 256)), batch, delay, **own.get(name, {}))


@given(settings())
def test_a_setting_s_text_parses_back(setting):
    """Records are keyed by it; delays keep every digit."""
    assert parse_setting(str(setting)) == setting


def test_the_text_is_what_people_read_in_records():
    """Only what is not the default, in alphabetical order."""
    setting = Setting("server", workers=2, max_batch=8, max_delay_s=0.002)

    assert str(setting) == "server{max_batch=8,max_delay_s=0.002,workers=2}"
    assert str(Setting("single")) == "single"
    assert setting.batching == "batch up to 8 within 2 ms"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("serve", "Did you mean server"), ("server:gpu", "no ':gpu'"), ("server{worker=2}", "Did you mean workers"),
        ("server{workers=two}", "workers=two.*expected a number"), ("server{workers=0}", "from 1 to"),
        ("server{max_delay_s=0.1}", "only delays"), ("server{max_batch=8,max_delay_s=nan}", "0 to 10 seconds"),
        ("single{in_flight=2}", "belongs to the scenario 'concurrency'"), ("server{arrivals=burst}", "kind of arrivals"),
        ("server{max_batch=100000}", "from 1 to 1024"),
    ],
)  # fmt: skip
def test_settings_that_are_not_possible_are_refused(text, words):
    """With what came and what was expected."""
    with pytest.raises(EdgeprofError, match=words):
        parse_setting(text)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"settings": ()}, "at least one setting"),
        ({"settings": ("server",)}, "needs rates_per_s, a trace, or find_max_rate"),
        ({"settings": ("serve",)}, "Did you mean server"),
        ({"settings": ("server",), "rates_per_s": (0.0,)}, "a rate of 0 per second is not possible"),
        ({"settings": ("server",), "rates_per_s": (float("inf"),)}, "not possible"),
        ({"settings": ("server",), "find_max_rate": True}, "needs slo_s"),
        ({"settings": ("single",), "find_max_rate": True, "slo_s": 1}, "needs slo_s and a server setting"),
        ({"settings": ("server",), "find_max_rate": True, "slo_s": 1, "rates_per_s": (5,)}, "give no rates"),
        ({"settings": ("server",), "trace": "t.txt"}, "go together"),
        ({"settings": ("server{arrivals=trace}",), "rates_per_s": (5,)}, "go together"),
        ({"settings": ("single",), "duration": 1}, "Did you mean duration_s"),
    ],
)
def test_plans_that_are_not_possible_are_refused_by_the_study(fields, words):
    """As every other wrong field of a study, before anything is measured."""
    with pytest.raises(StudyError, match=words):
        make_study(model="m.onnx", load=fields)


def test_a_plan_is_canonical_and_travels_in_the_study():
    """Options in any order are the same plan, through JSON too."""
    plan = LoadPlan(settings=("server{workers=2,max_batch=4}", "server{max_batch=4,workers=2}"), rates_per_s=(5, 5))
    study = make_study(model="m.onnx", load=plan.model_dump())

    assert plan.settings == ("server{max_batch=4,workers=2}",)
    assert plan.rates_per_s == (5.0,)
    assert type(study).model_validate_json(study.to_json()) == study


def test_a_study_file_may_ask_for_load_and_finds_its_trace_beside_it(tmp_path):
    """Relative to the file; a load of a study file does not leave the rest out."""
    file = tmp_path / "study.toml"
    file.write_text('model = "m.onnx"\n[load]\nsettings = ["server{arrivals=trace}"]\ntrace = "t.csv"\n')
    load = read_study(file).load

    assert load is not None
    assert load.trace == str(tmp_path.resolve() / "t.csv")
    assert not load.only
