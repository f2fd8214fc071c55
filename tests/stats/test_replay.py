"""Replays of a queue with new arrivals: against formulas, and what they refuse."""

from __future__ import annotations

import math

import numpy as np
import pytest

from profiler.stats.replay import Service, late_again, late_curve


def served(rate, count, seed, workers=1, wake_s=0.0):
    """First in, first out, exponential service of mean 1 s: when each request was sent, begun and answered."""
    random = np.random.default_rng(seed)
    sent = np.cumsum(random.exponential(1 / rate, count))
    free = np.zeros(workers)
    begun, done = np.empty(count), np.empty(count)
    for index, moment in enumerate(sent):
        first = int(free.argmin())
        begun[index] = max(moment + wake_s, free[first])
        done[index] = free[first] = begun[index] + random.exponential(1.0)
    return sent, begun, done


def curve(runs, limit_s, middle, seed=0):
    return late_curve(runs, limit_s, middle, np.random.default_rng(seed))


def test_what_a_run_shows_of_its_server():
    """Busy times as they were, the wake-up where a worker was free, nothing between where one waited."""
    sent, begun, done = np.array([0.0, 1.0, 5.0]), np.array([0.5, 2.5, 5.25]), np.array([2.5, 3.5, 6.0])

    service = Service.observed(sent, begun, done)

    assert service.busy_s.tolist() == [2.0, 1.0, 0.75]
    assert service.wake_s.tolist() == [0.5, 0.25]
    assert service.next_s.tolist() == [0.0]


def test_unanswered_requests_are_left_out():
    """They have no service time."""
    service = Service.observed(np.array([0.0, 1.0]), np.array([0.0, math.nan]), np.array([1.0, math.nan]))

    assert service.busy_s.tolist() == [1.0]


def test_two_workers_serve_side_by_side():
    """The second request finds a free worker, the third waits for the first one's."""
    sent, begun, done = np.array([0.0, 0.1, 0.2]), np.array([0.0, 0.1, 1.0]), np.array([1.0, 3.0, 2.0])

    service = Service.observed(sent, begun, done, workers=2)

    assert service.wake_s.tolist() == [0.0, 0.0]
    assert service.next_s.tolist() == [0.0]


@pytest.mark.parametrize("workers", [1, 2])
def test_the_rate_of_a_markovian_queue_is_found(workers):
    """Erlang C: share late of M/M/c, solved for 1 % (Kleinrock 1975, 3.40), from runs at quite another rate."""
    limit_s = 12.0

    def late(rate):
        if workers == 1:
            return math.exp(-(1 - rate) * limit_s)
        load = rate / 2
        waits = 2 * load**2 / (1 + load)
        slack = 2 * (1 - load)
        # Waiting beyond t has exp(-slack t); plus a service of mean 1.
        tail = (math.exp(-slack * limit_s) - slack * math.exp(-limit_s)) / (1 - slack)
        return (1 - waits) * math.exp(-limit_s) + waits * tail

    rates = np.linspace(0.2, 0.99, 4_000) * workers
    truth = float(rates[np.argmin(np.abs(np.array([late(rate) for rate in rates]) - 0.01))])
    runs = [Service.observed(*served(0.6 * workers, 2_000, seed, workers), workers) for seed in range(20)]

    assert curve(runs, limit_s, truth).rate(0.01) == pytest.approx(truth, rel=0.03)


def test_a_wake_up_is_part_of_the_latency():
    """With a third of the limit lost to waking, the light-traffic share is that of the rest."""
    runs = [Service.observed(*served(0.02, 2_000, seed, wake_s=2.0)) for seed in range(10)]

    assert curve(runs, 6.0, 0.02).share(0.02) == pytest.approx(math.exp(-4.0), rel=0.3)


def test_the_interval_holds_the_answer_of_a_long_run():
    """Thirty searches of 40 runs each: the interval of 95 % misses at most five (one chance in 200 at 94 %)."""
    truth = 1 - math.log(100) / 20.0
    inside = 0
    for seed in range(30):
        runs = [Service.observed(*served(0.7, 1_000, 1_000 * seed + run)) for run in range(40)]
        found = curve(runs, 20.0, truth, seed)
        low, high = found.interval(0.01, 0.95, np.random.default_rng(seed))
        inside += low <= truth <= high

    assert inside >= 25


def test_same_random_numbers_same_curve():
    """And shares never fall with the rate once they count."""
    runs = [Service.observed(*served(0.7, 500, seed)) for seed in range(4)]
    one, same = curve(runs, 20.0, 0.7), curve(runs, 20.0, 0.7)

    assert np.array_equal(one.shares, same.shares)
    assert one.share(0.9) > one.share(0.6)


def test_runs_that_cannot_be_replayed_together_are_refused():
    """None at all, one without inferences, different servers."""
    one = Service.observed(*served(0.5, 50, 0))
    two = Service.observed(*served(0.5, 50, 0, 2), 2)
    empty = Service(np.empty(0), np.empty(0), np.empty(0))

    for runs in ([], [empty], [one, two]):
        with pytest.raises(ValueError, match="one number of workers"):
            curve(runs, 1.0, 0.5)


@pytest.mark.parametrize("workers", [1, 2])
def test_runs_replayed_at_their_own_rates_give_what_was_counted_in_them(workers):
    """What was counted is one more draw of the same distribution: of 60 runs each decile of the replays holds its share."""
    rates = np.linspace(0.5, 0.95, 60) * workers
    moments = [served(rate, 400, seed, workers) for seed, rate in enumerate(rates)]
    counted = np.array([np.count_nonzero((done - sent)[40:] > 6.0) for sent, _, done in moments])

    expected = late_again(
        [Service.observed(*one, workers) for one in moments], rates, 6.0, 0.1, np.random.default_rng(1), replays=199
    )
    places = np.array(
        [np.mean(row < one) + np.mean(row == one) / 2 for row, one in zip(expected, counted, strict=True)]
    )

    assert expected.shape == (60, 199)
    assert places.mean() == pytest.approx(0.5, abs=0.12)
    assert np.mean((places < 0.1) | (places > 0.9)) == pytest.approx(0.2, abs=0.15)


def test_replays_of_runs_of_different_lengths_count_only_what_each_had():
    """With every request late, all that is counted is the length less what settles."""
    runs = [Service(np.full(n, 2.0), np.zeros(1), np.zeros(1)) for n in (50, 20)]

    late = late_again(runs, np.array([0.1, 0.1]), 1.0, 0.1, np.random.default_rng(0), replays=3)

    assert late.tolist() == [[45] * 3, [18] * 3]
