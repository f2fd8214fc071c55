"""The rule that drops candidates: what it must find, what it must not lose, and its error rate in simulated races."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from profiler.stats import racing, simulate

ALPHA = 0.05
LOOKS = (1, 2, 3, 5)
ROUNDS = 3


def race(
    rng,
    true_logs,
    quality,
    *,
    kind="independent",
    process_sd=0.003,
    block_sd=0.01,
    modes=0.0,
    bad=(0.0, 1.0),
    alpha=ALPHA,
):
    """One simulated race with its looks; returns the indices that are left, and which look dropped whom."""
    count = len(true_logs)
    offsets = rng.normal(0, process_sd, (count, max(LOOKS)))
    if modes:
        offsets += 0.10 * (rng.random((count, max(LOOKS))) < modes)
    offsets += math.log(bad[1]) * (rng.random((count, max(LOOKS))) < bad[0])
    if kind == "ar1":
        # The lanes' own slow moods: correlated over the rounds of a process, not shared with the others.
        path = simulate.ar1(rng, np.arange(max(LOOKS) * ROUNDS, dtype=float), count, correlation=3.0)
        noise = block_sd * path.reshape(count, max(LOOKS), ROUNDS)
    else:
        noise = rng.normal(0, block_sd, (count, max(LOOKS), ROUNDS))
    weather = np.cumsum(rng.normal(0, 0.05, (1, max(LOOKS), ROUNDS)), axis=2)
    if kind == "uneven":
        noise = noise * np.where(np.arange(count) % 4 == 0, 4.0, 1.0)[:, None, None]
    logs = true_logs[:, None, None] + offsets[:, :, None] + noise + weather
    level = racing.pair_level(alpha, candidates=count, looks=len(LOOKS))
    left, gone = np.arange(count), {}
    for look, processes in enumerate(LOOKS):
        fine = quality[left][:, None] >= quality[left][None, :]
        found = racing.separation(logs[left, :processes])
        for item in racing.dominated(found, fine, level=level):
            gone[int(left[item.candidate])] = (int(left[item.by]), look)
        left = np.array([i for i in left if i not in gone])
    return left, gone


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("independent", {}),
        ("independent", {"process_sd": 0.01}),
        ("independent", {"process_sd": 0.02}),
        ("ar1", {"block_sd": 0.02}),
        ("uneven", {}),
        ("independent", {"modes": 0.05}),
        # Rare processes that take half as long again, or twice as long, for as long as they live.
        ("independent", {"bad": (0.02, 2.0)}),
        ("independent", {"bad": (0.05, 2.0)}),
        ("independent", {"bad": (0.10, 1.5)}),
    ],
)
def test_a_true_frontier_point_is_lost_in_at_most_alpha_of_2000_races(kind, options):
    rng = np.random.default_rng(20)
    # The first four are the frontier, all close together; the fifth ties with the first, the others are beaten.
    logs = np.log([1.0, 1.01, 1.02, 1.03, 1.0, 1.3, 1.06, 2.0])
    quality = np.array([0.1, 0.2, 0.3, 0.4, 0.1, 0.1, 0.3, 0.2])
    lost = 0
    for _ in range(2000):
        _, gone = race(rng, logs, quality, kind=kind, **options)
        lost += any(i in gone for i in range(5))
    assert lost / 2000 <= ALPHA


def test_the_rule_is_not_merely_shy():
    rng = np.random.default_rng(3)
    logs, quality = np.log([1.0, 1.02, 1.5, 1.08, 3.0]), np.array([0.1, 0.2, 0.1, 0.1, 0.1])
    looks = [race(rng, logs, quality)[1] for _ in range(200)]
    assert all(gone[4][1] == 0 for gone in looks), "three times as slow: gone after one process"
    assert all(gone[2][1] == 1 for gone in looks), "half again as slow: gone after a second one that says the same"
    assert np.mean([3 in gone for gone in looks]) > 0.95, "8 % slower: gone by the last look"


def test_a_small_prior_believes_too_much():
    """The reason for a wide one: two processes that differ by 1 % where the usual 0.3 % are assumed."""
    rng = np.random.default_rng(5)
    lost = {0.0: 0, racing.PRIOR_DF: 0}
    for _ in range(400):
        logs = rng.normal(0, 0.01, (8, 2, 1)) + rng.normal(0, 0.001, (8, 2, 3))
        for df in lost:
            found = racing.separation(logs, prior_sd=0.003 if df == 0 else racing.PRIOR_SD, prior_df=df or 1e6)
            gone = racing.dominated(found, np.ones((8, 8), bool), level=racing.pair_level(0.05, candidates=8, looks=1))
            lost[df] += bool(gone)
    assert lost[0.0] > 200
    assert lost[racing.PRIOR_DF] == 0


def test_what_is_shared_by_a_round_cancels():
    rng = np.random.default_rng(1)
    logs = np.log([1.0, 1.2])[:, None, None] + rng.normal(0, 0.001, (2, 4, 3))
    stormy = logs + rng.normal(0, 0.5, (1, 4, 3))
    calm, storm = racing.separation(logs), racing.separation(stormy)
    assert storm.difference == pytest.approx(calm.difference, abs=0.01)
    assert storm.error[0, 1] == pytest.approx(calm.error[0, 1], rel=0.2)


def test_a_pair_that_scatters_more_than_the_others_is_judged_by_itself():
    rng = np.random.default_rng(2)
    logs = rng.normal(0, 0.001, (12, 4, 3))
    logs[0] += np.array([0.3, -0.3, 0.3, -0.3])[:, None]
    found = racing.separation(logs)
    assert found.error[0, 1] >= 0.99 * np.std([0.3, -0.3, 0.3, -0.3], ddof=1) / 2
    assert found.error[1, 2] < found.error[0, 1]


def test_missing_blocks_are_left_out_and_missing_processes_refused():
    logs = np.zeros((2, 2, 3))
    logs[1, 0] = [np.nan, 0.5, 0.5]
    assert racing.separation(logs).difference[1, 0] == pytest.approx(0.25)
    logs[1, 0] = np.nan
    with pytest.raises(ValueError, match="candidate 1 has no block in process 0"):
        racing.separation(logs)
    with pytest.raises(ValueError, match=r"shape \(candidates, processes, rounds\)"):
        racing.separation(np.zeros((2, 2)))


def exact(logs):
    """A separation without any doubt."""
    logs = np.asarray(logs, float)
    return racing.Separation(logs[:, None] - logs[None, :], np.zeros((len(logs), len(logs))), 10.0)


def test_who_is_beaten_by_whom():
    fine = np.array([0, 1, 0, 2])[:, None] >= np.array([0, 1, 0, 2])[None, :]
    gone = racing.dominated(exact([0.0, 0.1, 0.2, 0.3]), fine, level=0.01)
    assert [(item.candidate, item.by) for item in gone] == [(2, 0)]
    assert gone[0].ratio == pytest.approx(np.exp(0.2))
    safe = np.array([False, False, True, False])
    assert racing.dominated(exact([0.0, 0.1, 0.2, 0.3]), fine, level=0.01, protected=safe) == []


def test_slack_never_drops_both_of_a_pair_and_only_within_its_reach():
    fine = np.ones((3, 3), bool)
    found = racing.Separation(exact([0.0, 0.001, 0.5]).difference, np.full((3, 3), 0.002), 50.0)
    strict = racing.dominated(found, fine, level=0.01)
    assert [item.candidate for item in strict] == [2], "one thousandth is not shown"
    loose = racing.dominated(found, fine, level=0.01, slack=0.02)
    assert sorted((item.candidate, item.by) for item in loose) == [(1, 0), (2, 0)]
    equal = racing.Separation(np.zeros((3, 3)), np.full((3, 3), 0.002), 50.0)
    assert len(racing.dominated(equal, fine, level=0.01, slack=0.02)) == 2, "one of them stays"


@given(arrays(float, (5, 3, 2), elements=st.floats(-1, 1)), st.integers(0, 2**32 - 1))
def test_who_beats_is_always_kept_and_the_fastest_of_the_best_is_never_lost(logs, seed):
    quality = np.random.default_rng(seed).integers(0, 3, 5)
    fine = quality[:, None] >= quality[None, :]
    found = racing.separation(logs)
    gone = racing.dominated(found, fine, level=1e-3, slack=0.01)
    dropped = {item.candidate for item in gone}
    assert all(item.by not in dropped and item.ratio >= 1 for item in gone)
    best = np.flatnonzero(quality == quality.max())
    assert len(dropped & set(best.tolist())) < len(best)


def test_betting_keeps_its_level_over_every_look():
    """Rows at the limit exactly, in the two ways that are worst for the bound, looked at after each row."""
    rng, level = np.random.default_rng(7), 0.05
    # Mean 0.01 in steps of −1, 0 and 1; and rare losses of 1 among zeros.
    flips = rng.choice([-1.0, 0.0, 1.0], size=(2000, 1000), p=[0.02, 0.95, 0.03])
    rare = (rng.random((2000, 1000)) < 0.01).astype(float)
    for rows in (flips, rare):
        wrong = np.mean([racing.surely_above(row, 0.01, level=level) for row in rows])
        assert wrong <= level


def test_betting_finds_a_destroyed_model_soon_and_a_lossless_one_in_the_end():
    rng = np.random.default_rng(8)
    wrecked = rng.choice([0.0, 1.0], 128, p=[0.6, 0.4])
    assert racing.surely_above(wrecked, 0.01, level=1e-4)
    assert not racing.surely_above(wrecked[:3], 0.01, level=1e-4)
    equal = np.zeros(2000)
    assert racing.surely_above(equal, -0.01, level=1e-4), "no change in 2,000 rows: not worse than a point"
    assert not racing.surely_above(equal[:500], -0.01, level=1e-4)
    assert not racing.surely_above(equal, 0.0, level=0.5)


def test_evidence_is_zero_without_rows_and_refuses_what_it_cannot_bound():
    assert racing.log_evidence(np.zeros(0), 0.0) == 0.0
    with pytest.raises(ValueError, match="at least -1"):
        racing.log_evidence(np.array([-1.5]), 0.0)
    with pytest.raises(ValueError, match="limit must be above"):
        racing.log_evidence(np.array([0.0]), -1.0)


def test_views_of_one_source_are_one_bet():
    values = np.repeat(np.array([1.0, 0.0, 0.0]), 4)
    clusters = np.repeat(np.array([7, 3, 5]), 4)
    means = racing.cluster_means(values, clusters, 0.25)
    assert means == pytest.approx([0.75, -0.25, -0.25])
    uneven = racing.cluster_means(np.array([1.0, 1.0, 0.0]), np.array([0, 0, 1]), 0.0)
    assert uneven == pytest.approx([1.0, 0.0])
    assert racing.cluster_means(values, None, 0.25) == pytest.approx(values - 0.25)
    apart, together = np.zeros(3000) + 0.02, np.repeat(np.arange(30), 100)
    assert racing.surely_above(apart, 0.0, level=1e-4)
    assert not racing.surely_above(racing.cluster_means(apart, together, 0.0), 0.0, level=1e-4)


@pytest.mark.parametrize("wrong", [(0.0, 3, 2), (1.0, 3, 2), (0.05, 0, 2), (0.05, 3, 0)])
def test_a_level_needs_a_share_and_counts(wrong):
    with pytest.raises(ValueError):
        racing.pair_level(wrong[0], candidates=wrong[1], looks=wrong[2])
