"""Paired proportions and means: published examples, exact error rates, laws and an independent oracle."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from profiler.stats.paired import (
    clopper_pearson,
    label_free_bound,
    mcnemar,
    newcombe_interval,
    ni_power,
    ni_sample_size,
    paired_bootstrap,
    tango_interval,
    tango_noninferior_p,
)

counts = st.integers(0, 40)


class TestMcnemar:
    @pytest.mark.parametrize(("b", "g", "exact", "midp"), [(1, 7, 0.0703125, 0.0390625), (6, 16, 0.052479, 0.034690)])
    def test_published_examples(self, b, g, exact, midp):
        """Fagerland's airway example and the complete-response example, both ways round."""
        assert (exact, midp) == pytest.approx(mcnemar(b, g), abs=5e-7)
        assert mcnemar(b, g) == mcnemar(g, b)

    @settings(deadline=None, max_examples=60)
    @given(counts, counts)
    def test_it_is_the_binomial_test(self, b, g):
        """Exact agrees with scipy's two-sided binomial test; mid-p is smaller, never negative."""
        exact, midp = mcnemar(b, g)

        assert exact == pytest.approx(stats.binomtest(b, b + g).pvalue if b + g else 1.0)
        assert 0 <= midp <= exact

    def test_statsmodels_agrees(self):
        """An independent implementation gives the same exact p-value."""
        oracle = pytest.importorskip("statsmodels.stats.contingency_tables")

        assert oracle.mcnemar([[59, 6], [16, 80]], exact=True).pvalue == pytest.approx(mcnemar(6, 16)[0])


class TestIntervals:
    def test_published_table(self):
        """Table (59, 6, 16, 80): Newcombe and Tango as in Fagerland, Lydersen and Laake's book."""
        assert pytest.approx(newcombe_interval(59, 16, 6, 80), abs=5e-5) == (-0.1186, -0.0046)
        assert pytest.approx(tango_interval(16, 6, 161), abs=5e-5) == (-0.1240, -0.0054)

    @settings(deadline=None, max_examples=60)
    @given(counts, counts, st.integers(1, 400))
    def test_tango_holds_the_difference_and_mirrors(self, b, g, rest):
        """The interval holds d, stays in [-1, 1], and exchanging the models turns it round."""
        n = b + g + rest
        low, high = tango_interval(b, g, n)

        assert -1 <= low <= (g - b) / n <= high <= 1
        assert (-high, -low) == pytest.approx(tango_interval(g, b, n), abs=1e-9)

    @settings(deadline=None, max_examples=60)
    @given(counts, counts, st.integers(1, 400), st.floats(0.002, 0.3))
    def test_tango_test_and_interval_agree(self, b, g, rest, margin):
        """Non-inferior at 5 % one-sided exactly when the lower end of the 90 % interval lies above -margin."""
        n = b + g + rest
        low, _ = tango_interval(b, g, n, 0.90)
        if abs(low + margin) > 1e-9:
            assert (low > -margin) == (tango_noninferior_p(b, g, n, margin) < 0.05)

    def test_only_bad_flips_reach_the_end(self):
        """When every answer turned wrong, the interval ends at -1."""
        assert tango_interval(5, 0, 5)[0] == pytest.approx(-1.0)
        assert tango_interval(0, 5, 5)[1] == pytest.approx(1.0)

    @settings(deadline=None, max_examples=60)
    @given(counts, counts, counts, counts)
    def test_newcombe_holds_the_difference_and_mirrors(self, a, b, g, d):
        """The interval holds d, stays in [-1, 1], and exchanging the models turns it round."""
        n = a + b + g + d
        if n == 0:
            with pytest.raises(ValueError, match="empty"):
                newcombe_interval(a, b, g, d)
            return
        low, high = newcombe_interval(a, b, g, d)

        assert -1 <= low <= (g - b) / n + 1e-12
        assert (g - b) / n - 1e-12 <= high <= 1
        assert (-high, -low) == pytest.approx(newcombe_interval(a, g, b, d))

    @pytest.mark.parametrize(("b", "g", "n"), [(3, 3, 5), (-1, 0, 5), (0, 0, 0)])
    def test_impossible_tables_are_refused(self, b, g, n):
        """More flips than samples, negative counts and no samples are errors."""
        with pytest.raises(ValueError, match=r"n must be positive|cannot be negative"):
            tango_interval(b, g, n)


class TestClopperPearson:
    @settings(deadline=None, max_examples=60)
    @given(st.integers(0, 60), st.integers(1, 60), st.sampled_from([0.8, 0.95, 0.99]))
    def test_scipy_agrees(self, k, rest, level):
        """The same interval as scipy's exact one, both and one-sided."""
        n = k + rest
        sides = {"both": "two-sided", "lower": "greater", "upper": "less"}
        for side, alternative in sides.items():
            oracle = stats.binomtest(k, n, alternative=alternative).proportion_ci(level)

            assert (oracle.low, oracle.high) == pytest.approx(clopper_pearson(k, n, level, side=side))

    @pytest.mark.parametrize(
        ("disagreements", "n", "passes"),
        [
            (0, 299, True), (1, 299, False), (1, 500, True), (2, 500, False), (4, 1000, True), (5, 1000, False),
            (12, 2000, True), (13, 2000, False), (38, 5000, True), (39, 5000, False), (83, 10_000, True), (84, 10_000, False),
        ],
    )  # fmt: skip
    def test_label_free_certificates_of_one_point(self, disagreements, n, passes):
        """How many disagreements still certify a drop of at most one point."""
        assert passes == (label_free_bound(disagreements, n) <= 0.01)


class TestPlanning:
    @pytest.mark.parametrize(
        ("psi", "margin", "drop", "n"),
        [
            (0.005, 0.01, 0, 309), (0.01, 0.01, 0, 618), (0.02, 0.01, 0, 1237), (0.05, 0.01, 0, 3091), (0.1, 0.01, 0, 6183),
            (0.005, 0.01, 0.003, 630), (0.05, 0.01, 0.003, 6308), (0.02, 0.005, 0, 4946),
        ],
    )  # fmt: skip
    def test_known_sample_sizes(self, psi, margin, drop, n):
        """The planning table at 5 % and 80 %."""
        assert n == ni_sample_size(psi, margin, drop)

    def test_the_planned_size_has_the_planned_power(self):
        """3,091 samples at 5 % flips pass with 79-83 %; with few flips the formula promises too much."""
        assert 0.79 <= ni_power(3091, 0.05, 0.01) <= 0.83
        assert ni_power(309, 0.005, 0.01) < 0.6

    @pytest.mark.parametrize(("n", "psi"), [(1000, 0.011), (1000, 0.05), (3000, 0.05), (500, 0.02)])
    def test_tangos_error_rate_at_the_margin(self, n, psi):
        """At a true drop of exactly the margin, non-inferiority is shown in at most 6 %."""
        assert ni_power(n, psi, 0.01, drop=0.01) <= 0.06

    def test_exact_power_is_what_simulation_finds(self):
        """10,000 simulated tables agree with the sum over tables."""
        n, psi, drop, margin = 400, 0.06, 0.01, 0.03
        rng = np.random.default_rng(41)
        tables = rng.multinomial(n, [(psi + drop) / 2, (psi - drop) / 2, 1 - psi], 10_000)
        found, times = np.unique(tables[:, :2], axis=0, return_counts=True)
        passed = [tango_noninferior_p(int(b), int(g), n, margin) < 0.05 for b, g in found]

        assert ni_power(n, psi, margin, drop=drop) == pytest.approx(np.average(passed, weights=times), abs=0.015)

    def test_a_drop_at_the_margin_cannot_be_planned_for(self):
        """No number of samples shows what is not true."""
        with pytest.raises(ValueError, match="widen the margin"):
            ni_sample_size(0.05, 0.01, drop=0.01)


class TestBootstrap:
    def test_independent_samples_give_students_interval(self):
        """For the mean of many samples the bootstrap and the t interval agree within a few per cent of their width."""
        rng = np.random.default_rng(0)
        ref, change = rng.random(2000), rng.normal(0.01, 0.1, 2000)
        oracle = stats.ttest_1samp(change, 0).confidence_interval()

        value, low, high = paired_bootstrap(ref, ref + change, np.mean, seed=1)

        assert value == pytest.approx(change.mean())
        assert (low, high) == pytest.approx((oracle.low, oracle.high), abs=0.06 * (oracle.high - oracle.low))

    @pytest.mark.parametrize("shape", [(150,), (150, 3)])
    @pytest.mark.parametrize("clustered", [False, True])
    def test_the_vectorised_mean_is_the_same_bootstrap(self, shape, clustered):
        """`np.mean` and a function that does the same give the same interval, clusters of unequal size included."""
        rng = np.random.default_rng(3)
        ref, var = rng.random(shape), rng.random(shape)
        clusters = rng.integers(0, 20, 150) if clustered else None

        fast = paired_bootstrap(ref, var, np.mean, clusters=clusters, seed=5, resamples=300)
        slow = paired_bootstrap(ref, var, lambda a: float(a.mean()), clusters=clusters, seed=5, resamples=300)

        assert slow == pytest.approx(fast)

    def test_clusters_keep_the_error_rate_that_ignoring_them_loses(self):
        """50 clusters of 10 correlated samples: resampling clusters rejects in about 5 %, samples in over 25 %."""
        rng = np.random.default_rng(43)
        clusters = np.repeat(np.arange(50), 10)
        rejected = np.zeros(2)
        trials = 300
        for seed in range(trials):
            var = rng.normal(0, 1, 50)[clusters] + rng.normal(0, 0.7, 500)
            for column, group in enumerate((clusters, None)):
                _, low, high = paired_bootstrap(np.zeros(500), var, np.mean, clusters=group, seed=seed, resamples=300)
                rejected[column] += not low <= 0 <= high

        assert rejected[0] / trials <= 0.085
        assert rejected[1] / trials >= 0.25

    def test_any_statistic_of_rows_will_do(self):
        """A statistic over two columns (accuracy from prediction and label) is resampled by rows."""
        rng = np.random.default_rng(7)
        label = rng.integers(0, 3, 400).astype(float)
        ref = np.column_stack([label, label])
        var = np.column_stack([np.where(rng.random(400) < 0.1, -1.0, label), label])

        def accuracy(rows):
            return float(np.mean(rows[:, 0] == rows[:, 1]))

        value, low, high = paired_bootstrap(ref, var, accuracy, seed=1, resamples=500)

        assert value == pytest.approx(accuracy(var) - 1)
        assert low < value < high < 0

    def test_same_seed_same_interval_and_identical_sides_give_zero(self):
        """The seed decides the draws; a model against itself differs by exactly nothing."""
        x, y = np.random.default_rng(9).random((2, 300))

        assert paired_bootstrap(x, y, np.mean, seed=3) == paired_bootstrap(x, y, np.mean, seed=3)
        assert paired_bootstrap(x, x, np.median, seed=3, resamples=50) == (0.0, 0.0, 0.0)

    def test_one_cluster_or_an_undefined_statistic_has_no_bounds(self):
        """Where resampling can tell nothing, the difference stands alone."""
        x, y = np.arange(5.0), np.arange(5.0) + 1
        rare = np.array([1.0, 0, 0, 0, 0, 0])

        assert paired_bootstrap(x, y, np.mean, clusters=np.zeros(5, dtype=int), seed=1) == (1.0, None, None)
        assert paired_bootstrap(rare, rare, lambda a: 1.0 if a.any() else math.nan, seed=1)[1:] == (None, None)

    def test_different_samples_are_refused(self):
        """Pairing needs the same samples on both sides, and one cluster id for each."""
        with pytest.raises(ValueError, match="the same samples"):
            paired_bootstrap(np.zeros(3), np.zeros(4), np.mean, seed=1)
        with pytest.raises(ValueError, match="one integer per sample"):
            paired_bootstrap(np.zeros(3), np.zeros(3), np.mean, clusters=np.zeros(2, dtype=int), seed=1)

    def test_inputs_are_not_changed(self, frozen):
        """Resampling leaves samples and clusters as they were."""
        x, y, clusters = np.arange(6.0), np.arange(6.0)[::-1].copy(), np.array([2, 0, 1, 0, 2, 1])
        with frozen([x, y, clusters]):
            paired_bootstrap(x, y, np.mean, clusters=clusters, seed=1, resamples=10)
            paired_bootstrap(x, y, np.median, clusters=clusters, seed=1, resamples=10)


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 30), st.integers(0, 30), st.integers(100, 1000))
def test_one_more_bad_flip_never_helps(b, g, rest):
    """The non-inferiority p-value grows when a sample that was wrong on both sides becomes a bad flip."""
    n = b + g + rest

    assert tango_noninferior_p(b, g, n, 0.02) >= tango_noninferior_p(b - 1, g, n, 0.02)
