"""Before anything is measured: the model as ONNX, the rows to evaluate, calibrate and time on, the artifacts, the cases."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from backends import registry as backend_registry
from backends import spec
from backends.base import TensorInfo, format_shape
from profiler import artifacts
from profiler.artifacts import ArtifactStore
from profiler.cost.model import parse_deployment
from profiler.cost.prices import load_prices
from profiler.data import Dataset, Preprocessing, drop_overlap, load_dataset, split_calibration
from profiler.data.feeding import Feeding, InputRule
from profiler.data.fit import UndeclaredStateError
from profiler.data.functions import FUNCTION, RESERVED
from profiler.data.load import FunctionReader
from profiler.data.npz import read_npz
from profiler.data.rules import command, complete, decide, random_values, refuse_what_is_not_fed
from profiler.errors import DataError, EdgeprofError, ModelError, StudyError, VariantError, unknown
from profiler.held import held_folder, sweep_old
from profiler.progress import Progress
from profiler.quality.metrics import get_metric
from profiler.records import REFERENCE_VARIANT, ArtifactRecord, FailureRecord
from profiler.study import Case, Study, expand
from profiler.targets.base import get as get_target
from profiler.targets.conditions import too_many_threads
from profiler.targets.functions import read_function_apart
from profiler.targets.maker import PREFIX, Limits, Maker, ModelFacts, as_failure, describe, is_of_the_machine, limits_of
from profiler.targets.process import WorkerFailure
from profiler.variants import registry as variant_registry
from profiler.variants.base import Variant
from profiler.variants.recorded import recorded
from profiler.wire import MAX_PAYLOAD_BYTES

TIMING_TURNS = 4
"""Different batches that timing takes in turn."""
_EXPORT_ROWS = 64
_RANDOM_ROWS = 16
_RANDOM_BYTES = 1 << 28
"""Fewer random rows where they would take more than so many bytes."""


@dataclass(frozen=True)
class Prepared:
    """What the measuring stages work on."""

    source: Path
    inputs: tuple[TensorInfo, ...]
    evaluation: Dataset | None
    """Rows to evaluate on; None when the study has no data, and then accuracy is not measured."""
    calibration: Dataset | None
    rows: Mapping[str, NDArray[np.generic]]
    """Inputs that timing draws its batches from: the evaluation rows, or random ones."""
    notes: tuple[str, ...]
    source_sha256: str = ""
    """As `profiler.artifacts.source_sha256`."""
    feeding: Feeding = field(default_factory=lambda: Feeding(()))
    """How rows become feeds; left out: row by row, on the first axis of every input."""

    def __post_init__(self) -> None:
        """Without a description there is the plain one."""
        if not self.feeding.rules:
            object.__setattr__(self, "feeding", Feeding.plain(self.inputs))


def check_names(study: Study, *, fresh: bool = False) -> tuple[Variant, ...]:
    """The study's variants, reference first. Raises StudyError for names nobody knows, before any work is done.

    A `fresh` study, which was not begun yet, has to say its limit clearly too.
    """
    for text in study.backends:
        backend = spec.parse(text)
        if backend.name not in backend_registry.names():
            raise unknown("backend", backend.name, backend_registry.names())
        devices = backend_registry.get(backend.name).devices()
        family = (backend.device or "").split(".")[0]
        if backend.device and family.lower() not in {device.lower() for device in devices} and not family.isdigit():
            raise unknown(f"device of backend '{backend.name}'", backend.device, devices)
    for name in study.targets:
        get_target(name)
    metric = None if study.metric is None else get_metric(study.metric)
    misfit = study.constraints.drop_misfit(study.metric, None if metric is None else metric.unit)
    if misfit is None and metric is not None and fresh:
        misfit = study.constraints.drop_doubt(str(study.metric), metric.unit)
    if misfit is not None:
        raise StudyError(f"{misfit}.")
    book = load_prices(None if study.cost.prices is None else Path(study.cost.prices))
    for kind in study.cost.declared.values():
        parse_deployment(kind, book)
    texts = study.variants or variant_registry.default_variants("default")
    return tuple(variant_registry.make(text) for text in dict.fromkeys((REFERENCE_VARIANT, *texts)))


def prepare(
    study: Study,
    variants: tuple[Variant, ...],
    folder: Path,
    *,
    shapes_needed: bool = True,
    maker: Maker | None = None,
) -> Prepared:
    """Read or export the model, and read the data. Raises ModelError, DataError, StudyError.

    Without data, random rows stand in for timing; where nothing is timed (`shapes_needed` false) none are made, and any batch
    that the model has is right. The model is read by `maker`, or by a process of its own.
    """
    source, notes = _model(study, folder)
    facts = described(study, source, maker)
    inputs = facts.inputs
    _check_ends(study, facts)
    feeding = decide(study, inputs, facts.outputs)
    if shapes_needed:
        feeding.check_batches(study.batches)
    if shapes_needed or study.data or study.calibration:
        # Before data are read, which would be found not to fit in words that lead nowhere.
        refuse_what_is_not_fed(feeding)
    data = _load(study, study.data, feeding) if study.data else None
    calibration = _load(study, study.calibration, feeding) if study.calibration else None
    for found in filter(None, (data, calibration)):
        feeding = feeding.with_constants(found.constants)
    if shapes_needed or data is not None or calibration is not None:
        feeding = complete(study, feeding, data_given=data is not None or calibration is not None)
    notes = (*notes, *feeding.notes)
    evaluation = data
    if calibration is not None and data is not None:
        calibration = drop_overlap(calibration, data, by_ids=bool(feeding.states))
    elif data is not None and any(variant.needs_calibration for variant in variants):
        # Never more than half: the rest is what every claim about accuracy rests on.
        calibration, evaluation = split_calibration(
            data, min(study.calibration_samples, len(data) // 2), seed=study.seed, by_ids=bool(feeding.states)
        )
    if calibration is not None and not feeding.is_plain:
        calibration, told = recorded(study, source, feeding, calibration)
        notes = (*notes, *told)
    rows: Mapping[str, NDArray[np.generic]] = {}
    if evaluation is not None:
        rows, notes = evaluation.inputs, (*notes, *evaluation.notes)
    elif shapes_needed:
        rows = random_rows(study, feeding)
        notes = (*notes, "no data was given: timing runs on random inputs, accuracy is not measured")
    if rows:
        _check_feeds_size(study, feeding, rows)
    return Prepared(source, inputs, evaluation, calibration, rows, notes, facts.sha256, feeding)


def _check_ends(study: Study, facts: ModelFacts) -> None:
    if not facts.inputs:
        raise StudyError(f"the model {study.model} has no inputs: there is nothing to feed it.")
    if not facts.outputs:
        raise StudyError(f"the model {study.model} has no outputs: there is nothing to ask it for.")


def described(study: Study, source: Path, maker: Maker | None = None) -> ModelFacts:
    """What is to be known of the model's file, within the study's limits. Raises ModelError."""
    with ExitStack() as stack:
        own = Maker(lambda: limits_of(study.time_limit_s, study.memory_limit_bytes))
        return describe(source, maker or stack.enter_context(own))


def _model(study: Study, folder: Path) -> tuple[Path, tuple[str, ...]]:
    """The ONNX file of the study's model: itself, or exported from a factory with rows of the study's data."""
    from profiler.export import export_model

    path = Path(study.model).expanduser()
    factory = FUNCTION.fullmatch(study.model) is not None and not path.exists()
    if not factory:
        return path, ()
    out = folder / "exported" / "model.onnx"
    out.parent.mkdir(parents=True, exist_ok=True)
    exported = export_model(study.model, export_sample(study), out)
    notes = exported.notes
    if exported.parity is not None:
        parity = exported.parity
        summary = (
            f"exported by {exported.exporter}; outputs differ from {exported.source_framework} by at most "
            f"{parity.max_abs_diff:.2g} (relative {parity.max_rel_diff:.2g}) on {parity.rows} rows"
        )
        notes = (summary, *notes)
    return exported.path, notes


def export_sample(study: Study) -> Mapping[str, NDArray[np.generic]]:
    """A few rows to trace the model with, before its inputs are known by name; random ones for an `.onnx` without data."""
    if study.data is None and Path(study.model).is_file():
        facts = described(study, Path(study.model))
        feeding = decide(study, facts.inputs, facts.outputs)
        feeding = complete(study, feeding, data_given=False)
        rows = random_rows(study, feeding)
        return feeding.feeds(rows, np.arange(feeding.fixed_batch or len(next(iter(rows.values())))))
    if study.data is None:
        raise StudyError(f"exporting {study.model} needs rows to trace it with: give them with --data.")
    path = Path(study.data).expanduser()
    if path.is_file():
        arrays: Mapping[str, NDArray[np.generic]] = read_npz(path)
    elif FUNCTION.fullmatch(study.data) and not path.exists():
        arrays = _reader(study)(study.data, (), limit=_EXPORT_ROWS)
    else:
        info = TensorInfo("image", "float32", (None, None, None, None))
        arrays = load_dataset(study.data, inputs=[info], preprocessing=_preprocessing(study), limit=_EXPORT_ROWS).inputs
    rows = {
        name: array[:_EXPORT_ROWS] if array.ndim else array for name, array in arrays.items() if name not in RESERVED
    }
    if not rows:
        raise DataError(
            f"data '{study.data}' has no arrays besides {', '.join(RESERVED)}: name one as the model's input."
        )
    return rows


def _preprocessing(study: Study) -> Preprocessing | None:
    return None if study.preprocessing is None else Preprocessing.of(study.preprocessing)


def _load(study: Study, source: str, feeding: Feeding) -> Dataset:
    try:
        return load_dataset(
            source, inputs=[rule.info for rule in feeding.rules], preprocessing=_preprocessing(study), limit=study.limit,
            seed=study.seed, feeding=feeding, call=_reader(study),
        )  # fmt: skip
    except UndeclaredStateError as error:
        raise DataError(f"{error} The command: {command(study, error.asked)}") from error


def _reader(study: Study) -> FunctionReader:
    """Functions of the user's are called in a process of their own, within the study's limits."""

    def limits() -> Limits:
        return limits_of(study.time_limit_s, study.memory_limit_bytes)

    return partial(read_function_apart, limits=limits)


def random_rows(study: Study, feeding: Feeding) -> Mapping[str, NDArray[np.generic]]:
    """Random rows of every input that comes in rows. Raises StudyError for shapes that are open, wrong, or absurdly large."""
    strangers = study.input_shapes.keys() - {rule.name for rule in feeding.rules}
    if strangers:
        raise unknown("input in --shape", min(strangers), [rule.name for rule in feeding.rules])
    shapes = {rule.name: _row_shape(study, rule) for rule in feeding.rules if rule.from_rows}
    bytes_a_row = sum(8 * math.prod(shape) for shape in shapes.values())
    count = max(1, min(_RANDOM_ROWS, _RANDOM_BYTES // max(1, bytes_a_row)))
    random = np.random.default_rng(study.seed)
    return {
        rule.name: random_values(rule.name, (count, *shapes[rule.name]), rule.info.dtype, random)
        for rule in feeding.rules
        if rule.from_rows
    }


def _row_shape(study: Study, rule: InputRule) -> tuple[int, ...]:
    given = study.input_shapes.get(rule.name)
    shape = given if given is not None else rule.row_shape
    if given is not None and (
        len(given) != len(rule.row_shape)
        or any(isinstance(own, int) and own != size for own, size in zip(rule.row_shape, given, strict=True))
    ):
        raise StudyError(
            f"--shape {rule.name}={','.join(map(str, given))} does not fit the model, whose input '{rule.name}' is "
            f"{format_shape(rule.info.shape)}: give its sizes without the batch axis."
        )
    open_axes = [size for size in shape if not isinstance(size, int)]
    if open_axes:
        raise StudyError(
            f"input '{rule.name}' has sizes that the model leaves open ({', '.join(map(str, open_axes))}): "
            f"give real rows with --data, or a shape with --shape {rule.name}=… "
            "(in a study file: a table [input_shapes]), without the batch axis."
        )
    return tuple(size for size in shape if isinstance(size, int))


def _check_feeds_size(study: Study, feeding: Feeding, rows: Mapping[str, NDArray[np.generic]]) -> None:
    """What timing takes in turn is sent to a worker at once."""
    row_bytes = feeding.row_bytes(rows)
    for batch in study.batches:
        if TIMING_TURNS * batch * row_bytes > MAX_PAYLOAD_BYTES:
            raise StudyError(
                f"batch {batch} takes {TIMING_TURNS} × {batch} rows of {row_bytes / 1e6:,.1f} MB to be timed, at most "
                f"{MAX_PAYLOAD_BYTES / 1e9:.1f} GB are sent to a worker: ask for a smaller --batch."
            )


def make_artifacts(
    prepared: Prepared,
    variants: tuple[Variant, ...],
    store: ArtifactStore,
    progress: Progress,
    require_time: Callable[[], None] = lambda: None,
) -> tuple[list[ArtifactRecord], list[FailureRecord]]:
    """One artifact per variant, equal ones merged; a variant that cannot be made is a failure and the others go on.

    `require_time` raises BudgetError where there is no time for another one than the reference. Raises ModelError for a reference
    that ends its process: there is nothing to compare with.
    """
    made: list[ArtifactRecord] = []
    failures: list[FailureRecord] = []
    progress.stage("making variants", len(variants))
    for variant in variants:
        if variant.text != REFERENCE_VARIANT:
            require_time()
        try:
            record = make_artifact(store, prepared, variant)
        except VariantFailed as failed:
            failures.append(failed.record)
            progress.note(f"{variant.text}: {failed}")
        else:
            made.append(artifacts.merged(record, made))
        progress.step(variant.text)
    return made, failures


class VariantFailed(VariantError):  # noqa: N818 (becomes a FailureRecord, it is not a mistake of ours)
    """A variant, and not the reference, could not be made."""

    def __init__(self, record: FailureRecord) -> None:
        """`record` says why."""
        super().__init__(record.message)
        self.record = record


def make_artifact(store: ArtifactStore, prepared: Prepared, variant: Variant) -> ArtifactRecord:
    """The artifact of a variant. Raises VariantFailed; what it raises else ends the run: of the machine, or of the reference."""
    rows = prepared.calibration
    try:
        return store.make(
            prepared.source, variant, None if rows is None else rows.inputs, None if rows is None else rows.sha256
        )
    except EdgeprofError as error:
        if is_of_the_machine(error):
            raise
        if variant.text == REFERENCE_VARIANT:
            if isinstance(error, WorkerFailure):
                raise ModelError(str(error)) from error
            raise
        kind, log_tail, needs = as_failure(error)
        record = FailureRecord(
            case=variant.text, stage="variant", kind=kind, message=str(error), log_tail=log_tail,
            needs_more_than_bytes=needs,
        )  # fmt: skip
        raise VariantFailed(record) from error


def plan_cases(study: Study, made: list[ArtifactRecord]) -> tuple[tuple[Case, ...], list[FailureRecord]]:
    """The cases worth running, and those left out with the reason: merged with another, or not for that backend."""
    variants = tuple(record.variant for record in made)
    records = {record.variant: record for record in made}
    kept, left_out = [], []
    for case in expand(study, variants):
        record = records[case.variant]
        backend = spec.parse(case.backend).name
        crowded = too_many_threads(case.target, case.threads)
        if crowded is not None:
            left_out.append(_skipped(case, f"{crowded}: that measures how they get in each other's way."))
        elif not artifacts.runs_on(record, backend):
            only = str(record.facts.get("only_backends")).replace("|", ", ")
            left_out.append(_skipped(case, f"{case.variant} is made for {only}, not for {backend}."))
        elif record.equal_to is not None:
            left_out.append(_skipped(case, f"the file equals that of {record.equal_to}: see there."))
        else:
            kept.append(case)
    return tuple(kept), left_out


def _skipped(case: Case, message: str) -> FailureRecord:
    return FailureRecord(case=case.key, stage="plan", kind="skipped", message=message)


def timing_index(prepared: Prepared, case: Case, seed: int) -> list[NDArray[np.int64]]:
    """The rows of `TIMING_TURNS` batches; the same for every case of that batch size."""
    count = len(next(iter(prepared.rows.values()))) if prepared.rows else 1
    random = np.random.default_rng((seed, case.batch))
    return [random.choice(count, case.batch, replace=case.batch > count) for _ in range(TIMING_TURNS)]


def timing_feeds(prepared: Prepared, case: Case, seed: int) -> dict[str, NDArray[np.generic]]:
    """Arrays `<turn>/<input>` of `TIMING_TURNS` batches. What a sequence carries is timed on a step from its beginning."""
    return {
        f"{turn}/{name}": array
        for turn, index in enumerate(timing_index(prepared, case, seed))
        for name, array in prepared.feeding.feeds(prepared.rows, index).items()
    }


def working_folder() -> AbstractContextManager[Path]:
    """Where an export lies until it is in the artifact store; those of processes that were killed are removed first."""
    place = Path(tempfile.gettempdir())
    sweep_old(place)
    return held_folder(place, PREFIX)
