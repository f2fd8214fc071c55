"""Which output is meant: matched to the labels, never the first one, and a question where two fit."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from profiler.errors import DataError
from profiler.quality.candidates import class_codes, forms
from profiler.quality.choice import Unclear, answering, predictions
from profiler.quality.metrics import default_metric, get_metric, label_kind
from profiler.quality.reading import choose

N = 400


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(5)


def scores_of(labels: np.ndarray, classes: int, rng: np.random.Generator, wrong: float = 0.25) -> np.ndarray:
    """Logits that say the label in all but `wrong` of the rows."""
    said = np.where(rng.random(len(labels)) < wrong, (labels + 1) % classes, labels)
    return (np.eye(classes)[said] * 4 + rng.random((len(labels), classes))).astype(np.float32)


def softmax(logits: np.ndarray) -> np.ndarray:
    exponents = np.exp(logits.astype(np.float64))
    return (exponents / exponents.sum(axis=1, keepdims=True)).astype(np.float32)


@pytest.mark.parametrize("width", [2, 3, 8, 40])
def test_accuracy_is_over_the_output_that_says_the_labels(width, rng):
    """An embedding stands first, as wide as it likes: narrower than the classes it cannot be meant, wider it says nothing."""
    labels = rng.integers(0, 3, N)
    outputs = {"embedding": rng.standard_normal((N, width)).astype(np.float32), "logits": scores_of(labels, 3, rng)}
    truth = float((outputs["logits"].argmax(axis=1) == labels).mean())
    reading = choose(None, labels, outputs)
    kept = reading.reduced(outputs, labels, outputs)

    assert (kept["metric"], kept["output"]) == ("top1", "logits")
    assert truth == pytest.approx(kept["per_sample"].mean())
    assert 0.6 < truth < 0.9
    assert "'logits'" in " ".join(reading.notes)
    for metric in ("top1", "f1", "auc"):
        assert choose(metric, labels, outputs).output == "logits"


def test_a_face_detectors_boxes_are_no_classes(rng):
    """Box regression first, two scores second: top-1 is over the scores."""
    labels = rng.integers(0, 2, N)
    boxes = np.abs(rng.standard_normal((N, 4))).astype(np.float32)
    boxes[:, 2] += 300
    outputs = {"boxes": boxes, "scores": softmax(scores_of(labels, 2, rng, wrong=0.0))}
    reading = choose(None, labels, outputs)

    assert reading.output == "scores"
    assert reading.reduced(outputs, labels, outputs)["per_sample"].mean() == 1.0


def test_where_two_outputs_say_the_labels_the_user_is_asked(rng):
    """Both named with what speaks for them; naming one answers the question."""
    labels = rng.integers(0, 3, N)
    outputs = {"day": scores_of(labels, 3, rng, 0.2), "night": scores_of(labels, 3, rng, 0.4)}

    for asked in (None, "top1", "f1", "auc"):
        with pytest.raises(
            Unclear, match=r"which output holds the answers\?.*'day' .*right.*'night' .*right.*\{output=NAME\}"
        ) as told:
            choose(asked, labels, outputs)
        assert told.value.candidates == ("day", "night")
    assert choose("top1{output=night}", labels, outputs).output == "night"
    with pytest.raises(DataError, match="no output 'noon', it has: day, night"):
        choose("top1{output=noon}", labels, outputs)


def test_where_no_output_says_the_labels_the_user_is_asked(rng):
    """Labels numbered from 1, say: neither head is better than chance, so neither is chosen."""
    labels = rng.integers(0, 8, N)
    outputs = {"a": rng.standard_normal((N, 9)), "b": scores_of(labels, 9, rng, 0.0)}

    with pytest.raises(Unclear, match="which output"):
        choose(None, labels + 1, outputs)
    assert choose(None, labels, outputs).output == "b"


@pytest.mark.parametrize("seed", range(30))
def test_an_output_is_hardly_ever_chosen_by_chance(seed):
    """Two heads without any relation to 60 labels: 1 error in 10,000 such models is allowed, so none in 30."""
    rng = np.random.default_rng(seed)
    outputs = {"a": rng.standard_normal((60, 4)), "b": rng.standard_normal((60, 4))}
    with pytest.raises(Unclear):
        choose("top1", rng.integers(0, 4, 60), outputs)


def test_logits_and_their_probabilities_are_one_answer(rng):
    """And a label beside its scores; the probabilities are read, or the label itself."""
    labels = rng.integers(0, 3, N)
    logits = scores_of(labels, 3, rng)
    both = {"logits": logits, "probabilities": softmax(logits)}

    assert choose("auc", labels, both).output == "probabilities"
    assert choose(None, None, both).output == "probabilities"
    said = {**both, "label": logits.argmax(axis=1)}
    assert choose(None, labels, said).output == "label"
    assert choose(None, None, said).output == "label"
    renamed = {"label": np.array([3, 7, 9])[logits.argmax(axis=1)], "probabilities": softmax(logits)}
    assert choose(None, np.array([3, 7, 9])[labels], renamed).output == "label"
    assert choose(None, None, renamed).output == "label"


def test_whole_numbers_beside_other_outputs_may_be_lengths(rng):
    """A text recogniser's lengths are no classes: with its frames there is no answer to agree on."""
    labels = rng.integers(0, 9, N)
    lengths = rng.integers(1, 9, N)
    outputs = {"frames": rng.standard_normal((N, 5, 7)).astype(np.float32), "lengths": lengths}

    with pytest.raises(Unclear, match="'lengths'"):
        choose(None, None, outputs)
    with pytest.raises(Unclear, match="'lengths'"):
        choose(None, labels, outputs)
    assert choose(None, None, {"lengths": lengths}).output == "lengths"


def test_agreement_without_labels_is_over_scores_or_a_question(rng):
    """Boxes before scores: naming the output gives the share of equal classes, and not naming it gives no figure."""
    boxes = {"boxes": np.tile(np.float32([1, 2, 300, 4]), (N, 1))}
    mine, theirs = ({**boxes, "scores": rng.standard_normal((N, 10)).astype(np.float32)} for _ in range(2))
    truth = float((mine["scores"].argmax(axis=1) == theirs["scores"].argmax(axis=1)).mean())

    with pytest.raises(Unclear, match=r"'boxes' \(4 columns\); 'scores' \(10 columns\).*agreement\{output="):
        choose(None, None, theirs)
    reading = choose("agreement{output=scores}", None, theirs)
    kept = reading.reduced(mine, None, theirs)
    assert truth < 0.3
    assert truth == pytest.approx(kept["agreement"].mean())
    assert truth == pytest.approx(kept["per_sample"].mean())
    assert kept["output"] == "scores"
    assert mine["scores"].argmax(axis=1).tolist() == kept["predictions"].tolist()


def test_agreement_of_a_metrics_output_is_over_that_output(rng):
    """The labels' metric, the agreement and the predictions never read different outputs."""
    labels = rng.integers(0, 3, N)
    heads = [{"a": scores_of(labels, 3, rng), "b": scores_of(labels, 3, rng)} for _ in range(2)]
    for name in ("a", "b"):
        kept = choose(f"top1{{output={name}}}", labels, heads[0]).reduced(heads[1], labels, heads[0])
        mine, theirs = heads[1][name].argmax(axis=1), heads[0][name].argmax(axis=1)

        assert (mine == theirs).tolist() == kept["agreement"].astype(bool).tolist()
        assert (mine == labels).tolist() == kept["per_sample"].astype(bool).tolist()
        assert mine.tolist() == kept["predictions"].tolist()


def test_a_topk_inside_the_model_says_its_first_index(rng):
    """Its values are sorted, so their largest is always the first: the indices answer."""
    labels = rng.integers(0, 10, N)

    def topk(logits: np.ndarray) -> dict[str, np.ndarray]:
        order = np.argsort(-logits, axis=1)[:, :5]
        return {"values": np.take_along_axis(logits, order, axis=1), "indices": order}

    mine, theirs = (scores_of(labels, 10, rng, wrong) for wrong in (0.5, 0.2))
    outputs, reference = topk(mine), topk(theirs)
    same = float((mine.argmax(axis=1) == theirs.argmax(axis=1)).mean())

    assert forms(reference) == {"values": "values", "indices": "ranked"}
    assert same == pytest.approx(choose(None, None, reference).reduced(outputs, None, reference)["agreement"].mean())
    assert same == pytest.approx(
        choose("agreement{output=indices}", None, reference).reduced(outputs, None, reference)["agreement"].mean()
    )
    kept = choose(None, labels, reference).reduced(outputs, labels, reference)
    assert (kept["metric"], kept["output"]) == ("top1", "indices")
    assert (mine.argmax(axis=1) == labels).mean() == pytest.approx(kept["per_sample"].mean())
    five = choose("top5", labels, reference).reduced(outputs, labels, reference)
    in_five = (np.argsort(-mine, axis=1)[:, :5] == labels[:, np.newaxis]).any(axis=1)
    assert in_five.mean() == pytest.approx(five["per_sample"].mean())
    assert same == pytest.approx(five["agreement"].mean())


@pytest.mark.parametrize("kind", ["boxes", "embedding"])
def test_the_only_output_is_no_classifier_when_its_rows_say_so(kind, rng):
    """A largest column that never changes, or rows of length 1: similarity, from which no accuracy follows."""
    values = rng.standard_normal((N, 4))
    values = (
        np.abs(values) + np.array([0, 0, 300, 0])
        if kind == "boxes"
        else values / np.linalg.norm(values, axis=1, keepdims=True)
    )
    outputs = {"y": values.astype(np.float32)}

    assert answering(outputs) is None
    assert predictions(outputs) is None
    kept = choose(None, None, outputs).reduced({"y": -outputs["y"]}, None, outputs)
    assert (kept["predictions"], kept["output"]) == (None, "y")
    assert pytest.approx(kept["agreement"].mean()) == -1.0


def test_values_of_several_outputs_agree_as_the_least_alike_do(rng):
    """No output says a class: the one that is ruined shows, whichever it is."""
    reference = {name: rng.standard_normal((N, 3, 2)) for name in ("a", "b")}
    for ruined, values in reference.items():
        outputs = {**reference, ruined: -values}
        kept = choose(None, None, reference).reduced(outputs, None, reference)
        assert (kept["output"], pytest.approx(kept["agreement"].mean())) == (None, -1.0)


def test_a_regression_with_several_targets_does_not_agree_by_its_largest_one(rng):
    """Half the values off: the same column stays the largest, and that says nothing."""
    labels = np.abs(rng.standard_normal((N, 3))) + np.array([0, 5, 0])
    reference = {"y": labels.astype(np.float32)}
    kept = choose(None, labels, reference).reduced({"y": reference["y"] * np.float32([0, 1, 0])}, labels, reference)

    assert (kept["metric"], kept["predictions"]) == ("rmse", None)
    assert kept["agreement"].mean() < 0.999


def test_errors_are_over_the_output_with_as_many_values(rng):
    """The mask head beside the depth head; two of one size are a question."""
    labels = rng.standard_normal((N, 4, 4))
    outputs = {"features": rng.standard_normal((N, 9)), "depth": labels[:, np.newaxis] + 0.5}

    kept = choose(None, labels, outputs).reduced(outputs, labels, outputs)
    assert (kept["metric"], kept["output"], pytest.approx(kept["per_sample"].mean())) == ("rmse", "depth", 0.25)
    with pytest.raises(Unclear, match=r"'depth'.*'side'"):
        choose("mae", labels, {**outputs, "side": labels})
    with pytest.raises(DataError, match="same number of values"):
        choose("mae", labels[:, :3], outputs)


def test_ages_beside_features_are_target_values(rng):
    """Whole numbers within the features' columns: the column that grows with them is meant, and an error is measured."""
    for labels in (rng.integers(0, 40, N), rng.integers(0, 40, N).astype(np.float64)):
        outputs = {"features": rng.standard_normal((N, 64)), "age": (labels + rng.standard_normal(N))[:, np.newaxis]}
        kept = choose(None, labels, outputs).reduced(outputs, labels, outputs)

        assert (kept["metric"], kept["output"]) == ("rmse", "age")
        assert kept["per_sample"].mean() == pytest.approx(((outputs["age"][:, 0] - labels) ** 2).mean())
    with pytest.raises(Unclear, match=r"'features'.*'age'"):
        choose(None, labels, {**outputs, "age": rng.standard_normal((N, 1))})
    scores = {"confidence": rng.random((N, 1)), "scores": scores_of(labels.astype(int), 40, rng)}
    assert choose(None, labels, scores).output == "scores"


def test_one_hot_labels_are_classes(rng):
    """The place of the one: 75 % right, and no error in probabilities."""
    classes = rng.integers(0, 4, N)
    outputs = {"p": softmax(scores_of(classes, 4, rng))}
    truth = float((outputs["p"].argmax(axis=1) == classes).mean())
    for labels in (np.eye(4)[classes], np.eye(4, dtype=np.int64)[classes]):
        reading = choose(None, labels, outputs)
        kept = reading.reduced(outputs, labels, outputs)

        assert label_kind(labels) == "one-hot"
        assert (kept["metric"], kept["metric_unit"]) == ("top1", "proportion")
        assert truth == pytest.approx(kept["per_sample"].mean())
        assert any("one-hot" in note for note in reading.notes)
    assert truth == pytest.approx(
        choose("top1", labels, outputs).reduced(outputs, labels, outputs)["per_sample"].mean()
    )


def test_tags_are_counted_and_not_measured_as_distances(rng):
    """All answers near a half: the error hardly changes, micro F1 falls from 1 to 0."""
    tags = rng.integers(0, 2, (N, 5))
    tags[:2] = [[1, 1, 0, 0, 0], [0, 1, 1, 0, 0]]
    reference = {"y": (0.5 + 0.01 * (tags - 0.5)).astype(np.float32)}
    shifted = {"y": reference["y"] - np.float32(0.02)}
    reading = choose(None, tags, reference)
    metric = reading.metric

    assert (metric.name, metric.unit, metric.higher_is_better) == ("micro-f1", "proportion", True)
    kept = [reading.reduced(outputs, tags, reference) for outputs in (reference, shifted)]
    assert [metric.value(one["per_sample"]) for one in kept] == [1.0, 0.0]
    assert [one["agreement"][tags.any(axis=1)].mean() for one in kept] == [1.0, 0.0]


@pytest.mark.sklearn
@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**20), st.sampled_from([(30, 4), (30, 2, 3)]))
def test_micro_f1_equals_scikit_learns(seed, shape):
    """For tags and for masks."""
    sk = pytest.importorskip("sklearn.metrics")
    rng = np.random.default_rng(seed)
    labels, values = rng.integers(0, 2, shape), rng.random(shape)
    labels[0, 0] = 1
    metric = get_metric("micro-f1{threshold=0.3}")

    expected = sk.f1_score(labels.reshape(30, -1), values.reshape(30, -1) >= 0.3, average="micro")
    assert expected == pytest.approx(metric.value(metric.per_sample({"y": values}, labels)))


def test_the_threshold_of_tags_is_asked_for_logits(rng):
    """Zero would be right for logits, 0.5 for probabilities: only the user knows."""
    tags = rng.integers(0, 2, (N, 5))
    logits = {"y": 4.0 * tags - 2}

    with pytest.raises(Unclear, match=r"from -2 to 2: for logits use micro-f1\{threshold=0\}"):
        choose(None, tags, logits)
    reading = choose("micro-f1{threshold=0}", tags, logits)
    assert reading.metric.value(reading.reduced(logits, tags, logits)["per_sample"]) == 1.0
    with pytest.raises(DataError, match="labels of 0 and 1"):
        choose("micro-f1", tags * 2, {"y": np.abs(logits["y"]) / 2}).reduced(logits, tags * 2, logits)


def test_the_reference_decides_what_a_single_column_is(rng):
    """A variant whose probability leaves 0 … 1 by a rounding error is still read as one."""
    labels = rng.integers(0, 2, N)
    reference = {"p": (0.2 + 0.6 * labels).astype(np.float32)}
    reading = choose("top1", labels, reference)
    kept = reading.reduced({"p": reference["p"] * np.float32(1.3)}, labels, reference)

    assert 1.0 == kept["per_sample"].mean() == kept["agreement"].mean()
    with pytest.raises(Unclear, match=r"top1\{threshold=0\}"):
        choose("top1", labels, {"p": reference["p"] * 4 - 2})


def test_a_detectors_label_and_score_are_one_answer(rng):
    """An outlier detector says −1 or 1 beside a score that a threshold splits."""
    labels = np.where(rng.random(N) < 0.2, -1, 1)
    outputs = {"label": labels[:, np.newaxis], "score": (labels * rng.random(N)).astype(np.float32)}

    assert choose(None, None, outputs).output == "label"
    assert ((kept := choose(None, labels, outputs)).metric.name, kept.output) == ("top1", "label")


def test_text_classes_are_compared_by_name(rng):
    """In any batch, as texts, bytes or objects; beside columns the labels decide which of the two is meant."""
    names = np.array(["owl", "cat", "dog"])
    classes = rng.integers(0, 3, N)
    scores = scores_of(classes, 3, rng)
    said = names[scores.argmax(axis=1)]
    truth = float((scores.argmax(axis=1) == classes).mean())
    for form in (said, said.astype("S"), said.astype(object), said[:, np.newaxis]):
        outputs = {"label": form, "probabilities": softmax(scores)}
        kept = choose(None, names[classes], outputs).reduced(outputs, names[classes], outputs)
        assert (kept["metric"], kept["output"]) == ("top1", "label")
        assert truth == pytest.approx(kept["per_sample"].mean())
        assert class_codes(said).tolist() == kept["predictions"].tolist()
        numbered = choose(None, classes, outputs)
        assert ("probabilities", truth) == (
            numbered.output, pytest.approx(numbered.reduced(outputs, classes, outputs)["per_sample"].mean()),
        )  # fmt: skip
    assert class_codes(said[:1])[0] == class_codes(said)[0]
    assert len(np.unique(class_codes(names))) == 3
    # scikit-learn's F1 of the same answers, by hand: 2 TP / (labels + answers) of each class.
    f1 = choose("f1", names[classes], outputs)
    each = [
        2 * ((said == n) & (names[classes] == n)).sum() / ((said == n).sum() + (names[classes] == n).sum())
        for n in names
    ]
    assert np.mean(each) == pytest.approx(f1.metric.value(f1.reduced(outputs, names[classes], outputs)["per_sample"]))


def test_text_labels_need_an_output_that_says_names(rng):
    """Columns have no names: no guess that they stand in the order of the alphabet."""
    labels = np.array(["cat", "dog"])[rng.integers(0, 2, N)]
    for asked in (None, "top1", "auc"):
        with pytest.raises(DataError, match="texts"):
            choose(asked, labels, {"p": rng.random((N, 2))}).reduced(
                {"p": rng.random((N, 2))}, labels, {"p": rng.random((N, 2))}
            )


@pytest.mark.parametrize(
    ("labels", "outputs", "expected"),
    [
        (np.array([0.0, 1, 1, 0]), {"p": np.zeros((4, 1))}, "auc"),
        (np.array([0, 1, 1, 0]), {"p": np.zeros(4)}, "auc"),
        (np.array([[1, 0], [1, 1], [0, 1], [0, 0]]), {"y": np.zeros((4, 2))}, "micro-f1"),
        (np.array([[1.0, 0], [1, 1], [0, 1], [0, 0]]), {"y": np.zeros((4, 2))}, "micro-f1"),
        (np.eye(4), {"y": np.zeros((4, 4))}, "top1"),
        (np.eye(4), {"y": np.zeros((4, 4)), "z": np.zeros((4, 3))}, "top1"),
        (np.eye(4)[:, :, np.newaxis].astype(int), {"y": np.zeros((4, 4, 1))}, "micro-f1"),
        (np.eye(4)[:, :, np.newaxis], {"y": np.zeros((4, 4, 1))}, "rmse"),
        (np.array([5, 1, 1, 0]), {"y": np.zeros((4, 3))}, "top1"),
    ],
)
def test_the_default_metric_of_flags(labels, outputs, expected):
    """One-hot, several tags, masks; a label beyond the columns is refused by top1 and not turned into a distance."""
    assert expected == default_metric(labels, outputs).name


def test_an_own_metric_sees_every_output(rng, tmp_path, monkeypatch):
    """Two heads are no question to it; agreement beside it is no share of answers."""
    (tmp_path / "heads_metric.py").write_text(
        "def both(outputs, labels):\n    return [float((a.argmax() == l) and (b.argmax() == l)) "
        "for a, b, l in zip(outputs['a'], outputs['b'], labels)]\nboth.unit = 'proportion'\n"
    )
    monkeypatch.chdir(tmp_path)
    labels = rng.integers(0, 3, N)
    outputs = {"a": scores_of(labels, 3, rng), "b": scores_of(labels, 3, rng)}
    kept = choose("heads_metric:both", labels, outputs).reduced(outputs, labels, outputs)
    truth = ((outputs["a"].argmax(1) == labels) & (outputs["b"].argmax(1) == labels)).mean()

    assert truth == pytest.approx(kept["per_sample"].mean())
    assert (kept["output"], kept["agreement"].mean()) == (None, 1.0)
