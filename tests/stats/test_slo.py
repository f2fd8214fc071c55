"""The rate under a latency limit: queues whose answer is known, and what disturbs the search."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import optimize

from profiler.stats.replay import Service
from profiler.stats.slo import RateRun, find_max_rate

MM1_LIMIT_S, MD1_LIMIT_S = 20.0, 5.0
MM1_RATE = 1 - math.log(100) / MM1_LIMIT_S
"""M/M/1 with service rate 1: the sojourn time is exponential with rate 1 - lambda (Kleinrock 1975, 5.118)."""


def queue(service, *, stall_s=0.0, served=math.inf, seen=False):
    """A single server with mean service time 1 s, first in first out; `service(random, count)` draws service times.

    With `seen` the service times are told, so that they can be replayed.
    """

    def run(rate, seed, count):
        random = np.random.default_rng(seed)
        arrivals = np.cumsum(random.exponential(1 / rate, count))
        times = service(random, count)
        times[count // 2] += stall_s
        done = np.cumsum(times)
        finished = done + np.maximum.accumulate(arrivals - np.concatenate([[0.0], done[:-1]]))
        latencies = np.where(finished < served, finished - arrivals, np.inf)
        told = Service.observed(arrivals, finished - times, finished) if seen else None
        return RateRun(rate, seed, latencies, True, None, told)

    return run


def exponential(random, count):
    return random.exponential(1.0, count)


def constant(random, count):
    return np.ones(count)


def bursty(random, count):
    """Every tenth stretch of a hundred requests, on average, takes twice as long."""
    slow = np.repeat(random.random(count // 100 + 1) < 0.1, 100)[:count]
    return np.where(slow, 2.0, 1.0)


def md1_rate(limit_s):
    """Erlang's waiting time of M/D/1 (as in Franx 2001), solved for the rate where 1 % wait longer than limit - service."""

    def over(rate):
        wait = limit_s - 1
        terms = [
            (-rate * (wait - k)) ** k / math.factorial(k) * math.exp(rate * (wait - k)) for k in range(int(wait) + 1)
        ]
        return 1 - (1 - rate) * sum(terms) - 0.01

    return optimize.brentq(over, 0.05, 0.95)


def search(run, **options):
    fields = {"slo_s": MM1_LIMIT_S, "floor_rate": 0.05, "ceiling_rate": 2.0}
    return find_max_rate(run, **{**fields, **options})


@pytest.fixture(scope="module")
def many():
    """Twelve searches each on M/M/1 and M/D/1 with 20,000 requests."""
    return {
        "M/M/1": [search(queue(exponential), seed=seed) for seed in range(12)],
        "M/D/1": [search(queue(constant), slo_s=MD1_LIMIT_S, seed=seed) for seed in range(12)],
    }


class TestKnownQueues:
    @pytest.mark.parametrize(("name", "truth"), [("M/M/1", MM1_RATE), ("M/D/1", md1_rate(MD1_LIMIT_S))])
    def test_the_rate_is_found_within_a_few_percent(self, many, name, truth):
        """Twelve seeds: the mean within 3 %, each within 25 %, and the spread at most 7 % (5 % in the long run)."""
        errors = np.log([found.rate_per_s / truth for found in many[name]])

        assert abs(errors.mean()) < 0.03
        assert np.abs(errors).max() < 0.25
        assert errors.std(ddof=1) < 0.07

    @pytest.mark.parametrize(("name", "truth"), [("M/M/1", MM1_RATE), ("M/D/1", md1_rate(MD1_LIMIT_S))])
    def test_most_intervals_hold_the_truth(self, many, name, truth):
        """Nine of twelve 95 % intervals at the least (fewer are one chance in 5,000 if exact), and not by being absurdly wide."""
        inside = sum(found.low <= truth <= found.high for found in many[name])

        assert inside >= 9
        assert np.median([found.high / found.low for found in many[name]]) < 1.6

    def test_requests_stay_within_the_budget(self, many):
        """20,000 requests, the search, the confirming runs and all."""
        assert all(15_000 <= found.queries <= 20_000 for found in many["M/D/1"])

    def test_bursts_widen_the_interval_instead_of_misleading(self):
        """With bursts that last a hundred requests the answer still holds what a long run says."""
        run = queue(bursty)
        truth = optimize.brentq(
            lambda rate: np.mean(run(rate, 7, 400_000).latencies_s > MD1_LIMIT_S) - 0.01, 0.2, 0.7, xtol=1e-3
        )
        found = [search(run, slo_s=MD1_LIMIT_S, seed=seed) for seed in range(10)]
        inside = sum(one.low <= truth <= one.high for one in found if one.low is not None)

        assert inside >= 7
        assert all(0.4 * truth < one.rate_per_s < 2 * truth for one in found)

    def test_the_fit_is_steadier_than_one_run_per_rate(self):
        """At the same budget, over the same seeds: less spread than bisection with 2,500 requests a point."""
        run, truth = queue(constant), md1_rate(3.0)

        def bisection(seed):
            low, high = 0.05, 2.0
            for step in range(8):
                middle = math.sqrt(low * high)
                late = np.mean(run(middle, 1000 * seed + step, 2_500).latencies_s > 3.0)
                low, high = (low, middle) if late > 0.01 else (middle, high)
            return math.sqrt(low * high)

        ours = [search(run, slo_s=3.0, seed=seed).rate_per_s for seed in range(24)]
        theirs = [bisection(seed) for seed in range(24)]

        def rms(rates):
            return float(np.sqrt(np.mean(np.log(np.array(rates) / truth) ** 2)))

        assert rms(ours) < rms(theirs)

    def test_another_percentile_has_another_answer(self):
        """p90 of M/M/1: 1 - ln(10) / limit."""
        found = [search(queue(exponential), p=0.9, slo_s=8.0, seed=seed).rate_per_s for seed in range(10)]

        assert np.exp(np.mean(np.log(found))) == pytest.approx(1 - math.log(10) / 8, rel=0.05)

    def test_same_seed_same_answer(self):
        """And another seed gives other schedules."""
        one, same, other = (search(queue(exponential), seed=seed, budget_queries=16_000) for seed in (3, 3, 4))

        assert one == same
        assert {run.seed for run in one.runs}.isdisjoint(run.seed for run in other.runs)

    def test_every_run_has_a_schedule_of_its_own(self):
        """A fixed schedule would hide the very variance that the interval is about."""
        found = search(queue(exponential), budget_queries=16_000)

        assert len({run.seed for run in found.runs}) == len(found.runs)
        assert found.runs[-1].stage == "confirm"
        assert found.confirmation.seed == found.runs[-1].seed


class TestConfirming:
    def test_a_fresh_run_confirms_a_rate_at_or_below_the_estimate(self):
        """Ten searches for a p90: most are confirmed, where the limit is truly held, by a bound that says it."""
        found = [search(queue(constant), p=0.9, slo_s=3.0, budget_queries=40_000, seed=seed) for seed in range(10)]
        sure = [one for one in found if one.confirmed]

        assert len(sure) >= 6
        assert all(0.74 * one.rate_per_s <= one.confirmation.rate_per_s <= one.rate_per_s for one in found)
        assert all(one.confirmation.high <= 0.1 for one in sure)
        assert not any(one.confirmed is False for one in found)
        # A bound at 95 % may be wrong once in twenty times, so once in ten is no surprise.
        long = [queue(constant)(one.confirmation.rate_per_s, 5, 100_000).latencies_s for one in sure]
        assert sum(np.mean(latencies > 3.0) > 0.1 for latencies in long) <= 1

    def test_too_short_a_confirming_run_says_so(self):
        """Neither confirmed nor refuted: None, and the note has the share seen."""
        found = search(queue(exponential), budget_queries=20_000, seed=0)

        assert found.confirmed is None
        assert found.confirmation.low <= 0.01 < found.confirmation.high
        assert "too short to confirm 1 %" in found.note

    def test_a_machine_that_got_slower_is_found_out(self):
        """The confirming runs are twice as slow as the search: refuted, in words."""
        calm, calls = queue(constant), []

        def run(rate, seed, count):
            calls.append(count)
            done = calm(rate, seed, count)
            slow = done.latencies_s + (0 if sum(calls) <= 16_000 else MD1_LIMIT_S)
            return RateRun(rate, seed, slow, True, None)

        found = search(run, slo_s=MD1_LIMIT_S)

        assert found.confirmed is False
        assert found.confirmation.low > 0.01
        assert "missed the limit" in found.note


class TestReplays:
    """Where service times are known the arrivals' luck is taken out."""

    @pytest.mark.parametrize(
        ("service", "limit_s", "truth"),
        [(exponential, MM1_LIMIT_S, MM1_RATE), (constant, MD1_LIMIT_S, md1_rate(MD1_LIMIT_S))],
    )
    def test_they_are_several_times_steadier_than_counting(self, service, limit_s, truth):
        """Same runs, same seeds, both against the exact answer."""
        found = [search(queue(service, seen=True), slo_s=limit_s, seed=seed) for seed in range(8)]
        errors = np.log([one.rate_per_s / truth for one in found])
        counted = np.log([one.counted[0] / truth for one in found])

        assert {one.method for one in found} == {"replay"}
        assert abs(errors.mean()) < 0.02
        assert np.std(errors) < 0.025
        assert np.std(errors) < np.std(counted)

    @pytest.mark.parametrize("served_with", [1 / 3, 1.6])
    def test_a_service_that_depends_on_the_queue_is_found_out(self, served_with):
        """Faster or slower than what was seen of it: neither figure is given alone, the lower is the one that is told."""
        calm = queue(constant, seen=True)

        def run(rate, seed, count):
            done = calm(rate, seed, count)
            return RateRun(rate, seed, done.latencies_s * served_with, True, None, done.service)

        found = search(run, slo_s=MD1_LIMIT_S)

        assert found.method == "both"
        assert "depend on the queue" in found.note
        counted, low, high = found.counted
        assert found.rate_per_s <= counted
        assert found.low <= low
        assert found.high >= high

    def test_counting_near_saturation_does_not_overrule_a_right_replay(self):
        """Every run begins with an empty queue, so counting flatters with a long limit: of forty searches none believes it."""
        truth = md1_rate(10.0)
        found = [search(queue(constant, seen=True), slo_s=10.0, seed=seed) for seed in range(40)]

        assert {one.method for one in found} == {"replay"}
        assert max(one.rate_per_s for one in found) < 1.04 * truth
        assert sum(one.low > truth for one in found) <= 3


class TestEdges:
    def test_a_limit_below_the_service_time_is_unattainable(self):
        """The note names the service time that was seen, and little was spent."""
        found = search(queue(constant), slo_s=0.5)

        assert (found.attainable, found.rate_per_s, found.low, found.high) == (False, None, None, None)
        assert "service time there is 1000 ms" in found.note
        assert "no rate holds this limit" in found.note
        assert found.queries == 1_000

    def test_a_service_time_whose_tail_misses_is_unattainable(self):
        """Exponential service exceeds 4 s in 1.8 % of requests, without any queue."""
        found = search(queue(exponential), slo_s=4.0, floor_rate=0.001)

        assert not found.attainable
        assert "tail alone misses" in found.note or "lowest rate" in found.note

    def test_a_floor_above_the_answer_is_told(self):
        """Not attainable between these rates."""
        found = search(queue(constant), slo_s=MD1_LIMIT_S, floor_rate=0.7)

        assert (found.attainable, found.rate_per_s) == (False, None)
        assert "lowest rate, 0.7/s" in found.note

    def test_a_ceiling_that_holds_is_reported_as_at_least(self):
        """No upper bound is made up, and the search stops early."""
        found = search(queue(constant), slo_s=MD1_LIMIT_S, ceiling_rate=0.2)

        assert (found.rate_per_s, found.high, found.at_ceiling, found.confirmed) == (0.2, None, True, True)
        assert ">= 0.2/s" in found.note
        assert found.queries < 10_000

    def test_a_generator_that_is_late_above_a_rate_bounds_the_claim(self):
        """Up to where the schedule was kept, and a note why not beyond."""
        calm = queue(constant)

        def run(rate, seed, count):
            done = calm(rate, seed, count)
            return RateRun(rate, seed, done.latencies_s, rate < 0.4, None if rate < 0.4 else "p99 lateness 3 ms")

        found = search(run, slo_s=MD1_LIMIT_S)

        assert found.at_ceiling
        assert 0.3 < found.rate_per_s < 0.4
        assert found.high is None
        assert "generator could not keep its schedule" in found.note
        assert "p99 lateness 3 ms" in found.note
        assert found.invalid_runs > 0

    def test_invalid_runs_are_left_out_and_counted(self):
        """A quarter of the runs is late and full of nonsense: the answer is that of the others."""
        calm = queue(constant)

        def run(rate, seed, count):
            if seed % 4 == 0:
                return RateRun(rate, seed, np.full(count, np.nan), False, "preempted")
            return calm(rate, seed, count)

        found = [search(run, slo_s=MD1_LIMIT_S, seed=seed, budget_queries=30_000) for seed in range(3)]

        assert all(one.rate_per_s == pytest.approx(md1_rate(MD1_LIMIT_S), rel=0.15) for one in found)
        assert all(one.invalid_runs == sum(run.seed % 4 == 0 for run in one.runs) > 0 for one in found)
        assert all("left out, e.g. 'preempted'" in one.note for one in found)
        assert {run.share for one in found for run in one.runs if not run.valid} == {None}

    def test_only_invalid_runs_give_no_rate_and_the_reason(self):
        """Two tries at the lowest rate, then words."""
        found = search(lambda rate, seed, count: RateRun(rate, seed, np.ones(count), False, "clock jumped"))

        assert (found.rate_per_s, found.confirmed, found.invalid_runs) == (None, None, 2)
        assert "'clock jumped'" in found.note
        assert found.attainable

    def test_a_small_budget_falls_back_to_bisection_and_says_so(self):
        """The range is a bracket, and named one."""
        found = search(queue(constant), slo_s=MD1_LIMIT_S, budget_queries=6_000)

        assert "bracket of a bisection, not a confidence interval" in found.note
        assert found.low < found.rate_per_s < found.high
        assert found.rate_per_s == pytest.approx(md1_rate(MD1_LIMIT_S), rel=0.35)
        assert {run.stage for run in found.runs} == {"coarse", "confirm"}

    def test_requests_that_were_never_answered_are_late(self):
        """A run cut short under overload counts as what it is: inf is slower than any limit."""
        found = search(queue(constant, served=600.0), slo_s=MD1_LIMIT_S, floor_rate=0.3)

        assert not found.attainable

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"slo_s": 0.0}, "slo_s must be positive, got 0.0"),
            ({"p": 1.0}, "p must be at least 0.5 and below 1, got 1.0"),
            ({"floor_rate": 2.0, "ceiling_rate": 1.0}, "floor < ceiling, got 2.0 and 1.0"),
            ({"budget_queries": 0}, "budget_queries must be at least 1, got 0"),
            ({"level": 0.4}, "level must lie strictly between 0.5 and 1"),
        ],
    )
    def test_impossible_questions_are_refused(self, change, message):
        """Before anything is run."""
        with pytest.raises(ValueError, match=message):
            search(lambda *_: pytest.fail("nothing may be run"), **change)

    @pytest.mark.parametrize(
        ("latencies", "message"), [(np.array([]), "no latencies"), (np.array([1.0, np.nan]), "NaN")]
    )
    def test_broken_runs_are_refused(self, latencies, message):
        """A silent run must not count as fast."""
        with pytest.raises(ValueError, match=message):
            search(lambda rate, seed, count: RateRun(rate, seed, latencies, True, None))
