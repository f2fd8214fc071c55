"""What may be recommended: never what nobody looked at, never the luckiest of many."""

from __future__ import annotations

from dataclasses import replace
from datetime import date

import numpy as np
import pytest

from profiler.analysis import analyse
from profiler.decide import recommend, view
from profiler.eligibility import MOST_FINALISTS, choice
from profiler.records import SCREENING, QualityRecord, RuntimeRecord
from profiler.search import shared
from tests.conftest import MadeRun

TODAY = date(2026, 1, 2)
ROWS = 600


def rows(seed: int, drop: float, psi: float = 0.05, n: int = ROWS) -> np.ndarray:
    """Answers of a variant of that true drop beside a reference that is right in 90 %."""
    rng = np.random.default_rng(seed)
    right = np.arange(n) % 10 > 0
    draw = rng.random(n)
    return np.where(right, draw >= (psi + drop) / 1.8, draw < (psi - drop) / 0.2).astype(float)


RIGHT = (np.arange(ROWS) % 10 > 0).astype(float)


def made(count: int, drop: float, seed: int = 0, **settings):
    """`count` variants twice as fast as the reference, all of that true drop."""
    run = MadeRun(processes=3, rounds=2, samples=12)
    run.timed(run.case("fp32"), 2e-3).answered(run.case("fp32"), RIGHT)
    for index in range(count):
        case = run.case(f"v{index}")
        answers = rows(1000 * seed + index, drop)
        run.timed(case, 1e-3 * (1 + index / 100)).answered(case, answers, agreement=answers == RIGHT)
    return run.data(**settings)


def test_the_luckiest_of_twenty_is_not_recommended():
    """All lose 1.2 points of an accepted 1: one passes alone, nothing is shipped for it, and the reason is told."""
    for seed in range(12):
        analysis = analyse(made(20, 0.012, seed, constraints={"max_drop": 0.01}), today=TODAY)
        lucky = [case for case in analysis.measured if case.verdict == "PASS" and not case.is_reference]
        if lucky:
            break
    advice = recommend(analysis, view(analysis))
    out = {case.key: why for case, why in advice.ruled_out}

    assert advice.case.is_reference
    assert "it keeps the limit alone, and may lose up to " in out[lucky[0].key]
    assert "when all 20 compared are allowed for, limit 1.00 points" in out[lucky[0].key]
    assert any("but it keeps the limit alone" in sentence for sentence in advice.sentences)


def test_what_passes_among_many_says_so():
    """No loss, 4,000 rows: alone and among three."""
    run = MadeRun(processes=3, rounds=2, samples=12)
    right = (np.arange(4000) % 10 > 0).astype(float)
    run.timed(run.case("fp32"), 2e-3).answered(run.case("fp32"), right)
    for index in range(3):
        answers = right.copy()
        answers[index] = 1 - answers[index]
        run.timed(run.case(f"v{index}"), 1e-3).answered(run.case(f"v{index}"), answers, agreement=answers == right)
    analysis = analyse(run.data(constraints={"max_drop": 0.01}), today=TODAY)
    advice = recommend(analysis, view(analysis))

    assert not advice.case.is_reference
    assert any("This variant alone; at most " in sentence and "lost allowing for the 3 compared" in sentence
               for sentence in advice.sentences)  # fmt: skip


def test_who_cannot_be_chosen_costs_the_others_nothing():
    """Shown to be slower than the reference: not in the family, so the one that is faster is held against the limit alone."""
    run = MadeRun(processes=5, rounds=3, samples=12)
    run.timed(run.case("fp32"), 2e-3).answered(run.case("fp32"), RIGHT)
    for index in range(11):
        case, answers = run.case(f"v{index}"), rows(index, 0.0)
        run.timed(case, 1e-3 if index == 0 else 4e-3).answered(case, answers, agreement=answers == RIGHT)
    analysis = analyse(run.data(), today=TODAY)

    assert choice(analysis, "latency_p50").count == 1
    assert choice(analysis, "size").count == 11


@pytest.mark.parametrize("drop", [0.03, 0.012])
def test_without_a_limit_one_point_holds(drop):
    """By the same test: a variant that may lose more than a point is not shippable because its estimate looks well."""
    wrong = 0
    for seed in range(12):
        analysis = analyse(made(1, drop, seed), today=TODAY)
        wrong += not recommend(analysis, view(analysis)).case.is_reference
        assert analysis.case("v0").default_check is not None
        assert analysis.case("v0").checks == ()
    assert wrong <= 2


def test_five_rows_recommend_nothing_but_the_reference():
    """Nothing changed in them: a change in nearly half of all rows would not have shown."""
    run = MadeRun(processes=3, rounds=2, samples=12)
    for variant, seconds in (("fp32", 2e-3), ("int8", 1e-3)):
        run.timed(run.case(variant), seconds).answered(run.case(variant), np.ones(5))
    analysis = analyse(run.data(), today=TODAY)
    advice = recommend(analysis, view(analysis))

    assert advice.case.is_reference
    assert "int8@ort/b1/t1 is 2.0" in advice.sentences[0]
    assert "accuracy drop INCONCLUSIVE" in advice.sentences[0]


def test_without_data_the_fastest_is_told_and_not_shipped():
    """A lossy variant whose answers nobody compared: no *Ship*."""
    run = MadeRun(processes=3, rounds=2, samples=12)
    for variant, seconds in (("fp32", 2e-3), ("bf16", 1e-3)):
        run.timed(run.case(variant), seconds)
    analysis = analyse(run.data(), today=TODAY)
    advice = recommend(analysis, view(analysis))

    assert (advice.case, advice.outcome) == (None, "unchecked")
    assert advice.fastest_unchecked.key == "bf16@ort/b1/t1"
    assert advice.headline.startswith("Nothing to ship yet: bf16 on ort, batch 1 is the fastest")
    assert "its answers were not checked" in advice.headline
    assert any("Give --data" in sentence and "fp32 on ort" in sentence for sentence in advice.sentences)
    assert "2.0" in advice.sentences[0]


def test_without_data_the_reference_may_be_shipped_where_nothing_is_faster():
    run = MadeRun(processes=3, rounds=2, samples=12)
    for variant, seconds in (("fp32", 1e-3), ("bf16", 2e-3)):
        run.timed(run.case(variant), seconds)
    analysis = analyse(run.data(), today=TODAY)

    assert recommend(analysis, view(analysis)).headline == "Ship fp32 on ort, batch 1."


def searched(count: int, drops, screening):
    """A search of `count` contenders of these true drops, with this change on the screening rows."""
    run = MadeRun(processes=3, rounds=2, samples=12)
    run.timed(run.case("fp32"), 2e-3).answered(run.case("fp32"), RIGHT)
    for index in range(count):
        case, answers = run.case(f"v{index}"), rows(index, drops[index])
        run.timed(case, 1e-3 * (1 + index / 50)).answered(case, answers, agreement=answers == RIGHT)
    data = run.data()
    base = np.ones(400)
    more = [QualityRecord(f"{SCREENING}{run.case('fp32').quality_key}", "top1", base, None, base, "d" * 64, 0.1)]
    for index in range(count):
        screened = base.copy()
        screened[: int(screening[index] * 400)] = 0
        key = f"{SCREENING}{run.case(f'v{index}').quality_key}"
        more.append(QualityRecord(key, "top1", screened, None, screened, "d" * 64, 0.1))
    return replace(data, plan={**data.plan, "search": {}}, qualities=(*data.qualities, *more))


def test_of_a_search_at_most_four_are_held_against_the_limit():
    """The fastest that the screening rows promise; the others say why not."""
    analysis = analyse(searched(10, [0.0] * 10, [0.05, 0.05, *[0.0] * 8]), today=TODAY)
    found = choice(analysis, "latency_p50")
    finalists = [key for key, item in found.shared.items() if item.finalist]

    assert sorted(finalists) == [f"v{index}@ort/b1/t1" for index in (2, 3, 4, 5)]
    assert found.count == MOST_FINALISTS
    advice = recommend(analysis, view(analysis))
    out = {case.key: why for case, why in advice.ruled_out}
    assert "screening rows" in out["v9@ort/b1/t1"] or "accuracy drop" in out["v9@ort/b1/t1"]


def test_without_screening_rows_all_are_held_together():
    data = searched(10, [0.0] * 10, [0.0] * 10)
    bare = replace(data, qualities=tuple(item for item in data.qualities if not item.case.startswith(SCREENING)))

    assert choice(analyse(bare, today=TODAY), "latency_p50").count == 10


def test_a_search_and_its_readers_know_screening_rows_by_the_same_name():
    assert SCREENING == shared.SCREENING


@pytest.mark.parametrize(("agreeing", "shipped"), [(("ort", "ov"), "fp32@ov/b1/t1"), (("ort",), "fp32@ort/b1/t1")])
def test_the_unmodified_model_on_a_runtime_that_computes_the_same_has_nothing_to_lose(agreeing, shipped):
    """Sixty rows show nothing about a drop of a point; that outputs are equal value by value does."""
    run = MadeRun(processes=3, rounds=2, samples=12)
    right = (np.arange(60) % 10 > 0).astype(float)
    for backend, seconds in (("ort", 2e-3), ("ov", 1e-3)):
        run.timed(run.case("fp32", backend=backend), seconds).answered(run.case("fp32", backend=backend), right)
    record = RuntimeRecord(
        "fp32@any/b1", "fp32", "local", 1, 32, False, ("ort", "ov"), agreeing, tuple({"ort", "ov"} - set(agreeing))
    )
    analysis = analyse(replace(run.data(constraints={"max_drop": 0.01}), runtimes=(record,)), today=TODAY)
    advice = recommend(analysis, view(analysis))

    assert advice.case is not None
    assert advice.case.key == shipped
    if shipped == "fp32@ov/b1/t1":
        assert advice.case.same_model
        assert "computes the same function" in advice.case.checks[0].text
