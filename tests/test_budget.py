"""Time that is left, by an injected clock."""

from __future__ import annotations

import math

from profiler.budget import Budget


def test_a_budget_counts_down_and_is_shared_in_equal_parts():
    now = [100.0]
    budget = Budget(60.0, clock=lambda: now[0])
    now[0] = 112.0

    assert budget.spent_s == 12.0
    assert budget.left_s == 48.0
    assert budget.share_s(4) == 12.0
    now[0] = 200.0
    assert budget.left_s == -40.0


def test_without_a_budget_there_is_always_time():
    assert math.isinf(Budget().left_s)
    assert math.isinf(Budget().share_s(7))


def test_time_before_it_was_made_counts_when_told():
    assert Budget(10.0, clock=lambda: 7.0, began=3.0).left_s == 6.0
