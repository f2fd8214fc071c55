"""The stopping rule: known schedules, what each part says, and correlation times that simulation knows."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from profiler.stats import simulate
from profiler.stats.quantiles import QuantileEstimate, quantile_interval
from profiler.stats.ratios import RatioEstimate, compare_verdict
from profiler.stats.sequential import (
    LOOK_LEVEL,
    Look,
    all_of,
    correlation_time_s,
    looks,
    process_looks,
    quantile_target_met,
    quantile_targets,
    ratio_target_met,
    relative_half_width,
    span_met,
)


def estimate(p: float, low: float | None, high: float | None, value: float = 1.0) -> QuantileEstimate:
    return QuantileEstimate(p, value, low, high, 1000, 100.0, True, None)


def three(p50: float, p90: float, p99: float) -> list[QuantileEstimate]:
    return [estimate(p, 1 - w, 1 + w) for p, w in ((0.5, p50), (0.9, p90), (0.99, p99))]


class TestSchedules:
    def test_known_schedules(self):
        """The looks of the method: rounds 30, 45, 67, 100, 150; processes 5, 8, 12, 18, 27."""
        assert looks(30, 150) == (30, 45, 67, 100, 150)
        assert process_looks() == (5, 8, 12, 18, 27)
        assert process_looks(10, 20) == (10, 15, 20)
        assert process_looks(3, 3) == (3,)

    @given(st.integers(1, 60), st.integers(0, 500))
    def test_looks_grow_by_about_half_and_end_at_the_budget(self, first, more):
        """Strictly rising, from first to last, no two steps further apart than 1.5 times, and few."""
        for schedule in (looks(first, first + more), process_looks(first, first + more)):
            assert (schedule[0], schedule[-1]) == (first, first + more)
            for a, b in itertools.pairwise(schedule):
                assert a < b <= max(math.ceil(1.5 * a), a + 1)
            # All but the last two steps grow by half, apart from what rounding takes from the smallest.
            assert len(schedule) <= 4 + math.log((first + more) / first) / math.log(1.5) + (3 if first < 4 else 0)

    @pytest.mark.parametrize(("first", "last"), [(0, 5), (6, 5), (-1, -1)])
    def test_impossible_schedules_are_refused(self, first, last):
        """The first look cannot come before the first round or after the budget."""
        with pytest.raises(ValueError, match=f"got {first} and {last}"):
            looks(first, last)


class TestQuantileTargets:
    def test_narrow_intervals_stop(self):
        """2 %, 3 % and 6 % are the defaults, and just reaching them is enough."""
        look = quantile_target_met(three(0.02, 0.03, 0.06))

        assert look.converged
        assert look.missing == ()
        assert "p50 ±2 %, p90 ±3 %, p99 ±6 %" in look.reason

    @pytest.mark.parametrize(
        ("widths", "said"),
        [
            ((0.021, 0.01, 0.01), "p50 is known to ±2.1 %, the target is ±2 %"),
            ((0.01, 0.05, 0.01), "p90 is known to ±5 %, the target is ±3 %"),
            ((0.01, 0.01, 0.08), "p99 is known to ±8 %, the target is ±6 %"),
        ],
    )
    def test_each_percentile_can_hold_it_up(self, widths, said):
        """One wide interval is enough to go on, and it alone is named."""
        look = quantile_target_met(three(*widths))

        assert (look.converged, look.missing) == (False, (said,))

    def test_a_missing_bound_misses_every_target(self):
        """An interval that is open above is not narrow, however near its lower end is."""
        look = quantile_target_met([*three(0.01, 0.01, 0.01)[:2], estimate(0.99, 0.999, None)])

        assert look.missing == ("p99 has no bound above yet, the target is ±6 %",)
        assert relative_half_width(estimate(0.99, None, 1.1)) is None

    def test_p99_may_be_twice_as_wide_as_p90(self):
        """The third target follows the second."""
        assert quantile_targets(p90=0.04) == {0.5: 0.02, 0.9: 0.04, 0.99: 0.08}
        with pytest.raises(ValueError, match="target of p50 is a share"):
            quantile_targets(p50=2)

    def test_a_percentile_without_estimate_is_an_error(self):
        """Silence about p99 is not agreement."""
        with pytest.raises(ValueError, match="no estimate of p99"):
            quantile_target_met(three(0.01, 0.01, 0.01)[:2])

    def test_other_targets_ask_only_for_theirs(self):
        """Somebody who only wants p50 does not wait for the tail."""
        assert quantile_target_met(three(0.05, 0.9, 0.9), {0.5: 0.05}).converged

    @given(st.integers(0, 2**32 - 1), st.sampled_from([1e3, 7.0]))
    def test_units_change_nothing(self, seed, unit):
        """Targets are relative: seconds and milliseconds decide alike."""
        rounds = list(np.random.default_rng(seed).lognormal(0, 0.05, (30, 40)))
        one, other = (
            quantile_target_met(
                [quantile_interval([u * r for r in rounds], p, level=LOOK_LEVEL) for p in (0.5, 0.9, 0.99)]
            )
            for u in (1.0, unit)
        )

        assert one == other


class TestRatioTargets:
    @pytest.mark.parametrize(
        ("low", "high", "converged", "word"),
        [
            (1.03, 1.10, True, "differs"),
            (0.80, 0.95, True, "differs"),
            (0.99, 1.01, True, "equivalent"),
            (1.005, 1.015, True, "equivalent"),
            (0.99, 1.05, False, "neither excludes 1 nor lies within ±2 %"),
        ],
    )
    def test_it_stops_when_the_interval_decides(self, low, high, converged, word):
        """Excludes 1, or inside the margin; else it goes on and shows the interval."""
        look = ratio_target_met(RatioEstimate(1.0, low, high, 5, None))

        assert (look.converged, bool(look.missing)) == (converged, not converged)
        assert word in look.reason

    def test_one_pair_says_why_there_is_no_interval(self):
        """The note of the estimate is what is missing."""
        look = ratio_target_met(RatioEstimate(1.2, None, None, 1, None, "one process pair"))

        assert (look.converged, look.missing) == (False, ("one process pair",))

    @given(st.floats(0.5, 1.5), st.floats(0, 0.5), st.floats(0.005, 0.2))
    def test_it_agrees_with_the_verdict_of_the_report(self, low, width, margin):
        """A run never stops with a ratio that the report then calls inconclusive, and the other way round."""
        ratio = RatioEstimate(low + width / 2, low, low + width, 5, None)

        assert ratio_target_met(ratio, margin).converged == (compare_verdict(ratio, margin) != "inconclusive")


class TestSpan:
    @pytest.mark.parametrize(
        ("span", "lasting", "converged"),
        [(59.9, None, False), (60.0, None, True), (60.0, 3.0, True), (60.0, 3.1, False), (62.1, 3.1, True)],
    )
    def test_sixty_seconds_and_twenty_correlation_times(self, span, lasting, converged):
        """The longer of the two is needed."""
        assert span_met(span, lasting).converged == converged

    def test_it_says_how_long_is_needed_and_why(self):
        """Both figures and the reason."""
        assert span_met(30, 10.0).missing == (
            "watched for 30 s, 200 s are needed (20 times the 10 s for which disturbances last)",
        )
        assert "60 s at the least" in span_met(30, None).reason


def test_all_of_collects_what_is_missing():
    """One part that is not content is enough, and its words remain; content parts give the reason."""
    good, bad = Look(True, "fine"), Look(False, "x; y", ("x", "y"))

    assert all_of([good, good]) == Look(True, "fine; fine")
    assert all_of([good, bad]) == Look(False, "x; y", ("x", "y"))


class TestCorrelationTime:
    STARTS = (np.arange(18)[:, None] * 8 + np.arange(6) * 0.4).ravel()
    OWNERS = tuple(np.repeat(np.arange(18), 6).tolist())

    def blocks(self, tau: float, count: int, *, offsets: float = 0.003, white: float = 0.01) -> np.ndarray:
        rng = np.random.default_rng(11)
        lasting = np.repeat(simulate.process_effects(rng, count, 18, offsets), 6, axis=1)
        slow = 0.03 * simulate.ar1(rng, self.STARTS, count, tau) if tau else 0.0
        return np.exp(slow + lasting + rng.normal(0, white, (count, len(self.STARTS))))

    @pytest.mark.parametrize("tau", [2.0, 6.0, 20.0])
    def test_the_typical_answer_is_near_the_true_time(self, tau):
        """Over 60 series the median estimate is within a factor of 2.5: enough for a floor of twenty of them."""
        found = [correlation_time_s(self.STARTS, x) for x in self.blocks(tau, 60, offsets=0.0)]

        assert tau / 2.5 <= np.median(found) <= tau * 2.5

    def test_independent_blocks_give_their_distance(self):
        """Without correlation nearly every series answers with the spacing, below which nothing can be seen."""
        found = np.array([correlation_time_s(self.STARTS, x, self.OWNERS) for x in self.blocks(0.0, 100, offsets=0.0)])

        assert np.mean(np.isclose(found, 0.4)) >= 0.95

    def test_lasting_offsets_of_processes_are_no_correlation_when_named(self):
        """Processes that differ by 3 % for good look like correlation, unless one says which they are."""
        data = self.blocks(0.0, 40, offsets=0.03)
        named = [correlation_time_s(self.STARTS, x, self.OWNERS) for x in data]
        silent = [correlation_time_s(self.STARTS, x) for x in data]

        assert np.median(named) == pytest.approx(0.4)
        assert np.median(silent) > 1.0

    def test_slow_waves_are_found_beside_offsets(self):
        """A wave of 20 s is seen although processes have offsets of their own."""
        found = [correlation_time_s(self.STARTS, x, self.OWNERS) for x in self.blocks(20.0, 40)]

        assert np.median(found) > 5

    def test_it_scales_with_time_and_not_with_the_values(self):
        """Minutes instead of seconds, milliseconds instead of seconds."""
        x = self.blocks(6.0, 1)[0]
        one = correlation_time_s(self.STARTS, x, self.OWNERS)

        assert correlation_time_s(60 * self.STARTS + 5, 1e3 * x, self.OWNERS) == pytest.approx(60 * one)

    @pytest.mark.parametrize(
        ("times", "values"),
        [(np.arange(7.0), np.arange(1.0, 8.0)), (np.arange(20.0), np.ones(20)), (np.zeros(20), np.arange(1.0, 21.0))],
    )
    def test_what_tells_nothing_is_unknown(self, times, values):
        """Too few blocks, blocks that are all alike and blocks without distance have no correlation time."""
        assert correlation_time_s(times, values) is None

    def test_many_blocks_are_pooled(self):
        """20,000 blocks are answered as well as 100, from pooled neighbours."""
        t = np.arange(20_000.0)
        x = np.exp(0.1 * simulate.ar1(np.random.default_rng(3), t, 1, 1000.0)[0])

        assert 300 <= correlation_time_s(t, x) <= 3000

    def test_impossible_blocks_are_refused(self):
        """Shapes that differ and durations that are not positive are errors."""
        with pytest.raises(ValueError, match="one time, value and process per block"):
            correlation_time_s(np.arange(3.0), np.ones(4))
        with pytest.raises(ValueError, match="positive and finite"):
            correlation_time_s(np.arange(3.0), np.zeros(3))
