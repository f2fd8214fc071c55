"""Which machine to take, and what is said about it."""

from __future__ import annotations

from datetime import date

import pytest

from profiler import places
from profiler.analysis import analyse
from profiler.cost.model import DEFAULT_ELECTRICITY, HOURS_PER_YEAR, capital_recovery
from profiler.cost.prices import load_prices
from profiler.decide import recommend, view
from profiler.records import Estimate, NotMeasured
from tests.machines import KNOWN, fleet

TODAY = date(2026, 1, 2)
BOTH = {
    ("fp32", "local"): (1.5e-3, 0), ("int8", "local"): (1e-3, 2), ("fp32", "pi"): (12e-3, 0), ("int8", "pi"): (5e-3, 3),
}  # fmt: skip


def decided(truth=BOTH, **settings):
    analysis = analyse(fleet(truth, **settings), today=TODAY)
    return analysis, recommend(analysis, view(analysis))


def test_the_cheapest_machine_is_taken_and_its_price_in_time_is_told():
    """5 ms on a board of 130 USD against 1 ms on a rented machine: cheaper, slower, both with what is sure."""
    analysis, advice = decided()
    pi, cloud = (analysis.case(f"int8@ort/b1/t1{place}") for place in ("@pi", ""))
    cheaper = cloud.usd_per_million.value / pi.usd_per_million.value
    slower = pi.latency_p50_s.value / cloud.latency_p50_s.value

    assert advice.case.key == pi.key
    assert advice.headline.startswith(f"Ship int8 on ort, batch 1, on pi: {cheaper:.2g}× cheaper than local (at least ")
    assert f"{slower:.2g}× slower (at least" in advice.sentences[0]
    assert "never paired" in " ".join(advice.sentences) or "unpaired" in " ".join(advice.sentences)


def test_a_factor_between_machines_is_no_surer_than_the_ends_of_both_intervals():
    analysis, advice = decided()
    pi, cloud = (analysis.case(f"int8@ort/b1/t1{place}").usd_per_million for place in ("@pi", ""))

    assert f"(at least {cloud.low / pi.high:.2g}×)" in advice.headline


def test_a_year_of_one_machine_does_not_depend_on_how_fast_it_is():
    """The board's is price × recovery × spares, and its design limit of 12 W at 60 % use, which is said to be declared."""
    _, slow = decided()
    _, fast = decided({**BOTH, ("int8", "pi"): (2e-3, 3)})
    one, other = (next(item for item in advice.places if item.group == "pi") for advice in (slow, fast))

    assert one.usd_per_year.value == pytest.approx(other.usd_per_year.value, rel=1e-9)
    from profiler.cost.devices import find_profile

    profile = find_profile("raspberry-pi-5-8gb")
    kwh = load_prices().find(DEFAULT_ELECTRICITY).price
    energy = 0.6 * profile.power.tdp_w / 1000 * HOURS_PER_YEAR * kwh
    owned = profile.price.usd * capital_recovery(0.08, 3.0) * 1.05
    assert one.usd_per_year.value == pytest.approx(owned + energy, rel=1e-9)
    assert any("load power declared: TDP 12 W" in text for text in slow.sentences)
    assert any("energy while idle left out" in text for text in slow.sentences)
    assert other.rate_per_s.value == pytest.approx(0.6 * fast.places[1].case.throughput_per_s.value, rel=1e-9)


def test_the_cloud_is_taken_where_it_is_cheaper():
    _, advice = decided({**BOTH, ("int8", "pi"): (50e-3, 3), ("fp32", "pi"): (60e-3, 0)})

    assert advice.case.case.target == "local"
    assert "Ship int8 on ort, batch 1, on local:" in advice.headline
    assert "cheaper than pi" in advice.headline


def test_machines_that_intervals_do_not_tell_apart_are_said_to_be_tied():
    ratio = decided()[0]
    pi, cloud = (ratio.case(f"int8@ort/b1/t1{place}").usd_per_million.value for place in ("@pi", ""))
    _, advice = decided({**BOTH, ("int8", "pi"): (5e-3 * cloud / pi, 3), ("fp32", "pi"): (40e-3, 0)})

    assert "cheapest by estimate, not told apart from" in advice.headline
    assert "not told apart" in advice.sentences[0] or "slower" in advice.sentences[0]


def test_without_a_price_of_each_the_fastest_is_taken_and_money_is_not_claimed():
    _, advice = decided(detected=None)

    assert advice.case.case.target == "local"
    assert "faster than pi" in advice.headline
    assert any(text.startswith("Which machine is cheapest is not known") for text in advice.sentences)
    assert not any("cheaper" in text for text in (advice.headline, *advice.sentences))


def test_a_machine_without_a_fitting_case_is_told_beside_the_others():
    """Everything on the board loses 10 points."""
    truth = {("fp32", "local"): (1.5e-3, 0), ("int8", "local"): (1e-3, 2), ("int8", "pi"): (5e-3, 200)}
    _, advice = decided(truth, constraints={"max_drop": 0.01})

    assert advice.case.key == "int8@ort/b1/t1"
    assert advice.headline.endswith("the only machine with a case that is shown to do.")
    assert any(text.startswith("On pi: No case meets the constraints") for text in advice.sentences)
    assert [item.case is None for item in advice.places] == [False, True]
    assert isinstance(advice.places[1].usd_per_year, NotMeasured)


def test_within_a_latency_limit_the_cheapest_case_of_each_machine_counts():
    """Nobody pays for being faster than asked: at batch 8 a million costs less, and 20 ms hold."""
    from dataclasses import asdict, replace

    from profiler.study import Case
    from tests.conftest import MadeRun
    from tests.machines import CLOUD, HOST, RIGHT

    run = MadeRun(processes=8, rounds=20, samples=400, weather=0.0)
    for target, scale in (("local", 1.0), ("pi", 4.0)):
        for batch, seconds in ((1, 1e-3), (8, 3e-3)):
            case = Case("fp32", "ort", target, batch, 1)
            run.cases.append(case)
            run.timed(case, seconds * scale).answered(case, RIGHT)
    data = run.data(environment=HOST, targets=("local", "pi"), batches=(1, 8), constraints={"slo_p99_s": 0.02})
    analysis = analyse(replace(data, plan={**data.plan, "targets": dict(KNOWN), "detected": CLOUD}), today=TODAY)
    advice = recommend(analysis, view(analysis))

    assert [asdict(item.case.case)["batch"] for item in advice.places] == [8, 8]
    assert (
        analysis.case("fp32@ort/b1/t1@pi").latency_p50_s.value < analysis.case("fp32@ort/b8/t1@pi").latency_p50_s.value
    )


def test_nothing_is_chosen_from_nothing():
    empty = places.place("pi", [analyse(fleet(BOTH), today=TODAY).machines[1]], None, "nothing", 0.6)

    assert places.choose([empty], "latency_p50") is None
    assert not isinstance(empty.rate_per_s, Estimate)
