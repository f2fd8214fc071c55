"""Do the runtimes compute the same function from the same file? Where not: which of them is right, and what else would be.

Each artifact's outputs on a few rows are compared across the study's backends. Where they differ by more than the precision
explains, each runtime is asked once more with its cautious option, and if that leaves a draw, ONNX's reference evaluator; all
in workers, within the study's limits. What most agree on is taken as right.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from backends import spec
from profiler.data import Dataset
from profiler.errors import EdgeprofError
from profiler.job import Job
from profiler.quality.runtimes import RuntimeComparison, compare_runtimes
from profiler.quality.similarity import Precision
from profiler.records import REFERENCE_VARIANT, RuntimeRecord
from profiler.study import Case
from profiler.targets.process import WorkerFailure

Outputs = Mapping[str, NDArray[np.generic]]

ROWS = 32
MAX_BYTES = 64 << 20
"""Most that the outputs of one case may take that are kept."""
CAUTIOUS: Mapping[str, tuple[str, str]] = {"ort": ("opt", "off"), "ov": ("shape", "dynamic")}
"""By backend, the option that leaves out what most often goes wrong: fusions, and plans for fixed shapes."""
UMPIRE = "onnx-reference"
_NOT_COMPARED = frozenset({"fake", "injected", UMPIRE})
_FLOAT_STEPS = frozenset({"fp32", "graph", "prune-channels", "prune-magnitude", "prune-nm"})
"""Recipes that leave float32 what it is."""
_FLOATS = frozenset({"f32", "f64", "float32", "float64", "conversion", "other", "undetermined"})
_CPU = frozenset({None, "cpu", "CPU"})


@dataclass
class Crosscheck:
    """The comparison of one evaluation's cases."""

    job: Job
    cases: Sequence[Case]
    data: Dataset
    _seen: dict[str, Outputs] = field(default_factory=dict)
    _unmodified: Outputs | None = None
    """The reference's first rows, once they are known."""
    _reduced: bool = False
    """Whether the unmodified model itself is computed in less than float32."""

    def __post_init__(self) -> None:
        """Which cases belong together: one file, one target, one batch, on two backends or more."""
        groups: dict[str, dict[str, Case]] = {}
        for case in self.cases:
            if spec.parse(case.backend).name not in _NOT_COMPARED:
                groups.setdefault(group_key(case), {}).setdefault(case.quality_key, case)
        self._groups = {key: list(found.values()) for key, found in groups.items() if len(found) > 1}
        self._records = {record.case: record for record in self.job.store.records(self.job.run_id, RuntimeRecord)}

    def reference(self) -> set[str]:
        """Compare the unmodified model before anything is compared with it. Returns the quality keys that are not trusted.

        At the first batch of each target; the others are compared afterwards, by the outputs that were evaluated anyway.
        """
        targets: set[str] = set()
        for key, cases in self._groups.items():
            if cases[0].is_reference_variant and cases[0].target not in targets:
                targets.add(cases[0].target)
                self._compared(key, cases)
        found = [record for record in self._records.values() if record.variant == REFERENCE_VARIANT]
        self._reduced = any(record.reduced for record in found)
        return {key for record in found for key in record.doubted}

    def saw(self, case: Case, outputs: Outputs) -> None:
        """Keep the first rows of an evaluation's outputs, so that nothing has to run again."""
        if group_key(case) in self._groups and group_key(case) not in self._records:
            self._seen[case.quality_key] = _first_rows(outputs)

    def rest(self, failed: Iterable[str], reference: Outputs | None = None) -> None:
        """Compare the other artifacts, leaving out cases that failed; `reference` are the outputs that all are held against."""
        gone = set(failed)
        self._unmodified = None if reference is None else _first_rows(reference)
        for key, cases in self._groups.items():
            left = [case for case in cases if case.quality_key not in gone]
            if len(left) > 1:
                self._compared(key, left)

    def _compared(self, key: str, cases: Sequence[Case]) -> None:
        if key in self._records:
            return
        found: list[tuple[Case, Outputs]] = []
        reduced = self._reduced or not all(map(_in_floats, cases))
        for case in cases:
            outputs = self._seen.pop(case.quality_key, None)
            if outputs is None:
                try:
                    outputs, floats = self._run(case)
                except WorkerFailure:
                    # Told where the case itself is evaluated.
                    continue
                reduced = reduced or not floats
            found.append((case, outputs))
        if len(found) < 2:
            return
        record = judge(key, found, reduced=reduced, again=self._again, unmodified=self._unmodified)
        self._records[key] = record
        self.job.store.add(self.job.run_id, record)
        if record.text:
            self.job.progress.note(record.text)

    def _again(self, case: Case, backend: str) -> Outputs | None:
        """The same file with another backend text; None where it cannot run."""
        try:
            return self._run(replace(case, backend=backend))[0]
        except WorkerFailure as failure:
            if failure.kind == "timeout":
                self.job.needs(0.0)
            self.job.progress.note(f"{backend} could not be asked about {case.quality_key}: {failure}")
            return None

    def _run(self, case: Case) -> tuple[Outputs, bool]:
        """Outputs of the first rows, and whether they are computed in floats as far as the runtime tells."""
        job, feeding = self.job, self.job.prepared.feeding
        few = self.data.take(np.arange(min(len(self.data), max(ROWS, case.batch))))
        parts: dict[str, list[NDArray[np.generic]]] = {}
        order: list[NDArray[np.generic]] = []
        with job.open(case) as worker:
            job.load(worker, case)
            try:
                for index, outputs in feeding.answers(
                    few, case.batch, lambda feeds: worker.request("infer", feeds, timeout_s=job.limit_s)[1]
                ):
                    order.append(index)
                    for name, array in outputs.items():
                        if array.ndim and len(array) == case.batch:
                            parts.setdefault(name, []).append(array[: len(index)])
            except WorkerFailure:
                raise
            except EdgeprofError as error:
                raise WorkerFailure("error", str(error)) from error
            facts = worker.request("facts", {}, timeout_s=job.limit_s)[0].get("facts") or {}
        places = np.argsort(np.concatenate(order), kind="stable")
        whole = {name: np.concatenate(arrays)[places] for name, arrays in parts.items() if len(arrays) == len(order)}
        return _first_rows(whole), set(facts.get("precision") or ()) <= _FLOATS


def group_key(case: Case) -> str:
    """What cases share that run one file on one target at one batch."""
    return replace(case, backend="any").quality_key


def judge(
    key: str,
    found: Sequence[tuple[Case, Outputs]],
    *,
    reduced: bool,
    again: Callable[[Case, str], Outputs | None],
    unmodified: Outputs | None = None,
) -> RuntimeRecord:
    """Compare outputs of one artifact on its backends; `again` runs it with another backend text, where they differ.

    `unmodified` are the reference's outputs on the same rows, which tell what the artifact's precision costs.
    """
    precision = Precision.REDUCED if reduced else Precision.FULL
    first, outputs = found[0]
    backends = tuple(case.backend for case, _ in found)
    rows = min(_rows(array) for _, array in found)
    record = RuntimeRecord(
        case=key, variant=first.variant, target=first.target, batch=first.batch, rows=rows, reduced=reduced, backends=backends,
        agreeing=backends,
    )  # fmt: skip
    differing = [
        (case, comparison)
        for case, other in found[1:]
        if (comparison := _compare(outputs, other, precision, unmodified)).differs
    ]
    if not differing:
        return record
    said = [(case.backend, array) for case, array in found]
    cautious: dict[str, str] = {}
    for case, _ in found:
        text = cautious_text(case.backend)
        answer = None if text is None or text in dict(said) else again(case, text)
        if text is not None and answer is not None:
            cautious[case.backend] = text
            said.append((text, answer))
    sides = _sides(said, precision, unmodified)
    if _drawn(sides):
        umpire = again(first, UMPIRE)
        if umpire is not None:
            said.append((UMPIRE, umpire))
            sides = _sides(said, precision, unmodified)
    undecided = _drawn(sides)
    right: tuple[str, ...] = () if undecided else sides[0]
    worst = max(differing, key=lambda item: _size(item[1]))
    difference = worst[1].worst
    return replace(
        record,
        agreeing=right,
        wrong=tuple(name for name in backends if name not in right),
        undecided=undecided,
        doubted=tuple(case.quality_key for case, _ in found if case.backend not in right),
        cautious={name: text for name, text in cautious.items() if name not in right and text in right},
        difference="" if difference is None else difference.text,
        relative_error=None if difference is None or not np.isfinite(_size(worst[1])) else _size(worst[1]),
    )


def cautious_text(backend: str) -> str | None:
    """The backend with its cautious option; None where it has none."""
    parsed = spec.parse(backend)
    if parsed.name not in CAUTIOUS:
        return None
    option, value = CAUTIOUS[parsed.name]
    return str(replace(parsed, options={**parsed.options, option: value}))


def _sides(
    said: Sequence[tuple[str, Outputs]], precision: Precision, unmodified: Outputs | None
) -> list[tuple[str, ...]]:
    """Who agrees with whom, the largest side first."""
    sides: list[list[tuple[str, Outputs]]] = []
    for name, outputs in said:
        side = next((side for side in sides if not _compare(side[0][1], outputs, precision, unmodified).differs), None)
        if side is None:
            sides.append([(name, outputs)])
        else:
            side.append((name, outputs))
    return sorted((tuple(name for name, _ in side) for side in sides), key=len, reverse=True)


def _drawn(sides: Sequence[tuple[str, ...]]) -> bool:
    """Whether no side has more votes than each other one, or than one: a lonely answer is no majority."""
    return len(sides[0]) < 2 or (len(sides) > 1 and len(sides[1]) == len(sides[0]))


def _compare(
    first: Outputs, second: Outputs, precision: Precision, unmodified: Outputs | None = None
) -> RuntimeComparison:
    """Over the outputs and rows that both have."""
    names = [name for name in first if name in second]
    count = min(_rows(first), _rows(second))
    one, other = ({name: array[name][:count] for name in names} for array in (first, second))
    known = {name: array[:count] for name, array in (unmodified or {}).items() if len(array) >= count}
    return compare_runtimes(one, other, precision, known)


def _size(comparison: RuntimeComparison) -> float:
    worst = comparison.worst
    return 0.0 if worst is None else max(worst.relative_error, worst.column_error)


def _rows(outputs: Outputs) -> int:
    return min((len(array) for array in outputs.values()), default=0)


def _first_rows(outputs: Outputs) -> Outputs:
    row_bytes = sum(array[:1].nbytes for array in outputs.values() if array.ndim)
    count = max(1, min(ROWS, MAX_BYTES // max(1, row_bytes)))
    return {name: array[:count].copy() for name, array in outputs.items() if array.ndim}


def _in_floats(case: Case) -> bool:
    """Whether the case computes in float32 or float64, as far as its texts tell."""
    steps = {spec.parse(step).name for step in spec.split_steps(case.variant)}
    backend = spec.parse(case.backend)
    return steps <= _FLOAT_STEPS and backend.device in _CPU and backend.options.get("precision", "f32") == "f32"
