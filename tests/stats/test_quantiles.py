"""Percentile and throughput intervals: exact small cases, laws, and simulated coverage."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import stats
from scipy.signal import lfilter

from profiler.stats.quantiles import minimum_effective_samples, quantile_interval, throughput_interval

latencies = st.lists(
    arrays(np.float64, st.integers(0, 12), elements=st.floats(1e-6, 10.0)), min_size=1, max_size=8
).filter(lambda rounds: any(len(r) for r in rounds))


def iid_rounds(seed: int, rounds: int, m: int) -> list[np.ndarray]:
    return list(np.random.default_rng(seed).lognormal(-7, 0.2, (rounds, m)))


class TestOneEstimate:
    @settings(deadline=None, max_examples=60)
    @given(latencies, st.sampled_from([0.01, 0.5, 0.9, 0.99]))
    def test_value_is_numpys_quantile_inside_its_bounds_and_bounds_were_seen(self, rounds, p):
        """The point is the sample percentile of all samples; a bound is a latency that really happened."""
        got = quantile_interval(rounds, p)
        every = np.concatenate(rounds)

        assert float(np.quantile(every, p)) == got.value
        assert len(every) == got.n
        assert 1.0 <= got.n_eff <= got.n
        if got.low is not None:
            assert got.low <= got.value
            assert got.low in every
        if got.high is not None:
            assert got.high >= got.value
            assert got.high in every
        assert got.resolved == (got.reason is None)

    def test_independent_rounds_give_nearly_the_binomial_order_statistics(self):
        """With many independent rounds the interval is close to the textbook distribution-free one, and never inside it."""
        rounds = iid_rounds(3, 400, 25)
        every = np.sort(np.concatenate(rounds))
        low, high = stats.binom.ppf([0.025, 0.975], len(every), 0.5).astype(int)

        got = quantile_interval(rounds, 0.5)

        assert got.n_eff == pytest.approx(len(every), rel=0.1)
        assert got.low <= every[low - 1]
        assert got.high >= every[high]
        assert got.high - got.low <= 1.2 * (every[high] - every[low - 1])

    def test_rounds_that_disagree_are_worth_few_samples(self):
        """Rounds of constant, different latency carry one sample each, whatever their length."""
        levels = np.random.default_rng(0).permutation(np.linspace(1.0, 2.0, 40))

        got = quantile_interval([np.full(100, level) for level in levels], 0.5)

        assert 25 <= got.n_eff <= 40
        assert not got.resolved

    def test_a_drift_across_rounds_counts_against_the_samples(self):
        """Neighbouring rounds that resemble each other are worth less than the same rounds shuffled."""
        rng = np.random.default_rng(1)
        rounds = [rng.normal(1 + i / 60, 0.2, 50) for i in range(60)]
        shuffled = [rounds[i] for i in rng.permutation(60)]

        assert quantile_interval(rounds, 0.5).n_eff < 0.5 * quantile_interval(shuffled, 0.5).n_eff

    def test_an_unresolved_tail_is_unbounded_above_and_says_how_much_is_missing(self):
        """Sixty samples cannot bound a p99 from above; the value, the lower bound and the reason remain."""
        got = quantile_interval(iid_rounds(5, 30, 2), 0.99)

        assert got.high is None
        assert got.low is not None
        assert not got.resolved
        assert "p99 needs 1000" in got.reason

    def test_one_round_has_a_value_and_no_interval(self):
        """A single round cannot tell how another would differ."""
        got = quantile_interval([np.array([1.0, 2.0, 4.0])], 0.5)

        assert (got.value, got.low, got.high, got.n_eff, got.resolved) == (2.0, None, None, 1.0, False)
        assert "one round" in got.reason

    def test_enough_independent_samples_resolve_every_percentile(self):
        """Thirty rounds of a hundred independent samples claim p50, p90 and p99."""
        rounds = iid_rounds(7, 30, 100)

        assert [quantile_interval(rounds, p).resolved for p in (0.5, 0.9, 0.99)] == [True, True, True]

    @pytest.mark.parametrize(
        ("p", "need"), [(0.5, 50), (0.9, 500), (0.1, 500), (0.95, 1000), (0.99, 1000), (0.999, 10_000)]
    )
    def test_claims_need_the_documented_number_of_independent_samples(self, p, need):
        """p50 50, p90 500, p99 1,000, p99.9 10,000, and between them the stricter one."""
        assert need == minimum_effective_samples(p)

    def test_beyond_the_table_ten_exceedances_are_needed(self):
        """p99.99 needs ten samples beyond it."""
        assert minimum_effective_samples(0.9999) == pytest.approx(100_000)

    @pytest.mark.parametrize(
        ("rounds", "p", "message"),
        [
            ([], 0.5, "no samples in 0 rounds"),
            ([np.array([])], 0.5, "no samples in 1 rounds"),
            ([np.array([1.0, np.nan])], 0.5, "NaN"),
            ([np.array([1.0])], 1.0, "p must lie strictly between 0 and 1, got 1.0"),
        ],
    )
    def test_impossible_questions_are_refused(self, rounds, p, message):
        """No samples, NaN and a percentile outside (0, 1) are errors that name what came."""
        with pytest.raises(ValueError, match=message):
            quantile_interval(rounds, p)


class TestLaws:
    @settings(deadline=None, max_examples=60)
    @given(latencies, st.sampled_from([1e3, 1e6, 0.5]))
    def test_other_time_units_scale_everything_but_the_counts(self, rounds, unit):
        """Milliseconds give the same interval in milliseconds."""
        one, other = quantile_interval(rounds, 0.9), quantile_interval([r * unit for r in rounds], 0.9)

        for a, b in ((one.value, other.value), (one.low, other.low), (one.high, other.high)):
            assert (a is None) == (b is None)
            assert a is None or a * unit == pytest.approx(b, rel=1e-9)

    def test_a_higher_level_never_narrows(self):
        """99 % contains 95 % contains 80 %."""
        rounds = iid_rounds(11, 30, 40)
        nested = [quantile_interval(rounds, 0.9, level=level) for level in (0.8, 0.95, 0.99)]

        assert sorted((e.low for e in nested), reverse=True) == [e.low for e in nested]
        assert sorted(e.high for e in nested) == [e.high for e in nested]

    def test_the_order_of_processes_changes_nothing(self):
        """With processes named, swapping whole processes gives the same estimate."""
        rounds, owners = iid_rounds(13, 30, 20), np.repeat(np.arange(5), 6)
        order = np.concatenate([np.arange(6) + 6 * p for p in (3, 0, 4, 2, 1)])

        one = quantile_interval(rounds, 0.9, processes=list(owners))
        other = quantile_interval([rounds[i] for i in order], 0.9, processes=list(owners[order]))

        assert (one.value, one.low, one.high) == (other.value, other.low, other.high)
        assert one.n_eff == pytest.approx(other.n_eff, rel=1e-12)

    def test_lasting_differences_between_processes_widen_the_interval_when_processes_are_named(self):
        """Five processes with offsets say no more than five numbers about where the next one lies."""
        rng = np.random.default_rng(2)
        owners = np.repeat(np.arange(5), 6)
        rounds = [rng.normal(1 + 0.2 * owner, 0.1, 100) for owner in owners[::-1]]

        named = quantile_interval(rounds, 0.5, processes=list(owners))

        unnamed = quantile_interval(rounds, 0.5)
        offsets = np.log([np.median(np.concatenate(rounds[i : i + 6])) for i in range(0, 30, 6)])
        half = 2.776 * offsets.std(ddof=1) / 5**0.5  # Student's t for 4 degrees of freedom, tabulated

        assert named.typical
        assert np.log(named.high / named.value) == pytest.approx(half, rel=0.02)
        assert np.log(named.value / named.low) == pytest.approx(half, rel=0.02)
        assert named.value == pytest.approx(np.exp(offsets.mean()), rel=0.01)
        assert unnamed.value == pytest.approx(np.median(np.concatenate(rounds)))

    def test_a_tail_of_processes_that_only_differ_by_an_offset_is_bounded(self):
        """Pooled, p99 would be the slowest process's own, which three processes cannot bound."""
        rng = np.random.default_rng(3)
        owners = np.repeat(np.arange(3), 5)
        rounds = [np.exp(rng.normal(offset, 0.003, 400)) for offset in np.repeat([-0.01, 0.0, 0.012], 5)]
        found = quantile_interval(rounds, 0.99, processes=list(owners))

        assert found.resolved
        assert found.typical
        assert not quantile_interval(rounds, 0.5).typical
        assert found.low < np.exp(0.003 * 2.326) < found.high

    def test_inputs_are_not_changed(self, frozen):
        """Estimating leaves the rounds as they were."""
        rounds = iid_rounds(17, 10, 10)
        with frozen(rounds):
            quantile_interval(rounds, 0.5)
            throughput_interval(rounds, batch=4)


class TestThroughput:
    def test_equal_rounds_give_students_interval_of_the_mean_time(self):
        """With equal, uncorrelated rounds the relative half-width is that of the t interval over round means."""
        rounds = iid_rounds(19, 12, 50)
        means = np.array([r.mean() for r in rounds])
        centred = means - means.mean()
        lag = max(0.0, np.mean(centred[1:] * centred[:-1]) / np.mean(centred**2))
        relative = stats.t.ppf(0.975, 11) * stats.sem(means) * math.sqrt((1 + lag) / (1 - lag)) / means.mean()

        value, low, high = throughput_interval(rounds, batch=8)

        assert value == pytest.approx(8 / means.mean())
        assert high / value == pytest.approx(math.exp(relative))
        assert value / low == pytest.approx(math.exp(relative))

    def test_rounds_weigh_as_long_as_they_lasted(self):
        """Throughput times total time is the work done, also for rounds of different length."""
        rounds = [np.full(10, 0.1), np.full(90, 0.2)]

        value, low, high = throughput_interval(rounds, batch=2)

        assert value == pytest.approx(2 * 100 / (1 + 18))
        assert 0 < low < value < high

    def test_one_round_has_no_bounds(self):
        """The rate of a single round stands alone."""
        assert throughput_interval([np.array([0.1, 0.1])], batch=2) == (20.0, None, None)

    def test_it_covers_the_true_rate_under_correlated_rounds(self):
        """95 % intervals hold the true rate in at least 92 % of the simulations with AR(1) noise."""
        paths = ar1_rounds(seed=23, simulations=SIMULATIONS, scatter=0.08)
        truth = 1 / math.exp(0.08**2 / 2)
        bounds = [throughput_interval(list(path), batch=1)[1:] for path in paths]

        assert covered(bounds, truth) >= 0.92 - two_errors(SIMULATIONS)


def ar1_rounds(*, seed: int, simulations: int, scatter: float, rounds: int = 60, m: int = 50, gap: int = 150):
    """Log-normal latencies around 1 whose logs are AR(1), correlation length 100; rounds of m with `gap` unseen between."""
    rng = np.random.default_rng(seed)
    rho = math.exp(-1 / 100)
    far = rho ** (gap + 1)
    start = rng.normal(0, 1, simulations)
    out = np.empty((simulations, rounds, m))
    for r in range(rounds):
        noise = rng.normal(0, math.sqrt(1 - rho**2), (simulations, m))
        noise[:, 0] = 0
        out[:, r] = lfilter([1.0], [1.0, -rho], noise, axis=1) + start[:, None] * rho ** np.arange(m)
        start = far * out[:, r, -1] + math.sqrt(1 - far**2) * rng.normal(0, 1, simulations)
    return np.exp(scatter * out)


def covered(bounds, truth: float) -> float:
    return float(np.mean([(low is None or low <= truth) and (high is None or truth <= high) for low, high in bounds]))


def two_errors(simulations: int) -> float:
    """Two standard errors of a share of 92 % among so many simulations."""
    return 2 * math.sqrt(0.92 * 0.08 / simulations)


SIMULATIONS = 400


def simulated(kind: str) -> np.ndarray:
    """Paths of 60 rounds of 50 whose logs are normal with standard deviation 8 %, whatever their correlation."""
    white = np.random.default_rng(29).normal(size=(SIMULATIONS, 60, 50))
    if kind == "iid":
        return np.exp(0.08 * white)
    if kind == "ar1":
        return ar1_rounds(seed=31, simulations=SIMULATIONS, scatter=0.08)
    slow = ar1_rounds(seed=31, simulations=SIMULATIONS, scatter=0.05)
    return slow * np.exp(math.sqrt(0.08**2 - 0.05**2) * white)


class TestCoverage:
    @pytest.mark.parametrize(
        ("kind", "p", "bounded"),
        [
            ("iid", 0.5, 1.0),
            ("iid", 0.9, 1.0),
            ("iid", 0.99, 1.0),
            ("ar1", 0.5, 1.0),
            ("ar1", 0.9, 0.95),
            ("ar1 and white", 0.5, 1.0),
            ("ar1 and white", 0.9, 1.0),
            ("ar1 and white", 0.99, 0.7),
        ],
    )
    def test_95_percent_intervals_hold_the_true_percentile(self, kind, p, bounded):
        """At least 92 % coverage, within Monte Carlo error, on independent and on autocorrelated latencies."""
        truth = math.exp(0.08 * stats.norm.ppf(p))
        estimates = [quantile_interval(list(path), p) for path in simulated(kind)]

        assert covered([(e.low, e.high) for e in estimates], truth) >= 0.92 - two_errors(SIMULATIONS)
        # Unbounded intervals would cover for free.
        assert np.mean([e.low is not None and e.high is not None for e in estimates]) >= bounded

    def test_a_tail_that_correlation_hides_is_not_claimed(self):
        """3,000 AR(1) inferences are worth about 75: p99 has no upper bound nor claim, and the bounds that remain hold."""
        truth = math.exp(0.08 * stats.norm.ppf(0.99))
        estimates = [quantile_interval(list(path), 0.99) for path in simulated("ar1")]

        assert not any(e.resolved for e in estimates)
        assert np.mean([e.high is None for e in estimates]) >= 0.95
        assert covered([(e.low, e.high) for e in estimates], truth) >= 0.92

    @pytest.mark.parametrize("count", [3, 5])
    def test_naming_processes_covers_a_fresh_process(self, count):
        """With lasting offsets of processes, naming them covers the p50 over all processes; not naming them does not."""
        rng = np.random.default_rng(47)
        offsets = rng.normal(0, 0.03, (SIMULATIONS, count, 1))
        data = np.exp(offsets + rng.normal(0, 0.05, (SIMULATIONS, count, 6 * 50))).reshape(SIMULATIONS, count * 6, 50)
        owners = [k for k in range(count) for _ in range(6)]
        named = [quantile_interval(list(d), 0.5, processes=owners) for d in data]
        silent = [quantile_interval(list(d), 0.5) for d in data]

        assert covered([(e.low, e.high) for e in named], 1.0) >= 0.92 - two_errors(SIMULATIONS)
        assert covered([(e.low, e.high) for e in silent], 1.0) < 0.9

    def test_the_independent_formula_would_fail_on_the_same_data(self):
        """The simulation can tell: order statistics that ignore correlation cover the median in under 60 %."""
        paths = ar1_rounds(seed=31, simulations=200, scatter=0.08).reshape(200, -1)
        low, high = stats.binom.ppf([0.025, 0.975], 3000, 0.5).astype(int)
        ordered = np.sort(paths, axis=1)

        assert covered(zip(ordered[:, low - 1], ordered[:, high], strict=True), 1.0) < 0.6


@settings(deadline=None, max_examples=30)
@given(st.floats(0.05, 0.95), st.integers(0, 2**32 - 1))
def test_mirrored_latencies_mirror_the_interval(p, seed):
    """The p-interval of -x is the (1 - p)-interval of x, upside down."""
    rounds = iid_rounds(seed, 20, 15)
    one, other = quantile_interval(rounds, p), quantile_interval([-r for r in rounds], 1 - p)

    assert one.value == pytest.approx(-other.value)
    # Shares in the design effect count "<=", so the value itself may fall on either side: one rank of slack.
    every = np.sort(np.concatenate(rounds))
    for a, b in ((one.low, other.high), (one.high, other.low)):
        if a is not None and b is not None:
            assert abs(int(np.searchsorted(every, a)) - int(np.searchsorted(every, -b))) <= 12
