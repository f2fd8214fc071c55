"""`edgeprof explain` on stored runs, over real workers with the fake backend."""

from __future__ import annotations

import json

import pytest

from profiler import api
from profiler.cli.app import EXIT_ERROR, EXIT_OK, _run
from profiler.run import execute

OPS = "c1:Conv:f32:30|c2:Cast:conversion:20"
pytestmark = pytest.mark.process


@pytest.fixture(scope="module")
def stored(tmp_path_factory, small_model, small_data):
    """A run of fp32 on two backends that differ in a Cast."""
    from profiler.study import make_study

    out = tmp_path_factory.mktemp("runs")
    effort = {
        "processes": 1, "rounds": 1, "block_s": 0.002, "block_samples": 5, "warmup_s": 0.002, "warmup_max_s": 0.02,
    }  # fmt: skip
    plain = "fake{latency_us=100,ops=c1:Conv:f32:30,read=false}"
    study = make_study(
        model=str(small_model), data=str(small_data), variants=("fp32",), effort=effort, time_limit_s=30.0,
        backends=(plain, f"fake{{latency_us=200,ops={OPS},read=false}}"),
    )  # fmt: skip
    execute(study, out=out)
    return out


def explain(out, *arguments):
    return _run(["explain", "latest", *arguments, "--out", str(out), "--goes", "1"], debug=False)


def test_a_case_against_another_of_the_run(stored, capsys):
    """The Cast is found, and its time."""
    assert explain(stored, "2", "--against", "1", "--show-ops") == EXIT_OK
    text = capsys.readouterr().out
    assert "slower than fp32@fake{latency_us=100" in text
    assert "changing the representation between ops" in text
    assert "explains 20 µs" in text
    assert "(Cast)" in text


def test_json(stored, capsys):
    """The ranking for programs."""
    assert explain(stored, "2", "--against", "1", "--json") == EXIT_OK
    content = json.loads(capsys.readouterr().out)
    # Two small matrix products take next to no time of 200 µs, which is also true.
    assert [cause["key"] for cause in content["causes"]] == ["tiny-model", "conversions"]
    assert content["time_ratio"] > 1
    assert content["evidence"]["machine"]["usable_cores"] >= 1


def test_a_reference_of_another_backend_is_compared_with_that_of_the_run(stored, capsys):
    """Not with itself."""
    assert explain(stored, "2") == EXIT_OK
    assert "slower than fp32@fake{latency_us=100" in capsys.readouterr().out


def test_the_reference_is_not_explained_by_itself(stored, capsys):
    """The next words say what to name instead."""
    assert explain(stored, "1") == EXIT_ERROR
    assert "is the reference itself: name a variant" in capsys.readouterr().err


def test_an_unknown_case_is_answered_with_the_known_ones(stored, capsys):
    """As everywhere."""
    assert explain(stored, "int9") == EXIT_ERROR
    assert "unknown case 'int9'" in capsys.readouterr().err


def test_no_goes_are_a_mistake(stored, capsys):
    """With the number that works."""
    assert _run(["explain", "latest", "2", "--out", str(stored), "--goes", "0"], debug=False) == EXIT_ERROR
    assert "--goes 1 or more" in capsys.readouterr().err


def test_artifacts_that_are_gone_are_named(stored, capsys, tmp_path):
    """The database alone cannot be loaded into a runtime."""
    for file in stored.iterdir():
        if file.is_file():
            (tmp_path / file.name).write_bytes(file.read_bytes())
    assert api.open_run("latest", out=tmp_path).run.id
    assert explain(tmp_path, "2", "--against", "1") == EXIT_ERROR
    assert "run the study again" in capsys.readouterr().err
