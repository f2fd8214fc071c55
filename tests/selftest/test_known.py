"""What was programmed against what was measured."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from backends.fake_shapes import factors
from profiler.selftest import known
from profiler.selftest.known import STEADY, Known, compare


def programmed(shape: str, count: int = known.INFERENCES, seed: int = 0) -> np.ndarray:
    return np.array(list(itertools.islice(factors(shape, seed), count))) * known.LATENCY_S


@pytest.mark.parametrize("shape", STEADY)
def test_a_perfect_measurement_is_right(shape):
    """The course itself with a clock's noise: no error, and the class of the steady state as listed."""
    for seed in range(5):
        truth = programmed(shape, seed=seed)
        noise = np.abs(np.random.default_rng(seed).normal(0, 0.002, len(truth)))
        found = compare(shape, truth, truth * (1 + noise))

        assert found.p50_right
        assert found.label_right in {True, None}


def test_an_error_beyond_the_limit_is_wrong():
    """3 µs in 400 are too many; 1.5 are within half a percent."""
    truth = programmed("constant")

    assert not compare("constant", truth, truth + 3e-6).p50_right
    assert compare("constant", truth, truth + 1.5e-6).p50_right
    assert compare("constant", truth, truth + 3e-6).error_s == pytest.approx(3e-6)


def test_the_floor_is_a_microsecond():
    """Half a percent of 20 µs is less than clocks resolve."""
    truth = programmed("constant") / 20

    assert compare("constant", truth, truth + 0.9e-6).p50_right
    assert not compare("constant", truth, truth + 1.1e-6).p50_right


def test_disturbed_inferences_do_not_move_the_error_of_a_drift():
    """A tenth of the inferences ten times as slow: the paired error stays, where a difference of medians would not."""
    truth = programmed("drift")
    measured = truth.copy()
    measured[::10] *= 10
    found = compare("drift", truth, measured)

    assert found.error_s == 0
    assert abs(found.measured_p50_s - found.programmed_p50_s) > 1e-6


def test_the_majority_of_repeats_decides():
    """One bad repeat of three is the machine's, two are ours; both complaints name the shape."""
    good = Known("warmup", 4e-4, 4e-4, 1e-7, "warmup")
    late = Known("warmup", 4e-4, 4.1e-4, 1e-5, "flat")

    assert known.wrong([good, good, late]) == ()
    assert known.wrong([good, late, late]) == (
        "warmup: p50 is off by +10.00 µs",
        "warmup: its steady state was called flat, it is warmup",
    )
    assert known.worst_error_s([good, good, late, Known("ar1", 4e-4, 4e-4, -5e-7, "flat")]) == -5e-7


@pytest.mark.process
def test_a_real_worker_runs_every_course():
    """Few inferences each: all shapes come back, none faster than programmed."""
    found = known.measure_known(latency_s=100e-6, inferences=150, repeats=1)

    assert [item.shape for item in found] == list(STEADY)
    assert all(item.error_s >= 0 for item in found)
