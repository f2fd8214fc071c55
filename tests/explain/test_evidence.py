"""The profiler's own share, and several profiles as one."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backends.base import OpTime
from profiler.explain.evidence import merged_goes, without_overhead


def ops(*seconds, calls=1.0):
    return [OpTime(f"op{place}", "Conv", "f32", "cpu", value, calls) for place, value in enumerate(seconds)]


def test_what_profiling_adds_comes_off_each_op_alike():
    """30 µs of ops in an inference of 24 µs: 2 µs each of three."""
    assert without_overhead(ops(5e-6, 10e-6, 15e-6), 24e-6) == pytest.approx((3e-6, 8e-6, 13e-6))


def test_no_op_gets_less_than_nothing():
    """1 µs cannot give the 4 µs that its share would be; the others give the rest."""
    assert without_overhead(ops(1e-6, 10e-6, 10e-6), 9e-6) == pytest.approx((0.0, 4.5e-6, 4.5e-6))


def test_ops_that_fit_stay_as_they_are():
    """What is outside of ops is then known."""
    assert without_overhead(ops(5e-6, 6e-6), 20e-6) == (5e-6, 6e-6)


@given(st.lists(st.floats(0, 1e-3), max_size=30), st.floats(1e-7, 1e-2))
def test_the_sum_never_exceeds_the_inference(seconds, wall_s):
    """And order is kept: a slower op stays the slower one."""
    left = without_overhead(ops(*seconds), wall_s)
    assert sum(left) <= max(wall_s * (1 + 1e-5), 0)
    assert all(0 <= new <= old for new, old in zip(left, seconds, strict=True))
    ranked = sorted(range(len(seconds)), key=lambda place: seconds[place])
    assert all(left[a] <= left[b] for a, b in pairwise(ranked))


def test_several_profiles_give_the_median_of_each_op():
    """One disturbed go moves nothing; an op that came late is kept."""
    goes = [ops(1e-6), ops(9e-6), ops(2e-6, 7e-6)]
    assert [op.duration_s for op in merged_goes(goes)] == pytest.approx([2e-6, 7e-6])
    assert merged_goes([ops(1e-6), ops(3e-6)])[0].duration_s == pytest.approx(2e-6)
