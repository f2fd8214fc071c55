"""Simulated series have the percentiles, correlations and shapes that they promise: what is proved with them rests on this."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from profiler.stats import simulate

SIMULATIONS = 400


@pytest.mark.parametrize("kind", ["iid", "ar1", "mixed", "bursts"])
@pytest.mark.parametrize("p", [0.5, 0.85, 0.99])
def test_the_share_below_the_true_percentile_is_p(kind, p):
    """Over 400 series the share of factors up to `true_quantile(p)` is p, process offsets included."""
    rng = np.random.default_rng(1)
    t = simulate.round_times(30, 40, gap=400)
    offsets = np.exp(simulate.process_effects(rng, SIMULATIONS, 1, sd=0.05))
    data = simulate.noise(kind, rng, t, SIMULATIONS) * offsets
    shares = (data <= simulate.true_quantile(kind, p, offset_sd=0.05)).mean(axis=1)

    assert abs(shares.mean() - p) <= 4 * stats.sem(shares)


def test_log_normal_percentiles_are_scipys():
    """The closed form agrees with an independent one."""
    assert simulate.true_quantile("iid", 0.9, scatter=0.2) == pytest.approx(stats.lognorm.ppf(0.9, 0.2))


def test_half_of_a_mixture_of_two_narrow_modes_lies_where_it_must():
    """90 % at 1 and 10 % at 1.6: p45 is the middle of the lower mode, p95 that of the upper one."""
    assert simulate.true_quantile("bursts", 0.45, scatter=0.01) == pytest.approx(1.0, rel=1e-6)
    assert simulate.true_quantile("bursts", 0.95, scatter=0.01) == pytest.approx(1.6, rel=1e-6)


def test_correlation_follows_the_distance_in_time_across_gaps():
    """Neighbours, ends of a round and rounds apart correlate by exp(-distance / 100)."""
    t = simulate.round_times(3, 20, gap=50)
    paths = simulate.ar1(np.random.default_rng(2), t, 20_000)

    assert list(t[[0, 19, 20]]) == [0, 19, 70]
    assert paths.mean() == pytest.approx(0, abs=0.02)
    assert paths.std() == pytest.approx(1, abs=0.02)
    for j in (1, 19, 20, 59):
        got = float(np.corrcoef(paths[:, 0], paths[:, j])[0, 1])
        assert got == pytest.approx(math.exp(-(t[j] - t[0]) / 100), abs=0.03)


def test_bursts_have_their_share_and_length():
    """On for 10 % of the time, 50 inferences at a time on average, wherever one looks."""
    t = np.arange(20_000.0)
    on = simulate.bursts(np.random.default_rng(3), t, 50, share=0.1, length=50)
    starts = np.count_nonzero(on[:, 1:] & ~on[:, :-1])

    assert on.mean() == pytest.approx(0.1, rel=0.1)
    assert on[:, 0].mean() <= 0.3
    assert on.sum() / starts == pytest.approx(50, rel=0.1)


def test_warm_up_shapes_start_and_end_where_they_should():
    """Decay and step end at 1; the thermal rise ends within a tenth of its height of the steady level."""
    decay, step, rise = simulate.warmup_decay(), simulate.warmup_step(), simulate.thermal_rise()

    assert (decay[0], decay[150]) == pytest.approx((1.5, 1 + 0.5 / math.e))
    assert decay[-1] == pytest.approx(1, abs=1e-6)
    assert (step[399], step[400]) == (1.15, 1.0)
    assert rise[0] == 1.0
    assert 1.072 < rise[-1] < 1.08


def test_same_seed_same_series():
    """A generator's seed decides everything."""
    t = simulate.round_times(2, 5)
    one, other = (simulate.noise("bursts", np.random.default_rng(7), t, 3) for _ in range(2))

    np.testing.assert_array_equal(one, other)
