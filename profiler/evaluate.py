"""The quality stage: run the evaluation rows through each variant on each backend, and keep one row per sample."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from profiler import wire
from profiler.crosscheck import Crosscheck
from profiler.data import Dataset
from profiler.errors import EdgeprofError
from profiler.job import Job
from profiler.quality.metrics import Metric, default_metric, get_metric
from profiler.quality.outputs import agreement as agreement_with
from profiler.quality.outputs import predictions
from profiler.records import FailureRecord, QualityRecord
from profiler.study import Case
from profiler.targets.process import WorkerFailure, WorkerProcess

Outputs = dict[str, NDArray[np.generic]]
REFERENCE_OUTPUTS = "reference-outputs.bin"


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
    metric: Metric | None = None
    reference = _read_reference(job.folder / REFERENCE_OUTPUTS)
    check = Crosscheck(job, cases, data)
    doubted = check.reference()
    # Never paired against a runtime that computes something else from the file, where another one is right.
    ordered = sorted(units.items(), key=lambda item: (not item[1].is_reference_variant, item[0] in doubted))
    missing = [case for key, case in ordered if key not in done and key not in failed]
    with nullcontext() if elsewhere is None else elsewhere.ahead(job, missing, data) as ahead:
        for key, case in ordered:
            if key in done and reference is None and case.is_reference_variant:
                # The file with the reference's outputs is gone, its record is not: without them, those that are still to be
                # evaluated would be compared with themselves.
                reference = evaluated(job, case, data)
                _write_reference(job.folder / REFERENCE_OUTPUTS, reference)
            if case in missing:
                start = time.perf_counter()
                try:
                    outputs, notes = _found(job, case, data, ahead)
                except WorkerFailure as failure:
                    job.fail(key, "quality", failure)
                    failed.add(key)
                else:
                    check.saw(case, outputs)
                    if reference is None and case.is_reference_variant:
                        reference = outputs
                        _write_reference(job.folder / REFERENCE_OUTPUTS, outputs)
                    metric = metric or _metric(job, data, reference or outputs)
                    try:
                        record = _record(key, metric, data, outputs, reference, time.perf_counter() - start)
                    except EdgeprofError as error:
                        if reference is outputs:
                            # Labels or metric don't fit the model itself: nothing that follows could mean anything.
                            raise
                        job.fail(key, "quality", WorkerFailure("error", str(error)))
                        failed.add(key)
                    else:
                        job.store.add(job.run_id, replace(record, notes=(*record.notes, *notes)))
            job.progress.step(key)
    check.rest(failed)
    return failed


def _found(job: Job, case: Case, data: Dataset, ahead: Ahead | None) -> tuple[Outputs, tuple[str, ...]]:
    found = None if ahead is None else ahead.outputs(case)
    return (evaluated(job, case, data), ()) if found is None else (found.outputs, found.notes)


def _failed_before(job: Job, units: dict[str, Case]) -> set[str]:
    failures = job.store.records(job.run_id, FailureRecord)
    return {failure.case for failure in failures if failure.stage == "quality" and failure.case in units}


def _metric(job: Job, data: Dataset, outputs: Outputs) -> Metric:
    if job.study.metric is not None:
        return get_metric(job.study.metric)
    return default_metric(data.labels, outputs)


def _record(
    key: str, metric: Metric, data: Dataset, outputs: Outputs, reference: Outputs | None, seconds: float
) -> QualityRecord:
    base = reference if reference is not None else outputs
    agreement = agreement_with(outputs, base)
    per_sample = metric.per_sample(outputs, data.labels, reference=base)
    notes = () if reference is not None else ("the reference failed: agreement is with this variant itself",)
    return QualityRecord(
        case=key,
        metric=metric.name,
        per_sample=np.asarray(per_sample, dtype=np.float64),
        predictions=predictions(outputs),
        agreement=np.asarray(agreement, dtype=np.float64),
        data_sha256=data.sha256,
        seconds=seconds,
        notes=notes,
        metric_unit=metric.unit,
        higher_is_better=metric.higher_is_better,
    )


def evaluated(job: Job, case: Case, data: Dataset) -> Outputs:
    """Outputs for all rows, in order; batches are made as the inputs are fed (`Feeding.answers`)."""
    parts: dict[str, list[NDArray[np.generic]]] = {}
    order: list[NDArray[np.generic]] = []
    with job.open(case) as worker:
        job.load(worker, case)
        for index, outputs in job.prepared.feeding.answers(data, case.batch, partial(_infer, job, worker)):
            order.append(index)
            for name, array in outputs.items():
                if array.ndim == 0 or array.shape[0] != case.batch:
                    raise WorkerFailure(
                        "error",
                        f"output '{name}' has shape {array.shape} for a batch of {case.batch}: expected one row per sample. "
                        "Evaluate this model with --batch 1, or give an output whose first axis is the batch.",
                    )
                parts.setdefault(name, []).append(array[: len(index)])
    places = np.argsort(np.concatenate(order), kind="stable")
    return {name: np.concatenate(arrays)[places] for name, arrays in parts.items()}


def _infer(job: Job, worker: WorkerProcess, batch: dict[str, NDArray[np.generic]]) -> Outputs:
    return worker.request("infer", batch, timeout_s=job.limit_s)[1]


def _write_reference(path: Path, outputs: Outputs) -> None:
    temporary = path.with_suffix(".tmp")
    temporary.write_bytes(wire.pack(outputs))
    temporary.replace(path)


def _read_reference(path: Path) -> Outputs | None:
    try:
        return wire.unpack(path.read_bytes())
    except (OSError, wire.WireError):
        return None
