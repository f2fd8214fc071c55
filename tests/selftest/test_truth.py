"""Counting what labels found, on made-up blocks whose truth is plain."""

from __future__ import annotations

import numpy as np
import pytest

from profiler.disturbance import Judged
from profiler.records import BlockRecord
from profiler.selftest import truth
from profiler.selftest.truth import Found


def block(started_s: float = 100.0, windows=(0.001,) * 100, label_every: int = 1, samples=None) -> BlockRecord:
    windows = np.array(windows, float)
    samples = np.repeat(windows / label_every, label_every) if samples is None else np.array(samples)
    return BlockRecord(
        case="fp32@ort/b1/t1", replicate=0, attempt=0, group=0, round=0, position=0, started_s=started_s, samples_s=samples,
        discarded=0, inferences_per_sample=1, batch=1, cpu_s=0.1, wall_s=float(windows.sum()), window_s=windows,
        label_every=label_every,
    )  # fmt: skip


def judged(made: BlockRecord, flagged=(), reasons=()) -> Judged:
    flags = np.zeros(len(made.samples_s), bool)
    flags[list(flagged)] = True
    return Judged(made, flags, tuple(reasons))


def test_exactly_the_window_around_the_middle_of_a_pulse_was_stopped():
    """100 windows of 1 ms, the 41st of which lasts 51 ms because of a pulse: it has to be labelled. Two windows on either
    side are too near to be called quiet."""
    windows = [0.001] * 40 + [0.051] + [0.001] * 59
    pulse = (100.0405, 100.0905)

    assert truth.stopped_windows([judged(block(windows=windows), [40])], [pulse]) == Found(1, 1, 95, 0)
    assert truth.stopped_windows([judged(block(windows=windows))], [pulse]) == Found(1, 0, 95, 0)
    assert truth.stopped_windows([judged(block(windows=windows), [40, 80])], [pulse]) == Found(1, 1, 95, 1)


def test_windows_that_touch_a_pulse_are_neither():
    """Two milliseconds around it decide nothing: they are in no count."""
    windows = [0.001] * 40 + [0.051] + [0.001] * 59
    found = truth.stopped_windows([judged(block(windows=windows), [39, 41])], [(100.0405, 100.0905)])

    assert (found.false, found.quiet) == (0, 95)


def test_pulses_outside_a_block_count_nothing():
    """Between blocks nothing was being measured."""
    assert truth.stopped_windows([judged(block())], [(99.0, 99.05), (100.2, 100.25)]) == Found(0, 0, 100, 0)


def test_windows_of_several_samples_are_counted_once():
    """A label belongs to the window, whatever the number of samples in it."""
    windows = [0.001] * 10 + [0.051] + [0.001] * 9
    item = judged(block(windows=windows, label_every=5), range(50, 55))

    assert truth.stopped_windows([item], [(100.0105, 100.0605)]) == Found(1, 1, 15, 0)


def test_a_block_without_labels_is_left_out():
    """Where nothing tells, nothing is found, and no share is made up."""
    found = truth.stopped_windows([Judged(block(), None, ())], [(100.01, 100.06)])

    assert (found, found.recall, found.false_share) == (Found(), None, None)
    assert truth.labelled_share([Judged(block(), None, ())]) is None


def test_shares_are_shares():
    """Of the disturbed and of the quiet ones."""
    found = Found(4, 3, 10, 1) + Found(1, 1, 0, 0)

    assert (found.recall, found.false_share) == (pytest.approx(0.8), pytest.approx(0.1))


@pytest.mark.parametrize(
    ("load", "item", "expected"),
    [
        ([(99.0, 101.0)], judged(block(), range(20)), Found(1, 1, 0, 0)),
        ([(99.0, 101.0)], judged(block()), Found(1, 0, 0, 0)),
        ([(99.0, 101.0)], judged(block(), (), ["a quota held it back"]), Found(1, 1, 0, 0)),
        ([(100.0, 100.06)], judged(block()), Found(1, 0, 0, 0)),
        ([(100.0, 100.04)], judged(block(), range(20)), Found()),
        ([(90.0, 91.0)], judged(block(), range(20)), Found(0, 0, 1, 1)),
        ([], judged(block()), Found(0, 0, 1, 0)),
        ([(99.0, 101.0)], judged(block(), range(9)), Found(1, 0, 0, 0)),
        ([(99.0, 101.0)], judged(block(windows=[0.03] + [0.001] * 99), [0]), Found(1, 1, 0, 0)),
    ],
    ids=["labelled", "missed", "dirty", "mostly", "partly", "quiet but labelled", "quiet", "hardly", "one long sample"],
)
def test_a_block_under_load_is_labelled_by_a_tenth_of_its_time(load, item, expected):
    """Half of it under load makes it disturbed, none of it quiet, in between it is not counted."""
    assert truth.loaded_blocks([item], load) == expected


def test_a_block_that_nothing_tells_of_counts_neither_way():
    """No flags and no reasons: as if it had not been there."""
    assert truth.loaded_blocks([Judged(block(), None, ())], [(99.0, 101.0)]) == Found()


def test_outliers_are_explained_by_labels():
    """Of four samples over twice the median three are labelled; samples below never count."""
    samples = [0.001] * 96 + [0.005] * 4
    made = block(windows=samples, samples=samples)

    assert truth.slow_explained([judged(made, [0, 96, 97, 98])]) == 0.75
    assert truth.slow_explained([judged(block(), [0])]) is None
    assert truth.labelled_share([judged(made, [0, 96, 97, 98])]) == 0.04
