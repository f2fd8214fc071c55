"""Answers that have nothing to do with the labels are told from such that have, by exact sums."""

from __future__ import annotations

from dataclasses import replace
from math import comb

import numpy as np
import pytest

from profiler.quality.chance import doubtful, independent_share, of_classes, share_above, trend_above
from profiler.quality.reading import choose
from profiler.records import Chance, QualityRecord


def record(chance: Chance | None) -> QualityRecord:
    nothing = np.zeros(1)
    return QualityRecord("fp32@ort/b1", "top1", nothing, None, nothing, "0", 0.0, chance=chance)


@pytest.mark.parametrize(
    ("right", "n", "share"), [(0, 5, 0.3), (3, 5, 0.3), (5, 5, 0.5), (40, 100, 0.25), (0, 600, 0.1)]
)
def test_the_binomial_tail_is_the_sum_of_its_terms(right, n, share):
    """From `right` answers on, all right ones included."""
    expected = sum(comb(n, k) * share**k * (1 - share) ** (n - k) for k in range(right, n + 1))
    assert share_above(right, n, share) == pytest.approx(expected)


def test_independent_answers_are_right_by_their_frequencies():
    """Always the same class: its share of the labels. Evenly spread: 1 / classes. Mixed: by hand."""
    labels = np.array([0, 0, 0, 1])
    assert independent_share(np.zeros(4, int), labels) == 0.75
    assert independent_share(np.array([0, 1, 0, 1]), labels) == 0.5
    assert independent_share(np.array([7, 7, 7, 1]), labels) == pytest.approx(0.25 * 0.25)
    assert independent_share(np.arange(5).repeat(20), np.tile(np.arange(5), 20)) == pytest.approx(0.2)


def test_shuffled_labels_are_doubtful_about_as_often_as_the_level_says():
    """Without relation 95 in 100 references are doubted; with a clear one none is."""
    rng = np.random.default_rng(0)
    doubted = 0
    for _ in range(300):
        answers = rng.choice(4, 200, p=[0.4, 0.3, 0.2, 0.1])
        doubted += doubtful(record(of_classes(answers, rng.permutation(answers))))
        half = np.where(rng.random(200) < 0.5, answers, rng.permutation(answers))
        assert not doubtful(record(of_classes(answers, half)))
    assert 0.9 < doubted / 300 < 0.99


def test_a_detector_of_something_rare_is_not_doubted():
    """98.9 % right where always-no is right in 99 %: it finds half of what is rare, which chance does not."""
    labels = np.zeros(2000, int)
    labels[:20] = 1
    answers = np.zeros(2000, int)
    answers[:10] = 1
    answers[20:32] = 1
    found = of_classes(answers, labels)
    assert found.value < 0.99
    assert not doubtful(record(found))
    assert doubtful(record(of_classes(np.zeros(2000, int), labels)))


def test_few_rows_that_are_all_right_are_not_doubted_and_older_runs_are_not():
    """Three of three can be chance and are no sign of wrong labels; what was not tested is not doubted."""
    assert not doubtful(record(of_classes(np.array([0, 1, 0]), np.array([0, 1, 0]))))
    assert doubtful(record(of_classes(np.array([0, 1, 0]), np.array([1, 0, 1]))))
    assert not doubtful(record(None))
    assert not doubtful(replace(record(None), metric="rmse"))


def test_a_ranking_the_wrong_way_round_is_doubted():
    """A single column that falls with the label (the score of class 0, say): an area below a half."""
    rng = np.random.default_rng(1)
    labels = rng.integers(0, 2, 200)
    scores = labels + rng.standard_normal(200)
    for sign, doubted in ((1, False), (-1, True)):
        outputs = {"p": (sign * scores).astype(np.float32)}
        kept = choose("auc", labels, outputs).reduced(outputs, labels, outputs)
        assert kept["chance"].level == 0.5
        assert (kept["chance"].value < 0.5) == doubted
        assert doubtful(record(kept["chance"])) == doubted
    assert trend_above(np.ones(50), labels[:50]) == 1.0


def test_tags_at_random_are_doubted():
    """Given tags are true no more often than any tag is."""
    rng = np.random.default_rng(2)
    tags = rng.integers(0, 2, (200, 4))
    for values, doubted in ((rng.random((200, 4)), True), (0.3 + 0.4 * tags, False), (np.zeros((200, 4)), True)):
        kept = choose(None, tags, {"y": values}).reduced({"y": values}, tags, {"y": values})
        assert doubtful(record(kept["chance"])) == doubted
        assert kept["chance"].level == pytest.approx(tags.mean())
    assert choose("rmse", tags, {"y": tags * 1.0}).reduced({"y": tags * 1.0}, tags, {"y": tags * 1.0})["chance"] is None
