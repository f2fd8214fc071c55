"""Metrics against scikit-learn and definitions, their names, and what they refuse."""

from __future__ import annotations

import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from backends.spec import SpecError
from profiler.errors import DataError, StudyError
from profiler.quality.choice import agreement, predictions
from profiler.quality.metrics import METRICS, Metric, default_metric, get_metric
from profiler.quality.outputs import NO_CLASS

SEEDS = st.integers(0, 2**20)
CLASSIFYING = ["top1", "top5", "f1", "auc", "auc{scale=logits}"]


def classifier(
    seed: int, n: int = 60, classes: int = 7, *, ties: bool = False
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(n, classes)) + 1.5 * np.eye(classes)[rng.integers(0, classes, n)]
    logits = np.round(logits) if ties else logits
    labels = np.where(rng.random(n) < 0.7, logits.argmax(axis=1), rng.integers(0, classes, n))
    return {"logits": logits.astype(np.float32)}, labels


def softmax(logits: np.ndarray) -> np.ndarray:
    exponents = np.exp(logits - logits.max(axis=1, keepdims=True))
    return exponents / exponents.sum(axis=1, keepdims=True)


def value(text: str, outputs, labels, reference=None) -> float:
    metric = get_metric(text)
    return metric.value(metric.per_sample(outputs, labels, reference))


@pytest.mark.sklearn
@settings(max_examples=12, deadline=None)
@given(SEEDS, st.booleans())
def test_classifier_metrics_equal_scikit_learns(seed, ties):
    """Accuracy, macro F1, and one-versus-rest AUC of softmax outputs, ties and missing classes included."""
    sk = pytest.importorskip("sklearn.metrics")
    outputs, labels = classifier(seed, ties=ties)
    predicted, probabilities = outputs["logits"].argmax(axis=1), softmax(outputs["logits"].astype(np.float64))

    assert sk.accuracy_score(labels, predicted) == pytest.approx(value("top1", outputs, labels))
    assert sk.f1_score(labels, predicted, average="macro") == pytest.approx(value("f1", outputs, labels))
    if len(np.unique(labels)) == 7:
        expected = sk.roc_auc_score(labels, probabilities, multi_class="ovr", average="macro")
        assert expected == pytest.approx(value("auc", {"p": probabilities}, labels))
        assert expected == pytest.approx(value("auc{scale=logits}", outputs, labels), abs=2e-3 if ties else 1e-9)


@pytest.mark.sklearn
@settings(max_examples=30, deadline=None)
@given(SEEDS)
def test_top5_equals_scikit_learns_without_ties(seed):
    """The label is among the five largest columns."""
    sk = pytest.importorskip("sklearn.metrics")
    outputs, labels = classifier(seed, classes=9)

    assert sk.top_k_accuracy_score(labels, outputs["logits"], k=5, labels=np.arange(9)) == pytest.approx(
        value("top5", outputs, labels)
    )


@pytest.mark.sklearn
@settings(max_examples=30, deadline=None)
@given(SEEDS, st.sampled_from(["column", "flat", "probabilities", "logits"]))
def test_binary_auc_equals_scikit_learns_in_every_form(seed, form):
    """One column, no column axis, two probabilities, two logits: the same area, ties counting half."""
    sk = pytest.importorskip("sklearn.metrics")
    rng = np.random.default_rng(seed)
    labels = np.concatenate([[0, 1], rng.integers(0, 2, 50)])
    z = np.round(rng.normal(size=52) + labels, 1)
    p = 1 / (1 + np.exp(-z))
    output = {
        "column": z[:, None],
        "flat": z,
        "probabilities": np.stack([1 - p, p], 1),
        "logits": np.stack([np.full(52, 3.0), 3 + z], 1),
    }[form]

    assert sk.roc_auc_score(labels, np.round(z, 1)) == pytest.approx(
        value("auc", {"y": np.round(output, 9)}, labels), abs=1e-9
    )


def test_auc_of_shifted_normals_is_known():
    """N(2,1) against N(0,1): Φ(√2) = 0.92135 (closed form)."""
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1], 100_000)
    scores = rng.normal(size=200_000) + 2 * labels

    assert pytest.approx(value("auc", {"y": scores[:, None]}, labels), abs=0.002) == 0.92135


@pytest.mark.sklearn
@settings(max_examples=30, deadline=None)
@given(SEEDS, st.sampled_from([(30,), (30, 1), (30, 2, 3)]))
def test_errors_equal_scikit_learns_for_any_shape(seed, shape):
    """RMSE and MAE over all values; labels [n] fit outputs [n, 1]."""
    sk = pytest.importorskip("sklearn.metrics")
    rng = np.random.default_rng(seed)
    output, labels = rng.normal(size=shape), rng.normal(size=shape if len(shape) == 3 else (30,))
    flat, targets = output.reshape(30, -1), labels.reshape(30, -1)

    assert sk.mean_squared_error(targets, flat) ** 0.5 == pytest.approx(value("rmse", {"y": output}, labels))
    assert sk.mean_absolute_error(targets, flat) == pytest.approx(value("mae", {"y": output}, labels))


@settings(max_examples=40, deadline=None)
@given(SEEDS, st.sampled_from([*CLASSIFYING, "agreement", "cosine", "mae", "rmse"]), st.integers(1, 59))
def test_batches_one_after_the_other_are_the_whole(seed, text, cut):
    """Each row is reduced alone: how a run was batched never changes a metric."""
    outputs, labels = classifier(seed)
    reference, _ = classifier(seed + 1)
    targets = np.random.default_rng(seed).normal(size=(60, 7)) if text in ("mae", "rmse") else labels
    metric = get_metric(text)

    def part(rows: slice) -> np.ndarray:
        return metric.per_sample(
            {"logits": outputs["logits"][rows]}, targets[rows], {"logits": reference["logits"][rows]}
        )

    whole = part(slice(None))
    np.testing.assert_array_equal(whole, np.concatenate([part(slice(0, cut)), part(slice(cut, None))]))
    assert np.float64 == whole.dtype
    assert len(whole) == 60


@settings(max_examples=30, deadline=None)
@given(SEEDS, st.sampled_from(CLASSIFYING))
def test_the_order_of_samples_does_not_matter_and_inputs_stay(seed, text):
    """Shuffled rows give the same value; the arrays are left as they were."""
    outputs, labels = classifier(seed)
    order = np.random.default_rng(seed).permutation(60)
    outputs["logits"].setflags(write=False)
    labels.setflags(write=False)

    assert value(text, outputs, labels) == pytest.approx(
        value(text, {"logits": outputs["logits"][order]}, labels[order])
    )


def test_nan_outputs_are_wrong_answers():
    """A variant that overflows isn't rewarded for the position of its NaN, or by comparisons that are false."""
    logits = np.eye(7, dtype=np.float32)
    logits[0, 3] = np.nan
    outputs, labels = {"y": logits}, np.arange(7)

    assert predictions(outputs)[0] == NO_CLASS
    for text in ("top1", "top5"):
        assert get_metric(text).per_sample(outputs, labels).tolist() == [0, 1, 1, 1, 1, 1, 1]
    assert pytest.approx(value("f1", outputs, labels)) == 6 / 7
    with pytest.raises(DataError, match="cannot rank 1 of 7 rows"):
        value("auc", outputs, labels)
    with pytest.raises(DataError, match="1 of 7 rows"):
        value("rmse", outputs, np.zeros((7, 7)))


def test_ties_go_to_the_lower_class_in_top1_and_top5():
    """A model that answers all zeros knows nothing: it is right for class 0, in the top five for classes 0 to 4."""
    outputs = {"y": np.zeros((7, 7), np.float32)}

    assert get_metric("top1").per_sample(outputs, np.arange(7)).tolist() == [1, 0, 0, 0, 0, 0, 0]
    assert get_metric("top5").per_sample(outputs, np.arange(7)).tolist() == [1, 1, 1, 1, 1, 0, 0]


def test_a_sklearn_classifiers_label_output_is_the_answer():
    """Its classes need not be the column numbers."""
    outputs = {
        "label": np.array([3, 7, 3]),
        "probabilities": np.array([[0.9, 0.1], [0.2, 0.8], [0.6, 0.4]], np.float32),
    }

    assert predictions(outputs).tolist() == [3, 7, 3]
    assert pytest.approx(value("top1", outputs, np.array([3, 7, 7]))) == 2 / 3
    assert predictions(outputs, output="probabilities").tolist() == [0, 1, 0]
    assert predictions({"label": np.array([[1], [-1]])}).tolist() == [1, -1]


def test_a_single_column_is_a_probability_or_needs_its_threshold():
    """Logits aren't taken for probabilities in silence."""
    labels = np.array([0, 1, 1])

    assert get_metric("top1").per_sample({"p": np.array([[0.2], [0.4], [0.5]])}, labels).tolist() == [1, 0, 1]
    assert get_metric("top1{threshold=0}").per_sample({"p": np.array([-3.0, -0.1, 0.2])}, labels).tolist() == [1, 0, 1]
    assert get_metric("f1{threshold=0.45}").per_sample({"p": np.array([0.2, 0.4, 0.5])}, labels)[:, 1].tolist() == [
        0,
        0,
        1,
    ]
    with pytest.raises(DataError, match=r"from -3 to 0\.2: for logits use top1\{threshold=0\}"):
        value("top1", {"p": np.array([-3.0, -0.1, 0.2])}, labels)
    assert predictions({"p": np.array([[0.2], [0.4]])}) is None


@pytest.mark.parametrize(
    ("text", "outputs", "labels", "message"),
    [
        ("top1", {"y": np.zeros((2, 3))}, None, "needs labels"),
        ("top1", {"y": np.zeros((2, 3))}, np.array([0, 3]), "label 3 in row 1"),
        ("top1", {"y": np.zeros((2, 3))}, np.array([0, -1]), "1 labels lie outside"),
        ("top1", {"y": np.zeros((2, 3))}, np.array([0]), "one label for each row"),
        ("top1", {"y": np.zeros((2, 3))}, np.array([0.5, 1]), "fractions such"),
        ("top1", {"y": np.zeros((2, 3))}, np.eye(3)[:2], "one-hot"),
        ("top1", {"y": np.zeros((2, 3, 4, 4))}, np.array([0, 1]), "needs an output of shape"),
        ("top1{output=z}", {"y": np.zeros((2, 3))}, np.array([0, 1]), "no output 'z', it has: y"),
        ("top5", {"y": np.zeros((2, 5))}, np.array([0, 1]), "more than 5 classes"),
        ("auc", {"y": np.zeros((2, 1))}, np.array([1, 1]), "all 2 labels are of one class"),
        ("auc", {"y": np.zeros((2, 1))}, np.array([1, 2]), "label 2"),
        ("auc", {"y": np.zeros((2, 3, 3))}, np.array([1, 0]), "choose another"),
        ("rmse", {"y": np.zeros((2, 3))}, np.array([1, 0]), "same number of values"),
        ("mae", {"y": np.array(["a", "b"])}, np.array([1, 0]), "no output of the model is numeric"),
        ("agreement", {"y": np.zeros((2, 3))}, None, "evaluate the reference first"),
        ("cosine", {"y": np.zeros((2, 3))}, None, "evaluate the reference first"),
        ("cosine{against=labels}", {"y": np.zeros((2, 3))}, None, "needs labels"),
    ],
)
def test_what_does_not_fit_is_refused_with_the_next_step(text, outputs, labels, message):
    """Each message names the metric or output, what came and what to do."""
    with pytest.raises(DataError, match=message):
        value(text, outputs, labels)


def test_agreement_is_of_classes_where_there_are_classes():
    """Equal argmax is 1, another 0; a probability shift that keeps the argmax is agreement."""
    reference = {"y": np.array([[0.9, 0.1], [0.4, 0.6], [np.nan, 1]])}
    variant = {"y": np.array([[0.6, 0.4], [0.7, 0.3], [0, 1]])}

    assert agreement(variant, reference).tolist() == [1, 0, 0]
    assert agreement(reference, reference).tolist() == [1, 1, 1]
    with pytest.raises(DataError, match="same samples"):
        agreement({"y": np.eye(3)[:2]}, {"y": np.eye(3)})


@pytest.mark.parametrize(
    ("labels", "outputs", "expected"),
    [
        (None, {"y": np.zeros((4, 3))}, "agreement"),
        (np.array([0, 1, 2, 0]), {"y": np.zeros((4, 3))}, "top1"),
        (np.array([0.0, 1, 2, 0]), {"y": np.zeros((4, 3))}, "top1"),
        (np.array([0, 1, 1, 0]), {"label": np.zeros(4, np.int64), "probabilities": np.zeros((4, 2))}, "top1"),
        (np.array([0, 1, 1, 0]), {"label": np.zeros(4, np.int64)}, "top1"),
        (np.array([0, 1, 1, 0]), {"p": np.zeros((4, 1))}, "auc"),
        (np.array([3, 1, 1, 0]), {"y": np.zeros((4, 1))}, "rmse"),
        (np.array([0.5, 1, 1, 0]), {"y": np.zeros((4, 1))}, "rmse"),
        (np.zeros((4, 3)), {"y": np.zeros((4, 3))}, "rmse"),
    ],
)
def test_the_default_follows_labels_and_outputs(labels, outputs, expected):
    """Classes, target values, or nothing to compare with."""
    assert expected == default_metric(labels, outputs).name


@pytest.mark.parametrize("name", METRICS)
def test_every_metric_is_a_frozen_metric_whose_name_parses_back(name):
    """One registry line is all it takes; options survive the text form."""
    metric = get_metric(name)

    assert isinstance(metric, Metric)
    assert name == metric.name
    assert metric == get_metric(metric.name)
    chosen = get_metric(f"{name}{{output=logits}}")
    assert f"{name}{{output=logits}}" == chosen.name
    assert chosen == get_metric(chosen.name)
    assert metric != chosen
    assert metric.unit in ("proportion", "native")
    assert (name in ("rmse", "mae")) != metric.higher_is_better
    assert (name in ("agreement", "cosine")) != metric.needs_labels


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("top2", StudyError, "unknown metric 'top2'. Did you mean.*top1"),
        ("accuracy", StudyError, "Known: agreement, auc"),
        ("top1{ouput=x}", StudyError, "Did you mean output"),
        ("top1{threshold=high}", StudyError, "is no number"),
        ("auc{scale=log}", StudyError, "Did you mean logits"),
        ("cosine{against=label}", StudyError, "Did you mean labels"),
        ("top1{", SpecError, "cannot read"),
        ("no_such_module_at_all:metric", DataError, "cannot import 'no_such_module_at_all' for metric"),
    ],
)
def test_unknown_names_get_near_matches(text, error, message):
    """The text, what it may have meant, and what is known."""
    with pytest.raises(error, match=message):
        get_metric(text)


@pytest.fixture
def own_metrics(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own_metrics.py").write_text(
        "import numpy as np\n"
        "def distance(outputs, labels):\n    return np.abs(outputs['y'][:, 0] - labels)\n"
        "distance.higher_is_better = False\n"
        "def confident(outputs, labels):\n    return outputs['y'].max(axis=1) > 0.5\n"
        "confident.needs_labels = False\nconfident.unit = 'proportion'\n"
        "def wrong_shape(outputs, labels):\n    return 0.5\n"
        "def nan(outputs, labels):\n    return np.full(len(labels), np.nan)\n"
        "class Distance:\n    def __call__(self, outputs, labels):\n        return np.zeros(len(labels))\n"
        "made = Distance()\n"
        "def broken(outputs, labels):\n    raise KeyError('boxes')\n"
    )
    yield
    sys.modules.pop("own_metrics", None)


@pytest.mark.usefixtures("own_metrics")
def test_a_users_function_is_a_metric():
    """Its attributes say its direction, unit and needs; its mean is the value."""
    outputs, labels = {"y": np.array([[1.0, 0], [3, 0]])}, np.array([1.5, 1.0])
    distance, confident = get_metric("own_metrics:distance"), get_metric("own_metrics:confident")

    assert distance.per_sample(outputs, labels).tolist() == [0.5, 2.0]
    assert distance.value(distance.per_sample(outputs, labels)) == 1.25
    assert (distance.higher_is_better, distance.unit, distance.needs_labels) == (False, "native", True)
    assert (confident.higher_is_better, confident.unit, confident.needs_labels) == (True, "proportion", False)
    assert confident.per_sample(outputs, None).tolist() == [1.0, 1.0]
    assert isinstance(distance, Metric)
    assert distance == get_metric(distance.name)


@pytest.mark.usefixtures("own_metrics")
def test_a_class_is_no_metric_and_its_instance_is():
    """Called with outputs and labels a class makes an instance, or says that it takes no arguments."""
    with pytest.raises(DataError, match=r"'own_metrics:Distance' is a class.*name a function, or an instance"):
        get_metric("own_metrics:Distance")
    made = get_metric("own_metrics:made")
    assert made.per_sample({"y": np.zeros((2, 2))}, np.zeros(2)).tolist() == [0.0, 0.0]


@pytest.mark.usefixtures("own_metrics")
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("wrong_shape", r"gave shape \(\) for 2 rows"),
        ("nan", "2 NaN"),
        ("broken", "raised KeyError: 'boxes'"),
        ("missing", "has no function"),
    ],
)
def test_faults_of_a_users_function_are_named(name, message):
    """As the metric's, with its text."""
    with pytest.raises(DataError, match=message):
        value(f"own_metrics:{name}", {"y": np.zeros((2, 2))}, np.zeros(2))


@pytest.mark.sklearn
@pytest.mark.runtime
@pytest.mark.parametrize("zipmap", [False, True])
def test_a_real_forests_outputs_are_understood(zipmap):
    """A converted scikit-learn classifier, run by ONNX Runtime, has scikit-learn's own accuracy and AUC."""
    sk = pytest.importorskip("sklearn")
    convert = pytest.importorskip("skl2onnx").to_onnx
    ort = pytest.importorskip("onnxruntime")
    from sklearn import datasets, ensemble, metrics

    assert sk.__version__
    x, y = datasets.load_breast_cancer(return_X_y=True)
    x = x.astype(np.float32)
    forest = ensemble.RandomForestClassifier(20, random_state=0).fit(x[:300], y[:300])
    model = convert(forest, x[:1], options={"zipmap": zipmap})
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    outputs = {
        name: output
        for name, output in zip(names, session.run(None, {"X": x[300:]}), strict=True)
        if isinstance(output, np.ndarray)
    }

    assert default_metric(y[300:], outputs).name == "top1"
    assert value("top1", outputs, y[300:]) == pytest.approx(forest.score(x[300:], y[300:]))
    if not zipmap:
        assert value("auc", outputs, y[300:]) == pytest.approx(
            metrics.roc_auc_score(y[300:], forest.predict_proba(x[300:])[:, 1]), abs=1e-4
        )
