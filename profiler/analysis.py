"""From records to what may be said: estimates with intervals, the frontier, verdicts and the recommendation. Pure.

Nothing here measures or stores. The same run analysed by a later edgeprof profits from its better methods.
"""

from __future__ import annotations

import re
import statistics
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import date
from functools import cache, cached_property, partial
from typing import Any, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtrit

from profiler import advice, stopping, units
from profiler.disturbance import Judged, dirty_share, excluded_share
from profiler.errors import EdgeprofError, StudyError, unknown
from profiler.grade import Grade, dedicated, grade
from profiler.latency import LEVEL, View, judged_ratio, latency, time_to_steady, view_of
from profiler.machines import EMULATED, EMULATED_MEMORY, Machine, machine
from profiler.pricing import PriceTerms, Pricing
from profiler.quality import compare, verdict
from profiler.quality.chance import doubtful
from profiler.quality.family import Member
from profiler.quality.metrics import Metric, stored_metric
from profiler.records import (
    BESIDE_TIMING,
    RACE,
    REFERENCE_VARIANT,
    ArtifactRecord,
    Chance,
    Estimate,
    FailureRecord,
    Figure,
    NotMeasured,
    ProcessRecord,
    QualityRecord,
)
from profiler.stats.energy import energy_figure
from profiler.stats.ratios import RatioEstimate, compare_verdict, holm
from profiler.store import RunData
from profiler.study import Case, own_reference
from profiler.targets.config import LOCAL

Verdict = Literal["PASS", "FAIL", "INCONCLUSIVE", "NOT_MEASURED"]
Status = Literal["measured", "failed", "skipped", "not finished"]

_R = TypeVar("_R")
DROP_CHECK = "accuracy drop"
P99_CHECK, MEMORY_CHECK, MONEY_CHECK = "p99", "peak RSS", "USD per million"
"""Names of the checks of `max_drop`, `slo_p99_s`, `max_memory_bytes` and `max_usd_per_million`."""
QUESTION_OPEN = "what is to be evaluated is not clear: a question stands in the notes"
NO_BETTER_THAN_CHANCE = "the reference's answers are no better than chance, so a comparison with them shows nothing"
_KEY = re.compile(r"(?P<variant>[^@]+)@(?P<backend>[^/]+)/b(?P<batch>\d+)(?:/t(?P<threads>\d+))?(?:@(?P<target>.+))?")


@dataclass(frozen=True)
class Check:
    """One constraint on one case."""

    name: str
    verdict: Verdict
    text: str


@dataclass(frozen=True)
class ForLimits:
    """What limits are held against where it is not the figure that is shown: bounds for the next process."""

    p99_s: Figure
    p99_observed_s: Figure
    peak_rss_bytes: Figure


DEFAULT_DROP = 0.01
"""Loss accepted where the user names none: one percentage point, or one per cent of an error metric."""


@dataclass(frozen=True)
class Stopping:
    """`fixed`: as many processes as asked; `converged`: the asked precision is reached; `budget_exhausted`: it is not."""

    status: Literal["fixed", "converged", "budget_exhausted"]
    reason: str


@dataclass(frozen=True)
class CaseResult:
    """All that can be said about one case."""

    number: int
    """Counts from 1 in the order of the plan; `edgeprof show RUN NUMBER`."""
    case: Case
    machine: Machine
    """Where it ran."""
    status: Status
    failure: FailureRecord | None
    latency_p50_s: Figure
    latency_p90_s: Figure
    latency_p99_s: Figure
    """Of one inference of the whole batch, service time only: no queue in front of it."""
    throughput_per_s: Figure
    """Samples per second, back to back."""
    observed: Mapping[str, Figure]
    """Percentiles and throughput of all samples; the fields above leave interference out."""
    excluded_share: float | None
    """Share of the samples left out there; None where nothing on this system tells interference apart."""
    dirty_share: float | None
    """Share of the blocks that were disturbed from outside."""
    stopping: Stopping
    """Why the measurement of this case ended."""
    time_ratio: Figure
    """p50 time of this case / of the reference case on the same target at the same batch and threads; below 1 is faster."""
    compared_with: str | None
    """Key of that reference: the unmodified model on the first backend where it ran; None where it ran on none."""
    time_ratio_verdict: str
    """`differs`, `equivalent` (within ±2 %) or `inconclusive`; corrected for the number of cases (Holm)."""
    time_ratio_own: Figure
    """The same against the unmodified model on this case's own backend."""
    import_s: Figure
    load_s: Figure
    first_inference_s: Figure
    time_to_steady_s: Figure
    """How long inferences had to run until they were steady."""
    peak_rss_bytes: Figure
    size_bytes: Figure
    compressed_bytes: Figure
    energy_j: Figure
    accuracy: Figure
    accuracy_change: Figure
    """Against the reference on the same samples; negative means worse."""
    agreement: Figure
    reference_quality: str | None
    """Key of the quality record that accuracy was compared with."""
    usd_per_million: Figure
    checks: tuple[Check, ...]
    verdict: Verdict
    blocks: int
    samples: int
    raced: bool
    """Whether these are the short blocks of a search's race, and no final measurement."""
    process: ProcessRecord | None
    """The last process of this case: realised provider, versions, precision."""
    warmup_labels: tuple[str, ...]
    notes: tuple[str, ...]
    runtime_doubt: str | None = None
    """Why its answers are not to be trusted: its runtime computes another function from the file than others do."""
    view: View = "undisturbed"
    """Which samples latency, throughput and ratios are of; the same for all cases of a machine."""
    typical: frozenset[str] = frozenset()
    """Which percentiles (by field) speak of a typical process, because processes differ too much to bound all of them."""
    for_limits: ForLimits | None = None
    default_check: Check | None = None
    """What a limit of one point (one per cent of an error) says, where the study has no limit of its own."""
    price: PriceTerms | None = None
    """What `usd_per_million` rests on; None where there is none."""

    @property
    def is_reference(self) -> bool:
        """Whether it is the unmodified model that cases of its batch and threads are compared with."""
        return self.key == self.compared_with

    @property
    def key(self) -> str:
        """The case's name."""
        return self.case.key

    def figure(self, axis: str) -> Figure:
        """The figure of an axis name (`AXES`)."""
        figure = getattr(self, AXES[axis].field)
        assert isinstance(figure, (Estimate, NotMeasured))
        return figure


@dataclass(frozen=True)
class Axis:
    """A quantity that frontiers can be drawn over."""

    field: str
    title: str
    maximise: bool = False


AXES: Mapping[str, Axis] = {
    "latency_p50": Axis("latency_p50_s", "latency p50"),
    "latency_p99": Axis("latency_p99_s", "latency p99"),
    "throughput": Axis("throughput_per_s", "throughput", maximise=True),
    "usd_per_million": Axis("usd_per_million", "USD per million inferences"),
    "energy": Axis("energy_j", "energy per inference"),
    "peak_rss": Axis("peak_rss_bytes", "peak RSS"),
    "size": Axis("size_bytes", "model size"),
    "accuracy": Axis("accuracy", "accuracy", maximise=True),
    "agreement": Axis("agreement", "agreement with the reference", maximise=True),
}


@dataclass(frozen=True)
class Analysis:
    """A run, understood. Renderers are functions of this."""

    run: RunData
    metric: Metric | None
    reference: str | None
    """Key of the case that the others are compared with, on the first target, at the first batch and thread count."""
    references: Mapping[str, str]
    """The same of each target that has one."""
    cases: tuple[CaseResult, ...]
    judged: Mapping[str, Sequence[Judged]]
    """The blocks of each case, with what disturbed them."""
    grade: Grade
    """How far the numbers can be trusted; of several machines, the lowest of theirs."""
    grades: Mapping[str, Grade]
    """The grade of each machine, by its `group`."""
    machines: tuple[Machine, ...]
    """In the order of the plan."""
    machine: str | None
    """What the run is priced as, `aws:c7i.large`; None when neither declared nor detected, or when there are several."""
    notes: tuple[str, ...]
    output: str | None = None
    """The model's output that accuracy and agreement are over; None: all, none, or a run that did not record it."""
    question: str | None = None
    """What has to be answered before accuracy can be measured: which output holds the answers, say."""
    chance: Chance | None = None
    """How far the reference's answers are better than such that have nothing to do with the labels; None where untested."""
    doubtful: bool = False
    """Whether they are not: then accuracy, its change and the verdict on it show nothing."""

    doubtful_reference: bool = False
    """Whether the runtimes disagree about the unmodified model and none is known to be right: nothing can be paired with it."""
    members: Mapping[str, Member] = field(default_factory=dict)
    """By case: its answers, held against any limit at any level. Absent where nothing can be: no data, no bound."""
    drop_limit: float | None = None
    """The largest accepted loss, in the metric's unit: what the study says, else `DEFAULT_DROP`. None without a metric."""

    @cached_property
    def memo(self) -> dict[Any, Any]:
        """For whoever computes something from this analysis that several ask for: what was found, by a key of their own."""
        return {}

    def on(self, group: str) -> Analysis:
        """What belongs to one machine, by its `group`."""
        machines = tuple(item for item in self.machines if item.group == group)
        references = {item.target: self.references[item.target] for item in machines if item.target in self.references}
        return replace(
            self, cases=tuple(case for case in self.cases if case.machine.group == group), machines=machines,
            reference=next(iter(references.values()), None), references=references, grade=self.grades[group],
            grades={group: self.grades[group]}, machine=_priced_as(machines),
        )  # fmt: skip

    @property
    def groups(self) -> tuple[str, ...]:
        """Machines whose timings may be compared among each other, by `group`: devices first, then envelopes, no emulators."""
        shown = sorted((item for item in self.machines if not item.emulated), key=lambda item: not item.real)
        return tuple(dict.fromkeys(item.group for item in shown))

    @property
    def devices(self) -> tuple[str, ...]:
        """Those that one can have."""
        return tuple(dict.fromkeys(item.group for item in self.machines if item.real))

    def case(self, text: str) -> CaseResult:
        """A case by number, key or unique prefix. Raises StudyError."""
        # Tables call this machine by its name where there are others.
        text = text.removesuffix(f"@{LOCAL}")
        found = [result for result in self.cases if text in (result.key, str(result.number))]
        found = found or [result for result in self.cases if result.key.startswith(text)]
        if len(found) > 1:
            names = ", ".join(f"{result.number} {result.key}" for result in found[:6])
            raise StudyError(f"'{text}' fits {len(found)} cases: {names}. Give the number or more of the name.")
        if not found:
            raise unknown("case", text, [result.key for result in self.cases], hint="Numbers of the table work too.")
        return found[0]

    @property
    def reference_case(self) -> CaseResult | None:
        """The case that the others are compared with."""
        return next((case for case in self.cases if case.key == self.reference), None)

    @property
    def measured(self) -> tuple[CaseResult, ...]:
        """The cases with timings."""
        return tuple(result for result in self.cases if result.status == "measured")


@dataclass(frozen=True)
class _Evidence:
    """A run's records, by what they belong to."""

    run: RunData
    judged: Mapping[str, Sequence[Judged]]
    processes: Mapping[str, Sequence[ProcessRecord]]
    qualities: Mapping[str, QualityRecord]
    artifacts: Mapping[str, ArtifactRecord]
    failures: Mapping[str, FailureRecord]
    ids: NDArray[np.str_] | None
    """Source of each evaluation row where rows share one."""
    look: stopping.RunLook
    metric_missing: str | None = None
    """Why the metric that the rows were kept for is not at hand."""
    changes: MutableMapping[str, compare.PairedChange] = field(default_factory=dict)
    """By quality key: against the reference. Resampling takes time, and several cases share their answers."""
    views: Mapping[str, View] = field(default_factory=dict)
    """By the machine's group."""


def analyse(run: RunData, *, today: date) -> Analysis:
    """Everything that the records of a run support. `today` only decides whether prices are called stale."""
    run = _in_order(run)
    judged = stopping.judged_by_case(run)
    evidence = _Evidence(
        run,
        judged,
        _by(run.processes, lambda process: process.case),
        {record.case: record for record in run.qualities},
        {record.variant: record for record in run.artifacts},
        {record.case: record for record in run.failures if record.stage not in BESIDE_TIMING},
        None if run.plan.get("clusters") is None else np.asarray(run.plan["clusters"]).astype(np.str_),
        stopping.look(run, judged) if stopping.sequential(run.study) else stopping.RunLook(False, {}),
    )
    cases = [Case(**fields) for fields in run.plan.get("cases", [])]
    metric, missing = _metric(run)
    evidence = replace(evidence, metric_missing=missing)
    pricing = Pricing.of(run, today)
    grades = _grades(evidence, pricing.machines)
    references = {(case.target, case.batch, case.threads): _reference(evidence, cases, case) for case in cases}
    evidence = replace(evidence, views=_views(evidence, cases, references, pricing.machines))
    results = [
        _result(number, case, evidence, references[case.target, case.batch, case.threads], metric, pricing, grades)
        for number, case in enumerate(cases, start=1)
    ]
    results = _holm_corrected(results, evidence, references)
    first: dict[str, str] = {}
    for (target, _, _), reference in references.items():
        if reference is not None:
            first.setdefault(target, reference.key)
    skipped = [
        _unplanned(number, failure, run) for number, failure in enumerate(_outside_plan(run, cases), len(results) + 1)
    ]
    machines = tuple(pricing.machines.values())
    told = evidence.qualities.get(_reference_quality(evidence) or "")
    asked = next((record.question for record in run.qualities if record.question is not None), None)
    limit = _drop_limit(evidence, metric)
    return Analysis(
        run, metric, next(iter(first.values()), None), first, (*results, *skipped), evidence.judged,
        _lowest(grades, machines), grades, machines, _priced_as(machines),
        (*run.notes, *(() if asked is None else (asked,)), *(() if told is None else told.notes), *pricing.notes,
         *(record.text for record in run.runtimes if record.text)),
        output=next((record.output for record in run.qualities if record.output is not None), None), question=asked,
        chance=None if told is None else told.chance, doubtful=told is not None and doubtful(told),
        doubtful_reference=(base := _reference_quality(evidence)) is not None
        and any(record.undecided and base in record.doubted for record in run.runtimes),
        members=_members(results, evidence, limit), drop_limit=limit,
    )  # fmt: skip


def _views(
    evidence: _Evidence, cases: Sequence[Case], references: Mapping[tuple[str, int, int], Case | None],
    machines: Mapping[str, Machine],
) -> dict[str, View]:  # fmt: skip
    """The view of each machine, by group."""
    found: dict[str, View] = {}
    for group in dict.fromkeys(item.group for item in machines.values()):
        # What failed half-way is compared with nothing.
        own = [case for case in cases if machines[case.target].group == group and case.key not in evidence.failures]
        pairs = []
        for case in own:
            reference = references[case.target, case.batch, case.threads]
            if reference is not None and reference != case:
                pairs.append((case.key, reference.key))
        found[group] = view_of({case.key: evidence.judged.get(case.key, ()) for case in own}, pairs)
    return found


def _drop_limit(evidence: _Evidence, metric: Metric | None) -> float | None:
    """The limit on the loss that holds in this run, in the metric's unit."""
    asked = evidence.run.study.constraints.max_drop
    if asked is not None or metric is None:
        return asked
    base = _reference_quality(evidence)
    if metric.unit == "proportion" or metric.name == "agreement" or base is None:
        return DEFAULT_DROP
    return DEFAULT_DROP * abs(metric.value(evidence.qualities[base].per_sample))


def _members(results: Sequence[CaseResult], evidence: _Evidence, limit: float | None) -> dict[str, Member]:
    """The answers of each case as something to be held against the limit, at any level."""
    if limit is None:
        return {}
    found: dict[str, Member] = {}
    by_quality: dict[str, Member] = {}
    for result in results:
        record = evidence.qualities.get(result.case.quality_key)
        if record is None or record.case == result.reference_quality or record.question is not None:
            continue
        if record.case not in by_quality:
            change = evidence.changes.get(record.case)
            lower = (
                partial(_agreement_low, record.agreement, evidence.ids)
                if change is None
                else partial(_change_low, change, limit)
            )
            by_quality[record.case] = Member((record.per_sample, record.predictions, record.agreement), cache(lower))
        found[result.key] = by_quality[record.case]
    return found


def _change_low(change: compare.PairedChange, limit: float, alpha: float) -> float | None:
    return verdict.lower_bound(change, limit, alpha)


def _agreement_low(agreement: NDArray[np.float64], ids: NDArray[np.str_] | None, alpha: float) -> float | None:
    """Without labels: answers that changed may all have become worse."""
    return verdict.agreement_low(agreement, ids=ids, alpha=alpha)


def _priced_as(machines: Sequence[Machine]) -> str | None:
    """What all of them are priced as; None when they differ."""
    found = {item.priced_as for item in machines if item.real}
    return found.pop() if len(found) == 1 else None


def _grades(evidence: _Evidence, machines: Mapping[str, Machine]) -> dict[str, Grade]:
    """The grade of each machine, from its own blocks. What the run knows beside them it knows of the host that ran it."""
    plan = evidence.run.plan
    by_group: dict[str, dict[str, Sequence[Judged]]] = {item.group: {} for item in machines.values()}
    for key, judged in evidence.judged.items():
        found = machines.get(_case_of(key).target)
        if found is not None:
            by_group[found.group][key] = judged
    kinds = {item.group: item for item in machines.values()}
    return {group: _grade(plan, kinds[group], blocks) for group, blocks in by_group.items()}


def _grade(plan: Mapping[str, Any], where: Machine, judged: Mapping[str, Sequence[Judged]]) -> Grade:
    if where.emulated:
        return Grade("D", (EMULATED,), False)
    counts = [len({item.block.replicate for item in found}) for found in judged.values()]
    here = where.here
    found = grade(
        # Of another machine only what its blocks tell; the first reason below says what that leaves open.
        dirty=dirty_share(judged), processes=min(counts, default=0),
        selftest=plan.get("selftest") if here else {"passed": True},
        dedicated=dedicated(
            plan.get("dedicated") if here else None, [item.block.labels for found in judged.values() for item in found]
        ),
        fixed_clocks=plan.get("fixed_clocks") if here else None,
        excluded=max((share for found in judged.values() if (share := excluded_share(found)) is not None), default=None),
    )  # fmt: skip
    if here:
        return found
    return Grade(
        "D",
        (f"no self-test ran on {where.name}: what measuring adds there is not known", *found.reasons),
        found.absolute,
        tested=False,
    )


def _lowest(grades: Mapping[str, Grade], machines: Sequence[Machine]) -> Grade:
    """What can be said of all devices together; of emulators and envelopes only where nothing else is."""
    groups = list(dict.fromkeys(item.group for item in machines if item.real)) or list(grades)
    if len(groups) == 1:
        return grades[groups[0]]
    letter = max(grades[group].letter for group in groups)
    reasons = [
        f"{group}: {reason}" for group in groups if grades[group].letter == letter for reason in grades[group].reasons
    ]
    return Grade(letter, tuple(reasons), all(grades[group].absolute for group in groups))


def _metric(run: RunData) -> tuple[Metric | None, str | None]:
    """The run's metric, or why there is none: a later or earlier version may not know its name."""
    if not run.qualities:
        return None, None
    first = run.qualities[0]
    if first.question is not None:
        return None, None
    try:
        return stored_metric(first.metric, first.metric_unit, first.higher_is_better), None
    except EdgeprofError as error:
        return None, str(error)


def _in_order(run: RunData) -> RunData:
    """The run with its records in one order, whatever order a database gave them in: qualities in that of the plan."""
    plan = {Case(**fields).quality_key: place for place, fields in reversed(list(enumerate(run.plan.get("cases", []))))}
    return replace(
        run,
        processes=tuple(sorted(run.processes, key=lambda r: (r.case, r.replicate, r.attempt, r.group))),
        blocks=tuple(sorted(run.blocks, key=lambda r: (r.case, r.replicate, r.attempt, r.group, r.round))),
        qualities=tuple(sorted(run.qualities, key=lambda r: (plan.get(r.case, len(plan)), r.case))),
        failures=tuple(sorted(run.failures, key=lambda r: (r.case, r.stage))),
    )


def _reference(evidence: _Evidence, cases: Sequence[Case], like: Case) -> Case | None:
    """The unmodified model at the same target, batch and threads, on the first of the study's backends where it ran."""
    for backend in evidence.run.study.backends:
        case = Case(REFERENCE_VARIANT, backend, like.target, like.batch, like.threads)
        if case in cases and evidence.judged.get(case.key):
            return case
    return None


def _result(
    number: int,
    case: Case,
    evidence: _Evidence,
    reference: Case | None,
    metric: Metric | None,
    pricing: Pricing,
    grades: Mapping[str, Grade],
) -> CaseResult:
    where = pricing.machines[case.target]
    judged = evidence.judged.get(case.key, ())
    processes = evidence.processes.get(case.key, ())
    artifact = evidence.artifacts.get(case.variant)
    failure = evidence.failures.get(case.key) or evidence.failures.get(case.quality_key)
    status = _status(judged, failure, evidence.run)
    why = _why_not(status, failure, evidence.run)
    own = own_reference(case)
    raced = bool(judged) and all(RACE in item.block.labels for item in judged)
    shown = evidence.views.get(where.group, "undisturbed")
    timed = latency(judged, case.batch, why, shown)
    base = _reference_quality(evidence)
    accuracy, change, agreement = _quality(case, evidence, metric, base)
    joules = energy_figure(evidence.run.energies, case.key, failures=evidence.run.failures, level=LEVEL)
    # A rented machine is paid as it is: with whatever disturbed it.
    money = pricing.price(where, timed.observed["throughput_per_s"], processes, joules, case.batch)
    peaks = [process.peak_rss_bytes for process in processes]
    result = CaseResult(
        number=number, case=case, machine=where, status=status, failure=failure,
        latency_p50_s=timed.shown["latency_p50_s"], latency_p90_s=timed.shown["latency_p90_s"],
        latency_p99_s=timed.shown["latency_p99_s"], throughput_per_s=timed.shown["throughput_per_s"],
        observed=timed.observed, excluded_share=timed.excluded_share, dirty_share=timed.dirty_share,
        stopping=_stopping(case, evidence),
        time_ratio=_ratio_figure(evidence, case, reference, why, shown), time_ratio_verdict="inconclusive",
        compared_with=None if reference is None else reference.key,
        time_ratio_own=_ratio_figure(evidence, case, own, why, shown),
        import_s=_spread([process.import_s for process in processes], "s", why),
        load_s=_spread([process.load_s for process in processes], "s", why),
        first_inference_s=_spread([process.first_inference_s for process in processes], "s", why),
        time_to_steady_s=time_to_steady(processes, why),
        peak_rss_bytes=_spread(peaks, "B", why),
        size_bytes=_exact(None if artifact is None else artifact.size_bytes, "B"),
        compressed_bytes=_exact(None if artifact is None else artifact.compressed_bytes, "B"),
        energy_j=joules,
        accuracy=accuracy, accuracy_change=change, agreement=agreement,
        reference_quality=base,
        usd_per_million=money.figure, price=money.terms,
        checks=(), verdict="NOT_MEASURED", blocks=len(judged), samples=sum(len(item.observed) for item in judged),
        raced=raced, process=processes[-1] if processes else None,
        warmup_labels=tuple(process.warmup.label for process in processes if process.warmup is not None),
        notes=(*(artifact.notes if artifact is not None else ()), *timed.notes, *([_raced(len(judged))] if raced else [])),
        runtime_doubt=_runtime_doubt(evidence, case),
        view=shown, typical=timed.typical,
        for_limits=ForLimits(timed.limit_p99, timed.limit_p99_observed, _next_process(peaks, "B", why)),
    )  # fmt: skip
    return _checked(_sourced(result), evidence, metric, grades[where.group])


def _runtime_doubt(evidence: _Evidence, case: Case) -> str | None:
    """Why the answers of this case's runtime are not trusted; None where they are, or nothing was compared."""
    found = next((record for record in evidence.run.runtimes if case.quality_key in record.doubted), None)
    if found is None:
        return None
    if found.undecided:
        others = " and ".join(name for name in found.backends if name != case.backend)
        return f"it answers otherwise than {others} ({found.difference}), and which is right could not be told"
    safe = found.cautious.get(case.backend)
    advice = "" if safe is None else f"; {safe} is right"
    others = ", ".join(found.agreeing)
    return f"{case.backend} computes another function from this file than {others} ({found.difference}){advice}"


def _raced(blocks: int) -> str:
    return f"raced only: {blocks} short blocks of the search, not the final measurement"


_TIMED = (
    "latency_p50_s", "latency_p90_s", "latency_p99_s", "throughput_per_s", "time_ratio", "time_ratio_own", "import_s", "load_s",
    "first_inference_s", "time_to_steady_s", "energy_j",
)  # fmt: skip


def _sourced(result: CaseResult) -> CaseResult:
    """The result with the word emulated or envelope beside every figure that is not a device's own."""
    source = result.machine.source

    def told(figure: Figure) -> Figure:
        return replace(figure, source=source) if isinstance(figure, Estimate) else figure

    if result.machine.real:
        return result
    # What a process needs inside an envelope is what it needs; an emulator's process holds the emulator too.
    names = [*_TIMED, *(["peak_rss_bytes"] if result.machine.emulated else [])]
    fields: dict[str, Any] = {name: told(getattr(result, name)) for name in names}
    return replace(result, observed={name: told(figure) for name, figure in result.observed.items()}, **fields)


def _status(judged: Sequence[Judged], failure: FailureRecord | None, run: RunData) -> Status:
    if failure is not None:
        return "skipped" if failure.kind == "skipped" else "failed"
    effort = run.study.effort
    done = len({(item.block.replicate, item.block.round) for item in judged}) >= effort.processes * effort.rounds
    return "measured" if done or (judged and run.status != "running") else "not finished"


def _stopping(case: Case, evidence: _Evidence) -> Stopping:
    study = evidence.run.study
    if not stopping.sequential(study):
        return Stopping("fixed", f"{study.effort.processes} processes of {study.effort.rounds} rounds, as asked")
    found = evidence.look.by_case.get(case.key)
    if found is None:
        return Stopping("budget_exhausted", "nothing was measured")
    return Stopping("converged" if found.converged else "budget_exhausted", found.reason)


def _why_not(status: Status, failure: FailureRecord | None, run: RunData) -> str:
    if failure is not None:
        return f"{failure.kind} in stage {failure.stage}: {failure.message.splitlines()[0][:200]}"
    if status == "measured":
        return "nothing was recorded"
    return f"the run was not finished: `{advice.resume(run.id, search='search' in run.plan)}`"


def _ratio_figure(evidence: _Evidence, case: Case, reference: Case | None, why: str, shown: View) -> Figure:
    if reference is None or not evidence.judged.get(reference.key):
        return NotMeasured("the unmodified model was not measured beside it")
    if reference == case:
        return Estimate(1.0, 1.0, 1.0, "×", LEVEL, note="the reference itself")
    own, other = evidence.judged.get(case.key, ()), evidence.judged[reference.key]
    ratio = judged_ratio(own, other, shown)
    if own and {item.block.group for item in own}.isdisjoint(item.block.group for item in other):
        # A race has the run's reference in each group, but not the unmodified model of each backend.
        why = f"{reference.key} was not measured in the same rounds"
    if ratio is None:
        return NotMeasured(why)
    note = "; ".join(filter(None, (ratio.note, "as observed, interference included" if shown == "observed" else None)))
    return Estimate(ratio.value, ratio.low, ratio.high, "×", LEVEL, note=note or None)


def _spread(values: Sequence[float | int | None], unit: str, why: str) -> Figure:
    """Median over processes with their range: few values, whose spread is what there is to say."""
    known = [float(value) for value in values if value is not None]
    if not known:
        return NotMeasured(why if not values else "this system does not tell")
    note = f"median and range of {len(known)} processes"
    return Estimate(statistics.median(known), min(known), max(known), unit, LEVEL, note=note)


def _next_process(values: Sequence[float | int | None], unit: str, why: str) -> Figure:
    """Bounds for one more process: what was seen, and Student's prediction from its spread."""
    known = [float(value) for value in values if value is not None]
    if not known:
        return NotMeasured(why if not values else "this system does not tell")
    middle = statistics.median(known)
    if len(known) < 2:
        return Estimate(
            middle, None, None, unit, LEVEL, note="one process does not tell how far the next one is from it"
        )
    reach = float(stdtrit(len(known) - 1, (1 + LEVEL) / 2)) * statistics.stdev(known) * (1 + 1 / len(known)) ** 0.5
    mean = statistics.fmean(known)
    note = f"for one more process than the {len(known)} that were seen"
    return Estimate(middle, min(*known, mean - reach), max(*known, mean + reach), unit, LEVEL, note=note)


def _exact(value: int | None, unit: str) -> Figure:
    return NotMeasured("not determined") if value is None else Estimate(value, value, value, unit, 1.0, note="exact")


def _quality(
    case: Case, evidence: _Evidence, metric: Metric | None, base_key: str | None
) -> tuple[Figure, Figure, Figure]:
    """Accuracy, its paired change against the reference, and agreement with the reference."""
    record = evidence.qualities.get(case.quality_key)
    if record is not None and record.question is not None:
        absent = NotMeasured(QUESTION_OPEN)
        return absent, absent, absent
    if record is not None and evidence.metric_missing is not None:
        absent = NotMeasured(evidence.metric_missing)
        return absent, absent, compare.agreement_estimate(record.agreement, ids=evidence.ids)
    if record is None or metric is None:
        failure = evidence.failures.get(case.quality_key)
        if failure is not None:
            reason = failure.message.splitlines()[0][:200]
        elif evidence.run.study.data is None:
            reason = "no data was given"
        else:
            reason = "not evaluated"
        return NotMeasured(reason), NotMeasured(reason), NotMeasured(reason)
    agreement = compare.agreement_estimate(record.agreement, ids=evidence.ids)
    if metric.name == "agreement":
        absent = NotMeasured("the data has no labels: only agreement with the reference is known")
        return absent, absent, agreement
    accuracy = compare.metric_estimate(metric, record.per_sample, ids=evidence.ids)
    base = None if base_key is None else evidence.qualities[base_key]
    if base is None:
        return accuracy, NotMeasured("the reference was not evaluated"), agreement
    if base.case == record.case:
        return accuracy, Estimate(0.0, 0.0, 0.0, accuracy.unit, LEVEL, note="the reference itself"), agreement
    if record.case not in evidence.changes:
        found = compare.paired_change(metric, base.per_sample, record.per_sample, ids=evidence.ids)
        evidence.changes[record.case] = found
    return accuracy, evidence.changes[record.case].at(LEVEL), agreement


def _reference_quality(evidence: _Evidence) -> str | None:
    """The first evaluation of the unmodified model in the order of the plan: the one that agreement was computed with.

    One by a runtime that computes another function comes last, as it does in the evaluation.
    """
    doubted = {key for record in evidence.run.runtimes for key in record.doubted}
    found = [key for key in evidence.qualities if key.startswith(f"{REFERENCE_VARIANT}@")]
    return min(found, key=lambda key: key in doubted, default=None)


def _checked(result: CaseResult, evidence: _Evidence, metric: Metric | None, graded: Grade) -> CaseResult:
    limits = evidence.run.study.constraints
    checks = []
    implied = None
    limit = _drop_limit(evidence, metric)
    if limits.max_drop is not None:
        checks.append(_check_drop(result, limits.max_drop, evidence, metric))
    elif limit is not None:
        implied = _check_drop(result, limit, evidence, metric)
    for name, figure, asked in (
        (P99_CHECK, result.latency_p99_s, limits.slo_p99_s),
        (MEMORY_CHECK, result.peak_rss_bytes, limits.max_memory_bytes),
        (MONEY_CHECK, result.usd_per_million, limits.max_usd_per_million),
    ):
        if asked is not None:
            checks.append(_check_figure(name, figure, float(asked), result, graded))
    return replace(result, checks=tuple(checks), verdict=_overall(result, checks), default_check=implied)


def _check_drop(result: CaseResult, max_drop: float, evidence: _Evidence, metric: Metric | None) -> Check:
    name = DROP_CHECK
    record = evidence.qualities.get(result.case.quality_key)
    if record is None or metric is None:
        reason = result.accuracy_change.reason if isinstance(result.accuracy_change, NotMeasured) else "no metric"
        return Check(name, "NOT_MEASURED", reason)
    if record.question is not None:
        return Check(name, "NOT_MEASURED", QUESTION_OPEN)
    misfit = evidence.run.study.constraints.drop_misfit(metric.name, metric.unit)
    if misfit is not None:
        return Check(name, "NOT_MEASURED", misfit)
    if record.case == result.reference_quality:
        return Check(name, "PASS", "the reference itself")
    if result.reference_quality is not None and doubtful(evidence.qualities[result.reference_quality]):
        return Check(name, "NOT_MEASURED", NO_BETTER_THAN_CHANCE)
    if isinstance(result.accuracy_change, NotMeasured):
        asked = evidence.metric_missing is not None or evidence.run.study.constraints.max_drop is not None
        if asked and not set(np.unique(record.agreement)) <= {0.0, 1.0}:
            return Check(name, "NOT_MEASURED", result.accuracy_change.reason)
        bound = verdict.label_free_verdict(record.agreement, max_drop, ids=evidence.ids)
        return Check(name, bound.verdict, bound.reason)
    decided = verdict.change_verdict(evidence.changes[record.case], max_drop)
    return Check(name, decided.verdict, decided.reason)


def _check_figure(name: str, figure: Figure, limit: float, result: CaseResult, graded: Grade) -> Check:
    """A limit on a figure of the machine: only decided by a machine that one can have."""
    if isinstance(figure, Estimate) and figure.source in ("emulated", "envelope"):
        why = EMULATED_MEMORY if name == MEMORY_CHECK else result.machine.why_not_real or figure.source
        return Check(name, "NOT_MEASURED", f"not decided: {why}")
    if name == P99_CHECK:
        return _check_p99(result, limit, graded)
    if name == MONEY_CHECK and result.price is not None:
        return _check_money(figure, result.price, limit)
    if name == MEMORY_CHECK and result.for_limits is not None:
        figure = result.for_limits.peak_rss_bytes
    return _check_limit(name, figure, limit)


def _check_p99(result: CaseResult, limit: float, graded: Grade) -> Check:
    """Disturbance only lengthens: what is met with it is met. Otherwise the machine has to be quiet enough to say, and both views
    of the samples to agree. Held against the limit are the bounds for a fresh process.
    """
    held = result.for_limits
    shown, seen = result.latency_p99_s, result.observed.get("latency_p99_s", result.latency_p99_s)
    if held is not None and isinstance(shown, Estimate):
        shown, seen = held.p99_s, held.p99_observed_s
    check, observed = (_check_limit(P99_CHECK, figure, limit) for figure in (shown, seen))
    if isinstance(shown, Estimate) and "latency_p99_s" in result.typical:
        check = replace(check, text=f"{check.text} (bounds for a fresh process; p99 is of a typical one)")
    if check.verdict in ("INCONCLUSIVE", "NOT_MEASURED") and observed.verdict != "PASS":
        return check
    if observed.verdict == "PASS":
        return check if check.verdict == "PASS" else replace(observed, text=f"as observed {observed.text}")
    if not graded.absolute:
        why = f"but too much was disturbed to decide it on this machine ({graded.told})"
        return Check(check.name, "INCONCLUSIVE", f"{check.text} with interference excluded, {why}")
    if observed.verdict in (check.verdict, "NOT_MEASURED"):
        return check
    why = (
        "the two views of the same samples disagree, so what disturbed this machine decides it: measure when it is quiet "
        "(edgeprof doctor)"
    )
    return Check(
        check.name, "INCONCLUSIVE", f"{check.text} with interference excluded; as observed {observed.text}: {why}"
    )


def _check_money(figure: Figure, price: PriceTerms, limit: float) -> Check:
    """Where a worker is priced as its share of a machine: met by the whole price, missed by the share, or open."""
    whole, share = _check_limit(MONEY_CHECK, price.whole, limit), _check_limit(MONEY_CHECK, figure, limit)
    if price.share == 1 or whole.verdict == "PASS" or share.verdict != "PASS":
        return whole if whole.verdict == "PASS" else share
    why = f"met if all of {price.of} serve as well, which was not measured (edgeprof load --workers)"
    return Check(MONEY_CHECK, "INCONCLUSIVE", f"{share.text}: {why}")


def _check_limit(name: str, figure: Figure, limit: float) -> Check:
    if isinstance(figure, NotMeasured):
        return Check(name, "NOT_MEASURED", figure.reason)
    show = _SHOWN.get(figure.unit, units.significant)
    if figure.high is not None and figure.high <= limit:
        return Check(name, "PASS", f"at most {show(figure.high)}, limit {show(limit)}")
    if figure.low is not None and figure.low > limit:
        return Check(name, "FAIL", f"at least {show(figure.low)}, limit {show(limit)}")
    if figure.high is None:
        reason = figure.note or "this many samples give no upper bound"
        return Check(name, "INCONCLUSIVE", f"{show(figure.value)}, limit {show(limit)}: {reason}")
    bounds = f"{'?' if figure.low is None else show(figure.low)} to {show(figure.high)}"
    return Check(name, "INCONCLUSIVE", f"{show(figure.value)} ({bounds}), the interval holds the limit {show(limit)}")


_SHOWN: Mapping[str, Callable[[float], str]] = {"s": units.seconds, "B": units.size, "USD/1M": units.usd}


def _overall(result: CaseResult, checks: Sequence[Check]) -> Verdict:
    if result.status != "measured":
        return "NOT_MEASURED"
    verdicts = {check.verdict for check in checks}
    worst: tuple[Verdict, ...] = ("FAIL", "NOT_MEASURED", "INCONCLUSIVE")
    for one in worst:
        if one in verdicts:
            return one
    return "PASS"


def _holm_corrected(
    results: list[CaseResult], evidence: _Evidence, references: Mapping[tuple[str, int, int], Case | None]
) -> list[CaseResult]:
    """Verdicts on the ratios, corrected for having asked the question about every case."""
    ratios: dict[int, RatioEstimate] = {}
    for result in results:
        case = result.case
        reference = references[case.target, case.batch, case.threads]
        if reference is None or reference == case or result.status != "measured":
            continue
        ratio = judged_ratio(evidence.judged[case.key], evidence.judged[reference.key], result.view)
        if ratio is not None and ratio.p_value is not None:
            ratios[result.number] = ratio
    emulated = {result.number for result in results if result.machine.emulated}
    adjusted: dict[int, float] = {}
    # What an emulator says must not make it harder to tell real cases apart.
    for family in ([n for n in ratios if n not in emulated], [n for n in ratios if n in emulated]):
        adjusted |= zip(family, holm([ratios[number].p_value or 0.0 for number in family]), strict=True)
    corrected = []
    for result in results:
        ratio = ratios.get(result.number)
        decided: str = "inconclusive" if ratio is None else compare_verdict(ratio)
        if decided == "differs" and adjusted[result.number] > 1 - LEVEL:
            decided = "inconclusive"
        corrected.append(replace(result, time_ratio_verdict=decided))
    return corrected


def _outside_plan(run: RunData, cases: Sequence[Case]) -> list[FailureRecord]:
    known = {case.key for case in cases} | {case.quality_key for case in cases}
    return [failure for failure in run.failures if failure.case not in known and failure.stage not in BESIDE_TIMING]


def _unplanned(number: int, failure: FailureRecord, run: RunData) -> CaseResult:
    """A variant that could not be made, or a case that was left out: shown with its reason, like any other result."""
    absent = NotMeasured(failure.message.splitlines()[0][:200])
    case = _case_of(failure.case)
    return CaseResult(
        number=number, case=case, machine=machine(run, case.target),
        status="skipped" if failure.kind == "skipped" else "failed", failure=failure,
        latency_p50_s=absent, latency_p90_s=absent, latency_p99_s=absent, throughput_per_s=absent, observed={},
        excluded_share=None, dirty_share=None, stopping=Stopping("fixed", "nothing was measured"), time_to_steady_s=absent,
        time_ratio=absent, compared_with=None,
        time_ratio_verdict="inconclusive", time_ratio_own=absent, import_s=absent, load_s=absent, first_inference_s=absent,
        peak_rss_bytes=absent, size_bytes=absent, compressed_bytes=absent, energy_j=absent, accuracy=absent,
        accuracy_change=absent, agreement=absent, reference_quality=None, usd_per_million=absent, checks=(),
        verdict="NOT_MEASURED", blocks=0, samples=0, raced=False, process=None, warmup_labels=(), notes=(),
    )  # fmt: skip


def _case_of(key: str) -> Case:
    """The case of a key; a variant's own text stands for a case on no backend."""
    parsed = _KEY.fullmatch(key)
    if parsed is None:
        return Case(key, "—", "local", 1, 1)
    target, threads = parsed["target"] or "local", int(parsed["threads"] or 1)
    return Case(parsed["variant"], parsed["backend"], target, int(parsed["batch"]), threads)


def _by(records: Sequence[_R], key: Callable[[_R], str]) -> dict[str, list[_R]]:
    grouped: dict[str, list[_R]] = {}
    for record in records:
        grouped.setdefault(key(record), []).append(record)
    return grouped
