"""Activation ranges from calibration rows."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest

from profiler.variants.calibration import BINS, activation_ranges, entropy_range, percentile_range


def ranges_of(rows, method, **options):
    return activation_ranges(lambda row: {"t": row}, lambda: iter(rows), method, **options)["t"]


def quantized_error(values, span):
    """Mean square error of 8-bit quantization over a range, written down independently."""
    low, high = min(span[0], 0.0), max(span[1], 0.0)
    scale = (high - low) / 255
    return float(np.mean((np.clip(np.round((values - low) / scale), 0, 255) * scale + low - values) ** 2))


def test_minmax_gives_the_extremes_over_all_rows():
    """The extremes may lie in different rows."""
    assert ranges_of([np.array([-3.0, 1.0]), np.array([0.0, 5.0])], "minmax") == (-3.0, 5.0)


@pytest.mark.parametrize("method", ["minmax", "entropy", "percentile"])
def test_values_that_are_not_finite_are_left_out(method):
    """Attention masks hold -inf; a range up to there would make every other value zero."""
    rows = [np.array([-np.inf, np.nan, 1.0, -1.0]), np.full(3, np.nan)]

    low, high = ranges_of(rows, method)

    assert -1.0 <= low < high <= 1.0


@pytest.mark.parametrize("method", ["minmax", "entropy", "percentile"])
def test_a_tensor_that_is_constant_or_zero_gets_its_own_value_as_range(method):
    """Dead channels neither fail nor widen."""
    assert ranges_of([np.zeros(10)], method) == (0.0, 0.0)
    assert ranges_of([np.full(10, 2.0)], method) == (2.0, 2.0)


@pytest.mark.parametrize("method", ["entropy", "percentile"])
def test_ranges_never_leave_the_extremes(method):
    """Clipping only narrows."""
    rng = np.random.default_rng(3)
    for draw in (rng.standard_normal, rng.standard_exponential, rng.random):
        rows = [draw(5000) for _ in range(3)]
        low, high = ranges_of(rows, method)
        assert min(map(np.min, rows)) <= low <= high <= max(map(np.max, rows))


def test_percentile_agrees_with_numpy_up_to_a_bin():
    """The cut values are the quantiles, to the width of one histogram bin."""
    values = np.random.default_rng(0).standard_normal(200_000)
    width = (values.max() - values.min()) / BINS

    low, high = ranges_of(np.split(values, 10), "percentile", percentile=99.0)

    expected = np.quantile(values, [0.005, 0.995])
    assert abs(low - expected[0]) <= 2 * width
    assert abs(high - expected[1]) <= 2 * width


def test_the_hundredth_percentile_is_minmax():
    """Nothing is cut when everything is to be kept."""
    values = np.random.default_rng(0).standard_normal(1000)

    assert ranges_of([values], "minmax") == pytest.approx(ranges_of([values], "percentile", percentile=100.0))


def test_entropy_cuts_a_lone_outlier_and_keeps_the_bulk():
    """One value at 60 sigma must not set the scale for all others."""
    values = np.random.default_rng(0).standard_normal(100_000)
    rows = [np.append(values, 60.0)]

    low, high = ranges_of(rows, "entropy")

    assert 3.0 < high < 10.0
    assert quantized_error(values, (low, high)) < 0.05 * quantized_error(values, (values.min(), 60.0))


def test_entropy_keeps_all_of_a_uniform_distribution():
    """Where every value is as likely, cutting any costs more than it gains."""
    values = np.random.default_rng(0).uniform(-1, 1, 100_000)

    low, high = ranges_of([values], "entropy")

    assert pytest.approx((low, high), abs=0.02) == (-1.0, 1.0)


def test_zeros_after_a_relu_do_not_decide_the_threshold():
    """Half of the values being exactly zero leaves the threshold where it was without them."""
    positive = np.abs(np.random.default_rng(0).standard_normal(50_000))

    with_zeros = ranges_of([np.concatenate([positive, np.zeros(200_000)])], "entropy")
    without = ranges_of([positive], "entropy")

    assert with_zeros[1] == pytest.approx(without[1], rel=0.05)


def test_the_result_does_not_depend_on_how_rows_are_cut():
    """Ten rows at once or one by one, the same ranges."""
    values = np.random.default_rng(0).standard_normal((10, 300))
    for method in ("minmax", "entropy", "percentile"):
        assert ranges_of([values], method) == ranges_of(list(values), method)


def test_memory_stays_bounded_when_the_first_row_is_nearly_zero():
    """Histograms that widen bin by bin need 10**12 bins here; 40 rows of 0.8 MB are not kept either."""
    rows = 40

    def feeds():
        rng = np.random.default_rng(0)
        yield np.full(100_000, 1e-9)
        for _ in range(rows):
            yield rng.standard_normal(100_000) * 1000

    tracemalloc.start()
    try:
        for method in ("entropy", "percentile"):
            activation_ranges(lambda row: {"t": row}, feeds, method)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()

    assert peak < 12_000_000


def test_the_pure_parts_take_histograms():
    """Counts in, range out: a bell over the first bins, one stray count at the end."""
    counts = (1e6 * np.exp(-((np.arange(BINS) / 100) ** 2))).astype(np.int64)
    counts[-1] = 1

    assert entropy_range(counts, (0.0, 10.0))[1] < 4.0
    assert percentile_range(counts, (0.0, 10.0), 99.9)[1] < 2.0
