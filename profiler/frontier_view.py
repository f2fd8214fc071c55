"""Which cases are on the frontier over two axes, which another one is shown to beat, and which cannot be told. Pure.

Three things are said of a pair, each only where it is shown: *better* (ahead on both axes, or equal on one and ahead on the
other), *ahead on one axis* (faster, and accuracy not told apart), and *equal as far as measured* (told apart on neither). Point
estimates put cases in order and decide nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np

from profiler.analysis import AXES, Analysis, CaseResult
from profiler.errors import StudyError, unknown
from profiler.frontier import Frontier, frontier
from profiler.latency import LEVEL, judged_ratio
from profiler.quality.compare import Flips, clustered, count_flips
from profiler.records import Estimate, NotMeasured, QualityRecord
from profiler.stats.paired import tango_interval
from profiler.stats.ratios import RatioEstimate, compare_verdict


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
    """Undecided: another one is shown to be ahead on one axis, and only estimates put this one ahead on the other."""
    dominated: tuple[tuple[CaseResult, str], ...]
    """The case and the key of a case that is shown to be better: ahead on both axes, or on one and equal on the other."""
    unplaced: tuple[tuple[CaseResult, str], ...]
    """Cases that lack one of the two figures, or whose timings are no device's; and why."""
    pooled: bool = False
    """Whether the cases of all machines were compared with each other."""
    behind: tuple[tuple[CaseResult, str], ...] = ()
    """The case and the key of one that is shown to be ahead on one axis, and is not told apart from it on the other."""
    equal: tuple[tuple[str, ...], ...] = ()
    """Groups of members that are told apart on neither axis, best x first: nothing measured speaks for one of them."""
    why: Mapping[str, str] = field(default_factory=dict)
    """Of each case that is tied, dominated or behind: by whom, and what is shown of the two."""

    def within(self, group: str) -> FrontierView:
        """The part of one machine, by its `group`."""

        def own(cases: tuple[CaseResult, ...]) -> tuple[CaseResult, ...]:
            return tuple(case for case in cases if case.machine.group == group)

        def reasoned(cases: tuple[tuple[CaseResult, str], ...]) -> tuple[tuple[CaseResult, str], ...]:
            return tuple((case, why) for case, why in cases if case.machine.group == group)

        members = own(self.members)
        keys = {case.key for case in members}
        return replace(
            self, members=members, tied=own(self.tied), dominated=reasoned(self.dominated), behind=reasoned(self.behind),
            unplaced=reasoned(self.unplaced), equal=tuple(group for group in self.equal if keys.issuperset(group)),
        )  # fmt: skip


ROUNDED = 1e-4
"""Share of a metric's value that is no difference, where it is no count of right answers: one file on two runtimes is seen to
differ by half of it on real models, in every row in the same direction."""
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
    shown |= {case.key for part in parts for case, _ in (*part.dominated, *part.behind, *part.unplaced)}
    left = tuple((case, f"{case.machine.why_not_real}") for case in analysis.measured if case.key not in shown)
    return FrontierView(
        x, y, tuple(case for part in parts for case in part.members), tuple(case for part in parts for case in part.tied),
        tuple(item for part in parts for item in part.dominated),
        (*(item for part in parts for item in part.unplaced), *left), pooled and len(analysis.devices) > 1,
        tuple(item for part in parts for item in part.behind), tuple(group for part in parts for group in part.equal),
        {key: text for part in parts for key, text in part.why.items()},
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
    pairs = _Pairs(analysis, x, y, len(placed) - 1)
    sign = -1 if AXES[x].maximise else 1
    by_x = sorted(placed, key=lambda case: sign * axis_value(case, x))
    members: list[CaseResult] = []
    tied, dominated, behind = [], [], []
    why: dict[str, str] = {}
    for index, case in enumerate(placed):
        better = next((other for other in by_x if pairs.better(other, case)), None)
        estimated = [placed[other] for other in found.dominated_by[index]]
        ahead = next((other for other in estimated if pairs.ahead(other, case) or pairs.above(other, case)), None)
        held = next((other for other in placed if not pairs.holds(case, other)), None)
        if better is not None:
            dominated.append((case, better.key))
            why[case.key] = pairs.words(better, case)
        elif ahead is not None:
            behind.append((case, ahead.key))
            why[case.key] = pairs.words(ahead, case)
        elif found.members[index] and held is None:
            members.append(case)
        else:
            tied.append(case)
            why[case.key] = pairs.words(held or estimated[0], case)
    members.sort(key=lambda case: sign * axis_value(case, x))
    tied.sort(key=lambda case: sign * axis_value(case, x))
    groups = []
    rest = [*members, *tied]
    for leader in list(members):
        if leader not in rest:
            continue
        group = [leader, *(other for other in rest if other is not leader and pairs.equal(leader, other))]
        rest = [case for case in rest if case not in group]
        members += [case for case in group if case not in members]
        if len(group) > 1:
            groups.append(tuple(case.key for case in group))
    members.sort(key=lambda case: sign * axis_value(case, x))
    left = tuple(case for case in tied if case not in members)
    return FrontierView(
        x, y, tuple(members), left, tuple(dominated), tuple(unplaced), behind=tuple(behind), equal=tuple(groups),
        why={key: text for key, text in why.items() if key not in {case.key for case in members}},
    )  # fmt: skip


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


SAME_ANSWERS = 300
"""Rows on which two cases have to answer alike before their accuracy counts as equal: a change in 1 % would have shown."""


class _Pairs:
    """What is shown of two cases, over two axes. Each question is asked once."""

    def __init__(self, analysis: Analysis, x: str, y: str, others: int = 1) -> None:
        """The axes are names of `AXES`. A case is compared with so many `others`: one of them is found to be ahead by chance that
        much more often, so what is said of one pair is shown at a level that holds for all of a case's pairs (Bonferroni).
        """
        self.analysis, self.x, self.y = analysis, x, y
        self.level = 1 - (1 - LEVEL) / max(1, others)
        self._known: dict[tuple[str, str, str], bool] = {}

    def better(self, one: CaseResult, other: CaseResult) -> bool:
        """Whether one is shown to be better: ahead on both axes, or on one and equal on the other."""
        if one is other:
            return False
        ahead, above = self.ahead(one, other), self.above(one, other)
        return (ahead and (above or self.same_y(one, other))) or (above and self.same_x(one, other))

    def holds(self, case: CaseResult, other: CaseResult) -> bool:
        """Whether what the case gives up against another one, it is shown to win back on the other axis."""
        if self.ahead(other, case):
            return self.above(case, other)
        return not self.above(other, case) or self.ahead(case, other)

    def equal(self, one: CaseResult, other: CaseResult) -> bool:
        """Whether the two are told apart on neither axis."""
        return not any(shown(*pair) for shown in (self.ahead, self.above) for pair in ((one, other), (other, one)))

    def ahead(self, one: CaseResult, other: CaseResult) -> bool:
        """Shown on the first axis. Times are compared pair by pair, not by overlap."""
        ratio = self._ratio(one, other)
        if ratio is not None and ratio.p_value is not None:
            return ratio.value < 1 and ratio.p_value <= 1 - self.level
        return _apart(one.figure(self.x), other.figure(self.x), maximise=AXES[self.x].maximise)

    def above(self, one: CaseResult, other: CaseResult) -> bool:
        """Shown on the second axis. Answers are compared row by row where they are right or wrong."""
        key = (one.key, other.key, "above")
        if key not in self._known:
            self._known[key] = self._above(one, other)
        return self._known[key]

    def _above(self, one: CaseResult, other: CaseResult) -> bool:
        flips = self._flips(one, other)
        if flips is not None:
            # The interval that the words show: bad with this one means good with the other.
            return tango_interval(flips.good, flips.bad, flips.n, self.level)[0] > 0
        if self.y == "accuracy" and _rounding_apart(one.accuracy, other.accuracy):
            return False
        if self.y == "accuracy":
            # Changes are paired with the same reference, so their intervals are far narrower than those of accuracy.
            return _apart(one.accuracy_change, other.accuracy_change, maximise=True)
        return _apart(one.figure(self.y), other.figure(self.y), maximise=_maximise(self.analysis, self.y))

    def same_x(self, one: CaseResult, other: CaseResult) -> bool:
        """Shown to be equal on the first axis: within 2 % in time, or exact and the same."""
        ratio = self._ratio(one, other)
        if ratio is not None:
            return compare_verdict(ratio) == "equivalent"
        return _exactly(one.figure(self.x), other.figure(self.x))

    def same_y(self, one: CaseResult, other: CaseResult) -> bool:
        """The same answers to enough rows, or exact and the same."""
        if self.y not in ("accuracy", "agreement"):
            return _exactly(one.figure(self.y), other.figure(self.y))
        if one.case.quality_key == other.case.quality_key:
            return True
        mine, theirs = (self._records.get(case.case.quality_key) for case in (one, other))
        return (
            mine is not None
            and theirs is not None
            and len(mine.per_sample) >= SAME_ANSWERS
            and np.array_equal(mine.per_sample, theirs.per_sample)
            and np.array_equal(mine.agreement, theirs.agreement)
        )

    def words(self, one: CaseResult, case: CaseResult) -> str:
        """What is shown of one against another, `X is 1.90× faster, accuracy not told apart (+0.70 points [-3.10, +4.70])`."""
        return f"{one.key} {self._on_x(one, case)}, {self._on_y(one, case)}"

    def _on_x(self, one: CaseResult, case: CaseResult) -> str:
        title = AXES[self.x].title
        ratio = self._ratio(one, case)
        if ratio is None:
            if self.ahead(one, case):
                return f"is ahead in {title}"
            return f"is behind in {title}" if self.ahead(case, one) else f"is not told apart in {title}"
        if self.ahead(one, case):
            return f"is {_factor(1 / ratio.value)} faster"
        if self.ahead(case, one):
            return f"is {_factor(ratio.value)} slower"
        if compare_verdict(ratio) == "equivalent":
            return "is as fast within 2 %"
        word, factor = ("faster", 1 / ratio.value) if ratio.value < 1 else ("slower", ratio.value)
        return f"is {_factor(factor)} {word} by estimate, which is not shown"

    def _on_y(self, one: CaseResult, case: CaseResult) -> str:
        title = "accuracy" if self.y == "accuracy" else AXES[self.y].title
        if self.same_y(one, case):
            return "with the same answers" if self.y in ("accuracy", "agreement") else f"{title} the same"
        difference = self._difference(one, case)
        if self.above(one, case):
            return f"{title} better{difference}"
        return f"{title} worse{difference}" if self.above(case, one) else f"{title} not told apart{difference}"

    def _difference(self, one: CaseResult, case: CaseResult) -> str:
        flips = self._flips(one, case)
        if flips is None:
            return ""
        gain = (flips.bad - flips.good) / flips.n
        low, high = tango_interval(flips.good, flips.bad, flips.n, self.level)
        return f" ({100 * gain:+.2f} points [{100 * low:+.2f}, {100 * high:+.2f}])"

    def _ratio(self, one: CaseResult, other: CaseResult) -> RatioEstimate | None:
        """The ratio of two cases' times in the same rounds; None where rounds of one say nothing of the other."""
        if self.x != "latency_p50" or (one.case.target, one.case.batch) != (other.case.target, other.case.batch):
            return None
        key = (one.key, other.key)
        if key not in self._ratios:
            self._ratios[key] = judged_ratio(self.analysis.judged[one.key], self.analysis.judged[other.key], one.view)
        return self._ratios[key]

    def _flips(self, one: CaseResult, other: CaseResult) -> Flips | None:
        """Answers that are right with one and wrong with the other (bad) and the other way round, over independent rows."""
        metric = self.analysis.metric
        mine, theirs = (self._records.get(case.case.quality_key) for case in (one, other))
        if self.y != "accuracy" or metric is None or not metric.mean_reduced or self._clustered:
            return None
        if mine is None or theirs is None or mine.per_sample.shape != theirs.per_sample.shape:
            return None
        return count_flips(mine.per_sample, theirs.per_sample, higher_is_better=metric.higher_is_better)

    @cached_property
    def _ratios(self) -> dict[tuple[str, str], RatioEstimate | None]:
        return {}

    @cached_property
    def _records(self) -> dict[str, QualityRecord]:
        return {record.case: record for record in self.analysis.run.qualities}

    @cached_property
    def _clustered(self) -> bool:
        ids = self.analysis.run.plan.get("clusters")
        return ids is not None and clustered(np.asarray(ids).astype(np.str_))


def _factor(value: float) -> str:
    return f"{value:.2f}×" if value < 100 else f"{value:.0f}×"


def _exactly(one: object, other: object) -> bool:
    if not isinstance(one, Estimate) or not isinstance(other, Estimate):
        return False
    return one.low == one.high == one.value == other.value == other.low == other.high


def _rounding_apart(one: object, other: object) -> bool:
    """Whether two values differ by no more than runtimes that add in another order do, however surely they do so."""
    if not isinstance(one, Estimate) or not isinstance(other, Estimate):
        return False
    return abs(one.value - other.value) <= ROUNDED * max(abs(one.value), abs(other.value))


def _apart(better: object, worse: object, *, maximise: bool) -> bool:
    if not isinstance(better, Estimate) or not isinstance(worse, Estimate):
        return False
    if maximise:
        return better.low is not None and worse.high is not None and better.low > worse.high
    return better.high is not None and worse.low is not None and better.high < worse.low


def axis_value(case: CaseResult, axis: str) -> float:
    """The estimate on an axis; infinite where there is none."""
    figure = case.figure(axis)
    return figure.value if isinstance(figure, Estimate) else float("inf")


def surely_faster(analysis: Analysis, one: CaseResult, other: CaseResult) -> bool:
    """Whether one case is shown to take less time than another."""
    return _Pairs(analysis, "latency_p50", "accuracy").ahead(one, other)
