"""What a run tells where there is no terminal."""

from __future__ import annotations

from profiler.cli import console


def test_on_a_pipe_a_long_stage_tells_now_and_then_how_far_it_is(capsys):
    """Not every step: a log of thousands of lines hides what matters."""
    now = [0.0]
    bars = console.Bars(None, clock=lambda: now[0])
    bars.stage("measuring", 100)
    for _ in range(100):
        now[0] += 1.0
        bars.step("a case")

    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        "edgeprof: measuring (100 steps)",
        *(f"edgeprof: measuring: {done} of 100 steps" for done in (30, 60, 90)),
    ]
