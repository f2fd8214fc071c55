"""A result as a page of docs/results. Every sentence about figures is made from the figures, so a remade page stays true."""

from __future__ import annotations

from profiler import units
from profiler.analysis import CaseResult
from profiler.api import Result
from profiler.records import Environment, Estimate
from profiler.report.table import text
from scripts.real_models_lib.suite import Job, Model

WIDTH = 150
_LONGEST = 400
_FAR = 0.1
"""A loss of the metric that nobody would ship."""


def page(name: str, model: Model, job: Job, result: Result, *, quick: bool) -> str:
    """Markdown: what was run, on what, what came out, and what it shows."""
    flag = " --quick" if quick else ""
    shown = "\n".join(f"- {sentence}" for sentence in observations(result))
    facts = "\n".join(f"- {fact}" for fact in job.facts)
    sources = "\n".join(f"- {source}" for source in job.sources) or "- Everything comes with the packages below."
    failed = "\n".join(f"- {names}: {reason}" for reason, names in _failures(result).items()) or "None."
    notes = "\n".join(f"- `{variant}`: {note}" for variant, note in _variant_notes(result)) or "None."
    limits = result.run.study.constraints.model_dump(exclude_none=True)
    settings = ", ".join(f"{key} = {value}" for key, value in limits.items())
    return f"""# {model.TITLE}

Written by `scripts/real_models {name}{flag}`; not edited by hand.

{model.ABOUT}

## Sources

{sources}

## Data

{facts}

## Setting

{machine(result)} Effort: {result.run.study.effort.processes} processes per case, {result.run.study.effort.rounds} rounds each.
Limit: {settings}. {_software(result.run.environment, job)}

Other programs were running on the machine: trust ratios before absolute times. These pages are made again when that matters.

## Result

```text
{text(result.analysis, width=WIDTH).rstrip()}
```

## What it shows

{shown}

## Failed or left out

{failed}

## What the variants say about themselves

{notes}
"""


def observations(result: Result) -> list[str]:
    """What stands out, the decision first: each sentence only where its figures support it."""
    measured = result.analysis.measured
    found = [" ".join((result.recommendation.headline, *result.recommendation.sentences[:2]))]
    slower = [case for case in measured if _ratio_low(case) > 1 and not case.case.is_reference_variant]
    if slower:
        worst = ", ".join(
            f"`{case.key}` {case.time_ratio.value:.2f}×" for case in slower if isinstance(case.time_ratio, Estimate)
        )
        found.append(f"Slower than the reference, surely: {worst}.")
    destroyed = [
        case
        for case in measured
        if isinstance(case.accuracy_change, Estimate)
        and case.accuracy_change.high is not None
        and case.accuracy_change.high < -_FAR
    ]
    if destroyed:
        found.append(f"Destroyed: {', '.join(f'`{case.key}` ({_change(case)})' for case in destroyed)}.")
    lucky = [
        case
        for case in measured
        if isinstance(case.accuracy_change, Estimate)
        and case.accuracy_change.value >= 0
        and isinstance(case.agreement, Estimate)
        and case.agreement.unit == "proportion"
        and case.agreement.value < 0.99
    ]
    if lucky:
        listed = ", ".join(
            f"`{case.key}` ({_change(case)}, {(1 - _value(case)) * 100:.1f} % of answers differ)" for case in lucky
        )
        found.append(
            f"Not less accurate although answers changed, so accuracy alone does not say that nothing happened: {listed}."
        )
    failed = {case.case.backend for case in result.cases if case.status == "failed"}
    if failed and measured:
        found.append("What could not be made or run is listed below with its reason, and everything else was measured.")
    return found


def machine(result: Result) -> str:
    """The day and the machine in a sentence, without its name."""
    seen = result.run.environment
    isa = ", ".join(seen.cpu_isa) or "instruction sets unknown"
    where = "" if seen.hypervisor is None else ", virtual"
    load = "" if seen.load_1min is None else f", load {seen.load_1min:.1f} at the start"
    cpu, memory = seen.cpu_model or seen.machine, units.size(seen.memory_bytes)
    return f"{result.run.created_at[:10]}, {cpu} ({isa}), {seen.usable_cores} cores{where}, {memory}{load}."


def _software(environment: Environment, job: Job) -> str:
    names = {"Python": environment.python, **environment.versions, **job.packages}
    return "Software: " + ", ".join(f"{name} {version}" for name, version in names.items()) + "."


def _variant_notes(result: Result) -> list[tuple[str, str]]:
    return [(record.variant, " ".join(note.split())) for record in result.run.artifacts for note in record.notes]


def _name(case: CaseResult) -> str:
    return case.case.variant if case.case.backend == "—" else case.key


def _failures(result: Result) -> dict[str, str]:
    """Cases by what happened to them: one backend's missing operator fails many in the same words."""
    found: dict[str, list[str]] = {}
    for case in result.cases:
        if case.failure is not None:
            message = " ".join(case.failure.message.split())
            found.setdefault(f"{case.failure.kind}: {message[:_LONGEST]}", []).append(f"`{_name(case)}`")
    return {reason: ", ".join(names) for reason, names in found.items()}


def _change(case: CaseResult) -> str:
    change = case.accuracy_change
    assert isinstance(change, Estimate)
    return f"{units.points(change.value)} points" if change.unit == "proportion" else units.significant(change.value)


def _value(case: CaseResult) -> float:
    assert isinstance(case.agreement, Estimate)
    return case.agreement.value


def _ratio_low(case: CaseResult) -> float:
    ratio = case.time_ratio
    return (
        ratio.low
        if isinstance(ratio, Estimate) and ratio.low is not None and case.time_ratio_verdict == "differs"
        else 0.0
    )
