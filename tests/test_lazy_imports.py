"""Importing is cheap: what is heavy comes in when it is used."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import profiler

ROOT = Path(__file__).parents[1]
HEAVY = {
    "numpy",
    "onnx",
    "onnxruntime",
    "openvino",
    "scipy",
    "pydantic",
    "sqlalchemy",
    "altair",
    "jinja2",
    "torch",
    "typer",
    "rich",
    "psutil",
    "sklearn",
}
RUNTIMES = {"onnxruntime", "openvino", "torch", "tensorrt", "sklearn", "altair", "vl_convert", "jinja2"}


def imported_by(statement: str) -> set[str]:
    code = f"{statement}\nimport sys; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True
    )
    return {name.partition(".")[0] for name in done.stdout.split()}


@pytest.mark.process
def test_importing_profiler_imports_nothing_heavy():
    """The worker, too, begins with it."""
    assert set() == imported_by("import profiler") & HEAVY


@pytest.mark.process
@pytest.mark.parametrize(
    "module", ["profiler.api", "profiler.run", "profiler.analysis", "backends.ort", "backends.ov", "backends.trt"]
)
def test_no_module_imports_a_runtime(module):
    """A runtime is imported by the worker that measures it, and by nobody else on import."""
    assert set() == imported_by(f"import {module}") & RUNTIMES


def test_every_public_name_is_there():
    """And `dir` tells them."""
    assert all(getattr(profiler, name) is not None for name in profiler.__all__)
    assert sorted(profiler.__all__) == dir(profiler)


def test_an_unknown_name_is_an_attribute_error():
    """As for any module, so that `hasattr` works."""
    assert not hasattr(profiler, "frobnicate")
