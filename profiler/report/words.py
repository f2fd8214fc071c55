"""Words and numbers that every renderer shares, so that a figure reads the same on the terminal and on the page."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from profiler import advice, plain, units
from profiler.analysis import AXES, Analysis, CaseResult
from profiler.decide import FrontierView, Recommendation, recommend, view
from profiler.machines import EMULATED, Machine
from profiler.named_code import named_code
from profiler.places import NOT_PAIRED, Place
from profiler.quality.metrics import FunctionMetric, Metric
from profiler.records import REFERENCE_VARIANT, ArtifactRecord, Environment, Estimate, Figure, NotMeasured
from profiler.store import RunData
from profiler.targets.config import LOCAL

clean, one_line = plain.clean, plain.one_line

UNBOUNDED = "?"
_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
"""Of groups of cases that are equal as far as measured."""
DIFFERING = "the processes differ too much to bound it: measure more (--thorough), or on a quieter machine"
"""Why a side has no bound where the figure itself does not say."""
_MAX_REASONS = 4
_NUMBERS = re.compile(r"\d[\d,.]*")
"""Reasons that differ in nothing else are told once, with the numbers of the first."""


@dataclass(frozen=True)
class Cell:
    """A figure as text: the number with its unit or word, and its interval."""

    value: str
    interval: str = ""
    missing: bool = False
    """Whether `value` stands for something that was not measured."""
    title: str = ""
    """What a person should know about it: the reason it is missing, its note, its source."""

    def __str__(self) -> str:
        """Both on one line."""
        return f"{self.value} {self.interval}".strip()

    @property
    def glued(self) -> str:
        """The same with spaces that no line breaks at."""
        return str(self).replace(" ", "\u00a0")


@dataclass(frozen=True)
class Story:
    """What a run is told with: the analysis, the frontier over two axes, and the decision."""

    analysis: Analysis
    view: FrontierView
    recommendation: Recommendation

    @classmethod
    def of(cls, analysis: Analysis, x: str = "latency_p50", y: str = "accuracy", *, pool: bool | None = None) -> Story:
        """`pool` as in `profiler.decide.view`. Raises StudyError for unknown axes. The decision is made once for an analysis."""
        key = (cls, x, y, pool)
        if key not in analysis.memo:
            analysis.memo[key] = cls.over(analysis, view(analysis, x, y, pool=pool))
        story: Story = analysis.memo[key]
        return story

    @classmethod
    def over(cls, analysis: Analysis, found: FrontierView) -> Story:
        """Of a view that is there already."""
        return cls(analysis, found, recommend(analysis, found))

    @cached_property
    def _standings(self) -> Mapping[str, str]:
        placed = {case.key: "dominated" for case, _ in self.view.dominated}
        placed |= {case.key: "behind" for case, _ in self.view.behind}
        placed |= {case.key: "undecided" for case in self.view.tied}
        return placed | {case.key: "frontier" for case in self.view.members}

    @property
    def reference(self) -> CaseResult | None:
        """The case that the others are compared with."""
        return self.analysis.reference_case

    @property
    def several(self) -> bool:
        """Whether the run has more than one target."""
        return len(self.analysis.machines) > 1

    def part(self, case: CaseResult) -> str:
        """Whose frontier the case is placed on; empty for that of all machines."""
        return "" if self.view.pooled else case.machine.group

    @property
    def labelled(self) -> bool:
        """Whether accuracy is known, and not only agreement with the reference."""
        return any(isinstance(case.accuracy, Estimate) for case in self.analysis.measured)

    def standing(self, case: CaseResult) -> str:
        """`frontier`, `undecided`, `behind`, `dominated`, `not placed`, or what happened to a case that was not measured."""
        if case.status != "measured":
            return case.status
        return self._standings.get(case.key, "not placed")

    def equal_to(self, case: CaseResult) -> tuple[str, ...]:
        """Members of the frontier that are not told apart from this one, itself among them; empty without any."""
        return next((group for group in self.view.equal if case.key in group), ())

    def is_reference(self, case: CaseResult) -> bool:
        """Whether other cases (of its batch and threads) are compared with this one."""
        return case.key in self.analysis.references.values() or (
            case.case.variant == REFERENCE_VARIANT
            and isinstance(case.time_ratio, Estimate)
            and case.time_ratio.note == "the reference itself"
        )

    def tags(self, case: CaseResult) -> str:
        """Words that belong to a case, on one line."""
        return ", ".join(self.tag_words(case))

    def tag_words(self, case: CaseResult) -> list[str]:
        """Words that belong to a case: reference, undecided, equal, emulated, envelope, raced."""
        words = ["reference"] if self.is_reference(case) else []
        words += [case.machine.source] if not case.machine.real else []
        words += ["raced only"] if case.raced else []
        words += ["undecided"] if self.standing(case) == "undecided" else []
        groups = [group for group in self.view.equal if case.key in group]
        words += [f"equal {_LETTERS[self.view.equal.index(groups[0]) % len(_LETTERS)]}"] if groups else []
        return words

    def place(self, case: CaseResult, *, under: str = "") -> str:
        """Backend, batch, and what else differs between the cases of this run; not the target where a heading names it."""
        asked = case.case
        parts = [one_line(asked.backend), f"b{asked.batch}", f"t{asked.threads}"]
        here = asked.target == under or (asked.target == LOCAL and not self.several)
        return " ".join([*parts, *([] if here else [f"@{one_line(asked.target)}"])])

    def name(self, case: CaseResult) -> str:
        """Variant and place on one line."""
        return f"{one_line(case.case.variant)} · {self.place(case)}"


def number(value: float, decimals: int) -> str:
    """A number with so many decimals and a true minus sign."""
    return f"{value:,.{decimals}f}".replace("-", "−")


def decimals_for(estimate: Estimate, scale: float = 1.0, *, digits: int = 3, more: int = 2) -> int:
    """Decimals that show `digits` digits of the value, and up to `more` more when the interval would vanish otherwise."""
    value = abs(estimate.value / scale)
    places = digits - 1 - (math.floor(math.log10(value)) if value > 0 else 0)
    places = min(max(places, 0), 9)
    for extra in range(more + 1):
        ends = {round(end / scale, places + extra) for end in (estimate.low, estimate.high) if end is not None}
        if len(ends) > 1 or estimate.low == estimate.high:
            return places + extra
    return places


def spread(estimate: Estimate, show: Callable[[float], str], *, scale: float = 1.0) -> str:
    """`[low, high]`, a `?` for a side that the data don't bound, nothing for exact figures."""
    if estimate.low is not None and estimate.low == estimate.high:
        return ""
    ends = [
        UNBOUNDED if end is None or not math.isfinite(end) else show(end / scale)
        for end in (estimate.low, estimate.high)
    ]
    return f"[{ends[0]}, {ends[1]}]"


def _missing(figure: NotMeasured) -> Cell:
    return Cell("—", missing=True, title=one_line(figure.reason))


def _cell(estimate: Estimate, value: str, interval: str) -> Cell:
    if estimate.source != "measured here":
        value = f"{value} ({estimate.source})"
    return Cell(value, interval, title=one_line(estimate.note or ""))


def scaled(figure: Figure, scales: Sequence[tuple[float, str]], *, more: int = 2) -> Cell:
    """A quantity in the unit that suits its size: 0.08 ms [0.079, 0.081]."""
    if isinstance(figure, NotMeasured):
        return _missing(figure)
    # Of a figure that is nothing, its bounds say how large it may be.
    large = abs(figure.value) or max(
        (abs(end) for end in (figure.low, figure.high) if end is not None and _bounded(end)), default=0.0
    )
    scale, unit = next(((s, u) for s, u in scales if large >= s), scales[-1])
    places = decimals_for(figure, scale, more=more)

    def show(value: float) -> str:
        return number(value, places)

    return _cell(figure, f"{show(figure.value / scale)} {unit}", spread(figure, show, scale=scale))


_TIME = ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs"), (1e-9, "ns"))
_BYTES = ((1e9, "GB"), (1e6, "MB"), (1e3, "kB"), (1.0, "B"))
_PLAIN = ((1.0, ""),)


Unit = tuple[float, str]


def latency(case: CaseResult, name: str, unit: Unit | None = None) -> Cell:
    """A percentile by its field, with `~` where it is of a typical process."""
    cell = seconds(getattr(case, name), unit)
    return replace(cell, value=f"~{cell.value}") if name in case.typical and not cell.missing else cell


def latency_title(title: str, cases: Iterable[CaseResult]) -> str:
    """Heading of a column of percentiles: one view for all of its cases, told where it is not the usual one."""
    views = {case.view for case in cases}
    return f"{title} as observed" if views == {"observed"} else title


def time_unit(cases: Sequence[CaseResult]) -> Unit | None:
    """One unit for all latencies of a table, so that they compare at a glance; None when they lie too far apart."""
    figures = [figure for case in cases for figure in (case.latency_p50_s, case.latency_p99_s)]
    values = [figure.value for figure in figures if isinstance(figure, Estimate) and figure.value > 0]
    if not values:
        return None
    unit = next(((scale, name) for scale, name in _TIME if min(values) >= scale), _TIME[-1])
    return unit if max(values) / unit[0] < 1e5 else None


def seconds(figure: Figure, unit: Unit | None = None) -> Cell:
    """A duration, in `unit` or in the one that suits it."""
    return scaled(figure, _TIME if unit is None else (unit,))


def size(figure: Figure) -> Cell:
    """An amount of memory or disk."""
    return scaled(figure, _BYTES, more=0)


def rate(figure: Figure) -> Cell:
    """Samples per second."""
    return scaled(figure, ((1.0, "samples/s"),))


def energy(figure: Figure) -> Cell:
    """Energy of an inference."""
    return scaled(figure, ((1.0, "J"), (1e-3, "mJ"), (1e-6, "µJ")))


def usd(figure: Figure) -> Cell:
    """US dollars per million inferences."""
    if isinstance(figure, NotMeasured):
        return _missing(figure)
    places = decimals_for(figure, digits=3 if abs(figure.value) >= 1 else 2)
    return _cell(figure, f"${number(figure.value, places)}", spread(figure, lambda value: number(value, places)))


def quality(figure: Figure) -> Cell:
    """Accuracy or agreement: per cent for proportions, else the metric's own number."""
    if isinstance(figure, NotMeasured):
        return _missing(figure)
    if figure.unit != "proportion":
        return scaled(figure, _PLAIN)
    return _cell(figure, f"{number(figure.value * 100, 2)} %", spread(figure, lambda value: number(value * 100, 2)))


def signed(value: float, decimals: int) -> str:
    """A change: its sign is always there, except on a zero."""
    text = f"{value:+,.{decimals}f}".replace("-", "−")
    return text[1:] if not any(digit in text for digit in "123456789") else text


def change(figure: Figure) -> Cell:
    """A change against the reference, in percentage points for proportions; negative is worse."""
    if isinstance(figure, NotMeasured):
        return _missing(figure)
    if figure.unit == "proportion":
        return _cell(
            figure, f"{signed(figure.value * 100, 2)} points", spread(figure, lambda value: signed(value * 100, 2))
        )
    ends = [abs(end) for end in (figure.value, figure.low, figure.high) if end]
    places = decimals_for(Estimate(max(ends, default=0.0), None, None, ""))
    return _cell(figure, signed(figure.value, places), spread(figure, lambda value: signed(value, places)))


def comparison(case: CaseResult) -> str:
    """faster, slower, equivalent or undecided: what the corrected test says about the time ratio."""
    ratio = case.time_ratio
    if isinstance(ratio, NotMeasured):
        return "not compared"
    if ratio.note == "the reference itself":
        return "reference"
    if case.time_ratio_verdict == "differs":
        return "faster" if ratio.value < 1 else "slower"
    return "equivalent" if case.time_ratio_verdict == "equivalent" else "undecided"


def pruned_remark(case: CaseResult, artifacts: Iterable[ArtifactRecord]) -> str | None:
    """What has to be said beside a pruned case that isn't faster: people expect it to be."""
    zeroed = any("weights_zeroed" in record.facts for record in artifacts if record.variant == case.case.variant)
    if not zeroed or case.status != "measured" or comparison(case) == "faster":
        return None
    return "no faster: dense kernels multiply zeros too"


def versus(case: CaseResult) -> Cell:
    """`1.58× faster [1.55, 1.61]`: how many times, at p50. Above 1 means faster except beside the word slower."""
    ratio, word = case.time_ratio, comparison(case)
    if isinstance(ratio, NotMeasured):
        return _missing(ratio)
    if word == "reference":
        return Cell("reference", title="the others at the same batch and threads are compared with it")
    value, low, high = ratio.value, ratio.low, ratio.high
    if word != "slower":
        value, low, high = 1 / value, None if not high else 1 / high, None if not low else 1 / low
    turned = Estimate(value, low, high, "×", ratio.level, ratio.source, ratio.note)
    places = 2 if value < 100 else 0
    return _cell(turned, f"{number(value, places)}× {word}", spread(turned, lambda end: number(end, places)))


def corrected(case: CaseResult) -> bool:
    """Whether a comparison is undecided only because many were made: its own interval leaves out 1."""
    ratio = case.time_ratio
    return (
        comparison(case) == "undecided"
        and isinstance(ratio, Estimate)
        and ratio.low is not None
        and ratio.high is not None
        and not ratio.low <= 1 <= ratio.high
    )


TIED_MEANING = (
    "undecided: not known whether it belongs on the frontier: another is ahead on one axis, and no advantage over it "
    "is shown"
)
EQUAL_MEANING = "equal: told apart from the others of its letter on neither axis, so nothing measured prefers one"
TYPICAL_MEANING = "~ is of a typical process: processes differ by more than so few of them can bound"
BOUNDS_MEANING = (
    "a limit on accuracy is tested one-sided, at 5 % for means of right and wrong over rows that are sources of their own, "
    "else at 2.5 %, for each case alone, so a two-sided interval may reach beyond it"
)
CORRECTED_MEANING = (
    "undecided although the interval leaves out 1: so many comparisons were made that one like it can be chance (Holm)"
)


def figure_cell(case: CaseResult, axis: str, unit: Unit | None = None) -> Cell:
    """The cell of an axis of the frontier."""
    figure = case.figure(axis)
    if AXES[axis].field.startswith("latency"):
        return seconds(figure, unit)
    shown: dict[str, Callable[[Figure], Cell]] = {
        "throughput": rate, "usd_per_million": usd, "energy": energy, "peak_rss": size, "size": size, "accuracy": quality,
        "agreement": quality,
    }  # fmt: skip
    return shown[axis](figure) if axis in shown else scaled(figure, _PLAIN)


def quality_cell(story: Story, case: CaseResult) -> Cell:
    """What a case does to accuracy: the change; for the reference its accuracy; agreement where there are no labels."""
    if not story.labelled:
        return quality(case.agreement)
    if isinstance(case.accuracy_change, Estimate) and case.accuracy_change.note == "the reference itself":
        own = quality(case.accuracy)
        # In a column of changes its own accuracy needs the word with it.
        return own if own.missing else replace(own, value=f"itself {own.value}")
    return change(case.accuracy_change)


def quality_title(story: Story) -> str:
    """Heading of that column."""
    if not story.labelled:
        return "agreement with fp32"
    return "accuracy change"


def metric_name(analysis: Analysis) -> str:
    """The metric in words, and the output that it is over."""
    if analysis.metric is None:
        return "not measured"
    if isinstance(analysis.metric, FunctionMetric) or getattr(analysis.metric, "output", None) is not None:
        # The user's own code sees all outputs; where the user named one, the metric's name does too.
        return one_line(analysis.metric.name)
    return f"{one_line(analysis.metric.name)}{of_output(analysis)}"


def of_output(analysis: Analysis) -> str:
    """` of output 'logits'`, or nothing where it is not one."""
    return "" if analysis.output is None else f" of output '{one_line(analysis.output)}'"


def reason(case: CaseResult) -> str:
    """Why a case has no figures, on one line."""
    if case.failure is not None:
        lines = [line for line in clean(case.failure.message).splitlines() if line.strip()]
        if case.failure.kind == "skipped" and lines:
            return lines[0].strip()
        first = lines[0].strip() if lines else "no message"
        return f"{case.failure.kind.replace('_', ' ')} in stage {case.failure.stage}: {first}"
    return "the run was not finished"


def unbounded(cases: Iterable[CaseResult]) -> str | None:
    """What the question marks of these cases stand for, each reason with the columns that it holds for; None without any."""
    named: tuple[tuple[str, Callable[[CaseResult], Figure | None]], ...] = (
        ("p50", lambda case: case.latency_p50_s), ("p99", lambda case: case.latency_p99_s),
        ("p99 as observed", _seen), ("vs reference", lambda case: case.time_ratio),
        ("accuracy change", lambda case: case.accuracy_change), ("throughput", lambda case: case.throughput_per_s),
        ("$/1M", lambda case: case.usd_per_million),
    )  # fmt: skip
    found: dict[str, tuple[str, dict[str, None]]] = {}
    for case in cases:
        for title, read in named:
            figure = read(case)
            if not isinstance(figure, Estimate) or (_bounded(figure.low) and _bounded(figure.high)):
                continue
            # The note of a price tells the price; what is open there is the throughput below it.
            note = DIFFERING if figure.note is None or title == "$/1M" else one_line(figure.note)
            _, titles = found.setdefault(_NUMBERS.sub("#", note), (note, {}))
            titles[title] = None
    if not found:
        return None
    told = [f"of {', '.join(titles)} because {note}" for note, titles in list(found.values())[:_MAX_REASONS]]
    rest = len(found) - _MAX_REASONS
    more = f"; and {rest} more reasons, with each case" if rest > 0 else ""
    half = "the other end holds, as “at least” or “at most”"
    return f"{UNBOUNDED} = no bound on that side ({half}): {'; '.join(told)}{more}"


def _seen(case: CaseResult) -> Figure | None:
    """The p99 of all samples, where tables show it."""
    return None if case.excluded_share is None else case.observed.get("latency_p99_s")


def _bounded(end: float | None) -> bool:
    return end is not None and math.isfinite(end)


def machine_lines(machines: Sequence[Machine]) -> list[str]:
    """The machines of a run, one on each line; what they are in words."""
    if len(machines) == 1 and machines[0].target == LOCAL:
        return [f"machine: {machine_told(machines[0])}"]
    lines = []
    for group in dict.fromkeys(machine.group for machine in machines):
        same = [machine for machine in machines if machine.group == group]
        lines.append(
            f"machine {one_line(', '.join(item.target for item in same))}: {machine_told(same[0], several=True)}"
        )
    return lines


def machine_told(machine: Machine, *, several: bool = False) -> str:
    """What one machine is, what its figures stand for, and what it is priced as; of this machine alone the decision tells it."""
    what = (
        "the run does not tell what machine this is"
        if machine.environment is None
        else processor_of(machine.environment)
    )
    if machine.emulated:
        return f"emulated: {EMULATED}; accuracy, size and failures count · {what}"
    if machine.envelope is not None:
        return f"{one_line(machine.envelope)} · {what}"
    price = (
        ""
        if machine.priced_as is None or (machine.here and not several)
        else f" · priced as {one_line(machine.priced_as)}"
    )
    return f"{what}{price}"


def processor_of(machine: Environment) -> str:
    """An environment on one line: cores, processor, instruction sets, hypervisor, memory."""
    cores = (
        f"{machine.usable_cores} of {machine.logical_cores} cores"
        if machine.usable_cores != machine.logical_cores
        else f"{machine.logical_cores} cores"
    )
    parts = [
        cores,
        one_line(machine.cpu_model or "processor unknown"),
        " ".join(one_line(name) for name in machine.cpu_isa) or "instruction sets unknown",
        f"{units.size(machine.memory_bytes)} memory",
        f"virtual machine ({one_line(machine.hypervisor)})" if machine.hypervisor else "no hypervisor seen",
        *[one_line(gpu) for gpu in machine.gpus],
    ]
    return " · ".join(parts)


def pooling(story: Story) -> str:
    """Which cases of a run on several machines are compared with each other."""
    axis = AXES[story.view.x].title
    if story.view.pooled:
        return f"All machines together; {NOT_PAIRED}."
    return f"A frontier for each machine, over its own {axis} (frontier --pool compares all of them); {NOT_PAIRED}."


PLACE_TITLES = ("machine", "case", "p50", "p99", "accuracy change", "serves", "$/1M", "a year of one", "verdict")


def place_cells(story: Story, item: Place) -> dict[str, Cell]:
    """The best case of a machine, by column (`PLACE_TITLES`)."""
    nothing = Cell("—", missing=True, title=one_line(item.headline))
    priced = one_line(item.machine.priced_as or "")
    cells = dict.fromkeys(PLACE_TITLES, nothing)
    cells["machine"] = Cell(one_line(item.machine.target), priced)
    case = item.case
    if case is None:
        return {**cells, "case": Cell("none", title=one_line(item.headline))}
    asked = case.case
    threads = "" if asked.threads == 1 else f" t{asked.threads}"
    unit = time_unit([place.case for place in story.recommendation.places if place.case is not None])
    return {
        **cells,
        "case": Cell(one_line(asked.variant), f"{one_line(asked.backend)} b{asked.batch}{threads}"),
        "p50": seconds(case.latency_p50_s, unit), "p99": seconds(case.latency_p99_s, unit),
        "accuracy change": change(case.accuracy_change), "serves": scaled(item.rate_per_s, ((1.0, "/s"),)),
        "$/1M": usd(case.usd_per_million), "a year of one": usd(item.usd_per_year),
        "verdict": Cell(case.verdict.replace("_", " ")) if case.checks else nothing,
    }  # fmt: skip


def places_note(story: Story) -> str:
    """What the table of places holds and what not."""
    use = story.analysis.run.study.cost.utilisation
    text = f"[ ] are 95 % intervals; {NOT_PAIRED}; serves: samples a second at {use:.0%} use"
    places = story.recommendation.places
    if any(isinstance(item.usd_per_year, Estimate) for item in places):
        text += ", which $/1M assumes of every machine; a year of one: one such machine, however little it serves"
    for item in places:
        price = None if item.case is None else item.case.usd_per_million
        if isinstance(price, NotMeasured):
            text += f"; no price of {one_line(item.machine.target)}: {one_line(price.reason)}"
    return text


def undecided(cases: Iterable[CaseResult]) -> list[str]:
    """Why limits are not decided although both sides of the figure are known; reasons that differ in numbers only stand once."""
    told: dict[str, tuple[str, int]] = {}
    for case in cases:
        p99 = case.latency_p99_s
        for check in case.checks:
            if check.verdict != "INCONCLUSIVE" or (
                check.name == "p99" and isinstance(p99, Estimate) and not _bounded(p99.high)
            ):
                continue
            text = f"{one_line(case.key)}: {check.name} INCONCLUSIVE: {one_line(check.text)}"
            first, more = told.get(_NUMBERS.sub("#", check.name + check.text), (text, -1))
            told[_NUMBERS.sub("#", check.name + check.text)] = first, more + 1
    return [f"{text}{f' (and {more} more alike)' if more else ''}" for text, more in told.values()]


def limits(analysis: Analysis) -> list[str]:
    """The constraints of the run."""
    asked = analysis.run.study.constraints
    told = [
        None if asked.max_drop is None else f"accuracy drop at most {_amount(asked.max_drop, analysis.metric)}",
        None if asked.slo_p99_s is None else f"p99 at most {asked.slo_p99_s * 1e3:g} ms",
        None if asked.max_memory_bytes is None else f"peak RSS at most {asked.max_memory_bytes / 1e6:g} MB",
        None
        if asked.max_usd_per_million is None
        else f"at most {asked.max_usd_per_million:g} USD per million inferences",
    ]
    return [text for text in told if text is not None]


def _amount(drop: float, metric: Metric | None) -> str:
    if metric is not None and metric.unit == "proportion":
        return f"{100 * drop:g} point{'' if drop == 0.01 else 's'}"
    return f"{drop:g}, {'a proportion or ' if metric is None else ''}in the metric's own unit"


def effort_line(analysis: Analysis) -> str:
    """How much was measured."""
    counts = [case.samples for case in analysis.measured]
    rows = analysis.run.plan.get("data_rows")
    ends = dict.fromkeys(f"{count:,}" for count in (min(counts, default=0), max(counts, default=0)))
    samples = f"{'–'.join(ends)} timings per case" if counts else "no timings"
    evaluated = isinstance(rows, int) and rows and analysis.metric is not None
    data = f"{rows:,} samples for {metric_name(analysis)}" if evaluated else "nothing evaluated"
    done = [{(i.block.replicate, i.block.round) for i in found} for found in analysis.judged.values() if found]
    processes = _range([len({replicate for replicate, _ in places}) for places in done])
    return f"{processes} processes · {_range([len(places) for places in done])} blocks per case · {samples} · {data}"


def _range(counts: Sequence[int]) -> str:
    """`5`, or `4–6` where cases differ."""
    ends = dict.fromkeys((min(counts, default=0), max(counts, default=0)))
    return "–".join(map(str, ends))


def counts_line(story: Story) -> str:
    """How many cases there are of each kind."""
    cases = story.analysis.cases
    parts = [
        ("frontier", len(story.view.members)),
        ("undecided", len(story.view.tied)),
        ("behind", len(story.view.behind)),
        ("dominated", len(story.view.dominated)),
    ]
    parts += [("not placed", len(story.view.unplaced))]
    parts += [
        (status, sum(case.status == status for case in cases)) for status in ("failed", "skipped", "not finished")
    ]
    return " · ".join(f"{name} {count}" for name, count in parts if count) or "no cases"


def unfinished(analysis: Analysis) -> str | None:
    """A sentence when the run did not come to its end."""
    return unfinished_run(analysis.run)


def unfinished_run(run: RunData) -> str | None:
    """The same of a run that is not analysed."""
    if run.status == "finished":
        return None
    again = advice.resume(run.id, search="search" in run.plan, code=named_code(run.study))
    return f"This run is {run.status}: what stands here rests on a part of it. Go on: {again}"


def not_measured(analysis: Analysis) -> list[tuple[str, str]]:
    """Figures that no measured case has, each with its reason: (what, why)."""
    named = (
        ("accuracy", "accuracy"),
        ("agreement with the reference", "agreement"),
        ("USD per million inferences", "usd_per_million"),
        ("energy per inference", "energy_j"),
        ("peak RSS", "peak_rss_bytes"),
        ("time against the reference", "time_ratio"),
    )
    found = []
    for title, name in named:
        figures = [getattr(case, name) for case in analysis.measured]
        reasons = dict.fromkeys(one_line(figure.reason) for figure in figures if isinstance(figure, NotMeasured))
        if figures and len(reasons) and all(isinstance(figure, NotMeasured) for figure in figures):
            found.append((title, "; ".join(reasons)))
    return found


def by_reason(story: Story) -> list[tuple[str, list[CaseResult]]]:
    """Cases without figures, grouped by what happened to them."""
    grouped: dict[str, list[CaseResult]] = {}
    for case in story.analysis.cases:
        if case.status != "measured":
            grouped.setdefault(f"{case.status}: {reason(case)}", []).append(case)
    return list(grouped.items())


def not_in_this_run(run: RunData) -> list[tuple[str, str]]:
    """What a run does not measure unless it is asked for it, and what none does yet."""
    return [item for item in NOT_IN_THIS_VERSION if item[0] != _UNDER_LOAD or run.study.load is None]


_UNDER_LOAD = "latency under load"
NOT_IN_THIS_VERSION = (
    (_UNDER_LOAD, "timings are service times, back to back: no queue stands in front of them (edgeprof load)"),
    ("corrupted inputs, subgroups, drift", "only the evaluation data as given was run"),
)
"""What no run measures yet, said in every report."""
