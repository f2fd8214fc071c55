"""Two modes: how often they are seen where they are, how rarely where they are not, and which percentiles they spoil."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from profiler.stats import simulate
from profiler.stats.modes import Modes, crosses_modes, modes

ROUNDS, M, PROCESSES = 30, 80, 5
N = ROUNDS * M
OWNERS = [k for k in range(PROCESSES) for _ in range(ROUNDS // PROCESSES)]
TIMES = simulate.round_times(ROUNDS, M, gap=320)


def found(series: np.ndarray, owners: list[int] | None = OWNERS, rounds: int = ROUNDS) -> Modes:
    return modes(list(series.reshape(rounds, -1)), processes=owners)


def once(rng: np.random.Generator, count: int) -> np.ndarray:
    """One disturbance of 5-20 % of the series, 1.6 times as slow."""
    out = simulate.lognormal(rng, count, N, 0.03)
    for row in out:
        length = int(rng.integers(N // 20, N // 5))
        start = int(rng.integers(0, N - length))
        row[start : start + length] *= 1.6
    return out


def step(rng: np.random.Generator, count: int) -> np.ndarray:
    """Everything became 20 % slower in the middle and stayed so."""
    return simulate.lognormal(rng, count, N, 0.03) * np.where(np.arange(N) < N // 2, 1.0, 1.2)


def offsets(rng: np.random.Generator, count: int, sd: float) -> np.ndarray:
    return np.exp(np.repeat(simulate.process_effects(rng, count, PROCESSES, sd), N // PROCESSES, axis=1))


ONE_MODE = {
    "log-normal": lambda rng, count: simulate.lognormal(rng, count, N),
    "heavy log-normal": lambda rng, count: simulate.lognormal(rng, count, N, 0.6),
    "exponential tail": lambda rng, count: 1 + 0.3 * rng.exponential(1, (count, N)),
    "Pareto tail": lambda rng, count: 1 + 0.05 * rng.pareto(1.5, (count, N)),
    "Student's t, 2": lambda rng, count: np.exp(0.05 * rng.standard_t(2, (count, N))),
    "AR(1), short": lambda rng, count: simulate.noise("ar1", rng, TIMES, count, correlation=20),
    "AR(1)": lambda rng, count: simulate.noise("ar1", rng, TIMES, count),
    "AR(1), long": lambda rng, count: simulate.noise("ar1", rng, TIMES, count, correlation=2000),
    "AR(1) and white": lambda rng, count: simulate.noise("mixed", rng, TIMES, count),
    "one burst": once,
    "one step": step,
    "processes that differ a little": lambda rng, count: simulate.lognormal(rng, count, N, 0.03) * offsets(rng, count, 0.003),
    "processes that differ much": lambda rng, count: simulate.lognormal(rng, count, N, 0.01) * offsets(rng, count, 0.05),
    "coarse clock": lambda rng, count: np.round(100 * simulate.lognormal(rng, count, N, 0.006)),
    "very coarse clock": lambda rng, count: np.round(50.4 * simulate.lognormal(rng, count, N, 0.002)),
}  # fmt: skip


def mixed_in_time(rng: np.random.Generator, count: int, share: float) -> np.ndarray:
    return simulate.lognormal(rng, count, N, 0.03) * np.where(rng.random((count, N)) < share, 1.3, 1.0)


def by_round(rng: np.random.Generator, count: int, share: float, rounds: int = ROUNDS) -> np.ndarray:
    """Each round is in one mode, a fixed number of them in the slow one, in random order."""
    slow = rng.permuted(np.tile(np.arange(rounds) < share * rounds, (count, 1)), axis=1)
    return simulate.lognormal(rng, count, N, 0.03) * np.repeat(np.where(slow, 1.3, 1.0), N // rounds, axis=1)


class TestOneMode:
    @pytest.mark.parametrize("shape", sorted(ONE_MODE))
    def test_it_is_seldom_called_two(self, shape):
        """500 series of each shape without two modes: at most 1 % are said to have them."""
        data = ONE_MODE[shape](np.random.default_rng(1), 500)

        assert sum(found(x).count == 2 for x in data) <= 5

    def test_one_mode_has_a_centre_and_spoils_no_percentile(self):
        """The centre is the median, all samples are in it, every percentile may be given."""
        x = simulate.lognormal(np.random.default_rng(2), 1, N)[0]
        got = found(x)

        assert (got.count, got.shares, got.separation, got.alternates, got.boundary) == (1, (1.0,), 0.0, False, None)
        assert got.centres_s == pytest.approx((float(np.median(x)),))
        assert not any(crosses_modes(got, p) for p in (0.01, 0.5, 0.9, 0.99))


class TestTwoModes:
    @pytest.mark.parametrize("share", [0.3, 0.4, 0.5])
    def test_turns_in_time_are_seen_and_told(self, share):
        """1.0 and 1.3 with 3 % noise, 30-50 % slow: at least 95 % seen, with centres, shares and "alternates" right."""
        got = [found(x) for x in mixed_in_time(np.random.default_rng(3), 200, share)]
        two = [g for g in got if g.count == 2]

        assert len(two) >= 190
        assert all(g.alternates for g in two)
        assert np.mean([g.shares[1] for g in two]) == pytest.approx(share, abs=0.01)
        np.testing.assert_allclose(np.mean([g.centres_s for g in two], axis=0), [1.0, 1.3], rtol=0.005)
        assert np.mean([g.separation for g in two]) == pytest.approx(np.log(1.3) / 0.03, rel=0.1)

    @pytest.mark.parametrize("share", [0.3, 0.5])
    def test_modes_of_rounds_are_seen_and_told_apart(self, share):
        """Whole rounds in one mode or the other: at least 95 % seen, none said to alternate inside rounds."""
        got = [found(x) for x in by_round(np.random.default_rng(4), 200, share)]
        two = [g for g in got if g.count == 2]

        assert len(two) >= 190
        assert not any(g.alternates for g in two)
        assert "differ between rounds or processes" in two[0].reason

    def test_a_rare_mode_in_time_is_not_taken_for_slow_rounds(self):
        """10 % of the inferences in the slow mode, anywhere: it alternates, although most of each round is fast."""
        got = [found(x) for x in mixed_in_time(np.random.default_rng(13), 50, 0.1)]

        assert all(g.count == 2 and g.alternates for g in got)

    def test_modes_of_processes_are_seen_when_processes_are_named(self):
        """Ten processes in two tight groups, taking turns: seen with their names, not from six rounds of each alone."""
        rng = np.random.default_rng(5)
        owners = [k for k in range(10) for _ in range(3)]
        slow = np.repeat(np.arange(10) % 3 == 1, N // 10)
        data = simulate.lognormal(rng, 50, N, 0.03) * np.where(slow, 1.3, 1.0)

        assert all(found(x, owners).count == 2 for x in data)
        assert not any(found(x, owners).alternates for x in data)

    def test_one_slow_process_is_no_mode(self):
        """A single process that was slow all the time cannot be told from a disturbance that came once."""
        slow = np.repeat(np.arange(PROCESSES) == 2, N // PROCESSES)
        got = found(simulate.lognormal(np.random.default_rng(6), 1, N, 0.03)[0] * np.where(slow, 1.3, 1.0))

        assert got.count == 1

    def test_a_mode_below_five_per_cent_is_a_tail(self):
        """3 % of slow inferences belong to the tail, and the reason gives their share."""
        got = found(mixed_in_time(np.random.default_rng(7), 1, 0.03)[0])

        assert got.count == 1
        assert "is no mode" in got.reason

    def test_modes_that_run_into_each_other_are_one(self):
        """1.0 and 1.03 with 3 % noise have no valley."""
        rng = np.random.default_rng(8)
        x = simulate.lognormal(rng, 1, N, 0.03)[0] * np.where(rng.random(N) < 0.5, 1.03, 1.0)

        assert found(x).count == 1


class TestBoundary:
    def test_a_percentile_between_the_modes_is_spoiled_and_others_are_not(self):
        """10 % slow: p90 may lie in either mode; p50 and p99 do not move between them."""
        got = found(mixed_in_time(np.random.default_rng(9), 1, 0.10)[0])

        assert got.count == 2
        assert [crosses_modes(got, p) for p in (0.5, 0.9, 0.99)] == [False, True, False]

    def test_the_boundary_holds_the_true_share(self):
        """The interval of the fast mode's share covers the truth in at least 92 % of 300 series."""
        got = [found(x).boundary for x in mixed_in_time(np.random.default_rng(10), 300, 0.4)]

        assert np.mean([low <= 0.6 <= high for low, high in got if low is not None]) >= 0.92

    def test_modes_of_rounds_spoil_more_percentiles_than_modes_in_time(self):
        """Thirty rounds tell less about the share than thousands of inferences."""
        one = found(mixed_in_time(np.random.default_rng(11), 1, 0.4)[0]).boundary
        other = found(by_round(np.random.default_rng(11), 1, 0.4)[0]).boundary

        assert other[1] - other[0] > 4 * (one[1] - one[0])

    @pytest.mark.parametrize("p", [0.0, 1.0, 90])
    def test_percentiles_are_shares(self, p):
        """90 is no percentile here: 0.9 is."""
        with pytest.raises(ValueError, match="between 0 and 1"):
            crosses_modes(found(np.linspace(1, 2, N)), p)


class TestLaws:
    @given(st.integers(0, 2**32 - 1), st.sampled_from([1e-3, 1e3]))
    def test_units_scale_the_centres_only(self, seed, unit):
        """Seconds and milliseconds have the same modes."""
        x = mixed_in_time(np.random.default_rng(seed), 1, 0.4)[0]
        one, other = found(x), found(unit * x)

        assert (one.count, one.shares, one.alternates) == (other.count, other.shares, other.alternates)
        assert other.centres_s == pytest.approx([unit * c for c in one.centres_s])

    def test_inputs_are_not_changed(self, frozen):
        """Looking leaves the rounds as they were."""
        rounds = list(mixed_in_time(np.random.default_rng(12), 1, 0.4)[0].reshape(ROUNDS, M))
        with frozen(rounds):
            modes(rounds)

    @pytest.mark.parametrize("rounds", [[np.ones(50)], [np.array([1.0])], [np.ones(3), np.array([]), np.full(3, 1.5)]])
    def test_tiny_and_constant_data_have_one_mode(self, rounds):
        """Nothing divides by zero and nothing is claimed."""
        assert modes(rounds).count == 1

    @pytest.mark.parametrize(
        ("rounds", "processes", "message"),
        [
            ([], None, "no samples in 0 rounds"),
            ([np.array([1.0, np.nan])], None, "positive and finite"),
            ([np.array([1.0, 0.0])], None, "positive and finite"),
            ([np.ones(3)], [1, 2], "got 2 for 1 rounds"),
        ],
    )
    def test_impossible_questions_are_refused(self, rounds, processes, message):
        """No samples, NaN, zero and wrong process ids are errors that name what came."""
        with pytest.raises(ValueError, match=message):
            modes(rounds, processes=processes)
