"""The graph builders as fixtures (test files import nothing from each other)."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

_SPEC = importlib.util.spec_from_file_location("pruning_graphs", Path(__file__).with_name("graphs.py"))
graphs_module = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(graphs_module)


@pytest.fixture(scope="session")
def graphs():
    """Random models, their steps and rows."""
    return graphs_module
