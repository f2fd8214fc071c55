"""What may be recommended: which cases keep every limit, alone and among all that were chosen from. Pure.

A verdict is of one case. The recommendation is of the best of many, so its loss is held against the limit at one error rate for
all that could have been chosen (`quality/family.py`). Which these are is settled by figures that know nothing of the evaluation
rows: times, memory, money, and in a search the rows that its contenders were screened on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from profiler.analysis import DROP_CHECK, Analysis, CaseResult
from profiler.errors import DataError
from profiler.quality.family import Member, Shared, simultaneous
from profiler.records import SCREENING, Estimate, NotMeasured

MOST_FINALISTS = 4
"""Of a search's contenders: each one more makes it harder for all to be shown within the limit."""
LATENCY_AXES = frozenset({"latency_p50", "latency_p99"})


@dataclass(frozen=True)
class Choice:
    """The cases of one decision, and what holds of each among the others."""

    shared: Mapping[str, Shared]
    """By case, of all that could have been chosen and whose answers were held against the limit."""
    finalists: bool
    """Whether a search's contenders were thinned by their screening rows first."""

    @property
    def count(self) -> int:
        """How many with answers of their own were compared."""
        return max((item.count for item in self.shared.values()), default=0)

    def fits(self, case: CaseResult) -> bool:
        """Whether every limit is kept, and the loss among all that could have been chosen."""
        if case.verdict != "PASS" or case.runtime_doubt is not None:
            return False
        return case.is_reference or case.same_model or ((own := self.shared.get(case.key)) is not None and own.passed)


def choice(analysis: Analysis, asked: str) -> Choice:
    """What a decision over the axis `asked` chooses among."""
    cases = [case for case in analysis.measured if case.key in analysis.members and could_be_chosen(case, asked)]
    limit = analysis.drop_limit
    if limit is None or not cases:
        return Choice({}, False)
    members = {case.key: analysis.members[case.key] for case in cases}
    finalists = _finalists(analysis, cases, members, limit, asked)
    found = simultaneous({key: members[key] for key in finalists}, limit)
    out = {key: Shared(len(found), False, None, finalist=False) for key in members if key not in found}
    return Choice({**found, **out}, bool(out))


def could_be_chosen(case: CaseResult, asked: str) -> bool:
    """Whether everything but its answers speaks for it. Nothing here looks at the evaluation rows."""
    if case.is_reference or case.machine.emulated or case.status != "measured" or case.runtime_doubt is not None:
        return False
    if any(check.verdict != "PASS" for check in case.checks if check.name != DROP_CHECK):
        return False
    ratio = case.time_ratio
    slower = isinstance(ratio, Estimate) and ratio.low is not None and ratio.low > 1
    return not (asked in LATENCY_AXES and slower)


def unchecked(case: CaseResult) -> bool:
    """Whether nothing was compared of its answers, although it is another model than the reference."""
    return (
        not case.is_reference
        and isinstance(case.accuracy, NotMeasured)
        and isinstance(case.accuracy_change, NotMeasured)
        and isinstance(case.agreement, NotMeasured)
    )


def _finalists(
    analysis: Analysis, cases: Sequence[CaseResult], members: Mapping[str, Member], limit: float, asked: str
) -> list[str]:
    """Of a search's contenders at most four, by what screening rows promise, then by the axis; all where nothing tells."""
    promise = {case.key: _promise(analysis, case) for case in cases}
    if "search" not in analysis.run.plan or len(cases) <= MOST_FINALISTS or None in promise.values():
        return [case.key for case in cases]

    def order(case: CaseResult) -> tuple[bool, float]:
        found = promise[case.key]
        assert found is not None
        mean, error = found
        promising = mean - error >= -limit
        figure = case.figure(asked)
        value = figure.value if isinstance(figure, Estimate) else float("inf")
        return not promising, value if promising else -mean

    kept: list[str] = []
    answers: list[Sequence[object]] = []
    for case in sorted(cases, key=order):
        rows = [None if part is None else part.tobytes() for part in members[case.key].rows]
        if rows not in answers:
            if len(answers) == MOST_FINALISTS:
                continue
            answers.append(rows)
        kept.append(case.key)
    return kept


def _promise(analysis: Analysis, case: CaseResult) -> tuple[float, float] | None:
    """Change of the metric on the screening rows, negative is worse, and its standard error; None without such rows."""
    metric = analysis.metric
    rows = {record.case: record.per_sample for record in analysis.run.qualities}
    mine = rows.get(f"{SCREENING}{case.case.quality_key}")
    base = rows.get(f"{SCREENING}{case.reference_quality}")
    if metric is None or mine is None or base is None:
        return None
    count = min(len(mine), len(base))
    if count < 2:
        return None
    sign = 1.0 if metric.higher_is_better else -1.0
    if metric.mean_reduced:
        change = sign * (mine[:count] - base[:count])
        return float(change.mean()), float(change.std(ddof=1)) / float(np.sqrt(count))
    try:
        return sign * (metric.value(mine[:count]) - metric.value(base[:count])), 0.0
    except DataError:  # a class that these rows lack
        return None
