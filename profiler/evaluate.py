"""The quality stage: run the evaluation rows through each variant on each backend, and keep one row per sample."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from profiler import output_rows
from profiler.crosscheck import Crosscheck
from profiler.data import Dataset
from profiler.errors import BudgetError, EdgeprofError, StudyError, TargetError
from profiler.job import Job, add, again_if_killed
from profiler.output_rows import OutputRows, Outputs, TooLarge
from profiler.quality.candidates import with_rows
from profiler.quality.choice import Unclear
from profiler.quality.metrics import label_kind
from profiler.quality.reading import Reading, choose
from profiler.records import REFERENCE_VARIANT, FailureRecord, QualityRecord
from profiler.study import Case
from profiler.targets.config import LOCAL
from profiler.targets.process import WorkerFailure, WorkerProcess

REFERENCE_OUTPUTS = "reference-outputs.bin"
_LOOK_ROWS = 64
_LOOK_S = 10.0
"""Rows, and seconds, of a first look at what the model answers."""


class Found(Protocol):
    """Outputs that were not made on the case's target."""

    @property
    def outputs(self) -> Outputs:
        """As the target gives them."""
        ...

    @property
    def notes(self) -> tuple[str, ...]:
        """Where, and why that is as good; for the record."""
        ...


class Ahead(Protocol):
    """Evaluations under way elsewhere."""

    def outputs(self, case: Case) -> Found | None:
        """Outputs of all rows, in order; None when the case is to be evaluated on its target."""
        ...


class Elsewhere(Protocol):
    """Another place than the targets to evaluate on, such as `profiler.cluster.evaluating.ClusterEvaluation`."""

    def ahead(self, job: Job, cases: Sequence[Case], data: Dataset) -> AbstractContextManager[Ahead]:
        """Begin with these cases, in this order."""
        ...


def evaluate(job: Job, cases: Sequence[Case], elsewhere: Elsewhere | None = None) -> set[str]:
    """Evaluate every (variant, backend, target, batch) not yet stored. Returns the quality keys that failed.

    The reference, the first case that works with the unmodified model, goes first: the others are paired against it. Outputs
    come from `elsewhere` for the cases that may be evaluated there.
    """
    data = job.prepared.evaluation
    if data is None:
        return set()
    units = {case.quality_key: case for case in cases}
    done = {record.case: record for record in job.store.records(job.run_id, QualityRecord)}
    failed = _failed_before(job, units)
    job.progress.stage("evaluating accuracy", len(units))
    # Which output is meant is asked once: whoever has to answer has to start another run.
    question = next((record.question for record in done.values() if record.question is not None), None)
    known = _Known(output_rows.read(job.folder / REFERENCE_OUTPUTS), Crosscheck(job, cases, data), question)
    doubted = known.check.reference()
    # Never paired against a runtime that computes something else from the file, where another one is right.
    ordered = sorted(units.items(), key=lambda item: (not item[1].is_reference_variant, item[0] in doubted))
    missing = [case for key, case in ordered if key not in done and key not in failed]
    with nullcontext() if elsewhere is None else elsewhere.ahead(job, missing, data) as ahead:
        for key, case in ordered:
            if key in done and known.reference is None and case.is_reference_variant:
                # The file with the reference's outputs is gone, its record is not: without them, those that are still to be
                # evaluated would be compared with themselves.
                known.reference, _ = evaluated(job, case, data)
                output_rows.write(job.folder / REFERENCE_OUTPUTS, known.reference)
            if case in missing and known.question is not None:
                add(job, unanswered(key, data, known.question))
            elif case in missing and not _evaluated(job, case, data, ahead, known):
                failed.add(key)
            job.progress.step(key)
    known.check.rest(failed, known.reference)
    return failed


@dataclass
class _Known:
    """What the cases of a run share."""

    reference: Outputs | None
    check: Crosscheck
    question: str | None
    """Where it's open what is to be evaluated."""
    reading: Reading | None = None


def _evaluated(job: Job, case: Case, data: Dataset, ahead: Ahead | None, known: _Known) -> bool:
    """Evaluate one case and store what came out, be it a question. False when it failed, which is stored too."""
    key, start = case.quality_key, time.perf_counter()
    try:
        outputs, notes = _found(job, case, data, ahead)
    except WorkerFailure as failure:
        job.fail(key, "quality", failure)
        return False
    known.check.saw(case, outputs)
    if known.reference is None and case.is_reference_variant:
        known.reference = outputs
        output_rows.write(job.folder / REFERENCE_OUTPUTS, outputs)
    base = outputs if known.reference is None else known.reference
    try:
        if known.reading is None:
            known.reading = choose(job.study.metric, data.labels, base)
        record = _record(key, known.reading, data, outputs, known.reference, time.perf_counter() - start)
    except EdgeprofError as error:
        if known.reading is None and isinstance(error, Unclear):
            # Times tell something even so, and nothing is told over a guess.
            known.question = str(error)
            job.progress.note(f"accuracy is not measured: {error}")
            record = unanswered(key, data, known.question)
        elif known.reference is outputs:
            # Labels or metric don't fit the model itself: nothing that follows could mean anything.
            raise
        else:
            job.fail(key, "quality", WorkerFailure("error", str(error)))
            return False
    try:
        add(job, replace(record, notes=(*record.notes, *notes)))
    except WorkerFailure as failure:
        job.fail(key, "quality", failure)
        return False
    return True


def first_look(job: Job) -> Reading | None:
    """How the outputs will be read, from a few rows through the unmodified model on this machine, before variants are made.

    None where that cannot be seen here: another machine's runtime, a model that needs more memory, a question that is open.
    Raises DataError when metric, labels and outputs don't fit each other, and for labels outside the model's classes; StudyError
    when the largest accepted drop is not one of the metric that was found.
    """
    data, study = job.prepared.evaluation, job.study
    if data is None:
        return None
    case = Case(REFERENCE_VARIANT, study.backends[0], LOCAL, min(study.batches), study.threads[0])
    count = min(_LOOK_ROWS, len(data))
    # What is carried from step to step makes sense in the order of the rows only.
    spread = np.arange(count) if job.prepared.feeding.states else np.unique(np.linspace(0, len(data) - 1, count))
    try:
        outputs, rows = _looked(job, case, data, spread.astype(np.int64))
    except (BudgetError, TargetError):
        # Whoever evaluates this case has the message, and the right machine.
        return None
    labels = None if data.labels is None else data.labels[rows]
    try:
        reading = choose(study.metric, labels, outputs, kind=None if data.labels is None else label_kind(data.labels))
    except Unclear as question:
        job.progress.note(f"accuracy will not be measured unless more rows tell: {question}")
        return None
    reading.per_sample(outputs, labels, outputs)
    if data.labels is not None:
        reading.check(data.labels)
        misfit = study.constraints.drop_misfit(reading.metric.name, reading.metric.unit)
        if misfit is not None:
            raise StudyError(f"{misfit}.")
    for note in reading.notes:
        job.progress.note(note)
    return reading


def _looked(job: Job, case: Case, data: Dataset, rows: NDArray[np.int64]) -> tuple[Outputs, NDArray[np.int64]]:
    """Outputs of some of `rows`, the first of them that there was time for, and which these are."""
    parts: list[Outputs] = []
    seen: list[NDArray[np.int64]] = []
    begun = time.monotonic()
    with job.open(case) as worker:
        job.load(worker, case)
        for index, outputs in job.prepared.feeding.answers(data.take(rows), case.batch, partial(_infer, job, worker)):
            parts.append({name: array[: len(index)] for name, array in with_rows(outputs, case.batch).items()})
            seen.append(rows[np.asarray(index, np.int64)])
            if time.monotonic() - begun >= _LOOK_S:
                break
    names = [
        name for name, array in parts[0].items()
        if all(name in part and part[name].shape[1:] == array.shape[1:] for part in parts)
    ]  # fmt: skip
    return {name: np.concatenate([part[name] for part in parts]) for name in names}, np.concatenate(seen)


def _found(job: Job, case: Case, data: Dataset, ahead: Ahead | None) -> tuple[Outputs, tuple[str, ...]]:
    found = None if ahead is None else ahead.outputs(case)
    if found is not None:
        return found.outputs, found.notes
    return again_if_killed(job, case.quality_key, lambda: evaluated(job, case, data))


def _failed_before(job: Job, units: dict[str, Case]) -> set[str]:
    failures = job.store.records(job.run_id, FailureRecord)
    return {failure.case for failure in failures if failure.stage == "quality" and failure.case in units}


def _record(
    key: str, reading: Reading, data: Dataset, outputs: Outputs, reference: Outputs | None, seconds: float
) -> QualityRecord:
    base = reference if reference is not None else outputs
    notes = () if reference is not None else ("the reference failed: agreement is with this variant itself",)
    return QualityRecord(
        case=key, data_sha256=data.sha256, seconds=seconds, notes=(*reading.notes, *notes),
        **reading.reduced(outputs, data.labels, base),
    )  # fmt: skip


def unanswered(key: str, data: Dataset, question: str) -> QualityRecord:
    """The record of a case that cannot be evaluated before the user has answered a question."""
    nothing = np.zeros(0, np.float64)
    return QualityRecord(
        case=key, metric="", per_sample=nothing, predictions=None, agreement=nothing, data_sha256=data.sha256, seconds=0.0,
        question=question,
    )  # fmt: skip


def evaluated(job: Job, case: Case, data: Dataset) -> tuple[Outputs, tuple[str, ...]]:
    """Outputs for all rows, in order, with notes; batches are made as the inputs are fed (`Feeding.answers`).

    Outputs without a row for each sample are left out, with a note: detections, scalars and constants are no answers to rows.
    """
    kept, first, order = OutputRows(len(data), job.folder), Outputs(), list[NDArray[np.generic]]()
    left_out: dict[str, str] = {}
    with job.open(case) as worker:
        named = {str(info.get("name")) for info in job.load(worker, case).get("outputs", ())}
        named -= {rule.source for rule in job.prepared.feeding.states if rule.source}
        for index, outputs in job.prepared.feeding.answers(data, case.batch, partial(_infer, job, worker)):
            whole = with_rows(outputs, case.batch)
            first = first if order else whole
            order.append(index)
            for name in named - outputs.keys():
                left_out.setdefault(name, "it is no tensor (a sequence, or maps that fit no table)")
            for name, array in outputs.items():
                if name not in whole or name not in first or not _alike(array, first[name]):
                    why = "another than before" if name in whole else "no row for each sample"
                    left_out.setdefault(name, f"its shape is {array.shape} for a batch of {case.batch}, {why}")
            rest = {name: array[: len(index)] for name, array in whole.items() if name not in left_out}
            try:
                if rest:
                    kept.add(rest)
            except TooLarge as error:
                raise WorkerFailure("error", str(error)) from error
    notes = tuple(f"output '{name}' is not evaluated: {why}" for name, why in left_out.items())
    found = {name: array for name, array in kept.outputs().items() if name not in left_out}
    if job.prepared.feeding.states:
        # Sequences run side by side, so their steps came in turn.
        places = np.argsort(np.concatenate(order), kind="stable")
        found = {name: array[places] for name, array in found.items()}
    return found, notes


def _alike(array: NDArray[np.generic], first: NDArray[np.generic]) -> bool:
    """Whether rows of both can stand in one array; texts may be of any length."""
    same = array.dtype.kind == first.dtype.kind == "U" or array.dtype == first.dtype
    return same and array.shape[1:] == first.shape[1:]


def _infer(job: Job, worker: WorkerProcess, batch: dict[str, NDArray[np.generic]]) -> Outputs:
    return worker.request("infer", batch, timeout_s=job.limit_s)[1]
