"""The share of late requests in the long run, from one run."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from profiler.stats.exceedance import exceedance_bound

MM1_RATE, MM1_LIMIT_S = 1 - math.log(100) / 20.0, 20.0


def waits(rate, seed, count):
    """Sojourn times of M/M/1 with service rate 1."""
    random = np.random.default_rng(seed)
    arrivals = np.cumsum(random.exponential(1 / rate, count))
    done = np.cumsum(random.exponential(1.0, count))
    return done + np.maximum.accumulate(arrivals - np.concatenate([[0.0], done[:-1]])) - arrivals


class TestExceedanceBound:
    def test_independent_requests_get_nearly_the_binomial_bound(self):
        """200 of 20,000 spread at random: a little above Clopper and Pearson, never below."""
        late = np.zeros(20_000)
        late[np.random.default_rng(0).choice(20_000, 200, replace=False)] = 1.0

        share, upper = exceedance_bound(late, 0.5)

        assert share == 0.01
        assert stats.beta.ppf(0.95, 201, 19_800) <= upper < 0.014

    def test_one_cluster_of_late_requests_is_little_evidence(self):
        """The same 200 in a row are one event: the bound is far higher."""
        late = np.zeros(20_000)
        late[5_000:5_200] = 1.0

        share, upper = exceedance_bound(late, 0.5)

        assert share == 0.01
        assert upper > 0.05

    def test_no_late_request_in_a_queue_is_not_taken_as_independent(self):
        """The queue's memory shows at its own p90; with independent latencies the same bound is near 3 / n."""
        queueing = waits(0.8, 3, 5_000)
        shuffled = np.random.default_rng(0).permutation(queueing)

        (none, dependent), (_, free) = exceedance_bound(queueing, 1e3), exceedance_bound(shuffled, 1e3)

        assert none == 0.0
        assert 3 / 5_000 <= free < 0.0015
        assert dependent > 4 * free

    def test_the_bound_holds_for_a_queue(self):
        """M/M/1 at the rate where 1 % is late, 200 runs of 4,000: a bound below 1 % in at most 10 % of them, not in 40 %."""
        below = [exceedance_bound(waits(MM1_RATE, seed, 4_000), MM1_LIMIT_S)[1] < 0.01 for seed in range(200)]

        assert np.mean(below) <= 0.10

    def test_all_and_too_few(self):
        """Everything late is 1; ten requests on time say next to nothing."""
        assert exceedance_bound(np.ones(100), 0.5) == (1.0, 1.0)
        assert exceedance_bound(np.zeros(10), 0.5)[1] == pytest.approx(0.95)

    @pytest.mark.parametrize(
        ("latencies", "options", "message"),
        [
            ([], {}, "0 latencies"), ([math.nan], {}, "NaN"), ([1.0], {"sections": 1}, "sections must be at least 2"),
            ([1.0], {"level": 0.5}, "level must lie strictly"),
        ],
    )  # fmt: skip
    def test_impossible_questions_are_refused(self, latencies, options, message):
        """With what came."""
        with pytest.raises(ValueError, match=message):
            exceedance_bound(np.array(latencies), 1.0, **options)
