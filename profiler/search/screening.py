"""Accuracy on screening rows, in growing portions and only as many as a decision needs; one process per quality key."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from profiler import output_rows
from profiler.data import Dataset, split_calibration
from profiler.errors import BudgetError, DataError, EdgeprofError, StoreError, TargetError
from profiler.evaluate import Elsewhere
from profiler.job import Job, add
from profiler.output_rows import OutputRows, Outputs, TooLarge
from profiler.quality.candidates import with_rows
from profiler.quality.metrics import Metric, get_metric
from profiler.quality.reading import Reading, choose
from profiler.records import QualityRecord
from profiler.search.shared import SCREENING
from profiler.study import Case
from profiler.targets.process import WorkerFailure, WorkerProcess

Floats = NDArray[np.float64]

FIRST_ROWS = 128
GROWTH = 2.0
MOST_ROWS = 2048
"""Screening rows at most: enough to show that nothing is worse by a point; the other rows confirm."""
FEWEST_ROWS = 64
OUTPUTS = "screening-outputs.bin"
_QUANTILE = 1.96
_USUAL_CHANGE = 0.03
"""Share of the answers that a usable int8 variant changes on real models (docs/quantization.md: 1 to 7 %)."""


def split(data: Dataset, seed: int) -> tuple[Dataset, Dataset] | None:
    """Screening rows in random order, sources together, and the rows that confirm. None when there are too few for two parts.

    No source and no row with equal inputs stands in both.
    """
    wanted = min(len(data) // 2, MOST_ROWS)
    if wanted < FEWEST_ROWS:
        return None
    try:
        screening, confirmation = split_calibration(data, wanted, seed=seed + 1)
    except DataError:
        return None
    order = _shuffled(screening, seed)
    note = f"{len(screening)} rows were used to choose candidates and are not evaluated"
    confirmation = replace(confirmation, notes=(*data.notes, note))
    return replace(screening.take(order), name=f"{data.name} (screening)"), confirmation


def too_few_rows(rows: int, margin: float) -> str | None:
    """What so many confirmation rows cannot show about a drop of `margin` (a share), in words; None when they are enough.

    The half width of a paired drop's interval is about 1.96·√(f/n) when a share f of the answers changes. Quantized models
    change some per cent of them.
    """
    if margin <= 0:
        return None
    changed = rows * margin**2 / _QUANTILE**2
    if changed >= _USUAL_CHANGE:
        return None
    enough = math.ceil(2 * _USUAL_CHANGE * _QUANTILE**2 / margin**2)
    return (
        f"{rows} rows confirm: that a drop is below {100 * margin:g} points can be shown only of variants that change fewer than "
        f"{100 * changed:.2g} % of the answers; where {100 * _USUAL_CHANGE:g} % change it takes about {enough} rows in all, half "
        "of which choose. Accept a larger --max-drop, or expect INCONCLUSIVE"
    )


def clusters(data: Dataset) -> NDArray[np.int64] | None:
    """A number for each row's source; None when every row stands alone."""
    if data.ids is None:
        return None
    numbers = np.unique(data.ids, return_inverse=True)[1].astype(np.int64)
    return None if len(np.unique(numbers)) == len(numbers) else numbers


def _shuffled(data: Dataset, seed: int) -> NDArray[np.int64]:
    """Rows in random order, those of one source one after the other."""
    random = np.random.default_rng((seed, 7))
    groups = clusters(data)
    if groups is None:
        return random.permutation(len(data))
    place = random.permutation(int(groups.max()) + 1)
    return np.argsort(place[groups], kind="stable").astype(np.int64)


@dataclass
class Screening:
    """The screening stage of one search."""

    job: Job
    data: Dataset
    metric: Metric | None = None
    elsewhere: Elsewhere | None = None
    """Where rows are evaluated that need not be on the target: all of them at once, and only those counted that were needed."""
    _reference: Outputs | None = field(default=None, repr=False)
    _reading: Reading | None = field(default=None, repr=False)

    def quality(self, case: Case, stop: Callable[[Floats], str | None]) -> Floats | None:
        """Quality of the rows, 0 to 1 each; see `Bench.screen`. From the store when it was done before."""
        key = f"{SCREENING}{case.quality_key}"
        stored = {record.case: record for record in self.job.store.records(self.job.run_id, QualityRecord)}
        if key in stored:
            return self._reduced(stored[key])
        start = time.perf_counter()
        try:
            outputs, rows, notes = self._outputs(case, stop)
            record = self._record(key, outputs, rows, time.perf_counter() - start)
            record = replace(record, notes=(*record.notes, *notes))
            add(self.job, record)
        except WorkerFailure as failure:
            self.job.fail(case.quality_key, "quality", failure)
            return None
        except BudgetError as error:
            self.job.progress.note(str(error))
            return None
        except (TargetError, StoreError):
            # Of the device or the run, and not of the case: that the connection broke, or the disk is full.
            raise
        except EdgeprofError as error:
            if self._reference is None:
                # Labels or metric don't fit the model itself: nothing that follows could mean anything.
                raise
            self.job.fail(case.quality_key, "quality", WorkerFailure("error", str(error)))
            return None
        return self._reduced(record)

    @property
    def in_points(self) -> bool:
        """Whether the quality is the metric itself, so that the accepted drop means the same on it."""
        return self.metric is not None and self.metric.mean_reduced and self.metric.unit == "proportion"

    def _reduced(self, record: QualityRecord) -> Floats:
        """The metric's rows where they are shares, else agreement with the reference: what betting needs is bounded."""
        if self.metric is None:
            self.metric = self._chosen_by_name(record.metric)
        values = record.per_sample if self.in_points else record.agreement
        if self.in_points and not self.metric.higher_is_better:
            values = 1.0 - values
        if not self.in_points and (values < 0).any():
            values = (1.0 + values) / 2
        return np.clip(np.asarray(values, dtype=np.float64), 0.0, 1.0)

    @staticmethod
    def _chosen_by_name(name: str) -> Metric:
        return get_metric(name)

    def _outputs(self, case: Case, stop: Callable[[Floats], str | None]) -> tuple[Outputs, int, tuple[str, ...]]:
        found = None
        if self.elsewhere is not None:
            with self.elsewhere.ahead(self.job, [case], self.data) as ahead:
                found = ahead.outputs(case)
        if found is not None:
            # A name of its own: the function below keeps it.
            outputs = found.outputs
            return *self._portions(case, lambda start: _cut(outputs, start, case.batch), stop), found.notes
        with self.job.open(case) as worker:
            self.job.load(worker, case)
            return *self._portions(case, lambda start: self._batch(worker, case, start), stop), ()

    def _portions(
        self, case: Case, batch: Callable[[int], Outputs], stop: Callable[[Floats], str | None]
    ) -> tuple[Outputs, int]:
        kept = OutputRows(len(self.data), self.job.folder)
        done, look_at = 0, float(FIRST_ROWS)
        while done < len(self.data):
            try:
                kept.add(batch(done))
            except TooLarge as error:
                raise WorkerFailure("error", str(error)) from error
            done = min(done + case.batch, len(self.data))
            if done >= look_at and self._known_reference() is not None:
                look_at *= GROWTH
                so_far = self._record("", kept.outputs(), done, 0.0)
                if stop(self._reduced(so_far)) is not None:
                    break
        return kept.outputs(), done

    def _batch(self, worker: WorkerProcess, case: Case, start: int) -> Outputs:
        index = np.arange(start, start + case.batch) % len(self.data)
        rows = min(case.batch, len(self.data) - start)
        feeds = {name: np.ascontiguousarray(array[index]) for name, array in self.data.inputs.items()}
        outputs = worker.request("infer", feeds, timeout_s=self.job.limit_s)[1]
        # Detections, scalars and constants are no answers to rows.
        return {name: array[:rows] for name, array in with_rows(outputs, case.batch).items()}

    def _record(self, key: str, outputs: Outputs, rows: int, seconds: float) -> QualityRecord:
        reference = self._known_reference()
        known = reference
        reference = outputs if reference is None else reference
        base = {name: array[:rows] for name, array in reference.items()}
        labels = None if self.data.labels is None else self.data.labels[:rows]
        if self._reading is None:
            of_reference = (
                None if self.data.labels is None else self.data.labels[: len(next(iter(reference.values()), ()))]
            )
            self._reading = choose(self.job.study.metric, of_reference, reference)
            self.metric = self._reading.metric
        if known is None:
            # Only once they can be read: whoever comes after is compared with them.
            self._reference = outputs
            output_rows.write(self._path, outputs)
        return QualityRecord(
            case=key, data_sha256=self.data.sha256, seconds=seconds,
            notes=(f"{rows} of {len(self.data)} screening rows", *self._reading.notes),
            **self._reading.reduced(outputs, labels, base),
        )  # fmt: skip

    def _known_reference(self) -> Outputs | None:
        if self._reference is None:
            self._reference = output_rows.read(self._path)
        return self._reference

    @property
    def _path(self) -> Path:
        return self.job.folder / OUTPUTS


def _cut(outputs: Outputs, start: int, rows: int) -> Outputs:
    return {name: array[start : start + rows] for name, array in outputs.items()}
