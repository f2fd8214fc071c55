"""What the user names becomes rows that fit the model, or an error that says what to do."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from backends.base import TensorInfo
from profiler.data import Dataset, check_labels, load_dataset
from profiler.errors import DataError, StudyError

X = TensorInfo("x", "float32", ("N", 4))


def load(arrays, inputs=(X,), **options) -> Dataset:
    return load_dataset(arrays, inputs=inputs, **options)


def test_an_npz_with_labels_groups_and_ids_is_read_whole(tmp_path, rows):
    """All four kinds of arrays arrive, labels as int64, groups and ids as text."""
    path = tmp_path / "test.npz"
    np.savez(path, **rows, groups=np.array(["a", "b"] * 10), ids=np.arange(20) // 2)

    data = load_dataset(path, inputs=[X])

    assert len(data) == 20
    np.testing.assert_array_equal(rows["x"], data.inputs["x"])
    assert np.int64 == data.labels.dtype
    np.testing.assert_array_equal(rows["labels"], data.labels)
    assert data.groups[:3].tolist() == ["a", "b", "a"]
    assert data.ids[:3].tolist() == ["0", "0", "1"]
    assert data.notes == ()


def test_the_hash_is_of_content_only(tmp_path, rows):
    """Same rows from a file, from memory, byte-swapped or non-contiguous: one hash. Any change: another."""
    np.savez(tmp_path / "a.npz", **rows)
    plain = load(rows).sha256
    swapped = load({**rows, "x": rows["x"].astype(">f4")}).sha256
    strided = load({**rows, "x": np.repeat(rows["x"], 2, axis=0)[::2]}).sha256
    from_file = load_dataset(str(tmp_path / "a.npz"), inputs=[X]).sha256
    changed = rows["x"].copy()
    changed[3, 2] += 1

    assert {plain} == {swapped, strided, from_file}
    assert plain != load({**rows, "x": changed}).sha256
    assert plain != load({"x": rows["x"]}).sha256
    assert plain != load({**rows, "groups": np.arange(20)}).sha256
    assert load({**rows, "groups": np.arange(20)}).sha256 != load({**rows, "ids": np.arange(20)}).sha256
    assert (
        load({**rows, "ids": np.arange(20).astype("U2")}).sha256
        == load({**rows, "ids": np.arange(20).astype("U50")}).sha256
    )


def test_the_only_input_may_have_another_name(rows):
    """One array, one input: no question which is which, and a note says so."""
    data = load({"images": rows["x"], "labels": rows["labels"]})

    assert list(data.inputs) == ["x"]
    assert data.notes == ("array 'images' was taken as the model's only input 'x'",)


def test_an_input_called_like_a_reserved_array_is_the_input():
    """`ids` of a text model are token ids, not clusters."""
    data = load({"ids": np.zeros((3, 5), np.int64)}, [TensorInfo("ids", "int64", ("N", "T"))])

    assert list(data.inputs) == ["ids"]
    assert data.ids is None


def test_the_fixed_batch_of_the_model_does_not_bind_the_data(rows):
    """Rows are fed in batches of the case."""
    assert len(load(rows, [TensorInfo("x", "float32", (1, 4))])) == 20


@pytest.mark.parametrize(
    ("given_dtype", "wanted"),
    [
        ("float64", "float32"),
        ("float16", "float32"),
        ("float32", "float16"),
        ("int32", "int64"),
        ("int64", "int32"),
        ("uint8", "int32"),
    ],
)
def test_safe_conversions_are_made_and_noted(given_dtype, wanted):
    """Only width changes; the values are the same (floats within the target's precision)."""
    array = np.arange(12).reshape(3, 4).astype(given_dtype)

    data = load({"x": array}, [TensorInfo("x", wanted, ("N", 4))])

    assert wanted == data.inputs["x"].dtype.name
    np.testing.assert_array_equal(array, data.inputs["x"])
    assert (f"input 'x' was converted from {given_dtype} to {wanted}",) == data.notes


@pytest.mark.parametrize(
    ("array", "wanted", "message"),
    [
        (np.zeros((2, 4), np.uint8), "float32", "only you know"),
        (np.zeros((2, 4), np.float32), "uint8", "got float32, the model expects uint8"),
        (np.full((2, 4), 2**40), "int32", "cannot hold them"),
        (np.full((2, 4), -1), "uint8", "cannot hold them"),
        (np.full((2, 4), 1e300), "float32", "too large for float32"),
        (np.zeros((2, 4), bool), "float32", "got bool"),
        (np.zeros((2, 4), np.float32), "bfloat16", "numpy data cannot hold"),
    ],
)
def test_conversions_that_change_values_are_refused(array, wanted, message):
    """Scaling is the user's knowledge; overflow is never silent."""
    with pytest.raises(DataError, match=message):
        load({"x": array}, [TensorInfo("x", wanted, ("N", 4))])


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({}, "missing: x"),
        ({"x": np.zeros((2, 4), np.float32), "y": np.zeros(2)}, "unknown: y"),
        ({"x": np.zeros((2, 4, 1), np.float32)}, "rank 3"),
        ({"x": np.zeros((2, 5), np.float32)}, "size 5 on axis 1, the model expects 4"),
        ({"x": np.float32(1)}, "single value"),
        ({"x": np.zeros((0, 4), np.float32)}, "empty"),
        (
            {"x": np.array([[1, 2, np.nan, np.inf], [0, 0, 0, 0]], np.float32)},
            "'x' of data 'arrays' has 2 NaN or infinite values of 8, the first in row 0",
        ),
        ({"x": np.array([[None] * 4])}, "dtype object"),
    ],
)
def test_inputs_that_do_not_fit_are_refused(arrays, message):
    """The message names the array, what came and what was expected."""
    inputs = [TensorInfo("x", "float32", ())] if arrays.get("x") is not None and arrays["x"].ndim == 0 else [X]
    with pytest.raises(DataError, match=message):
        load(arrays, inputs)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (np.zeros(3, np.int64), "2 rows and labels of shape"),
        (np.int64(1), "labels of shape"),
        (np.array([0.0, np.nan]), "'labels' of data 'arrays' has 1 NaN"),
        (np.array([0.0, np.inf]), "1 NaN or infinite"),
        (np.array([["cat", "dog"]]), "2 rows and labels of shape"),
        (np.array([["cat", "dog"]] * 2), "2 rows and 'labels' of shape"),
        (np.zeros((2, 0)), "no value for a row"),
        (np.array([0, 2**64 - 1], np.uint64), "beyond 64-bit"),
    ],
)
def test_bad_labels_of_each_kind_are_refused(labels, message):
    """Wrong length, NaN, infinite, two texts a row, nothing, absurd."""
    with pytest.raises(DataError, match=message):
        load({"x": np.zeros((2, 4), np.float32), "labels": labels})


@pytest.mark.parametrize(
    ("key", "column"), [("groups", np.zeros(3, np.int64)), ("ids", np.zeros((2, 1), np.int64)), ("groups", np.zeros(2))]
)
def test_bad_groups_and_ids_are_refused(key, column):
    """One name for each row, text or integer."""
    with pytest.raises(DataError, match=key):
        load({"x": np.zeros((2, 4), np.float32), key: column})


def test_labels_outside_the_classes_are_named():
    """The first one, its row, and how many."""
    check_labels(np.array([0, 9]), 10)
    with pytest.raises(DataError, match=r"2 labels lie outside 0 … 9.*label 10 in row 1"):
        check_labels(np.array([3, 10, -1]), 10)
    with pytest.raises(DataError, match="integer class indexes"):
        check_labels(np.array([0.5]), 10)


def test_a_shared_symbolic_dimension_is_one_size():
    """A text model's ids and mask have the same length."""
    inputs = [TensorInfo("ids", "int64", ("N", "T")), TensorInfo("mask", "int64", ("N", "T"))]
    load({"ids": np.zeros((2, 5), np.int64), "mask": np.zeros((2, 5), np.int64)}, inputs)
    with pytest.raises(DataError, match="dimension 'T' is 5 in input 'ids' and 6 in 'mask'"):
        load({"ids": np.zeros((2, 5), np.int64), "mask": np.zeros((2, 6), np.int64)}, inputs)
    with pytest.raises(DataError, match="different numbers of rows"):
        load({"ids": np.zeros((2, 5), np.int64), "mask": np.zeros((3, 5), np.int64)}, inputs)


def test_a_limit_draws_at_random_not_the_first_rows():
    """Files are often sorted by class: the first rows would be one class."""
    data = load({"x": np.zeros((100, 4), np.float32), "labels": np.arange(100)}, limit=10)
    again = load({"x": np.zeros((100, 4), np.float32), "labels": np.arange(100)}, limit=10)

    assert len(data) == 10
    assert data.labels.max() > 20
    assert sorted(data.labels.tolist()) == data.labels.tolist()
    assert data.sha256 == again.sha256
    assert data.notes == ("10 of 100 rows, drawn at random (seed 0)",)


def test_a_limit_beyond_the_rows_changes_nothing(rows):
    """And 0 is refused."""
    assert load(rows).sha256 == load(rows, limit=20).sha256
    with pytest.raises(StudyError, match="1 or more"):
        load(rows, limit=0)


@pytest.mark.parametrize(
    ("source", "message"),
    [("no/such.npz", "neither a file"), ("nothing", "neither a file"), ("table.csv", r"is a \.csv")],
)
def test_unknown_sources_say_what_can_be_given(tmp_path, monkeypatch, source, message):
    """A wrong path names the folder it was looked for from."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "table.csv").write_text("1,2")
    with pytest.raises(DataError, match=message):
        load_dataset(source, inputs=[X])


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**16), count=st.integers(1, 30))
def test_taking_rows_keeps_the_columns_together(seed, count):
    """Row i of each column still belongs to sample i, and the hash follows the content."""
    rng = np.random.default_rng(seed)
    data = load(
        {"x": np.repeat(np.arange(30, dtype=np.float32)[:, None], 4, 1), "labels": np.arange(30), "ids": np.arange(30)}
    )
    index = rng.integers(0, 30, count)

    part = data.take(index)

    np.testing.assert_array_equal(index, part.inputs["x"][:, 0])
    np.testing.assert_array_equal(index, part.labels)
    assert [str(i) for i in index] == part.ids.tolist()
    assert (part.sha256 == data.sha256) == np.array_equal(index, np.arange(30))


@pytest.mark.parametrize("dtype", [np.int32, np.float32, np.float64])
def test_labels_in_a_column_are_labels(dtype):
    """As a table gives them: whole numbers may be classes whatever their type; other values keep their column."""
    x = np.zeros((4, 2), np.float32)
    info = TensorInfo("x", "float32", ("N", 2))
    column = np.array([[0], [2], [1], [2]], dtype)
    flat = load_dataset({"x": x, "labels": column[:, 0]}, inputs=[info])

    assert load_dataset({"x": x, "labels": column}, inputs=[info]).labels.shape == (4,)
    assert load_dataset({"x": x, "labels": column}, inputs=[info]).sha256 == flat.sha256
    assert load_dataset({"x": x, "labels": column + 0.5}, inputs=[info]).labels.shape == (4, 1)
