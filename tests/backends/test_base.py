"""The border check names the input, what came and what was expected."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from backends import base
from backends.base import BackendError, EdgeprofError, FeedError, TensorInfo, check_feeds, format_shape

INPUTS = (TensorInfo("image", "float32", ("N", 3, None)), TensorInfo("token", "int64", (2,)))


def feeds(**changes):
    return {"image": np.zeros((5, 3, 7), np.float32), "token": np.zeros(2, np.int64)} | changes


def test_feeds_that_fit_pass():
    """Symbolic and unnamed sizes take any number, fixed ones their own."""
    check_feeds(INPUTS, feeds())


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"image": np.zeros((5, 3, 7))}, r"'image' got float64, the model expects float32"),
        ({"image": np.zeros((3, 7), np.float32)}, r"'image' got rank 2 with shape \(3, 7\).* rank 3: \[N, 3, \?\]"),
        ({"image": np.zeros((5, 4, 7), np.float32)}, r"'image' has size 4 on axis 1, the model expects 3"),
        ({"token": np.zeros(3, np.int64)}, r"'token' has size 3 on axis 0, the model expects 2"),
        ({"mask": np.zeros(1)}, r"unknown: mask"),
    ],
)
def test_feeds_that_do_not_fit_are_refused(wrong, message):
    """Each way not to fit has its own text."""
    with pytest.raises(FeedError, match=message):
        check_feeds(INPUTS, feeds(**wrong))


def test_missing_input_is_named():
    """An absent array is told by the input's name."""
    with pytest.raises(FeedError, match="missing: token"):
        check_feeds(INPUTS, {"image": feeds()["image"]})


def test_shapes_for_people():
    """Unknown sizes are question marks."""
    assert format_shape(("N", 3, None)) == "[N, 3, ?]"
    assert format_shape(()) == "[]"


@pytest.mark.parametrize("error", [BackendError, base.BackendUnavailable, base.ProviderMismatch, FeedError])
def test_one_base_catches_all(error):
    """Every error here is an EdgeprofError and a BackendError."""
    assert issubclass(error, EdgeprofError)
    assert issubclass(error, BackendError)


def test_import_needs_only_numpy():
    """Adapters and contract import on a device that has nothing but Python and numpy."""
    code = (
        "import sys\n"
        "for name in 'onnx onnxruntime openvino scipy pydantic psutil google'.split(): sys.modules[name] = None\n"
        "import backends.base, backends.spec, backends.registry, backends.cpu, backends.ort, backends.ov, backends.fake\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], check=False, capture_output=True, text=True, cwd=Path(base.__file__).parents[1]
    )

    assert (done.returncode, done.stderr) == (0, "")
