"""The decision: which cases are on the frontier, which one to ship, and why not the others. Pure functions of an Analysis.

Over several machines: a latency is compared inside one machine, unless pooling is asked for; money is compared over all of them.
Times of different machines are never paired. What an emulator timed is on no frontier and is never recommended; an envelope has
a frontier of its own, and is recommended only where nothing else was measured.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from profiler import places, units
from profiler.analysis import AXES, DROP_CHECK, NO_BETTER_THAN_CHANCE, Analysis, CaseResult
from profiler.eligibility import LATENCY_AXES, Choice, choice, unchecked
from profiler.frontier_view import FrontierView, axis_value, surely_faster, view
from profiler.grade import FEWEST_PROCESSES
from profiler.machines import EMULATED, ENVELOPE
from profiler.places import Place
from profiler.pricing import PriceTerms
from profiler.quality.verdict import ALPHA
from profiler.records import Estimate, NotMeasured
from profiler.stats.paired import clopper_pearson
from profiler.stats.ratios import MATERIAL
from profiler.targets import conditions
from profiler.targets.config import LOCAL

__all__ = ["FrontierView", "Outcome", "Recommendation", "recommend", "view"]

_MOST_NAMED = 3
"""Cases that a sentence names one by one."""

Outcome = Literal["ship", "unchecked", "nothing"]
"""`ship`: a case is recommended; `unchecked`: something is faster, whose answers nobody looked at; `nothing` is shown to fit."""


@dataclass(frozen=True)
class Recommendation:
    """One case, or none, with its reason in a sentence, and what was ruled out."""

    case: CaseResult | None
    headline: str
    sentences: tuple[str, ...]
    ruled_out: tuple[tuple[CaseResult, str], ...]
    places: tuple[Place, ...] = ()
    """Of several machines, the best case of each; empty with one."""
    outcome: Outcome = "ship"
    fastest_unchecked: CaseResult | None = None
    """With outcome `unchecked`, the case that would be fastest; it is not recommended."""


def recommend(analysis: Analysis, frontier_view: FrontierView) -> Recommendation:
    """The fastest (or cheapest, ...) case whose every constraint is met; without one, what comes nearest and what is missing."""
    groups = analysis.devices or analysis.groups
    others = [case for case in analysis.measured if case.machine.emulated or case.machine.group not in groups]
    left = tuple((case, f"{case.machine.why_not_real}") for case in others)
    if analysis.doubtful:
        return Recommendation(None, _doubt(analysis), (), left, outcome="nothing")
    if not groups:
        return Recommendation(
            None,
            f"Nothing to ship from here: {EMULATED}. Accuracy, size and failures count.",
            (),
            left,
            outcome="nothing",
        )
    asked = frontier_view.x
    if len(groups) == 1:
        chosen_from = choice(analysis, asked)
        found = _of_one(analysis.on(groups[0]), frontier_view.within(groups[0]), asked, chosen_from)
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
    chosen_from = choice(analysis, asked)
    if limited and all(
        any(chosen_from.fits(case) and _priced(case) for case in part.measured) for part in parts.values()
    ):
        # Within a latency limit nobody pays for being faster still.
        asked = places.MONEY
        chosen_from = choice(analysis, asked)
    found = {group: _of_one(part, frontier_view.within(group), asked, chosen_from) for group, part in parts.items()}
    use = analysis.run.study.cost.utilisation
    offered = tuple(
        places.place(group, parts[group].machines, item.case, item.headline, use) for group, item in found.items()
    )
    ruled_out = (*(item for one in found.values() for item in one.ruled_out), *left)
    taken = places.choose(offered, asked)
    # Envelopes are no offers: each has its best case, none is to be taken.
    if taken is None or taken.place.case is None or not analysis.devices:
        why = _nothing_fits(analysis, chosen_from) if taken is None else f"Nothing to ship from here: {ENVELOPE}."
        unsure = next((item for item in found.values() if item.outcome == "unchecked"), None)
        if taken is None and unsure is not None:
            why = "Nothing to ship: no answers were checked (--data), on no machine."
        told = tuple(f"On {item.machine.target}: {item.headline}" for item in offered if item.headline != why)
        outcome: Outcome = "nothing" if unsure is None or taken is not None else "unchecked"
        return Recommendation(None, why, told, ruled_out, offered, outcome)
    ship = _ship(taken.place.case, place=True)
    own = found[taken.place.group].sentences
    return Recommendation(
        taken.place.case, places.headline(taken, offered, ship), (*places.sentences(taken, offered), *own), ruled_out,
        offered,
    )  # fmt: skip


def _of_one(analysis: Analysis, frontier_view: FrontierView, asked: str, chosen_from: Choice) -> Recommendation:
    """The decision of one machine."""
    fitting = [case for case in analysis.measured if chosen_from.fits(case) and not analysis.doubtful_reference]
    blind = [case for case in analysis.measured if case.verdict == "PASS" and unchecked(case)]
    ruled_out = tuple(
        (case, _why_out(analysis, case, chosen_from)) for case in analysis.measured if case not in fitting
    )
    fastest = _unchecked_fastest(fitting, blind, asked)
    if fastest is not None:
        return _unchecked(analysis, fastest, fitting, ruled_out)
    if not fitting:
        return Recommendation(None, _nothing_fits(analysis, chosen_from), (), ruled_out, outcome="nothing")
    chosen = min(_candidates(fitting, asked), key=lambda case: _preference(case, asked))
    told = tuple(_sentences(analysis, chosen, frontier_view, chosen_from, fitting))
    return Recommendation(chosen, f"{_ship(chosen)}.", told, ruled_out)


def _unchecked_fastest(fitting: Sequence[CaseResult], blind: Sequence[CaseResult], asked: str) -> CaseResult | None:
    """Of the cases whose answers nobody looked at the best, where it is better than what may be shipped; None otherwise."""
    if not blind:
        return None
    best = min(_candidates([*fitting, *blind], asked), key=lambda case: _preference(case, asked))
    return best if best in blind else None


def _unchecked(
    analysis: Analysis,
    fastest: CaseResult,
    fitting: Sequence[CaseResult],
    ruled_out: tuple[tuple[CaseResult, str], ...],
) -> Recommendation:
    """What is fastest, and that this is all that is known of it."""
    what = _named(fastest)
    safe = next((case for case in fitting if case.is_reference), None)
    stays = "" if safe is None else f"; until then {_named(safe)} is what is known to be right"
    headline = f"Nothing to ship yet: {what} is the fastest, and its answers were not checked."
    return Recommendation(
        None, headline,
        (
            _faster(analysis, fastest, [fastest], Choice({}, False)),
            f"{_to_check(analysis)} its answers are compared with the unmodified model's{stays}.",
            *filter(None, (_latency(fastest), _money(analysis, fastest), _untested(analysis, fastest))),
        ),
        ruled_out, outcome="unchecked", fastest_unchecked=fastest,
    )  # fmt: skip


def _to_check(analysis: Analysis) -> str:
    """What to do about answers that were not compared."""
    return "Give --data, so that" if analysis.question is None else "Once the question in the notes is answered,"


def _priced(case: CaseResult) -> bool:
    return isinstance(case.usd_per_million, Estimate)


def _why_out(analysis: Analysis, case: CaseResult, chosen_from: Choice) -> str:
    if case.runtime_doubt is not None:
        return case.runtime_doubt
    problems = [f"{check.name} {check.verdict}: {check.text}" for check in case.checks if check.verdict != "PASS"]
    if problems:
        return "; ".join(problems)
    if unchecked(case):
        return "its answers were not checked: give --data"
    default = case.default_check
    if default is not None and default.verdict != "PASS":
        return f"{default.name} {default.verdict}: {default.text}; no --max-drop was given, so one point holds"
    own = chosen_from.shared.get(case.key)
    if own is None:
        shown = case.time_ratio_verdict == "differs"
        return "it is shown to be slower than the reference" if shown else "it looks slower than the reference"
    if not own.finalist:
        return "other contenders promised more on the screening rows, and only four are held against the limit together"
    return f"it keeps the limit alone, and {_among(analysis, own.low, own.count)}: more rows, or fewer variants, would tell"


def _among(analysis: Analysis, low: float | None, count: int) -> str:
    """What the bound for all that were compared leaves open."""
    if low is None:
        return f"nothing bounds its loss when all {count} compared are allowed for"
    limit = "" if analysis.drop_limit is None else f", limit {_loss(analysis, analysis.drop_limit)}"
    return f"may lose up to {_loss(analysis, max(0.0, -low))} when all {count} compared are allowed for{limit}"


def _loss(analysis: Analysis, value: float) -> str:
    points = analysis.metric is None or analysis.metric.unit == "proportion"
    return f"{100 * value:.2f} points" if points else units.significant(value)


def _candidates(fitting: Sequence[CaseResult], x: str) -> Sequence[CaseResult]:
    """Whoever leaves the reference needs a reason: cases shown to be faster, then itself. One whose own interval says so, while
    among so many comparisons it can be chance, is named beside the reference, and is taken only where that keeps no limit.

    Only for latency, where the reference is measured beside every case; other figures are compared as they are.
    """
    if x not in LATENCY_AXES:
        return fitting
    ratios = [(case, case.time_ratio) for case in fitting]
    faster = [
        case for case, ratio in ratios if isinstance(ratio, Estimate) and ratio.high is not None and ratio.high < 1
    ]
    proven = [case for case in faster if case.time_ratio_verdict == "differs"]
    reference = [case for case in fitting if case.is_reference]
    return proven or reference or faster or fitting


def _preference(case: CaseResult, x: str) -> tuple[float, float]:
    """Best x first; where two are equal, the smaller file."""
    sign = -1 if AXES[x].maximise else 1
    return sign * axis_value(case, x), axis_value(case, "size")


def _nothing_fits(analysis: Analysis, chosen_from: Choice) -> str:
    if not analysis.measured:
        return "Nothing was measured: see the failures."
    if analysis.doubtful_reference:
        return (
            "Nothing to ship yet: the runtimes disagree about the unmodified model, and which is right could not be told (see "
            "the notes)."
        )
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
    if any(case.verdict == "PASS" for case in analysis.measured):
        alone = "Some keep every limit alone, none when all that were compared are allowed for"
        open_ = f"No case is shown to meet the constraints: {alone} ({chosen_from.count})."
        return f"{open_} More rows, or fewer variants, may decide."
    more = "More samples, --thorough or a longer --time-budget may decide."
    return f"No case is shown to meet the constraints: some are undecided. {more}"


def _named(found: CaseResult) -> str:
    case = found.case
    threads = "" if case.threads == 1 else f", {case.threads} threads"
    return f"{case.variant} on {case.backend}, batch {case.batch}{threads}"


def _ship(chosen: CaseResult, *, place: bool = False) -> str:
    """`place`: whether to name this machine too."""
    case, what = chosen.case, _named(chosen)
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


def _sentences(
    analysis: Analysis,
    chosen: CaseResult,
    frontier_view: FrontierView,
    chosen_from: Choice,
    fitting: Sequence[CaseResult],
) -> list[str]:
    return list(
        filter(
            None,
            (
                _faster(analysis, chosen, fitting, chosen_from), _left_untried(analysis), _provisional(analysis, chosen),
                _accuracy(analysis, chosen, chosen_from), _latency(chosen), _money(analysis, chosen),
                _ties(chosen, frontier_view), _untested(analysis, chosen),
            ),
        )
    )  # fmt: skip


def _faster(analysis: Analysis, chosen: CaseResult, fitting: Sequence[CaseResult], chosen_from: Choice) -> str:
    ratio = chosen.time_ratio
    others = _faster_but(analysis, chosen, chosen_from)
    if chosen.is_reference:
        tried = "no variant that was tried and" if _untried(analysis) else "no variant that"
        looks = _looks_faster(analysis, fitting)
        return f"It is the reference itself: {tried} meets the constraints is shown to be faster.{looks}{others}"
    if isinstance(ratio, NotMeasured):
        return f"Not compared with the reference: {ratio.reason}."
    reference = chosen.compared_with or "the reference"
    name = reference.split("/", maxsplit=1)[0].replace("@", " on ")
    if ratio.low is None or ratio.high is None:
        return f"Whether it is faster than {name} is not decided: {1 / ratio.value:.2f}×, {ratio.note or 'without interval'}."
    interval = f"95 %: {1 / ratio.high:.2f}–{1 / ratio.low:.2f}"
    if chosen.view == "observed":
        interval += "; as observed, on a machine that was disturbed"
    if chosen.time_ratio_verdict == "inconclusive":
        outside = ratio.low > 1 or ratio.high < 1
        why = "but with this many comparisons one like it can be chance" if outside else "which holds 1"
        undecided = f"Whether it is faster than {name} is not decided: {1 / ratio.value:.2f}× ({interval}), {why}"
        return f"{undecided}; {_would_show(analysis, chosen)} may tell.{others}"
    if chosen.time_ratio_verdict == "equivalent":
        return f"As fast as {name}, within 2 % ({interval}).{others}"
    word = "faster" if ratio.value < 1 else "slower"
    factor = 1 / ratio.value if ratio.value < 1 else ratio.value
    if ratio.value >= 1:
        interval = f"95 %: {ratio.low:.2f}–{ratio.high:.2f}"
    among = sum(isinstance(case.time_ratio, Estimate) and not case.is_reference for case in fitting)
    flattered = f"; the fastest of {among}, so slightly flattered" if among > 2 and ratio.value < 1 else ""
    return f"{factor:.2f}× {word} than {name} ({interval}{flattered}).{others}"


def _looks_faster(analysis: Analysis, fitting: Sequence[CaseResult]) -> str:
    """The case that would be taken if its estimate were shown, and what would show it. Within 2 % nothing looks faster."""
    found = [
        (case.time_ratio.value, case) for case in fitting
        if not case.is_reference and isinstance(case.time_ratio, Estimate) and case.time_ratio.value < 1 / (1 + MATERIAL)
        and case.time_ratio_verdict == "inconclusive" and _lower_p50(analysis, case)
    ]  # fmt: skip
    if not found:
        return ""
    value, case = min(found, key=lambda item: item[0])
    figure = case.time_ratio
    assert isinstance(figure, Estimate)
    if figure.low is None or figure.high is None:
        interval, shows = figure.note or "without interval", "more processes (--thorough)"
    else:
        interval, shows = f"95 %: {1 / figure.high:.2f}–{1 / figure.low:.2f}", _would_show(analysis, case)
    return f" {case.key} looks {1 / value:.2f}× faster ({interval}), which is not shown: {shows} may show it."


def _lower_p50(analysis: Analysis, case: CaseResult) -> bool:
    """Whether its own latency says what the ratio does. Where rounds differ as much as both do, the two may contradict."""
    reference = next((item for item in analysis.measured if item.key == case.compared_with), None)
    ours, theirs = case.latency_p50_s, None if reference is None else reference.latency_p50_s
    return not (isinstance(ours, Estimate) and isinstance(theirs, Estimate)) or ours.value < theirs.value


def _would_show(analysis: Analysis, case: CaseResult) -> str:
    """What would decide a comparison."""
    if case.view == "observed":
        return "measuring when the machine is quiet (edgeprof doctor says what disturbs it)"
    return _more_time(analysis)


def _more_time(analysis: Analysis) -> str:
    return "--thorough" if analysis.run.study.time_budget_s is None else "a longer --time-budget"


def _not_tried(analysis: Analysis) -> dict[str, int]:
    """Candidates that a search had no time for, by the stage that they did not come to. The plan is untrusted."""
    search = analysis.run.plan.get("search")
    decisions = search.get("decisions") if isinstance(search, Mapping) else None
    found: dict[str, int] = {}
    for item in decisions if isinstance(decisions, list) else []:
        if isinstance(item, Mapping) and item.get("outcome") == "not tried":
            stage = str(item.get("stage"))
            found[stage] = found.get(stage, 0) + 1
    return found


def _untried(analysis: Analysis) -> int:
    return sum(_not_tried(analysis).values())


def _left_untried(analysis: Analysis) -> str:
    found = _not_tried(analysis)
    raced = found.pop("finish", 0)
    count = sum(found.values())

    def were(number: int, what: str) -> str:
        return f"{number} candidate{'s were' if number > 1 else ' was'} {what}" if number else ""

    told = [text for text in (were(count, "not tried"), were(raced, "raced but not measured to the end")) if text]
    if not told:
        return ""
    return (
        f"Not the last word: {' and '.join(told)} for lack of time; a longer --time-budget, or fewer candidates (--variants, "
        "--backends), reaches them."
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


def _faster_but(analysis: Analysis, chosen: CaseResult, chosen_from: Choice) -> str:
    """The fastest case that a constraint ruled out, and which: undecided ones may be worth more samples.

    Beside a variant only those that are not known to fail, and are surely ahead of it: without them a recommendation that the
    frontier shows as dominated would seem a mistake.
    """
    reference = chosen.is_reference

    def tells(case: CaseResult) -> bool:
        failed = any(check.verdict == "FAIL" for check in case.checks)
        return reference or (not failed and surely_faster(analysis, case, chosen))

    out = [
        (case.time_ratio.value, case) for case in analysis.measured
        if not chosen_from.fits(case) and isinstance(case.time_ratio, Estimate) and case.time_ratio_verdict == "differs"
        and case.time_ratio.value < 1 and tells(case)
    ]  # fmt: skip
    if not out:
        return ""
    ratio, case = min(out, key=lambda item: item[0])
    return f" {case.key} is {1 / ratio:.2f}× faster, but {_why_out(analysis, case, chosen_from)}."


def _accuracy(analysis: Analysis, chosen: CaseResult, chosen_from: Choice) -> str:
    """What is known of its answers: alone, and allowing for all that were compared."""
    change = chosen.accuracy_change
    rows = _rows(analysis, chosen)
    changed = ""
    if isinstance(chosen.agreement, Estimate) and chosen.agreement.unit == "proportion" and rows:
        unseen = clopper_pearson(0, rows, 0.95, "upper")[1]
        changed = (
            f" No answer changed in {rows:,} rows; a change in fewer than {unseen:.2g} of them would not have shown."
            if chosen.agreement.value == 1
            else f" {(1 - chosen.agreement.value) * 100:.1f} % of answers differ from the reference's."
        ).replace(f"{unseen:.2g} of them", f"{100 * unseen:.2g} % of rows")
    if chosen.is_reference or (isinstance(change, Estimate) and change.note == "the reference itself"):
        return ""
    check = next((item for item in chosen.checks if item.name == DROP_CHECK), chosen.default_check)
    if chosen.same_model and check is not None and isinstance(chosen.agreement, Estimate):
        return f"It is {check.text}; answers differ by rounding only ({chosen.agreement.value:.2%} of {rows:,} rows agree)."
    own = chosen_from.shared.get(chosen.key)
    if check is None or own is None:
        reason = change.reason if isinstance(change, NotMeasured) else "nothing to compare it with"
        return f"Accuracy not measured: {reason}.{changed}"
    alone = f"{check.text[0].upper()}{check.text[1:]}"
    if isinstance(change, NotMeasured):
        alone = f"Accuracy not measured: {change.reason}; {check.text}"
    if own.count > 1:
        alone += f". This variant alone; {_of_all(analysis, own.low, own.count)}"
    return f"{alone}.{changed}"


def _of_all(analysis: Analysis, low: float | None, count: int) -> str:
    """The bound that holds although it was chosen among many. It passed, if not by its own bound then step by step (Holm)."""
    limit = analysis.drop_limit
    allowing = f"allowing for the {count} compared"
    if low is None or (limit is not None and -low > limit):
        return f"{allowing} within the limit ({100 * (1 - ALPHA):g} %)"
    return f"at most {_loss(analysis, max(0.0, -low))} lost {allowing}"


def _rows(analysis: Analysis, chosen: CaseResult) -> int:
    return next((len(item.agreement) for item in analysis.run.qualities if item.case == chosen.case.quality_key), 0)


def _latency(chosen: CaseResult) -> str:
    p50, p99 = chosen.latency_p50_s, chosen.latency_p99_s
    if isinstance(p50, NotMeasured):
        return ""
    tail = ""
    if isinstance(p99, Estimate):
        least = p99.high is None and p99.low is not None
        tail = f", p99 at least {units.seconds(p99.low or 0.0)}" if least else f", p99 {units.seconds(p99.value)}"
        tail += " (of a typical process)" if "latency_p99_s" in chosen.typical else ""
    memory = chosen.peak_rss_bytes
    return f"p50 {units.seconds(p50.value)}{tail} per batch" + (
        f", {units.size(memory.value)} peak RSS." if isinstance(memory, Estimate) else "."
    )


def _money(analysis: Analysis, chosen: CaseResult) -> str:
    figure = chosen.usd_per_million
    if isinstance(figure, NotMeasured):
        return f"Cost not given: {figure.reason.rstrip('.')}. {_pays_off(analysis, chosen, None)}".rstrip()
    share = analysis.run.study.cost.utilisation
    where = analysis.machine if chosen.price is None else chosen.price.priced_as
    text = f"{units.usd(figure.value)} per million inferences on {where} at {share:.0%} use{_terms(chosen.price)}."
    return f"{text} {_pays_off(analysis, chosen, figure.value)}".rstrip()


def _terms(price: PriceTerms | None) -> str:
    """What a cost rests on, as far as it changes what one would compare it with."""
    if price is None:
        return ""
    told = []
    if price.share < 1:
        workers = f"{price.threads} worker thread{'s' if price.threads != 1 else ''}"
        told.append(f"the share of {workers} of {price.of} ({units.usd(price.whole.value)} if nothing else runs there)")
    if price.date is not None:
        told.append(f"price of {price.date}")
    told.append(
        {
            "in the price": "network left out", "measured": "with measured energy, network left out",
            "declared": "with energy as declared, network left out", "left out": "energy and network left out",
        }[price.energy]
    )  # fmt: skip
    return f", {'; '.join(told)}"


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
    """What else it could be: equal ones, and undecided ones that do not fail a limit."""
    told = []
    group = next((keys for keys in frontier_view.equal if chosen.key in keys), ())
    if others := [key for key in group if key != chosen.key]:
        told.append(f"Equal to it as far as measured: {', '.join(others)}.")
    open_ = [case.key for case in frontier_view.tied if case.verdict != "FAIL" and case.key != chosen.key]
    if open_ and chosen in frontier_view.members:
        reasons = [f"{key} ({frontier_view.why[key]})" if key in frontier_view.why else key for key in open_]
        more = f"; and {len(reasons) - _MOST_NAMED} more" if len(reasons) > _MOST_NAMED else ""
        told.append(f"Undecided beside it: {'; '.join(reasons[:_MOST_NAMED])}{more}.")
    return " ".join(told)


def _untested(analysis: Analysis, chosen: CaseResult) -> str:
    missing = ["corrupted inputs", "subgroups"]
    if not any(record.case == chosen.key for record in analysis.run.loads):
        missing.append("load with queueing (edgeprof load)")
    if isinstance(chosen.energy_j, NotMeasured):
        missing.append("energy (--energy)" if analysis.run.study.energy is None else "energy (no meter)")
    return f"Not tested: {', '.join(missing)}."
