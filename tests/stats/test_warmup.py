"""Steady-state detection: known shapes, the bias it leaves, and PELT against exhaustive search."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from profiler.stats.warmup import _pelt, steady_state

N = 3000
T = np.arange(N)
STEADY_S = 1e-3
SHAPES = {
    "flat": np.ones(N),
    "decay": 1 + 0.5 * np.exp(-T / 150),
    "step": np.where(T < 400, 1.15, 1.0),
    "burst": np.where((T >= 1500) & (T < 1700), 1.6, 1.0),
    "slowdown": np.where(T < 600, 0.9, 1.0),
}


def series(shape: str | np.ndarray, seed: int, noise: float = 0.03) -> np.ndarray:
    level = SHAPES[shape] if isinstance(shape, str) else shape
    return STEADY_S * level * np.exp(np.random.default_rng(seed).normal(0, noise, len(level)))


@pytest.mark.parametrize(
    ("shape", "label", "earliest", "latest"),
    [
        ("flat", "flat", 0, 0),
        ("decay", "warmup", 300, 900),
        ("step", "warmup", 380, 420),
        ("burst", "flat", 0, 0),
        ("slowdown", "slowdown", 580, 620),
    ],
)
def test_known_shapes_get_their_label_and_cut(shape, label, earliest, latest):
    """Twenty noisy copies of each shape are all accepted, labelled right and cut where the level settles."""
    found = [steady_state(series(shape, seed)) for seed in range(20)]

    assert {(label, True)} == {(f.label, f.accepted) for f in found}
    assert all(earliest <= f.cut <= latest for f in found)


@pytest.mark.parametrize("shape", ["flat", "decay", "step", "slowdown"])
def test_the_median_after_the_cut_is_unbiased(shape):
    """Over 60 series the median of what remains is off by at most 0.3 %, and keeping everything would not be."""
    kept, raw = [], []
    for seed in range(60):
        x = series(shape, seed)
        kept.append(np.median(x[steady_state(x).cut :]) / STEADY_S - 1)
        raw.append(np.median(x) / STEADY_S - 1)

    assert abs(np.mean(kept)) <= 0.003
    assert shape == "flat" or abs(np.mean(raw)) > abs(np.mean(kept))


@pytest.mark.parametrize(
    ("level", "why"),
    [
        (1 + 0.2 * T / N, "off the level before"),
        (np.where(T < 2400, 1.0, 1.3), "off the level before"),
        (np.where((T // 150) % 2 == 0, 1.0, 1.2), "alternates|off the level before|halves"),
        (np.where(T < 2000, 1.5, 1.0), "too short to confirm"),
    ],
)
def test_what_does_not_settle_is_never_accepted(level, why):
    """A drift, a late step, two alternating levels and a warm-up longer than the rest end in `no_steady_state` and say why."""
    found = steady_state(series(level, 1))

    assert (found.label, found.accepted) == ("no_steady_state", False)
    assert 0 <= found.cut < N
    assert any(part in found.reason for part in why.split("|"))
    assert "extend the warm-up" in found.reason


def test_an_alternation_that_ends_steady_is_still_called_bimodal():
    """Level changes that return are disturbances, up to a quarter of the time."""
    level = np.where((T >= 600) & (T < 2700) & (T % 300 < 120), 1.3, 1.0)

    found = steady_state(series(level, 2, noise=0.01))

    assert not found.accepted
    assert "alternates between levels" in found.reason


def test_a_disturbance_is_reported_though_it_stays_in():
    """The reason counts the disturbed inferences of a burst."""
    assert "200 later inferences were disturbed" in steady_state(series("burst", 3)).reason


def test_slow_models_are_grouped_by_time():
    """Sixty inferences of 50 ms are enough to find a warm-up of the first fifteen."""
    level = np.where(np.arange(60) < 15, 1.4, 1.0)
    x = 0.05 * level * np.exp(np.random.default_rng(4).normal(0, 0.005, 60))
    found = steady_state(x)

    assert (found.cut, found.label, found.accepted) == (15, "warmup", True)


@pytest.mark.parametrize("n", [0, 1, 9])
def test_too_few_inferences_are_not_judged(n):
    """Below ten groups there is no verdict but "extend"."""
    found = steady_state(np.full(n, 0.1))

    assert (found.cut, found.label, found.accepted) == (0, "no_steady_state", False)
    assert f"{n} inferences" in found.reason


def test_a_coarse_clock_that_returns_one_value_is_flat():
    """Without any spread nothing divides by zero and nothing is cut."""
    found = steady_state(np.full(500, 1e-3))

    assert (found.cut, found.label, found.accepted) == (0, "flat", True)


@pytest.mark.parametrize("bad", [np.nan, 0.0, -1.0, np.inf])
def test_impossible_durations_are_refused(bad):
    """NaN, infinite, zero and negative durations are errors."""
    with pytest.raises(ValueError, match="positive and finite"):
        steady_state(np.array([1.0, bad]))


@pytest.mark.parametrize("shape", sorted(SHAPES))
def test_time_units_change_nothing_while_groups_stay_the_same(shape):
    """Twice as slow is the same series: the search works on ratios."""
    x = series(shape, 5)

    assert steady_state(x).cut == steady_state(2 * x).cut


def test_a_long_series_is_thinned_into_larger_groups():
    """Half a million inferences are cut to the group that holds the step."""
    level = np.where(np.arange(500_000) < 100_000, 1.2, 1.0)

    found = steady_state(series(level, 6) / 100)

    assert (found.label, found.accepted) == ("warmup", True)
    assert abs(found.cut - 100_000) <= 2 * 625


def test_inputs_are_not_changed(frozen):
    """Looking leaves the series as it was."""
    x = series("decay", 7)
    with frozen([x]):
        steady_state(x)


@settings(max_examples=60, deadline=None)
@given(
    arrays(np.float64, st.integers(6, 40), elements=st.integers(-3, 3).map(float)),
    st.integers(1, 4),
    st.sampled_from([0.7, 2.3, 7.9]),
)
def test_pelt_finds_the_cost_of_exhaustive_search(y, min_size, penalty):
    """Pruning loses nothing: the total cost equals that of plain dynamic programming, minimum segment length included."""
    n = len(y)
    best = np.full(n + 1, np.inf)
    best[0] = -penalty
    for t in range(1, n + 1):
        for s in range(t - min_size + 1):
            best[t] = min(best[t], best[s] + ((y[s:t] - y[s:t].mean()) ** 2).sum() + penalty)

    ends = _pelt(y, penalty, min_size)
    starts = [0, *ends[:-1]]
    cost = sum(((y[i:j] - y[i:j].mean()) ** 2).sum() for i, j in zip(starts, ends, strict=True))

    assert ends[-1] == n
    assert all(j - i >= min_size for i, j in zip(starts, ends, strict=True))
    assert cost + penalty * (len(ends) - 1) == pytest.approx(best[n], abs=1e-9)
