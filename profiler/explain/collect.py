"""Evidence from a stored run: both cases loaded in fresh workers, profiled in turns, and compared with what their files hold."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from backends import spec
from backends.base import OpTime, SessionFacts, read_op_time
from profiler import artifacts, plain, prepare
from profiler.analysis import Analysis, CaseResult
from profiler.errors import EdgeprofError, StudyError
from profiler.explain.cause import WEIGHTED
from profiler.explain.evidence import (
    Counterfactual,
    Evidence,
    FileFacts,
    Machine,
    Op,
    Side,
    merged_goes,
    without_overhead,
)
from profiler.explain.layers import Names, read_layers
from profiler.job import Job
from profiler.making import MakerStore
from profiler.named_code import named_code
from profiler.progress import Progress, Silent
from profiler.records import REFERENCE_VARIANT, ArtifactRecord, Estimate
from profiler.store import Store
from profiler.study import Case
from profiler.targets.maker import Maker, limits_of, model_errors
from profiler.targets.process import WorkerFailure, WorkerProcess

GOES = 5
RUNS, WALL_RUNS = 30, 20
_ISA_SWITCHES = ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA")


_Change = Literal["isa", "threads"]


@dataclass
class _Lane:
    worker: WorkerProcess
    case: Case
    reports: list[dict[str, Any]]


def own_reference(analysis: Analysis, result: CaseResult) -> CaseResult:
    """The unmodified model on the same backend, batch and threads; of that itself, the run's reference.

    Raises StudyError when the run has none, or it is the reference that is to be explained.
    """
    case = result.case
    if result.status != "measured" and case.backend == "—":
        why = result.failure.message if result.failure is not None else "it was not made"
        raise StudyError(f"{result.key} cannot be explained: {why}")
    key = Case(REFERENCE_VARIANT, case.backend, case.target, case.batch, case.threads).key
    if key == result.key:
        key = analysis.references.get(case.target, key)
    found = next((other for other in analysis.cases if other.key == key), None)
    if found is None:
        raise StudyError(
            f"run {analysis.run.id} has no {key} to explain {result.key} against: name one with --against."
        )
    if found.key == result.key:
        raise StudyError(
            f"{result.key} is the reference itself: name a variant of it, or a case to compare with by --against."
        )
    return found


def collect(
    analysis: Analysis,
    result: CaseResult,
    against: CaseResult,
    store: Store,
    folder: Path,
    *,
    goes: int = GOES,
    progress: Progress | None = None,
    allow_code: bool = False,
) -> Evidence:
    """Load both cases and profile them in turns. `folder` is the run's --out.

    A case that cannot run is evidence too. A function that the run's study names as its data is called with `allow_code` only;
    random rows stand in otherwise. Raises StudyError when nothing of the comparison is possible: the artifacts are
    gone, the reference does not run, or `goes` is no count.
    """
    if goes < 1:
        raise StudyError(f"{goes} goes are not possible: give --goes 1 or more.")
    run, progress = analysis.run, progress or Silent()
    limits = limits_of(run.study.time_limit_s, run.study.memory_limit_bytes)
    store_of_files = MakerStore(folder / "cache", lambda: limits)
    records = {record.variant: record for record in run.artifacts}
    reference = records.get(REFERENCE_VARIANT)
    if reference is None or not store_of_files.verify(reference.sha256):
        raise StudyError(f"the artifacts of run {run.id} are not in {folder}: run the study again, or give its --out.")
    source = store_of_files.path(reference.sha256)
    with prepare.working_folder() as scratch:
        prepared, notes = _prepared(analysis, source, Path(scratch), allow_code=allow_code)
        job = Job(run.id, run.study, store, store_of_files, records, prepared, folder, progress)
        failure = result.failure if result.status == "failed" and result.case.variant not in records else None
        with job.modes:
            return compare(
                job, result.case, against.case, goes=goes, accuracy_change=_accuracy(result), notes=notes,
                failure=None if failure is None else (failure.kind, failure.message),
                failed=_failed(analysis, result.case.backend),
            )  # fmt: skip


def _failed(analysis: Analysis, backend: str) -> dict[str, str]:
    """Variants of the run that could not be made, or that failed on this backend."""
    return {
        case.case.variant: plain.one_line(case.failure.message)[:160]
        for case in analysis.cases
        if case.status == "failed" and case.failure is not None and case.case.backend in (backend, "—")
    }


def _prepared(
    analysis: Analysis, source: Path, scratch: Path, *, allow_code: bool
) -> tuple[prepare.Prepared, tuple[str, ...]]:
    study = analysis.run.study.model_copy(
        update={"model": str(source), "calibration": None, "metric": None, "energy": None}
    )
    if (code := named_code(study)) and not allow_code:
        study = study.model_copy(update={"data": None})
        return prepare.prepare(study, (), scratch), (
            f"random inputs stand for the run's data, which is code: {code[0]} (--allow-code calls it)",
        )
    try:
        return prepare.prepare(study, (), scratch), ()
    except EdgeprofError as error:
        if study.data is None:
            raise
        study = study.model_copy(update={"data": None})
        return prepare.prepare(study, (), scratch), (f"random inputs stand for the run's data ({error})",)


class _Files:
    """Facts of model files, with layers under the names that they have in the unmodified model."""

    def __init__(self, job: Job, maker: Maker) -> None:
        """Raises ModelError for an unmodified model that cannot be read any more."""
        self._files, self._records, self._maker = job.artifact_store, job.artifacts, maker
        with model_errors():
            facts, nodes = read_layers(maker, self._files.path(self._records[REFERENCE_VARIANT].sha256), 1)
        self.names = Names(nodes, facts.layers)

    def facts(self, case: Case) -> FileFacts:
        """Of a case's file. Raises ModelError."""
        record = self._records.get(case.variant)
        if record is None or not self._files.verify(record.sha256):
            return FileFacts({}, (), {})
        with model_errors():
            found, _ = read_layers(self._maker, self._files.path(record.sha256), case.batch)
        layers = tuple(replace(layer, name=self.names.layer([layer.name]) or layer.name) for layer in found.layers)
        return replace(found, layers=layers)

    def record(self, case: Case) -> ArtifactRecord | None:
        return self._records.get(case.variant)


def compare(
    job: Job,
    case: Case,
    against: Case,
    *,
    goes: int = GOES,
    accuracy_change: float | None = None,
    failure: tuple[str, str] | None = None,
    notes: tuple[str, ...] = (),
    failed: Mapping[str, str] | None = None,
) -> Evidence:
    """Profile two cases of a job in turns; the job's artifacts hold the unmodified model and the variants of both.

    `failure` is the kind and the words of why the variant's file could not be made. Raises StudyError when `against` does
    not run.
    """
    limits = limits_of(job.study.time_limit_s, job.study.memory_limit_bytes)
    # Ends before anything is timed.
    with Maker(lambda: limits) as maker:
        files = _Files(job, maker)
        mine, other = _side(case, files), _side(against, files)
    base = Evidence(
        job.study.model, job.study.data, mine, other, None, accuracy_change, failure, (), notes, job.study, job.run_id,
        dict(failed or {}),
    )  # fmt: skip
    if failure is not None:
        return base
    with ExitStack() as stack:
        job.progress.stage("profiling ops", goes)
        try:
            ours = stack.enter_context(_opened(job, case))
        except WorkerFailure as error:
            return replace(base, failure=(error.kind, str(error)))
        try:
            theirs = stack.enter_context(_opened(job, against))
        except WorkerFailure as error:
            raise StudyError(f"{against.key} does not run, so nothing can be compared with it: {error}") from error
        for go in range(goes):
            # In turns, and each first as often as the other: what drifts is shared.
            for lane in (ours, theirs) if go % 2 else (theirs, ours):
                _go(job, lane, machine=go == 0 and lane is ours)
            job.progress.step(case.key)
        machine = Machine(**{**ours.reports[0]["machine"], "isa": tuple(ours.reports[0]["machine"]["isa"])})
        found = replace(
            base, variant=_seen(mine, ours, files.names), reference=_seen(other, theirs, files.names), machine=machine
        )
        return replace(found, counterfactuals=tuple(_counterfactuals(job, ours, found, goes)))


def _side(case: Case, files: _Files) -> Side:
    record, backend = files.record(case), spec.parse(case.backend)
    options = {**({} if record is None else artifacts.backend_options(record, backend.name)), **backend.options}
    return Side(
        case.key, case.variant, case.backend, case.batch, case.threads, (), None, None, None, files.facts(case),
        changed=record is None or record.changed, equal_to=None if record is None else record.equal_to,
        notes=() if record is None else record.notes, options=options,
    )  # fmt: skip


def _accuracy(result: CaseResult) -> float | None:
    change = result.accuracy_change
    return change.value if isinstance(change, Estimate) and change.unit != "native" else None


@contextmanager
def _opened(job: Job, case: Case, environment: Mapping[str, str] | None = None) -> Iterator[_Lane]:
    """A fresh worker with the case loaded and fed. Raises WorkerFailure."""
    with job.open(case, environment) as worker:
        job.load(worker, case)
        worker.request("feed", job.feeds(case), timeout_s=job.limit_s)
        yield _Lane(worker, case, [])


def _go(job: Job, lane: _Lane, *, machine: bool = False) -> None:
    reply, _ = lane.worker.request("ops", timeout_s=job.limit_s, runs=RUNS, wall_runs=WALL_RUNS, machine=machine)
    lane.reports.append(reply)


def _seen(side: Side, lane: _Lane, names: Names) -> Side:
    walls = tuple(float(report["wall_s"]) for report in lane.reports)
    facts = SessionFacts(**lane.reports[-1]["facts"])
    if lane.reports[0]["ops"] is None:
        return replace(side, wall_s=walls, facts=facts, ops_reason=str(lane.reports[0]["reason"]))
    # The profiler's share is taken off within each go, whose wall time it belongs to.
    profiles = []
    for report, wall in zip(lane.reports, walls, strict=True):
        ops = [read_op_time(op) for op in report["ops"]]
        own = without_overhead(ops, wall)
        profiles.append([replace(op, duration_s=seconds) for op, seconds in zip(ops, own, strict=True)])
    merged = merged_goes(profiles)
    return replace(
        side, wall_s=walls, facts=facts, ops=tuple(Op(op, op.duration_s, _layer_of(op, names)) for op in merged)
    )


def _layer_of(op: OpTime, names: Names) -> str | None:
    return names.layer((op.name, *op.origins)) if WEIGHTED.search(op.op_type) else None


def _counterfactuals(job: Job, lane: _Lane, evidence: Evidence, goes: int) -> Iterator[Counterfactual]:
    """The variant once more without a cause that can be switched off from outside."""
    machine = evidence.machine
    assert machine is not None
    switched = [name for name in _ISA_SWITCHES if name in machine.switches]
    if switched:
        text = ", ".join(f"{name}=DEFAULT" for name in switched)
        yield from _again(job, lane, lane.case, "isa", text, dict.fromkeys(switched, "DEFAULT"), goes)
    if lane.case.threads > machine.usable_cores:
        fewer = replace(lane.case, threads=machine.usable_cores)
        yield from _again(job, lane, fewer, "threads", f"{fewer.threads} threads", {}, goes)


def _again(
    job: Job, lane: _Lane, case: Case, change: _Change, text: str, environment: Mapping[str, str], goes: int
) -> Iterator[Counterfactual]:
    start = len(lane.reports)
    try:
        with _opened(job, case, environment) as other:
            for go in range(goes):
                for turn in (lane, other) if go % 2 else (other, lane):
                    _go(job, turn)
            beside, without = (
                tuple(float(r["wall_s"]) for r in reports) for reports in (lane.reports[start:], other.reports)
            )
            yield Counterfactual(change, text, without, beside)
    except WorkerFailure:
        # What it would take otherwise stays unknown; the cause itself holds all the same.
        return
