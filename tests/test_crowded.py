"""More threads than processors are measured as asked, and told."""

from __future__ import annotations

from dataclasses import replace

import pytest

from profiler.environment import describe
from profiler.run import crowding
from profiler.study import make_study


@pytest.mark.parametrize(
    ("threads", "targets", "told"),
    [((1, 2), ("local",), False), ((1, 3), ("local",), True), ((64,), ("pi",), False), ((3,), ("pi", "local"), True)],
)
def test_threads_that_take_turns(threads, targets, told):
    """Of this machine only: what others have is not known here."""
    here = replace(describe(), usable_cores=2)
    notes = crowding(make_study(model="m.onnx", threads=threads, targets=targets), here)

    assert len(notes) == told
    for note in notes:
        assert f"{max(threads)} threads take turns on the 2 processors" in note
        assert "--threads 2" in note
