"""Runs that an earlier version stored open and say what they said: schema 3, version 0.1.0 of 2026-12-01.

The built-in model, measured as briefly as can be: a profile of two recipes on two runtimes, two targets, a search, a load search.
`expected/` holds what is said of them. A figure may only change with the rule that makes it: then this file is made anew
(`python -m tests.stored.test_older_runs`) and the change is named in CHANGELOG.md.
"""

from __future__ import annotations

import json
import lzma
import math
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest

from profiler.api import Result, open_run
from profiler.records import Estimate, NotMeasured
from profiler.report.load import read_result
from profiler.stats.slo import RateEstimate
from profiler.store import DATABASE_NAME

HERE = Path(__file__).parent
RUNS = sorted((HERE / "runs").glob("*.sqlite.xz"))
FIGURES = (
    "latency_p50_s", "latency_p90_s", "latency_p99_s", "throughput_per_s", "time_ratio", "time_ratio_own", "import_s", "load_s",
    "first_inference_s", "time_to_steady_s", "peak_rss_bytes", "size_bytes", "compressed_bytes", "energy_j", "accuracy",
    "accuracy_change", "agreement", "usd_per_million",
)  # fmt: skip


def opened(packed: Path, folder: Path) -> Result:
    (folder / DATABASE_NAME).write_bytes(lzma.decompress(packed.read_bytes()))
    return open_run(out=folder)


def said(result: Result) -> dict[str, Any]:
    """Figures, verdicts, frontier and decision, without prose."""
    view = result.frontier()
    choice = result.recommendation.case
    return {
        "cases": {
            case.key: {
                "status": case.status,
                "verdict": case.verdict,
                "time_ratio_verdict": case.time_ratio_verdict,
                "checks": {check.name: check.verdict for check in case.checks},
                **{name: figure(getattr(case, name)) for name in FIGURES},
            }
            for case in result.analysis.cases
        },
        "members": [case.key for case in view.members],
        "tied": [case.key for case in view.tied],
        "dominated": [case.key for case, _ in view.dominated],
        "recommended": None if choice is None else choice.key,
        "max_rates": {
            f"{rate.case} {rate.setting}": highest(rate.estimate) for rate in read_result(result.run).max_rates
        },
    }


def highest(found: RateEstimate | None) -> list[Any] | None:
    return None if found is None else [found.rate_per_s, found.low, found.high, found.method, found.confirmed]


def figure(found: Estimate | NotMeasured) -> list[float | None] | str:
    return [found.value, found.low, found.high] if isinstance(found, Estimate) else "not measured"


def differences(before: Any, after: Any, place: str = "") -> list[str]:
    """Where two accounts differ, numbers by more than rounding."""
    if isinstance(before, dict) and isinstance(after, dict):
        names = [*before, *(name for name in after if name not in before)]
        return [line for name in names for line in differences(before.get(name), after.get(name), f"{place}/{name}")]
    if isinstance(before, list) and isinstance(after, list) and len(before) == len(after):
        pairs = enumerate(zip(before, after, strict=True))
        return [line for number, (one, other) in pairs for line in differences(one, other, f"{place}[{number}]")]
    if isinstance(before, (int, float)) and isinstance(after, (int, float)):
        return [] if math.isclose(before, after, rel_tol=1e-9, abs_tol=1e-15) else [f"{place}: {before} -> {after}"]
    return [] if before == after else [f"{place}: {before} -> {after}"]


@pytest.mark.parametrize("packed", RUNS, ids=lambda path: path.name.removesuffix(".sqlite.xz"))
def test_an_older_run_opens_and_says_the_same(packed, tmp_path):
    expected = json.loads(
        (HERE / "expected" / f"{packed.name.removesuffix('.sqlite.xz')}.json").read_text(encoding="utf-8")
    )

    assert differences(expected, json.loads(json.dumps(said(opened(packed, tmp_path))))) == []


def test_a_figure_that_changed_is_named():
    """The comparison can fail."""
    assert differences({"a": [1.0, None]}, {"a": [1.0 + 1e-6, None]}) == ["/a[0]: 1.0 -> 1.000001"]
    assert differences({"a": "x"}, {"a": [1.0], "b": 1}) == ["/a: x -> [1.0]", "/b: None -> 1"]


def main() -> None:
    for packed in RUNS:
        with tempfile.TemporaryDirectory() as folder:
            text = json.dumps(said(opened(packed, Path(folder))), indent=1)
        (HERE / "expected" / f"{packed.name.removesuffix('.sqlite.xz')}.json").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
