"""A limit that cannot be meant for the metric is refused before variants are made, also where the metric is chosen."""

from __future__ import annotations

import numpy as np
import pytest

from profiler.errors import StudyError
from profiler.run import execute
from profiler.search.run import execute_search
from profiler.store import open_store
from profiler.study import Constraints, make_study

EFFORT = {"processes": 1, "rounds": 1, "block_s": 0.002, "block_samples": 5, "warmup_s": 0.002, "warmup_max_s": 0.02}


@pytest.fixture
def regression(tmp_path, small_data):
    """The rows of `small_model` with labels of no class, so that rmse is chosen."""
    path = tmp_path / "regression.npz"
    rows = np.load(small_data)["x"]
    np.savez(path, x=rows, labels=np.random.default_rng(0).standard_normal((len(rows), 2)).astype(np.float32))
    return path


def asked(model, data, drop, **more):
    return make_study(
        model=str(model), data=str(data), backends=("fake{read=false}",), variants=("bf16",), effort=EFFORT,
        constraints={"max_drop": drop}, **more,
    )  # fmt: skip


@pytest.mark.process
@pytest.mark.runtime
@pytest.mark.parametrize("begin", [execute, execute_search], ids=["run", "search"])
def test_points_of_a_metric_that_was_chosen(begin, regression, small_model, tmp_path, monkeypatch):
    """Labels of no class make rmse, whose losses are no points: told before a variant is made, and no run is left."""
    from profiler import prepare

    made = []
    real = prepare.make_artifact

    def seen(store, prepared, variant):
        made.append(variant.text)
        return real(store, prepared, variant)

    monkeypatch.setattr(prepare, "make_artifact", seen)
    with pytest.raises(
        StudyError, match=r"1 points is of a proportion, but rmse has a unit of its own.*--max-drop 0\.5"
    ):
        begin(asked(small_model, regression, "1pt", time_budget_s=60.0), out=tmp_path / "runs")

    assert made == ["fp32"]
    store = open_store(tmp_path / "runs")
    assert not store.runs()
    store.close()


@pytest.mark.process
@pytest.mark.runtime
@pytest.mark.parametrize("begin", [execute, execute_search], ids=["run", "search"])
def test_half_of_what(begin, small_data, small_model, tmp_path):
    """0.5 of an accuracy is asked about, with both ways to write it."""
    with pytest.raises(StudyError, match=r"--max-drop 0\.5pt or --max-drop 50pt"):
        begin(asked(small_model, small_data, 0.5, time_budget_s=60.0), out=tmp_path / "runs")


@pytest.mark.parametrize("metric", ["top1", "f1"])
def test_half_of_a_metric_that_is_named(metric, small_data, small_model, tmp_path):
    """Nothing has to be read for that."""
    with pytest.raises(StudyError, match=rf"50 percentage points of {metric}, or was 0\.5 points meant"):
        execute(asked(small_model, tmp_path / "none.npz", 0.5, metric=metric), out=tmp_path / "runs")


@pytest.mark.parametrize(
    ("drop", "unit", "clear"),
    [
        (0.5, "proportion", False), (0.1, "proportion", False), (0.09, "proportion", True), (0.01, "proportion", True),
        ("0.5pt", "proportion", True), ("50pt", "proportion", True), ("50%", "proportion", True), (0.5, "native", True),
    ],
)  # fmt: skip
def test_when_a_number_is_clear(drop, unit, clear):
    """Small ones, those with a unit, and those of a metric that has one."""
    assert (Constraints.model_validate({"max_drop": drop}).drop_doubt("m", unit) is None) == clear


@pytest.mark.process
@pytest.mark.runtime
def test_a_run_that_was_begun_with_a_bare_number_goes_on(small_data, small_model, tmp_path, monkeypatch):
    """What is stored keeps the meaning that it was measured with."""
    from profiler import study

    with monkeypatch.context() as patch:
        patch.setattr(study, "UNCLEAR_DROP", 2.0)
        run_id = execute(asked(small_model, small_data, 0.5), out=tmp_path / "runs")
    store = open_store(tmp_path / "runs")
    store.set_status(run_id, "interrupted")
    store.close()

    assert execute(None, out=tmp_path / "runs", resume=run_id) == run_id
