from __future__ import annotations

import numpy as np
import pytest

from backends.base import TensorInfo


@pytest.fixture
def image_input() -> TensorInfo:
    return TensorInfo("x", "float32", ("N", 3, 8, 8))


@pytest.fixture
def rows() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(7)
    return {"x": rng.normal(size=(20, 4)).astype(np.float32), "labels": rng.integers(0, 3, 20)}
