"""The search against known truths and a virtual clock: what it finds, what it costs, what it says, and what it never loses."""

from __future__ import annotations

import math

import numpy as np
import pytest

from profiler.search.engine import Rules, Search
from profiler.search.simulated import (
    FULL_PROCESS_S,
    SimulatedBench,
    Truth,
    exhaustive,
    hypervolume,
    random_truths,
    true_points,
)
from profiler.study import Case


def searched(seed=0, truths=None, reference=None, rules=None, rung=lambda _: 0, **options):
    if truths is None:
        reference, truths = random_truths(seed)
    bench = SimulatedBench(truths, seed, **options)
    variants = list(dict.fromkeys(case.variant for case in truths))
    found = Search(variants, reference, bench, rules or Rules(), rung).run()
    return bench, found


def case(variant, backend="one", threads=1, batch=1):
    return Case(variant, backend, "local", batch, threads)


REFERENCE = case("fp32")


@pytest.mark.parametrize("seed", range(10))
def test_same_frontier_as_the_exhaustive_sweep_in_a_third_of_its_time(seed):
    reference, truths = random_truths(seed)
    sweep = SimulatedBench(truths, seed)
    exhaustive(sweep)
    bench, _ = searched(seed, budget_s=sweep.spent_s / 3)
    assert bench.spent_s <= sweep.spent_s / 3 * 1.05
    seen = hypervolume(bench.finished, reference.key) / hypervolume(sweep.finished, reference.key)
    true = hypervolume(true_points(bench), reference.key) / hypervolume(true_points(sweep), reference.key)
    assert seen >= 0.98
    assert true >= 0.98


@pytest.mark.parametrize("process_sd", [0.003, 0.01])
def test_with_all_the_time_there_is_nothing_true_is_lost(process_sd):
    """Points of the true frontier stay, or one within the slack of them: in at least 95 % of the races."""
    lost = 0
    for seed in range(20):
        _, truths = random_truths(seed)
        bench, _ = searched(seed, process_sd=process_sd)
        kept = [truth for case_, truth in truths.items() if case_.key in bench.finished]
        for truth in truths.values():
            if truth.fails or truth.drop >= 0.01:
                continue
            near = any(k.log_time <= truth.log_time + math.log(1.02) and k.drop <= truth.drop + 0.01 for k in kept)
            if not near:
                lost += 1
                break
    assert lost <= 1


def test_a_wrecked_model_costs_few_rows_and_no_race():
    truths = {
        REFERENCE: Truth(0.0, 0.0, 0.0),
        case("wreck"): Truth(-1.0, 0.5, 0.6),
        case("good"): Truth(-0.5, 0.001, 0.005),
    }
    bench, found = searched(truths=truths, reference=REFERENCE)
    (decision,) = [d for d in bench.decisions if d.subject == case("wreck").key]
    assert (decision.stage, decision.outcome, decision.against) == ("screen", "dropped", REFERENCE.key)
    assert "on 128 screening rows" in decision.reason
    assert decision.level == pytest.approx(0.05 / 2 / 2)
    assert set(found.contenders) == {REFERENCE, case("good")}
    assert found.provisional[0] == case("good")


def test_dominated_in_both_is_dropped_and_says_by_whom_and_how_surely():
    truths = {
        REFERENCE: Truth(0.0, 0.0, 0.0), case("good"): Truth(-0.5, 0.0, 0.0), case("slow"): Truth(0.5, 0.0, 0.0),
        case("close"): Truth(-0.4, 0.0, 0.0),
    }  # fmt: skip
    bench, _ = searched(truths=truths, reference=REFERENCE)
    slow = next(d for d in bench.decisions if d.subject == case("slow").key)
    assert (slow.stage, slow.outcome, slow.against, slow.look) == ("race", "dropped", case("good").key, 0)
    assert slow.ratio == pytest.approx(math.exp(1.0), rel=0.05)
    assert 1 < slow.ratio_low < slow.ratio
    assert 0 < slow.level < 0.05 / 2 / 12
    close = next(d for d in bench.decisions if d.subject == case("close").key)
    assert close.look > 0, "10 % is not believed after one process"


def test_more_accurate_and_slower_is_never_dropped():
    truths = {
        REFERENCE: Truth(0.0, 0.0, 0.0),
        case("fast"): Truth(-1.0, 0.008, 0.02),
        case("mid"): Truth(-0.5, 0.0, 0.0),
    }
    for seed in range(20):
        _, found = searched(seed, truths=truths, reference=REFERENCE)
        assert set(found.contenders) == set(truths)


LADDER = {
    REFERENCE: Truth(0.0, 0.0, 0.0), case("cheap"): Truth(-0.2, 0.0, 0.01), case("dear"): Truth(-1.0, 0.0, 0.01),
    case("dearest"): Truth(-2.0, 0.0, 0.01),
}  # fmt: skip
RUNG = {"fp32": 0, "cheap": 0, "dear": 1, "dearest": 2}.__getitem__


def test_the_ladder_is_climbed_until_it_is_enough():
    bench, found = searched(truths=LADDER, reference=REFERENCE, rules=Rules(enough=1 / 1.5), rung=RUNG)
    assert set(found.contenders) == {REFERENCE, case("cheap"), case("dear")} - {
        case(d.subject.partition("@")[0]) for d in bench.decisions if d.outcome == "dropped"
    }
    assert case("dear") in found.contenders
    (left,) = [d for d in bench.decisions if d.outcome == "not tried"]
    assert left.subject == "dearest"
    assert case("dear").key in left.reason
    assert found.enough.startswith(f"1.5 times faster was reached: {case('dear').key} takes at most 0.")
    assert "points on" in found.enough


def test_what_is_never_enough_is_climbed_to_the_top():
    bench, found = searched(truths=LADDER, reference=REFERENCE, rules=Rules(enough=0.05), rung=RUNG)
    assert not [d for d in bench.decisions if d.outcome == "not tried"]
    assert case("dearest") in found.contenders
    assert "20 times faster was not shown in the race" in found.enough


def test_a_fast_one_that_looks_too_inaccurate_is_not_enough():
    truths = {**LADDER, case("cheap"): Truth(-1.0, 0.03, 0.04)}
    _, found = searched(truths=truths, reference=REFERENCE, rules=Rules(enough=1 / 1.5), rung=RUNG)
    assert case("dear") in found.contenders


def test_what_was_before_the_search_could_begin_is_nobodys_share():
    """A device that was busy, or an attempt whose link was lost at half of the time: the stages share what is left."""
    bench = SimulatedBench(LADDER, 0, budget_s=2000.0)
    bench.spent_s = 1000.0
    found = Search(["fp32", "cheap", "dear", "dearest"], REFERENCE, bench).run()

    assert case("dearest") in found.contenders
    assert not [d for d in bench.decisions if d.outcome == "not tried"]


def test_what_was_raced_before_is_not_left_out_for_the_time_it_would_take():
    """When a search goes on late, what it has costs nothing."""
    bench = SimulatedBench(LADDER, 0, budget_s=400.0)
    bench.race(list(LADDER), 0, 1)
    bench.race_takes_s = lambda cases, processes: 1e6
    search = Search(["fp32", "cheap", "dear", "dearest"], REFERENCE, bench)

    assert search._affordable(list(LADDER), 0, 1) == list(LADDER)
    fresh = SimulatedBench(LADDER, 0, budget_s=400.0)
    fresh.race_takes_s = lambda cases, processes: 1e6
    assert len(Search(["fp32"], REFERENCE, fresh)._affordable(list(LADDER), 0, 1)) == 2


def test_the_end_of_the_time_is_no_failure():
    """What was cut short in the race has none that one could look at."""
    bench = SimulatedBench(LADDER, 0, budget_s=10.0)
    bench.spent_s = 11.0
    search = Search(["fp32"], REFERENCE, bench)
    search._logs = {REFERENCE.key: np.zeros((1, 2))}
    search._measured(list(LADDER))

    assert {d.outcome for d in bench.decisions} == {"not tried"}


def test_a_rung_with_many_variants_has_more_of_the_time():
    """Equal parts would end the one that holds most of what can win before its turn."""
    many = {REFERENCE: Truth(0.0, 0.0, 0.0)} | {case(f"v{n}"): Truth(-0.3 - n / 100, 0.0, 0.01) for n in range(12)}
    few = {case("deep"): Truth(-0.1, 0.0, 0.01)}
    rung = lambda text: 0 if text == "fp32" else 2 if text == "deep" else 1  # noqa: E731
    bench, _ = searched(
        truths={**many, **few}, reference=REFERENCE, rules=Rules(enough=0.05), rung=rung, budget_s=260.0
    )

    assert not [d.subject for d in bench.decisions if d.outcome == "not tried" and d.stage in ("make", "screen")]


@pytest.mark.parametrize("budget_s", [20.0, 60.0, 200.0])
def test_each_rung_keeps_to_its_part_of_the_budget(budget_s):
    bench, found = searched(truths=LADDER, reference=REFERENCE, rules=Rules(enough=0.05), rung=RUNG, budget_s=budget_s)
    assert REFERENCE in found.contenders
    assert bench.spent_s <= 1.1 * budget_s


def test_the_reference_is_in_whatever_happens_and_stands_beside_each_contender():
    truths = {
        REFERENCE: Truth(1.0, 0.0, 0.0), case("fp32", threads=2): Truth(0.9, 0.0, 0.0),
        case("v", threads=2): Truth(-2.0, 0.0, 0.0), case("v"): Truth(-1.0, 0.0, 0.0),
    }  # fmt: skip
    bench, found = searched(truths=truths, reference=REFERENCE)
    assert found.contenders[0] == REFERENCE
    assert case("v", threads=2) in found.contenders
    assert case("fp32", threads=2) in found.contenders
    assert set(bench.finished) == {item.key for item in found.contenders}


@pytest.mark.parametrize("budget_s", [0.0, 5.0, 20.0, 60.0, 150.0])
def test_a_budget_that_is_too_short_still_ends_with_the_reference_and_names_what_was_not_tried(budget_s):
    reference, truths = random_truths(1)
    bench, found = searched(1, budget_s=budget_s)
    assert reference.key in bench.finished
    told = {d.subject for d in bench.decisions}
    for case_ in truths:
        done = case_ in found.contenders or case_.key in told or case_.variant in told
        assert done, f"nothing is said of {case_.key}"
    assert all(d.reason for d in bench.decisions)
    # The smallest search that gives an answer: what was begun is ended.
    assert bench.spent_s <= max(budget_s, 0.0) * 1.05 + 5 * FULL_PROCESS_S


def test_failures_are_told_and_left_out():
    truths = {REFERENCE: Truth(0.0, 0.0, 0.0), case("broken"): Truth(-2.0, 0.0, 0.0, fails=True)}
    bench, found = searched(truths=truths, reference=REFERENCE)
    assert found.contenders == (REFERENCE,)
    assert [(d.subject, d.outcome) for d in bench.decisions][:1] == [(case("broken").key, "failed")]


def test_without_rows_only_the_same_file_is_compared():
    class Blind(SimulatedBench):
        def screen(self, case, stop):
            return np.zeros(0)

    truths = {
        REFERENCE: Truth(0.0, 0.0, 0.0), case("fp32", threads=2): Truth(1.0, 0.0, 0.0), case("v"): Truth(-1.0, 0.5, 0.6),
        case("v", threads=2): Truth(1.0, 0.5, 0.6),
    }  # fmt: skip
    bench = Blind(truths)
    Search(["fp32", "v"], REFERENCE, bench).run()
    dropped = {d.subject: d.against for d in bench.decisions if d.outcome == "dropped"}
    assert dropped == {case("fp32", threads=2).key: REFERENCE.key, case("v", threads=2).key: case("v").key}


def test_equal_seeds_decide_alike():
    first, second = searched(4)[0], searched(4)[0]
    assert first.decisions == second.decisions
    assert first.finished == second.finished
