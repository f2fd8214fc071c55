"""Everything known of one case, for `edgeprof show RUN CASE`."""

from __future__ import annotations

import json
from collections.abc import Mapping

from rich.console import Console

from profiler import units
from profiler.analysis import Analysis, CaseResult
from profiler.records import ArtifactRecord, Figure, ProcessRecord
from profiler.report import trust, words
from profiler.report.layout import Column, Page
from profiler.report.words import Cell, Story

_LOG_LINES = 40
RACED = " of the search's race: short ones, to choose by, not the final measurement"


def case_details(analysis: Analysis, case: CaseResult, console: Console, *, limit: Figure | None = None) -> None:
    """Figures with intervals, checks, what really ran, what the variant changed, each process, and failures.

    `limit` is how much of what its device allows the case reached (`profiler.roofline`); None where it was not looked for.
    """
    story = Story.of(analysis)
    page = Page(console)
    page.line(f"{case.number} · {story.name(case)}", style="bold", hanging=2)
    tags = ", ".join(dict.fromkeys(filter(None, (story.standing(case), *story.tags(case).split(", ")))))
    page.line(f"{tags}; key {words.one_line(case.key)}", indent=2, hanging=2)
    if story.several or not case.machine.here:
        page.line(f"on {words.one_line(case.machine.told)}: {words.machine_told(case.machine)}", indent=2, hanging=2)
    _failure(page, case)
    if case.status == "measured" or case.blocks:
        _figures(page, analysis, case, limit)
    if case.checks:
        page.heading(f"limits: {case.verdict.replace('_', ' ')}")
        page.facts(
            [(check.name, f"{check.verdict.replace('_', ' ')}: {words.one_line(check.text)}") for check in case.checks]
        )
    if case.process is not None:
        page.heading("what really ran")
        page.facts(ran(case.process))
        if case.process.memory:
            page.heading("memory by phase (the last process)")
            page.facts(memory_rows(case.process))
    artifact = artifact_of(analysis, case)
    if artifact is not None:
        page.heading("what the variant changed")
        page.facts(changed(artifact))
    _processes(page, analysis, case)
    for note in case.notes:
        page.line(f"note: {words.one_line(note)}", indent=2, hanging=2)


def figures(case: CaseResult) -> list[tuple[str, Cell]]:
    """Every figure of a case with its name, in the order that people ask for them."""
    own: Figure = case.time_ratio_own
    return [
        ("p50 latency of a batch", words.seconds(case.latency_p50_s)),
        ("p90", words.seconds(case.latency_p90_s)),
        ("p99", words.seconds(case.latency_p99_s)),
        ("throughput", words.rate(case.throughput_per_s)),
        ("time / reference time", words.scaled(case.time_ratio, ((1.0, "×"),))),
        ("time / fp32 on this backend", words.scaled(own, ((1.0, "×"),))),
        ("accuracy", words.quality(case.accuracy)),
        ("accuracy change", words.change(case.accuracy_change)),
        ("agreement with the reference", words.quality(case.agreement)),
        ("peak RSS", words.size(case.peak_rss_bytes)),
        ("model size", words.size(case.size_bytes)),
        ("compressed (zlib)", words.size(case.compressed_bytes)),
        ("runtime import", words.seconds(case.import_s)),
        ("model load", words.seconds(case.load_s)),
        ("first inference", words.seconds(case.first_inference_s)),
        ("time to steady state", words.seconds(case.time_to_steady_s)),
        ("energy per inference", words.energy(case.energy_j)),
        ("USD per million inferences", words.usd(case.usd_per_million)),
    ]


def ran(process: ProcessRecord) -> list[tuple[str, str]]:
    """Provider, versions, threads and realised precision, as the runtime told them."""
    facts = process.facts
    precision = (
        ", ".join(f"{count} ops in {name}" for name, count in facts.precision.items())
        if facts.precision
        else f"not told: {facts.precision_reason or 'the runtime has no way to ask'}"
    )
    return [
        ("runtime", words.one_line(f"{facts.runtime} {facts.runtime_version}")),
        ("execution provider", words.one_line(facts.provider)),
        ("threads", "not told by the runtime" if facts.threads is None else str(facts.threads)),
        ("realised precision", words.one_line(precision)),
        *[(words.one_line(name), words.one_line(value)) for name, value in facts.details.items()],
    ]


_MEMORY = {
    "peak_rss_bytes": "peak", "rss_anon_bytes": "anonymous", "rss_file_bytes": "file-mapped", "rss_shmem_bytes": "shared",
    "pss_bytes": "PSS with children", "cgroup_peak_bytes": "control group's peak", "gpu_bytes": "GPU",
    "gpu_device_bytes": "GPU, whole device",
}  # fmt: skip


def memory_rows(process: ProcessRecord) -> list[tuple[str, str]]:
    """What the process held after each phase; kinds of memory that the system does not tell are left out."""
    rows = []
    for phase, found in process.memory.items():
        told = [f"{name} {units.size(found[key] or 0)}" for key, name in _MEMORY.items() if found.get(key) is not None]
        rows.append((words.one_line(phase), ", ".join(told) or "not told by this system"))
    return rows + [("note", words.one_line(note)) for note in process.notes]


def changed(artifact: ArtifactRecord) -> list[tuple[str, str]]:
    """What a variant did to the model."""
    rows = [
        ("sha256", artifact.sha256),
        ("changed", "yes" if artifact.changed else "no: it runs the same model as the reference"),
        *([("same file as", words.one_line(artifact.equal_to))] if artifact.equal_to else []),
        *[(words.one_line(name.replace("_", " ")), fact(value)) for name, value in _flat(artifact.facts)],
        ("made in", units.seconds(artifact.seconds)),
    ]
    return rows + [("note", words.one_line(note)) for note in artifact.notes]


def fact(value: object) -> str:
    """A fact of an artifact as text."""
    if value is None:
        return "not known"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return units.significant(value, 4)
    return words.one_line(value if isinstance(value, str) else json.dumps(value, default=str))


def artifact_of(analysis: Analysis, case: CaseResult) -> ArtifactRecord | None:
    """The file that a case ran."""
    return next((record for record in analysis.run.artifacts if record.variant == case.case.variant), None)


def _flat(facts: Mapping[str, str | int | float | bool | None]) -> list[tuple[str, str | int | float | bool | None]]:
    return sorted(facts.items())


def _told(cell: Cell) -> str:
    if cell.missing:
        return f"not measured: {cell.title}"
    return f"{cell}  ({cell.title})" if cell.title else str(cell)


def _figures(page: Page, analysis: Analysis, case: CaseResult, limit: Figure | None) -> None:
    page.heading("figures of the search's race" if case.raced else "figures")
    page.facts(
        [
            ("accuracy is", words.metric_name(analysis)),
            *[(title, _told(cell)) for title, cell in figures(case)],
            *([] if limit is None else [("share of the device's limit", _told(words.quality(limit)))]),
            ("against the reference", words.comparison(case)),
            *trust.case_rows(case),
            ("timings", f"{case.samples:,} in {case.blocks} blocks{RACED if case.raced else ''}"),
        ]
    )
    open_sides = words.unbounded([case])
    page.line(
        "; ".join(["[ ] are 95 % intervals unless a range is named", *([open_sides] if open_sides else [])]),
        style="dim", indent=2, hanging=2,
    )  # fmt: skip


def _failure(page: Page, case: CaseResult) -> None:
    failure = case.failure
    if failure is None:
        return
    kind = "" if failure.kind == case.status else f": {failure.kind.replace('_', ' ')}"
    page.heading(f"{case.status}{kind} in stage {failure.stage}{'' if case.blocks else '; it has no figures'}")
    page.verbatim(words.clean(failure.message), indent=2)
    if failure.log_tail:
        lines = words.clean(failure.log_tail).splitlines()
        page.line(f"last {min(len(lines), _LOG_LINES)} lines that the worker wrote:", indent=2)
        page.verbatim("\n".join(lines[-_LOG_LINES:]), indent=4)


def _processes(page: Page, analysis: Analysis, case: CaseResult) -> None:
    processes = [record for record in analysis.run.processes if record.case == case.key]
    if not processes:
        return
    page.heading(f"processes ({len(processes)})")
    rows = [process_row(record) for record in processes]
    columns = [Column(title, [(row[index], "") for row in rows]) for index, title in enumerate(PROCESS_TITLES)]
    if page.fits(columns, lines=1):
        page.grid(columns, lines=1)
        return
    for row in rows:
        page.line(
            "; ".join(f"{title} {value}" for title, value in zip(PROCESS_TITLES, row, strict=True)), indent=2, hanging=2
        )


PROCESS_TITLES = ("replicate", "attempt", "load", "first inference", "peak RSS", "warm-up", "steady after")


def process_row(record: ProcessRecord) -> tuple[str, ...]:
    """One worker process: raw facts, as recorded."""
    warmup = record.warmup
    return (
        str(record.replicate),
        str(record.attempt),
        units.seconds(record.load_s),
        units.seconds(record.first_inference_s),
        "not told" if record.peak_rss_bytes is None else units.size(record.peak_rss_bytes),
        "none" if warmup is None else warmup.label.replace("_", " "),
        "never" if warmup is None or warmup.time_to_steady_s is None else units.seconds(warmup.time_to_steady_s),
    )
