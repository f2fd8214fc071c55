"""What to ship, and why not the others."""

from __future__ import annotations

from dataclasses import replace
from datetime import date

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from profiler.analysis import AXES, analyse
from profiler.decide import recommend, view
from profiler.errors import StudyError
from profiler.study import Case

TODAY = date(2026, 1, 2)
RIGHT = np.arange(2000) % 10 > 0


def worse(flips: int) -> np.ndarray:
    rows = RIGHT.astype(float)
    rows[np.flatnonzero(RIGHT)[:flips]] = 0
    return rows


def agreeing(flips: int) -> np.ndarray:
    rows = np.ones(2000)
    rows[:flips] = 0
    return rows


@pytest.fixture
def decided(made_run):
    """`decided({variant: (latency_s, flips)}, **settings)`: the analysis, its frontier and its recommendation."""

    def make(truth, *, labels: bool = True, sizes=None, processes: int = 5, status: str = "finished", **settings):
        run = made_run(processes=processes)
        for variant, (latency, flips) in truth.items():
            case = run.case(variant)
            run.made(variant, (sizes or {}).get(variant, 1000))
            run.timed(case, latency)
            if labels:
                run.answered(case, worse(flips), agreement=agreeing(flips))
            else:
                run.answered(case, agreeing(flips), metric="agreement", agreement=agreeing(flips))
        analysis = analyse(run.data(status=status, **settings), today=TODAY)
        frontier = view(analysis)
        return analysis, frontier, recommend(analysis, frontier)

    return make


def test_the_fastest_case_that_loses_little_is_recommended(decided):
    """1.5 times faster at −0.1 points, although a wrecked one is faster still."""
    _, _, advice = decided({"fp32": (1.5e-3, 0), "int8-static": (1e-3, 2), "wrecked": (2e-4, 900)})

    assert advice.case.case.variant == "int8-static"
    assert advice.headline == "Ship int8-static on ort, batch 1."
    assert any("1.5" in sentence and "faster" in sentence for sentence in advice.sentences)
    assert [case.case.variant for case, _ in advice.ruled_out] == ["wrecked"]
    assert all(reason for _, reason in advice.ruled_out)


def test_a_case_is_compared_in_words_with_what_it_was_compared_with(made_run):
    """At another batch size another backend's model may stand for the one that failed: not the case with itself."""
    run = made_run()
    for backend, batch, seconds in (("ov", 1, 2e-3), ("ort", 8, 9e-3), ("ov", 8, 6e-3)):
        case = run.case("fp32", backend, batch)
        run.timed(case, seconds).answered(case, worse(0))
    run.made("fp32").failed("fp32@ort/b1/t1")
    run.cases.insert(0, Case("fp32", "ort", "local", 1, 1))
    analysis = analyse(run.data(backends=("ort", "ov"), batches=(1, 8)), today=TODAY)
    chosen = analysis.case("fp32@ov/b8/t1")
    told = recommend(analysis, view(analysis)).sentences

    assert (analysis.reference, chosen.compared_with) == ("fp32@ov/b1/t1", "fp32@ort/b8/t1")
    assert recommend(analysis, view(analysis)).case.key == chosen.key
    assert "faster than fp32 on ort" in told[0]


def test_what_the_limit_that_nobody_set_ruled_out_is_named(decided):
    """A reader who sees a faster row in the table wants to know why it is not taken."""
    _, _, advice = decided({"fp32": (1.5e-3, 0), "int8-static": (1e-3, 90)})

    assert advice.case.case.variant == "fp32"
    assert "int8-static@ort/b1/t1 is 1.5" in advice.sentences[0]
    assert "× faster, but accuracy drop FAIL: loses at least 3.80 points" in advice.sentences[0]
    assert "no --max-drop was given, so one point holds" in advice.sentences[0]


@pytest.mark.parametrize(("processes", "budget_s", "told"), [(1, 60.0, True), (3, 60.0, False), (1, None, False)])
def test_what_a_short_budget_measured_once_is_provisional(decided, processes, budget_s, told):
    """Who asks for one process has it; a budget that allowed no more is said beside the decision."""
    _, _, advice = decided({"fp32": (1.5e-3, 0), "int8-static": (1e-3, 2)}, processes=processes, time_budget_s=budget_s)

    assert (
        any("Provisional: the time budget left room for 1 of at least 3 processes" in one for one in advice.sentences)
        == told
    )


def test_a_case_that_fails_a_constraint_is_never_recommended(decided):
    """Also when it is the only one left."""
    _, _, advice = decided({"fp32": (1e-3, 0)}, constraints={"slo_p99_s": 1e-6})

    assert advice.case is None
    assert "No case" in advice.headline


@settings(max_examples=15)
@given(
    truth=st.dictionaries(
        st.sampled_from(["graph", "fp16", "int8-dynamic", "int8-static", "prune"]),
        st.tuples(st.floats(1e-4, 1e-2), st.sampled_from([0, 1, 5, 30, 900])), max_size=4,
    ),
    max_drop=st.sampled_from([None, 0.0, 0.002, 0.01, 0.3]), slo=st.sampled_from([None, 1e-3, 2e-3, 1.0]),
    processes=st.sampled_from([1, 3]),
)  # fmt: skip
def test_only_a_case_that_passes_everything_is_recommended(truth, max_drop, slo, processes):
    """Whatever was measured: PASS and nothing else; everybody else has a reason; and nobody is in two lists."""
    from tests.conftest import MadeRun

    run = MadeRun(processes=processes, rounds=3, samples=20)
    for variant, (latency, flips) in {"fp32": (1e-3, 0), **truth}.items():
        case = run.case(variant)
        run.timed(case, latency).answered(case, worse(flips), agreement=agreeing(flips))
    analysis = analyse(run.data(constraints={"max_drop": max_drop, "slo_p99_s": slo}), today=TODAY)
    frontier = view(analysis)
    advice = recommend(analysis, frontier)
    listed = [
        *frontier.members,
        *frontier.tied,
        *(c for c, _ in frontier.dominated),
        *(c for c, _ in frontier.behind),
        *(c for c, _ in frontier.unplaced),
    ]

    assert sorted(case.key for case in listed) == sorted(case.key for case in analysis.measured)
    if advice.case is not None:
        assert advice.case.verdict == "PASS"
        assert advice.case.key not in {case.key for case, _ in advice.ruled_out}
    else:
        assert len(advice.ruled_out) == len(analysis.measured)
    assert all(reason for _, reason in advice.ruled_out)


def test_dominated_cases_name_one_that_is_better(decided):
    """Slower and worse, surely."""
    _, frontier, _ = decided({"fp32": (1e-3, 0), "bad": (3e-3, 300)})

    assert [(case.case.variant, better) for case, better in frontier.dominated] == [("bad", "fp32@ort/b1/t1")]


def test_cases_that_cannot_be_told_apart_are_tied_and_not_dominated(decided):
    """Equal latency and one flipped answer."""
    _, frontier, _ = decided({"fp32": (1e-3, 0), "graph": (1e-3, 0), "other": (1.0005e-3, 1)})

    assert not frontier.dominated
    assert len(frontier.members) + len(frontier.tied) == 3


@pytest.mark.parametrize(
    ("seconds", "flips", "outdone"), [(0.998e-3, 90, True), (0.9e-3, 90, False), (0.998e-3, 1, False)]
)
def test_a_thousandth_of_the_time_is_no_trade_for_points_of_accuracy(decided, seconds, flips, outdone):
    """Equal within 2 % and surely worse. With a tenth it is a trade-off, and with one flipped answer nothing is sure."""
    _, frontier, _ = decided({"fp32": (1e-3, 0), "int8-dynamic": (seconds, flips)}, processes=30)

    dominated = [(case.case.variant, by) for case, by in frontier.dominated]
    assert dominated == ([("int8-dynamic", "fp32@ort/b1/t1")] if outdone else [])


def test_a_trade_off_is_on_the_frontier(decided):
    """Faster and worse, slower and better: both are members, best x first."""
    _, frontier, _ = decided({"fp32": (2e-3, 0), "int8": (1e-3, 300)})

    assert [case.case.variant for case in frontier.members] == ["int8", "fp32"]


def test_what_a_search_had_no_time_for_stands_beside_its_decision(made_run):
    """Before the numbers: the winner of a few is not the winner of all."""
    run = made_run()
    for variant, seconds in (("fp32", 2e-3), ("int8", 1e-3)):
        run.timed(run.case(variant), seconds).answered(run.case(variant), worse(0), agreement=agreeing(0))
    stages = ["make", "screen", "race", "finish", "finish"]
    decisions = [{"subject": f"{n}", "stage": stage, "outcome": "not tried"} for n, stage in enumerate(stages)]
    data = run.data(time_budget_s=60.0)
    analysis = analyse(replace(data, plan={**data.plan, "search": {"decisions": decisions}}), today=TODAY)
    told = recommend(analysis, view(analysis)).sentences
    assert any(
        "3 candidates were not tried and 2 candidates were raced but not measured to the end for lack of time"
        in sentence
        for sentence in told[:2]
    )


def test_a_case_is_found_by_its_name_in_a_table(decided):
    """Which says `@local` where there are other machines."""
    analysis, _, _ = decided({"fp32": (2e-3, 0), "int8": (1e-3, 0)})
    assert analysis.case("int8@ort/b1/t1@local").key == "int8@ort/b1/t1"


@pytest.mark.parametrize(("flips", "told"), [(38, True), (500, False)])
def test_a_faster_case_that_is_undecided_is_told_beside_a_variant(decided, flips, told):
    """Or a recommendation that the frontier calls dominated would seem a mistake; what surely fails is no news."""
    truth = {"fp32": (2e-3, 0), "int8": (1.5e-3, 0), "risky": (1e-3, flips)}
    _, _, advice = decided(truth, constraints={"max_drop": 0.02})
    assert advice.case.case.variant == "int8"
    assert (
        any("risky@ort/b1/t1 is 2.00× faster, but accuracy drop INCONCLUSIVE" in text for text in advice.sentences)
        == told
    )


def test_the_bound_that_is_told_is_the_one_that_decided(decided):
    """The interval is two-sided, the test of a limit is not: its own bound, or the sentence would contradict the verdict."""
    _, _, advice = decided({"fp32": (2e-3, 0), "int8": (1e-3, 8)}, constraints={"max_drop": 0.02})
    told = " ".join(advice.sentences)
    assert "Loses at most 0.71 points (one-sided 95 %), limit 2.00 points." in told
    assert "more wrong answers" not in told


@pytest.mark.parametrize(("flips", "members"), [(1, ["int8"]), (300, ["int8", "fp32"])])
def test_what_is_slower_needs_a_shown_advantage_to_be_on_the_frontier(decided, flips, members):
    """One answer of a thousand more is better by point estimates only: whether that is worth twice the time is not known."""
    _, frontier, _ = decided({"fp32": (2e-3, 0), "int8": (1e-3, flips)})

    assert [case.case.variant for case in frontier.members] == members
    assert [case.case.variant for case in frontier.tied] == ([] if "fp32" in members else ["fp32"])
    assert not frontier.dominated


def test_a_frontier_is_never_empty(decided):
    """Whoever is surely ahead of all that beat it somewhere stays: a chain of shown advantages ends."""
    _, frontier, _ = decided({"a": (1e-3, 200), "fp32": (1.5e-3, 0), "b": (1.2e-3, 199), "c": (2e-3, 1)})

    assert frontier.members
    assert {case.case.variant for case in frontier.members} <= {"a", "fp32"}


@pytest.mark.parametrize("x", [axis for axis in AXES if axis not in {"accuracy", "agreement"}])
def test_every_axis_can_be_asked_for(decided, x):
    """Cases without that figure are listed with the reason."""
    analysis, _, _ = decided({"fp32": (2e-3, 0), "int8": (1e-3, 2)})
    frontier = view(analysis, x, "accuracy")

    assert sum(map(len, placed(frontier))) == 2
    assert all(reason for _, reason in frontier.unplaced)


@pytest.mark.parametrize(
    ("x", "y", "words"),
    [
        ("latency", "accuracy", "Did you mean latency_p"),
        ("size", "acuracy", "Did you mean accuracy"),
        ("size", "size", "two different"),
    ],
)
def test_impossible_axes_are_refused(decided, x, y, words):
    """With the near match."""
    analysis, _, _ = decided({"fp32": (1e-3, 0)})

    with pytest.raises(StudyError, match=words):
        view(analysis, x, y)


def test_without_labels_a_case_that_changes_answers_is_not_recommended(decided):
    """Agreement stands in, and the reason says that labels are missing."""
    _, frontier, advice = decided({"fp32": (2e-3, 0), "int8": (1e-3, 200)}, labels=False)

    assert frontier.y == "agreement"
    assert advice.case.case.variant == "fp32"
    assert "labels would tell whether they got worse" in advice.ruled_out[0][1]


def test_without_labels_a_case_that_agrees_is_recommended_with_its_caveat(decided):
    """That accuracy was not measured is said."""
    _, _, advice = decided({"fp32": (2e-3, 0), "int8": (1e-3, 0)}, labels=False)

    assert advice.case.case.variant == "int8"
    assert any("Accuracy not measured" in sentence for sentence in advice.sentences)


def test_the_reference_itself_can_be_the_answer(decided):
    """Nothing is faster."""
    _, _, advice = decided({"fp32": (1e-3, 0), "int8": (3e-3, 0)})

    assert advice.case.case.variant == "fp32"
    assert any("reference itself" in sentence for sentence in advice.sentences)


def test_a_single_process_never_claims_to_be_faster(decided):
    """Its ratio has no interval: without a reason to leave it, the reference stays."""
    _, _, advice = decided({"fp32": (2e-3, 0), "int8": (1e-3, 0)}, processes=1)

    assert advice.case.case.variant == "fp32"
    assert "int8@ort/b1/t1 looks 2." in advice.sentences[0]
    assert "which is not shown: more processes (--thorough) may show it" in advice.sentences[0]


def test_a_run_in_which_nothing_was_measured_recommends_nothing(made_run):
    """And points to the failures."""
    run = made_run()
    run.failed(run.case("fp32").key)
    analysis = analyse(run.data(), today=TODAY)
    advice = recommend(analysis, view(analysis))

    assert (advice.case, advice.headline) == (None, "Nothing was measured: see the failures.")


def test_sentences_hold_no_none_and_no_nan(decided):
    """Whatever is missing is said in words."""
    for processes in (1, 3):
        _, _, advice = decided({"fp32": (2e-3, 0), "int8": (1e-3, 3)}, processes=processes)
        text = " ".join((advice.headline, *advice.sentences, *(reason for _, reason in advice.ruled_out)))

        assert not {"None", "nan", "inf"} & set(text.replace("(", " ").replace(",", " ").split())


def test_a_case_shown_to_be_faster_goes_before_one_that_only_looks_so(decided):
    """The best point estimate is not the best supported one; noise must not choose."""
    analysis, shown, _ = decided({"fp32": (2e-3, 0), "int8": (1e-3, 0), "fp16": (0.9e-3, 0)})
    cases = [replace(case, time_ratio=replace(case.time_ratio, high=1.2), time_ratio_verdict="inconclusive")
             if case.case.variant == "fp16" else case for case in analysis.cases]  # fmt: skip

    advice = recommend(replace(analysis, cases=tuple(cases)), shown)

    assert advice.case.case.variant == "int8"


def test_one_that_only_looks_faster_is_named_and_the_reference_stays(decided):
    """Its own interval leaves out 1, which among so many comparisons can be chance: "not decided" is no reason to leave."""
    analysis, shown, _ = decided({"fp32": (2e-3, 0), "int8": (1.8e-3, 0)})
    cases = tuple(
        case if case.is_reference else replace(case, time_ratio_verdict="inconclusive") for case in analysis.cases
    )

    advice = recommend(replace(analysis, cases=cases), shown)

    assert advice.case.is_reference
    assert "int8@ort/b1/t1 looks 1.1" in advice.sentences[0]
    assert "which is not shown" in advice.sentences[0]


@pytest.mark.parametrize(("ratio", "p50"), [(0.99, 1.9e-3), (0.8, 2.1e-3)])
def test_nothing_looks_faster_within_two_per_cent_or_against_its_own_latency(decided, ratio, p50):
    """ "Looks 1.01× faster" is no news, and beside a higher p50 it is a contradiction."""
    analysis, shown, _ = decided({"fp32": (2e-3, 0), "int8": (2e-3, 0)})
    cases = tuple(
        case if case.is_reference else replace(
            case, time_ratio=replace(case.time_ratio, value=ratio, low=0.5, high=2.0), time_ratio_verdict="inconclusive",
            latency_p50_s=replace(case.latency_p50_s, value=p50),
        )
        for case in analysis.cases
    )  # fmt: skip

    told = " ".join(recommend(replace(analysis, cases=cases), shown).sentences)

    assert "is shown to be faster" in told
    assert "looks" not in told


def test_slower_is_said_as_surely_as_the_table_says_it(decided):
    """Out because its interval lies above 1: shown where the verdict is, else only so by its looks."""
    analysis, shown, advice = decided({"fp32": (2e-3, 0), "int8": (2.2e-3, 0)})
    assert [why for case, why in advice.ruled_out if not case.is_reference] == [
        "it is shown to be slower than the reference"
    ]
    cases = tuple(
        case if case.is_reference else replace(case, time_ratio_verdict="inconclusive") for case in analysis.cases
    )

    advice = recommend(replace(analysis, cases=cases), shown)

    assert [why for case, why in advice.ruled_out] == ["it looks slower than the reference"]


def test_at_most_three_undecided_cases_are_named(decided):
    """A search ends with a dozen; the table has them all."""
    analysis, shown, advice = decided({"fp32": (2e-3, 0), **{f"v{number}": (1e-3, 0) for number in range(6)}})
    others = tuple(case for case in analysis.cases if case.key != advice.case.key and not case.is_reference)
    found = replace(
        shown, members=(advice.case,), tied=others, equal=(), why={case.key: "it is open" for case in others}
    )

    told = " ".join(recommend(analysis, found).sentences)

    assert told.count("it is open") == 3
    assert "; and 2 more." in told


def test_rounding_is_no_better_accuracy(made_run):
    """One file on two runtimes: the slower one's error is smaller in every row, in the seventh digit."""
    run = made_run()
    reference, other = run.case("fp32"), run.case("graph")
    run.timed(reference, 1e-3).timed(other, 1.3e-3)
    rows = np.random.default_rng(0).chisquare(1, 300)
    run.answered(reference, rows, metric="rmse", agreement=np.ones(300))
    run.answered(other, rows * (1 - 2e-5), metric="rmse", agreement=np.ones(300))
    analysis = analyse(run.data(), today=TODAY)

    found = view(analysis)

    assert [case.key for case in found.members] == [reference.key]
    assert "better" not in " ".join(found.why.values())


def placed(found):
    """Keys by list; what is behind on one axis stands with the undecided."""
    return (
        {case.key for case in found.members}, {case.key for case in (*found.tied, *(case for case, _ in found.behind))},
        {case.key for case, _ in found.dominated},
        {case.key: why for case, why in found.unplaced},
    )  # fmt: skip


def test_each_machine_has_a_frontier_of_its_own():
    """The slow board's best case is worth as much there as the fast machine's here; emulators and envelopes change neither."""
    from tests.machines import TRUTH, fleet

    analysis = analyse(fleet(TRUTH), today=TODAY)
    members, _, dominated, unplaced = placed(view(analysis))

    assert {"int8-static@ort/b1/t1", "int8-static@ort/b1/t1@pi"} <= members
    assert not dominated
    assert {key.rpartition("@")[2] for key in unplaced} == {"board"}
    assert all("emulator" in why for why in unplaced.values())


def test_emulated_timings_are_on_no_frontier_whatever_the_axes():
    """However fast they look."""
    from tests.machines import TRUTH, fleet

    analysis = analyse(fleet(TRUTH), today=TODAY)
    for x in (axis for axis in AXES if axis not in {"accuracy", "agreement"}):
        for pool in (None, False, True):
            found = view(analysis, x, "accuracy", pool=pool)
            members, tied, dominated, unplaced = placed(found)

            assert not any(key.endswith("@board") for key in members | tied | dominated)
            assert len(members) + len(tied) + len(dominated) + len(unplaced) == len(analysis.measured)
            if found.pooled:
                assert all(case.machine.real for case in (*found.members, *found.tied))


def test_pooled_the_fast_machine_dominates_and_money_is_pooled_by_itself():
    """Absolute latencies of the same request; USD of each machine."""
    from tests.machines import TRUTH, fleet

    analysis = analyse(fleet(TRUTH), today=TODAY)
    fast = view(analysis, pool=True)
    money = view(analysis, "usd_per_million")

    assert fast.pooled
    assert money.pooled
    assert not view(analysis).pooled
    assert {case.case.target for case in fast.members} == {"local"}
    assert money.members[0].key == "int8-static@ort/b1/t1@pi"
    assert all(case.machine.priced_as for case in money.members)


def test_blocks_of_two_machines_are_never_paired():
    """Same place, same weather, 5 % apart: paired they would be told apart, side by side their intervals overlap."""
    from profiler.latency import judged_ratio
    from tests.machines import fleet

    analysis = analyse(fleet({("fp32", "local"): (1e-3, 0), ("fp32", "pi"): (1.05e-3, 1)}), today=TODAY)
    here, there = analysis.cases
    paired = judged_ratio(analysis.judged[here.key], analysis.judged[there.key])
    assert paired.high < 1

    members, tied, dominated, _ = placed(view(analysis, pool=True))
    assert (members, tied, dominated) == ({here.key, there.key}, set(), set())
    assert view(analysis, pool=True).equal == ((here.key, there.key),)


def test_an_emulator_alone_gives_nothing_to_ship():
    from tests.machines import TRUTH, fleet

    analysis = analyse(fleet({key: value for key, value in TRUTH.items() if key[1] == "board"}), today=TODAY)
    advice = recommend(analysis, view(analysis))

    assert advice.case is None
    assert advice.headline.startswith("Nothing to ship from here")
    assert len(advice.ruled_out) == 2


def test_an_envelope_alone_is_told_as_one():
    from tests.machines import ENVELOPE, TRUTH, fleet

    analysis = analyse(fleet({key: value for key, value in TRUTH.items() if key[1] == ENVELOPE}), today=TODAY)
    advice = recommend(analysis, view(analysis))

    assert advice.case.key == f"int8-static@ort/b1/t1@{ENVELOPE}"
    assert advice.headline.startswith(f"Inside the envelope {ENVELOPE}, int8-static on ort")
    assert "not that device's" in advice.headline


def test_several_envelopes_are_no_offers():
    from tests.machines import fleet

    truth = {("fp32", "local{cpus=1}"): (1e-3, 0), ("fp32", "local{cpus=2}"): (2e-3, 0)}
    analysis = analyse(fleet(truth), today=TODAY)
    advice = recommend(analysis, view(analysis))

    assert advice.case is None
    assert [text.partition(":")[0] for text in advice.sentences] == ["On local{cpus=1}", "On local{cpus=2}"]


def test_an_envelope_and_an_emulator_are_never_taken_before_a_device():
    """Both look faster; both are ruled out with the reason."""
    from tests.machines import TRUTH, fleet

    analysis = analyse(fleet(TRUTH), today=TODAY)
    advice = recommend(analysis, view(analysis))
    out = {case.case.target for case, _ in advice.ruled_out}

    assert advice.case.machine.real
    assert {"board", "local{cpus=1,memory=512MB}"} <= out
    assert [item.group for item in advice.places] == ["local", "pi"]


def test_power_modes_of_one_device_are_one_machine():
    """They share a frontier, each is compared with the unmodified model in its own mode, and the case names the mode."""
    from tests.machines import fleet

    truth = {
        ("fp32", "pi{power=15W}"): (4e-3, 0), ("int8", "pi{power=15W}"): (2e-3, 2),
        ("fp32", "pi{power=30W}"): (3e-3, 0), ("int8", "pi{power=30W}"): (1e-3, 2),
    }  # fmt: skip
    analysis = analyse(fleet(truth), today=TODAY)
    advice = recommend(analysis, view(analysis))

    assert advice.places == ()
    assert advice.headline == "Ship int8 on ort, batch 1, on pi{power=30W}."
    assert advice.sentences[0].startswith("3.0")
    assert "power mode 30W" in advice.case.usd_per_million.note
    assert "int8@ort/b1/t1@pi{power=15W}" in {case.key for case, _ in view(analysis).dominated}


def test_the_fastest_mode_of_the_unmodified_model_is_the_reference_itself():
    from tests.machines import fleet

    truth = {("fp32", "pi{power=15W}"): (4e-3, 0), ("fp32", "pi{power=30W}"): (3e-3, 0)}
    analysis = analyse(fleet(truth), today=TODAY)
    advice = recommend(analysis, view(analysis))

    assert advice.case.case.target == "pi{power=30W}"
    assert advice.sentences[0].startswith("It is the reference itself")
