"""Exports of scikit-learn estimators answer like the estimator, or the record says on how many rows they don't."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("sklearn")
pytest.importorskip("skl2onnx")

from profiler import onnx_io
from profiler.errors import ModelError
from profiler.export import export_model

pytestmark = [pytest.mark.sklearn, pytest.mark.runtime]


@pytest.fixture(scope="module")
def cancer():
    from sklearn.datasets import load_breast_cancer

    features, labels = load_breast_cancer(return_X_y=True)
    return features.astype(np.float32), labels


def run(path, feeds):
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return dict(zip([o.name for o in session.get_outputs()], session.run(None, feeds), strict=True))


def test_a_random_forest_gives_arrays_and_the_same_answers(tmp_path, cancer):
    """No ZipMap: `probabilities` is an array; labels and probabilities are the forest's, at batch 1, 3 and 8."""
    from sklearn.ensemble import RandomForestClassifier

    features, labels = cancer
    forest = RandomForestClassifier(21, random_state=0).fit(features[:400], labels[:400])

    exported = export_model(forest, {"X": features[400:]}, tmp_path / "m.onnx")

    assert (exported.source_framework, exported.parity.ok, exported.parity.rows) == ("sklearn", True, 169)
    assert exported.exporter.startswith("skl2onnx")
    assert "labels differ on 0 of 169 sample rows." in exported.notes
    for batch in (1, 3, 8):
        results = run(exported.path, {"X": features[400 : 400 + batch]})
        assert list(results) == ["label", "probabilities"]
        np.testing.assert_array_equal(forest.predict(features[400 : 400 + batch]), results["label"])
        np.testing.assert_allclose(
            forest.predict_proba(features[400 : 400 + batch]), results["probabilities"], atol=1e-5
        )


def test_ties_between_classes_are_told_from_wrong_answers():
    """Two rows differ; the one at 0.5 to 0.5 is a tie, the one at 0.9 to 0.1 is wrong."""
    from profiler.export.base import Parity
    from profiler.export.sklearn import _disagreements

    probabilities = np.array([[0.5, 0.5], [0.9, 0.1], [0.2, 0.8]])
    before = {"label": np.array([0, 0, 1]), "probabilities": probabilities}
    features = np.zeros((3, 2), np.float32)
    parity = Parity(0.0, 0.0, 3, 1e-3, ok=True)

    def answer(labels):
        after = {"label": np.array(labels), "probabilities": probabilities}
        return _disagreements(lambda _: before, lambda _: after, "X", features, features, parity)

    assert answer([0, 0, 1])[0] == 0
    wrong, notes = answer([1, 0, 1])
    assert (wrong, notes[0]) == (0, "labels differ on 1 of 3 sample rows.")
    assert notes[1].startswith("1 of these rows are ties")
    wrong, notes = answer([1, 1, 1])
    assert (wrong, notes[0]) == (1, "PARITY FAILED: labels differ on 2 of 3 sample rows.")


def test_a_pipeline_with_text_labels_keeps_them(tmp_path, cancer):
    """The scaler is part of the file; labels stay text."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    features, labels = cancer
    names = np.where(labels == 1, "benign", "malignant")
    pipeline = make_pipeline(StandardScaler(), LogisticRegression()).fit(features, names)

    exported = export_model(pipeline, {"X": features[:100]}, tmp_path / "m.onnx")

    assert exported.parity.ok
    assert list(pipeline.predict(features[:5])) == list(run(exported.path, {"X": features[:5]})["label"])


def test_a_regressor_predicts_and_double_features_are_noted(tmp_path):
    """float64 samples are narrowed, said so, and compared against the estimator on the float64 values."""
    from sklearn.linear_model import LinearRegression

    features = np.random.default_rng(0).standard_normal((50, 4))
    regressor = LinearRegression().fit(features, features @ [1.0, -2.0, 0.5, 3.0])

    exported = export_model(regressor, {"X": features}, tmp_path / "m.onnx")

    assert exported.parity.ok
    assert 0 < exported.parity.max_rel_diff < 1e-5
    assert "the export takes float32, the sample is float64: convert the data." in exported.notes
    assert "prediction" in run(exported.path, {"X": features.astype(np.float32)})


def test_labels_lost_to_float32_are_counted_and_explained(tmp_path):
    """A threshold between two doubles that are one float32: the labels differ, and rounding is named as the cause."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    step = 1e-6
    features = (1000.0 + step * np.arange(40)).reshape(-1, 1)
    labels = (np.arange(40) >= 20).astype(int)
    model = make_pipeline(StandardScaler(), LogisticRegression(C=1e4)).fit(features, labels)

    exported = export_model(model, {"X": features}, tmp_path / "m.onnx")

    assert not exported.parity.ok
    assert any("PARITY FAILED: labels differ on" in note for note in exported.notes)
    assert any("float32" in note and "difference" in note for note in exported.notes)


def test_an_estimator_that_was_not_fitted_is_refused(tmp_path):
    """The message says what to do about it."""
    from sklearn.linear_model import LogisticRegression

    with pytest.raises(ModelError, match=r"NotFittedError.*Fit it in the factory"):
        export_model(LogisticRegression(), {"X": np.ones((3, 2), np.float32)}, tmp_path / "m.onnx")


def test_an_estimator_without_a_converter_is_refused_by_name(tmp_path):
    """A third party's own class has no converter."""
    from sklearn.base import BaseEstimator, RegressorMixin

    class Mean(RegressorMixin, BaseEstimator):
        def predict(self, features):
            return features.mean(1)

    with pytest.raises(ModelError, match="Mean cannot be exported by skl2onnx"):
        export_model(Mean(), {"X": np.ones((3, 2), np.float32)}, tmp_path / "m.onnx")


def test_two_arrays_are_refused(tmp_path):
    """An estimator has one table of features."""
    from sklearn.linear_model import LinearRegression

    ones = np.ones((3, 2), np.float32)
    with pytest.raises(ModelError, match="stack the columns"):
        export_model(LinearRegression().fit(ones, ones[:, 0]), {"a": ones, "b": ones}, tmp_path / "m.onnx")


def test_integer_features_stay_integers(tmp_path):
    """Counts come as int64 and are fed as int64."""
    from sklearn.tree import DecisionTreeClassifier

    features = np.random.default_rng(0).integers(0, 9, (60, 3))
    tree = DecisionTreeClassifier(random_state=0).fit(features, features[:, 0] > 4)

    exported = export_model(tree, {"X": features}, tmp_path / "m.onnx")

    assert onnx_io.model_inputs(onnx_io.read_model(exported.path))[0].dtype == "int64"
    assert exported.parity.ok
