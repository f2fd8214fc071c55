"""What other programs read."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterator
from typing import Any

from profiler.analysis import Analysis
from profiler.decide import view
from profiler.records import Estimate
from profiler.report import export


def _rows(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


def _strict(text: str) -> Any:
    def refuse(name: str) -> Any:
        raise AssertionError(f"{name} is no JSON")

    return json.loads(text, parse_constant=refuse)


def _figures(value: Any) -> Iterator[dict[str, Any]]:
    if isinstance(value, dict):
        if "level" in value and "value" in value:
            yield value
        for item in value.values():
            yield from _figures(item)
    elif isinstance(value, list):
        for item in value:
            yield from _figures(item)


def test_json_is_strict_and_versioned(analysis: Analysis) -> None:
    """No NaN, no Infinity, a format number, every case, and each figure with interval, unit and source."""
    content = _strict(export.to_json(analysis))
    assert content["format"] == 2
    assert [case.key for case in analysis.cases] == [case["case"] for case in content["cases"]]
    for figure in _figures(content):
        assert {"value", "low", "high", "unit", "level", "source", "note"} == set(figure)


def test_json_holds_the_numbers_as_they_are(full: Analysis) -> None:
    """Full precision, SI units, reasons for what was not measured."""
    content = _strict(export.to_json(full))
    for case, told in zip(full.cases, content["cases"], strict=True):
        figure = case.latency_p50_s
        shown = told["figures"]["latency_p50"]
        if isinstance(figure, Estimate):
            assert (figure.value, figure.low, figure.high, "s") == tuple(
                shown[k] for k in ("value", "low", "high", "unit")
            )
        else:
            assert {"not_measured": figure.reason} == shown
        assert told["figures"]["energy"] == {"not_measured": "no energy meter was read in this run"} or not case.blocks
    assert content["variants"][0]["facts"]["calibration_cosine"] is None
    assert [case.key for case in view(full).members] == content["frontier"]["members"]


def test_csv_has_a_row_per_case_and_columns_that_stay(analysis: Analysis) -> None:
    """One row per case of the run, the same header for every run, empty cells with their reason in the last column."""
    text = export.to_csv(analysis)
    rows = _rows(text)
    assert [str(case.number) for case in analysis.cases] == [row["number"] for row in rows]
    header = text.splitlines()[0].split(",")
    for column in ("latency_p50_s", "latency_p50_s_low", "latency_p50_s_high", "peak_rss_bytes", "usd_per_million_USD"):
        assert column in header
    for row in rows:
        assert row["energy_J"] == ""
        assert "energy" in row["not_measured"]


def test_csv_cells_are_no_formulas(full: Analysis) -> None:
    """Text that a spreadsheet would run begins with an apostrophe; negative numbers stay numbers."""
    rows = _rows(export.to_csv(full))
    assert "'=cmd()" in {row["variant"] for row in rows}
    changes = [float(row["accuracy_change"]) for row in rows if row["accuracy_change"]]
    assert min(changes) < 0
    for row in rows:
        for name, cell in row.items():
            if cell[:1] in ("=", "+", "-", "@"):
                assert isinstance(float(cell), float), name


def test_frontier_exports_hold_the_asked_axes(full: Analysis, analysis_of: Callable[[str], Analysis]) -> None:
    """The two axes' figures and each case's standing, for whichever axes were asked."""
    found = view(full, "size", "agreement")
    content = _strict(export.frontier_json(full, found))
    assert (content["x"], content["y"]) == ("size", "agreement")
    assert all({"size", "agreement"} <= set(case) for case in content["cases"])
    rows = _rows(export.frontier_csv(full, found))
    assert {case.key for case in full.measured} == {row["case"] for row in rows}
    assert all(row["size_bytes"] and row["agreement"] for row in rows)
    assert {"frontier", "dominated"} <= {row["standing"] for row in rows}
    assert _rows(export.frontier_csv(analysis_of("empty"), view(analysis_of("empty")))) == []


def test_a_case_is_exported_with_its_processes(full: Analysis) -> None:
    """`edgeprof show RUN CASE --json`: the case as in the whole run, and what each process was."""
    case = full.case("int8-static@ort/b1/t1")
    content = _strict(export.case_json(full, case))
    assert (content["case"], len(content["processes"])) == ("int8-static@ort/b1/t1", 5)
    assert content["ran_with"]["provider"] == "CPUExecutionProvider"
