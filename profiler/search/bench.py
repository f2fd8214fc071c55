"""Makes and measures for the race: artifacts, screening rows, interleaved blocks, the final. Stores as it goes."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from profiler import artifacts, campaign, prepare
from profiler.disturbance import judge_run
from profiler.errors import BudgetError, StudyError
from profiler.evaluate import Elsewhere, evaluate
from profiler.job import Job
from profiler.records import (
    LEFT_OUT_BY_SEARCH,
    REFERENCE_VARIANT,
    ArtifactRecord,
    BlockRecord,
    FailureRecord,
    ProcessRecord,
)
from profiler.run import groups, groups_beside
from profiler.search.engine import Decision
from profiler.search.mixing import mixed_variants
from profiler.search.race_store import RaceStore
from profiler.search.screening import Screening, clusters
from profiler.search.shared import FIRST_RACE_GROUP, LOOK_GROUPS
from profiler.search.space import seeds_of
from profiler.study import Case, Effort
from profiler.variants import registry

Floats = NDArray[np.float64]
Objective = Literal["latency", "throughput", "cost", "memory"]

HOPELESS_COSINE = 0.5
"""Below this the outputs on calibration rows have little to do with the model's: not worth a process."""
RACE_EFFORT = Effort(processes=1, rounds=3, block_s=0.05, block_samples=10, warmup_s=0.2, warmup_max_s=1.0)
_LEFT_OUT = {"dropped": "dropped", "not tried": "not tried", "raced": "raced, but not measured to the end,"}
"""Outcomes of cases that have no place in the final, and the word for each."""
_FOR_THE_TIME = frozenset({"not tried", "raced"})
"""Those that only time decided: a search that goes on takes them up again."""
_SEEDS_FROM = 0.92
"""Share of the budget after which the final begins nothing new, when calibrations are to be repeated with other seeds."""
_PROCESS_S = 2.0
"""What a process takes until it is measured, before one was seen."""


@dataclass
class LiveBench:
    """The `Bench` of a real search."""

    job: Job
    objective: Objective
    screening: Screening | None
    """None: the study has no data, or too few rows for two parts."""
    plan: dict[str, Any]
    """The run's plan as it is stored: it grows with the cases and decisions."""
    effort: Effort = field(default_factory=lambda: RACE_EFFORT)
    made: dict[str, ArtifactRecord] = field(default_factory=dict)
    """By variant; the job sees the same mapping."""
    elsewhere: Elsewhere | None = None
    """Where accuracy is evaluated that need not be on the target."""
    before: Mapping[str, str] = field(default_factory=dict)
    """Of a search that is resumed: the hash of each artifact that it had, by variant."""
    raced_before: frozenset[str] = frozenset()
    """Of such a search: the cases with blocks of a race."""
    _cases: dict[str, tuple[Case, ...]] = field(default_factory=dict)
    _looks: dict[int, int] = field(default_factory=dict)
    process_s: float = _PROCESS_S
    """What one process takes, with all that it measures in a look."""
    _put_off: dict[str, FailureRecord] = field(default_factory=dict)

    @property
    def spent_s(self) -> float:
        """Seconds since the search began."""
        return self.job.budget.spent_s

    @property
    def budget_s(self) -> float:
        """Seconds that it may take."""
        return math.inf if self.job.budget.seconds is None else self.job.budget.seconds

    def make(self, variant: str) -> str | None:
        """Make and store the artifact; says why it cannot be used."""
        job = self.job
        job.progress.step(variant)
        try:
            record = prepare.make_artifact(job.artifact_store, job.prepared, registry.make(variant))
        except prepare.VariantFailed as failed:
            job.store.add(job.run_id, failed.record)
            return str(failed)
        if self.before.get(variant, record.sha256) != record.sha256:
            raise StudyError(
                f"what makes {variant} changed since run {job.run_id} began: start a new search instead of resuming."
            )
        record = artifacts.merged(record, self.made.values())
        self.made[variant] = record
        job.store.add(job.run_id, record)
        found, left_out = prepare.plan_cases(job.study, [self.made[REFERENCE_VARIANT], record])
        self._cases[variant] = tuple(case for case in found if case.variant == variant)
        for skipped in left_out:
            if skipped.case.startswith(f"{variant}@"):
                job.store.add(job.run_id, skipped)
        self._plan(self._cases[variant])
        if record.equal_to is not None:
            return f"its file equals that of {record.equal_to}: see there"
        cosine = record.facts.get("calibration_cosine", record.facts.get("1.calibration_cosine"))
        if isinstance(cosine, float) and cosine < HOPELESS_COSINE:
            reason = f"its outputs have little to do with the model's (cosine {cosine:.3f} on calibration rows)"
            for case in self._cases[variant]:
                self._failed(case.key, "plan", "skipped", f"dropped {LEFT_OUT_BY_SEARCH}: {reason}")
            return reason
        return None

    def untimed(self, variant: str, reason: str) -> None:
        """Say of the cases of a variant that they are evaluated only."""
        for case in self._cases[variant]:
            self._failed(case.key, "plan", "skipped", reason)

    def cases(self, variant: str) -> Sequence[Case]:
        """The cases of a variant that was made."""
        return self._cases[variant]

    def more(self) -> Sequence[str]:
        """Mixed precision, where the whole ladder was asked for; kept in the plan, since times differ when measured again."""
        search = self.plan["search"]
        if not search["asked"].get("mixed"):
            return ()
        if "mixed" not in search:
            try:
                search["mixed"] = mixed_variants(self.job, self._reference)
            except BudgetError as error:
                self.job.progress.note(str(error))
                return ()
            self.save()
        found: list[str] = search["mixed"]
        return found

    def screen(self, case: Case, stop: Callable[[Floats], str | None]) -> Floats | None:
        """Quality on screening rows."""
        if self.screening is None:
            return np.zeros(0)
        self.job.progress.step(case.quality_key)
        before = self.spent_s
        found = self.screening.quality(case, stop)
        self.process_s = max(self.process_s / 2, min(self.process_s, self.spent_s - before))
        return found

    def clusters(self) -> NDArray[np.int64] | None:
        """The source of each screening row."""
        return None if self.screening is None else clusters(self.screening.data)

    def race(self, cases: Sequence[Case], look: int, processes: int, since: int = 0) -> Mapping[str, Floats]:
        """One look: fresh processes of all cases, short blocks in the same rounds."""
        job, view = self.job, RaceStore(self.job.store, look)
        effort = self.effort.model_copy(update={"processes": processes})
        study = job.study.model_copy(update={"effort": effort, "time_budget_s": None, "soak": None})
        before, self._looks[look] = self.spent_s, processes
        references = {case.key: (self._reference,) for case in cases}
        planned = groups_beside(references, cases, self.made.values(), self.plan.get("group_memory_bytes"))
        try:
            campaign.measure(replace(job, study=study, store=view), planned)
        except BudgetError as error:
            job.progress.note(f"look {look + 1} of the race was cut short: {error}")
        self.process_s = (self.spent_s - before) / (len(cases) * processes)
        return self._logs(cases, range(since, look + 1), len(planned) > 1)

    @property
    def _reference(self) -> Case:
        return self._cases[REFERENCE_VARIANT][0]

    def _logs(self, cases: Sequence[Case], looks: range, several_groups: bool) -> dict[str, Floats]:
        """Log objective of these looks by case, shape (processes, rounds); only of cases that took part in all of them."""
        found = self._values({case.key for case in cases}, looks)
        units = sorted({unit for values in found.values() for unit in values})
        rounds = max((len(row) for values in found.values() for row in values.values()), default=0)
        table = {
            key: np.array([_padded(values[unit], rounds) for unit in units])
            for key, values in found.items()
            if units and all(unit in values and not np.isnan(values[unit]).all() for unit in units)
        }
        base = table.get(self._reference.key)
        if several_groups and base is not None:
            # Lanes of different groups have only the reference in common.
            table = {key: logs - base for key, logs in table.items()}
        return table

    def _values(self, keys: set[str], looks: range) -> dict[str, dict[tuple[int, int], Floats]]:
        """By case and (look, replicate): one log value per round."""
        if self.objective == "memory":
            return self._memory(keys, looks)
        blocks: dict[str, list[BlockRecord]] = {}
        for block in self.job.store.records(self.job.run_id, BlockRecord):
            if block.case in keys and self._look_of(block.group, looks) is not None:
                blocks.setdefault(block.case, []).append(block)
        found: dict[str, dict[tuple[int, int], Floats]] = {}
        for key, judged in judge_run(blocks, self.effort.rounds).items():
            values: dict[tuple[int, int], dict[int, float]] = {}
            for item in judged:
                number = self._look_of(item.block.group, looks)
                assert number is not None
                seen = item.clean if item.usable else item.observed
                rows = 1 if self.objective == "latency" else item.block.batch
                unit = values.setdefault((number, item.block.replicate), {})
                if item.kept:
                    unit[item.block.round] = float(np.log(np.median(seen) / rows))
            found[key] = {
                unit: np.array([by_round.get(i, np.nan) for i in range(max(by_round, default=0) + 1)])
                for unit, by_round in values.items()
            }
        return found

    def _memory(self, keys: set[str], looks: range) -> dict[str, dict[tuple[int, int], Floats]]:
        found: dict[str, dict[tuple[int, int], Floats]] = {}
        for process in self.job.store.records(self.job.run_id, ProcessRecord):
            number = self._look_of(process.group, looks)
            if process.case in keys and number is not None and process.peak_rss_bytes:
                value = np.array([math.log(process.peak_rss_bytes)])
                found.setdefault(process.case, {})[number, process.replicate] = value
        return found

    @staticmethod
    def _look_of(group: int, looks: range) -> int | None:
        look = (group - FIRST_RACE_GROUP) // LOOK_GROUPS
        return look if look in looks else None

    def confirm(self, cases: Sequence[Case]) -> None:
        """Evaluate on the rows that nothing was chosen with."""
        try:
            evaluate(self.job, [self._reference, *cases], self.elsewhere)
        except BudgetError as error:
            self.job.progress.note(str(error))

    def finish(self, cases: Sequence[Case]) -> None:
        """The usual measurement, of the contenders."""
        job = self.job
        failed = {record.case for record in job.store.records(job.run_id, FailureRecord) if record.stage == "quality"}
        wanted = [case for case in cases if case.quality_key not in failed]
        for case in wanted:
            self._put_off.pop(case.key, None)
        if job.budget.seconds is not None and any(seeds_of(case.variant) for case in wanted):
            # What is left over belongs to the calibration seeds.
            job = replace(job, budget=replace(job.budget, seconds=_SEEDS_FROM * job.budget.seconds))
        try:
            campaign.measure(job, groups(job.study, wanted, self.made.values(), self.plan.get("group_memory_bytes")))
        except BudgetError as error:
            job.progress.note(str(error))
        self.left_out()

    def left_out(self) -> None:
        """Store, at the end, what was not tried or not needed again."""
        for record in self._put_off.values():
            self.job.store.add(self.job.run_id, record)

    def raced(self, case: Case) -> bool:
        """Whether blocks of a race are stored from before this attempt."""
        return case.key in self.raced_before

    def race_takes_s(self, cases: int, processes: int) -> float:
        """From what processes took so far."""
        rounds = self.effort.rounds * (self.effort.block_s + 0.025)
        return cases * processes * max(self.process_s, rounds)

    def fits_finish(self) -> int:
        """Cases of which three processes can be had in the time that is left: with fewer nothing is said of a ratio."""
        effort = self.job.study.effort
        each = min(3, effort.processes) * (self.process_s + effort.rounds * (effort.block_s + 0.025))
        left = self.job.budget.left_s
        return 10_000 if math.isinf(left) else int(left / each)

    def tell(self, decision: Decision) -> None:
        """Store a decision at once; what it drops becomes a record that the report shows with its reason."""
        known = {(item["subject"], item["stage"], item["outcome"]) for item in self.decisions}
        if (decision.subject, decision.stage, decision.outcome) not in known:
            # A search that goes on may find other than it did before: what became of a candidate is the newest.
            self.decisions[:] = [item for item in self.decisions if item["subject"] != decision.subject]
            self.decisions.append(asdict(decision))
            self.save()
        if decision.outcome in _LEFT_OUT:
            self._leave_out(decision)

    @property
    def decisions(self) -> list[dict[str, Any]]:
        """Those of the run so far, as they are stored."""
        found: list[dict[str, Any]] = self.plan["search"]["decisions"]
        return found

    @staticmethod
    def may_be_tried(record: FailureRecord, decisions: Iterable[Mapping[str, Any]]) -> bool:
        """Whether a stored record only says that a search left a case out for the time, or a reference that none needed then.

        `decisions` are those of the run's plan so far.
        """
        if record.kind != "skipped":
            return False
        outcomes = {item.get("outcome") for item in decisions if item.get("subject") == record.case}
        if record.case.startswith(f"{REFERENCE_VARIANT}@"):
            return bool(outcomes & set(_LEFT_OUT))
        return bool(outcomes & _FOR_THE_TIME)

    def _leave_out(self, decision: Decision) -> None:
        if decision.stage == "make" and decision.outcome == "dropped":
            # `make` stored why.
            return
        words = f"{_LEFT_OUT[decision.outcome]} {LEFT_OUT_BY_SEARCH}"
        record = FailureRecord(
            case=decision.subject, stage="variant" if decision.stage == "make" else "plan", kind="skipped",
            message=f"{words}: {decision.reason}",
        )  # fmt: skip
        if decision.subject.startswith(f"{REFERENCE_VARIANT}@") or decision.outcome in _FOR_THE_TIME:
            # A reference may be needed again beside a contender, and what was not tried may be when the search goes on.
            self._put_off[decision.subject] = record
        else:
            self.job.store.add(self.job.run_id, record)

    def _failed(self, case: str, stage: Any, kind: Any, message: str) -> None:
        self.job.store.add(self.job.run_id, FailureRecord(case=case, stage=stage, kind=kind, message=message))

    def _plan(self, cases: Sequence[Case]) -> None:
        """Add the cases to the run's plan."""
        known = {Case(**fields) for fields in self.plan["cases"]}
        fresh = [asdict(case) for case in cases if case not in known]
        if fresh:
            self.plan["cases"] += fresh
            self.save()

    def save(self) -> None:
        """Store the plan."""
        self.job.store.set_plan(self.job.run_id, self.plan, self.job.prepared.notes)


def _padded(values: Floats, length: int) -> Floats:
    return np.concatenate([values, np.full(length - len(values), np.nan)])
