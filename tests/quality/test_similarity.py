"""Similarity of outputs that are larger than memory is what it is for small ones."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest

from profiler.quality.outputs import similarity


@pytest.mark.parametrize("shape", [(7,), (40, 5), (3, 2, 2), (5, 30)])
def test_similarity_is_the_same_in_pieces(shape, monkeypatch):
    """However few rows are looked at together: zeros, NaN, infinities and equal rows among them."""
    rng = np.random.default_rng(0)
    for low in (0.0, -1.0):
        a, b = (rng.uniform(low, 1, shape) for _ in range(2))
        a[0] = b[0]
        if low:
            a[1], b[2] = np.nan, 0
        whole = similarity(a, b)
        monkeypatch.setattr("profiler.quality.outputs._VALUES_AT_ONCE", 7)
        np.testing.assert_array_equal(whole, similarity(a, b))
        monkeypatch.undo()


def test_similarity_takes_little_memory_beside_its_inputs():
    """Two hundred times what it looks at together."""
    a = np.ones((200, 1 << 16), np.float16)
    b = a.copy()
    b[::2, 0] = 0
    tracemalloc.start()
    found = similarity(a, b)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()

    assert (found[1], found.shape) == (1.0, (200,))
    assert 0.9999 < found[0] < 1.0
    assert peak < 130 << 20
