"""The decision's sentences never say other than the table: each figure in them is held against its cell, on runs of all kinds."""

from __future__ import annotations

import re
from dataclasses import replace
from datetime import date

import numpy as np
import pytest

from profiler.analysis import DROP_CHECK, Analysis, CaseResult, analyse
from profiler.eligibility import choice
from profiler.latency import judged_ratio
from profiler.records import Estimate
from profiler.report import table, words
from profiler.report.words import Story
from tests.conftest import MadeRun

TODAY = date(2026, 1, 2)
NUMBER = r"(\d[\d,]*(?:\.\d+)?)"


def made(seed: int) -> Analysis:
    """A run from the seed: some variants, quiet or busy, with labels, without or without data, with limits or not."""
    rng = np.random.default_rng(seed)
    run = MadeRun(processes=int(rng.choice([1, 3, 5])), rounds=3, samples=24, seed=seed)
    n = int(rng.choice([30, 400, 3000]))
    right = np.arange(n) % 10 > 0
    asked = rng.choice(["labels", "agreement", "none"], p=[0.6, 0.2, 0.2])
    for index, name in enumerate(("fp32", "graph", "fp16", "int8-static", "int8-dynamic")[: int(rng.integers(2, 6))]):
        case = run.case(name)
        run.timed(case, 1e-3 * float(rng.choice([0.5, 0.7, 0.98, 1.0, 1.3])) if index else 1e-3, noise=0.01)
        answers = right.astype(float)
        flips = int(rng.choice([0, 2, n // 100, n // 10])) if index else 0
        answers[np.flatnonzero(right)[:flips]] = 0
        if asked == "labels":
            run.answered(case, answers, agreement=answers == right)
        elif asked == "agreement":
            same = (answers == right).astype(float)
            run.answered(case, same, metric="agreement", agreement=same)
    if seed % 3 == 0:
        run.blocks = [disturbed(block, rng) for block in run.blocks]
    limits = {"max_drop": 0.01} if seed % 2 and asked != "none" else {}
    limits |= {"slo_p99_s": float(rng.choice([0.9e-3, 5e-3]))} if seed % 5 == 0 else {}
    cost = {"machine": "aws:c7i.large"} if seed % 4 else {}
    return analyse(run.data(constraints=limits, cost=cost), today=TODAY)


def disturbed(block, rng):
    """The processor was away in most samples of most blocks, and they took longer for it."""
    hit = rng.random(len(block.samples_s)) < (0.97 if rng.random() < 0.9 else 0.0)
    times = block.samples_s * np.where(hit, 1 + rng.exponential(1, len(hit)), 1.0)
    busy = np.where(hit, 0.5 * times, times)
    return replace(block, samples_s=times, window_s=times, window_cpu_s=busy, wall_s=float(times.sum()))


@pytest.mark.parametrize("seed", range(36))
def test_what_the_sentences_say_stands_in_the_table(seed):
    analysis = made(seed)
    story = Story.of(analysis)
    advice = story.recommendation
    told = " ".join((advice.headline, *advice.sentences))
    by_key = {case.key: case for case in analysis.measured}
    subject = advice.case or advice.fastest_unchecked

    for key, factor, word in re.findall(rf"(\S+@\S+) (?:looks|is) {NUMBER}× (faster), (?:which is not|but)", told):
        cell = words.versus(by_key[key])
        assert cell.value.startswith(f"{factor}× "), (told, cell)
        assert cell.value.endswith(("faster", "undecided"))
        assert word == "faster"
    if "is shown to be faster" in told and advice.case is not None:
        fitting = choice(analysis, "latency_p50")
        shown = [case for case in analysis.measured if fitting.fits(case) and words.comparison(case) == "faster"]
        assert not shown, told
    if subject is not None:
        _subject(told, subject, story)
    _pairs(story)
    _page(analysis, story)


def _subject(told: str, case: CaseResult, story: Story) -> None:
    """What is said of the case that the decision is about."""
    found = re.search(rf"(?:^|[.] ){NUMBER}× (faster|slower) than [^(]*\(95 %: {NUMBER}–{NUMBER}", told)
    if found is not None:
        cell = words.versus(case)
        assert cell.value == f"{found[1]}× {found[2]}"
        assert cell.interval == f"[{found[3]}, {found[4]}]"
    if "as observed, on a machine that was disturbed" in told:
        assert {item.view for item in story.analysis.measured} == {"observed"}
    for field, name in (("latency_p50_s", "p50"), ("latency_p99_s", "p99")):
        said = re.search(rf"{name} {NUMBER} (µs|ms|s)\b", told)
        figure = getattr(case, field)
        if said is None:
            assert figure.high is None
            assert f"{name} at least " in told
            continue
        assert float(said[1].replace(",", "")) * {"µs": 1e-6, "ms": 1e-3, "s": 1.0}[said[2]] == pytest.approx(
            figure.value, rel=0.006
        )
    money = re.search(rf"\${NUMBER} per million", told)
    assert (money is None) == (not isinstance(case.usd_per_million, Estimate))
    if money is not None:
        assert float(money[1].replace(",", "")) == pytest.approx(case.usd_per_million.value, rel=0.06)
    lost = re.search(r"(?:Loses at most|loses at most) (\S+) points \(one-sided", told)
    if lost is not None and case is story.recommendation.case:
        check = next((item for item in case.checks if item.name == DROP_CHECK), case.default_check)
        assert check.verdict == "PASS"
        assert f"{lost[1]} points" in check.text
    if story.recommendation.case is not None:
        assert case.verdict == "PASS"


def _pairs(story: Story) -> None:
    """What the frontier says of two cases follows from their paired blocks, in the view that the table shows."""
    judged = story.analysis.judged
    by_key = {case.key: case for case in story.analysis.measured}
    for case, by in (*story.view.dominated, *story.view.behind):
        other = by_key[by]
        said = re.match(rf"\S+ is {NUMBER}× (faster|slower)", story.view.why[case.key])
        if said is not None:
            ratio = judged_ratio(judged[other.key], judged[case.key], other.view)
            factor = 1 / ratio.value if said[2] == "faster" else ratio.value
            assert float(said[1].replace(",", "")) == pytest.approx(factor, abs=0.006)
    for group in story.view.equal:
        assert {story.standing(by_key[key]) for key in group} == {"frontier"}


def _page(analysis: Analysis, story: Story) -> None:
    """The terminal's page holds the sentences whole, and one view a column."""
    flat = " ".join(table.text(analysis, width=200).split())
    for sentence in story.recommendation.sentences:
        assert " ".join(sentence.split()) in flat
    if analysis.measured:
        observed = {case.view for case in analysis.measured} == {"observed"}
        if story.view.members:
            assert ("p50 as observed" in flat) == observed
        assert len({case.view for case in analysis.measured}) == 1
