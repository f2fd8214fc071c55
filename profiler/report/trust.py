"""How far the numbers of a run can be trusted, in words: grade, what disturbed, what the harness cost, how processes settled."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Sequence

from profiler import units
from profiler.analysis import Analysis, CaseResult
from profiler.disturbance import replaced_rounds
from profiler.records import Estimate, NotMeasured
from profiler.report import words
from profiler.report.words import Cell, Story, Unit

OBSERVED_TITLE = "p99 as observed"

WARMUP = {
    "flat": "steady from the start", "warmup": "slower at first, cut off", "slowdown": "faster at first, cut off",
    "no_steady_state": "no steady state was found: read its figures with care",
}  # fmt: skip


def observed_p99(case: CaseResult, unit: Unit | None) -> Cell:
    """The p99 of all samples, beside the one that leaves interference out."""
    return words.seconds(case.observed.get("latency_p99_s", case.latency_p99_s), unit)


def lines(analysis: Analysis) -> list[str]:
    """Sentences, most important first."""
    if not analysis.measured:
        return []
    return [line for line in (*_grades(analysis), _disturbed(analysis), _settled(analysis), _harness(analysis)) if line]


def stopping(analysis: Analysis) -> str | None:
    """How the measurement ended, when it was to go on until precise."""
    counts = Counter(case.stopping.status for case in analysis.measured)
    if not counts or set(counts) == {"fixed"}:
        return None
    short = [case for case in analysis.measured if case.stopping.status == "budget_exhausted"]
    asked = analysis.run.study.effort.precision
    goal = f"the asked precision of {asked:.2g}" if asked else "the usual precision (p50 ±2 %, p90 ±3 %, p99 ±6 %)"
    if not short:
        return f"converged: every case reached {goal}"
    first = short[0]
    return (
        f"budget exhausted: {len(short)} of {len(analysis.measured)} cases did not reach {goal}; "
        f"{words.one_line(first.key)}: {words.one_line(first.stopping.reason)}"
    )


def warmup_told(case: CaseResult) -> str:
    """How the processes of a case settled, in words."""
    counted = Counter(case.warmup_labels)
    total = len(case.warmup_labels)
    told = "; ".join(f"{WARMUP.get(label, label)} ({count} of {total} processes)" for label, count in counted.items())
    return told or "no warm-up was recorded"


def case_rows(case: CaseResult) -> list[tuple[str, str]]:
    """What `edgeprof show` tells of one case."""
    rows = [
        (f"{title} as observed", str(cell(figure)))
        for title, name, cell in (
            ("p50", "latency_p50_s", words.seconds), ("p90", "latency_p90_s", words.seconds),
            ("p99", "latency_p99_s", words.seconds), ("throughput", "throughput_per_s", words.rate),
        )
        if (figure := case.observed.get(name)) is not None and not isinstance(figure, NotMeasured)
    ]  # fmt: skip
    excluded = (
        "nothing on this system tells interference apart"
        if case.excluded_share is None
        else f"{case.excluded_share:.1%} of the samples are left out of the other figures"
    )
    dirty = "" if case.dirty_share is None else f"; {case.dirty_share:.1%} of its blocks were disturbed"
    return [
        *rows,
        ("interference", excluded + dirty),
        ("warm-up", warmup_told(case)),
        ("ended", f"{case.stopping.status.replace('_', ' ')}: {words.one_line(case.stopping.reason)}"),
    ]


def _grades(analysis: Analysis) -> list[str]:
    """The grade; of several machines, that of each whose timings are its own."""
    if len(analysis.machines) == 1:
        return [analysis.grade.told]
    return [f"{words.one_line(group)}: {analysis.grades[group].told}" for group in analysis.groups]


def _disturbed(analysis: Analysis) -> str | None:
    shares = [case.excluded_share for case in analysis.measured if case.excluded_share is not None]
    if not shares:
        return "interference could not be told apart on this system: the figures are as observed"
    if all(case.view == "observed" for case in analysis.measured):
        return "as observed: disturbed too much to leave interference out of every case, so it is left out of none"
    replaced = replaced_rounds(analysis.judged)
    rounds = f", and {replaced} disturbed round{'s' * (replaced != 1)} measured again" if replaced else ""
    return (
        f"interference excluded from p50, p99 and ratios: {_span(shares)} of the samples{rounds}; "
        f"“{OBSERVED_TITLE}” is of all of them{_against_observed(analysis)}"
    )


def _against_observed(analysis: Analysis) -> str:
    """By how much the figures with all samples differ, at most over the cases."""
    told = []
    for title, name in (("p50", "latency_p50_s"), ("throughput", "throughput_per_s")):
        changes = [
            seen.value / shown.value - 1
            for case in analysis.measured
            if isinstance(seen := case.observed.get(name), Estimate)
            and isinstance(shown := getattr(case, name), Estimate)
        ]
        if changes:
            told.append(f"{title} {max(changes, key=abs):+.1%}")
    return f" (as observed at most {', '.join(told)})" if told else ""


def _settled(analysis: Analysis) -> str | None:
    labels = [label for case in analysis.measured for label in case.warmup_labels]
    unsettled = [case for case in analysis.measured if "no_steady_state" in case.warmup_labels]
    slower = sum(label == "slowdown" for label in labels)
    parts = []
    if unsettled:
        names = ", ".join(words.one_line(case.key) for case in unsettled[:3]) + (" …" if len(unsettled) > 3 else "")
        count = sum(label == "no_steady_state" for label in labels)
        parts.append(f"no steady state in {count} of {len(labels)} processes ({names})")
    if slower:
        parts.append(f"{slower} of {len(labels)} processes slowed down while warming up (clocks or heat)")
    return "; ".join(parts) or None


def _harness(analysis: Analysis) -> str | None:
    clocks = [p.harness_in_sample_s for p in analysis.run.processes if p.harness_in_sample_s is not None]
    labels = [p.harness_labels_s for p in analysis.run.processes if p.harness_labels_s is not None]
    if not clocks or not labels:
        return None
    return (
        f"the harness adds {units.seconds(statistics.median(clocks), 2)} to a recorded inference and takes "
        f"{units.seconds(statistics.median(labels), 2)} between two for the labels"
    )


def _span(shares: Sequence[float]) -> str:
    low, high = min(shares), max(shares)
    return f"{low:.1%}" if f"{low:.1%}" == f"{high:.1%}" else f"{low:.1%} to {high:.1%}"


def page_rows(story: Story) -> list[dict[str, str]]:
    """Warm-up of each measured case, for the page."""
    return [
        {"name": f"#{case.number} {story.name(case)}", "told": warmup_told(case)} for case in story.analysis.measured
    ]
