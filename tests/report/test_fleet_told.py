"""How a run on several machines is told: which machine a figure is of, what an emulator's and an envelope's are, what to take."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from datetime import date
from typing import Any

import pytest
from rich.console import Console

from profiler.analysis import Analysis, analyse
from profiler.decide import recommend, view
from profiler.records import Estimate, NotMeasured
from profiler.report import export, figures, load, table, words
from profiler.report.words import Story
from tests.machines import ENVELOPE, TRUTH, fleet
from tests.report.conftest import analysed, page_of


@pytest.fixture
def run() -> Analysis:
    """A cloud machine, a board, an emulator and an envelope."""
    return analysed("fleet")


def _flat(text: str) -> str:
    return " ".join(text.split())


def _written(draw: Callable[[Console], None], width: int = 130) -> str:
    stream = io.StringIO()
    draw(Console(file=stream, width=width))
    return _flat(stream.getvalue())


def test_the_terminal_tells_where_to_deploy_before_anything_else(run: Analysis) -> None:
    """The decision, then each machine's best case with latency, price and year, then the frontiers."""
    told = table.text(run, width=160)
    advice = recommend(run, view(run))
    assert told.splitlines()[0] == f"▸ {advice.headline}"
    places = told.index("What to deploy where, at what cost:")
    assert places < told.index("\non local:") < told.index("\non pi:") < told.index("machine local:")
    for item in advice.places:
        assert item.case is not None
        assert str(words.usd(item.case.usd_per_million).value) in told
        assert str(words.usd(item.usd_per_year).value) in told
    assert "unpaired" in told


@pytest.mark.parametrize("width", [50, 80, 110, 160])
def test_narrow_terminals_tell_the_same_of_each_place(run: Analysis, width: int) -> None:
    """Numbers, intervals and verdicts of the best cases."""
    told = _flat(table.text(run, width=width))
    for item in recommend(run, view(run)).places:
        cells = words.place_cells(Story.of(run), item)
        for title in ("p50", "$/1M", "a year of one", "verdict"):
            assert cells[title].value in told
            assert cells[title].interval in told


def test_each_machine_has_a_line_and_a_grade(run: Analysis) -> None:
    """Its own processor; what an emulator and an envelope are; no grade for what no grade can be claimed of."""
    told = _flat(table.text(run))
    for part in (
        "machine local: 2 cores · Xeon", "machine pi: 4 cores · Cortex-A76", "priced as device:raspberry-pi-5-8gb",
        "machine board: emulated:", f"machine {ENVELOPE}: envelope: 1 cpu, 512 MB on this machine",
        "pi: no grade: no self-test ran on pi",
    ):  # fmt: skip
        assert part in told
    assert "board: no grade" not in told


def test_one_machine_other_than_this_is_named() -> None:
    """The header is the board's, not the host's that ran edgeprof."""
    board = {key: value for key, value in TRUTH.items() if key[1] == "pi"}
    told = _flat(table.text(analyse(fleet(board), today=date(2026, 1, 2))))
    assert "machine pi: 4 cores · Cortex-A76" in told
    assert "Xeon" not in told
    assert "Ship int8-static on ort, batch 1, on pi." in told


@pytest.mark.parametrize("renderer", ["text", "cases", "details", "page"])
def test_every_emulated_timing_has_the_word_beside_it(run: Analysis, renderer: str) -> None:
    """Wherever a latency of the emulator stands."""
    case = run.case("int8-static@ort/b1/t1@board")
    told = {
        "text": lambda: _flat(table.text(run, width=200)),
        "cases": lambda: _written(lambda console: table.cases_table(run, console), 250),
        "details": lambda: _written(lambda console: table.case_details(run, case, console)),
        "page": lambda: page_of("fleet").split("<script", maxsplit=1)[0],
    }[renderer]()
    unit = words.time_unit(run.measured) if renderer != "details" else None
    assert isinstance(case.latency_p50_s, Estimate)
    bare = words.seconds(Estimate(case.latency_p50_s.value, None, None, "s"), unit).value
    labelled = words.seconds(case.latency_p50_s, unit).value
    assert labelled == f"{bare} (emulated)"
    assert told.count(bare) == told.count(labelled) > 0


def test_no_picture_shows_what_an_emulator_timed(run: Analysis) -> None:
    """Nor an envelope among devices on a frontier; captions count what is left out."""
    drawn = {picture.name: picture for picture in figures.page_figures(Story.of(run))}
    for picture in drawn.values():
        assert "@board" not in json.dumps(picture.spec)
    for name in ("cost", "frontier"):
        assert ENVELOPE not in json.dumps(drawn[name].spec)
    assert "Not drawn: 4 cases" in drawn["frontier"].caption
    assert "Not drawn: 2 emulated cases" in drawn["latency"].caption
    assert "(envelope)" in json.dumps(drawn["latency"].spec)


def test_edge_and_cloud_stand_on_one_axis_of_money(run: Analysis) -> None:
    """Every priced case of both machines; a run on one machine has no such picture."""
    (cost,) = [picture for picture in figures.page_figures(Story.of(run)) if picture.name == "cost"]
    text = json.dumps(cost.spec)
    assert "@pi" in text
    assert "@local" in text
    assert "cost" not in {picture.name for picture in figures.page_figures(Story.of(analysed("full")))}


def test_a_frontier_is_joined_inside_a_machine_only() -> None:
    """One dashed line for each machine that has more than one member, each through its own points."""
    worse = {(variant, target): (seconds, 100 * flips) for (variant, target), (seconds, flips) in TRUTH.items()}
    figure = figures.frontier_figure(Story.of(analyse(fleet(worse), today=date(2026, 1, 2))))
    assert figure is not None
    lines = [layer for layer in figure.spec["layer"] if layer["mark"].get("interpolate") == "step-after"]
    ends = sorted(sorted(point["x"] for point in layer["data"]["values"]) for layer in lines)
    assert [len(points) for points in ends] == [2, 2]
    assert ends[0][1] < ends[1][0]


def test_programs_read_the_machine_of_every_case(run: Analysis) -> None:
    """Emulated, envelope and price by case; environment, grade and reference by machine; the places."""
    content: dict[str, Any] = json.loads(export.to_json(run))
    cases = {case["case"]: case for case in content["cases"]}
    machines = {item["target"]: item for item in content["machines"]}
    board = cases["int8-static@ort/b1/t1@board"]
    assert (board["emulated"], board["priced_as"], board["figures"]["latency_p50"]["source"]) == (
        True,
        None,
        "emulated",
    )
    assert cases[f"fp32@ort/b1/t1@{ENVELOPE}"]["envelope"].startswith("envelope: 1 cpu, 512 MB")
    assert machines["pi"]["environment"]["cpu_model"] == "Cortex-A76"
    assert (machines["pi"]["device"], machines["pi"]["reference"]) == ("pi", "fp32@ort/b1/t1@pi")
    assert machines["pi"]["grade"]["letter"] == "D"
    assert content["run"]["environment"]["cpu_model"] == "Xeon"
    assert [item["target"] for item in content["recommendation"]["by_machine"]] == ["local", "pi"]
    assert content["frontier"]["pooled"] is False
    rows = {row["case"]: row for row in csv.DictReader(io.StringIO(export.to_csv(run)))}
    assert rows["int8-static@ort/b1/t1@board"]["emulated"] == "true"
    assert "latency_p50: emulated" in rows["int8-static@ort/b1/t1@board"]["not_from_here"]
    assert rows["fp32@ort/b1/t1@pi"]["priced_as"] == "device:raspberry-pi-5-8gb"
    assert (rows["fp32@ort/b1/t1"]["emulated"], rows["fp32@ort/b1/t1"]["envelope"]) == ("false", "")


def test_pooled_and_single_frontiers_say_which_they_are(run: Analysis) -> None:
    """`edgeprof frontier` with and without --pool."""
    single = _written(lambda console: table.frontier_table(run, view(run), console))
    pooled = _written(lambda console: table.frontier_table(run, view(run, pool=True), console))
    assert "A frontier for each machine" in single
    assert "on pi:" in single
    assert "All machines together" in pooled
    assert "on pi:" not in pooled
    for told in (single, pooled, _written(lambda console: table.cases_table(run, console))):
        assert "machine pi: 4 cores · Cortex-A76" in told


def test_a_raced_case_is_told_as_one(made_run: Any) -> None:
    """`edgeprof show` of a case that a search never measured to the end."""
    from dataclasses import replace

    run = made_run(processes=3)
    final, raced = run.case("fp32"), run.case("graph")
    run.timed(final, 1e-3).timed(raced, 1e-3)
    run.blocks = [replace(block, labels={"race": 1.0}) if block.case == raced.key else block for block in run.blocks]
    analysis = analyse(run.data(), today=date(2026, 1, 2))
    one, other = (
        _written(lambda console, key=case.key: table.case_details(analysis, analysis.case(key), console))
        for case in (final, raced)
    )
    assert "figures of the search's race" in other
    assert "raced only: 18 short blocks of the search, not the final measurement" in other
    assert "race" not in one
    assert "raced" not in one


def test_question_marks_have_each_their_own_reason(analysis_of: Callable[[str], Analysis]) -> None:
    """Too few samples for a percentile and too few processes for a ratio are two things."""
    told = words.unbounded(analysis_of("one round").measured)
    assert told is not None
    assert "of p50, p99 because one round of 197 samples" in told
    assert "of vs reference because one process pair" in told
    assert words.unbounded(()) is None


def test_a_narrow_rate_from_few_runs_says_how_few() -> None:
    """8 of 10 load runs left out: the interval is that of two."""
    from profiler.load.figures import MaxRate
    from profiler.stats.slo import RateEstimate, RunSummary

    def summary(*, valid: bool) -> RunSummary:
        names = dict.fromkeys(RunSummary.__dataclass_fields__, 0)
        return RunSummary(**{**names, "valid": valid, "reason": None if valid else "the generator was late"})  # type: ignore[arg-type]

    def rate(invalid: int) -> MaxRate:
        runs = tuple(summary(valid=index >= invalid) for index in range(10))
        estimate = RateEstimate(1000.0, 995.0, 1005.0, 0.99, 5e-3, True, None, runs, True, None)
        return MaxRate("fp32@ort/b1/t1", "server{workers=1}", 5e-3, 0.99, NotMeasured("-"), estimate, None)

    base = load.read_result(fleet({("fp32", "local"): (1e-3, 0)}))

    def told(invalid: int) -> str:
        result = load.LoadResult(base.run, (), (rate(invalid),), ("said",))
        return _written(lambda console: load.render(result, console), 200)

    few, most = told(8), told(1)
    assert "2 of 10" in few
    assert "FEW" in few
    assert "8 of 10 runs left out: the interval holds only for the runs that are left" in few
    assert "9 of 10" in most
    assert "FEW" not in most
    assert "however narrow" not in most


def test_the_share_of_the_limit_is_told_with_its_interval_or_reason(run: Analysis) -> None:
    """As counted elsewhere: `edgeprof show` passes it in."""
    case = run.case("fp32@ort/b1/t1@pi")
    share = Estimate(0.125, 0.1, 0.15, "proportion", 0.95, "published", "floor 1 ms")
    told = _written(lambda console: table.case_details(run, case, console, limit=share))
    assert "share of the device's limit 12.50 % (published) [10.00, 15.00] (floor 1 ms)" in told
    absent = _written(lambda console: table.case_details(run, case, console, limit=NotMeasured("no peak is known")))
    assert "share of the device's limit not measured: no peak is known" in absent
    assert "share of the device's limit" not in _written(lambda console: table.case_details(run, case, console))
    assert json.loads(export.case_json(run, case, limit=share))["limit_share"]["low"] == 0.1
    assert "limit_share" not in json.loads(export.case_json(run, case))
