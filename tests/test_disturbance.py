"""Two views of the same samples: all of them, and those that nothing disturbed. Never by the latency itself."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from profiler.disturbance import dirty_share, excluded_share, judge, judge_run
from profiler.records import BlockRecord

WALL = 1e-3


def block(case="a", replicate=0, index=0, *, hit=(), labels=None, samples=40, discarded=0, label_every=1, told=True):
    """A block of equal samples; those in `hit` lasted five times as long because the processor was away."""
    durations = np.full(samples, WALL)
    durations[list(hit)] *= 5
    windows = durations.reshape(-1, label_every).sum(axis=1)
    return BlockRecord(
        case=case, replicate=replicate, attempt=0, group=0, round=index, position=0, started_s=float(index), samples_s=durations,
        discarded=discarded, inferences_per_sample=1, batch=1, cpu_s=samples * WALL, wall_s=float(durations.sum()),
        labels=labels or {}, window_s=windows if told else None,
        window_cpu_s=np.full(len(windows), WALL * label_every) if told else None, label_every=label_every,
    )  # fmt: skip


def test_the_clean_view_leaves_out_exactly_the_disturbed_samples():
    (item,) = judge([block(hit=(5, 9))])

    assert len(item.observed) == 40
    # Each with the one after it, which finds its caches taken.
    assert np.flatnonzero(item.flags).tolist() == [5, 6, 9, 10]
    assert item.clean.tolist() == [WALL] * 36
    assert excluded_share([item]) == pytest.approx(4 / 40)


def test_a_slow_sample_that_kept_its_processor_stays():
    """The model's own outlier is a fact about the model."""
    slow = block()
    slow.samples_s[7] *= 9
    slow = replace(slow, window_s=slow.samples_s.copy(), window_cpu_s=slow.samples_s.copy())
    (item,) = judge([slow])

    assert item.clean.max() == pytest.approx(9 * WALL)


def test_samples_that_share_a_window_share_its_label():
    (item,) = judge([block(hit=(5,), label_every=4)])

    assert np.flatnonzero(item.flags).tolist() == list(range(4, 12))


def test_reentry_is_in_neither_view():
    (item,) = judge([block(hit=(0, 30), discarded=3)])

    assert (len(item.observed), len(item.clean)) == (37, 35)


def test_where_nothing_tells_both_views_are_the_same():
    (item,) = judge([block(told=False)])

    assert item.flags is None
    assert len(item.clean) == len(item.observed)
    assert excluded_share([item]) is None
    assert dirty_share({"a": [item]}) is None


def test_an_extra_round_takes_the_place_of_a_disturbed_one_for_all_cases():
    dirty = tuple(range(10, 20))
    blocks = {
        "a": [block("a", index=0, hit=dirty), block("a", index=1), block("a", index=2)],
        "b": [block("b", index=0), block("b", index=1), block("b", index=2)],
    }
    judged = judge_run(blocks, rounds=2)

    assert [[item.kept for item in judged[case]] for case in "ab"] == [[False, True, True]] * 2
    assert [len(item.clean) for item in judged["b"]] == [0, 40, 40]
    assert dirty_share(judged) == pytest.approx(1 / 6)


def test_without_extra_rounds_disturbed_ones_stay():
    """They are the best there is; their disturbed samples still go."""
    judged = judge_run({"a": [block(index=0, hit=range(10)), block(index=1)]}, rounds=2)

    assert [item.kept for item in judged["a"]] == [True, True]
    assert [len(item.clean) for item in judged["a"]] == [29, 40]


def test_clean_rounds_are_never_dropped_and_the_dirtiest_goes_first():
    hits = {0: range(8), 1: range(30), 2: (), 3: ()}
    judged = judge_run({"a": [block(index=index, hit=hit) for index, hit in hits.items()]}, rounds=3)

    assert [item.kept for item in judged["a"]] == [True, False, True, True]
    assert all(item.kept for item in judge_run({"a": [block(index=i) for i in range(5)]}, rounds=3)["a"])


def test_processes_are_judged_apart():
    """An extra round of one process does not replace a disturbed one of another."""
    blocks = [
        block(replicate=0, index=0, hit=range(20)),
        block(replicate=0, index=1),
        block(replicate=1, index=0, hit=range(20)),
    ]
    judged = judge_run({"a": blocks}, rounds=1)

    assert [item.kept for item in judged["a"]] == [False, True, True]


def sung(index, songs, *, slower=1.3, **settings):
    """A block with a canary that sang before, in the middle and after; after a slow song the samples are slow too."""
    made = block(index=index, **settings)
    songs = np.asarray(songs, np.float64)
    slow = np.repeat(np.maximum(songs[:-1], songs[1:]) > 11e-6, 20)
    durations = made.samples_s * np.where(slow, slower, 1.0)
    return replace(
        made,
        samples_s=durations,
        window_s=durations,
        window_cpu_s=durations,
        canary_s=songs,
        canary_at=np.array([0, 20, 40]),
    )


FAST, SLOW = (10e-6, 10e-6, 10e-6), (10e-6, 10e-6, 15e-6)


def test_samples_that_the_canary_saw_slowed_leave_the_clean_view():
    judged = judge([sung(0, FAST), sung(1, SLOW)])

    assert [len(item.clean) for item in judged] == [40, 20]
    assert [bool(item.reasons) for item in judged] == [False, True]
    assert "slowed" in judged[1].reasons[0]
    assert not judged[1].ignored


def test_a_canary_that_scatters_while_the_samples_do_not_is_not_believed():
    """What it flags is no slower than the rest: nothing is left out, and no block is called disturbed."""
    judged = judge([sung(0, FAST), sung(1, SLOW, slower=1.01)])

    assert [len(item.clean) for item in judged] == [40, 40]
    assert not any(item.reasons for item in judged)
    assert [(item.sensor, item.cause) for item in judged[0].ignored] == [("canary", "not slower")]
    assert excluded_share(judged) == 0


def test_a_machine_that_is_slow_half_of_the_time_is_that_machine():
    """Two clock speeds: what the canary calls slow is the usual, and a cloud that rents it out is paid for it."""
    judged = judge([sung(0, FAST), sung(1, (15e-6,) * 3), sung(2, FAST), sung(3, (15e-6,) * 3)])

    assert [len(item.clean) for item in judged] == [40] * 4
    assert [(item.cause, item.share) for item in judged[0].ignored] == [("too often", 0.5)]


@pytest.mark.parametrize(("delay_s", "own"), [(0.0, True), (4 * WALL, False)])
def test_a_model_that_waits_by_itself_keeps_its_slow_samples(delay_s, own):
    """Time off the processor that no run queue explains, in every block, belongs to the model; otherwise others had it."""
    blocks = [block(index=index, hit=(7,), labels={"run_delay_s": delay_s}) for index in range(4)]
    judged = judge(blocks)

    assert [len(item.clean) for item in judged] == [40 if own else 38] * 4
    assert [item.cause for item in judged[0].ignored] == (["own waiting"] if own else [])


def test_a_stop_in_one_block_of_many_is_not_the_models():
    """SIGSTOP, or a container that is paused, waits in no run queue either: but not again and again."""
    blocks = [block(index=index, hit=(7,) if index == 0 else (), labels={"run_delay_s": 0.0}) for index in range(4)]

    assert [len(item.clean) for item in judge(blocks)] == [38, 40, 40, 40]


def test_a_device_that_computes_elsewhere_has_no_canary():
    """Its own speed is not that of this core."""
    idle = [
        replace(sung(index, SLOW), window_cpu_s=np.full(40, 0.02 * WALL), window_waited_s=np.zeros(40))
        for index in range(3)
    ]

    assert all(len(item.clean) == 40 for item in judge(idle))


def test_a_block_with_hardly_a_clean_sample_is_not_used():
    judged = judge([sung(0, FAST), sung(1, FAST), sung(2, FAST), sung(3, (15e-6,) * 3)])

    assert [item.usable for item in judged] == [True, True, True, False]
