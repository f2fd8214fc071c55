"""Ratios across process pairs, Holm's correction and the three verdicts."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import stats

from profiler.stats.ratios import RatioEstimate, compare_verdict, holm, ratio_interval

log_ratios = st.lists(arrays(np.float64, st.integers(1, 7), elements=st.floats(-0.5, 0.5)), min_size=1, max_size=6)


class TestRatioInterval:
    def test_it_is_students_interval_over_the_medians_of_pairs(self):
        """Value, bounds and p-value agree with scipy's one-sample t test on one median per process pair."""
        rng = np.random.default_rng(0)
        pairs = [rng.normal(0.05, 0.02, 6) for _ in range(5)]
        oracle = stats.ttest_1samp([np.median(p) for p in pairs], 0)
        bounds = oracle.confidence_interval(0.9)

        got = ratio_interval(pairs, level=0.9)

        assert got.value == pytest.approx(math.exp(np.mean([np.median(p) for p in pairs])))
        assert (got.low, got.high) == pytest.approx((math.exp(bounds.low), math.exp(bounds.high)))
        assert got.p_value == pytest.approx(oracle.pvalue)
        assert (got.pairs, got.note) == (5, None)

    def test_one_pair_has_a_value_only(self):
        """The offset of a single process pair cannot be told from a difference."""
        got = ratio_interval([np.log([1.9, 2.0, 2.1])])

        assert got.value == pytest.approx(2.0)
        assert (got.low, got.high, got.p_value, got.pairs) == (None, None, None, 1)
        assert "one process pair" in got.note

    def test_pairs_without_blocks_are_left_out_and_counted(self):
        """A process that died before its first block is no evidence, and the note says so."""
        pairs = [np.array([0.1, 0.2]), np.array([]), np.array([0.15])]

        got = ratio_interval(pairs)

        assert got.pairs == 2
        assert got.note == "1 of 3 process pairs held no paired block"

    def test_a_burst_in_one_block_does_not_move_the_pair(self):
        """The median stands for the pair."""
        clean = [np.full(5, 0.01) + k for k in (0.0, 0.002, 0.004)]
        burst = [c.copy() for c in clean]
        burst[1][2] = 3.0

        assert ratio_interval(clean) == ratio_interval(burst)

    @pytest.mark.parametrize(("shift", "p_value"), [(0.0, 1.0), (0.25, 0.0)])
    def test_pairs_that_agree_exactly_give_a_point(self, shift, p_value):
        """Without any spread the interval is the value."""
        got = ratio_interval([np.full(3, shift)] * 4)

        assert (math.exp(shift), math.exp(shift), p_value) == (got.low, got.high, got.p_value)

    @pytest.mark.parametrize(
        ("pairs", "message"),
        [([], "no paired blocks"), ([np.array([-np.inf])], "must be finite"), ([np.array([])], "in 1 ")],
    )
    def test_what_cannot_be_paired_is_refused(self, pairs, message):
        """No pairs and infinite ratios are errors."""
        with pytest.raises(ValueError, match=message):
            ratio_interval(pairs)

    @settings(deadline=None, max_examples=60)
    @given(log_ratios, st.randoms())
    def test_order_changes_nothing_and_swapping_inverts(self, pairs, random):
        """Permuting pairs and blocks keeps every figure; exchanging variant and reference inverts them."""
        got = ratio_interval(pairs)
        shuffled = [np.array(random.sample(list(p), len(p))) for p in random.sample(pairs, len(pairs))]
        swapped = ratio_interval([-p for p in pairs])

        assert got == ratio_interval(shuffled)
        assert got.value == pytest.approx(1 / swapped.value)
        if got.low is not None:
            assert got.low <= got.value <= got.high
            assert (got.low, got.high) == pytest.approx((1 / swapped.high, 1 / swapped.low))
            assert got.p_value == pytest.approx(swapped.p_value)

    def test_inputs_are_not_changed(self, frozen):
        """Estimating leaves the log ratios as they were."""
        pairs = [np.array([0.3, 0.1, 0.2]), np.array([0.0, -0.1])]
        with frozen(pairs):
            ratio_interval(pairs)

    def test_coverage_with_process_effects_is_nominal_and_counting_blocks_is_not(self):
        """95 % intervals hold a true 2 % difference in 93-97 % of 4,000 simulations; a t interval over blocks does not."""
        rng = np.random.default_rng(37)
        truth, simulations = math.log(1.02), 4000
        offsets = rng.normal(0, 0.003, (simulations, 5, 1))
        data = truth + offsets + rng.normal(0, 0.005, (simulations, 5, 6))
        estimates = [ratio_interval(list(d)) for d in data]
        inside = np.mean([e.low <= math.exp(truth) <= e.high for e in estimates])
        blocks = data.reshape(simulations, 30)
        naive = np.mean(np.abs(blocks.mean(1) - truth) <= stats.t.ppf(0.975, 29) * stats.sem(blocks, axis=1))

        assert 0.93 <= inside <= 0.97
        assert naive < 0.90


class TestHolm:
    def test_known_answer(self):
        """The textbook example, in the order given."""
        np.testing.assert_allclose([0.03, 0.06, 0.06, 0.02], holm([0.01, 0.04, 0.03, 0.005]))

    @settings(deadline=None, max_examples=60)
    @given(st.lists(st.floats(0, 1), max_size=12))
    def test_it_is_the_step_down_definition(self, p):
        """Each adjusted value is the largest (m - rank) p of all smaller ones, capped at 1."""
        m = len(p)
        order = sorted(range(m), key=lambda i: p[i])
        expected = [0.0] * m
        for rank, i in enumerate(order):
            expected[i] = min(1.0, max((m - k) * p[order[k]] for k in range(rank + 1)))

        np.testing.assert_allclose(expected, holm(p))

    def test_statsmodels_agrees(self):
        """An independent implementation gives the same numbers."""
        oracle = pytest.importorskip("statsmodels.stats.multitest")
        p = np.random.default_rng(1).random(20) ** 3

        np.testing.assert_allclose(oracle.multipletests(p, method="holm")[1], holm(p))

    @pytest.mark.parametrize("p", [[0.5, math.nan], [-0.1], [1.5], [[0.1]]])
    def test_what_is_no_p_value_is_refused(self, p):
        """NaN, numbers outside [0, 1] and tables are errors."""
        with pytest.raises(ValueError, match="p-values must be"):
            holm(p)


class TestVerdict:
    @pytest.mark.parametrize(
        ("low", "high", "verdict"),
        [
            (1.03, 1.10, "differs"),
            (0.80, 0.90, "differs"),
            (1.005, 1.03, "differs"),
            (0.99, 1.01, "equivalent"),
            (1.005, 1.015, "equivalent"),
            (1 / 1.02, 1.02, "equivalent"),
            (0.99, 1.05, "inconclusive"),
            (None, None, "inconclusive"),
        ],
    )
    def test_the_interval_decides(self, low, high, verdict):
        """Inside the margin is equivalent even when 1 is excluded; else excluding 1 differs; else nothing can be said."""
        assert verdict == compare_verdict(RatioEstimate(1.0, low, high, 5, None))

    @settings(deadline=None, max_examples=60)
    @given(log_ratios, st.floats(0.001, 0.5))
    def test_swapping_variant_and_reference_keeps_the_verdict(self, pairs, margin):
        """The margin is symmetric on the log scale."""
        assert compare_verdict(ratio_interval(pairs), margin) == compare_verdict(
            ratio_interval([-p for p in pairs]), margin
        )
