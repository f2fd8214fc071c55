"""Whether a run has measured enough, from its records. Pure; the campaign asks after whole replicates, a report asks again.

A case has converged when its p50, p90 and p99 are known to the run's precision and its ratio to the reference is decided, all
at 99 %, over a span long enough to have seen the machine in more than one mood (profiler/stats/sequential.py).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from profiler.disturbance import Judged, judge, judge_run
from profiler.records import RACE, BlockRecord
from profiler.soak_result import PHASE
from profiler.stats import sequential as rule
from profiler.stats.quantiles import quantile_interval
from profiler.stats.ratios import ratio_interval
from profiler.stats.thermal import SUSTAINED
from profiler.store import RunData
from profiler.study import Case, Study, reference_case

DEFAULT_PRECISION = 0.02


@dataclass(frozen=True)
class RunLook:
    """What a look at a whole run says."""

    converged: bool
    by_case: Mapping[str, rule.Look]


def sequential(study: Study) -> bool:
    """Whether the study goes on until a precision is reached, rather than for a fixed number of processes."""
    return study.effort.precision is not None or study.time_budget_s is not None


def dirty_blocks(blocks: Sequence[BlockRecord]) -> list[bool]:
    """Which blocks of one case and process were disturbed."""
    return [bool(item.reasons) for item in judge(blocks)]


def judged_by_case(run: RunData) -> dict[str, list[Judged]]:
    """The blocks that latencies come from, in order and judged: of a thermal soak, those measured once it was hot; of a
    search, those of the final, and where a case never came so far, those of the race.
    """
    blocks: dict[str, list[BlockRecord]] = {}
    final = {block.case for block in run.blocks if RACE not in block.labels}
    for block in sorted(run.blocks, key=lambda b: (b.case, b.replicate, b.attempt, b.group, b.round)):
        if RACE in block.labels and block.case in final:
            continue
        if run.study.soak is None or block.labels.get(PHASE) == SUSTAINED:
            blocks.setdefault(block.case, []).append(block)
    return judge_run(blocks, run.study.effort.rounds)


def look(run: RunData, judged: Mapping[str, list[Judged]] | None = None) -> RunLook:
    """One look at the run as it is stored; `judged` are its blocks from `judged_by_case`, for whoever has them."""
    study = run.study
    judged = judged_by_case(run) if judged is None else judged
    cases = [Case(**fields) for fields in run.plan.get("cases", [])]
    found = {case.key: _case(case, judged, study) for case in cases if case.key in judged}
    return RunLook(bool(found) and all(item.converged for item in found.values()), found)


def paired_logs(
    judged: Sequence[Judged], reference: Sequence[Judged], *, observed: bool = False
) -> dict[int, list[float]]:
    """Log ratios of the medians of blocks of the same replicate, attempt, group and round, by replicate.

    Of the clean samples, or with `observed` of all.
    """
    medians = {_place(item.block): _log_median(item, observed) for item in reference}
    found: dict[int, list[float]] = {}
    for item in judged:
        other, own = medians.get(_place(item.block)), _log_median(item, observed)
        if other is not None and own is not None:
            found.setdefault(item.block.replicate, []).append(own - other)
    return found


def _log_median(item: Judged, observed: bool) -> float | None:
    return item.log_observed if observed else item.log_median


def _place(block: BlockRecord) -> tuple[int, int, int, int]:
    return block.replicate, block.attempt, block.group, block.round


def _case(case: Case, judged: Mapping[str, list[Judged]], study: Study) -> rule.Look:
    own = [item for item in judged[case.key] if item.usable]
    if not own:
        return rule.Look(False, "nothing undisturbed was measured", ("an undisturbed block",))
    precision = study.effort.precision or DEFAULT_PRECISION
    targets = rule.quantile_targets(precision, min(0.99, 1.5 * precision))
    rounds, owners = [item.clean for item in own], [item.block.replicate for item in own]
    quantiles = [quantile_interval(rounds, p, level=rule.LOOK_LEVEL, processes=owners) for p in targets]
    starts = np.array([item.block.started_s for item in own])
    values = np.array([float(np.median(item.clean)) for item in own])
    span = float(starts.max() - starts.min() + own[-1].block.wall_s)
    parts = [
        rule.quantile_target_met(quantiles, targets),
        rule.span_met(span, rule.correlation_time_s(starts, values, owners)),
    ]
    logs = paired_logs(own, judged.get(reference_case(case, study).key, ()))
    if logs and case != reference_case(case, study):
        ratio = ratio_interval([np.array(values) for values in logs.values()], level=rule.LOOK_LEVEL)
        parts.append(rule.ratio_target_met(ratio))
    return rule.all_of(parts)
