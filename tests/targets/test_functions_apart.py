"""The user's data function runs in a process of its own: the same rows as here, and its crash is a message."""

from __future__ import annotations

import os
import sys

import numpy as np
import pytest

from profiler.data.functions import read_function
from profiler.errors import DataError
from profiler.study import make_study
from profiler.targets.functions import read_function_apart
from profiler.targets.maker import Limits

pytestmark = pytest.mark.process

MODULE = """
import ctypes, os, sys, time
import numpy as np

def rows():
    print("a word on stdout")
    # A file beside the study, by a relative path.
    x = np.load("x.npy")
    yield {"x": x[:3], "labels": np.array(["a", "b", "a"]), "ids": np.arange(3), "flag": np.array([True, False, True])}
    yield {"x": x[3:], "labels": np.array(["b", "longer"]), "ids": np.arange(2), "flag": np.array([True, False])}

def where():
    return {"x": np.array([[os.getpid()]], np.float64)}

def segfault():
    ctypes.string_at(0)

def leaves():
    sys.exit(7)

def hangs():
    time.sleep(600)

def large():
    return {"x": np.ones((1, 1 << 31), np.float64)}

def wrong():
    raise ValueError("no rows today")
"""


@pytest.fixture
def module(tmp_path, monkeypatch) -> str:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "apart_rows.py").write_text(MODULE, encoding="utf-8")
    np.save(tmp_path / "x.npy", np.arange(10, dtype=np.float32).reshape(5, 2))
    monkeypatch.delitem(sys.modules, "apart_rows", raising=False)
    return "apart_rows"


def test_the_same_rows(module):
    """Values, types, order and texts; a limit too."""
    for limit in (None, 2, 4):
        here = read_function(f"{module}:rows", ("x", "flag"), limit=limit)
        apart = read_function_apart(f"{module}:rows", ("x", "flag"), limit=limit)

        assert list(apart) == list(here)
        for name, array in here.items():
            assert apart[name].dtype == array.dtype
            np.testing.assert_array_equal(apart[name], array)
            apart[name][:] = array[::-1]  # ours, to be written to


def test_it_runs_elsewhere(module):
    assert read_function_apart(f"{module}:where", ("x",), limit=None)["x"][0, 0] != os.getpid()


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("os:abort", "SIGABRT"),
        ("apart_rows:segfault", "SIGSEGV"),
        ("apart_rows:leaves", "ended the process"),
        ("apart_rows:hangs", "did not end within 4 s"),
        ("apart_rows:large", "memory"),
        ("apart_rows:wrong", "raised ValueError: no rows today"),
        ("apart_rows:nothing", "has no function 'nothing'"),
    ],
)
def test_what_becomes_of_it_is_a_message(module, text, says):
    """Each names the function."""
    limits = Limits(4.0, "for a test", 2 << 30, "for a test")
    with pytest.raises(DataError, match=says) as caught:
        read_function_apart(text, ("x",), limit=None, limits=lambda: limits)

    assert text in str(caught.value)


def test_a_function_of_a_notebook_is_called_here(monkeypatch):
    """No other process has it."""
    main = sys.modules["__main__"]
    monkeypatch.setattr(main, "my_rows", lambda: np.ones((3, 2), np.float32), raising=False)

    assert read_function_apart("__main__:my_rows", ("x",), limit=None)["x"].shape == (3, 2)


def test_a_run_whose_data_end_the_process(module, small_model, tmp_path):
    """It is refused like any other wrong data, and leaves no run behind."""
    from profiler.run import execute
    from profiler.store import open_store

    study = make_study(model=str(small_model), data="os:abort", backends=("fake",), variants=("fp32",))
    with pytest.raises(DataError, match=r"calling the data function 'os:abort' ended the process"):
        execute(study, out=tmp_path / "runs")

    store = open_store(tmp_path / "runs")
    assert not store.runs()
    store.close()
