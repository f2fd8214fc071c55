"""Calibration rows are never evaluated: not as themselves, not as a copy, not as another view of their source."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, reject, settings
from hypothesis import strategies as st

from profiler.data import Dataset, drop_overlap, overlap, row_hashes, split_calibration
from profiler.errors import DataError


def dataset(values, ids=None) -> Dataset:
    values = np.asarray(values, np.float32).reshape(-1, 1)
    return Dataset.of("d", {"x": values}, np.arange(len(values)), None, None if ids is None else np.asarray(ids))


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 40), st.integers(0, 25)), min_size=2, max_size=60),
    st.integers(1, 20),
    st.integers(0, 99),
)
def test_no_id_and_no_row_stands_on_both_sides(pairs, n, seed):
    """Whatever the duplicates and clusters; every row is used once; at least n are for calibration."""
    values, ids = zip(*pairs, strict=True)
    data = dataset(values, ids)
    try:
        calibration, evaluation = split_calibration(data, n, seed=seed)
    except DataError:
        # One component, or n takes them all; a split that always refused would fail hypothesis' health check.
        reject()

    assert not set(calibration.ids.tolist()) & set(evaluation.ids.tolist())
    assert not set(row_hashes(calibration)) & set(row_hashes(evaluation))
    assert sorted([*calibration.labels, *evaluation.labels]) == list(range(len(data)))
    assert n <= len(calibration)
    assert overlap(calibration, evaluation).size == 0


def test_without_clusters_exactly_n_rows_are_cut_and_the_order_stays():
    """The same seed cuts the same rows, another seed others."""
    data = dataset(range(100))
    calibration, evaluation = split_calibration(data, 30, seed=1)

    assert (len(calibration), len(evaluation)) == (30, 70)
    assert sorted(evaluation.labels.tolist()) == evaluation.labels.tolist()
    assert calibration.sha256 == split_calibration(data, 30, seed=1)[0].sha256
    assert calibration.sha256 != split_calibration(data, 30, seed=2)[0].sha256
    assert "30 of 100 rows of 'd', cut at random (seed 1)" in calibration.notes


@pytest.mark.parametrize("n", [0, 10, 11])
def test_a_split_that_leaves_nothing_is_refused(n):
    """And one that asks for nothing."""
    with pytest.raises(DataError, match="calibration"):
        split_calibration(dataset(range(10)), n, seed=0)


def test_one_cluster_cannot_be_split():
    """All rows views of one source."""
    with pytest.raises(DataError, match="10 rows in 1 clusters"):
        split_calibration(dataset(range(10), [7] * 10), 3, seed=0)


def test_overlap_is_found_by_content_and_by_id():
    """Planted copies are found wherever they stand; disjoint sets have none."""
    evaluation = dataset(range(50))
    calibration = dataset([100, 3, 101, 49, 102])

    assert overlap(calibration, evaluation).tolist() == [1, 3]
    assert overlap(dataset([100, 101]), evaluation).tolist() == []
    assert overlap(dataset([100, 101], ["a", "b"]), dataset([1, 2], ["b", "c"])).tolist() == [1]


def test_overlapping_rows_are_dropped_with_a_note():
    """And a set that overlaps entirely is refused."""
    kept = drop_overlap(dataset([100, 3, 101]), dataset(range(50)))

    assert kept.inputs["x"][:, 0].tolist() == [100, 101]
    assert kept.notes == ("1 calibration rows also stand in 'd' and were dropped",)
    with pytest.raises(DataError, match="all 2 rows"):
        drop_overlap(dataset([1, 2]), dataset(range(50)))
    clean = dataset([100])
    assert clean is drop_overlap(clean, dataset(range(50)))


def test_rows_that_share_an_id_alone_are_told_so():
    """Their inputs differ: whoever numbered the sources of both files from 0 must read that the numbers are the trouble."""
    evaluation = dataset([1, 2, 3], ["recording 0", "recording 1", "recording 2"])

    with pytest.raises(DataError, match="have an id that 'd' has too, such as 'recording 1'") as refused:
        drop_overlap(dataset([10, 11], ["recording 1", "recording 0"]), evaluation)
    assert "stand in" not in str(refused.value)
    some = drop_overlap(dataset([10, 11], ["recording 1", "other"]), evaluation)
    assert some.notes == ("1 calibration rows also stand in 'd' by their id and were dropped",)
    both = drop_overlap(dataset([2, 10, 12], ["a", "recording 0", "b"]), evaluation)
    assert both.notes == ("2 calibration rows also stand in 'd', 1 of them by their id, and were dropped",)
