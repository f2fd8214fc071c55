"""From records to figures: validity, latency from the schedule, what is not measured and why; decisions from intervals."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from profiler.load import decision, figures
from profiler.load.figures import MaxRate, latencies_s, summarise, validity
from profiler.load.schedule import poisson
from profiler.records import Estimate, LoadRecord, NotMeasured
from profiler.stats.slo import Confirmation, RateEstimate


def lindley(due, service):
    """When each request of a queue with one server begins."""
    started, free = [], 0.0
    for moment in due:
        begin = max(moment, free)
        free = begin + service
        started.append(begin)
    return np.asarray(started)


def served(rate=500.0, count=2000, service=0.001, *, late=0.0, seed=1, run=0, setting="server", **fields):
    """A record of a queue with one server, as theory has it."""
    due = poisson(rate, count, seed)
    sent = due + late
    started = lindley(sent, service)
    values = {
        "case": "fp32@ort/b1/t1", "setting": setting, "run": run, "purpose": "scenario", "rate_per_s": rate, "seed": seed,
        "scheduled_s": due, "sent_s": sent, "started_s": started, "completed_s": started + service,
        "batch_size": np.ones(count, np.int64), "ended": "complete", "cpu_s": 1.0, "wall_s": float(due[-1]),
        "labels": {"process": float(run)},
    }  # fmt: skip
    return LoadRecord(**{**values, **fields})


def closed(took, setting="single", workers=1):
    """A closed loop of requests that took so long, one after the other."""
    ends = np.cumsum(took)
    return LoadRecord(
        case="c", setting=setting, run=0, purpose="scenario", rate_per_s=None, seed=0, scheduled_s=None,
        sent_s=ends - took, started_s=ends - took, completed_s=ends, batch_size=np.ones(len(took), np.int64),
        ended="complete", cpu_s=1.0, wall_s=float(ends[-1]),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("late", "slo_s", "told", "valid"),
    [
        (90e-6, None, False, True), (110e-6, None, True, True), (1.1e-3, None, False, False), (110e-6, 0.020, False, True),
        (0.0009, 0.1, False, True), (0.0011, 0.1, True, True), (0.049, 0.1, True, True), (0.051, 0.1, False, False),
        (90e-6, 100e-6, False, True), (110e-6, 100e-6, False, False),
    ],
)  # fmt: skip
def test_a_late_generator_is_told_and_a_very_late_one_not_believed(late, slo_s, told, valid):
    """From 100 µs or 1 % of the limit, whichever is more, to half of the limit (1 ms without one) it is in the latency."""
    verdict = validity(served(late=late), slo_s)

    assert verdict.valid is valid
    assert (verdict.late is None) is valid
    assert (verdict.inflated is not None) is told
    assert verdict.lateness_p99_s == pytest.approx(late)


def test_lateness_of_fewer_than_one_in_a_hundred_is_forgiven():
    """p99 it is, not the maximum."""
    record = served()
    sent = record.sent_s.copy()
    sent[:10] += 1.0

    assert validity(replace(record, sent_s=sent)).late is None


def test_a_rate_that_is_carried_is_valid_and_one_that_is_not_is_told():
    """Half the capacity is answered as offered; 1.1 times the capacity is answered at the capacity."""
    carried, lost = validity(served(500)), validity(served(1100, 5000))

    assert carried.valid
    assert carried.achieved_per_s == pytest.approx(carried.offered_per_s, rel=0.01)
    assert not lost.valid
    assert lost.achieved_per_s == pytest.approx(1000, rel=0.02)
    assert "were offered" in lost.not_carried


def test_one_late_answer_at_the_end_is_latency_and_not_a_rate():
    """A last request that hangs for a second must not lower the rate of a run of two seconds."""
    record = served(500, 1000)
    ends = record.completed_s.copy()
    ends[-1] += 1.0

    assert validity(replace(record, completed_s=ends)).valid


def test_a_run_that_was_stopped_says_how_many_were_unanswered():
    """Diverged or out of time: never valid."""
    record = served()
    open_ones = record.completed_s.copy()
    open_ones[-70:] = np.nan
    verdict = validity(replace(record, completed_s=open_ones, ended="diverged"))

    assert verdict.not_carried == "stopped: the queue only grew, 70 requests were unanswered"
    assert not verdict.valid


def test_latency_counts_from_the_schedule_and_splits_into_queue_and_service():
    """The three are measured on the same requests: their medians add up here, where service is constant."""
    record = served(800, 4000, late=50e-6)
    found = summarise([record])[0]

    np.testing.assert_allclose(latencies_s(record), record.completed_s - record.scheduled_s)
    assert found.service_p50.value == pytest.approx(0.001)
    assert found.queueing_p50.value + found.service_p50.value == pytest.approx(found.p50.value)
    assert found.lateness_p99_s == pytest.approx(50e-6)
    assert found.p99.value == pytest.approx(np.quantile(latencies_s(record), 0.99))


def test_waiting_is_that_of_theory():
    """M/D/1 at 70 %: the mean wait is rho / (2 (1 - rho)) services (Pollaczek and Khinchine)."""
    waits = [served(700, 20_000, seed=seed) for seed in range(4)]
    mean = np.mean([(record.started_s - record.scheduled_s).mean() for record in waits])

    assert mean == pytest.approx(0.001 * 0.7 / (2 * 0.3), rel=0.1)


def test_the_p99_s_interval_knows_that_neighbours_in_a_queue_share_their_fate():
    """Near the capacity, 95 % intervals of single runs hold the long-run p99 in nine of ten cases; independence would not."""
    truth = np.quantile(np.concatenate([latencies_s(served(800, 60_000, seed=100 + k)) for k in range(3)]), 0.9)
    held = 0
    for seed in range(40):
        found = figures._quantile([latencies_s(served(800, 6000, seed=seed))], 0.9, [0])
        held += found.low is not None and found.low <= truth and (found.high is None or truth <= found.high)

    assert held >= 36


def test_a_query_of_multi_takes_as_long_as_its_last_sample():
    """One number per query; a cut-off query does not count."""
    record = closed(np.ones(7), "multi{samples=3}")
    record = replace(record, sent_s=np.array([0, 0, 0, 3, 3, 3, 6.0]))

    assert latencies_s(record).tolist() == [3, 3]


def test_percentiles_that_no_answer_reached_are_not_measured():
    """p50 is there, p99 is not: 5 % had no answer."""
    record = served()
    open_ones = record.completed_s.copy()
    open_ones[-100:] = np.nan
    found = summarise([replace(record, completed_s=open_ones, ended="timeout")])[0]

    assert isinstance(found.p50, Estimate)
    assert isinstance(found.p99, NotMeasured)
    assert "100 of 2,000 requests had no answer" in found.p99.reason
    assert not found.valid


def test_invalid_runs_are_left_out_where_there_are_valid_ones_and_shown_where_there_are_none():
    """With the reason, in both cases."""
    good, bad = served(run=0), served(run=1, late=0.05, seed=2)
    mixed, alone = summarise([good, bad])[0], summarise([bad])[0]

    assert (mixed.runs, mixed.valid_runs, mixed.valid) == (2, 1, True)
    assert mixed.p99.value == summarise([good])[0].p99.value
    assert "50 ms late" in mixed.reasons[0]
    assert (alone.runs, alone.valid_runs, alone.valid) == (1, 0, False)
    assert alone.p99.value > 0.05


def test_settings_and_rates_are_kept_apart_and_searches_out():
    """One line each."""
    other = served(run=3, setting="server{workers=2}")
    lines = summarise([served(), served(600.0, run=1), other, replace(served(run=9), purpose="search")])

    assert [(line.setting, line.rate_per_s) for line in lines] == [
        ("server", 500.0), ("server", 600.0), ("server{workers=2}", 500.0),
    ]  # fmt: skip


def test_offline_has_a_rate_and_no_latency():
    """Everything waits at once."""
    found = summarise([closed(np.full(600, 0.002), "offline")])[0]

    assert found.achieved_per_s.value == pytest.approx(500)
    assert isinstance(found.p99, NotMeasured)


def test_the_mean_batch_counts_inferences():
    """Two inferences of 3 and 1 rows are 2 rows on average, not 2.5."""
    record = replace(closed(np.full(4, 0.001)), batch_size=np.array([3, 3, 3, 1]))

    assert summarise([record])[0].mean_batch == pytest.approx(2.0)


# Searches and decisions --------------------------------------------------------------------------------------------------


def capacity(setting, service=0.001, count=2000):
    single, offline = figures.capacity_settings(setting)
    took = np.full(count, service)
    return [
        replace(closed(took, str(single)), purpose="search", case="c"), replace(closed(took, str(offline)), purpose="search")
    ]  # fmt: skip


def test_a_limit_below_the_service_time_is_not_attainable():
    """Told with the service time, before a single open-loop run."""
    setting = figures.parse_setting("server")
    bounds = figures.search_bounds(capacity(setting), setting, 0.0008, 0.99)

    assert (
        bounds.reason == "not attainable at any rate: 1 ms (p99) is what the service takes alone, the limit is 0.8 ms"
    )
    assert figures.search_bounds(capacity(setting), setting, 0.002, 0.99).reason is None


def test_a_search_looks_up_to_what_a_queue_can_carry():
    """A quarter above the rate of `offline`, and nothing without its runs."""
    setting = figures.parse_setting("server{max_batch=4,max_delay_s=0.01}")
    bounds = figures.search_bounds(capacity(setting), setting, 0.1, 0.99)

    assert bounds.ceiling_per_s == pytest.approx(1250)
    with pytest.raises(ValueError, match=r"needs a run of single and one of offline\{max_batch=4\}"):
        figures.search_bounds([], setting, 0.1, 0.99)


def test_requests_that_were_never_sent_count_as_late():
    """A run that was stopped because its queue only grew is the finding, and not an invalid run."""
    record = served(2000, 100)
    found = figures.rate_run(replace(record, ended="diverged"), 150, 0.01)

    assert len(found.latencies_s) == 150
    assert np.isinf(found.latencies_s[100:]).all()
    assert found.valid


def made(batching, rate, low, high, *, case="c", confirmed=True, workers=1):
    options = {"none": "", "8": "max_batch=8,max_delay_s=0.002,"}[batching]
    estimate = RateEstimate(
        rate, low, high, 0.99, 0.005, confirmed, Confirmation(rate or 1.0, 1, 1000, 0.005, 0.001, 0.009, effect=1.0), (),
        rate is not None, None,
    )  # fmt: skip
    return MaxRate(case, f"server{{{options}workers={workers}}}", 0.005, 0.99, NotMeasured("x"), estimate, None)


def test_the_decision_names_the_factor_first():
    """Where the intervals do not overlap."""
    first, second, *_ = decision.decide_max_rate([made("none", 1000, 980, 1020), made("8", 1900, 1850, 1950)])

    assert first.startswith("batch up to 8 within 2 ms carries 1.9× the rate of no batching under p99 ≤ 5 ms")
    assert (
        "1,850 requests/s (the lower end of 95 % of what these runs showed: 1,850–1,950; best estimate 1,900), confirmed"
        in second
    )


def test_overlapping_intervals_are_not_told_apart():
    """Nor are those with an end that is not known."""
    for low in (1010, None):
        lines = decision.decide_max_rate([made("none", 1000, 980, 1020), made("8", 1050, low, 1100)])

        assert "not told apart" in lines[0]
        assert "carries 1" not in lines[0]


def test_the_one_that_cannot_hold_the_limit_is_named():
    """And nothing is divided by nothing."""
    lines = decision.decide_max_rate([made("none", 1000, 980, 1020), made("8", None, None, None)])

    assert any("no batching holds p99 ≤ 5 ms, batch up to 8 within 2 ms does not" in line for line in lines)


def test_without_any_rate_the_reasons_are_the_decision():
    """In words of the search."""
    gone = MaxRate("c", "server", 0.005, 0.99, NotMeasured("x"), None, "not attainable at any rate: 9 ms")

    assert decision.decide_max_rate([gone]) == [
        "no setting was found to hold p99 ≤ 5 ms: not attainable at any rate: 9 ms"
    ]


def test_a_limit_at_given_rates_is_held_missed_or_not_decided():
    """By the interval of the best one."""
    found = summarise([served(500, 6000, run=k, seed=k) for k in range(4)])

    assert "is held" in decision.decide_scenarios(found, 0.1)[0]
    assert "is missed" in decision.decide_scenarios(found, 0.0005)[0]
    assert math.isfinite(found[0].p99.value)
