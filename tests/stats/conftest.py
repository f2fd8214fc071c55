from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import pytest


@contextmanager
def _frozen(arrays: Sequence[np.ndarray]) -> Iterator[None]:
    before = [a.copy() for a in arrays]
    for a in arrays:
        a.flags.writeable = False
    yield
    for a, old in zip(arrays, before, strict=True):
        np.testing.assert_array_equal(old, a)


@pytest.fixture
def frozen() -> Callable[[Sequence[np.ndarray]], object]:
    """A context in which arrays cannot be written, compared with their copies at its end."""
    return _frozen
