"""Data from the user's own code: batches of several forms, a limit, and errors that name the function."""

from __future__ import annotations

import sys

import pytest

from backends.base import TensorInfo
from profiler.data import load_dataset
from profiler.data.functions import read_function
from profiler.errors import DataError

X = TensorInfo("x", "float32", ("N", 2))

MODULE = """
import numpy as np

def one(rows, start=0):
    return np.arange(start, start + 2 * rows, dtype=np.float32).reshape(rows, 2)

def mappings():
    for i in range(3):
        yield {"x": one(4), "labels": np.full(4, i), "ids": np.arange(4) + 4 * i}

def tuples():
    for i in range(3):
        yield one(4), np.full(4, i)

def lists():
    return [[one(4), [i] * 4] for i in range(3)]

def reused():
    buffer = np.zeros((1, 2), np.float32)
    for i in range(3):
        buffer[:] = i
        yield buffer

def single():
    return {"x": one(5), "labels": np.arange(5)}

def bare():
    return one(5)

def unlabelled():
    yield one(2), None

def endless():
    taken = 0
    while True:
        taken += 1
        assert taken < 10, "asked for more batches than the limit needs"
        yield one(4)

def forever():
    while True:
        yield one(1000)

def broken():
    yield one(2)
    raise RuntimeError("the disk is gone")

def none():
    return iter(())

def objects():
    yield {"x": np.array([object(), object()])}

def ragged():
    yield {"x": one(2)}
    yield {"x": np.zeros((2, 3), np.float32)}

def mixed():
    yield {"x": one(2), "labels": [0, 1]}
    yield {"x": one(2)}

def uneven():
    yield {"x": one(2), "labels": [0]}

def triple():
    yield one(1), 1, 2

def needs_argument(path):
    yield one(1)

constant = 3
"""


@pytest.fixture(autouse=True)
def module(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_rows.py").write_text(MODULE)
    before = list(sys.path)
    yield
    sys.modules.pop("my_rows", None)
    assert before == sys.path


@pytest.mark.parametrize("function", ["mappings", "tuples", "lists"])
def test_batches_are_joined(function):
    """Mappings, tuples and lists say the same."""
    data = load_dataset(f"my_rows:{function}", inputs=[X])

    assert len(data) == 12
    assert data.labels.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert f"my_rows:{function}" == data.name


@pytest.mark.parametrize(("function", "rows"), [("single", 5), ("bare", 5), ("unlabelled", 2)])
def test_one_batch_may_be_returned(function, rows):
    """Without a generator, and without labels."""
    assert rows == len(load_dataset(f"my_rows:{function}", inputs=[X]))


def test_a_buffer_that_is_filled_again_and_again_is_copied():
    """Otherwise all rows would be the last one."""
    assert load_dataset("my_rows:reused", inputs=[X]).inputs["x"][:, 0].tolist() == [0, 1, 2]


def test_the_limit_stops_an_endless_generator():
    """No batch is asked for beyond the one that fills the limit."""
    assert len(load_dataset("my_rows:endless", inputs=[X], limit=10)) == 10


def test_an_endless_generator_without_limit_stops_at_the_size_limit():
    """And the message says to limit the rows."""
    with pytest.raises(DataError, match="limit the number of rows"):
        read_function("my_rows:forever", ("x",), limit=None, max_bytes=1_000_000)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("broken", "raised RuntimeError: the disk is gone"),
        ("none", "yielded no batch"),
        ("objects", "dtype object"),
        ("ragged", r"changes between batches: \[\(2,\), \(3,\)\]"),
        ("mixed", "batch 1 .* has arrays"),
        ("uneven", "different length"),
        ("triple", "tuple of 3 items"),
        ("needs_argument", "TypeError"),
        ("constant", "has no function 'constant'.*It has: .*tuples"),
        ("absent", "has no function 'absent'"),
    ],
)
def test_faults_name_the_function_and_the_cause(function, message):
    """Exceptions of user code are quoted, shapes are shown."""
    with pytest.raises(DataError, match=message) as caught:
        load_dataset(f"my_rows:{function}", inputs=[X])
    assert function in str(caught.value)


def test_a_module_that_fails_to_import_is_named(tmp_path):
    """With its own error and where it was looked for."""
    (tmp_path / "my_broken_rows.py").write_text("import not_installed_at_all\n")
    with pytest.raises(DataError, match=r"ModuleNotFoundError.*not_installed_at_all"):
        load_dataset("my_broken_rows:rows", inputs=[X])


def test_a_bare_array_is_refused_when_the_model_has_two_inputs():
    """Which input it is cannot be told."""
    with pytest.raises(DataError, match="give a mapping by input name"):
        load_dataset("my_rows:tuples", inputs=[X, TensorInfo("y", "float32", ("N", 2))])


LOADER = """
import torch
from torch.utils.data import DataLoader, TensorDataset

x = torch.arange(10.0).reshape(5, 2)

def pair():
    return x, torch.arange(5)

def loader():
    return DataLoader(TensorDataset(x, torch.arange(5)), batch_size=2)

def unlabelled():
    return DataLoader(TensorDataset(x), batch_size=2)
"""


@pytest.mark.runtime
@pytest.mark.parametrize("form", ["pair", "loader", "unlabelled"])
@pytest.mark.parametrize("names", [("x",), ()], ids=["named", "before the export"])
def test_what_torch_gives(tmp_path, monkeypatch, form, names):
    """Tuples of tensors and a DataLoader's lists; a module that is still to be exported has no names of inputs yet."""
    pytest.importorskip("torch")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "torch_rows.py").write_text(LOADER, encoding="utf-8")
    monkeypatch.delitem(sys.modules, "torch_rows", raising=False)
    rows = read_function(f"torch_rows:{form}", names, limit=None)

    name = names[0] if names else "input"
    assert rows[name].tolist() == [[0, 1], [2, 3], [4, 5], [6, 7], [8, 9]]
    assert ("labels" in rows) == (form != "unlabelled")
    if "labels" in rows:
        assert rows["labels"].tolist() == [0, 1, 2, 3, 4]
