"""The printed command asks the same: read back by the command line's own options, it gives an equal study."""

from __future__ import annotations

import shlex
from unittest import mock

import pytest
import typer

from profiler import advice
from profiler.repeat import study_command
from profiler.study import Study, make_study

EVERYTHING = {
    "model": "my model.onnx", "data": "rows of it's.npz", "calibration": "c.npz", "calibration_samples": 100,
    "preprocessing": {"resize": 256, "mean": [0.5, 0.25, 1e-3], "name": 'a "b"'}, "limit": 77,
    "input_shapes": {"x": (3, 4), "y=1": (2,)},
    "variants": ("fp16", "int8-static{per_channel=true}"), "backends": ("ort:cuda", "ov{shape=dynamic}"),
    "targets": ("local",), "batches": (1, 8), "threads": (2,), "metric": "rmse{output=y}",
    "constraints": {"max_drop": 2.5, "slo_p99_s": 0.005, "max_memory_bytes": 123_456_789, "max_usd_per_million": 0.05},
    "cost": {"machine": "aws:c7i.large", "utilisation": 0.5, "lifetime_years": 2.0, "electricity_usd_per_kwh": 0.3,
             "prices": "p.csv"},
    "effort": {"processes": 7, "rounds": 4, "block_s": 0.05, "precision": 0.02}, "soak": {"max_s": 60.0, "each": True},
    "load": {"settings": ("server{max_batch=8,max_delay_s=0.002}", "single"), "find_max_rate": True, "slo_s": 0.01},
    "energy": {"windows": 20, "command": "read watts --every '1 s'"}, "seed": 9, "time_limit_s": 12.5,
    "memory_limit_bytes": 4_000_000_000, "time_budget_s": 600.0,
}  # fmt: skip


def read_back(line: str) -> Study:
    """The study that the command line makes of the line, without running it."""
    from profiler.cli import app

    words = shlex.split(line)
    assert words[0] == "edgeprof"
    found: list[Study] = []

    def keep(study: Study | None, *_args: object, **_named: object) -> str:
        assert study is not None
        found.append(study)
        raise typer.Exit(0)

    with mock.patch("profiler.run.execute", keep), mock.patch("profiler.search.run.execute_search", keep):
        app._run(words[1:], debug=True)
    return found[0]


@pytest.mark.parametrize("field", sorted(Study.model_fields))
def test_every_field_of_a_study_comes_back(field):
    """A field added later is tested on the day it is added: it has to be in EVERYTHING."""
    assert field in EVERYTHING
    study = make_study(
        **{"model": "m.onnx", field: EVERYTHING[field]}, **({"metric": "rmse"} if field == "constraints" else {})
    )
    if field not in ("model", "targets"):
        assert getattr(study, field) != getattr(make_study(model="m.onnx"), field)

    assert read_back(study_command(study)) == study


def test_a_study_of_everything_comes_back():
    """All fields at once."""
    study = make_study(**EVERYTHING)

    assert read_back(study_command(study)) == study


@pytest.mark.parametrize("table", ["energy", "soak"])
def test_a_stage_with_everything_as_usual_is_not_forgotten(table):
    """An energy stage without a setting of its own is still asked for."""
    study = make_study(model="m.onnx", **{table: {}})

    assert read_back(study_command(study)) == study


@pytest.mark.parametrize("effort", ["quick", "default", "thorough"])
def test_named_efforts_have_their_names(effort):
    """`--quick` and not ten settings."""
    study = make_study(model="m.onnx", effort=effort)
    line = study_command(study)

    assert "--set" not in line
    assert read_back(line) == study


@pytest.mark.parametrize("drop", ["1pt", "0.7 points", "0.01", "0.5dB", "33.3%"])
def test_limits_come_back_with_what_their_text_said(drop):
    """Points stay points, a metric's own unit stays that."""
    study = make_study(model="m.onnx", metric="rmse", constraints={"max_drop": drop})

    assert read_back(study_command(study)) == study


def test_a_search_is_asked_as_before():
    """What a search is asked beyond its study stands in its command; variants that it chose itself are left to it."""
    study = make_study(
        model="m.onnx", data="d.npz", variants=("fp16",), constraints={"max_drop": "1pt"}, batches=(1, 2)
    )
    asked = {"objective": "memory", "alpha": 0.1, "seeds": False, "enough": 0.5, "mixed": False}
    line = study_command(study, search=asked)

    assert read_back(line) == study
    assert shlex.split(line)[-7:-1] == ["--objective", "memory", "--alpha", "0.1", "--enough", "2.0x"]
    assert "--variants" not in study_command(study, search={**asked, "mixed": True})


def test_commands_name_the_place_of_the_runs():
    """With a folder that has a space in its name, and a database."""
    try:
        advice.runs_lie_in("my runs", "sqlite:///x y.db")
        assert shlex.split(advice.of_run("show", "latest", 1)) == [
            "edgeprof", "show", "latest", "1", "--out", "my runs", "--database", "sqlite:///x y.db",
        ]  # fmt: skip
        advice.forget()
        assert advice.of_run("runs") == "edgeprof runs"
    finally:
        advice.forget()
