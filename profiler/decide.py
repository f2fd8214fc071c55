"""The decision: which cases are on the frontier, which one to ship, and why not the others. Pure functions of an Analysis.

Over several machines: a latency is compared inside one machine, unless pooling is asked for; money is compared over all of them.
Times of different machines are never paired. What an emulator timed is on no frontier and is never recommended; an envelope has
a frontier of its own, and is recommended only where nothing else was measured.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from profiler import places, units
from profiler.analysis import AXES, DROP_CHECK, NO_BETTER_THAN_CHANCE, Analysis, CaseResult
from profiler.errors import StudyError, unknown
from profiler.frontier import Frontier, frontier
from profiler.grade import FEWEST_PROCESSES
from profiler.latency import judged_ratio
from profiler.machines import EMULATED, ENVELOPE
from profiler.places import Place
from profiler.records import LEFT_OUT_BY_SEARCH, Estimate, NotMeasured
from profiler.stats.ratios import RatioEstimate, compare_verdict
from profiler.targets import conditions
from profiler.targets.config import LOCAL


@dataclass(frozen=True)
class FrontierView:
    """The frontier over two axes. Every measured case stands in exactly one of the lists.

    Of several machines these are the frontiers of each, one after the other, unless they were pooled.
    """

    x: str
    y: str
    members: tuple[CaseResult, ...]
    """On the frontier, by machine, best x first."""
    tied: tuple[CaseResult, ...]
    """Dominated by point estimates only, or on the frontier by them only: more measurement may change that."""
    dominated: tuple[tuple[CaseResult, str], ...]
    """The case and the key of a case that is better."""
    unplaced: tuple[tuple[CaseResult, str], ...]
    """Cases that lack one of the two figures, or whose timings are no device's; and why."""
    pooled: bool = False
    """Whether the cases of all machines were compared with each other."""

    def within(self, group: str) -> FrontierView:
        """The part of one machine, by its `group`."""

        def own(cases: tuple[CaseResult, ...]) -> tuple[CaseResult, ...]:
            return tuple(case for case in cases if case.machine.group == group)

        def reasoned(cases: tuple[tuple[CaseResult, str], ...]) -> tuple[tuple[CaseResult, str], ...]:
            return tuple((case, why) for case, why in cases if case.machine.group == group)

        return replace(
            self, members=own(self.members), tied=own(self.tied), dominated=reasoned(self.dominated),
            unplaced=reasoned(self.unplaced),
        )  # fmt: skip


@dataclass(frozen=True)
class Recommendation:
    """One case, or none, with its reason in a sentence, and what was ruled out."""

    case: CaseResult | None
    headline: str
    sentences: tuple[str, ...]
    ruled_out: tuple[tuple[CaseResult, str], ...]
    places: tuple[Place, ...] = ()
    """Of several machines, the best case of each; empty with one."""


POOLED = frozenset({"usd_per_million"})
"""Axes on which machines are compared with each other unless told otherwise: money is the same everywhere."""


def view(analysis: Analysis, x: str = "latency_p50", y: str = "accuracy", *, pool: bool | None = None) -> FrontierView:
    """The frontier of the measured cases. Falls back to agreement where the data has no labels.

    Several machines have a frontier each, or with `pool` one together: absolute figures of the same request, unpaired. None:
    one together over money. Raises StudyError for unknown axes.
    """
    for axis in (x, y):
        if axis not in AXES:
            raise unknown("axis", axis, AXES)
    if x == y:
        raise StudyError(f"the frontier needs two different axes, got {x} twice.")
    if y == "accuracy" and not any(isinstance(case.accuracy, Estimate) for case in analysis.measured):
        y = "agreement"
    pooled = (x in POOLED or y in POOLED) if pool is None else pool
    parts = [_view(analysis, part, x, y) for part in _parts(analysis, pooled=pooled)]
    shown = {case.key for part in parts for case in (*part.members, *part.tied)}
    shown |= {case.key for part in parts for case, _ in (*part.dominated, *part.unplaced)}
    left = tuple((case, f"{case.machine.why_not_real}") for case in analysis.measured if case.key not in shown)
    return FrontierView(
        x, y, tuple(case for part in parts for case in part.members), tuple(case for part in parts for case in part.tied),
        tuple(item for part in parts for item in part.dominated),
        (*(item for part in parts for item in part.unplaced), *left), pooled and len(analysis.devices) > 1,
    )  # fmt: skip


def _parts(analysis: Analysis, *, pooled: bool) -> list[list[CaseResult]]:
    """The cases that are compared with each other. Envelopes are never compared with a device."""
    if pooled and len(analysis.devices) > 1:
        return [[case for case in analysis.measured if case.machine.real]]
    return [
        [case for case in analysis.measured if case.machine.group == group and not case.machine.emulated]
        for group in analysis.groups
    ]


def _view(analysis: Analysis, cases: Sequence[CaseResult], x: str, y: str) -> FrontierView:
    """The frontier of some cases among each other."""
    placed, unplaced = [], []
    for case in cases:
        missing = [figure for figure in (case.figure(x), case.figure(y)) if isinstance(figure, NotMeasured)]
        if missing:
            unplaced.append((case, missing[0].reason))
        else:
            placed.append(case)
    if not placed:
        return FrontierView(x, y, (), (), (), tuple(unplaced))
    found = _frontier(analysis, placed, x, y)
    members: list[CaseResult] = []
    tied, dominated = [], []
    for index, case in enumerate(placed):
        better = [placed[other] for other in found.dominated_by[index]]
        surely = next((other for other in better if _separated(analysis, other, case, x, y)), None)
        surely = surely or _as_fast_and_better(analysis, case, placed, x, y)
        if surely is not None:
            dominated.append((case, surely.key))
        elif found.members[index] and all(_holds_against(analysis, case, other, x, y) for other in placed):
            members.append(case)
        else:
            tied.append(case)
    sign = -1 if AXES[x].maximise else 1
    members.sort(key=lambda case: sign * _value(case, x))
    tied.sort(key=lambda case: sign * _value(case, x))
    return FrontierView(x, y, tuple(members), tuple(tied), tuple(dominated), tuple(unplaced))


def recommend(analysis: Analysis, frontier_view: FrontierView) -> Recommendation:
    """The fastest (or cheapest, ...) case whose every constraint is met; without one, what comes nearest and what is missing."""
    groups = analysis.devices or analysis.groups
    others = [case for case in analysis.measured if case.machine.emulated or case.machine.group not in groups]
    left = tuple((case, f"{case.machine.why_not_real}") for case in others)
    if analysis.doubtful:
        return Recommendation(None, _doubt(analysis), (), left)
    if not groups:
        return Recommendation(
            None, f"Nothing to ship from here: {EMULATED}. Accuracy, size and failures count.", (), left
        )
    asked = frontier_view.x
    if len(groups) == 1:
        found = _of_one(analysis.on(groups[0]), frontier_view.within(groups[0]), asked)
        return replace(found, ruled_out=(*found.ruled_out, *left))
    return _of_several(analysis, groups, frontier_view, left)


def _doubt(analysis: Analysis) -> str:
    """Why nothing follows from a reference whose answers have nothing to do with the labels, and what to check."""
    found = analysis.chance
    figures = "" if found is None else f" ({found.value:.1%}, by chance {found.level:.1%})"
    read = "" if analysis.output is None else f", whether '{analysis.output}' is the output that they mean"
    return (
        f"Nothing to recommend: {NO_BETTER_THAN_CHANCE}{figures}. Check whether the labels are numbered from 0 in the order of "
        f"the model's classes{read}, and the preprocessing."
    )


def _of_several(
    analysis: Analysis, groups: Sequence[str], frontier_view: FrontierView, left: tuple[tuple[CaseResult, str], ...]
) -> Recommendation:
    """The best case of each machine, and the machine to take: the cheapest, where each has a price."""
    parts = {group: analysis.on(group) for group in groups}
    asked = frontier_view.x
    limited = analysis.run.study.constraints.slo_p99_s is not None
    if limited and all(any(_fits(part, case) and _priced(case) for case in part.measured) for part in parts.values()):
        # Within a latency limit nobody pays for being faster still.
        asked = places.MONEY
    found = {group: _of_one(part, frontier_view.within(group), asked) for group, part in parts.items()}
    use = analysis.run.study.cost.utilisation
    offered = tuple(
        places.place(group, parts[group].machines, item.case, item.headline, use) for group, item in found.items()
    )
    ruled_out = (*(item for one in found.values() for item in one.ruled_out), *left)
    choice = places.choose(offered, asked)
    # Envelopes are no offers: each has its best case, none is to be taken.
    if choice is None or choice.place.case is None or not analysis.devices:
        why = _nothing_fits(analysis) if choice is None else f"Nothing to ship from here: {ENVELOPE}."
        told = tuple(f"On {item.machine.target}: {item.headline}" for item in offered if item.headline != why)
        return Recommendation(None, why, told, ruled_out, offered)
    ship = _ship(choice.place.case, place=True)
    own = found[choice.place.group].sentences
    return Recommendation(
        choice.place.case, places.headline(choice, offered, ship), (*places.sentences(choice, offered), *own), ruled_out,
        offered,
    )  # fmt: skip


def _of_one(analysis: Analysis, frontier_view: FrontierView, asked: str) -> Recommendation:
    """The decision of one machine."""
    fitting = [case for case in analysis.measured if _fits(analysis, case)]
    ruled_out = tuple((case, _why_out(case)) for case in analysis.measured if case not in fitting)
    if not fitting:
        return Recommendation(None, _nothing_fits(analysis), (), ruled_out)
    chosen = min(_candidates(analysis, fitting, asked), key=lambda case: _preference(case, asked))
    return Recommendation(chosen, f"{_ship(chosen)}.", tuple(_sentences(analysis, chosen, frontier_view)), ruled_out)


def _fits(analysis: Analysis, case: CaseResult) -> bool:
    """Whether it meets every limit. Without a limit on the loss the fastest wrecked model would win: nothing that may be worse by
    over a point then.
    """
    limited = analysis.run.study.constraints.max_drop is not None
    return case.verdict == "PASS" and (limited or _loses_little(analysis, case))


def _priced(case: CaseResult) -> bool:
    return isinstance(case.usd_per_million, Estimate)


DEFAULT_DROP = 0.01
"""Loss accepted when the user names none: one percentage point, or one per cent of an error metric."""


def _frontier(analysis: Analysis, placed: Sequence[CaseResult], x: str, y: str) -> Frontier:
    figures = [(case.figure(x), case.figure(y)) for case in placed]
    estimates = [[figure for figure in pair if isinstance(figure, Estimate)] for pair in figures]

    def column(name: str) -> np.ndarray[tuple[int, int], np.dtype[np.float64]]:
        return np.array([[np.nan if (v := getattr(e, name)) is None else v for e in pair] for pair in estimates], float)

    return frontier(column("value"), column("low"), column("high"), maximise=(AXES[x].maximise, _maximise(analysis, y)))


def _maximise(analysis: Analysis, axis: str) -> bool:
    if axis == "accuracy" and analysis.metric is not None:
        return analysis.metric.higher_is_better
    return AXES[axis].maximise


def _separated(analysis: Analysis, better: CaseResult, worse: CaseResult, x: str, y: str) -> bool:
    """Whether the measurement can tell the two apart on one axis."""
    return _surely_ahead(analysis, better, worse, x) or _surely_better(analysis, better, worse, y)


def _holds_against(analysis: Analysis, case: CaseResult, other: CaseResult, x: str, y: str) -> bool:
    """Whether what the case gives up against another one, it is shown to win back on the other axis."""
    if _surely_ahead(analysis, other, case, x):
        return _surely_better(analysis, case, other, y)
    return not _surely_better(analysis, other, case, y) or _surely_ahead(analysis, case, other, x)


def _surely_ahead(analysis: Analysis, better: CaseResult, worse: CaseResult, x: str) -> bool:
    """On the first axis. Times are compared pair by pair, not by overlap."""
    ratio = _paired(analysis, better, worse) if x == "latency_p50" else None
    if ratio is not None and ratio.high is not None:
        return ratio.high < 1
    return _apart(better.figure(x), worse.figure(x), maximise=AXES[x].maximise)


def _surely_better(analysis: Analysis, better: CaseResult, worse: CaseResult, y: str) -> bool:
    """On the second axis."""
    if y == "accuracy":
        # Changes are paired with the same reference, so their intervals are far narrower than those of accuracy.
        return _apart(better.accuracy_change, worse.accuracy_change, maximise=True)
    return _apart(better.figure(y), worse.figure(y), maximise=_maximise(analysis, y))


def _as_fast_and_better(
    analysis: Analysis, case: CaseResult, others: Sequence[CaseResult], x: str, y: str
) -> CaseResult | None:
    """One that is shown to be as fast within 2 %, and surely better on the other axis.

    By point estimates the case may lead by a thousandth, which is no trade-off.
    """
    if x != "latency_p50":
        return None
    for other in others:
        if other is case or not _surely_better(analysis, other, case, y):
            continue
        ratio = _paired(analysis, case, other)
        if ratio is not None and compare_verdict(ratio) == "equivalent":
            return other
    return None


def _paired(analysis: Analysis, case: CaseResult, other: CaseResult) -> RatioEstimate | None:
    """The ratio of two cases' times in the same rounds; None where rounds of one say nothing of the other."""
    if (case.case.target, case.case.batch) != (other.case.target, other.case.batch):
        return None
    return judged_ratio(analysis.judged[case.key], analysis.judged[other.key])


def _apart(better: object, worse: object, *, maximise: bool) -> bool:
    if not isinstance(better, Estimate) or not isinstance(worse, Estimate):
        return False
    if maximise:
        return better.low is not None and worse.high is not None and better.low > worse.high
    return better.high is not None and worse.low is not None and better.high < worse.low


def _value(case: CaseResult, axis: str) -> float:
    figure = case.figure(axis)
    return figure.value if isinstance(figure, Estimate) else float("inf")


def _loses_little(analysis: Analysis, case: CaseResult) -> bool:
    change = case.accuracy_change
    if isinstance(change, Estimate):
        limit = DEFAULT_DROP
        own = next((other.accuracy for other in analysis.measured if other.key == analysis.reference), None)
        if change.unit != "proportion" and isinstance(own, Estimate):
            limit *= abs(own.value)
        return change.value >= 0 or (change.low is not None and change.low >= -limit)
    agreement = case.agreement
    return isinstance(agreement, NotMeasured) or agreement.value >= 1 - DEFAULT_DROP


def _why_out(case: CaseResult) -> str:
    problems = [f"{check.name} {check.verdict}: {check.text}" for check in case.checks if check.verdict != "PASS"]
    if problems:
        return "; ".join(problems)
    change = case.accuracy_change
    if isinstance(change, Estimate):
        low = "unbounded" if change.low is None else _change(change.low, change.unit)
        seen = _change(change.value, change.unit)
        return f"may lose more than one point (change {seen}, as low as {low}) and no --max-drop was given"
    return "over 1 % of its answers differ from the reference, there are no labels, and no --max-drop was given"


def _change(value: float, unit: str) -> str:
    return f"{units.points(value)} points" if unit == "proportion" else units.significant(value)


def _candidates(analysis: Analysis, fitting: Sequence[CaseResult], x: str) -> Sequence[CaseResult]:
    """Whoever leaves the reference needs a reason: cases shown to be faster, then those whose interval says so, then itself.

    Only for latency, where the reference is measured beside every case; other figures are compared as they are.
    """
    if x not in ("latency_p50", "latency_p99"):
        return fitting
    ratios = [(case, case.time_ratio) for case in fitting]
    faster = [
        case for case, ratio in ratios if isinstance(ratio, Estimate) and ratio.high is not None and ratio.high < 1
    ]
    proven = [case for case in faster if case.time_ratio_verdict == "differs"]
    reference = [case for case in fitting if case.key in analysis.references.values()]
    return proven or faster or reference or fitting


def _preference(case: CaseResult, x: str) -> tuple[float, float]:
    """Best x first; where two are equal, the smaller file."""
    sign = -1 if AXES[x].maximise else 1
    return sign * _value(case, x), _value(case, "size")


def _nothing_fits(analysis: Analysis) -> str:
    if not analysis.measured:
        return "Nothing was measured: see the failures."
    verdicts = {case.verdict for case in analysis.measured}
    if verdicts == {"NOT_MEASURED"}:
        missing = {check.text for case in analysis.measured for check in case.checks if check.verdict == "NOT_MEASURED"}
        why = "; ".join(sorted(missing))[:200]
        return f"A limit was set on something that was not measured ({why}): measure it, or drop the limit."
    if verdicts <= {"FAIL"}:
        return "No case meets the constraints: loosen one, or add variants."
    if not analysis.grade.absolute and analysis.run.study.constraints.slo_p99_s is not None:
        return (
            "No case is shown to meet the constraints: this machine was disturbed too much to decide a latency limit. "
            "Measure when it is quiet; `edgeprof doctor` says what disturbs it."
        )
    more = "More samples, --thorough or a longer --time-budget may decide."
    return f"No case is shown to meet the constraints: some are undecided. {more}"


def _ship(chosen: CaseResult, *, place: bool = False) -> str:
    """`place`: whether to name this machine too."""
    case = chosen.case
    threads = "" if case.threads == 1 else f", {case.threads} threads"
    what = f"{case.variant} on {case.backend}, batch {case.batch}{threads}"
    if chosen.machine.envelope is not None:
        return f"Inside the envelope {case.target}, {what} is the one to take{_over(chosen)}; its latency is not that device's"
    return f"Ship {what}" + ("" if case.target == LOCAL and not place else f", on {case.target}")


def _over(chosen: CaseResult) -> str:
    """What it held of the envelope's memory; the kernel counts pages of files for whoever read them first."""
    limit, peak = conditions.parse(chosen.case.target)[1].memory_bytes, chosen.peak_rss_bytes
    if limit is None or isinstance(peak, NotMeasured):
        return ""
    held = f"it held {units.size(int(peak.value))} of {units.size(limit)}"
    if peak.value <= limit:
        return f" ({held})"
    return f", but fits only as long as pages of its files can be dropped ({held}; docs/envelopes.md)"


def _sentences(analysis: Analysis, chosen: CaseResult, frontier_view: FrontierView) -> list[str]:
    return list(
        filter(
            None,
            (
                _faster(analysis, chosen), _left_untried(analysis), _provisional(analysis, chosen),
                _accuracy(analysis, chosen), _latency(chosen), _money(analysis, chosen),
                _ties(chosen, frontier_view), _untested(analysis, chosen),
            ),
        )
    )  # fmt: skip


def _faster(analysis: Analysis, chosen: CaseResult) -> str:
    ratio = chosen.time_ratio
    if chosen.key == chosen.compared_with:
        tried = "no variant that was tried and" if _untried(analysis) else "no variant that"
        return f"It is the reference itself: {tried} meets the constraints is faster.{_faster_but(analysis, chosen)}"
    if isinstance(ratio, NotMeasured):
        return f"Not compared with the reference: {ratio.reason}."
    reference = chosen.compared_with or "the reference"
    name = reference.split("/", maxsplit=1)[0].replace("@", " on ")
    if ratio.low is None or ratio.high is None:
        return f"Whether it is faster than {name} is not decided: {1 / ratio.value:.2f}×, {ratio.note or 'without interval'}."
    interval = f"95 %: {1 / ratio.high:.2f}–{1 / ratio.low:.2f}"
    if chosen.time_ratio_verdict == "inconclusive":
        outside = ratio.low > 1 or ratio.high < 1
        why = "but with this many comparisons one like it can be chance" if outside else "which holds 1"
        undecided = f"Whether it is faster than {name} is not decided: {1 / ratio.value:.2f}× ({interval}), {why}"
        return f"{undecided}; {_more_time(analysis)} may tell.{_faster_but(analysis, chosen)}"
    if chosen.time_ratio_verdict == "equivalent":
        return f"As fast as {name}, within 2 % ({interval}).{_faster_but(analysis, chosen)}"
    word = "faster" if ratio.value < 1 else "slower"
    factor = 1 / ratio.value if ratio.value < 1 else ratio.value
    shown = interval if ratio.value < 1 else f"95 %: {ratio.low:.2f}–{ratio.high:.2f}"
    return f"{factor:.2f}× {word} than {name} ({shown}).{_faster_but(analysis, chosen)}"


def _more_time(analysis: Analysis) -> str:
    return "--thorough" if analysis.run.study.time_budget_s is None else "a longer --time-budget"


def _untried(analysis: Analysis) -> int:
    """Candidates that a search had no time for."""
    return sum(failure.message.startswith(f"not tried {LEFT_OUT_BY_SEARCH}") for failure in analysis.run.failures)


def _left_untried(analysis: Analysis) -> str:
    count = _untried(analysis)
    if not count:
        return ""
    return (
        f"Not the last word: {count} candidate{'s were' if count > 1 else ' was'} not tried for lack of time; a longer "
        "--time-budget, or fewer candidates (--variants, --backends), reaches them."
    )


def _provisional(analysis: Analysis, chosen: CaseResult) -> str:
    """A search whose time ended early has measured its contenders in fewer processes than an interval needs."""
    count = len({record.replicate for record in analysis.run.processes if record.case == chosen.key})
    if not 0 < count < FEWEST_PROCESSES or analysis.run.study.time_budget_s is None:
        return ""
    return (
        f"Provisional: the time budget left room for {count} of at least {FEWEST_PROCESSES} processes; give more time before "
        "it is shipped."
    )


def _faster_but(analysis: Analysis, chosen: CaseResult) -> str:
    """The fastest case that a constraint ruled out, and which: undecided ones may be worth more samples.

    Beside a variant only those that are not known to fail, and are surely ahead of it: without them a recommendation that the
    frontier shows as dominated would seem a mistake.
    """
    reference = chosen.key == chosen.compared_with

    def tells(case: CaseResult) -> bool:
        failed = any(check.verdict == "FAIL" for check in case.checks)
        return reference or (not failed and _surely_ahead(analysis, case, chosen, "latency_p50"))

    out = [
        (case.time_ratio.value, case) for case in analysis.measured
        if not _fits(analysis, case) and isinstance(case.time_ratio, Estimate) and case.time_ratio_verdict == "differs"
        and case.time_ratio.value < 1 and tells(case)
    ]  # fmt: skip
    if not out:
        return ""
    ratio, case = min(out, key=lambda item: item[0])
    return f" {case.key} is {1 / ratio:.2f}× faster, but {_why_out(case)}."


def _accuracy(analysis: Analysis, chosen: CaseResult) -> str:
    change = chosen.accuracy_change
    changed = ""
    if isinstance(chosen.agreement, Estimate) and chosen.agreement.unit == "proportion":
        changed = f" {(1 - chosen.agreement.value) * 100:.1f} % of answers differ from the reference's."
    if isinstance(change, NotMeasured):
        return f"Accuracy not measured: {change.reason}.{changed}"
    if change.note == "the reference itself":
        return ""
    if change.unit != "proportion":
        low = "unbounded" if change.low is None else units.significant(change.low)
        high = "unbounded" if change.high is None else units.significant(change.high)
        return f"Accuracy changes by {units.significant(change.value)} (95 %: {low} to {high}; negative is worse).{changed}"
    if change.low is None:
        return f"Accuracy changes by {units.points(change.value)} points, interval unbounded.{changed}"
    if not _right_or_wrong(analysis, chosen):
        high = "unbounded" if change.high is None else units.points(change.high)
        return f"Accuracy changes by {units.points(change.value)} points (95 %: {units.points(change.low)} to {high}).{changed}"
    decided = next((check for check in chosen.checks if check.name == DROP_CHECK and check.verdict == "PASS"), None)
    if decided is not None:
        # The test that decides is one-sided; the interval, with a bound further out, would seem to contradict it.
        return f"{decided.text[0].upper()}{decided.text[1:]}, 95 % sure.{changed}"
    wrong = max(0.0, -change.low) * 10_000
    return f"At most {wrong:.0f} more wrong answers per 10,000 (95 % sure).{changed}"


def _right_or_wrong(analysis: Analysis, chosen: CaseResult) -> bool:
    """Whether the metric counts answers that are right or wrong: an AUC or the F1 of a page is a proportion of something else."""
    record = next((item for item in analysis.run.qualities if item.case == chosen.case.quality_key), None)
    if record is None or analysis.metric is None or not analysis.metric.mean_reduced:
        return False
    return bool(((record.per_sample == 0) | (record.per_sample == 1)).all())


def _latency(chosen: CaseResult) -> str:
    p50, p99 = chosen.latency_p50_s, chosen.latency_p99_s
    if isinstance(p50, NotMeasured):
        return ""
    tail = f", p99 {units.seconds(p99.value)}" if isinstance(p99, Estimate) else ""
    memory = chosen.peak_rss_bytes
    return f"p50 {units.seconds(p50.value)}{tail} per batch" + (
        f", {units.size(memory.value)} peak RSS." if isinstance(memory, Estimate) else "."
    )


def _money(analysis: Analysis, chosen: CaseResult) -> str:
    figure = chosen.usd_per_million
    if isinstance(figure, NotMeasured):
        return f"Cost not given: {figure.reason.rstrip('.')}. {_pays_off(analysis, chosen, None)}".rstrip()
    share = analysis.run.study.cost.utilisation
    text = f"{units.usd(figure.value)} per million inferences on {analysis.machine} at {share:.0%} use."
    return f"{text} {_pays_off(analysis, chosen, figure.value)}".rstrip()


def _pays_off(analysis: Analysis, chosen: CaseResult, usd_per_million: float | None) -> str:
    """After how many inferences a model made elsewhere has earned its stated cost; empty for variants made here."""
    record = next((item for item in analysis.run.artifacts if item.variant == chosen.case.variant), None)
    cost = None if record is None else record.facts.get("training_cost_usd")
    if not isinstance(cost, (int, float)) or not math.isfinite(cost) or cost <= 0:
        return ""
    spent = f"Making it cost {units.usd(float(cost))} once, as stated"
    price = None if analysis.reference_case is None else analysis.reference_case.usd_per_million
    if not isinstance(price, Estimate) or usd_per_million is None:
        return f"{spent}."
    saved = price.value - usd_per_million
    if saved <= 0:
        return f"{spent}, and it saves nothing against the reference."
    return f"{spent}: earned back after about {cost / saved:,.3g} million inferences."


def _ties(chosen: CaseResult, frontier_view: FrontierView) -> str:
    others = [case.key for case in frontier_view.tied]
    return (
        f"Not known whether on the frontier (tied): {', '.join(others)}."
        if others and chosen in frontier_view.members
        else ""
    )


def _untested(analysis: Analysis, chosen: CaseResult) -> str:
    missing = ["corrupted inputs", "subgroups"]
    if not any(record.case == chosen.key for record in analysis.run.loads):
        missing.append("load with queueing (edgeprof load)")
    if isinstance(chosen.energy_j, NotMeasured):
        missing.append("energy (--energy)" if analysis.run.study.energy is None else "energy (no meter)")
    return f"Not tested: {', '.join(missing)}."
