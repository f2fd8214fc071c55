"""Ranges of least squared error, of activations and of weights."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from profiler.variants.calibration import activation_ranges, clip_weights


def ranges_of(rows, method, **options):
    return activation_ranges(lambda row: {"t": row}, lambda: iter(rows), method, **options)["t"]


def squared_error(values, low, high, *, symmetric=False):
    """8-bit rounding, written down independently."""
    low, high = min(low, 0.0), max(high, 0.0)
    if symmetric:
        scale = max(-low, high) * 2 / 255
        return float(np.mean((np.clip(np.round(values / scale), -127, 127) * scale - values) ** 2))
    scale = (high - low) / 255
    zero = np.round(-low / scale)
    return float(np.mean(((np.clip(np.round(values / scale) + zero, 0, 255) - zero) * scale - values) ** 2))


@pytest.mark.parametrize("symmetric", [False, True])
def test_one_outlier_is_clipped_and_the_error_gets_smaller(symmetric):
    """A value twenty times as large as all others would take 95 % of the steps."""
    values = np.random.default_rng(0).standard_normal(1_000_000)
    values[7] = 60.0

    low, high = ranges_of([values], "mse", symmetric=symmetric)

    assert high < 30
    full = squared_error(values, values.min(), values.max(), symmetric=symmetric)
    assert squared_error(values, low, high, symmetric=symmetric) < 0.8 * full


def test_what_has_no_outliers_keeps_its_range():
    """Uniform values lose more by clipping than by coarser steps."""
    values = np.random.default_rng(0).uniform(-2, 5, 100_000)

    assert ranges_of([values], "mse") == pytest.approx((-2, 5), rel=0.03)


def test_each_end_is_clipped_on_its_own():
    """A far outlier below is no reason to clip above."""
    values = np.random.default_rng(0).uniform(-1, 1, 2_000_000)
    values[0] = -30.0

    low, high = ranges_of([values], "mse")

    assert -10 < low < -1
    assert high == pytest.approx(1, rel=0.05)


def test_zeros_after_a_relu_do_not_decide():
    """They cost nothing whatever the range is; half of all values, they would ask for a tiny one."""
    rng = np.random.default_rng(0)
    positive = np.abs(rng.standard_normal(20_000))
    padded = np.concatenate([positive, np.zeros(500_000)])

    assert ranges_of([padded], "mse")[1] == pytest.approx(ranges_of([positive], "mse")[1], rel=0.1)


@given(st.integers(0, 2**32 - 1), st.floats(1e-3, 1e3), st.sampled_from(["normal", "laplace", "lognormal"]))
def test_never_much_worse_than_the_extremes(seed, scale, shape):
    """Clipping is chosen from a histogram; a bin's width is all it can lose against the true values."""
    rng = np.random.default_rng(seed)
    values = getattr(rng, shape)(size=4_000) * scale

    low, high = ranges_of([values], "mse")

    assert values.min() <= low <= high <= values.max()
    assert squared_error(values, low, high) <= 1.3 * squared_error(values, values.min(), values.max())


@given(st.integers(0, 2**32 - 1), st.sampled_from([None, 0, 1]))
def test_clipped_weights_round_with_no_larger_error(seed, axis):
    """Per tensor or per slice, the range that is left errs at most as much as the full one."""
    weights = np.random.default_rng(seed).laplace(size=(6, 50)).astype(np.float32)

    clipped = clip_weights(weights, axis)

    def off(limits):
        step = limits / 127
        return ((np.clip(np.rint(weights / step), -127, 127) * step - weights) ** 2).sum()

    over = None if axis is None else 1 - axis
    limits = [np.abs(w).max(axis=over, keepdims=True) for w in (weights, clipped)]
    assert clipped.dtype == weights.dtype
    assert off(limits[1]) <= off(limits[0]) * (1 + 1e-5)
    assert np.array_equal(clipped, np.clip(weights, -limits[1], limits[1]))


def test_weights_that_are_all_zero_stay():
    """A dead channel has no range."""
    weights = np.zeros((2, 3), np.float32)

    assert np.array_equal(clip_weights(weights, 0), weights)
