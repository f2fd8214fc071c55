"""The example in docs/adding-a-backend.md is a backend that works."""

from __future__ import annotations

import re
from importlib.metadata import EntryPoint
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

import backends
from backends import registry
from backends.base import Backend, BackendError, LoadOptions, Session

PAGE = Path(backends.__file__).parents[1] / "docs" / "adding-a-backend.md"


@pytest.fixture
def documented(monkeypatch) -> Backend:
    """The documented code as an installed package with the documented entry point."""
    text = PAGE.read_text(encoding="utf-8")
    module = ModuleType("edgeprof_reference")
    exec(compile(re.search(r"```python\n(.*?)```", text, re.S)[1], str(PAGE), "exec"), module.__dict__)
    monkeypatch.setitem(__import__("sys").modules, module.__name__, module)
    name, value = re.search(r'```toml\n.*?\n(\w+) = "(.*?)"\n```', text, re.S).groups()
    return registry.get(name, lambda: [EntryPoint(name, value, registry.GROUP)])


def test_documented_backend_conforms(documented, example):
    """It loads every example model, answers as expected, and closes."""
    feeds = example.feed(3, 1)
    session = documented.load(example.path, LoadOptions())

    assert documented.availability().available
    assert isinstance(session, Session)
    assert [info.name for info in session.inputs] == list(feeds)
    for name, expected in example.expected(feeds).items():
        np.testing.assert_array_equal(session.infer(feeds)[name], expected)
    session.close()
    session.close()
    with pytest.raises(BackendError, match="closed"):
        session.infer(feeds)


def test_documented_backend_refuses(documented, no_model, tmp_path):
    """A missing file, a file that is no model, and an unknown device or option are errors of ours."""
    for path, options in (
        (tmp_path / "absent.onnx", LoadOptions()),
        (no_model, LoadOptions()),
        (no_model, LoadOptions(device="gpu")),
        (no_model, LoadOptions(options={"a": "1"})),
    ):
        with pytest.raises(BackendError):
            documented.load(path, options)
