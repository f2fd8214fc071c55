"""The same job from Python."""

from __future__ import annotations

import pytest

import profiler
from profiler.api import open_run, run_study
from profiler.errors import StoreError, StudyError

EFFORT = {"processes": 1, "rounds": 1, "block_s": 0.002, "warmup_s": 0.002, "warmup_max_s": 0.02, "requeue_share": 0.0}


@pytest.mark.process
def test_a_model_is_profiled_and_read_again(tmp_path, small_model, small_data):
    """Result, frontier, recommendation, text, notebook table and report come from one object; opened later it says the same."""
    result = profiler.profile(
        small_model, small_data, out=tmp_path, backends=("fake{read=false}",), variants=("fp32",), effort=EFFORT
    )
    again = open_run(out=tmp_path)

    assert [case.case.variant for case in result.cases] == ["fp32"]
    assert [case.key for case in result.frontier().members] == ["fp32@fake{read=false}/b1/t1"]
    assert result.recommendation.case.case.variant == "fp32"
    assert result.recommendation.headline in str(result)
    assert result._repr_html_().startswith("<pre>")
    assert str(result) == str(again)
    assert result.report().is_file()
    assert (tmp_path / "r.html") == result.report(tmp_path / "r.html")


@pytest.mark.process
def test_a_study_made_before_is_done(tmp_path, fake_study):
    """From a file or from code."""
    assert run_study(fake_study(effort=EFFORT, data=None), out=tmp_path).run.status == "finished"


def test_impossible_settings_are_study_errors(tmp_path, small_model):
    """One base class, and nothing on disk."""
    with pytest.raises(StudyError, match="Did you mean backends"):
        profiler.profile(small_model, out=tmp_path / "o", backend="ort")
    with pytest.raises(profiler.EdgeprofError):
        profiler.profile(small_model, out=tmp_path / "o", batches=(0,))

    assert not (tmp_path / "o").exists()


def test_a_run_that_is_not_there_is_a_store_error(tmp_path):
    """Reading makes nothing."""
    with pytest.raises(StoreError, match="--out"):
        open_run(out=tmp_path)
