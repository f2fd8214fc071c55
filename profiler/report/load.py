"""The load stage for people and programs: the decision first, then a line per setting, then what cannot be believed and why."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rich.console import Console

from profiler import advice, machines
from profiler.load import decision, figures
from profiler.load.figures import LoadFigures, MaxRate
from profiler.load.scenario import parse_setting
from profiler.records import Estimate, Figure
from profiler.report import words
from profiler.report.layout import Column, Page
from profiler.store import RunData
from profiler.study import Case
from profiler.units import seconds, significant

FORMAT = 1


@dataclass(frozen=True)
class LoadResult:
    """All that is read out of a run's load records."""

    run: RunData
    scenarios: tuple[LoadFigures, ...]
    max_rates: tuple[MaxRate, ...]
    decisions: tuple[str, ...]
    """Sentences, the most important one first."""

    @property
    def useful(self) -> bool:
        """Whether there is a valid run, or a highest rate where one was looked for."""
        rates = any(decision.found(rate) for rate in self.max_rates)
        return rates if self.max_rates else any(item.valid for item in self.scenarios)


def read_result(run: RunData) -> LoadResult:
    """Everything from the stored records; a run without a load plan gives an empty result."""
    plan = run.study.load
    if plan is None:
        return LoadResult(run, (), (), ())
    # Runs were done in random order; people look for a setting where they asked for it.
    places = {text: place for place, text in enumerate(plan.settings)}
    scenarios = tuple(
        sorted(
            figures.summarise(run.loads, plan.slo_s),
            key=lambda item: (item.case, item.rate_per_s or 0.0, places.get(item.setting, len(places))),
        )
    )
    failures = {record.case: record.message for record in run.failures if record.stage == "serve"}
    cases = dict.fromkeys(record.case for record in run.loads)
    for key in failures:
        # A search that failed at once left no record of its case.
        cases.setdefault(key.partition(" ")[0])
    rates = figures.max_rates(run.loads, plan, tuple(cases), run.study.seed, failures)
    said = [*decision.decide_max_rate(rates), *decision.decide_scenarios(scenarios, plan.slo_s)]
    return LoadResult(run, scenarios, rates, tuple(said))


def render(result: LoadResult, console: Console) -> None:
    """The terminal's output."""
    page = Page(console)
    first, *rest = result.decisions or ("nothing was served",)
    page.line(f"▸ {_sentence(first)}", style="bold", hanging=2)
    for line in rest:
        page.line(_sentence(line), indent=2, hanging=2)
    warning = words.unfinished_run(result.run)
    # With a frontier above, it stands there.
    if warning is not None and result.run.study.load is not None and result.run.study.load.only:
        page.line(warning, style="yellow", hanging=2)
    if result.max_rates:
        page.heading(f"How many requests a second hold {_limit(result.max_rates)}?")
        _max_rates(page, result.max_rates)
    if result.scenarios:
        page.heading("How long do requests take, and what do they wait for?")
        _scenarios(page, result.scenarios)
    _doubts(page, result)
    page.blank()
    page.line(
        f"All latencies are as observed, interference included. {_machines(result)}. "
        f"Run {result.run.id}; again with: {advice.of_run('load', '--show', result.run.id)}",
        style="dim", hanging=2,
    )  # fmt: skip


def _machines(result: LoadResult) -> str:
    """The machines that served, in words."""
    known = machines.machines(result.run)
    cases = {case.key: case.target for case in (Case(**fields) for fields in result.run.plan.get("cases", []))}
    served = dict.fromkeys(cases[record.case] for record in result.run.loads if record.case in cases)
    lines = words.machine_lines([known[target] for target in served] or [next(iter(known.values()))])
    return "; ".join(f"{line[0].upper()}{line[1:]}" for line in lines)


def to_json(result: LoadResult) -> str:
    """The result for programs: SI units in the names, null with a reason for what is not known."""
    return json.dumps(content(result), indent=2, allow_nan=False)


def content(result: LoadResult) -> dict[str, Any]:
    """The same as an object, for a larger document."""
    found = {
        "format": FORMAT,
        "run": result.run.id,
        "status": result.run.status,
        "decisions": list(result.decisions),
        "scenarios": [_scenario_json(item) for item in result.scenarios],
        "max_rates": [_max_rate_json(rate) for rate in result.max_rates],
        "failures": [asdict(record) for record in result.run.failures if record.stage in ("serve", "variant", "plan")],
    }
    return dict(_finite(found))


def _limit(rates: Sequence[MaxRate]) -> str:
    return decision.limit_text(rates[0].p, rates[0].slo_s)


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:] + ("" if text.endswith(".") else ".")


def _max_rates(page: Page, rates: Sequence[MaxRate]) -> None:
    def rate_cell(rate: MaxRate) -> tuple[str, str]:
        if rate.rate_per_s is None or rate.estimate is None:
            return "none", ""
        if rate.estimate.at_ceiling:
            return f"≥ {significant(rate.rate_per_s)}", ""
        low, high = (("?" if end is None else significant(end)) for end in (rate.estimate.low, rate.estimate.high))
        return significant(rate.rate_per_s), f"[{low}, {high}]"

    columns = [
        Column("case", [(rate.case, "") for rate in rates]),
        Column("workers", [(str(rate.parsed.workers), "") for rate in rates], right=True),
        Column("batching", [(rate.parsed.batching, "") for rate in rates]),
        Column("requests/s", [rate_cell(rate) for rate in rates], right=True),
        Column(
            "service p99" if rates[0].p == 0.99 else f"service p{100 * rates[0].p:g}", [_time(r.service) for r in rates]
        ),
        Column("runs used", [(_used(rate), _remark(rate)) for rate in rates], right=True),
        Column("confirmation", [(_confirmation(rate), "") for rate in rates]),
    ]
    page.grid(columns, lines=1 if page.fits(columns, lines=1) else 2)


def _used(rate: MaxRate) -> str:
    """How many of the runs the estimate rests on."""
    if rate.estimate is None:
        return "0"
    total = len(rate.estimate.runs)
    return f"{total - rate.estimate.invalid_runs} of {total}"


def _remark(rate: MaxRate) -> str:
    return "FEW" if rate.estimate is not None and 2 * rate.estimate.invalid_runs > len(rate.estimate.runs) else ""


def _confirmation(rate: MaxRate) -> str:
    return decision.confirmation_text(rate) if decision.found(rate) else "—"


def _scenarios(page: Page, items: Sequence[LoadFigures]) -> None:
    columns = [
        Column("#", [(str(number), "") for number, _ in enumerate(items, 1)], right=True),
        Column("case, scenario", [(item.case, _named(item)) for item in items]),
        Column("offered/s", [(_number(item.offered_per_s), "") for item in items], right=True),
        Column("answered/s", [_rate(item.achieved_per_s) for item in items], right=True),
        Column("p50", [_time(item.p50) for item in items], right=True),
        Column("p99", [_time(item.p99) for item in items], right=True),
        Column("queue p99", [_time(item.queueing_p99) for item in items], right=True),
        Column("service p99", [_time(item.service_p99) for item in items], right=True),
        Column("late p99", [(_late(item), "") for item in items], right=True),
        Column("rows", [(_number(item.mean_batch), "") for item in items], right=True),
        Column(
            "valid runs", [(f"{item.valid_runs} of {item.runs}", "" if item.valid else "INVALID") for item in items]
        ),
    ]
    if page.fits(columns, lines=2):
        page.grid(columns, lines=2)
        return
    for number, item in enumerate(items, 1):
        page.line(f"{number}. {item.case}, {_named(item)}", hanging=3)
        page.facts(
            [(column.title, " ".join(part for part in column.cells[number - 1] if part)) for column in columns[2:]],
            indent=3,
        )


def _named(item: LoadFigures) -> str:
    """`server, 2 workers, batch up to 8 within 2 ms`."""
    setting = parse_setting(item.setting)
    own = {"concurrency": f" of {setting.in_flight}", "multi": f" of {setting.samples}"}.get(setting.scenario, "")
    arrivals = "" if setting.arrivals == "poisson" else f", {setting.arrivals}"
    workers = f"{setting.workers} worker{'s' if setting.workers > 1 else ''}"
    return f"{setting.scenario}{own}{arrivals}, {workers}" + (f", {setting.batching}" if setting.max_batch > 1 else "")


def _late(item: LoadFigures) -> str:
    return "—" if item.lateness_p99_s is None else seconds(max(0.0, item.lateness_p99_s))


def _number(value: float | None) -> str:
    return "—" if value is None or not math.isfinite(value) else significant(value)


def _rate(figure: Figure) -> tuple[str, str]:
    if not isinstance(figure, Estimate):
        return "—", ""
    if figure.low is None or figure.high is None:
        return significant(figure.value), ""
    return significant(figure.value), f"[{significant(figure.low)}, {significant(figure.high)}]"


def _time(figure: Figure) -> tuple[str, str]:
    if not isinstance(figure, Estimate):
        return "—", ""
    low, high = (("?" if end is None else seconds(end)) for end in (figure.low, figure.high))
    return seconds(figure.value), f"[{low}, {high}]"


def _doubts(page: Page, result: LoadResult) -> None:
    lines = []
    for number, item in enumerate(result.scenarios, 1):
        if item.reasons:
            label = "INVALID" if not item.valid else f"{item.runs - item.valid_runs} of {item.runs} runs left out"
            lines.append(f"{number}. {label}: {'; '.join(item.reasons)}")
        if item.inflated:
            lines.append(f"{number}. {item.inflated}: without that it would be lower")
    for rate in result.max_rates:
        if rate.estimate is not None and rate.estimate.invalid_runs:
            late = next(run.reason for run in rate.estimate.runs if not run.valid)
            few = ": the interval holds only for the runs that are left, however narrow it is" if _remark(rate) else ""
            left = f"{rate.estimate.invalid_runs} of {len(rate.estimate.runs)} runs left out"
            lines.append(f"{rate.case} {rate.setting}: {left}{few} ({late})")
        if rate.inflated is not None:
            lines.append(f"{rate.case} {rate.setting}: {rate.inflated}: the rate is a lower bound")
        if rate.estimate is not None and rate.estimate.counted is not None:
            lines.append(f"{rate.case} {rate.setting}: {_counted(rate.estimate.counted)}")
        if rate.reason is not None:
            lines.append(f"{rate.case} {rate.setting}: {rate.reason}")
    lines += [
        f"{record.case} failed ({record.kind}): {record.message.splitlines()[0]}"
        for record in result.run.failures
        if record.stage in ("serve", "variant")
    ]
    if lines:
        page.heading("What to doubt")
        for line in lines:
            page.line(line, indent=2, hanging=2)
    if any("?" in _time(item.p99)[1] for item in result.scenarios):
        page.line(
            "? stands for a bound that these runs do not give: a longer --duration or more --repeats would.", indent=2
        )


def _counted(counted: tuple[float, float, float]) -> str:
    """What the model-free way says, beside what was replayed."""
    rate, low, high = map(significant, counted)
    return (
        f"the rate comes from the measured service times with arrivals drawn anew; the late requests counted in these few runs "
        f"alone give {rate}/s [{low}, {high}]"
    )


def _figure_json(figure: Figure) -> dict[str, Any]:
    if isinstance(figure, Estimate):
        return {"value": figure.value, "low": figure.low, "high": figure.high, "unit": figure.unit, "note": figure.note}
    return {"value": None, "reason": figure.reason}


def _scenario_json(item: LoadFigures) -> dict[str, Any]:
    return {
        "case": item.case, "setting": item.setting, "rate_per_s": item.rate_per_s, "runs": item.runs,
        "valid_runs": item.valid_runs, "valid": item.valid, "reasons": list(item.reasons), "inflated": item.inflated,
        "offered_per_s": item.offered_per_s, "achieved_per_s": _figure_json(item.achieved_per_s),
        "latency_p50_s": _figure_json(item.p50), "latency_p99_s": _figure_json(item.p99),
        "queueing_p50_s": _figure_json(item.queueing_p50), "queueing_p99_s": _figure_json(item.queueing_p99),
        "service_p50_s": _figure_json(item.service_p50), "service_p99_s": _figure_json(item.service_p99),
        "lateness_p99_s": item.lateness_p99_s, "mean_batch": item.mean_batch, "generator_share": item.generator_share,
    }  # fmt: skip


def _max_rate_json(rate: MaxRate) -> dict[str, Any]:
    return {
        "case": rate.case, "setting": rate.setting, "slo_s": rate.slo_s, "p": rate.p,
        "service_s": _figure_json(rate.service), "rate_per_s": rate.rate_per_s,
        "reason": rate.reason, "inflated": rate.inflated, "estimate": None if rate.estimate is None else asdict(rate.estimate),
    }  # fmt: skip


def _finite(value: Any) -> Any:
    """JSON has no NaN and no Infinity."""
    if isinstance(value, dict):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
