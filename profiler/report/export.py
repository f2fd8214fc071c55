"""The run for other programs: JSON and CSV with stable names (docs/report-format.md). SI units, no NaN, no Infinity."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from profiler.analysis import AXES, Analysis, CaseResult
from profiler.decide import FrontierView
from profiler.machines import Machine
from profiler.places import Place
from profiler.pricing import PriceTerms
from profiler.records import ArtifactRecord, Estimate, Figure, ProcessRecord
from profiler.report import load, words
from profiler.report.words import Story

FORMAT = 2
"""Raised when a name changes its meaning or goes away; additions leave it as it is."""

FIGURES = (
    ("latency_p50", "latency_p50_s", "s"), ("latency_p90", "latency_p90_s", "s"), ("latency_p99", "latency_p99_s", "s"),
    ("throughput", "throughput_per_s", "samples_per_s"), ("time_ratio", "time_ratio", "x"),
    ("time_ratio_own_backend", "time_ratio_own", "x"), ("accuracy", "accuracy", ""), ("accuracy_change", "accuracy_change", ""),
    ("agreement", "agreement", ""), ("peak_rss", "peak_rss_bytes", "bytes"), ("size", "size_bytes", "bytes"),
    ("compressed", "compressed_bytes", "bytes"), ("import", "import_s", "s"), ("load", "load_s", "s"),
    ("first_inference", "first_inference_s", "s"), ("time_to_steady", "time_to_steady_s", "s"),
    ("energy", "energy_j", "J"), ("usd_per_million", "usd_per_million", "USD"),
)  # fmt: skip
"""Name in exports, field of CaseResult, unit in CSV headers; accuracy figures have their unit in a column of its own."""


def to_json(analysis: Analysis) -> str:
    """The whole analysis as JSON, keys as documented."""
    story = Story.of(analysis)
    run, chosen = analysis.run, story.recommendation
    return _dump(
        {
            "format": FORMAT,
            "edgeprof_version": run.edgeprof_version,
            "run": {
                "id": run.id,
                "created_at": run.created_at,
                "status": run.status,
                "study": run.study.model_dump(mode="json"),
                "environment": asdict(run.environment),
                "data_rows": run.plan.get("data_rows"),
                "data_sha256": run.plan.get("data_sha256"),
                "source_sha256": run.plan.get("source_sha256"),
            },
            "metric": _metric(analysis),
            "question": analysis.question,
            "reference": analysis.reference,
            "priced_as": analysis.machine,
            "machines": [_machine(analysis, item) for item in analysis.machines],
            "grade": {"letter": analysis.grade.letter, "reasons": list(analysis.grade.reasons)},
            "selftest": run.plan.get("selftest"),
            "recommendation": {
                "case": None if chosen.case is None else chosen.case.key,
                "outcome": chosen.outcome,
                "fastest_unchecked": None if chosen.fastest_unchecked is None else chosen.fastest_unchecked.key,
                "headline": chosen.headline,
                "sentences": list(chosen.sentences),
                "ruled_out": [{"case": case.key, "reason": why} for case, why in chosen.ruled_out],
                "by_machine": [_place(item) for item in chosen.places],
            },
            "frontier": _frontier(story),
            "cases": [_case(story, case) for case in analysis.cases],
            "variants": [_artifact(record) for record in run.artifacts],
            "search": run.plan.get("search"),
            "load": None if run.study.load is None else load.content(load.read_result(run)),
            "notes": list(analysis.notes),
        }
    )


def case_json(analysis: Analysis, case: CaseResult, *, limit: Figure | None = None) -> str:
    """One case as JSON: as in `to_json`, each of its processes, and the share of its device's limit where that was looked for."""
    processes = [_process(record) for record in analysis.run.processes if record.case == case.key]
    own = {**_case(Story.of(analysis), case), "metric": _metric(analysis), "processes": processes}
    content = {"format": FORMAT, "run": analysis.run.id, **own}
    if limit is not None:
        content["limit_share"] = _figure(limit)
    return _dump(content)


def frontier_json(analysis: Analysis, view: FrontierView) -> str:
    """A frontier as JSON, with the figures of its two axes."""
    story = _story(analysis, view)
    placed = [*view.members, *view.tied, *(case for case, _ in (*view.behind, *view.dominated))]
    return _dump(
        {
            "format": FORMAT,
            "run": analysis.run.id,
            "reference": analysis.reference,
            **_frontier(story),
            "cases": [
                {**_identity(story, case), view.x: _figure(case.figure(view.x)), view.y: _figure(case.figure(view.y))}
                for case in placed
            ],
        }
    )


def to_csv(analysis: Analysis) -> str:
    """One row per case. Empty cells were not measured; the last columns say why."""
    story = Story.of(analysis)
    return _csv([_row(story, case, FIGURES) for case in analysis.cases], _header(FIGURES))


def frontier_csv(analysis: Analysis, view: FrontierView) -> str:
    """One row per measured case, with its standing and the figures of the two axes."""
    story = _story(analysis, view)
    fields = {AXES[view.x].field, AXES[view.y].field}
    figures = [item for item in FIGURES if item[1] in fields]
    beaten = (*view.behind, *view.dominated, *view.unplaced)
    placed = [*view.members, *view.tied, *(case for case, _ in beaten)]
    return _csv([_row(story, case, figures) for case in placed], _header(figures))


def _story(analysis: Analysis, view: FrontierView) -> Story:
    return Story.over(analysis, view)


def _frontier(story: Story) -> dict[str, Any]:
    view = story.view
    return {
        "x": view.x,
        "y": view.y,
        "pooled": view.pooled,
        "members": [case.key for case in view.members],
        "tied": [case.key for case in view.tied],
        "dominated": [{"case": case.key, "by": by, "shown": view.why[case.key]} for case, by in view.dominated],
        "behind": [{"case": case.key, "by": by, "shown": view.why[case.key]} for case, by in view.behind],
        "equal": [list(group) for group in view.equal],
        "unplaced": [{"case": case.key, "reason": why} for case, why in view.unplaced],
    }


def _metric(analysis: Analysis) -> dict[str, Any] | None:
    """What accuracy is: by which metric, over which output, and whether the reference knows the labels at all."""
    if analysis.metric is None:
        return None
    return {
        "name": analysis.metric.name,
        "unit": analysis.metric.unit,
        "higher_is_better": analysis.metric.higher_is_better,
        "output": analysis.output,
        "chance": None if analysis.chance is None else asdict(analysis.chance),
        "doubtful": analysis.doubtful,
    }


def _identity(story: Story, case: CaseResult) -> dict[str, Any]:
    asked = case.case
    return {
        "number": case.number,
        "case": case.key,
        "variant": asked.variant,
        "backend": asked.backend,
        "target": asked.target,
        "batch": asked.batch,
        "threads": asked.threads,
        "status": case.status,
        "standing": story.standing(case),
        "reference": story.is_reference(case),
        "emulated": case.machine.emulated,
        "envelope": case.machine.envelope,
        "priced_as": case.machine.priced_as,
    }


def _machine(analysis: Analysis, machine: Machine) -> dict[str, Any]:
    graded = analysis.grades[machine.group]
    return {
        "target": machine.target,
        "device": machine.name,
        "environment": None if machine.environment is None else asdict(machine.environment),
        "emulated": machine.emulated,
        "envelope": machine.envelope,
        "profile": machine.profile,
        "priced_as": machine.priced_as,
        "reference": analysis.references.get(machine.target),
        "grade": {"letter": graded.letter, "reasons": list(graded.reasons)},
    }


def _place(item: Place) -> dict[str, Any]:
    return {
        "target": item.machine.target,
        "case": None if item.case is None else item.case.key,
        "headline": item.headline,
        "serves": _figure(item.rate_per_s),
        "usd_per_year": _figure(item.usd_per_year),
    }


def _case(story: Story, case: CaseResult) -> dict[str, Any]:
    return {
        **_identity(story, case),
        "verdict": case.verdict,
        "checks": [asdict(check) for check in case.checks],
        "default_check": None if case.default_check is None else asdict(case.default_check),
        "price": None if case.price is None else _price(case.price),
        "comparison": words.comparison(case),
        "figures": {name: _figure(getattr(case, field)) for name, field, _ in FIGURES},
        "as_observed": {name: _figure(case.observed[field]) for name, field, _ in FIGURES if field in case.observed},
        "view": case.view,
        "of_a_typical_process": sorted(case.typical),
        "excluded_share": case.excluded_share,
        "disturbed_share": case.dirty_share,
        "stopping": asdict(case.stopping),
        "reference_quality": case.reference_quality,
        "blocks": case.blocks,
        "samples": case.samples,
        "raced": case.raced,
        "warmup": list(case.warmup_labels),
        "ran_with": None if case.process is None else asdict(case.process.facts),
        "failure": None if case.failure is None else asdict(case.failure),
        "notes": list(case.notes),
    }


def _price(terms: PriceTerms) -> dict[str, Any]:
    return {
        "priced_as": terms.priced_as,
        "whole_machine": _figure(terms.whole),
        "share": terms.share,
        "date": terms.date,
        "energy": terms.energy,
        "doubts": list(terms.doubts),
    }


def _figure(figure: Figure) -> dict[str, Any]:
    if not isinstance(figure, Estimate):
        return {"not_measured": figure.reason}
    if not math.isfinite(figure.value):
        return {"not_measured": "the value is not finite"}
    return {
        "value": figure.value,
        "low": _bound(figure.low),
        "high": _bound(figure.high),
        "unit": figure.unit,
        "level": figure.level,
        "source": figure.source,
        "note": figure.note,
    }


def _bound(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def _artifact(record: ArtifactRecord) -> dict[str, Any]:
    return asdict(record)


def _process(record: ProcessRecord) -> dict[str, Any]:
    warmup = record.warmup
    return {
        "replicate": record.replicate,
        "attempt": record.attempt,
        "group": record.group,
        "import_s": record.import_s,
        "load_s": record.load_s,
        "first_inference_s": record.first_inference_s,
        "peak_rss_bytes": record.peak_rss_bytes,
        "memory": {phase: dict(found) for phase, found in record.memory.items()},
        "harness_in_sample_s": record.harness_in_sample_s,
        "harness_labels_s": record.harness_labels_s,
        "warmup": None if warmup is None else warmup.label,
        "time_to_steady_s": None if warmup is None else warmup.time_to_steady_s,
        "ran_with": asdict(record.facts),
        "notes": list(record.notes),
    }


def _dump(content: Mapping[str, Any]) -> str:
    return json.dumps(_finite(content), indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def _finite(value: Any) -> Any:
    """JSON has no NaN: a fact that is not finite becomes null."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    # A lone surrogate, which a broken log may hold, cannot be written as UTF-8.
    return value.encode("utf-8", "replace").decode("utf-8") if isinstance(value, str) else value


_IDENTITY = ("number", "case", "variant", "backend", "target", "batch", "threads", "status", "standing", "reference")


_MACHINE = ("emulated", "envelope", "priced_as")


def _header(figures: Sequence[tuple[str, str, str]]) -> list[str]:
    columns = [*_IDENTITY, "verdict", "comparison"]
    for name, _, unit in figures:
        title = f"{name}_{unit}" if unit else name
        columns += [title, f"{title}_low", f"{title}_high"]
    return [*columns, "accuracy_unit", "not_from_here", "not_measured", *_MACHINE]


def _row(story: Story, case: CaseResult, figures: Sequence[tuple[str, str, str]]) -> list[str]:
    identity = _identity(story, case)
    cells = [_text(identity[name]) for name in _IDENTITY] + [case.verdict, words.comparison(case)]
    reasons: dict[str, list[str]] = {}
    sources, unit = [], ""
    for name, field, _ in figures:
        shown = _figure(getattr(case, field))
        cells += [_number(shown.get("value")), _number(shown.get("low")), _number(shown.get("high"))]
        if "not_measured" in shown:
            reasons.setdefault(words.one_line(shown["not_measured"]), []).append(name)
        elif shown["source"] != "measured here":
            sources.append(f"{name}: {shown['source']}")
        if name in ("accuracy", "agreement") and not unit:
            unit = shown.get("unit", "")
    why = "; ".join(f"{', '.join(names)}: {reason}" for reason, names in reasons.items())
    machine = [_text("" if identity[name] is None else identity[name]) for name in _MACHINE]
    return [*cells, _text(unit), _text("; ".join(sources)), _text(why), *machine]


def _number(value: float | None) -> str:
    return "" if value is None else repr(value)


def _text(value: object) -> str:
    """A text cell that no spreadsheet takes for a formula: such a cell begins with an apostrophe."""
    text = words.one_line(str(value).lower() if isinstance(value, bool) else str(value))
    return f"'{text}" if text[:1] in ("=", "+", "-", "@", "\t", "\r") else text


def _csv(rows: Sequence[Sequence[str]], header: Sequence[str]) -> str:
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    return out.getvalue()
