"""Agreement in each column's own size: what a cosine over whole rows doesn't see."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from profiler.errors import DataError
from profiler.quality import similarity as module
from profiler.quality.choice import agreement
from profiler.quality.runtimes import Precision, compare_runtimes
from profiler.quality.similarity import Unlike, column_scale, compare, cosine, similarity

SEEDS = st.integers(0, 2**32 - 1)


def rng(seed=0):
    return np.random.default_rng(seed)


def detections(rows=30, last=True):
    """Four boxes' edges up to 640 and three scores in 0 … 1, for 16 places; channels last or in the middle."""
    boxes, scores = rng().uniform(20, 640, (rows, 16, 4)), rng(1).uniform(0, 0.6, (rows, 16, 3))
    both = np.concatenate([boxes, scores], axis=2).astype(np.float32)
    return both if last else np.ascontiguousarray(both.transpose(0, 2, 1))


@pytest.mark.parametrize("last", [True, False])
def test_scores_of_zero_beside_boxes_of_640_do_not_agree(last):
    """The channels are found on whichever axis they lie; four of seven are right, so 2·4 / (4 + 7)."""
    right = detections(last=last)
    wrong = right.copy()
    wrong[(..., slice(4, 7)) if last else (slice(None), slice(4, 7))] = 0

    assert column_scale(right).axis == (2 if last else 1)
    assert cosine(wrong, right).min() > 0.9999
    assert similarity(wrong, right).mean() == pytest.approx(8 / 11, abs=0.03)
    assert agreement({"output0": wrong}, {"output0": right}).mean() == pytest.approx(8 / 11, abs=0.03)
    found = compare("output0", wrong, right)
    assert (found.similarity, found.relative_error) == pytest.approx((8 / 11, np.sqrt(3 / 7)))
    assert found.column in (4, 5, 6)
    assert found.column_error == pytest.approx(1)
    assert found.text == f"column {found.column} (axis {found.axis}) of output 'output0' is zero where it was not"


def test_seconds_of_a_nanosecond_59_times_too_large_do_not_agree():
    right = (rng().normal(500, 90, (200, 1)) * 1e-9).astype(np.float32)
    wrong = (right * 59.6).astype(np.float32)

    assert similarity(wrong, right).max() < 0.02
    assert agreement({"s": wrong}, {"s": right}).max() < 0.02
    found = compare("seconds", wrong, right)
    assert found.similarity == pytest.approx(2 * 59.6 / (1 + 59.6**2), rel=1e-3)
    assert found.text == "output 'seconds' is 59.6 times what it was"


@pytest.mark.parametrize("columns", [1, 3])
@pytest.mark.parametrize("share", [0.001, 0.01])
def test_a_small_relative_error_is_told_at_any_size(columns, share):
    """1e-9 or 1e9: one per cent is one per cent; a single value a row says it plainly, 0.99."""
    for size in (1e-9, 1.0, 1e9):
        right = rng().uniform(0.5, 1, (50, columns)) * size
        wrong = right * (1 + share)
        expected = 1 - share / (1 + share) if columns == 1 else 1 - share**2 / (1 + (1 + share) ** 2)
        # A single value is measured against its column's size where it is smaller, so a bit less is seen there.
        assert similarity(wrong, right).min() == pytest.approx(expected, abs=1e-9 if columns > 1 else share**2)
        assert compare("y", wrong, right).relative_error == pytest.approx(share, rel=1e-6)


def test_a_value_near_zero_is_measured_against_its_column():
    """1e-5 and 2e-5 are alike where others are about 1, and not where all are about 1e-5."""
    assert similarity(np.array([2e-5, 1.0, 0.9]), np.array([1e-5, 1.0, 0.9]))[0] > 0.9999
    assert similarity(np.array([2e-5, 1e-5]), np.array([1e-5, 1e-5]))[0] == pytest.approx(0.5)


def test_noise_of_classes_that_no_row_shows_is_no_difference():
    """Softmax columns of 1e-7 that become 3e-7: no answer changed."""
    right = np.full((20, 6), 1e-7)
    right[:, 0], right[:, 1] = 0.8, 0.2
    wrong = right.copy()
    wrong[:, 2:] = 3e-7
    assert similarity(wrong, right).min() > 0.999999
    assert compare("p", wrong, right).column_error < 1e-4


@settings(max_examples=60, deadline=None)
@given(
    SEEDS, st.sampled_from([(20, 5), (20, 2, 3), (20, 1), (20,)]), st.sampled_from([1e-300, 1e-30, 1.0, 1e30, 1e300])
)
def test_bounded_and_one_for_equal_rows_at_any_magnitude(seed, shape, magnitude):
    """Where plain sums of squares would overflow or vanish; and the formula, written plainly, at magnitude 1."""
    a, b = rng(seed).normal(size=shape) * magnitude, rng(seed + 1).normal(size=shape) * magnitude
    found = similarity(a, b)
    assert ((found >= -1) & (found <= 1)).all()
    assert similarity(b, b).tolist() == [1.0] * 20
    assert compare("y", b, b).similarity == 1
    if shape == (20, 5):
        x, y = (array / magnitude / np.sqrt(np.square(b / magnitude).mean(0)) for array in (a, b))
        np.testing.assert_allclose(1 - np.square(x - y).sum(1) / (x * x + y * y).sum(1), found, atol=1e-9)
        np.testing.assert_allclose(
            (a / magnitude * b / magnitude).sum(1)
            / np.linalg.norm(a / magnitude, axis=1)
            / np.linalg.norm(b / magnitude, axis=1),
            cosine(a, b),
            atol=1e-9,
        )


@pytest.mark.parametrize("function", [similarity, cosine])
def test_the_awkward_rows(function):
    """Zero vectors are equal to each other, alike to nothing else; NaN and infinity are alike to themselves only."""
    a = np.array([[0, 0], [0, 0], [np.nan, 1], [np.inf, 1], [np.nan, 1], [-1, 0], [1, 0]])
    b = np.array([[0, 0], [1, 0], [np.nan, 1], [np.inf, 1], [1, 1], [1, 0], [0, 5]])
    np.testing.assert_allclose(function(a, b), [1, 0, 1, 1, 0, -1, 0], atol=1e-12)
    with pytest.raises(DataError, match="same samples"):
        function(a, b[:-1])
    assert function(a[:0], b[:0]).shape == (0,)


def test_one_value_a_row_by_hand():
    size = np.sqrt((100 + 0 + 1 + 4) / 4)
    np.testing.assert_allclose(
        similarity(np.array([9.0, 0, 0, -2]), np.array([10.0, 0, 1, 2])),
        [0.9, 1, 1 - 1 / size, 1 - 4 / size],
        atol=1e-12,
    )


def test_chunks_of_rows_change_nothing(monkeypatch):
    """Also where a part comes with the scale of all rows."""
    a, b = rng().normal(size=(57, 3, 4)), rng(1).normal(size=(57, 3, 4)) * [[1], [100], [1e-3]]
    whole, found = similarity(a, b), compare("y", a, b)
    parts = np.concatenate([similarity(a[i : i + 10], b[i : i + 10], column_scale(b)) for i in range(0, 57, 10)])
    monkeypatch.setattr(module, "CHUNK_VALUES", 30)
    np.testing.assert_allclose(similarity(a, b), whole, rtol=1e-12)
    np.testing.assert_allclose(parts, whole, rtol=1e-12)
    assert compare("y", a, b).similarity == pytest.approx(found.similarity)


@pytest.mark.parametrize(
    ("second", "precision", "different"),
    [
        (lambda y: y * (1 + 1e-5), Precision.FULL, False),
        (lambda y: y * 1.01, Precision.FULL, True),
        (lambda y: y + rng(5).normal(0, 0.02, y.shape), Precision.REDUCED, False),
        (lambda y: y + rng(5).normal(0, 0.02, y.shape), Precision.FULL, True),
        (lambda y: np.where(np.arange(y.shape[1]) == 2, 0, y), Precision.REDUCED, True),
        (lambda y: np.roll(y, 1, axis=0), Precision.REDUCED, True),
        (lambda y: y[:-1], Precision.REDUCED, True),
        (lambda y: np.where(y > 2, np.nan, y), Precision.REDUCED, True),
    ],
)
def test_two_runtimes_differ_by_more_than_their_precision_explains(second, precision, different):
    first = {"y": rng().normal(size=(100, 4)).astype(np.float32), "label": np.arange(100)}
    other = {"y": second(first["y"]).astype(np.float32), "label": np.arange(100)}
    for one, two in ((first, other), (other, first)):
        found = compare_runtimes(one, two, precision)
        assert found.differs is different
        assert found.different == (("y",) if different else ())
        assert found.worst is not None
        assert found.worst.output == "y"


def test_what_few_bits_cost_is_no_difference_between_runtimes():
    """Each rounds on its own and is as far from the model as from the other; a fault takes one away from both."""
    model = {"y": rng().normal(size=(200, 4))}
    one, other = ({"y": model["y"] + rng(seed).normal(0, 0.3, (200, 4))} for seed in (1, 2))
    near, broken = {"y": model["y"] + rng(3).normal(0, 0.03, (200, 4))}, {"y": np.roll(model["y"], 1, axis=0)}
    for first, second in ((one, other), (other, one)):
        assert compare_runtimes(first, second, Precision.REDUCED).differs
        assert not compare_runtimes(first, second, Precision.REDUCED, model).differs
        assert compare_runtimes(first, second, Precision.FULL, model).differs
    assert compare_runtimes(near, broken, Precision.REDUCED, model).different == ("y",)
    assert compare_runtimes(near, one, Precision.REDUCED, model).differs, "a tenth of the error is no excuse"
    assert compare_runtimes(one, {"y": one["y"][:, :3]}, Precision.REDUCED, model).differs


def test_one_wrecked_column_counts_beside_three_good_ones():
    model = {"y": rng().normal(size=(200, 4))}
    near = {"y": model["y"] + rng(3).normal(0, 0.02, (200, 4))}
    wrecked = {"y": np.where(np.arange(4) == 2, -near["y"], near["y"])}
    assert compare_runtimes(near, wrecked, Precision.REDUCED, model).differs


def test_labels_and_missing_outputs_of_two_runtimes():
    labels = np.arange(200) % 3
    few, many = labels.copy(), labels.copy()
    few[0], many[:50] = 7, 7
    assert not compare_runtimes({"label": labels}, {"label": few}, Precision.FULL).differs
    assert compare_runtimes({"label": labels}, {"label": many}, Precision.REDUCED).differs
    text = np.array(["a", "b"] * 100)
    assert not compare_runtimes({"t": text}, {"t": text}, Precision.FULL).differs
    missing = compare_runtimes({"label": labels}, {}, Precision.FULL)
    assert missing.different == ("label",)
    assert missing.outputs[0].unlike is Unlike.SHAPE
    assert compare_runtimes({}, {}, Precision.FULL).worst is None
