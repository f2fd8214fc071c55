"""What holds of the best of many: one error rate for all of them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from profiler.quality.compare import Flips, PairedChange, paired_change
from profiler.quality.family import Member, simultaneous
from profiler.quality.metrics import get_metric
from profiler.quality.verdict import change_verdict, lower_bound
from profiler.stats.paired import tango_noninferior_p
from profiler.stats.ratios import holm

TOP1, LIMIT = get_metric("top1"), 0.01


def member(index: int, bad: int, good: int, n: int) -> Member:
    change = PairedChange(TOP1, (good - bad) / n, n, Flips(n, bad, good))
    return Member((np.array([index, bad, good]),), lambda alpha: lower_bound(change, LIMIT, alpha))


@settings(max_examples=40)
@given(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 30)), min_size=1, max_size=8))
def test_it_is_holms_method_on_tangos_p_values(flips):
    """By bounds at alpha over how many are left, instead of by p-values: the same ones pass."""
    n = 1500
    found = simultaneous({str(i): member(i, bad, good, n) for i, (bad, good) in enumerate(flips)}, LIMIT)
    adjusted = holm([tango_noninferior_p(bad, good, n, LIMIT) for bad, good in flips])

    assert [found[str(i)].passed for i in range(len(flips))] == (adjusted < 0.05).tolist()
    assert {item.count for item in found.values()} == {len(flips)}


def test_one_alone_is_its_own_verdict():
    """Nothing to allow for."""
    for bad in range(20):
        change = PairedChange(TOP1, -bad / 1000, 1000, Flips(1000, bad, 0))
        alone = simultaneous({"a": member(0, bad, 0, 1000)}, LIMIT)["a"]
        assert alone.passed == (change_verdict(change, LIMIT).verdict == "PASS")


def test_the_same_answers_count_once():
    """Twenty copies of one file are one variant: it passes as it does alone, and so do all its copies."""
    rows = (np.arange(600.0),)
    one = member(0, 0, 0, 600)
    copies = simultaneous({str(i): Member(rows, one.lower) for i in range(20)}, LIMIT)
    apart = simultaneous({str(i): Member((rows[0] + i,), one.lower) for i in range(20)}, LIMIT)

    assert all(item.passed and item.count == 1 for item in copies.values())
    assert all(item.count == 20 and item.low < copies["0"].low for item in apart.values())


def test_more_company_never_makes_it_easier():
    """The bound of one falls with every other that could have been chosen."""
    lows = [
        simultaneous({str(i): member(i, 3, 2, 2000) for i in range(count)}, LIMIT)["0"].low for count in (1, 2, 12, 48)
    ]
    assert lows == sorted(lows, reverse=True)
    assert lows[0] == pytest.approx(lower_bound(PairedChange(TOP1, -5e-4, 2000, Flips(2000, 3, 2)), LIMIT))


def test_a_bound_that_nothing_gives_never_passes():
    assert not simultaneous({"a": Member((None,), lambda _: None)}, 1.0)["a"].passed


@pytest.mark.parametrize("count", [12, 20])
def test_of_many_that_all_lose_the_limit_one_passes_in_at_most_a_twentieth_of_runs(count):
    """Alone one does in 45 or 61 %: fixed seed, 120 runs, so at most 11 (5 % and two and a half Monte Carlo errors)."""
    rng = np.random.default_rng(count)
    n, psi = 2000, 0.03
    alone = together = 0
    for _ in range(120):
        flips = rng.multinomial(n, [(psi + LIMIT) / 2, (psi - LIMIT) / 2, 1 - psi], size=count)[:, :2].tolist()
        alone += any(tango_noninferior_p(bad, good, n, LIMIT) < 0.05 for bad, good in flips)
        # Holm rejects something exactly when Bonferroni does.
        together += any(tango_noninferior_p(bad, good, n, LIMIT) < 0.05 / count for bad, good in flips)
        if together > 11:
            break
    assert alone > 35
    assert together <= 11


def test_resampled_changes_are_bounded_at_every_level():
    """The same draws, further out: monotone, and beyond what 2,000 resamples reach by their normal tail."""
    rng = np.random.default_rng(0)
    reference = rng.random(400)
    change = paired_change(get_metric("mae"), reference, reference + rng.normal(0, 0.1, 400))
    lows = [lower_bound(change, LIMIT, alpha) for alpha in (0.05, 0.05 / 4, 0.05 / 48, 1e-9)]

    assert lows == sorted(lows, reverse=True)
    assert lows[3] < lows[2] - 0.005
