"""The tabular control: nothing to gain, one runtime that cannot run it, and a result all the same."""

from __future__ import annotations

import pytest

pytest.importorskip("sklearn")
pytest.importorskip("skl2onnx")

from profiler.records import Estimate

pytestmark = [pytest.mark.real_models, pytest.mark.sklearn, pytest.mark.process, pytest.mark.runtime]


@pytest.fixture
def result(prepared, profiled):
    return profiled(prepared("random-forest"), batches=(1,))


def test_a_forest_is_measured_where_it_runs_and_fails_where_it_does_not(result):
    """T3, T10: quantizers find nothing, OpenVINO has no trees; both are results, and the rest was measured."""
    status = {case.key: case.status for case in result.cases}
    notes = {record.variant: record.notes for record in result.run.artifacts}

    assert status["fp32@ort/b1/t1"] == "measured"
    assert status["fp32@ov/b1/t1"] == "failed"
    assert status["int8-static@ort/b1/t1"] == "skipped"
    failure = result.analysis.case("fp32@ov/b1/t1").failure
    assert (failure.stage, failure.kind) == ("quality", "unsupported")
    assert "TreeEnsembleClassifier" in failure.message
    for variant in ("int8-static", "int8-dynamic"):
        assert notes[variant][0].startswith("nothing was quantized")


def test_a_forest_answers_as_scikit_learn_does(result):
    """Accuracy through the whole pipeline is that of the estimator in memory."""
    from scripts.real_models_lib import forest

    features, labels, held_out = forest._halves()
    expected = (forest.factory().predict(features[held_out]) == labels[held_out]).mean()
    accuracy = result.analysis.case("fp32@ort/b1/t1").accuracy

    assert isinstance(accuracy, Estimate)
    assert expected == pytest.approx(accuracy.value, abs=1e-12)
    assert accuracy.low < expected < accuracy.high
    assert result.recommendation.case is not None
    assert result.recommendation.case.case.backend == "ort"
